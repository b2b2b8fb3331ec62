#include "export/validate/attestation.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/json.h"
#include "kernels/base/sha256.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "nibble-proof";
constexpr std::string_view kSeal = "\"proof_sha256\": \"";
constexpr size_t kDigits = 64;

// --- to JSON

bool is_bits(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](double value) { return value == 0 || value == 1; });
}

// Ten thousand images are one line of digits.
Json json_of(const std::vector<double>& values) {
  if (values.empty() || !is_bits(values)) return values;
  std::string bits;
  for (const double value : values) bits += value == 0 ? '0' : '1';
  return bits;
}

Json json_of(const AttestedData& data) {
  return {{"kind", data.kind},
          {"file", data.file},
          {"description", data.description},
          {"sha256", data.sha256},
          {"first", data.first},
          {"count", data.count},
          {"length", data.length},
          {"stride", data.stride},
          {"min_chars", data.min_chars},
          {"per_line", data.per_line},
          {"append_eos", data.append_eos}};
}

Json json_of(const AttestedMeasurement& measured) {
  Json figures = Json::object();
  for (const auto& [name, figure] : measured.figures) {
    figures[name] = {{"value", figure.value}};
    if (figure.ci95) figures[name]["ci95"] = *figure.ci95;
  }
  Json values = Json::object();
  for (const auto& [name, list] : measured.values) values[name] = json_of(list);
  return {{"data", json_of(measured.data)},
          {"compute", measured.compute},
          {"kv", measured.kv},
          {"reference", measured.reference},
          {"figures", std::move(figures)},
          {"values", std::move(values)}};
}

Json json_of(const AttestedOutputs& outputs) {
  Json indices = Json::array(), values = Json::array();
  for (const auto& [index, value] : outputs.values) {
    indices.push_back(index);
    values.push_back(value);
  }
  return {{"ids", outputs.ids},          {"indices", std::move(indices)},
          {"values", std::move(values)}, {"largest", outputs.largest},
          {"bound", outputs.bound},      {"kernels", outputs.kernels}};
}

// JSON has no NaN or infinity; printed they would read back as null.
Status check_finite(const Attestation& attestation) {
  const auto check = [](const std::string& where, double value) {
    return std::isfinite(value)
               ? ok_status()
               : error(StatusCode::out_of_range, "[proof] ", where,
                       ": must be finite; found ", value,
                       "; the model's scales are wrong, run nibble validate");
  };
  for (const auto& [index, value] : attestation.outputs.values)
    NIBBLE_RETURN_IF_ERROR(check(cat("output ", index), value));
  NIBBLE_RETURN_IF_ERROR(check("the largest output", attestation.outputs.largest));
  for (const AttestedMeasurement& measured : attestation.measured) {
    for (const auto& [name, figure] : measured.figures) {
      NIBBLE_RETURN_IF_ERROR(check(name, figure.value));
      for (const double end : figure.ci95.value_or(std::array<double, 2>{0, 0}))
        NIBBLE_RETURN_IF_ERROR(check(name + "'s interval", end));
    }
    for (const auto& [name, list] : measured.values) {
      for (const double value : list) NIBBLE_RETURN_IF_ERROR(check(name, value));
    }
  }
  return ok_status();
}

// --- from JSON; what is missing or of another type throws

std::vector<double> values_from(const Json& json) {
  if (!json.is_string()) return json.get<std::vector<double>>();
  std::vector<double> values;
  for (const char bit : json.get<std::string>()) values.push_back(bit == '1' ? 1 : 0);
  return values;
}

AttestedData data_from(const Json& json) {
  AttestedData data;
  data.kind = json.at("kind").get<std::string>();
  data.file = json.at("file").get<std::string>();
  data.description = json.at("description").get<std::string>();
  data.sha256 = json.at("sha256").get<std::string>();
  data.first = json.at("first").get<int64_t>();
  data.count = json.at("count").get<int64_t>();
  data.length = json.at("length").get<int64_t>();
  data.stride = json.at("stride").get<int64_t>();
  data.min_chars = json.at("min_chars").get<int64_t>();
  data.per_line = json.at("per_line").get<bool>();
  data.append_eos = json.at("append_eos").get<bool>();
  return data;
}

AttestedMeasurement measured_from(const Json& json) {
  AttestedMeasurement measured;
  measured.data = data_from(json.at("data"));
  measured.compute = json.at("compute").get<std::string>();
  measured.kv = json.at("kv").get<std::string>();
  measured.reference = json.at("reference").get<std::map<std::string, std::string>>();
  for (const auto& [name, figure] : json.at("figures").items()) {
    AttestedFigure& mine = measured.figures[name];
    mine.value = figure.at("value").get<double>();
    if (figure.contains("ci95")) mine.ci95 = figure["ci95"].get<std::array<double, 2>>();
  }
  for (const auto& [name, list] : json.at("values").items())
    measured.values[name] = values_from(list);
  return measured;
}

