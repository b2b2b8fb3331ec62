#include "recipes/report/run_report.h"

#include <set>

#include "kernels/base/json.h"
#include "kernels/program/edits/low_rank.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/report/quality_json.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

std::string percent(double fraction) { return number_text(fraction * 100, 4) + " %"; }

std::string with_interval(const std::string& value, const std::string& low,
                          const std::string& high) {
  return value + " [" + low + ", " + high + "]";
}

std::string rate_in(const char* unit, const Rate& rate) {
  return cat(number_text(rate.median, 4), " ", unit, " [", number_text(rate.low, 4), ", ",
             number_text(rate.high, 4), "]");
}

// One line of the table for both models; absent cells are "-", a line of none is left
// out.
class Rows {
 public:
  explicit Rows(std::vector<const Measurement*> models) : models_(std::move(models)) {}

  template <class Cell>
  void add(const std::string& label, Cell cell) {
    std::vector<std::string> row = {label};
    bool any = false;
    for (const Measurement* model : models_) {
      const std::string text = cell(*model);
      any = any || !text.empty();
      row.push_back(text.empty() ? "-" : text);
    }
    if (any) rows_.push_back(std::move(row));
  }
  const std::vector<std::vector<std::string>>& rows() const { return rows_; }

 private:
  std::vector<const Measurement*> models_;
  std::vector<std::vector<std::string>> rows_;
};

// Two rows an output: how far it is, and the most that one value is.
void signal_rows(Rows& rows, const std::vector<const Measurement*>& models,
                 std::optional<SignalQuality> Measurement::* quality, const char* what) {
  const Measurement* first = nullptr;
  for (const Measurement* model : models) {
    if (first == nullptr && model->*quality) first = model;
  }
  if (first == nullptr) return;
  for (size_t i = 0; i < (first->*quality)->outputs.size(); ++i) {
    const auto at = [quality, i](const Measurement& m) {
      const bool there = (m.*quality) && i < (m.*quality)->outputs.size();
      return there ? &(m.*quality)->outputs[i] : nullptr;
    };
    const std::string label = cat((first->*quality)->outputs[i].name, " ", what);
    rows.add(label.c_str(), [&](const Measurement& m) {
      const SignalQuality::Output* output = at(m);
      if (output == nullptr) return std::string();
      return cat(number_text(output->relative_error, 3), " [",
                 number_text(output->relative_error_ci95.low, 3), ", ",
                 number_text(output->relative_error_ci95.high, 3), "], ",
                 number_text(output->snr, 3), " dB");
    });
    rows.add("  largest of a value", [&](const Measurement& m) {
      const SignalQuality::Output* output = at(m);
      return output == nullptr ? std::string()
                               : cat(number_text(output->largest_difference, 3), " of ",
                                     number_text(output->largest, 3));
    });
  }
}

Json rate_json(const Rate& rate) {
  return Json{{"median", rate.median},
              {"low", rate.low},
              {"high", rate.high},
              {"repeats", rate.repeats}};
}

Json measurement_json(const Measurement& m) {
  Json json = {{"name", m.name},
               {"bytes", m.bytes},
               {"bits_per_weight", m.bits_per_weight},
               {"quantized_bits_per_weight", m.quantized_bits_per_weight}};
  if (m.cache) json["kv_cache"] = cache_json(*m.cache);
  if (m.text) add_quality(*m.text, json);
  if (m.images) add_quality(*m.images, json);
  if (m.embeddings) {
    json["cosine"] = m.embeddings->mean_cosine;
    json["cosine_ci95"] = interval_json(m.embeddings->mean_ci95);
    json["lowest_cosine"] = m.embeddings->lowest_cosine;
    json["sentences"] = m.embeddings->sentences;
  }
  if (m.signals) json["signals"] = signal_json(*m.signals);
  if (m.targets) json["targets"] = signal_json(*m.targets);
  return json;
}

}  // namespace

std::optional<CacheSize> measure_cache(const Executor& model) {
  const Program& program = model.artifact().program;
  if (!program.is_language_model() || program.states.empty()) return std::nullopt;
  const std::vector<KvScheme> f16(program.states.size(), *parse_kv_scheme("f16", 1, 1));
  const int64_t positions = program.context_length;
  return CacheSize{to_string(model.kv_schemes().front()), positions,
                   KvCache::bytes_for(program, model.kv_schemes(), positions),
                   KvCache::bytes_for(program, f16, positions)};
}

bool has_quantized_cache(const Executor& model) {
  for (const KvScheme& scheme : model.kv_schemes()) {
    if (!scheme.is_f32()) return true;
  }
  return false;
}

std::string cache_text(const CacheSize& cache) {
  return cat(cache.scheme, ", ", bytes_text(cache.bytes), ", ",
             number_text(cache.of_f16(), 3), " of f16");
}

