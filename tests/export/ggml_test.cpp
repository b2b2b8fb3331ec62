// ggml's block types against ggml's own bytes and floats (the golden vectors), and the
// packer against the reader for any codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "export/ggml/ggml_type.h"
#include "export/ggml/pack.h"
#include "export/ggml/quantize.h"
#include "export/ggml/unpack.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using testing::HasSubstr;

const std::filesystem::path kGolden = std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." /
                                      "shared" / "data" / "golden" / "ggml";

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
std::vector<float> floats(const std::filesystem::path& path) {
  const std::string bytes = slurp(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}
std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::string packed(const GgmlType& type, const CodedMatrix& q) {
  std::string out(static_cast<size_t>(q.rows * type.row_bytes(q.cols)), '\0');
  const Status status = pack_ggml(type, q, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

std::vector<const GgmlType*> block_types() {
  std::vector<const GgmlType*> types;
  for (const GgmlType& type : all_ggml_types()) {
    if (!type.is_float()) types.push_back(&type);
  }
  return types;
}
std::string name_of(const testing::TestParamInfo<const GgmlType*>& info) {
  return info.param->name;
}

// --- the reference's vectors

class GgmlGolden : public testing::TestWithParam<const GgmlType*> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kGolden)) GTEST_SKIP() << "needs the shared data";
  }
  // "" where there is no such vector.
  std::string bytes(const char* kind) const {
    const auto path = kGolden / cat(kind, "_", GetParam()->id, ".bin");
    return std::filesystem::exists(path) ? slurp(path) : "";
  }
};

TEST_P(GgmlGolden, DecodesToTheSameFloats) {
  const GgmlType& type = *GetParam();
  const std::string file = bytes("q");
  const std::vector<float> expected = floats(kGolden / cat("y_", type.id, ".f32"));
  ASSERT_EQ(expected.size(), 1024u);
  const auto q = unpack_ggml(type, 4, 256, bytes_of(file));
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::vector<float> found(1024);
  ASSERT_TRUE(dequantize(*q, MatrixView<float>(found.data(), 4, 256)).ok());
  for (size_t i = 0; i < found.size(); ++i)  // the sign of a zero may differ
    ASSERT_EQ(found[i], expected[i]) << type.name << " at " << i;
  EXPECT_EQ(packed(type, *q), file);
}

TEST_P(GgmlGolden, QuantizesToTheSameBytes) {
  const GgmlType& type = *GetParam();
  const std::vector<float> x = floats(kGolden / "x.f32");
  const auto q = quantize_ggml(type, MatrixView<const float>(x.data(), 4, 256));
  ASSERT_TRUE(q.ok()) << q.status().message();
  // qc_: ggml_quantize_chunk's, which for IQ4_NL searches where q_ does not.
  const std::string searched = bytes("qc");
  EXPECT_EQ(packed(type, *q), searched.empty() ? bytes("q") : searched);
}

TEST_P(GgmlGolden, QuantizesWithImportanceToTheSameBytes) {
  const GgmlType& type = *GetParam();
  const std::vector<float> x = floats(kGolden / "x.f32");
  const std::vector<float> importance = floats(kGolden / "imatrix.f32");
  ASSERT_EQ(importance.size(), 512u);
  const MatrixView<const float> matrix(x.data(), 2, 512);
  const auto q = quantize_ggml(type, matrix, importance);
  ASSERT_TRUE(q.ok()) << q.status().message();
  const std::string expected = bytes("qi");
  // A type without a vector takes no notice of the importance.
  const auto plain = quantize_ggml(type, matrix);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(packed(type, *q), expected.empty() ? packed(type, *plain) : expected);
}

INSTANTIATE_TEST_SUITE_P(Types, GgmlGolden, testing::ValuesIn(block_types()), name_of);

// --- any codes

class GgmlBlocks : public testing::TestWithParam<const GgmlType*> {};

float random_value(const ScaleLevel& level, bool innermost, SplitMix64& random) {
  const ElementInfo& info = element_info(level.element);
  if (info.kind == ElementKind::integer) {
    const int count = static_cast<int>(info.highest - info.lowest) + 1;
    return info.lowest + static_cast<float>(random.below(static_cast<uint64_t>(count)));
  }
  if (level.element == Element::e8m0)
    return value_of(Element::e8m0, static_cast<uint8_t>(100 + random.below(40)));
  const float sign = innermost && random.below(2) ? -1.0f : 1.0f;
  return round_to_element(level.element, sign * static_cast<float>(random.uniform()));
}

