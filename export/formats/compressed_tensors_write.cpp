// compressed-tensors directories, as vLLM and transformers load them: pack-quantized
// integers of 2 to 8 bits (float activations), int-quantized integers and float-quantized
// FP8, and 4-bit floats.
//
//   pack-quantized   weight_packed I32 [N, ceil(K b / 32)], codes as unsigned numbers
//   along K;
//                    weight_zero_point I32 [ceil(N b / 32), G], along N; weight_shape I64
//                    [2]
//   int-quantized    weight I8 [N, K], signed codes; weight_zero_point I8
//   float-quantized  weight F8_E4M3 [N, K]
//   mxfp4-pack-quantized, nvfp4-pack-quantized
//                    weight_packed U8 [N, K / 2]; weight_scale U8 (E8M0) [N, K / 32], or
//                    F8_E4M3 [N, K / 16] under weight_global_scale F32 [1], a reciprocal
//   all              weight_scale [1] | [N, 1] | [N, G] | [N / rows, K / cols] in the
//   scales'
//                    own dtype; input_scale [1] (+ input_zero_point) of static inputs
//
// Layers of one scheme make one config group: "Linear" with a list of what to ignore
// where there is one group, else the modules by name.
#include <cmath>
#include <cstring>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/quantized_directory.h"
#include "export/huggingface/word_stream.h"
#include "export/levels.h"
#include "kernels/base/json.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "compressed-tensors";
constexpr const char* kVersion = "0.20.0";  // of the package whose files these are

enum class Form : uint8_t { packed, integers, floats, mxfp4, nvfp4 };
constexpr const char* kForms[] = {"pack-quantized", "int-quantized", "float-quantized",
                                  "mxfp4-pack-quantized", "nvfp4-pack-quantized"};

// How one layer is held; equal ones make a config group.
struct Held {
  Form form = Form::packed;
  Json weights, input;  // QuantizationArgs; input null: float
  const char* format() const { return kForms[static_cast<size_t>(form)]; }
};

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

bool is_integer(Element element) {
  return element_info(element).kind == ElementKind::integer;
}

// strategy, and group_size or block_structure beside it.
Status describe_blocks(const std::string& tensor, const PackedTensor& packed,
                       bool is_float, Json& args) {
  const QuantScheme& scheme = packed.scheme;
  const Block block = simplified(scheme.scales[0].block, packed.cols);
  switch (block.kind) {
    case Block::Kind::tensor:
      args["strategy"] = "tensor";
      return ok_status();
    case Block::Kind::row:
      args["strategy"] = "channel";
      return ok_status();
    case Block::Kind::group:
      if (packed.cols % block.cols != 0) {
        return unsupported(tensor, "its ", packed.cols,
                           " columns must be whole groups of ", block.cols, "; found ",
                           to_string(scheme),
                           "; use a group that divides them, or a scale a row");
      }
      args["strategy"] = "group";
      args["group_size"] = block.cols;
      return ok_status();
    case Block::Kind::grid:
      if (!is_float) break;
      args["strategy"] = "block";
      args["block_structure"] = {block.rows, block.cols};
      return ok_status();
    case Block::Kind::column:
    case Block::Kind::flat:
      break;
  }
  return unsupported(tensor, "uses ", to_string(scheme),
                     "; the format has a scale a tensor, row or group",
                     is_float ? " or grid" : "", "; quantize with one of these");
}

Status describe_input(const std::string& tensor, const ActivationScheme& input,
                      Json& args) {
  const QuantScheme& scheme = input.scheme;
  const bool fp8 = scheme.code == Element::e4m3;
  const bool one_level = scheme.scales.size() == 1 && scheme.offset == OffsetKind::none &&
                         !scheme.scales[0].shifted;
  const Block::Kind kind = one_level ? scheme.scales[0].block.kind : Block::Kind::column;
  const bool per_token = input.dynamic && kind == Block::Kind::row;
  const bool fixed = !input.dynamic && kind == Block::Kind::tensor;
  const bool is_signed = is_integer(scheme.code) && element_info(scheme.code).lowest < 0;
  if (!(fp8 || is_integer(scheme.code)) || !(per_token || fixed) ||
      (per_token && !fp8 && !is_signed)) {
    return unsupported(
        "the input of " + tensor,
        "the format has integers or e4m3 with a scale a token (dynamic) or a "
        "tensor (static); found ",
        input.dynamic ? "dynamic " : "static ", to_string(scheme));
  }
  args["num_bits"] = element_info(scheme.code).bits;
  args["type"] = fp8 ? "float" : "int";
  args["symmetric"] = fp8 || per_token || (is_signed && input.zero_point == 0);
  args["strategy"] = per_token ? "token" : "tensor";
  args["dynamic"] = input.dynamic;
  return ok_status();
}

