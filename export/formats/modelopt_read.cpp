// Reads ModelOpt checkpoints (quant_method modelopt) of FP8 and NVFP4, the latter with
// and without activations of 4 bits. Shares nothing with the writer.
//
// What a module is its tensors say: U8 weights are NVFP4, F8_E4M3 weights FP8, with a
// scale a tensor or a row. The scales of 4-bit activations are left out, and the ledger
// says so.
#include <cmath>

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "export/huggingface/static_caches.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "modelopt";
constexpr int64_t kGroup = 16;  // of NVFP4
constexpr const char* kNoScheme =
    "the scale of a KV cache that the config does not call FP8 with a scale a layer";
constexpr std::string_view kKeyScale = ".k_proj.k_scale", kValueScale = ".v_proj.v_scale";

class ModelOpt {
 public:
  explicit ModelOpt(HfCheckpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  Result<Decoded> read(const EachWeight& each) {
    const std::string algorithm = checkpoint_.quantization().value("quant_algo", "");
    if (algorithm != "FP8" && algorithm != "NVFP4" && algorithm != "W4A16_NVFP4" &&
        algorithm != "MIXED_PRECISION") {
      return checkpoint_.unsupported(
          "config.json",
          "FP8, NVFP4, W4A16_NVFP4 and MIXED_PRECISION of these are read; "
          "found quant_algo `",
          algorithm, "`");
    }
    Decoded decoded;
    decoded.config_json = checkpoint_.config_json();
    NIBBLE_RETURN_IF_ERROR(
        checkpoint_.read_modules(checkpoint_.modules_with(".weight_scale"), each, decoded,
                                 [this](const std::string& module, Decoded& one) {
                                   return read_module(module, one);
                                 }));
    const bool fp8_cache = has_fp8_cache();
    const std::map<std::string, Tensor> rest = checkpoint_.rest();
    const auto find = [&](const std::string& name) {
      const auto at = rest.find(name);
      return at == rest.end() ? nullptr : &at->second;
    };
    for (const auto& [name, tensor] : rest) {
      const bool key = name.ends_with(kKeyScale), value = name.ends_with(kValueScale);
      if (key || value) {
        const std::string module = name.substr(0, name.size() - kKeyScale.size());
        const std::string reason =
            fp8_cache
                ? add_static_cache(module, Element::e4m3, find(cat(module, kKeyScale)),
                                   find(cat(module, kValueScale)), decoded.caches)
                : kNoScheme;
        if (!reason.empty()) decoded.ignored[name] = reason;
      } else if (name.ends_with(".k_scale") || name.ends_with(".v_scale")) {
        decoded.ignored[name] = kNoScheme;
      } else if (name.ends_with(".pre_quant_scale")) {
        return checkpoint_.unsupported(
            name,
            "weights that need nothing before them are read; found factors of "
            "their input's channels");
      } else {
        decoded.floats[name] = tensor;
      }
    }
    return decoded;
  }

 private:
  bool has_fp8_cache() const {
    const Json& config = checkpoint_.quantization();
    const auto scheme = config.find("kv_cache_scheme");
    return scheme != config.end() && scheme->is_object() &&
           scheme->value("type", "") == "float" && scheme->value("num_bits", 0) == 8;
  }

  Status read_module(const std::string& module, Decoded& decoded) {
    const std::string weight = module + ".weight";
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor stored,
        checkpoint_.take(weight, {DType::u8, DType::f8_e4m3}, {-1, -1}));
    CodedMatrix q;
    q.rows = stored.shape[0];
    q.cols = stored.shape[1];
    if (q.rows < 1 || q.cols < 1) {
      return checkpoint_.damaged(weight, "must hold codes; found ",
                                 shape_text(stored.shape));
    }
    NIBBLE_RETURN_IF_ERROR(stored.dtype == DType::u8
                               ? read_nvfp4(module, stored, q, decoded)
                               : read_fp8(module, stored, q, decoded));
    decoded.coded[weight] = std::move(q);
    return ok_status();
  }

