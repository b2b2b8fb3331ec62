#include "recipes/models/load_model.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>
#include <sstream>

#include "export/assemble.h"
#include "export/onnx/description.h"
#include "export/onnx/import.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/sha256.h"
#include "recipes/models/architecture.h"
#include "recipes/models/config_reader.h"
#include "recipes/models/encoder_config.h"
#include "recipes/models/fused_experts.h"
#include "recipes/models/gguf.h"
#include "recipes/models/initialise.h"
#include "recipes/models/llama2c.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "generation_config.json",
                                           "tokenizer.model",
                                           "tokenizer.bin",
                                           "vocab.json",
                                           "merges.txt",
                                           "vocab.txt",
                                           "chat_template.jinja"};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}
bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// --- what a single file is, by its content

bool is_pickle(const Bytes& file) {
  const std::string_view text = file.text();
  const bool zip = text.substr(0, 2) == "PK";  // torch.save since 1.6
  const bool protocol =
      text.size() >= 2 && text[0] == '\x80' && text[1] >= 1 && text[1] <= 5;
  const bool tar =
      text.size() >= 262 && text.substr(257, 5) == "ustar";  // torch.save of old
  return zip || protocol || tar;
}

bool is_safetensors(const Bytes& file) {
  if (file.size() < 9) return false;
  const std::string_view text = file.text().substr(8);
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '{' &&
         static_cast<unsigned char>(file.text()[7]) == 0;
}

Status refuse_pickle(const fs::path& path) {
  const std::string name = path.filename().string();
  return error(
      StatusCode::unsupported, "[models] ", path.string(),
      ": nibble reads safetensors and llama2.c files; found a pickle, which can run "
      "any code when it is opened; convert it where it comes from: python -c \"import "
      "torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
      "torch.load('",
      name, "', map_location='cpu', weights_only=True).items()}, 'model.safetensors')\"");
}

// --- parts of an Artifact

Status add_source(Artifact& artifact, const fs::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
  artifact.provenance.sources[path.filename().string()] = sha256_of(bytes);
  return ok_status();
}

Status collect_tokenizer_files(Artifact& artifact, const fs::path& directory) {
  const bool whole = is_there(directory / "tokenizer.json");
  for (const char* name : kTokenizerFiles) {
    if (!is_there(directory / name)) continue;
    // tokenizer.json says all that these say.
    const std::string_view file = name;
    if (whole && (file == "vocab.json" || file == "merges.txt" || file == "vocab.txt"))
      continue;
    NIBBLE_ASSIGN_OR_RETURN(artifact.tokenizer[name], map_file(directory / name));
    NIBBLE_RETURN_IF_ERROR(add_source(artifact, directory / name));
  }
  return ok_status();
}

// --tokenizer: the name under which the tokenizer knows a file follows from its content.
Status add_tokenizer(Artifact& artifact, const fs::path& path) {
  if (path.empty()) return ok_status();
  artifact.tokenizer.clear();
  if (is_folder(path)) {
    NIBBLE_RETURN_IF_ERROR(collect_tokenizer_files(artifact, path));
    if (!artifact.tokenizer.empty()) return ok_status();
    return error(
        StatusCode::not_found, "[models] ", path.string(),
        ": --tokenizer needs a tokenizer file or a directory with one; found none of "
        "tokenizer.json, tokenizer.model, tokenizer.bin, vocab.json, vocab.txt");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Bytes file, map_file(path));
  if (is_gguf(file)) {
    NIBBLE_ASSIGN_OR_RETURN(artifact.tokenizer, read_gguf_tokenizer(file, path));
    return add_source(artifact, path);
  }
  const std::string_view text = file.text();
  const size_t first = text.find_first_not_of(" \t\r\n");
  const bool json = first != std::string_view::npos && text[first] == '{';
  // A SentencePiece model begins with field 1 (its pieces), wire type 2: 0x0a.
  const bool sentencepiece = path.extension() == ".model" || text.substr(0, 1) == "\x0a";
  artifact.tokenizer[json            ? "tokenizer.json"
                     : sentencepiece ? "tokenizer.model"
                                     : "tokenizer.bin"] = file;
  return add_source(artifact, path);
}

