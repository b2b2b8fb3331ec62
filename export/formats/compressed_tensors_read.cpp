// Reads compressed-tensors directories, ours and others': pack-quantized (dense, and the
// older floor(32 / b) codes a word), int-quantized, naive-quantized, float-quantized FP8.
//
// A module is quantized where it has a weight_scale; what its codes mean is its config
// group's: the group that names the module, else one whose pattern matches it, else the
// group of its class. Shares nothing with the writer.
#include <cmath>
#include <cstring>
#include <optional>

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "export/huggingface/static_caches.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/regex.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "compressed-tensors";
constexpr const char* kCache =
    "the scheme of a KV cache; read are static FP8 and symmetric INT8 with a scale a "
    "tensor";

constexpr std::string_view kKeyScale = ".k_scale", kValueScale = ".v_scale";

struct QuantizationArgs {
  int64_t bits = 8;
  bool is_float = false, symmetric = true, dynamic = false, act_order = false;
  Block block;
  std::string strategy;
};

struct ConfigGroup {
  QuantizationArgs weights;
  std::optional<QuantizationArgs> input;
  std::vector<std::string> names, classes;
  std::vector<Regex> patterns;
};

class CompressedTensors {
 public:
  explicit CompressedTensors(HfCheckpoint checkpoint)
      : checkpoint_(std::move(checkpoint)) {}

  Result<Decoded> read(const EachWeight& each) {
    NIBBLE_RETURN_IF_ERROR(read_config());
    Decoded decoded;
    decoded.config_json = checkpoint_.config_json();
    std::optional<Element> cache;
    if (const auto kv = checkpoint_.quantization().find("kv_cache_scheme");
        kv != checkpoint_.quantization().end() && kv->is_object()) {
      const Result<QuantizationArgs> args = read_args("kv_cache_scheme", *kv);
      if (args.ok() && args->strategy == "tensor" && args->bits == 8 && args->symmetric &&
          !args->dynamic) {
        cache = args->is_float ? Element::e4m3 : Element::int8;
      } else {
        decoded.ignored["kv_cache_scheme"] = kCache;
      }
    }
    decoded.keeps_permutations = true;
    NIBBLE_RETURN_IF_ERROR(checkpoint_.read_modules(
        checkpoint_.modules_with(".weight_scale"), each, decoded,
        [this](const std::string& module, Decoded& one) -> Status {
          NIBBLE_ASSIGN_OR_RETURN(const ConfigGroup* group, group_of(module));
          one.keeps_permutations = true;
          return read_module(module, *group, one);
        }));
    const std::map<std::string, Tensor> rest = checkpoint_.rest();
    const auto find = [&](const std::string& name) {
      const auto at = rest.find(name);
      return at == rest.end() ? nullptr : &at->second;
    };
    for (const auto& [name, tensor] : rest) {
      const bool key = name.ends_with(".k_scale"), value = name.ends_with(".v_scale");
      if (!key && !value && !name.ends_with(".q_scale")) {
        decoded.floats[name] = tensor;
        continue;
      }
      std::string reason = kCache;
      if (cache && (key || value)) {
        const std::string module = name.substr(0, name.size() - kKeyScale.size());
        reason = add_static_cache(module, *cache, find(cat(module, kKeyScale)),
                                  find(cat(module, kValueScale)), decoded.caches);
      }
      if (!reason.empty()) decoded.ignored[name] = reason;
    }
    return decoded;
  }

 private:
  Status read_config() {
    const Json& config = checkpoint_.quantization();
    if (const auto sparse = config.find("sparsity_config");
        sparse != config.end() && sparse->is_object() && !sparse->empty() &&
        sparse->value("format", "dense") != "dense") {
      return checkpoint_.unsupported("sparsity_config", "dense weights are read; found ",
                                     sparse->value("format", ""));
    }
    for (const auto& [name, json] : config.at("config_groups").items()) {
      NIBBLE_ASSIGN_OR_RETURN(ConfigGroup group, read_group(name, json));
      groups_.push_back(std::move(group));
    }
    return ok_status();
  }

