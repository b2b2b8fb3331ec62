// Reads FP8 checkpoints of quant_method fp8: blocks with weight_scale_inv (or
// weight_scale, as some producers call it), and a scale a tensor or row where there is no
// block size. Shares nothing with the writer.
//
// Dynamic activations are the runtime's to quantize; here they stay float, and the ledger
// says so. A static input_scale is kept.

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "fp8";

class Fp8 {
 public:
  explicit Fp8(HfCheckpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  Result<Decoded> read(const EachWeight& each) {
    const Json& config = checkpoint_.quantization();
    const std::string fmt = config.value("fmt", "e4m3");
    if (fmt != "e4m3") {
      return checkpoint_.unsupported("config.json", "fmt e4m3 is read; found ", fmt);
    }
    NIBBLE_RETURN_IF_ERROR(read_block(config));
    Decoded decoded;
    decoded.config_json = checkpoint_.config_json();
    if (config.value("activation_scheme", "dynamic") == "dynamic") {
      decoded.ignored["activation_scheme"] =
          "activations that a runtime would quantize dynamically are floats here";
    }
    for (const char* suffix : {".weight_scale_inv", ".weight_scale"}) {
      NIBBLE_RETURN_IF_ERROR(
          checkpoint_.read_modules(checkpoint_.modules_with(suffix), each, decoded,
                                   [&](const std::string& module, Decoded& one) {
                                     return read_module(module, suffix, one);
                                   }));
    }
    decoded.floats = checkpoint_.rest();
    return decoded;
  }

 private:
  Status read_block(const Json& config) {
    const auto found = config.find("weight_block_size");
    if (found == config.end() || found->is_null()) return ok_status();
    const auto sizes = found->get<std::vector<int64_t>>();
    if (sizes.size() != 2 || sizes[0] < 1 || sizes[1] < 1 || sizes[0] > kMostBlock ||
        sizes[1] > kMostBlock) {
      return checkpoint_.damaged("config.json", "weight_block_size must be two positive "
                                                "sizes; found ",
                                 found->dump());
    }
    block_ = {Block::Kind::grid, sizes[0], sizes[1]};
    blocks_ = true;
    return ok_status();
  }

  Status read_module(const std::string& module, const std::string& suffix,
                     Decoded& decoded) {
    const std::string weight = module + ".weight";
    NIBBLE_ASSIGN_OR_RETURN(const Tensor codes,
                            checkpoint_.take(weight, {DType::f8_e4m3}, {-1, -1}));
    CodedMatrix q;
    q.rows = codes.shape[0];
    q.cols = codes.shape[1];
    if (q.rows < 1 || q.cols < 1)
      return checkpoint_.damaged(weight, "must hold codes; found ", shape_text(codes.shape));
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes.bytes.data());
    q.codes.assign(bytes, bytes + codes.bytes.size());
    const std::vector<int64_t> stored = checkpoint_.tensors().at(module + suffix).shape;
    int64_t count = 1;
    for (const int64_t size : stored) count *= size;
    Block block = block_;
    if (!blocks_) {
      block = count == 1 ? Block{Block::Kind::tensor, 1, 1} : Block{Block::Kind::row, 1, 1};
    }
    const LevelShape shape = level_shape(block, q.rows, q.cols);
    const std::vector<int64_t> required =
        !blocks_ && stored.size() < 2 ? (stored.empty() && shape.rows == 1
                                             ? std::vector<int64_t>{}
                                             : std::vector<int64_t>{shape.rows})
                                      : std::vector<int64_t>{shape.rows, shape.cols};
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor scales,
        checkpoint_.take(module + suffix, {DType::f32, DType::bf16, DType::f16}, required));
    q.scheme.code = Element::e4m3;
    q.scheme.scales = {{block, float_element(scales), false}};
    NIBBLE_ASSIGN_OR_RETURN(CodedLevel level, float_level(scales, shape));
    q.scales = {std::move(level)};
    decoded.coded[weight] = std::move(q);
    return read_input(module, decoded);
  }

  Status read_input(const std::string& module, Decoded& decoded) {
    const std::string name = module + ".input_scale";
    if (!checkpoint_.has(name)) return ok_status();
    const bool scalar = checkpoint_.tensors().at(name).shape.empty();
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor tensor,
        checkpoint_.take(name, {DType::f32, DType::bf16, DType::f16},
                         scalar ? std::vector<int64_t>{} : std::vector<int64_t>{1}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
    ActivationScheme input;
    input.scheme.code = Element::e4m3;
    input.scheme.scales = {{{Block::Kind::tensor, 1, 1}, Element::f32, false}};
    input.dynamic = false;
    input.scale = values[0];
    decoded.inputs[module + ".weight"] = input;
    return ok_status();
  }

  HfCheckpoint checkpoint_;
  Block block_;
  bool blocks_ = false;
};

}  // namespace

Result<Decoded> read_fp8(const std::filesystem::path& directory) {
  return read_fp8(directory, {});
}

Result<Decoded> read_fp8(const std::filesystem::path& directory, const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return Fp8(std::move(checkpoint)).read(each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", (directory / "config.json").string(),
        ": quantization_config must have the fields of the format; ", failure.what());
  }
}

}  // namespace nibble
