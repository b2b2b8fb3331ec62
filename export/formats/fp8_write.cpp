// Block FP8 checkpoints, as DeepSeek and Qwen publish them and vLLM, SGLang and
// transformers load them (quant_method fp8).
//
//   weight            F8_E4M3 [N, K]
//   weight_scale_inv  F32 [ceil(N / R), ceil(K / C)], in spite of its name the
//   multiplier:
//                     w[n, k] = fp8 * weight_scale_inv[n / R, k / C]
//
// All layers share one block size. The runtime quantizes activations as it goes, a scale
// a token and C inputs.

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/quantized_directory.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "fp8";

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

bool is_plain_float(Element element) {
  return element == Element::f32 || element == Element::f16 || element == Element::bf16;
}

// The one block of all layers.
Result<Block> common_block(const Artifact& artifact) {
  Block common;
  std::string first;
  for (const auto& [name, packed] : artifact.packed) {
    const QuantScheme& scheme = packed.scheme;
    const bool fits = scheme.code == Element::e4m3 && scheme.scales.size() == 1 &&
                      !scheme.scales[0].shifted && is_plain_float(scheme.scales[0].element) &&
                      scheme.scales[0].block.kind == Block::Kind::grid;
    if (!fits) {
      return unsupported(name, "uses ", to_string(scheme),
                         "; the format holds e4m3 with a float scale a grid of rows and "
                         "columns; quantize with e4m3/b128x128@f32, or export to "
                         "compressed-tensors");
    }
    const LayerScheme& layer = artifact.layers.at(name);
    if (layer.input || !layer.extras.permutation.empty()) {
      return unsupported(name, "inputs without a scheme and columns in their own order are "
                               "required; found ",
                         layer.input ? to_string(layer.input->scheme) : "a permutation",
                         "; export to compressed-tensors");
    }
    const Block& block = scheme.scales[0].block;
    if (first.empty()) {
      first = name;
      common = block;
    } else if (!(block == common)) {
      return unsupported(name, "all layers must share the block of ", first, ", ",
                         common.rows, " x ", common.cols, "; found ", block.rows, " x ",
                         block.cols);
    }
  }
  return common;
}

Result<std::map<std::string, Tensor>> tensors_of(const std::string& weight,
                                                 const CodedMatrix& q) {
  return std::map<std::string, Tensor>{
      {weight, code_tensor(DType::f8_e4m3, {q.rows, q.cols}, q)},
      {weight + "_scale_inv",
       float_tensor(Element::f32, {q.scales[0].rows, q.scales[0].cols},
                    q.scales[0].values)}};
}

}  // namespace

Status can_express_fp8(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  return common_block(prepared).status();
}

Status write_fp8(const Artifact& artifact, const std::filesystem::path& directory,
                 const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_ASSIGN_OR_RETURN(const Block block, common_block(ordered));
  const std::set<std::string> floats = float_modules(ordered);
  Json config;
  config["quant_method"] = kFormat;
  config["fmt"] = "e4m3";
  config["activation_scheme"] = "dynamic";
  config["weight_block_size"] = {block.rows, block.cols};
  config["modules_to_not_convert"] = floats.empty() ? Json(nullptr) : Json(floats);
  QuantizedFormat format;
  format.name = kFormat;
  format.quantization_config = config.dump();
  format.tensors_of = tensors_of;
  format.read = read_fp8;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
