// Reads bitsandbytes checkpoints: NF4 and FP4, plain and double quantized, and LLM.int8.
// Shares nothing with the writer.
//
// A dynamic map that is bit for bit the one of element dyn8 stays codes; another one's
// scales are multiplied out to f32, which is the same numbers. A block whose scale is 0
// is a block of zeros, and gets the code of zero under a scale of 1.
#include <bit>

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "bitsandbytes";
constexpr const char* kState = ".quant_state.bitsandbytes__";

template <size_t N>
bool same_bits(const std::vector<float>& values, const std::array<float, N>& table) {
  bool same = values.size() == N;
  for (size_t i = 0; same && i < N; ++i) {
    same = std::bit_cast<uint32_t>(values[i]) == std::bit_cast<uint32_t>(table[i]);
  }
  return same;
}

class BitsAndBytes {
 public:
  explicit BitsAndBytes(HfCheckpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  Result<Decoded> read(const EachWeight& each) {
    const Json& config = checkpoint_.quantization();
    const auto loads = [&config](const std::string& name) {
      return config.value(name, config.value("_" + name, false));
    };
    Decoded decoded;
    decoded.config_json = checkpoint_.config_json();
    if (loads("load_in_8bit")) return read_int8(std::move(decoded), each);
    if (!loads("load_in_4bit")) {
      return checkpoint_.unsupported("config.json",
                                     "checkpoints that are load_in_4bit or load_in_8bit are "
                                     "read; found neither; give the float checkpoint");
    }
    for (const char* type : {"nf4", "fp4"}) {
      NIBBLE_RETURN_IF_ERROR(checkpoint_.read_modules(
          checkpoint_.modules_with(std::string(kState) + type), each, decoded,
          [&](const std::string& weight, Decoded& one) -> Status {
            NIBBLE_ASSIGN_OR_RETURN(one.coded[weight], read_weight(weight, type));
            return ok_status();
          }));
    }
    decoded.floats = checkpoint_.rest();
    return decoded;
  }

 private:
  Result<std::vector<float>> take_floats(const std::string& name, int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor,
                            checkpoint_.take(name, {DType::f32}, {count}));
    return to_float(tensor);
  }

  // LLM.int8: a row's scale is the 127th part of SCB.
  Result<Decoded> read_int8(Decoded decoded, const EachWeight& each) {
    decoded.ignored["llm_int8_threshold"] =
        "activations that LLM.int8 rounds at run time are floats here";
    NIBBLE_RETURN_IF_ERROR(
        checkpoint_.read_modules(checkpoint_.modules_with(".SCB"), each, decoded,
                                 [this](const std::string& module, Decoded& one) {
                                   return read_int8_weight(module, one);
                                 }));
    decoded.floats = checkpoint_.rest();
    return decoded;
  }