CodedMatrix random_codes(const GgmlType& type, int64_t rows, int64_t cols,
                         SplitMix64& random) {
  CodedMatrix q;
  q.scheme = type.scheme;
  q.rows = rows;
  q.cols = cols;
  std::vector<uint8_t> codes;  // those that stand for a number
  for (int code = 0; code < 256; ++code) {
    const uint8_t byte = static_cast<uint8_t>(code);
    if (!std::isnan(value_of(q.scheme.code, byte))) codes.push_back(byte);
  }
  for (int64_t i = 0; i < rows * cols; ++i)
    q.codes.push_back(codes[random.below(codes.size())]);
  const auto fill = [&](const std::vector<ScaleLevel>& levels,
                        std::vector<CodedLevel>& out, bool negative) {
    for (size_t k = 0; k < levels.size(); ++k) {
      const LevelShape shape = level_shape(levels[k].block, rows, cols);
      CodedLevel level{shape.rows, shape.cols, {}, 0};
      for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
        const float v = random_value(levels[k], levels.size() == 1, random);
        level.values.push_back(negative && k == 1 ? -v : v);
      }
      out.push_back(std::move(level));
    }
  };
  fill(q.scheme.scales, q.scales, false);
  fill(q.scheme.offsets, q.offsets, true);
  return q;
}

TEST_P(GgmlBlocks, AnyCodesAndScalesComeBack) {
  const GgmlType& type = *GetParam();
  SplitMix64 random(type.id);
  const CodedMatrix q = random_codes(type, 3, 2 * type.block, random);
  const std::string file = packed(type, q);
  const auto read = unpack_ggml(type, q.rows, q.cols, bytes_of(file));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->codes, q.codes);
  EXPECT_TRUE(*read == q);
  // The canonical packing holds them too: negative and zero scales are scales.
  const auto stored = pack(q, {q.rows, q.cols});
  ASSERT_TRUE(stored.ok()) << stored.status().message();
}

TEST_P(GgmlBlocks, QuantizationLosesWhatItsBitsSay) {
  const GgmlType& type = *GetParam();
  SplitMix64 random(7);
  const int64_t rows = 8, cols = 512;
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (float& v : x) {  // about normal
    v = 0;
    for (int k = 0; k < 12; ++k) v += static_cast<float>(random.uniform());
    v = 0.02f * (v - 6);
  }
  const MatrixView<const float> matrix(x.data(), rows, cols);
  const auto q = quantize_ggml(type, matrix);
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::vector<float> y(x.size());
  ASSERT_TRUE(dequantize(*q, MatrixView<float>(y.data(), rows, cols)).ok());
  double noise = 0, signal = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    noise += (x[i] - y[i]) * static_cast<double>(x[i] - y[i]);
    signal += static_cast<double>(x[i]) * x[i];
  }
  const double snr = 10 * std::log10(signal / noise);
  // About 6 dB a bit; ternary codes of every weight lose most.
  const int bits =
      type.scheme.code == Element::ternary ? 0 : element_info(type.scheme.code).bits;
  EXPECT_GT(snr, bits == 0 ? -6 : 6.0 * bits - 7) << type.name;
  EXPECT_LT(snr, bits == 0 ? 6 : 6.0 * bits + 3) << type.name;

  const int threads = thread_count();
  set_thread_count(threads == 1 ? 3 : 1);
  const auto again = quantize_ggml(type, matrix);
  set_thread_count(threads);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(*again == *q);
}

TEST_P(GgmlBlocks, ZerosStayZeros) {
  const GgmlType& type = *GetParam();
  const std::vector<float> x(static_cast<size_t>(2 * type.block), 0.0f);
  const auto q =
      quantize_ggml(type, MatrixView<const float>(x.data(), 1, 2 * type.block));
  ASSERT_TRUE(q.ok()) << q.status().message();
  const auto read = unpack_ggml(type, 1, q->cols, bytes_of(packed(type, *q)));
  ASSERT_TRUE(read.ok());
  std::vector<float> y(x.size(), 1.0f);
  ASSERT_TRUE(dequantize(*read, MatrixView<float>(y.data(), 1, q->cols)).ok());
  for (const float v : y) EXPECT_EQ(v, 0.0f);
}

