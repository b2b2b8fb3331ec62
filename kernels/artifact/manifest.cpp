#include "kernels/artifact/manifest.h"

#include <cmath>

#include "kernels/base/json.h"
#include "kernels/base/sha256.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "nibble-artifact";
constexpr std::string_view kChecksumField = "\"manifest_sha256\": \"";
constexpr size_t kDigits = 64;

// --- to JSON

Json json_of(const ActivationScheme& activation) {
  Json json = {{"scheme", to_string(activation.scheme)}, {"dynamic", activation.dynamic}};
  if (!activation.dynamic) {
    json["scale"] = activation.scale;  // a float as a double: exact, printed to read back
    json["zero_point"] = activation.zero_point;
  }
  return json;
}

Json json_of(const ManifestWeight& weight) {
  Json json = {{"scheme", to_string(weight.layer.weight)},
               {"shape", weight.shape},
               {"rows", weight.rows},
               {"cols", weight.cols},
               {"codes_sha256", weight.codes_sha256}};
  if (weight.scale_shift != 0) json["scale_shift"] = weight.scale_shift;
  if (weight.offset_shift != 0) json["offset_shift"] = weight.offset_shift;
  if (weight.layer.input) json["input"] = json_of(*weight.layer.input);
  const LayerExtras& extras = weight.layer.extras;
  if (!extras.permutation.empty()) json["permutation"] = extras.permutation;
  if (!extras.low_rank_a.empty()) json["low_rank_a"] = extras.low_rank_a;
  if (!extras.low_rank_b.empty()) json["low_rank_b"] = extras.low_rank_b;
  return json;
}

Json json_of(const LedgerEntry& entry) {
  Json json = {{"tensor", entry.tensor}, {"scheme", entry.scheme},
               {"method", entry.method}, {"reason", entry.reason},
               {"kernel", entry.kernel}, {"parameters", entry.parameters},
               {"bits", entry.bits},     {"tokens", entry.tokens},
               {"error", entry.error},   {"output_error", entry.output_error}};
  if (entry.rtn_error >= 0) json["rtn_error"] = entry.rtn_error;
  if (entry.rtn_output_error >= 0) json["rtn_output_error"] = entry.rtn_output_error;
  json["note"] = entry.note;
  return json;
}

Json json_of(const Provenance& provenance) {
  return {{"sources", provenance.sources},
          {"recipe", provenance.recipe},
          {"calibration", provenance.calibration},
          {"tool_version", provenance.tool_version}};
}

