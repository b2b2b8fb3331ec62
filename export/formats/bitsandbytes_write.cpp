// bitsandbytes 4-bit checkpoints (NF4, FP4), plain and with double quantization, as
// transformers loads them without quantizing anything again.
//
//   X.weight          U8 [ceil(N K / 2), 1]   row-major codes, the first of two in the
//   high
//                                             nibble
//   X.weight.absmax   F32 [blocks], or U8: codes of the dynamic map
//   X.weight.quant_map                F32 [16], what a code stands for
//   X.weight.nested_absmax, nested_quant_map   F32 [ceil(blocks / 256)], F32 [256]
//   X.weight.quant_state.bitsandbytes__nf4     U8: JSON with block size, shape, offset
//
//   absmax = map[code] * nested_absmax[block / 256] + nested_offset
//
// LLM.int8: X.weight I8 [N, K], X.SCB F32 [N] = 127 times the row's scale, X.weight_format U8 0.
// Its runtime quantizes activations a token at a time, those above 6 apart.
#include <cmath>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/quantized_directory.h"
#include "export/levels.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "bitsandbytes";
constexpr int64_t kNested = 256;  // scales under one outer scale

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

// Elements of a run of the flattened tensor that one scale governs; 0: no such run.
int64_t run_of(const Block& block, int64_t cols) {
  if (block.kind == Block::Kind::flat) return block.cols;
  const Block plain = simplified(block, cols);
  if (plain.kind == Block::Kind::row) return cols;
  return plain.kind == Block::Kind::group && cols % plain.cols == 0 ? plain.cols : 0;
}

bool is_int8(const QuantScheme& scheme) { return scheme.code == Element::int8; }

// LLM.int8: a scale a row.
Status check_int8(const std::string& tensor, const LayerScheme& layer,
                  const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  const Element element = scheme.scales[0].element;
  const bool fits =
      scheme.scales.size() == 1 && scheme.offset == OffsetKind::none &&
      !scheme.scales[0].shifted &&
      simplified(scheme.scales[0].block, packed.cols).kind == Block::Kind::row &&
      (element == Element::f32 || element == Element::f16 || element == Element::bf16);
  if (!fits) {
    return unsupported(tensor, "uses ", to_string(scheme),
                       "; of 8 bits bitsandbytes has int8 with a float scale a row; quantize "
                       "so");
  }
  const bool input = !layer.input || (layer.input->dynamic &&
                                      layer.input->scheme.code == Element::int8);
  if (input && layer.extras.permutation.empty()) return ok_status();
  return unsupported(tensor, "inputs must be float or dynamic int8, columns in their own "
                             "order; found ",
                     input ? "a permutation" : to_string(layer.input->scheme));
}

// The block size of a weight that the format holds.
Result<int64_t> block_of(const std::string& tensor, const LayerScheme& layer,
                         const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  const auto refused = [&](const char* what) {
    return unsupported(tensor, "uses ", to_string(scheme), "; bitsandbytes has ", what,
                       "; quantize so");
  };
  if (scheme.code != Element::nf4 && scheme.code != Element::fp4) {
    return refused("codes of nf4, fp4 and int8");
  }
  if (layer.input) {
    return unsupported("the input of " + tensor, "activations must be float; found ",
                       to_string(layer.input->scheme), "; leave the input float");
  }
  if (!layer.extras.permutation.empty()) {
    return unsupported(tensor, "columns must be in their own order; found a permutation");
  }
  const bool nested = scheme.scales.size() == 2;
  const int64_t block = run_of(scheme.scales[0].block, packed.cols);
  const bool power = block >= 32 && block <= 4096 && (block & (block - 1)) == 0;
  if (!power)
    return refused(
        "scales of 32 to 4096 elements of the flattened tensor, a power of two");
  const Element element = scheme.scales[0].element;
  if (scheme.scales.size() == 1 && !scheme.scales[0].shifted &&
      (element == Element::f32 || element == Element::f16 || element == Element::bf16)) {
    return block;
  }
  const bool fits =
      nested && element == Element::dyn8 && scheme.scales[0].shifted &&
      !scheme.scales[1].shifted && scheme.scales[1].element == Element::f32 &&
      scheme.scales[1].block == Block{Block::Kind::flat, 1, kNested * block};
  if (fits) return block;
  return refused(
      "float scales, or dyn8 ones with an offset under f32 ones of 256 blocks");
}

Status check_weights(const Artifact& artifact) {
  const PackedTensor* first = nullptr;
  for (const auto& [name, packed] : artifact.packed) {
    const LayerScheme& layer = artifact.layers.at(name);
    NIBBLE_RETURN_IF_ERROR(is_int8(packed.scheme) ? check_int8(name, layer, packed)
                                                  : block_of(name, layer, packed).status());
    if (first == nullptr) first = &packed;
    if (first->scheme.code == packed.scheme.code) continue;
    return unsupported(name, "all layers must have codes of ",
                       element_info(first->scheme.code).text, "; found ",
                       element_info(packed.scheme.code).text);
  }
  return ok_status();
}

const char* type_of(const QuantScheme& scheme) {
  return scheme.code == Element::nf4 ? "nf4" : "fp4";
}