Status set_image_statistics(Artifact& artifact) {
  if (artifact.program.is_language_model() || artifact.program.inputs.empty() ||
      artifact.program.inputs[0].shape.size() != 4) {
    return ok_status();
  }
  ConfigReader config(artifact.config_json);
  const std::vector<double> mean = config.numbers("image_mean", {});
  const std::vector<double> deviation = config.numbers("image_std", {});
  NIBBLE_RETURN_IF_ERROR(config.status());
  const std::string channels = std::to_string(mean.size());
  if (mean.size() != deviation.size() ||
      artifact.program.inputs[0].shape[1] != channels) {
    return error(
        StatusCode::invalid_argument,
        "[models] config.json: image_mean and image_std need one number a channel, ",
        artifact.program.inputs[0].shape[1], "; found ", mean.size(), " and ",
        deviation.size());
  }
  artifact.image_mean.assign(mean.begin(), mean.end());
  artifact.image_std.assign(deviation.begin(), deviation.end());
  return ok_status();
}

std::string architecture_in(const std::string& config_json) {
  ConfigReader config(config_json);
  const std::vector<std::string> names = config.texts("architectures");
  return !names.empty() ? names[0] : config.text("model_type", "");
}

Result<const ModelArchitecture*> choose_architecture(const Artifact& artifact,
                                                     const LoadOptions& options,
                                                     const fs::path& path) {
  if (!options.architecture.empty()) return find_architecture(options.architecture);
  if (!artifact.config_json.empty()) {
    // A config.json that cannot be read must say so, not that its architecture is
    // unknown.
    NIBBLE_RETURN_IF_ERROR(ConfigReader(artifact.config_json).status());
    const std::string name = architecture_in(artifact.config_json);
    Result<const ModelArchitecture*> found = find_architecture(name);
    if (found.ok() || !name.empty()) return found;
  }
  for (const ModelArchitecture& row : all_architectures()) {
    if (row.recognises(artifact.tensors)) return &row;
  }
  std::string known;
  for (const ModelArchitecture& row : all_architectures()) {
    known += cat(known.empty() ? "" : ", ", row.name);
  }
  return error(StatusCode::unsupported, "[models] ", path.string(),
               ": the tensors must be those of a known architecture (", known,
               "); found none that fits",
               artifact.tensors.empty()
                   ? ""
                   : cat(", the first tensor is ", artifact.tensors.begin()->first),
               "; name it with --architecture");
}

Status drop_unused(Artifact& artifact, const ModelArchitecture& architecture) {
  std::set<std::string> named;
  for (const Node& node : artifact.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) named.insert(tensor);
  }
  for (auto at = artifact.tensors.begin(); at != artifact.tensors.end();) {
    if (named.count(at->first)) {
      ++at;
    } else if (architecture.ignores(at->first, artifact.program)) {
      artifact.ledger.entries.push_back(
          {.tensor = at->first,
           .scheme = "none",
           .method = "ignored",
           .reason = cat("no node of ", architecture.name, " reads it; ",
                         at->second.numel(), " values left out"),
           .kernel = "",
           .note = ""});
      at = artifact.tensors.erase(at);
    } else {
      return error(StatusCode::invalid_argument, "[models] ", at->first, ": ",
                   architecture.name,
                   " has no such parameter; found it in the checkpoint, ",
                   shape_text(at->second.shape),
                   "; do config.json and the weights belong together?");
    }
  }
  return ok_status();
}

// What a quantized checkpoint holds beside its float tensors.
struct Quantized {
  Decoded decoded;  // without floats
  std::string format;
};