Json lines_of(const std::string& text) {
  Json lines = Json::array();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// JSON has no NaN or infinity; printed they would read back as null.
Status check_figures(const Manifest& manifest) {
  const auto check = [](const std::string& where, const char* what, double value) {
    return std::isfinite(value) ? ok_status()
                                : error(StatusCode::out_of_range, "[manifest] ", where,
                                        ": ", what, " must be finite; found ", value);
  };
  for (const LedgerEntry& entry : manifest.ledger.entries) {
    NIBBLE_RETURN_IF_ERROR(check(entry.tensor, "the ledger's bits", entry.bits));
    NIBBLE_RETURN_IF_ERROR(check(entry.tensor, "the ledger's error", entry.error));
    NIBBLE_RETURN_IF_ERROR(
        check(entry.tensor, "the ledger's output_error", entry.output_error));
    NIBBLE_RETURN_IF_ERROR(
        check(entry.tensor, "the ledger's rtn_error", entry.rtn_error));
    NIBBLE_RETURN_IF_ERROR(
        check(entry.tensor, "the ledger's rtn_output_error", entry.rtn_output_error));
  }
  for (const auto& [name, weight] : manifest.weights) {
    NIBBLE_RETURN_IF_ERROR(check(name, "scale_shift", weight.scale_shift));
    NIBBLE_RETURN_IF_ERROR(check(name, "offset_shift", weight.offset_shift));
    if (weight.layer.input) {
      NIBBLE_RETURN_IF_ERROR(check(name, "the input's scale", weight.layer.input->scale));
    }
  }
  for (const auto& [name, activation] : manifest.activations) {
    NIBBLE_RETURN_IF_ERROR(check(name, "scale", activation.scale));
  }
  for (const float value : manifest.image_mean) {
    NIBBLE_RETURN_IF_ERROR(check("image", "mean", value));
  }
  for (const float value : manifest.image_std) {
    NIBBLE_RETURN_IF_ERROR(check("image", "std", value));
  }
  return ok_status();
}

// --- from JSON: nlohmann's accessors throw on a wrong type; parse_manifest catches

ActivationScheme activation_from(const Json& json, Status& status) {
  ActivationScheme activation;
  Result<QuantScheme> scheme = parse_scheme(json.at("scheme").get<std::string>());
  if (!scheme.ok()) {
    status = scheme.status();
    return activation;
  }
  activation.scheme = std::move(scheme).value();
  activation.dynamic = json.at("dynamic").get<bool>();
  if (!activation.dynamic) {
    activation.scale = json.at("scale").get<float>();
    activation.zero_point = json.at("zero_point").get<int>();
  }
  return activation;
}

ManifestWeight weight_from(const Json& json, Status& status) {
  ManifestWeight weight;
  Result<QuantScheme> scheme = parse_scheme(json.at("scheme").get<std::string>());
  if (!scheme.ok()) {
    status = scheme.status();
    return weight;
  }
  weight.layer.weight = std::move(scheme).value();
  weight.shape = json.at("shape").get<std::vector<int64_t>>();
  weight.rows = json.at("rows").get<int64_t>();
  weight.cols = json.at("cols").get<int64_t>();
  weight.codes_sha256 = json.at("codes_sha256").get<std::string>();
  weight.scale_shift = json.value("scale_shift", 0.0f);
  weight.offset_shift = json.value("offset_shift", 0.0f);
  if (json.contains("input")) {
    weight.layer.input = activation_from(json.at("input"), status);
  }
  weight.layer.extras.permutation = json.value("permutation", std::string());
  weight.layer.extras.low_rank_a = json.value("low_rank_a", std::string());
  weight.layer.extras.low_rank_b = json.value("low_rank_b", std::string());
  return weight;
}

LedgerEntry entry_from(const Json& json) {
  LedgerEntry entry;
  entry.tensor = json.at("tensor").get<std::string>();
  entry.scheme = json.at("scheme").get<std::string>();
  entry.method = json.at("method").get<std::string>();
  entry.reason = json.at("reason").get<std::string>();
  entry.kernel = json.at("kernel").get<std::string>();
  entry.parameters = json.at("parameters").get<int64_t>();
  entry.bits = json.at("bits").get<double>();
  entry.tokens = json.at("tokens").get<int64_t>();
  entry.error = json.at("error").get<double>();
  entry.output_error = json.at("output_error").get<double>();
  entry.rtn_error = json.value("rtn_error", -1.0);
  entry.rtn_output_error = json.value("rtn_output_error", -1.0);
  entry.note = json.at("note").get<std::string>();
  return entry;
}

Status manifest_from(const Json& json, Manifest& manifest) {
  Status status;
  manifest.tool_version = json.at("tool_version").get<std::string>();
  std::string program;
  for (const Json& line : json.at("program")) program += line.get<std::string>() + "\n";
  NIBBLE_ASSIGN_OR_RETURN(manifest.program, parse_program(program));
  for (const auto& [name, weight] : json.at("weights").items()) {
    manifest.weights[name] = weight_from(weight, status);
  }
  for (const auto& [name, activation] : json.at("activations").items()) {
    manifest.activations[name] = activation_from(activation, status);
  }
  manifest.image_mean = json.at("image_mean").get<std::vector<float>>();
  manifest.image_std = json.at("image_std").get<std::vector<float>>();
  for (const Json& entry : json.at("ledger")) {
    manifest.ledger.entries.push_back(entry_from(entry));
  }
  const Json& provenance = json.at("provenance");
  manifest.provenance.sources =
      provenance.at("sources").get<std::map<std::string, std::string>>();
  manifest.provenance.recipe = provenance.at("recipe").get<std::string>();
  manifest.provenance.calibration = provenance.at("calibration").get<std::string>();
  manifest.provenance.tool_version = provenance.at("tool_version").get<std::string>();
  manifest.tokenizer = json.at("tokenizer").get<std::vector<std::string>>();
  for (const auto& [name, tensor] : json.at("tensors").items()) {
    manifest.tensors[name] = {tensor.at("file").get<std::string>(),
                              tensor.at("dtype").get<std::string>(),
                              tensor.at("shape").get<std::vector<int64_t>>(),
                              tensor.at("sha256").get<std::string>()};
  }
  for (const auto& [name, file] : json.at("files").items()) {
    manifest.files[name] = {file.at("bytes").get<int64_t>(),
                            file.at("sha256").get<std::string>()};
  }
  return status;
}

std::string numbered(const std::string& name, size_t level) {
  return level == 0 ? name : cat(name, level);
}

}  // namespace

std::string codes_name(const std::string& weight) { return weight + ".codes"; }

std::string scale_name(const std::string& weight, size_t level) {
  return numbered(weight + ".scale", level);
}

std::string offset_name(const std::string& weight, OffsetKind kind, size_t level) {
  return numbered(weight + (kind == OffsetKind::minimum ? ".minimum" : ".zero_point"),
                  level);
}

Result<std::string> print_journal_line(const JournalEntry& entry) {
  Manifest figures;
  figures.weights[entry.ledger.tensor] = entry.weight;
  figures.ledger.entries = {entry.ledger};
  NIBBLE_RETURN_IF_ERROR(check_figures(figures));
  const Json json = {{"weight", json_of(entry.weight)},
                     {"ledger", json_of(entry.ledger)},
                     {"sha256", entry.sha256}};
  try {
    const std::string text = json.dump();
    return cat(sha256_hex(text), " ", text, "\n");
  } catch (const Json::exception& failure) {
    return error(StatusCode::invalid_argument, "[manifest] ", entry.ledger.tensor,
                 ": names and notes must be UTF-8; found other bytes: ", failure.what());
  }
}