// SCB whose 127th part is nearest to the scale.
float scb_of(float scale) {
  const float middle = scale * 127;
  float best = middle;
  for (const float near : {std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
    if (std::abs(near / 127 - scale) < std::abs(best / 127 - scale)) best = near;
  }
  return best;
}

std::map<std::string, Tensor> int8_tensors(const std::string& weight, const CodedMatrix& q) {
  std::vector<float> scb;
  for (const float scale : q.scales[0].values) scb.push_back(scb_of(scale));
  const std::string module = module_of(weight);
  return {{weight, code_tensor(DType::i8, {q.rows, q.cols}, q)},
          {module + ".SCB", make_tensor({q.rows}, std::span<const float>(scb))},
          {module + ".weight_format", byte_tensor(DType::u8, {}, {0})}};
}

std::map<std::string, Tensor> tensors_of(const std::string& weight, const CodedMatrix& q,
                                         const std::string& dtype) {
  if (is_int8(q.scheme)) return int8_tensors(weight, q);
  std::vector<uint8_t> bytes((q.codes.size() + 1) / 2);
  const uint8_t* codes_of = q.codes.data();
  uint8_t* pairs = bytes.data();
  for (size_t i = 0; i < q.codes.size() / 2; ++i)
    pairs[i] = static_cast<uint8_t>(codes_of[2 * i] << 4 | codes_of[2 * i + 1]);
  if (q.codes.size() % 2 == 1) bytes.back() = static_cast<uint8_t>(q.codes.back() << 4);
  const auto& table = q.scheme.code == Element::nf4 ? nf4_table() : fp4_table();
  const std::vector<float>& scales = q.scales[0].values;
  const auto count = static_cast<int64_t>(scales.size());
  const bool nested = q.scheme.scales.size() == 2;
  std::map<std::string, Tensor> tensors = {
      {weight, byte_tensor(DType::u8, {(q.rows * q.cols + 1) / 2, 1}, std::move(bytes))},
      {weight + ".quant_map", make_tensor({16}, std::span<const float>(table))}};
  // Python's spelling, as the package writes it.
  std::string state =
      cat("{\"quant_type\": \"", type_of(q.scheme),
          "\", \"blocksize\": ", run_of(q.scheme.scales[0].block, q.cols),
          ", \"dtype\": \"", dtype, "\", \"shape\": [", q.rows, ", ", q.cols, "]");
  if (nested) {
    std::vector<uint8_t> codes;
    for (const float value : scales) {
      codes.push_back(static_cast<uint8_t>(bits_of_value(Element::dyn8, value)));
    }
    tensors[weight + ".absmax"] = byte_tensor(DType::u8, {count}, codes);
    const std::vector<float>& outer = q.scales[1].values;
    tensors[weight + ".nested_absmax"] =
        make_tensor({static_cast<int64_t>(outer.size())}, std::span<const float>(outer));
    tensors[weight + ".nested_quant_map"] =
        make_tensor({256}, std::span<const float>(dyn8_table()));
    state += cat(", \"nested_blocksize\": ", kNested,
                 ", \"nested_dtype\": \"float32\", \"nested_offset\": ",
                 Json(static_cast<double>(q.scales[0].shift)).dump());
  } else {
    tensors[weight + ".absmax"] = make_tensor({count}, std::span<const float>(scales));
  }
  state += "}";
  tensors[cat(weight, ".quant_state.bitsandbytes__", type_of(q.scheme))] =
      byte_tensor(DType::u8, {static_cast<int64_t>(state.size())},
                  std::vector<uint8_t>(state.begin(), state.end()));
  return tensors;
}

std::string quantization_config(const Artifact& artifact) {
  bool nested = false;
  for (const auto& [name, packed] : artifact.packed) {
    nested = nested || packed.scheme.scales.size() == 2;
  }
  const std::set<std::string> floats = float_modules(artifact);
  const bool int8 = is_int8(artifact.packed.begin()->second.scheme);
  Json config;
  config["quant_method"] = kFormat;
  config["_load_in_4bit"] = !int8;
  config["_load_in_8bit"] = int8;
  config["load_in_4bit"] = !int8;
  config["load_in_8bit"] = int8;
  config["bnb_4bit_compute_dtype"] = model_dtype(artifact);
  config["bnb_4bit_quant_storage"] = "uint8";
  config["bnb_4bit_quant_type"] = type_of(artifact.packed.begin()->second.scheme);
  config["bnb_4bit_use_double_quant"] = nested;
  config["llm_int8_enable_fp32_cpu_offload"] = false;
  config["llm_int8_has_fp16_weight"] = false;
  config["llm_int8_skip_modules"] = floats.empty() ? Json(nullptr) : Json(floats);
  config["llm_int8_threshold"] = 6.0;
  return config.dump();
}

}  // namespace

Status can_express_bitsandbytes(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_weights(prepared));
  return ok_status();
}

Status write_bitsandbytes(const Artifact& artifact,
                          const std::filesystem::path& directory,
                          const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_weights(ordered));
  QuantizedFormat format;
  format.name = kFormat;
  format.quantization_config = quantization_config(ordered);
  format.tensors_of = [dtype = model_dtype(ordered)](
                          const std::string& weight,
                          const CodedMatrix& q) -> Result<std::map<std::string, Tensor>> {
    return tensors_of(weight, q, dtype);
  };
  format.read = read_bitsandbytes;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