// Everything after tensors and config_json (may be empty) are there.
Status complete(Artifact& artifact, const LoadOptions& options, const fs::path& path,
                Quantized* quantized = nullptr) {
  NIBBLE_RETURN_IF_ERROR(split_fused_experts(artifact.tensors));
  NIBBLE_ASSIGN_OR_RETURN(const ModelArchitecture* architecture,
                          choose_architecture(artifact, options, path));
  if (artifact.config_json.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(artifact.config_json, architecture->config(artifact.tensors));
  }
  if (std::string_view(architecture->model_type) == "bert") {
    NIBBLE_ASSIGN_OR_RETURN(artifact.config_json,
                            with_tensor_prefix(artifact.config_json, artifact.tensors));
  }
  NIBBLE_ASSIGN_OR_RETURN(artifact.program, architecture->program(artifact.config_json));
  if (artifact.tensors.empty() && options.initialise) {
    ConfigReader config(artifact.config_json);
    const double range = config.positive("initializer_range", 0.02);
    NIBBLE_RETURN_IF_ERROR(config.status());
    NIBBLE_ASSIGN_OR_RETURN(artifact.tensors,
                            initialise(artifact.program, range, options.seed));
  }
  NIBBLE_RETURN_IF_ERROR(drop_unused(artifact, *architecture));
  if (quantized != nullptr) {
    NIBBLE_RETURN_IF_ERROR(
        assemble(std::move(quantized->decoded), quantized->format, artifact));
  }
  std::sort(artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
            [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
  NIBBLE_RETURN_IF_ERROR(set_image_statistics(artifact));
  NIBBLE_RETURN_IF_ERROR(add_tokenizer(artifact, options.tokenizer));
  artifact.provenance.tool_version = kToolVersion;
  return check_artifact(artifact);
}

// A weights file that cannot be read here, in a directory that has no safetensors.
Status refuse_other_weights(const fs::path& directory) {
  std::set<fs::path> files;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(directory, failed)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth" ||
        extension == ".th") {
      files.insert(entry.path());
    }
  }
  for (const fs::path& path : files) {
    const Result<Bytes> file = map_file(path);
    if (!file.ok()) continue;
    if (is_pickle(*file)) return refuse_pickle(path);
  }
  return ok_status();
}

// config.json's quant_method; "" of a float checkpoint.
std::string quant_method_in(const std::string& config_json) {
  ConfigReader config(config_json);
  if (!config.has("quantization_config")) return "";
  const std::string method = config.text("quantization_config/quant_method", "");
  return !method.empty() ? method : config.text("quantization_config/method", "?");
}

std::string without_quantization(const std::string& config_json) {
  auto config = parse_ordered_json(config_json);  // ConfigReader has read it
  config.erase("quantization_config");
  return config.dump(2) + "\n";
}

// A directory whose weights are codes of another tool's format.
Result<Artifact> load_quantized(const fs::path& path, const LoadOptions& options,
                                const std::string& method) {
  NIBBLE_ASSIGN_OR_RETURN(const Exporter* format, find_quant_method(method));
  Artifact artifact;
  Quantized quantized;
  quantized.format = format->name;
  NIBBLE_ASSIGN_OR_RETURN(quantized.decoded, format->read(path));
  artifact.tensors = std::move(quantized.decoded.floats);
  quantized.decoded.floats.clear();
  artifact.config_json = without_quantization(quantized.decoded.config_json);
  NIBBLE_RETURN_IF_ERROR(add_source(artifact, path / "config.json"));
  std::vector<std::string> sources;
  NIBBLE_RETURN_IF_ERROR(read_sharded_safetensors(path, &sources).status());
  for (const std::string& name : sources) {
    NIBBLE_RETURN_IF_ERROR(add_source(artifact, path / name));
  }
  NIBBLE_RETURN_IF_ERROR(collect_tokenizer_files(artifact, path));
  NIBBLE_RETURN_IF_ERROR(complete(artifact, options, path, &quantized));
  return artifact;
}