TEST_P(GgmlBlocks, RefusesWhatItCannotHold) {
  const GgmlType& type = *GetParam();
  std::vector<float> x(static_cast<size_t>(type.block) + 1, 1.0f);
  const auto odd =
      quantize_ggml(type, MatrixView<const float>(x.data(), 1, type.block + 1));
  EXPECT_EQ(odd.status().message(),
            cat("[ggml] ", type.name, ": rows of whole blocks of ", type.block,
                " values are needed; found [1, ", type.block + 1, "]"));
  x[5] = NAN;
  const auto broken =
      quantize_ggml(type, MatrixView<const float>(x.data(), 1, type.block));
  EXPECT_EQ(broken.status().code(), StatusCode::out_of_range);
  EXPECT_EQ(broken.status().message(),
            cat("[ggml] ", type.name,
                ": row 0, column 5: a finite number is needed; found nan"));
  SplitMix64 random(1);
  CodedMatrix q = random_codes(type, 1, type.block, random);
  std::string out(static_cast<size_t>(type.bytes), '\0');
  const auto pack_into = [&](const CodedMatrix& m) {
    return pack_ggml(type, m, reinterpret_cast<std::byte*>(out.data())).message();
  };
  q.scales[0].values[0] = 0.1f;  // no integer, no half, no power of two
  EXPECT_THAT(pack_into(q), HasSubstr("scale level 0: value 0 must be exactly"));
  q.scheme = *parse_scheme("int7/r@f32");
  EXPECT_THAT(pack_into(q), HasSubstr("found int7/r@f32"));
  const auto truncated = unpack_ggml(type, 2, type.block, bytes_of(out));
  EXPECT_EQ(truncated.status().code(), StatusCode::data_loss);
  EXPECT_THAT(truncated.status().message(),
              HasSubstr(cat("found ", type.bytes, " bytes")));
}

INSTANTIATE_TEST_SUITE_P(Types, GgmlBlocks, testing::ValuesIn(block_types()), name_of);

TEST(GgmlType, NamesAndSizes) {
  EXPECT_EQ((*find_ggml_type("q4_k"))->id, 12u);
  EXPECT_EQ((*find_ggml_type("F16"))->row_bytes(7), 14);
  EXPECT_EQ(ggml_type_of_id(4), nullptr);
  EXPECT_THAT(find_ggml_type("Q9_Z").status().message(),
              HasSubstr("type: must be one of F32, F16, BF16, Q4_0"));
  // A block's bytes are what its scheme counts; TQ1_0 packs denser than 2 bits a code.
  for (const GgmlType* type : block_types()) {
    if (std::string_view(type->name) == "TQ1_0") continue;
    EXPECT_EQ(
        bits_per_value(type->scheme, 1, type->block) * static_cast<double>(type->block),
        8.0 * static_cast<double>(type->bytes))
        << type->name;
  }
}

TEST(GgmlType, DamagedBlocks) {
  const GgmlType& q4 = **find_ggml_type("Q4_0");
  std::string file(36, '\0');
  file[18] = '\0';
  file[19] = '\x7c';  // f16 infinity in the second block
  EXPECT_EQ(unpack_ggml(q4, 1, 64, bytes_of(file)).status().message(),
            "[ggml] Q4_0: row 0, column 32: a finite scale was required; found inf; the "
            "file is damaged");
  const GgmlType& tq = **find_ggml_type("TQ2_0");
  std::string crumbs(66, '\0');
  crumbs[1] = 3 << 2;
  EXPECT_EQ(unpack_ggml(tq, 1, 256, bytes_of(crumbs)).status().message(),
            "[ggml] TQ2_0: row 0, column 33: a code of 0, 1 or 2 was required; found 3; "
            "the file is damaged");
  const GgmlType& mx = **find_ggml_type("MXFP4");
  std::string nan(17, '\xff');
  EXPECT_THAT(unpack_ggml(mx, 1, 32, bytes_of(nan)).status().message(),
              HasSubstr("row 0, column 0: a finite scale was required; found nan"));
}

}  // namespace
}  // namespace nibble