  Status read_fp8(const std::string& module, const Tensor& stored, CodedMatrix& q,
                  Decoded& decoded) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(stored.bytes.data());
    q.codes.assign(bytes, bytes + stored.bytes.size());
    const std::string name = module + ".weight_scale";
    const std::vector<int64_t> shape = checkpoint_.tensors().at(name).shape;
    const bool rows = shape.size() == 1 && shape[0] == q.rows && q.rows > 1;
    const Block block{rows ? Block::Kind::row : Block::Kind::tensor, 1, 1};
    const std::vector<int64_t> required =
        shape.empty() ? shape : std::vector<int64_t>{rows ? q.rows : 1};
    NIBBLE_ASSIGN_OR_RETURN(const Tensor scales,
                            checkpoint_.take(name, {DType::f32}, required));
    q.scheme.code = Element::e4m3;
    q.scheme.scales = {{block, Element::f32, false}};
    NIBBLE_ASSIGN_OR_RETURN(CodedLevel level,
                            float_level(scales, level_shape(block, q.rows, q.cols)));
    q.scales.push_back(std::move(level));
    if (!checkpoint_.has(module + ".input_scale")) return ok_status();
    ActivationScheme input;
    input.scheme.code = Element::e4m3;
    input.scheme.scales = {{{Block::Kind::tensor, 1, 1}, Element::f32, false}};
    input.dynamic = false;
    NIBBLE_ASSIGN_OR_RETURN(input.scale, scalar(module + ".input_scale"));
    decoded.inputs[module + ".weight"] = input;
    return ok_status();
  }

  Status read_nvfp4(const std::string& module, const Tensor& stored, CodedMatrix& q,
                    Decoded& decoded) {
    q.cols *= 2;
    if (q.cols % kGroup != 0) {
      return checkpoint_.damaged(module + ".weight", "rows of whole groups of ", kGroup,
                                 " codes are required; found ", q.cols, " codes");
    }
    q.codes.resize(static_cast<size_t>(q.rows * q.cols));
    const auto* pairs = reinterpret_cast<const uint8_t*>(stored.bytes.data());
    uint8_t* codes = q.codes.data();
    for (size_t i = 0; i < stored.bytes.size(); ++i) {
      codes[2 * i] = pairs[i] & 15;
      codes[2 * i + 1] = pairs[i] >> 4;
    }
    NIBBLE_ASSIGN_OR_RETURN(const Tensor scales,
                            checkpoint_.take(module + ".weight_scale", {DType::f8_e4m3},
                                             {q.rows, q.cols / kGroup}));
    CodedLevel level{q.rows, q.cols / kGroup, {}, 0};
    for (const std::byte byte : scales.bytes.span()) {
      const float value = float_from_e4m3(static_cast<uint8_t>(byte));
      if (!(value >= 0)) {  // NaN too
        return checkpoint_.damaged(module + ".weight_scale",
                                   "scales must be positive numbers; found byte ",
                                   static_cast<int>(byte));
      }
      level.values.push_back(value);
    }
    NIBBLE_ASSIGN_OR_RETURN(const float outer, scalar(module + ".weight_scale_2"));
    q.scheme.code = Element::e2m1;
    q.scheme.scales = {{{Block::Kind::group, 1, kGroup}, Element::e4m3, false},
                       {{Block::Kind::tensor, 1, 1}, Element::f32, false}};
    q.scales.push_back(std::move(level));
    q.scales.push_back({1, 1, {outer}, 0});
    if (!checkpoint_.has(module + ".input_scale")) return ok_status();
    NIBBLE_RETURN_IF_ERROR(scalar(module + ".input_scale").status());
    decoded.ignored[module + ".input_scale"] =
        "activations that a runtime would round to 4 bits are floats here";
    return ok_status();
  }

  // A multiplier, of shape [] or [1].
  Result<float> scalar(const std::string& name) {
    const auto found = checkpoint_.tensors().find(name);
    const bool one =
        found != checkpoint_.tensors().end() && found->second.shape.size() == 1;
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor tensor,
        checkpoint_.take(name, {DType::f32},
                         one ? std::vector<int64_t>{1} : std::vector<int64_t>{}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
    if (!(values[0] > 0) || !std::isfinite(values[0]))
      return checkpoint_.damaged(name, "must be positive; found ", values[0]);
    return values[0];
  }

  HfCheckpoint checkpoint_;
};

}  // namespace

Result<Decoded> read_modelopt(const std::filesystem::path& directory) {
  return read_modelopt(directory, {});
}

Result<Decoded> read_modelopt(const std::filesystem::path& directory,
                              const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return ModelOpt(std::move(checkpoint)).read(each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", (directory / "config.json").string(),
        ": quantization_config must have the fields of the format; ", failure.what());
  }
}

}  // namespace nibble