AttestedOutputs outputs_from(const Json& json) {
  AttestedOutputs outputs;
  outputs.ids = json.at("ids").get<std::vector<int32_t>>();
  const auto indices = json.at("indices").get<std::vector<int64_t>>();
  const auto values = json.at("values").get<std::vector<float>>();
  for (size_t i = 0; i < std::min(indices.size(), values.size()); ++i)
    outputs.values[indices[i]] = values[i];
  outputs.largest = json.at("largest").get<double>();
  outputs.bound = json.at("bound").get<double>();
  outputs.kernels = json.at("kernels").get<std::map<std::string, int64_t>>();
  return outputs;
}

Attestation attestation_from(const Json& json) {
  Attestation result;
  result.tool_version = json.at("tool_version").get<std::string>();
  result.format = json.at("artifact_format").get<std::string>();
  result.sources = json.at("sources").get<std::map<std::string, std::string>>();
  result.recipe = json.at("recipe").get<std::string>();
  result.calibration = json.at("calibration").get<std::string>();
  for (const auto& [name, file] : json.at("files").items()) {
    result.files[name] = {file.at("bytes").get<int64_t>(),
                          file.at("sha256").get<std::string>()};
  }
  for (const auto& [name, weight] : json.at("weights").items()) {
    result.weights[name] = {
        weight.at("scheme").get<std::string>(), weight.at("codes").get<std::string>(),
        weight.at("levels").get<std::map<std::string, std::string>>()};
  }
  for (const auto& [name, tensor] : json.at("floats").items()) {
    result.floats[name] = {tensor.at("dtype").get<std::string>(),
                           tensor.at("sha256").get<std::string>()};
  }
  result.outputs = outputs_from(json.at("outputs"));
  for (const Json& measured : json.at("measured"))
    result.measured.push_back(measured_from(measured));
  return result;
}

}  // namespace

Result<std::string> print_attestation(const Attestation& attestation) {
  NIBBLE_RETURN_IF_ERROR(check_finite(attestation));
  Json json;
  json["format"] = kFormat;
  json["version"] = kAttestationVersion;
  json["proof_sha256"] = std::string(kDigits, '0');
  json["tool_version"] = attestation.tool_version;
  json["artifact_format"] = attestation.format;
  json["sources"] = attestation.sources;
  json["recipe"] = attestation.recipe;
  json["calibration"] = attestation.calibration;
  json["measured"] = Json::array();
  for (const AttestedMeasurement& measured : attestation.measured)
    json["measured"].push_back(json_of(measured));
  json["outputs"] = json_of(attestation.outputs);
  json["files"] = Json::object();
  for (const auto& [name, file] : attestation.files)
    json["files"][name] = {{"bytes", file.bytes}, {"sha256", file.sha256}};
  json["weights"] = Json::object();
  for (const auto& [name, weight] : attestation.weights) {
    json["weights"][name] = {
        {"scheme", weight.scheme}, {"codes", weight.codes}, {"levels", weight.levels}};
  }
  json["floats"] = Json::object();
  for (const auto& [name, tensor] : attestation.floats)
    json["floats"][name] = {{"dtype", tensor.dtype}, {"sha256", tensor.sha256}};
  std::string text;
  try {
    text = json.dump(1) + "\n";
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::invalid_argument,
        "[proof] every name and text must be UTF-8; found other bytes: ", failure.what());
  }
  text.replace(text.find(kSeal) + kSeal.size(), kDigits, sha256_hex(text));
  return text;
}

Result<Attestation> parse_attestation(std::string_view text, const std::string& path) {
  Attestation result;
  try {
    const Json json = parse_ordered_json_or_throw(text);
    const std::string format = json.at("format").get<std::string>();
    const int64_t version = json.at("version").get<int64_t>();
    if (format != kFormat || version != kAttestationVersion) {
      return error(StatusCode::unsupported, "[proof] ", path,
                   ": this build reads format ", kFormat, " version ",
                   kAttestationVersion, "; found ", format, " version ", version,
                   "; use the tool that wrote it");
    }
    result = attestation_from(json);
  } catch (const Json::exception& failure) {
    return error(StatusCode::data_loss, "[proof] ", path,
                 ": must have the fields of a proof.json; ", failure.what());
  }
  const size_t field = text.find(kSeal);
  std::string zeroed(text), found;
  if (field != std::string_view::npos && text.size() >= field + kSeal.size() + kDigits) {
    found = zeroed.substr(field + kSeal.size(), kDigits);
    zeroed.replace(field + kSeal.size(), kDigits, std::string(kDigits, '0'));
  }
  result.sealed = found == sha256_hex(zeroed);
  return result;
}

}  // namespace nibble
