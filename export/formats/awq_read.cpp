// Reads AWQ checkpoints in the GEMM layout: 4 bits, output 8c + j in the nibble where[j]
// of word c, where = 0 4 1 5 2 6 3 7. Shares nothing with the writer.
#include <algorithm>
#include <cstring>

#include "export/formats/readers.h"
#include "export/huggingface/checkpoint.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "awq";
constexpr int kWhere[8] = {0, 4, 1, 5, 2, 6, 3, 7};
// Columns side by side share the cache lines of the codes; so many, that each page of
// codes is met seldom.
constexpr int64_t kColumns = 512;

// The 4 bits of output n in a row of words.
uint8_t nibble_of(const Tensor& words, int64_t row_begin, int64_t n) {
  return static_cast<uint8_t>(word_at(words, row_begin + n / 8) >> (4 * kWhere[n % 8]) &
                              15);
}

// The codes of 16 words in each of kColumns columns: words are read column by column and
// codes written row by row, each in whole cache lines.
constexpr int64_t kWords = 16;

void read_tile(const Tensor& words, int64_t word, int64_t column, CodedMatrix& q) {
  const int64_t width = q.rows / 8;
  const int64_t count = std::min(kWords, width - word);
  const int64_t columns = std::min(kColumns, q.cols - column);
  uint8_t rows[8 * kWords][kColumns];
  uint32_t lines[kWords][kColumns] = {};
  // Both sides jump from page to page: each line is asked for ahead of its use.
  uint8_t* to = q.codes.data() + 8 * word * q.cols + column;
  for (int64_t r = 0; r < 8 * count; ++r) {
    for (int64_t c = 0; c < columns; c += 64) __builtin_prefetch(to + r * q.cols + c, 1);
  }
  const auto place = [&](int64_t c) {
    return words.bytes.data() + 4 * ((column + c) * width + word);
  };
  for (int64_t c = 0; word + kWords < width && c < columns; ++c)
    __builtin_prefetch(place(c) + 4 * kWords);
  for (int64_t c = 0; c < columns; ++c) {
    uint32_t line[kWords];
    std::memcpy(line, place(c), static_cast<size_t>(count) * sizeof(uint32_t));
    for (int64_t w = 0; w < count; ++w) lines[w][c] = line[w];
  }
  uint8_t planes[4][kColumns];  // the bytes of the words
  for (int64_t w = 0; w < count; ++w) {
    for (int plane = 0; plane < 4; ++plane) {
      for (int64_t c = 0; c < kColumns; ++c)
        planes[plane][c] = static_cast<uint8_t>(lines[w][c] >> (8 * plane));
    }
    for (int64_t j = 0; j < 8; ++j) {
      const uint8_t* plane = planes[kWhere[j] / 2];
      const int shift = kWhere[j] % 2 * 4;
      uint8_t* row = rows[8 * w + j];
      for (int64_t c = 0; c < kColumns; ++c)
        row[c] = static_cast<uint8_t>(plane[c] >> shift & 15);
    }
  }
  for (int64_t r = 0; r < 8 * count; ++r)
    std::memcpy(to + r * q.cols, rows[r], static_cast<size_t>(columns));
}

Status read_module(HfCheckpoint& checkpoint, const std::string& module, int64_t group,
                   Decoded& decoded) {
  NIBBLE_ASSIGN_OR_RETURN(const Tensor words,
                          checkpoint.take(module + ".qweight", {DType::i32}, {-1, -1}));
  CodedMatrix q;
  q.cols = words.shape[0];
  const int64_t width = words.shape[1];
  q.rows = 8 * width;
  if (q.rows < 1 || q.cols < 1) {
    return checkpoint.damaged(module + ".qweight", "must hold codes; found ",
                              shape_text(words.shape));
  }
  const Block block =
      group < 0 ? Block{Block::Kind::row, 1, 1} : Block{Block::Kind::group, 1, group};
  const LevelShape shape = level_shape(block, q.rows, q.cols);
  NIBBLE_ASSIGN_OR_RETURN(
      const Tensor zeros,
      checkpoint.take(module + ".qzeros", {DType::i32}, {shape.cols, width}));
  NIBBLE_ASSIGN_OR_RETURN(
      const Tensor scales,
      checkpoint.take(module + ".scales", {DType::f16, DType::bf16, DType::f32},
                      {shape.cols, q.rows}));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(scales));
  q.scheme.code = Element::uint4;
  q.scheme.scales = {{block, float_element(scales), false}};
  q.scheme.offset = OffsetKind::zero_point;
  q.scheme.offsets = {{block, Element::uint4, false}};
  CodedLevel s{shape.rows, shape.cols, {}, 0}, z{shape.rows, shape.cols, {}, 0};
  q.codes = checkpoint.spare_codes(q.rows * q.cols);
  parallel_for((q.cols + kColumns - 1) / kColumns, [&](int64_t part) {
    for (int64_t w = 0; w < width; w += kWords) read_tile(words, w, part * kColumns, q);
  });
  for (int64_t n = 0; n < q.rows; ++n) {
    for (int64_t g = 0; g < shape.cols; ++g) {
      s.values.push_back(values[static_cast<size_t>(g * q.rows + n)]);
      z.values.push_back(nibble_of(zeros, g * width, n));
    }
  }
  q.scales = {std::move(s)};
  q.offsets = {std::move(z)};
  make_symmetric(q);
  decoded.coded[module + ".weight"] = std::move(q);
  return ok_status();
}

Result<Decoded> read_modules(HfCheckpoint checkpoint, const EachWeight& each) {
  const Json& config = checkpoint.quantization();
  const int64_t bits = config.value("bits", config.value("w_bit", int64_t{4}));
  const int64_t group =
      config.value("group_size", config.value("q_group_size", int64_t{128}));
  std::string version =
      config.value("version", config.value("format", std::string("gemm")));
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (bits != 4 || version != "gemm" || group == 0 || group < -1 || group > kMostBlock) {
    return checkpoint.unsupported(
        "config.json", "4 bits in the layout gemm are read; found ", bits, " bits in ",
        version, ", groups of ", group, "; convert it to gemm where it comes from");
  }
  Decoded decoded;
  decoded.config_json = checkpoint.config_json();
  NIBBLE_RETURN_IF_ERROR(
      checkpoint.read_modules(checkpoint.modules_with(".qweight"), each, decoded,
                              [&](const std::string& module, Decoded& one) {
                                return read_module(checkpoint, module, group, one);
                              }));
  decoded.floats = checkpoint.rest();
  return decoded;
}

}  // namespace

Result<Decoded> read_awq(const std::filesystem::path& directory) {
  return read_awq(directory, {});
}

Result<Decoded> read_awq(const std::filesystem::path& directory, const EachWeight& each) {
  NIBBLE_ASSIGN_OR_RETURN(HfCheckpoint checkpoint,
                          HfCheckpoint::open(directory, kFormat));
  try {
    return read_modules(std::move(checkpoint), each);
  } catch (const Json::exception& failure) {
    return error(
        StatusCode::data_loss, "[", kFormat, "] ", (directory / "config.json").string(),
        ": quantization_config must have the fields of the format; ", failure.what());
  }
}

}  // namespace nibble