  Result<QuantizationArgs> read_args(const std::string& where, const Json& json) const {
    QuantizationArgs args;
    args.bits = json.value("num_bits", int64_t{8});
    args.is_float = json.value("type", "int") == "float";
    args.symmetric = json.value("symmetric", true);
    const auto field = [&](const char* name) {
      const auto at = json.find(name);
      return at == json.end() ? Json() : *at;
    };
    const Json dynamic = field("dynamic");
    args.dynamic = dynamic.is_boolean() && dynamic.get<bool>();
    const Json order = field("actorder");
    args.act_order = (order.is_boolean() && order.get<bool>()) ||
                     (order.is_string() && (order == "group" || order == "dynamic"));
    const int64_t group =
        field("group_size").is_number_integer() ? field("group_size").get<int64_t>() : 0;
    args.strategy = field("strategy").is_string() ? field("strategy").get<std::string>()
                    : group > 0                   ? "group"
                    : group < 0                   ? "channel"
                                                  : "tensor";
    const bool fp4 = args.is_float && args.bits == 4;
    if (args.bits < 2 || args.bits > 8 ||
        (args.is_float && args.bits != 8 && args.bits != 4)) {
      return checkpoint_.unsupported(
          where, "integers of 2 to 8 bits, FP8 and FP4 are read; found ", args.bits,
          " bits of ", args.is_float ? "float" : "int");
    }
    if (args.strategy == "channel" || args.strategy == "token") {
      args.block = {Block::Kind::row, 1, 1};
    } else if ((args.strategy == "group" || (args.strategy == "tensor_group" && fp4)) &&
               group > 0 && group <= kMostBlock) {
      args.block = {Block::Kind::group, 1, group};
    } else if (args.strategy == "block") {
      NIBBLE_ASSIGN_OR_RETURN(args.block, read_grid(where, field("block_structure")));
    } else if (args.strategy != "tensor") {
      return checkpoint_.unsupported(
          where,
          "the strategies tensor, channel, group, block and token are read (tensor_group of "
          "4-bit floats); found ",
          args.strategy);
    }
    return args;
  }

  // [128, 128], or "128x128" in older files.
  Result<Block> read_grid(const std::string& where, const Json& json) const {
    int64_t rows = 0, cols = 0;
    if (json.is_array() && json.size() == 2) {
      rows = json[0].get<int64_t>();
      cols = json[1].get<int64_t>();
    } else if (json.is_string()) {
      const std::string text = json.get<std::string>();
      const size_t x = text.find('x');
      rows = std::atoll(text.c_str());
      cols = x == std::string::npos ? 0 : std::atoll(text.c_str() + x + 1);
    }
    if (rows < 1 || cols < 1 || rows > kMostBlock || cols > kMostBlock) {
      return checkpoint_.damaged(
          where, "block_structure must be two positive sizes; found ", json.dump());
    }
    return Block{Block::Kind::grid, rows, cols};
  }

  Result<ConfigGroup> read_group(const std::string& name, const Json& json) const {
    ConfigGroup group;
    if (!json.contains("weights") || !json.at("weights").is_object()) {
      return checkpoint_.unsupported(name,
                                     "groups that quantize weights are read; found one "
                                     "without");
    }
    NIBBLE_ASSIGN_OR_RETURN(group.weights,
                            read_args(name + " weights", json.at("weights")));
    const auto input = json.find("input_activations");
    if (input != json.end() && input->is_object()) {
      NIBBLE_ASSIGN_OR_RETURN(group.input,
                              read_args(name + " input_activations", *input));
    }
    const auto output = json.find("output_activations");
    if (output != json.end() && output->is_object()) {
      return checkpoint_.unsupported(name,
                                     "float outputs are read; found output_activations");
    }
    for (const Json& target : json.at("targets")) {
      const std::string text = target.get<std::string>();
      if (text.rfind("re:", 0) == 0) {
        // From the start of the path, as Python's re.match.
        NIBBLE_ASSIGN_OR_RETURN(Regex pattern, Regex::compile(text.substr(3), "targets"));
        group.patterns.push_back(std::move(pattern));
      } else if (text.find('.') != std::string::npos ||
                 checkpoint_.has(text + ".weight_scale")) {
        group.names.push_back(text);
      } else {
        group.classes.push_back(text);
      }
    }
    return group;
  }

  Result<const ConfigGroup*> group_of(const std::string& module) const {
    for (const ConfigGroup& group : groups_) {
      for (const std::string& name : group.names) {
        if (name == module) return &group;
      }
    }
    for (const ConfigGroup& group : groups_) {
      for (const Regex& pattern : group.patterns) {
        std::vector<Span> matches;
        NIBBLE_RETURN_IF_ERROR(pattern.find_all(module, matches));
        if (!matches.empty() && matches[0].begin == 0) return &group;
      }
    }
    for (const ConfigGroup& group : groups_) {
      if (!group.classes.empty()) return &group;
    }
    return checkpoint_.damaged(module,
                               "a config group must name every quantized module; found "
                               "none for it");
  }