Result<Artifact> load_directory(const fs::path& path, const LoadOptions& options) {
  Artifact artifact;
  const bool has_weights = is_there(path / "model.safetensors") ||
                           is_there(path / "model.safetensors.index.json");
  if (!is_there(path / "config.json")) {
    NIBBLE_RETURN_IF_ERROR(refuse_other_weights(path));
    return error(
        StatusCode::not_found, "[models] ", path.string(),
        ": a model directory needs config.json (Hugging Face) or manifest.json (a "
        "nibble artifact); found neither");
  }
  NIBBLE_ASSIGN_OR_RETURN(artifact.config_json, read_text_file(path / "config.json"));
  NIBBLE_RETURN_IF_ERROR(ConfigReader(artifact.config_json).status());
  if (options.architecture.empty()) {  // before the weights, which may be large
    NIBBLE_RETURN_IF_ERROR(
        find_architecture(architecture_in(artifact.config_json)).status());
  }
  if (const std::string method = quant_method_in(artifact.config_json); !method.empty()) {
    return load_quantized(path, options, method);
  }
  NIBBLE_RETURN_IF_ERROR(add_source(artifact, path / "config.json"));
  if (is_sentence_transformer(path)) {
    NIBBLE_ASSIGN_OR_RETURN(artifact.config_json,
                            with_sentence_transformers(artifact.config_json, path));
  }
  if (has_weights) {
    std::vector<std::string> sources;
    NIBBLE_ASSIGN_OR_RETURN(artifact.tensors, read_sharded_safetensors(path, &sources));
    for (const std::string& name : sources) {
      NIBBLE_RETURN_IF_ERROR(add_source(artifact, path / name));
    }
  } else if (!options.initialise) {
    NIBBLE_RETURN_IF_ERROR(refuse_other_weights(path));
    return error(
        StatusCode::not_found, "[models] ", path.string(),
        ": needs model.safetensors or model.safetensors.index.json beside config.json; "
        "found neither; `nibble train` with the recipe float initialises weights");
  }
  NIBBLE_RETURN_IF_ERROR(collect_tokenizer_files(artifact, path));
  NIBBLE_RETURN_IF_ERROR(complete(artifact, options, path));
  return artifact;
}

// preprocessor_config.json beside the model, as Hugging Face's image processors write it,
// else what the graph's own metadata say: numbers between spaces.
Status read_preprocessing(const fs::path& path, const std::map<std::string, std::string>& metadata,
                          nlohmann::ordered_json& config) {
  const fs::path file = path.parent_path() / "preprocessor_config.json";
  if (is_there(file)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(file));
    const auto json = parse_ordered_json(text);
    if (!json.is_object()) {
      return error(StatusCode::data_loss, "[models] ", file.string(),
                   ": a JSON object was required; found another text");
    }
    // Theirs: (pixel * factor - mean) / std; ours: (pixel / 255 - mean) / std.
    const bool scaled = !json.contains("do_rescale") || json["do_rescale"] == true;
    const auto factor = json.find("rescale_factor");
    const double range = !scaled                                        ? 255
                         : factor != json.end() && factor->is_number() ? 255 * factor->get<double>()
                                                                        : 1;
    for (const char* name : {"image_mean", "image_std"}) {
      if (!json.contains(name)) continue;
      config[name] = nlohmann::ordered_json::array();
      for (const auto& value : json[name]) {
        if (!value.is_number() || !(range > 0)) {
          return error(StatusCode::data_loss, "[models] ", file.string(), ": ", name,
                       " must be numbers and rescale_factor above 0; found ", json.dump());
        }
        config[name].push_back(value.get<double>() / range);
      }
    }
    const auto flip = json.find("do_flip_channel_order");
    if (flip != json.end() && flip->is_boolean() && flip->get<bool>()) {
      config["image_channels"] = "bgr";
    }
    return ok_status();
  }
  for (const char* name : {"image_mean", "image_std"}) {
    const auto found = metadata.find(name);
    if (found == metadata.end()) continue;
    std::istringstream numbers(found->second);
    std::vector<float> values;
    for (float value = 0; numbers >> value;) values.push_back(value);
    config[name] = values;
  }
  return ok_status();
}

Result<std::map<std::string, int64_t>> parse_sizes(const std::vector<std::string>& texts) {
  std::map<std::string, int64_t> sizes;
  for (const std::string& text : texts) {
    const size_t equals = text.rfind('=');
    const char* first = text.data() + std::min(equals + 1, text.size());
    const char* last = text.data() + text.size();
    int64_t size = 0;
    const auto [end, failed] = std::from_chars(first, last, size);
    if (equals == std::string::npos || equals == 0 || failed != std::errc() || end != last ||
        size < 1) {
      return error(StatusCode::invalid_argument, "[models] --size ", text,
                   ": NAME=N with a whole N of at least 1 was required; write it so");
    }
    sizes[text.substr(0, equals)] = size;
  }
  return sizes;
}

