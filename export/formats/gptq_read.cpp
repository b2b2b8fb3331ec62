// Reads GPTQ checkpoints: version 1 (zero points stored less 1), version 2 and
// GPTQModel's planar layout, with act-order's g_idx and per-module overrides. Shares
// nothing with the writer.
//
// Version 1 of 2, 4 and 8 bits: GPTQModel subtracts 1 from every field of a word as one
// number, so a zero point of 0 borrows from its neighbour; adding the same constant to
// the word undoes that. Of 3 bits each field is taken modulo 8.
#include <algorithm>
#include <cstring>

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/regex.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "gptq";

struct Setting {
  int64_t bits = 4, group = -1;
};

// Rows side by side share the cache lines and the pages of the words, which lie across
// them.
constexpr int64_t kRows = 256;

enum class Layout : uint8_t { version1, version2, planar };

// Code i of the 32 whose bits lie in planes: 3 bits are a plane of 2 and one of 1, 5 are
// 4 and 1, 6 are 4 and 2, 7 are 4, 2 and 1; a plane of w bits is w words.
uint32_t planar_code(const Tensor& words, int64_t first, int64_t stride, int64_t i,
                     int bits) {
  const int64_t block = i / 32 * bits;
  uint32_t code = 0;
  int64_t plane = 0;
  int low = 0;
  for (int width = 8; width >= 1; width /= 2) {
    if ((bits & width) == 0) continue;
    const int64_t bit = (block + plane) * 32 + i % 32 * width;
    code |= stream_bits(words, first, stride, bit, width) << low;
    low += width;
    plane += width;
  }
  return code;
}

// Codes of 4 bits less `minus`, rows [row, end), kRows at most: lines of words, which lie
// across the rows, are spread to all of them at once. Both sides jump from page to page,
// so each line is asked for ahead of its use.
void read_tiles(const Tensor& words, int64_t row, int64_t end, uint8_t minus,
                CodedMatrix& q) {
  constexpr int64_t kColumns = 64, kLine = 16;
  uint32_t tile[kColumns / 8][kRows];
  const int64_t rows = end - row;
  const auto* from = words.bytes.data();
  const auto place = [&](int64_t line) { return from + 4 * (line * q.rows + row); };
  for (int64_t column = 0; column < q.cols; column += kColumns) {
    const int64_t lines = std::min(kColumns, q.cols - column) / 8;
    const int64_t first = column / 8;
    for (int64_t line = first + lines; line < std::min(first + 2 * lines, q.cols / 8);
         ++line) {
      for (int64_t n = 0; n < rows; n += kLine) __builtin_prefetch(place(line) + 4 * n);
    }
    uint8_t* to = q.codes.data() + row * q.cols + column;
    for (int64_t n = 0; n < rows; ++n) __builtin_prefetch(to + n * q.cols, 1);
    for (int64_t i = 0; i < lines; ++i)
      std::memcpy(tile[i], place(first + i),
                  static_cast<size_t>(rows) * sizeof(uint32_t));
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t i = 0; i < lines; ++i)
        put_bytes(spread_4_bits(tile[i][n], minus), to + n * q.cols + 8 * i);
    }
  }
}