  Status read_module(const std::string& module, const ConfigGroup& group,
                     Decoded& decoded) {
    const std::string weight = module + ".weight";
    CodedMatrix q;
    if (group.weights.is_float && group.weights.bits == 4) {
      NIBBLE_RETURN_IF_ERROR(read_fp4(module, group, q));
      if (q.scales.size() == 2) decoded.reciprocal_scales.insert(weight);
      decoded.coded[weight] = std::move(q);
      return ok_status();
    }
    const bool packed = checkpoint_.has(module + ".weight_packed");
    if (packed) {
      NIBBLE_RETURN_IF_ERROR(read_packed(module, group.weights, q));
    } else {
      NIBBLE_RETURN_IF_ERROR(read_plain(module, group.weights, q));
    }
    NIBBLE_RETURN_IF_ERROR(read_scales(module, group.weights, packed, q));
    if (checkpoint_.has(module + ".weight_g_idx")) {
      NIBBLE_RETURN_IF_ERROR(sort_columns(module, group.weights, q, decoded));
    } else if (group.weights.act_order) {
      return checkpoint_.damaged(module, "act-order needs weight_g_idx; found none");
    }
    if (group.input) {
      NIBBLE_ASSIGN_OR_RETURN(decoded.inputs[weight], read_input(module, *group.input));
    }
    decoded.coded[weight] = std::move(q);
    return ok_status();
  }

  // MXFP4 and NVFP4; the scale of an NVFP4 tensor is stored as its reciprocal.
  Status read_fp4(const std::string& module, const ConfigGroup& group, CodedMatrix& q) {
    if (group.input) {
      return checkpoint_.unsupported(
          module, "4-bit floats with float activations are read; found input_activations");
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor bytes,
        checkpoint_.take(module + ".weight_packed", {DType::u8}, {-1, -1}));
    q.rows = bytes.shape[0];
    q.cols = 2 * bytes.shape[1];
    const int64_t size = group.weights.block.cols;
    if (q.rows < 1 || q.cols < 1 || group.weights.block.kind != Block::Kind::group ||
        q.cols % size != 0) {
      return checkpoint_.damaged(module + ".weight_packed", "rows of whole groups of ", size,
                                 " codes are required; found ", shape_text(bytes.shape));
    }
    q.codes = checkpoint_.spare_codes(q.rows * q.cols);
    const auto* pairs = reinterpret_cast<const uint8_t*>(bytes.bytes.data());
    uint8_t* out = q.codes.data();
    for (size_t i = 0; i < bytes.bytes.size(); ++i) {
      out[2 * i] = pairs[i] & 15;
      out[2 * i + 1] = pairs[i] >> 4;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor scales,
        checkpoint_.take(module + ".weight_scale",
                         {DType::u8, DType::f8_e8m0, DType::f8_e4m3},
                         {q.rows, q.cols / size}));
    const bool nvfp4 = scales.dtype == DType::f8_e4m3;
    CodedLevel level{q.rows, q.cols / size, {}, 0};
    for (const std::byte byte : scales.bytes.span()) {
      const auto bits = static_cast<uint8_t>(byte);
      const float value =
          nvfp4 ? float_from_e4m3(bits) : std::ldexp(1.0f, static_cast<int>(bits) - 127);
      if ((!nvfp4 && bits == 255) || !std::isfinite(value) || value < 0) {
        return checkpoint_.damaged(module + ".weight_scale",
                                   "scales must be positive numbers; found byte ",
                                   static_cast<int>(bits));
      }
      level.values.push_back(value);
    }
    q.scheme.code = Element::e2m1;
    q.scheme.scales = {{group.weights.block, nvfp4 ? Element::e4m3 : Element::e8m0, false}};
    q.scales = {std::move(level)};
    if (!nvfp4) return ok_status();
    NIBBLE_ASSIGN_OR_RETURN(const float reciprocal, scalar(module + ".weight_global_scale"));
    if (!(reciprocal > 0) || !std::isfinite(1.0f / reciprocal)) {
      return checkpoint_.damaged(module + ".weight_global_scale",
                                 "must be positive; found ", reciprocal);
    }
    q.scheme.scales.push_back({{Block::Kind::tensor, 1, 1}, Element::f32, false});
    q.scales.push_back({1, 1, {1.0f / reciprocal}, 0});
    return ok_status();
  }