Measurement measure_size(const Artifact& model, const std::string& name) {
  int64_t parameters = 0, quantized = 0, quantized_bytes = 0;
  std::set<std::string> named;  // by the program: a checkpoint may carry more
  for (const Node& node : model.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) named.insert(tensor);
  }
  // Adapters take room and are no weights of the model: those of packed layers are
  // theirs.
  const std::set<std::string> adapters = low_rank_tensors(model.program);
  for (const auto& [tensor, value] : model.tensors) {
    if (adapters.count(tensor) > 0) {
      quantized_bytes += static_cast<int64_t>(value.bytes.size());
    } else if (named.count(tensor) > 0) {
      parameters += value.numel();
    }
  }
  for (const auto& [tensor, packed] : model.packed) {
    parameters += packed.rows * packed.cols;
    quantized += packed.rows * packed.cols;
    quantized_bytes += packed.bytes();
  }
  Measurement measurement;
  measurement.name = name;
  measurement.bytes = model.weight_bytes();
  const auto bits_each = [](int64_t bytes, int64_t count) {
    return count > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(count)
                     : 0.0;
  };
  measurement.bits_per_weight = bits_each(measurement.bytes, parameters);
  measurement.quantized_bits_per_weight = bits_each(quantized_bytes, quantized);
  return measurement;
}

std::vector<std::vector<std::string>> measurement_rows(
    const std::vector<const Measurement*>& models) {
  Rows rows(models);
  rows.add("", [](const Measurement& m) { return m.name; });
  rows.add("size", [](const Measurement& m) { return bytes_text(m.bytes); });
  rows.add("bits per weight",
           [](const Measurement& m) { return number_text(m.bits_per_weight, 4); });
  rows.add("  of quantized layers", [](const Measurement& m) {
    return m.quantized_bits_per_weight > 0 ? number_text(m.quantized_bits_per_weight, 4)
                                           : "";
  });
  bool cached = false;  // an f32 cache everywhere is nothing to tell
  for (const Measurement* m : models) cached |= m->cache && m->cache->scheme != "f32";
  if (cached) {
    rows.add("KV cache", [](const Measurement& m) {
      return m.cache ? m.cache->scheme : std::string();
    });
    rows.add("  of the context", [](const Measurement& m) {
      return m.cache ? cat(bytes_text(m.cache->bytes), ", ",
                           number_text(m.cache->of_f16(), 3), " of f16")
                     : std::string();
    });
  }
  rows.add("perplexity", [](const Measurement& m) {
    if (!m.text) return std::string();
    const Interval& ci = m.text->perplexity_ci95;
    return with_interval(number_text(m.text->perplexity, 6), number_text(ci.low, 4),
                         number_text(ci.high, 4));
  });
  rows.add("KL, nats a token", [](const Measurement& m) {
    if (!m.text || !m.text->kl) return std::string();
    const Interval& ci = m.text->kl_ci95;
    return with_interval(number_text(*m.text->kl, 3), number_text(ci.low, 3),
                         number_text(ci.high, 3));
  });
  const auto tail = [&rows](const char* label, std::optional<double> TextQuality::*value,
                            Interval TextQuality::*interval) {
    rows.add(label, [=](const Measurement& m) {
      if (!m.text || !((*m.text).*value)) return std::string();
      const Interval& ci = (*m.text).*interval;
      return with_interval(number_text(*((*m.text).*value), 3), number_text(ci.low, 3),
                           number_text(ci.high, 3));
    });
  };
  tail("  90th percentile", &TextQuality::kl_p90, &TextQuality::kl_p90_ci95);
  tail("  99th percentile", &TextQuality::kl_p99, &TextQuality::kl_p99_ci95);
  rows.add("same best token", [](const Measurement& m) {
    if (!m.text || !m.text->top1_agreement) return std::string();
    const Interval& ci = m.text->top1_agreement_ci95;
    return with_interval(percent(*m.text->top1_agreement), percent(ci.low),
                         percent(ci.high));
  });
  rows.add("perplexity grows by", [](const Measurement& m) {
    if (!m.text || !m.text->perplexity_increase) return std::string();
    const Interval& ci = m.text->perplexity_increase_ci95;
    return with_interval(number_text(*m.text->perplexity_increase * 100, 3) + " %",
                         number_text(ci.low * 100, 3), number_text(ci.high * 100, 3));
  });
  rows.add("accuracy", [](const Measurement& m) {
    if (!m.images) return std::string();
    const Interval& ci = m.images->accuracy_ci95;
    return with_interval(percent(m.images->accuracy), percent(ci.low), percent(ci.high));
  });
  rows.add("same class", [](const Measurement& m) {
    if (!m.images || !m.images->argmax_agreement) return std::string();
    const Interval& ci = m.images->argmax_agreement_ci95;
    return with_interval(percent(*m.images->argmax_agreement), percent(ci.low),
                         percent(ci.high));
  });
  rows.add("cosine with float", [](const Measurement& m) {
    if (!m.embeddings) return std::string();
    const Interval& ci = m.embeddings->mean_ci95;
    return with_interval(number_text(m.embeddings->mean_cosine, 6),
                         number_text(ci.low, 6), number_text(ci.high, 6));
  });
  rows.add("  lowest of a sentence", [](const Measurement& m) {
    return m.embeddings ? number_text(m.embeddings->lowest_cosine, 6) : std::string();
  });
  signal_rows(rows, models, &Measurement::signals, "error");
  signal_rows(rows, models, &Measurement::targets, "off target");
  return rows.rows();
}