// e2m1/g32@e8m0 and e2m1/g16@e4m3/t@f32, weights alone: their activations would need scales
// that no scheme here has.
Result<Held> held_as_fp4(const std::string& tensor, const LayerScheme& layer,
                         const PackedTensor& packed) {
  const std::string scheme = to_string(packed.scheme);
  Held held;
  held.form = scheme == "e2m1/g32@e8m0" ? Form::mxfp4 : Form::nvfp4;
  const int64_t group = held.form == Form::mxfp4 ? 32 : 16;
  if (held.form == Form::nvfp4 && scheme != "e2m1/g16@e4m3/t@f32") {
    return unsupported(tensor, "uses ", scheme,
                       "; of e2m1 the format holds e2m1/g32@e8m0 (MXFP4) and "
                       "e2m1/g16@e4m3/t@f32 (NVFP4); quantize with one of these");
  }
  if (packed.cols % group != 0) {
    return unsupported(tensor, "its ", packed.cols, " columns must be whole groups of ",
                       group, "; leave this layer float, or quantize it otherwise");
  }
  if (layer.input || !layer.extras.permutation.empty()) {
    return unsupported(tensor, "4-bit floats are written with float activations and columns "
                               "in their own order; found ",
                       layer.input ? to_string(layer.input->scheme) : "a permutation");
  }
  held.weights = {{"num_bits", 4}, {"type", "float"}, {"symmetric", true}};
  held.weights["strategy"] = held.form == Form::mxfp4 ? "group" : "tensor_group";
  held.weights["group_size"] = group;
  held.weights["dynamic"] = false;
  held.weights["scale_dtype"] =
      held.form == Form::mxfp4 ? "torch.uint8" : "torch.float8_e4m3fn";
  return held;
}

Result<Held> held_as(const std::string& tensor, const LayerScheme& layer,
                     const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  if (scheme.code == Element::e2m1) return held_as_fp4(tensor, layer, packed);
  Held held;
  const bool is_float = scheme.code == Element::e4m3;
  if (!is_float && !is_integer(scheme.code)) {
    return unsupported(
        tensor, "uses ", to_string(scheme),
        "; the format holds integers of 2 to 8 bits, e4m3 and e2m1; quantize with "
        "one of these");
  }
  if (scheme.scales.size() != 1 || scheme.scales[0].shifted ||
      (scheme.scales[0].element != Element::f16 &&
       scheme.scales[0].element != Element::bf16 &&
       scheme.scales[0].element != Element::f32)) {
    return unsupported(
        tensor, "uses ", to_string(scheme),
        "; the format has one level of scales, f16, bf16 or f32; quantize so");
  }
  held.weights["num_bits"] = element_info(scheme.code).bits;
  held.weights["type"] = is_float ? "float" : "int";
  const bool symmetric = is_float || (scheme.offset == OffsetKind::none &&
                                      element_info(scheme.code).lowest < 0);
  held.weights["symmetric"] = symmetric;
  if (scheme.offset != OffsetKind::none) {
    const bool fits = !is_float && scheme.offset == OffsetKind::zero_point &&
                      scheme.offsets.size() == 1 && !scheme.offsets[0].shifted &&
                      scheme.offsets[0].element == scheme.code &&
                      simplified(scheme.offsets[0].block, packed.cols) ==
                          simplified(scheme.scales[0].block, packed.cols);
    if (!fits) {
      return unsupported(
          tensor, "uses ", to_string(scheme),
          "; the format has integer zero points of the codes' own bits, one "
          "a scale; quantize so, or symmetrically");
    }
  }
  NIBBLE_RETURN_IF_ERROR(describe_blocks(tensor, packed, is_float, held.weights));
  held.weights["dynamic"] = false;
  if (layer.input) {
    NIBBLE_RETURN_IF_ERROR(describe_input(tensor, *layer.input, held.input));
  }
  held.form = is_float ? Form::floats : layer.input ? Form::integers : Form::packed;
  if (held.form != Form::packed && !layer.extras.permutation.empty()) {
    return unsupported(tensor,
                       "its columns must be in their own order; found a permutation");
  }
  if (!layer.extras.permutation.empty()) {
    return unsupported(
        tensor,
        "act-order's column groups are no longer in the format (compressed-"
        "tensors 0.20 refuses them); found a permutation; export to gptq, or "
        "quantize with static groups");
  }
  return held;
}

// q's level values in rows of the scale tensor: [1], [N, 1], [N, G] or the grid's.
std::vector<int64_t> level_shape_of(const Held& held, const CodedLevel& level) {
  if (held.weights["strategy"] == "tensor") return {1};
  return {level.rows, level.cols};
}

class Converter {
 public:
  Converter(const Artifact& artifact, std::map<std::string, Held> held)
      : artifact_(artifact), held_(std::move(held)) {}