Result<Artifact> load_onnx(const fs::path& path, const LoadOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const auto sizes, parse_sizes(options.sizes));
  NIBBLE_ASSIGN_OR_RETURN(DescribedOnnx described, read_described(path));
  if (described.artifact) {
    NIBBLE_RETURN_IF_ERROR(add_tokenizer(*described.artifact, options.tokenizer));
    return std::move(*described.artifact);
  }
  Result<ImportedGraph> read = import_onnx(path, sizes);
  if (!read.ok() && described.changed) {
    return error(read.status().code(), read.status().message(),
                 "; nibble wrote this file, but its graph was changed since: give the file "
                 "as it was written");
  }
  NIBBLE_ASSIGN_OR_RETURN(ImportedGraph graph, std::move(read));
  Artifact artifact;
  artifact.program = std::move(graph.program);
  artifact.tensors = std::move(graph.tensors);
  artifact.ledger = std::move(graph.ledger);
  nlohmann::ordered_json config = {{"architectures", {"ONNX"}}};
  NIBBLE_RETURN_IF_ERROR(read_preprocessing(path, graph.metadata, config));
  artifact.config_json = config.dump(2) + "\n";
  if (config.contains("image_mean") || config.contains("image_std")) {
    NIBBLE_RETURN_IF_ERROR(set_image_statistics(artifact));
  }
  NIBBLE_RETURN_IF_ERROR(add_source(artifact, path));
  if (artifact.program.is_language_model()) {
    NIBBLE_RETURN_IF_ERROR(collect_tokenizer_files(artifact, path.parent_path()));
    NIBBLE_RETURN_IF_ERROR(add_tokenizer(artifact, options.tokenizer));
  }
  artifact.provenance.tool_version = kToolVersion;
  NIBBLE_RETURN_IF_ERROR(check_artifact(artifact));
  return artifact;
}

Result<Artifact> load_file(const fs::path& path, const LoadOptions& options) {
  if (path.extension() == ".onnx") return load_onnx(path, options);
  NIBBLE_ASSIGN_OR_RETURN(const Bytes file, map_file(path));
  Artifact artifact;
  if (is_gguf(file)) {
    NIBBLE_ASSIGN_OR_RETURN(artifact, read_gguf_artifact(path, options.tokenizer.empty()));
  } else if (is_llama2c(file)) {
    NIBBLE_ASSIGN_OR_RETURN(Llama2c model, read_llama2c(file, path.string()));
    artifact.tensors = std::move(model.tensors);
    artifact.config_json = std::move(model.config_json);
  } else if (is_pickle(file)) {
    return refuse_pickle(path);
  } else if (is_safetensors(file) || path.extension() == ".safetensors") {
    NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile content, read_safetensors(path));
    artifact.tensors = std::move(content.tensors);
  } else {
    return error(
        StatusCode::unsupported, "[models] ", path.string(),
        ": a model is a Hugging Face directory, a nibble artifact, a GGUF, a .onnx, a llama2.c "
        ".bin or a safetensors file; found none of these");
  }
  NIBBLE_RETURN_IF_ERROR(add_source(artifact, path));
  NIBBLE_RETURN_IF_ERROR(complete(artifact, options, path));
  return artifact;
}

}  // namespace

Result<Artifact> load_model(const fs::path& path, const LoadOptions& options) {
  if (!is_there(path)) {
    return error(StatusCode::not_found, "[models] ", path.string(),
                 ": no such file or directory");
  }
  if (!is_folder(path)) return load_file(path, options);
  if (!is_there(path / "config.json") && is_there(path / "model.gguf"))
    return load_file(path / "model.gguf", options);
  if (is_there(path / "model.onnx") && !is_artifact_directory(path) &&
      !is_there(path / "model.safetensors")) {
    return load_file(path / "model.onnx", options);
  }
  if (!is_artifact_directory(path)) return load_directory(path, options);
  NIBBLE_ASSIGN_OR_RETURN(Artifact artifact, read_artifact(path));
  NIBBLE_RETURN_IF_ERROR(add_tokenizer(artifact, options.tokenizer));
  return artifact;
}

}  // namespace nibble