  Status read_packed(const std::string& module, const QuantizationArgs& args,
                     CodedMatrix& q) {
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor sizes,
        checkpoint_.take(module + ".weight_shape", {DType::i64, DType::i32}, {2}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> shape, to_int32(sizes));
    q.rows = shape[0];
    q.cols = shape[1];
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor words,
        checkpoint_.take(module + ".weight_packed", {DType::i32}, {q.rows, -1}));
    const int64_t width = words.shape[1];
    const auto bits = static_cast<int>(args.bits);
    const int64_t dense = (q.cols * bits + 31) / 32;
    const int64_t a_word = 32 / bits, sparse = (q.cols + a_word - 1) / a_word;
    if (q.rows < 1 || q.cols < 1 || args.is_float ||
        (width != dense && width != sparse)) {
      return checkpoint_.damaged(module + ".weight_packed", "rows of ", q.cols,
                                 " codes of ", bits, " bits take ", dense,
                                 " words; found ", args.is_float ? "floats" : cat(width));
    }
    q.codes = checkpoint_.spare_codes(q.rows * q.cols);
    // A code as it is kept: signed without zero points, else as an unsigned number.
    const auto middle = static_cast<uint8_t>(args.symmetric ? 1 << (bits - 1) : 0);
    parallel_for(q.rows, [&](int64_t r) {
      uint8_t* row = q.codes.data() + r * q.cols;
      if (width == dense) {
        read_stream(words, r * width, 1, 0, bits, q.cols, middle, row);
        return;
      }
      for (int64_t c = 0; c < q.cols; c += a_word) {
        read_stream(words, r * width + c / a_word, 1, 0, bits,
                    std::min(a_word, q.cols - c), middle, row + c);
      }
    });
    return ok_status();
  }

  Status read_plain(const std::string& module, const QuantizationArgs& args,
                    CodedMatrix& q) {
    const DType dtype = args.is_float ? DType::f8_e4m3 : DType::i8;
    NIBBLE_ASSIGN_OR_RETURN(const Tensor codes,
                            checkpoint_.take(module + ".weight", {dtype}, {-1, -1}));
    q.rows = codes.shape[0];
    q.cols = codes.shape[1];
    const int64_t limit = int64_t{1} << (args.bits - 1);
    if (args.is_float || (args.bits == 8 && args.symmetric)) {  // any byte is a code
      q.codes = checkpoint_.spare_codes(q.rows * q.cols);
      const auto* bytes = reinterpret_cast<const uint8_t*>(codes.bytes.data());
      q.codes.assign(bytes, bytes + codes.bytes.size());
      return ok_status();
    }
    q.codes.reserve(codes.bytes.size());
    for (size_t i = 0; i < codes.bytes.size(); ++i) {
      const auto byte = static_cast<uint8_t>(codes.bytes.data()[i]);
      const auto code = static_cast<int8_t>(byte);
      if (code < -limit || code >= limit) {
        return checkpoint_.damaged(module + ".weight", "codes of ", args.bits,
                                   " bits are -", limit, " to ", limit - 1, "; found ",
                                   static_cast<int>(code), " at index ", i);
      }
      q.codes.push_back(static_cast<uint8_t>(args.symmetric ? code : code + limit));
    }
    return ok_status();
  }

  Status read_scales(const std::string& module, const QuantizationArgs& args, bool packed,
                     CodedMatrix& q) {
    const LevelShape shape = level_shape(args.block, q.rows, q.cols);
    const auto found = checkpoint_.tensors().find(module + ".weight_scale");
    const bool flat = found->second.shape.size() < 2;
    std::vector<int64_t> stored = {shape.rows, shape.cols};
    if (flat)
      stored = found->second.shape.empty()
                   ? std::vector<int64_t>{}
                   : std::vector<int64_t>{shape.rows * shape.cols};
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor scales,
        checkpoint_.take(module + ".weight_scale", {DType::f16, DType::bf16, DType::f32},
                         stored));
    const Element element = float_element(scales);
    q.scheme.code =
        args.is_float ? Element::e4m3 : integer_element(args.bits, args.symmetric);
    q.scheme.scales = {{args.block, element, false}};
    NIBBLE_ASSIGN_OR_RETURN(const CodedLevel level, float_level(scales, shape));
    q.scales = {level};
    if (args.symmetric || args.is_float) return ok_status();
    q.scheme.offset = OffsetKind::zero_point;
    q.scheme.offsets = {{args.block, q.scheme.code, false}};
    return read_zero_points(module, args, packed, shape, stored, q);
  }

  Status read_zero_points(const std::string& module, const QuantizationArgs& args,
                          bool packed, const LevelShape& shape,
                          const std::vector<int64_t>& stored, CodedMatrix& q) {
    CodedLevel zeros{shape.rows, shape.cols, {}, 0};
    const std::string name = module + ".weight_zero_point";
    const auto bits = static_cast<int>(args.bits);
    if (packed) {
      const int64_t words = (shape.rows * bits + 31) / 32;
      const int64_t a_word = 32 / bits, sparse = (shape.rows + a_word - 1) / a_word;
      NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor,
                              checkpoint_.take(name, {DType::i32}, {-1, shape.cols}));
      if (tensor.shape[0] != words && tensor.shape[0] != sparse) {
        return checkpoint_.damaged(name, shape.rows, " zero points of ", bits,
                                   " bits take ", words, " words; found ",
                                   tensor.shape[0]);
      }
      for (int64_t r = 0; r < shape.rows; ++r) {
        const int64_t at =
            tensor.shape[0] == words ? r * bits : r / a_word * 32 + r % a_word * bits;
        for (int64_t g = 0; g < shape.cols; ++g) {
          zeros.values.push_back(
              static_cast<float>(stream_bits(tensor, g, shape.cols, at, bits)));
        }
      }
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor,
                              checkpoint_.take(name, {DType::i8}, stored));
      for (const std::byte byte : tensor.bytes.span()) {
        zeros.values.push_back(
            static_cast<float>(static_cast<int8_t>(byte) + (1 << (bits - 1))));
      }
    }
    q.offsets = {std::move(zeros)};
    return ok_status();
  }

  // weight_g_idx: the group of each column. The columns are put in the order of groups.
  Status sort_columns(const std::string& module, const QuantizationArgs& args,
                      CodedMatrix& q, Decoded& decoded) {
    const std::string name = module + ".weight_g_idx";
    NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor,
                            checkpoint_.take(name, {DType::i32, DType::i64}, {q.cols}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> group_of, to_int32(tensor));
    std::vector<int32_t> order;
    if (args.block.kind != Block::Kind::group ||
        !columns_by_group(group_of, args.block.cols, order)) {
      return checkpoint_.unsupported(name, "groups of ", args.block.cols,
                                     " columns each are read; found others");
    }
    if (order.empty()) return ok_status();
    put_columns_in(order, q);
    decoded.permutations[module + ".weight"] = std::move(order);
    return ok_status();
  }

  Result<ActivationScheme> read_input(const std::string& module,
                                      const QuantizationArgs& args) {
    ActivationScheme input;
    input.dynamic = args.dynamic;
    // The range of a token is what the codes without the most negative one span.
    input.scheme.narrow = args.dynamic && !args.is_float;
    input.scheme.code = args.is_float ? Element::e4m3 : integer_element(args.bits, true);
    input.scheme.scales = {{args.block, Element::f32, false}};
    if (args.dynamic) {
      if (args.symmetric && args.strategy == "token") return input;
      return checkpoint_.unsupported(
          module, "dynamic inputs are symmetric with a scale a token; found ",
          args.symmetric ? "" : "asymmetric, ", "strategy ", args.strategy);
    }
    NIBBLE_ASSIGN_OR_RETURN(const float scale, scalar(module + ".input_scale"));
    input.scale = scale;
    if (!checkpoint_.has(module + ".input_zero_point")) return input;
    const Tensor& stored = checkpoint_.tensors().at(module + ".input_zero_point");
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor zero,
        checkpoint_.take(module + ".input_zero_point", {DType::i8}, stored.shape));
    if (zero.bytes.size() != 1) {
      return checkpoint_.damaged(module + ".input_zero_point",
                                 "must be one number; found ", shape_text(zero.shape));
    }
    input.zero_point = static_cast<int8_t>(zero.bytes.data()[0]);
    return input;
  }

  Result<float> scalar(const std::string& name) {
    const auto found = checkpoint_.tensors().find(name);
    const std::vector<int64_t> shape =
        found != checkpoint_.tensors().end() && found->second.shape.empty()
            ? std::vector<int64_t>{}
            : std::vector<int64_t>{1};
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor tensor,
        checkpoint_.take(name, {DType::f16, DType::bf16, DType::f32}, shape));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
    return values[0];
  }

  HfCheckpoint checkpoint_;
  std::vector<ConfigGroup> groups_;
};

}  // namespace

Result<Decoded> read_compressed_tensors(const std::filesystem::path& directory) {
  return read_compressed_tensors(directory, {});
}

Result<Decoded> read_compressed_tensors(const std::filesystem::path& directory,
                                        const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return CompressedTensors(std::move(checkpoint)).read(each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", (directory / "config.json").string(),
        ": quantization_config must have the fields of the format; ", failure.what());
  }
}

}  // namespace nibble