  Result<std::map<std::string, Tensor>> tensors_of(const std::string& weight,
                                                   const CodedMatrix& q) const {
    const Held& held = held_.at(weight);
    const std::string module = module_of(weight);
    std::map<std::string, Tensor> tensors;
    if (held.form == Form::mxfp4 || held.form == Form::nvfp4) {
      pack_fp4(module, held, q, tensors);
      return tensors;
    }
    tensors[module + ".weight_scale"] =
        float_tensor(q.scheme.scales[0].element, level_shape_of(held, q.scales[0]),
                     q.scales[0].values);
    if (held.form == Form::packed) {
      pack(module, held, q, tensors);
    } else if (held.form == Form::integers) {
      const int middle = 1 << (element_info(q.scheme.code).bits - 1);
      const auto lift = static_cast<uint8_t>(code_lift(q.scheme) - middle);
      if (lift == 0) {
        tensors[module + ".weight"] = code_tensor(DType::i8, {q.rows, q.cols}, q);
      } else {
        std::vector<uint8_t> codes(q.codes.size());
        const uint8_t* from = q.codes.data();
        uint8_t* to = codes.data();
        for (size_t i = 0; i < codes.size(); ++i)
          to[i] = static_cast<uint8_t>(from[i] + lift);
        tensors[module + ".weight"] =
            byte_tensor(DType::i8, {q.rows, q.cols}, std::move(codes));
      }
      if (!held.weights["symmetric"].get<bool>()) {
        std::vector<uint8_t> zeros;
        for (int64_t i = 0; i < q.scales[0].rows * q.scales[0].cols; ++i) {
          zeros.push_back(static_cast<uint8_t>(unsigned_zero(q, i) - middle));
        }
        tensors[module + ".weight_zero_point"] =
            byte_tensor(DType::i8, level_shape_of(held, q.scales[0]), zeros);
      }
    } else {
      tensors[module + ".weight"] = code_tensor(DType::f8_e4m3, {q.rows, q.cols}, q);
    }
    add_input(module, artifact_.layers.at(weight), tensors);
    return tensors;
  }