Result<JournalEntry> parse_journal_line(std::string_view line) {
  if (line.size() < kDigits + 2 || line.back() != '\n' ||
      sha256_hex(line.substr(kDigits + 1, line.size() - kDigits - 2)) !=
          line.substr(0, kDigits)) {
    return error(StatusCode::data_loss,
                 "[manifest] a journal's line must have its own checksum; found another");
  }
  JournalEntry entry;
  Status status;
  try {
    const Json json = parse_ordered_json_or_throw(line.substr(kDigits + 1));
    entry.weight = weight_from(json.at("weight"), status);
    entry.ledger = entry_from(json.at("ledger"));
    entry.sha256 = json.at("sha256").get<std::map<std::string, std::string>>();
  } catch (const Json::exception& failure) {
    return error(StatusCode::data_loss, "[manifest] a journal's line: ", failure.what());
  }
  if (!status.ok()) return status;
  return entry;
}

Result<std::string> print_manifest(const Manifest& manifest) {
  NIBBLE_RETURN_IF_ERROR(check_figures(manifest));
  Json json;
  json["format"] = kFormat;
  json["version"] = kArtifactVersion;
  json["manifest_sha256"] = std::string(kDigits, '0');
  json["tool_version"] = manifest.tool_version;
  json["program"] = lines_of(print_program(manifest.program));
  json["weights"] = Json::object();
  for (const auto& [name, weight] : manifest.weights)
    json["weights"][name] = json_of(weight);
  json["activations"] = Json::object();
  for (const auto& [name, activation] : manifest.activations) {
    json["activations"][name] = json_of(activation);
  }
  json["image_mean"] = manifest.image_mean;
  json["image_std"] = manifest.image_std;
  json["ledger"] = Json::array();
  for (const LedgerEntry& entry : manifest.ledger.entries) {
    json["ledger"].push_back(json_of(entry));
  }
  json["provenance"] = json_of(manifest.provenance);
  json["tokenizer"] = manifest.tokenizer;
  json["tensors"] = Json::object();
  for (const auto& [name, tensor] : manifest.tensors) {
    json["tensors"][name] = {{"file", tensor.file},
                             {"dtype", tensor.dtype},
                             {"shape", tensor.shape},
                             {"sha256", tensor.sha256}};
  }
  json["files"] = Json::object();
  for (const auto& [name, file] : manifest.files) {
    json["files"][name] = {{"bytes", file.bytes}, {"sha256", file.sha256}};
  }
  std::string text;
  try {
    text = json.dump(1) + "\n";
  } catch (const Json::exception& failure) {
    return error(StatusCode::invalid_argument,
                 "[manifest] every name and text must be UTF-8; found other bytes: ",
                 failure.what());
  }
  text.replace(text.find(kChecksumField) + kChecksumField.size(), kDigits,
               sha256_hex(text));
  return text;
}

Result<Manifest> parse_manifest(std::string_view text, const std::string& path) {
  // Inside a JSON string the quotes of the field's name would be escaped.
  const size_t field = text.find(kChecksumField);
  std::string zeroed(text);
  std::string found = "none";
  if (field != std::string_view::npos &&
      text.size() >= field + kChecksumField.size() + kDigits) {
    const size_t digits = field + kChecksumField.size();
    found = zeroed.substr(digits, kDigits);
    zeroed.replace(digits, kDigits, std::string(kDigits, '0'));
  }
  const std::string required = sha256_hex(zeroed);
  if (found != required) {
    return error(StatusCode::data_loss, "[manifest] ", path,
                 ": manifest_sha256 must be that of the text, ", required, "; found ",
                 found, "; the file was changed or damaged");
  }
  Manifest manifest;
  try {
    const Json json = parse_ordered_json_or_throw(text);
    const std::string format = json.at("format").get<std::string>();
    const int64_t version = json.at("version").get<int64_t>();
    if (format != kFormat || version != kArtifactVersion) {
      return error(StatusCode::unsupported, "[manifest] ", path,
                   ": this build reads format ", kFormat, " version ", kArtifactVersion,
                   "; found ", format, " version ", version,
                   "; use the tool that wrote it");
    }
    const Status status = manifest_from(json, manifest);
    if (!status.ok()) {
      return error(StatusCode::data_loss, "[manifest] ", path, ": ", status.message());
    }
  } catch (const Json::exception& failure) {
    return error(StatusCode::data_loss, "[manifest] ", path,
                 ": must have the fields that FORMAT.md lists; ", failure.what());
  }
  return manifest;
}

}  // namespace nibble