Status gate_status(const RunReport& report) {
  if (!report.rejected) return ok_status();
  std::string unmet;
  for (const GateResult& result : report.gates) {
    if (!result.met()) unmet += (unmet.empty() ? "" : "; ") + gate_text(result);
  }
  return error(StatusCode::rejected, "[", report.verb, "] gate: ", unmet,
               "; the artifact is at ", report.output,
               "; choose a better recipe or another gate");
}

std::string print_report(const RunReport& report) {
  std::vector<const Measurement*> models;
  if (report.before) models.push_back(&*report.before);
  models.push_back(&report.after);
  for (const Measurement& part : report.parts) models.push_back(&part);
  std::vector<std::vector<std::string>> table = measurement_rows(models);
  Rows speeds(models);
  const auto speed_row = [&speeds](const char* label, Rate Speed::*rate,
                                   const char* unit) {
    speeds.add(label, [&](const Measurement& m) {
      return m.speed && ((*m.speed).*rate).repeats > 0 ? rate_in(unit, (*m.speed).*rate)
                                                       : std::string();
    });
  };
  speed_row("decode here", &Speed::decode, "tokens/s");
  speed_row("prefill here", &Speed::prefill, "tokens/s");
  speed_row("here", &Speed::images, "images/s");
  speed_row("embeds here", &Speed::sentences, "sentences/s");
  for (const std::vector<std::string>& row : speeds.rows()) table.push_back(row);

  std::string text = table_text(table);
  if (!report.evaluation.empty()) text += "measured on  " + report.evaluation + "\n";
  if (report.text_noise)
    text += cat(
        "noise floor  ",
        noise_text(*report.text_noise, report.after.text ? &*report.after.text : nullptr),
        "\n");
  if (report.image_noise)
    text += cat("noise floor  ",
                noise_text(*report.image_noise,
                           report.after.images ? &*report.after.images : nullptr),
                "\n");
  if (!report.calibration.empty()) text += "calibrated on  " + report.calibration + "\n";
  if (report.after.speed) text += "speed on  " + report.after.speed->cpu + "\n";
  for (const GateResult& gate : report.gates) text += "gate  " + gate_text(gate) + "\n";
  for (const std::string& line : report.notes) text += "note  " + line + "\n";
  for (const std::string& line : report.costs) text += line + "\n";
  text += "settings\n";
  size_t begin = 0;
  while (begin < report.recipe.size()) {
    const size_t end = std::min(report.recipe.find('\n', begin), report.recipe.size());
    text += "  " + report.recipe.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  if (!report.output.empty()) text += "output  " + report.output + "\n";
  return text;
}

std::string report_json(const RunReport& report) {
  const auto with_speed = [](const Measurement& m) {
    Json json = measurement_json(m);
    if (!m.speed) return json;
    if (m.speed->decode.repeats > 0)
      json["decode_tokens_per_second"] = rate_json(m.speed->decode);
    if (m.speed->prefill.repeats > 0)
      json["prefill_tokens_per_second"] = rate_json(m.speed->prefill);
    if (m.speed->images.repeats > 0)
      json["images_per_second"] = rate_json(m.speed->images);
    if (m.speed->sentences.repeats > 0)
      json["sentences_per_second"] = rate_json(m.speed->sentences);
    json["kernels"] = m.speed->kernels;
    json["cpu"] = m.speed->cpu;
    return json;
  };
  Json json = {{"verb", report.verb},
               {"model", report.model},
               {"output", report.output},
               {"recipe", report.recipe_name},
               {"settings", report.recipe},
               {"calibration", report.calibration},
               {"evaluation", report.evaluation},
               {"after", with_speed(report.after)},
               {"notes", report.notes}};
  if (!report.gates.empty()) {
    Json gates = Json::array();
    for (const GateResult& gate : report.gates) {
      gates.push_back({{"gate", gate.gate},
                       {"limit", gate.limit},
                       {"figure", gate.figure},
                       {"ci95", interval_json(gate.ci95)},
                       {"met", gate.met()}});
    }
    json["gates"] = gates;
    json["rejected"] = report.rejected;
  }
  if (report.peak_memory > 0) {
    json["memory"] = {{"peak_bytes", report.peak_memory},
                      {"predicted_bytes", report.predicted_memory}};
    for (const auto& [what, bytes] : report.memory_parts)
      json["memory"]["predicted_parts"][what] = bytes;
    json["calibration_seconds"] = report.calibration_seconds;
  }
  if (report.training_seconds > 0) json["training_seconds"] = report.training_seconds;
  if (report.attribution) json["attribution"] = attribution_json(*report.attribution);
  Json parts = Json::array();
  for (const Measurement& part : report.parts) parts.push_back(measurement_json(part));
  if (!parts.empty()) json["parts"] = parts;
  if (report.before) json["before"] = with_speed(*report.before);
  if (report.text_noise) json["noise_floor"] = noise_json(*report.text_noise);
  if (report.image_noise) json["noise_floor"] = noise_json(*report.image_noise);
  Json layers = Json::array();
  for (const LedgerEntry& entry : report.ledger.entries) {
    layers.push_back({{"tensor", entry.tensor},
                      {"scheme", entry.scheme},
                      {"method", entry.method},
                      {"error", entry.error},
                      {"output_error", entry.output_error},
                      {"rtn_error", entry.rtn_error},
                      {"rtn_output_error", entry.rtn_output_error},
                      {"bits", entry.bits},
                      {"parameters", entry.parameters}});
  }
  json["layers"] = layers;
  Json loss = Json::array();
  for (const LossPoint& point : report.loss) {
    loss.push_back({{"step", point.step},
                    {"loss", point.loss},
                    {"learning_rate", point.learning_rate}});
  }
  if (!report.loss.empty()) json["loss"] = loss;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string print_measurement(const Measurement& measurement) {
  return measurement_json(measurement)
             .dump(1, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

Result<Measurement> parse_measurement(const std::string& text, const std::string& where) {
  const Json json = parse_json(text);
  const auto refuse = [&where](const std::string& what) {
    return error(StatusCode::data_loss, "[report] ", where,
                 ": measurements.json as quantize writes it "
                 "is required; found ",
                 what, "; leave this artifact out of --compare");
  };
  if (!json.is_object()) return refuse("no JSON object");
  const auto number = [&json](const char* key) {
    return json.contains(key) && json[key].is_number() ? json[key].get<double>() : -1.0;
  };
  Measurement m;
  if (!json.contains("name") || !json["name"].is_string()) return refuse("no name");
  m.name = json["name"].get<std::string>();
  if (!json.contains("bytes") || !json["bytes"].is_number_integer())
    return refuse("no bytes");
  m.bytes = json["bytes"].get<int64_t>();
  m.bits_per_weight = number("bits_per_weight");
  m.quantized_bits_per_weight = number("quantized_bits_per_weight");
  const auto interval = [&json](const char* key) {
    const Json pair = json.value(key, Json::array());
    const bool two = pair.is_array() && pair.size() == 2 && pair[0].is_number() &&
                     pair[1].is_number();
    return two ? Interval{pair[0].get<double>(), pair[1].get<double>()} : Interval{};
  };
  if (number("perplexity") > 0) {
    m.text.emplace();
    m.text->perplexity = number("perplexity");
    m.text->perplexity_ci95 = interval("perplexity_ci95");
    m.text->nll = number("nll");
    const auto optional = [&](const char* key, std::optional<double>& value, Interval& ci) {
      if (!json.contains(key) || !json[key].is_number()) return;
      value = number(key);
      ci = interval((std::string(key) + "_ci95").c_str());
    };
    optional("kl", m.text->kl, m.text->kl_ci95);
    optional("kl_p90", m.text->kl_p90, m.text->kl_p90_ci95);
    optional("kl_p99", m.text->kl_p99, m.text->kl_p99_ci95);
    optional("top1_agreement", m.text->top1_agreement, m.text->top1_agreement_ci95);
    optional("perplexity_increase", m.text->perplexity_increase,
             m.text->perplexity_increase_ci95);
  }
  if (number("accuracy") >= 0) {
    m.images.emplace();
    m.images->accuracy = number("accuracy");
    m.images->accuracy_ci95 = interval("accuracy_ci95");
    if (number("argmax_agreement") >= 0) {
      m.images->argmax_agreement = number("argmax_agreement");
      m.images->argmax_agreement_ci95 = interval("argmax_agreement_ci95");
    }
  }
  return m;
}

}  // namespace nibble