 private:
  // The first of two codes in the low 4 bits; scales as the bytes of their element; the scale
  // of the tensor as its reciprocal.
  static void pack_fp4(const std::string& module, const Held& held, const CodedMatrix& q,
                       std::map<std::string, Tensor>& tensors) {
    std::vector<uint8_t> bytes(q.codes.size() / 2), scales;
    const uint8_t* codes = q.codes.data();
    uint8_t* pairs = bytes.data();
    for (size_t i = 0; i < bytes.size(); ++i)
      pairs[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    tensors[module + ".weight_packed"] =
        byte_tensor(DType::u8, {q.rows, q.cols / 2}, std::move(bytes));
    const Element element = q.scheme.scales[0].element;
    for (const float value : q.scales[0].values)
      scales.push_back(static_cast<uint8_t>(bits_of_value(element, value)));
    tensors[module + ".weight_scale"] =
        byte_tensor(held.form == Form::mxfp4 ? DType::u8 : DType::f8_e4m3,
                    {q.scales[0].rows, q.scales[0].cols}, std::move(scales));
    if (held.form == Form::mxfp4) return;
    tensors[module + ".weight_global_scale"] =
        float_tensor(Element::f32, {1}, {reciprocal_of(q.scales[1].values[0])});
  }

  // The number whose reciprocal is nearest to scale.
  static float reciprocal_of(float scale) {
    const float middle = 1.0f / scale;
    float best = middle;
    for (const float near : {std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      if (std::abs(1.0f / near - scale) < std::abs(1.0f / best - scale)) best = near;
    }
    return best;
  }

  static void pack(const std::string& module, const Held& held, const CodedMatrix& q,
                   std::map<std::string, Tensor>& tensors) {
    const int bits = element_info(q.scheme.code).bits;
    const int64_t words = stream_words(q.cols, bits);
    const Words codes = q.codes.empty() ? nullptr : fresh_words(q.rows * words);
    const bool fills = 32 % bits == 0 && q.cols * bits % 32 == 0;  // each word at once
    for (int64_t r = 0; r < q.rows && codes != nullptr; ++r) {
      uint32_t* to = codes.get() + r * words;
      if (!fills) std::fill_n(to, words, 0u);
      WordStream row(to, 1, bits);
      row.put(q.codes.data() + r * q.cols, q.cols, code_lift(q.scheme));
    }
    tensors[module + ".weight_packed"] = word_tensor({q.rows, words}, codes);
    const int64_t shape[2] = {q.rows, q.cols};
    tensors[module + ".weight_shape"] = {
        DType::i64, {2}, Bytes::copy_of(shape, sizeof(shape))};
    if (held.weights["symmetric"].get<bool>()) return;
    // Zero points of a whole tensor are one.
    const int64_t rows = q.scales[0].rows, groups = q.scales[0].cols;
    std::vector<uint32_t> zeros(static_cast<size_t>(stream_words(rows, bits) * groups),
                                0);
    for (int64_t g = 0; g < groups; ++g) {
      WordStream column(zeros.data() + g, groups, bits);
      for (int64_t r = 0; r < rows; ++r) {
        column.put(static_cast<uint32_t>(unsigned_zero(q, r * groups + g)));
      }
    }
    tensors[module + ".weight_zero_point"] =
        word_tensor({stream_words(rows, bits), groups}, std::move(zeros));
  }

  static void add_input(const std::string& module, const LayerScheme& layer,
                        std::map<std::string, Tensor>& tensors) {
    if (!layer.input || layer.input->dynamic) return;
    tensors[module + ".input_scale"] =
        float_tensor(Element::f32, {1}, {layer.input->scale});
    const ElementInfo& info = element_info(layer.input->scheme.code);
    const bool is_unsigned = info.kind == ElementKind::integer && info.lowest >= 0;
    if (!is_unsigned && layer.input->zero_point == 0) return;
    const int lift = is_unsigned ? 1 << (info.bits - 1) : 0;
    tensors[module + ".input_zero_point"] = byte_tensor(
        DType::i8, {1}, {static_cast<uint8_t>(layer.input->zero_point - lift)});
  }

  const Artifact& artifact_;
  std::map<std::string, Held> held_;
};

Result<std::map<std::string, Held>> all_held(const Artifact& artifact) {
  std::map<std::string, Held> held;
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_ASSIGN_OR_RETURN(held[name], held_as(name, artifact.layers.at(name), packed));
  }
  return held;
}

std::string quantization_config(const Artifact& artifact,
                                const std::map<std::string, Held>& held) {
  // Group text -> its modules, in the order of names.
  std::map<std::string, std::pair<const Held*, std::vector<std::string>>> groups;
  bool mixed = false;
  for (const auto& [name, how] : held) {
    auto& group = groups[cat(how.format(), how.weights.dump(), how.input.dump())];
    group.first = &how;
    group.second.push_back(module_of(name));
    mixed = mixed || how.form != held.begin()->second.form;
  }
  Json config;
  config["quant_method"] = kFormat;
  config["format"] = mixed ? "mixed-precision" : held.begin()->second.format();
  config["quantization_status"] = "compressed";
  config["version"] = kVersion;
  config["global_compression_ratio"] = nullptr;
  config["ignore"] = float_modules(artifact);
  config["kv_cache_scheme"] = nullptr;
  if (const StaticCaches caches = static_caches(artifact.program); !caches.empty()) {
    const bool is_float = static_cache_code(caches) == Element::e4m3;
    config["kv_cache_scheme"] = {{"num_bits", 8},
                                 {"type", is_float ? "float" : "int"},
                                 {"symmetric", true},
                                 {"strategy", "tensor"},
                                 {"dynamic", false}};
  }
  config["config_groups"] = Json::object();
  int index = 0;
  for (const auto& [text, group] : groups) {
    const auto& [how, modules] = group;
    Json entry;
    entry["targets"] = groups.size() == 1 ? std::vector<std::string>{"Linear"} : modules;
    entry["format"] = how->format();
    entry["weights"] = how->weights;
    entry["input_activations"] = how->input;
    entry["output_activations"] = nullptr;
    config["config_groups"][cat("group_", index++)] = entry;
  }
  return config.dump();
}

// In the model's dtype, as the library has them, where that holds the value.
Tensor cache_scale(const Artifact& artifact, float value) {
  const std::string dtype = model_dtype(artifact);
  Element element = dtype == "float16"    ? Element::f16
                    : dtype == "bfloat16" ? Element::bf16
                                          : Element::f32;
  if (round_to_element(element, value) != value) element = Element::f32;
  return float_tensor(element, {1}, {value});
}

}  // namespace

Status can_express_compressed_tensors(const Artifact& artifact,
                                      const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(all_held(prepared).status());
  return ok_status();
}

Status write_compressed_tensors(const Artifact& artifact,
                                const std::filesystem::path& directory,
                                const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_ASSIGN_OR_RETURN(const auto held, all_held(ordered));
  const Converter converter(ordered, held);
  QuantizedFormat format;
  format.name = kFormat;
  format.quantization_config = quantization_config(ordered, held);
  format.tensors_of = [&](const std::string& weight, const CodedMatrix& q) {
    return converter.tensors_of(weight, q);
  };
  format.caches = static_caches(ordered.program);
  for (const auto& [module, scheme] : format.caches) {
    format.cache_tensors[module + ".k_scale"] = cache_scale(ordered, scheme.key_scale);
    format.cache_tensors[module + ".v_scale"] = cache_scale(ordered, scheme.value_scale);
  }
  format.read = read_compressed_tensors;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