  Status read_int8_weight(const std::string& module, Decoded& decoded) {
    const std::string weight = module + ".weight";
    NIBBLE_ASSIGN_OR_RETURN(const Tensor codes,
                            checkpoint_.take(weight, {DType::i8}, {-1, -1}));
    CodedMatrix q;
    q.rows = codes.shape[0];
    q.cols = codes.shape[1];
    if (q.rows < 1 || q.cols < 1) {
      return checkpoint_.damaged(weight, "must hold codes; found ",
                                 shape_text(codes.shape));
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes.bytes.data());
    q.codes.assign(bytes, bytes + codes.bytes.size());
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> scales,
                            take_floats(module + ".SCB", q.rows));
    for (int64_t r = 0; r < q.rows; ++r) {
      float& scale = scales[static_cast<size_t>(r)];
      scale /= 127;
      if (scale != 0) continue;
      // A row of zeros.
      scale = 1;
      std::fill_n(q.codes.begin() + r * q.cols, q.cols, uint8_t{0});
    }
    const std::string format = module + ".weight_format";
    if (checkpoint_.has(format)) {
      NIBBLE_ASSIGN_OR_RETURN(const Tensor layout,
                              checkpoint_.take(format, {DType::u8}, {}));
      if (layout.bytes.data()[0] != std::byte{0}) {
        return checkpoint_.unsupported(format, "row-major weights (0) are read; found ",
                                       static_cast<int>(layout.bytes.data()[0]));
      }
    }
    q.scheme.code = Element::int8;
    q.scheme.scales = {{{Block::Kind::row, 1, 1}, Element::f32, false}};
    q.scales = {{q.rows, 1, std::move(scales), 0}};
    decoded.reciprocal_scales.insert(weight);
    decoded.coded[weight] = std::move(q);
    return ok_status();
  }

  Result<CodedMatrix> read_weight(const std::string& weight, const std::string& type) {
    const std::string name = weight + kState + type;
    NIBBLE_ASSIGN_OR_RETURN(const Tensor text, checkpoint_.take(name, {DType::u8}, {-1}));
    const Json state = parse_json(text.bytes.text());
    if (!state.is_object()) {
      return checkpoint_.damaged(name, "must be JSON; found something else");
    }
    const auto shape = state.at("shape").get<std::vector<int64_t>>();
    const int64_t block = state.at("blocksize").get<int64_t>();
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || block < 1 ||
        block > kMostBlock || shape[0] > (int64_t{1} << 40) / shape[1]) {
      return checkpoint_.damaged(name, "needs a matrix's shape and a block size; found ",
                                 state.dump());
    }
    CodedMatrix q;
    q.rows = shape[0];
    q.cols = shape[1];
    q.scheme.code = type == "nf4" ? Element::nf4 : Element::fp4;
    const int64_t count = q.rows * q.cols, blocks = (count + block - 1) / block;
    NIBBLE_ASSIGN_OR_RETURN(const Tensor bytes,
                            checkpoint_.take(weight, {DType::u8}, {(count + 1) / 2, 1}));
    q.codes = checkpoint_.spare_codes(count);
    const auto* pairs = reinterpret_cast<const uint8_t*>(bytes.bytes.data());
    uint8_t* out = q.codes.data();
    for (int64_t i = 0; i < count / 2; ++i) {
      out[2 * i] = pairs[i] >> 4;
      out[2 * i + 1] = pairs[i] & 15;
    }
    if (count % 2 == 1)
      q.codes.back() = static_cast<uint8_t>(bytes.bytes.data()[count / 2]) >> 4;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> table,
                            take_floats(weight + ".quant_map", 16));
    if (!same_bits(table, type == "nf4" ? nf4_table() : fp4_table())) {
      return checkpoint_.unsupported(weight + ".quant_map", "the table of ", type,
                                     " is read; found another");
    }
    NIBBLE_RETURN_IF_ERROR(state.contains("nested_offset")
                               ? read_nested(weight, state, block, blocks, q)
                               : read_absmax(weight, block, blocks, q));
    return q;
  }

  Status read_absmax(const std::string& weight, int64_t block, int64_t blocks,
                     CodedMatrix& q) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> absmax,
                            take_floats(weight + ".absmax", blocks));
    set_scales(block, std::move(absmax), q);
    return ok_status();
  }

  static void set_scales(int64_t block, std::vector<float> absmax, CodedMatrix& q) {
    const uint8_t zero = q.scheme.code == Element::nf4 ? 7 : 0;
    for (size_t i = 0; i < absmax.size(); ++i) {
      if (absmax[i] != 0) continue;
      absmax[i] = 1;
      const size_t begin = i * static_cast<size_t>(block);
      const size_t end = std::min(q.codes.size(), begin + static_cast<size_t>(block));
      std::fill(q.codes.begin() + static_cast<int64_t>(begin),
                q.codes.begin() + static_cast<int64_t>(end), zero);
    }
    q.scheme.scales = {{{Block::Kind::flat, 1, block}, Element::f32, false}};
    const auto blocks = static_cast<int64_t>(absmax.size());
    q.scales = {{1, blocks, std::move(absmax), 0}};
  }

  Status read_nested(const std::string& weight, const Json& state, int64_t block,
                     int64_t blocks, CodedMatrix& q) {
    const int64_t nested = state.at("nested_blocksize").get<int64_t>();
    const auto offset = static_cast<float>(state.at("nested_offset").get<double>());
    if (nested < 1 || nested > kMostBlock) {
      return checkpoint_.damaged(
          weight, "nested_blocksize must be positive and sane; found ", nested);
    }
    const int64_t outer_blocks = (blocks + nested - 1) / nested;
    NIBBLE_ASSIGN_OR_RETURN(const Tensor codes,
                            checkpoint_.take(weight + ".absmax", {DType::u8}, {blocks}));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> outer,
                            take_floats(weight + ".nested_absmax", outer_blocks));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> map,
                            take_floats(weight + ".nested_quant_map", 256));
    std::vector<float> inner;
    bool positive = true;
    for (int64_t i = 0; i < blocks; ++i) {
      inner.push_back(map[static_cast<uint8_t>(codes.bytes.data()[i])]);
      positive = positive && outer[static_cast<size_t>(i / nested)] > 0;
    }
    if (!same_bits(map, dyn8_table()) || !positive) {
      for (int64_t i = 0; i < blocks; ++i) {
        float& value = inner[static_cast<size_t>(i)];
        value = value * outer[static_cast<size_t>(i / nested)] + offset;
      }
      set_scales(block, std::move(inner), q);
      return ok_status();
    }
    q.scheme.scales = {{{Block::Kind::flat, 1, block}, Element::dyn8, true},
                       {{Block::Kind::flat, 1, block * nested}, Element::f32, false}};
    q.scales = {{1, blocks, std::move(inner), offset},
                {1, outer_blocks, std::move(outer), 0}};
    return ok_status();
  }

  HfCheckpoint checkpoint_;
};

}  // namespace

Result<Decoded> read_bitsandbytes(const std::filesystem::path& directory) {
  return read_bitsandbytes(directory, {});
}

Result<Decoded> read_bitsandbytes(const std::filesystem::path& directory,
                                  const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return BitsAndBytes(std::move(checkpoint)).read(each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", directory.string(),
        ": quantization_config and quant_state must have the fields of the format; ",
        failure.what());
  }
}

}  // namespace nibble
