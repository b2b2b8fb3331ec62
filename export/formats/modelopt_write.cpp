// ModelOpt checkpoints, as vLLM, SGLang and TensorRT-LLM load them (quant_method
// modelopt).
//
//   FP8          weight F8_E4M3 [N, K]; weight_scale F32 [], input_scale F32 []:
//                w = fp8 * weight_scale, x likewise
//   W4A16_NVFP4  weight U8 [N, K / 2], the first of two codes in the low 4 bits;
//                weight_scale F8_E4M3 [N, K / 16]; weight_scale_2 F32 []:
//                w = e2m1 * weight_scale * weight_scale_2
//
// All layers are of one kind. hf_quant_config.json and config.json's quantization_config
// say the same.

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/quantized_directory.h"
#include "kernels/base/json.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "modelopt";
constexpr const char* kVersion = "0.47.0";  // of the package whose files these are
constexpr const char* kFp8 = "FP8";
constexpr const char* kNvfp4 = "W4A16_NVFP4";
constexpr int64_t kGroup = 16;  // of NVFP4

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

Result<const char*> algorithm_of(const std::string& tensor, const LayerScheme& layer,
                                 const PackedTensor& packed) {
  const std::string scheme = to_string(packed.scheme);
  if (!layer.extras.permutation.empty())
    return unsupported(tensor, "columns must be in their own order; found a permutation");
  if (scheme == "e4m3/t@f32") {
    const bool fixed = layer.input && !layer.input->dynamic &&
                       to_string(layer.input->scheme) == scheme &&
                       layer.input->zero_point == 0;
    if (fixed) return kFp8;
    return unsupported("the input of " + tensor,
                       "the format's FP8 has static e4m3/t@f32 inputs; found ",
                       layer.input ? cat(layer.input->dynamic ? "dynamic " : "static ",
                                         to_string(layer.input->scheme))
                                   : std::string("floats"),
                       "; calibrate static FP8 inputs, or export to compressed-tensors");
  }
  if (scheme != "e2m1/g16@e4m3/t@f32") {
    return unsupported(tensor, "uses ", scheme,
                       "; of ModelOpt's formats e4m3/t@f32 (FP8) and e2m1/g16@e4m3/t@f32 "
                       "(NVFP4) are written; quantize with one of these, or export to "
                       "compressed-tensors");
  }
  if (packed.cols % kGroup != 0) {
    return unsupported(tensor, "its ", packed.cols, " columns must be whole groups of ",
                       kGroup, "; leave this layer float, or quantize it otherwise");
  }
  if (!layer.input) return kNvfp4;
  return unsupported("the input of " + tensor,
                     "NVFP4 is written with float activations; found ",
                     to_string(layer.input->scheme), "; leave the input float");
}

// The one kind of all layers.
Result<const char*> common_algorithm(const Artifact& artifact) {
  const char* common = nullptr;
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_ASSIGN_OR_RETURN(const char* own,
                            algorithm_of(name, artifact.layers.at(name), packed));
    if (common != nullptr && common != own) {
      return unsupported(name, "all layers must be of one kind, ",
                         artifact.packed.begin()->first, " is ", common, "; found ", own,
                         "; export to compressed-tensors");
    }
    common = own;
  }
  return common;
}

Tensor scalar(float value) { return float_tensor(Element::f32, {}, {value}); }

std::map<std::string, Tensor> tensors_of(const std::string& weight, const CodedMatrix& q,
                                         const LayerScheme& layer) {
  const std::string module = module_of(weight);
  if (q.scheme.code == Element::e4m3) {
    return {{weight, code_tensor(DType::f8_e4m3, {q.rows, q.cols}, q)},
            {module + ".weight_scale", scalar(q.scales[0].values[0])},
            {module + ".input_scale", scalar(layer.input->scale)}};
  }
  std::vector<uint8_t> bytes(q.codes.size() / 2), scales;
  const uint8_t* codes = q.codes.data();
  uint8_t* pairs = bytes.data();
  for (size_t i = 0; i < bytes.size(); ++i)
    pairs[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  for (const float value : q.scales[0].values)
    scales.push_back(static_cast<uint8_t>(bits_of_value(Element::e4m3, value)));
  return {{weight, byte_tensor(DType::u8, {q.rows, q.cols / 2}, std::move(bytes))},
          {module + ".weight_scale",
           byte_tensor(DType::f8_e4m3, {q.scales[0].rows, q.scales[0].cols},
                       std::move(scales))},
          {module + ".weight_scale_2", scalar(q.scales[1].values[0])}};
}

}  // namespace

Status can_express_modelopt(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  return common_algorithm(prepared).status();
}

Status write_modelopt(const Artifact& artifact, const std::filesystem::path& directory,
                      const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_ASSIGN_OR_RETURN(const char* algorithm, common_algorithm(ordered));
  const bool nvfp4 = algorithm == kNvfp4;
  const Json producer = {{"name", kFormat}, {"version", kVersion}};
  const Json excluded(float_modules(ordered));
  Json weights = {{"dynamic", false}, {"num_bits", nvfp4 ? 4 : 8}, {"type", "float"}};
  Json group = Json::object();
  if (!nvfp4) group["input_activations"] = weights;
  if (nvfp4) weights["group_size"] = kGroup;
  group["weights"] = weights;
  group["targets"] = {"Linear"};
  Json config;
  config["config_groups"] = {{"group_0", group}};
  config["ignore"] = excluded;
  config["quant_algo"] = algorithm;
  config["producer"] = producer;
  config["quant_method"] = kFormat;
  Json own;
  own["producer"] = producer;
  own["quantization"]["quant_algo"] = algorithm;
  own["quantization"]["kv_cache_quant_algo"] = nullptr;
  QuantizedFormat format;
  const StaticCaches caches = static_caches(ordered.program);
  if (!caches.empty() && static_cache_code(caches) == Element::e4m3) {
    own["quantization"]["kv_cache_quant_algo"] = kFp8;
    config["kv_cache_scheme"] = {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}};
    format.caches = caches;
    for (const auto& [module, scheme] : caches) {
      format.cache_tensors[module + ".k_proj.k_scale"] = scalar(scheme.key_scale);
      format.cache_tensors[module + ".v_proj.v_scale"] = scalar(scheme.value_scale);
    }
  }
  if (nvfp4) own["quantization"]["group_size"] = kGroup;
  own["quantization"]["exclude_modules"] = excluded;
  format.name = kFormat;
  format.quantization_config = config.dump();
  format.extra_files["hf_quant_config.json"] = own.dump(4) + "\n";
  format.tensors_of = [&](const std::string& weight,
                          const CodedMatrix& q) -> Result<std::map<std::string, Tensor>> {
    return tensors_of(weight, q, ordered.layers.at(weight));
  };
  format.read = read_modelopt;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