class Gptq {
 public:
  explicit Gptq(HfCheckpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  Result<Decoded> read(const EachWeight& each) {
    NIBBLE_RETURN_IF_ERROR(read_config());
    Decoded decoded;
    decoded.config_json = checkpoint_.config_json();
    decoded.keeps_permutations = true;
    NIBBLE_RETURN_IF_ERROR(checkpoint_.read_modules(
        checkpoint_.modules_with(".qweight"), each, decoded,
        [this](const std::string& module, Decoded& one) -> Status {
          NIBBLE_ASSIGN_OR_RETURN(const Setting setting, setting_of(module));
          one.keeps_permutations = true;
          return read_module(module, setting, one);
        }));
    decoded.floats = checkpoint_.rest();
    return decoded;
  }

 private:
  Status read_config() {
    const Json& config = checkpoint_.quantization();
    NIBBLE_ASSIGN_OR_RETURN(usual_, read_setting(config, Setting{}));
    const std::string format =
        config.value("checkpoint_format", config.value("format", std::string("gptq")));
    if (format == "gptq_v2") {
      layout_ = Layout::version2;
    } else if (format == "gptq_p") {
      layout_ = Layout::planar;
    } else if (format != "gptq") {
      return checkpoint_.unsupported(
          "config.json", "the formats gptq, gptq_v2 and gptq_p are read; found ", format,
          ", which a kernel has shuffled; give the "
          "checkpoint before that");
    }
    const auto dynamic = config.find("dynamic");
    if (dynamic == config.end() || !dynamic->is_object()) return ok_status();
    for (const auto& [pattern, changes] : dynamic->items()) {
      if (pattern.rfind("-:", 0) == 0) continue;  // such a module has no codes
      const std::string text = pattern.rfind("+:", 0) == 0 ? pattern.substr(2) : pattern;
      NIBBLE_ASSIGN_OR_RETURN(Regex regex, Regex::compile(text, "dynamic"));
      NIBBLE_ASSIGN_OR_RETURN(const Setting setting, read_setting(changes, usual_));
      overrides_.emplace_back(std::move(regex), setting);
    }
    return ok_status();
  }

  Result<Setting> read_setting(const Json& json, Setting setting) const {
    setting.bits = json.value("bits", json.value("w_bit", setting.bits));
    setting.group = json.value("group_size", json.value("q_group_size", setting.group));
    if (setting.bits < 2 || setting.bits > 8 || setting.group == 0 ||
        setting.group < -1 || setting.group > kMostBlock) {
      return checkpoint_.unsupported(
          "config.json", "2 to 8 bits and groups of -1 or more than 0 are read; found ",
          setting.bits, " bits, groups of ", setting.group);
    }
    return setting;
  }

  Result<Setting> setting_of(const std::string& module) const {
    for (const auto& [regex, setting] : overrides_) {
      std::vector<Span> matches;
      NIBBLE_RETURN_IF_ERROR(regex.find_all(module, matches));
      if (!matches.empty() && matches[0].begin == 0) return setting;
    }
    return usual_;
  }

  Status read_module(const std::string& module, const Setting& setting,
                     Decoded& decoded) {
    const auto bits = static_cast<int>(setting.bits);
    NIBBLE_ASSIGN_OR_RETURN(const Tensor words, checkpoint_.take(module + ".qweight",
                                                                 {DType::i32}, {-1, -1}));
    CodedMatrix q;
    q.rows = words.shape[1];
    q.cols = words.shape[0] * 32 / bits;
    const bool planes = layout_ == Layout::planar;
    const int64_t multiple = planes || bits == 3 || bits > 4 ? 32 : 32 / bits;
    if (q.rows < 1 || q.cols < 1 || words.shape[0] * 32 != q.cols * bits ||
        (planes && q.cols % multiple != 0)) {
      return checkpoint_.damaged(module + ".qweight", "words of whole codes of ", bits,
                                 " bits are required; found ", shape_text(words.shape));
    }
    const Block block = setting.group < 0 ? Block{Block::Kind::row, 1, 1}
                                          : Block{Block::Kind::group, 1, setting.group};
    const LevelShape shape = level_shape(block, q.rows, q.cols);
    NIBBLE_ASSIGN_OR_RETURN(
        const Tensor scales,
        checkpoint_.take(module + ".scales", {DType::f16, DType::bf16, DType::f32},
                         {shape.cols, q.rows}));
    q.scheme.code = integer_element(bits, false);
    q.scheme.scales = {{block, float_element(scales), false}};
    q.scheme.offset = OffsetKind::zero_point;
    q.scheme.offsets = {{block, q.scheme.code, false}};
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(scales));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> zeros,
                            read_zero_points(module, bits, shape.cols, q.rows));
    // Stored with the groups outside, kept with the rows outside.
    CodedLevel s{shape.rows, shape.cols, {}, 0}, z{shape.rows, shape.cols, {}, 0};
    for (int64_t n = 0; n < q.rows; ++n) {
      for (int64_t g = 0; g < shape.cols; ++g) {
        s.values.push_back(values[static_cast<size_t>(g * q.rows + n)]);
        z.values.push_back(zeros[static_cast<size_t>(g * q.rows + n)]);
      }
    }
    q.scales = {std::move(s)};
    q.offsets = {std::move(z)};
    // Codes whose zero points are all 8 are kept signed: made so as they are spread.
    const bool by_tiles = bits == 4 && !planes;
    const bool is_signed = by_tiles && std::all_of(zeros.begin(), zeros.end(),
                                                   [](float zero) { return zero == 8; });
    const uint8_t minus = is_signed ? 8 : 0;
    q.codes = checkpoint_.spare_codes(q.rows * q.cols);
    parallel_for((q.rows + kRows - 1) / kRows, [&](int64_t part) {
      if (by_tiles) {
        read_tiles(words, part * kRows, std::min(q.rows, (part + 1) * kRows), minus, q);
        return;
      }
      for (int64_t n = part * kRows; n < std::min(q.rows, (part + 1) * kRows); ++n) {
        uint8_t* row = q.codes.data() + n * q.cols;
        if (!planes) read_stream(words, n, q.rows, 0, bits, q.cols, 0, row);
        for (int64_t k = 0; planes && k < q.cols; ++k)
          row[k] = static_cast<uint8_t>(planar_code(words, n, q.rows, k, bits));
      }
    });
    NIBBLE_RETURN_IF_ERROR(sort_columns(module, setting, q, decoded));
    if (is_signed) {
      q.scheme.code = integer_element(bits, true);
      q.scheme.offset = OffsetKind::none;
      q.scheme.offsets.clear();
      q.offsets.clear();
    } else {
      make_symmetric(q);
    }
    decoded.coded[module + ".weight"] = std::move(q);
    return ok_status();
  }

  // [groups * rows], groups outside.
  Result<std::vector<float>> read_zero_points(const std::string& module, int bits,
                                              int64_t groups, int64_t rows) {
    const int64_t width = (rows * bits + 31) / 32;
    NIBBLE_ASSIGN_OR_RETURN(
        Tensor words,
        checkpoint_.take(module + ".qzeros", {DType::i32}, {groups, width}));
    const bool by_word = layout_ == Layout::version1 && bits != 3;
    if (by_word) {
      uint32_t ones = 0;  // a 1 in each field
      for (int bit = 0; bit + bits <= 32; bit += bits) ones |= uint32_t{1} << bit;
      std::vector<int32_t> whole;
      for (int64_t i = 0; i < words.numel(); ++i) {
        whole.push_back(static_cast<int32_t>(word_at(words, i) + ones));
      }
      words = make_tensor(words.shape, std::span<const int32_t>(whole));
    }
    std::vector<float> zeros;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t n = 0; n < rows; ++n) {
        const uint32_t stored = layout_ == Layout::planar
                                    ? planar_code(words, g * width, 1, n, bits)
                                    : stream_bits(words, g * width, 1, n * bits, bits);
        const bool by_field = layout_ == Layout::version1 && !by_word;
        zeros.push_back(static_cast<float>(by_field ? (stored + 1) & 7 : stored));
      }
    }
    return zeros;
  }

  Status sort_columns(const std::string& module, const Setting& setting, CodedMatrix& q,
                      Decoded& decoded) {
    const std::string name = module + ".g_idx";
    if (!checkpoint_.has(name)) return ok_status();
    NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor,
                            checkpoint_.take(name, {DType::i32, DType::i64}, {q.cols}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> group_of, to_int32(tensor));
    const int64_t group = setting.group < 0 ? q.cols : setting.group;
    std::vector<int32_t> order;
    if (!columns_by_group(group_of, group, order)) {
      return checkpoint_.unsupported(name, "groups of ", group,
                                     " columns each are read; found others");
    }
    if (order.empty()) return ok_status();
    put_columns_in(order, q);
    decoded.permutations[module + ".weight"] = std::move(order);
    return ok_status();
  }

  HfCheckpoint checkpoint_;
  Setting usual_;
  Layout layout_ = Layout::version1;
  std::vector<std::pair<Regex, Setting>> overrides_;
};

}  // namespace

Result<Decoded> read_gptq(const std::filesystem::path& directory) {
  return read_gptq(directory, {});
}

Result<Decoded> read_gptq(const std::filesystem::path& directory,
                          const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return Gptq(std::move(checkpoint)).read(each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", (directory / "config.json").string(),
        ": quantization_config must have the fields of the format; ", failure.what());
  }
}

}  // namespace nibble
