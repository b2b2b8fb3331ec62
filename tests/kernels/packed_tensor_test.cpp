#include "kernels/packing/packed_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int> bytes_of(const Bytes& bytes) {
  std::vector<int> out;
  for (const std::byte b : bytes.span()) out.push_back(std::to_integer<int>(b));
  return out;
}

bool equal(const Bytes& a, const Bytes& b) { return a.text() == b.text(); }

Bytes with_byte(const Bytes& bytes, size_t i, int value) {
  std::byte* data = nullptr;
  Bytes copy = Bytes::allocate(bytes.size(), &data);
  std::memcpy(data, bytes.data(), bytes.size());
  data[i] = static_cast<std::byte>(value);
  return copy;
}

// A matrix of every code in turn, with random values of every level's element.
CodedMatrix any_codes(const std::string& text, int64_t rows, int64_t cols,
                      uint32_t seed) {
  std::mt19937 random(seed);
  CodedMatrix q;
  q.scheme = *parse_scheme(text);
  q.rows = rows;
  q.cols = cols;
  std::vector<uint8_t> valid;
  for (int code = 0; code < 256; ++code) {
    const float v = value_of(q.scheme.code, static_cast<uint8_t>(code));
    if (std::isnan(v)) continue;
    if (q.scheme.narrow && v < static_cast<float>(code_lowest(q.scheme))) continue;
    valid.push_back(static_cast<uint8_t>(code));
  }
  for (int64_t i = 0; i < rows * cols; ++i)
    q.codes.push_back(valid[random() % valid.size()]);
  const auto fill = [&](const std::vector<ScaleLevel>& levels,
                        std::vector<CodedLevel>& out) {
    for (const ScaleLevel& level : levels) {
      const LevelShape shape = level_shape(level.block, rows, cols);
      CodedLevel values;
      values.rows = shape.rows;
      values.cols = shape.cols;
      for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
        const float v = static_cast<float>(random() % 1000 + 1) / 64;
        values.values.push_back(round_to_element(level.element, v));
      }
      values.shift = level.shifted ? 0.375f : 0.0f;
      out.push_back(std::move(values));
    }
  };
  fill(q.scheme.scales, q.scales);
  fill(q.scheme.offsets, q.offsets);
  return q;
}

TEST(Pack, EveryElementBlockAndOddShapeRoundTrips) {
  int count = 0;
  for (Element code : all_elements()) {
    const ElementInfo& info = element_info(code);
    if (info.bits > 8 || code == Element::e8m0) continue;
    for (const char* levels :
         {"/t@f32", "/r@f16", "/c@bf16", "/g32@f16", "/f64@dyn8+o/f256@f32",
          "/g16@e4m3/t@f32", "/g32@e8m0", "/b2x5@uint6/b4x10@e5m2", "/g32@int3/r@f32",
          "/g32@e2m1/r@f32"}) {
      const std::string innermost =
          std::string(levels).substr(0, std::string(levels).find('@'));
      std::vector<std::string> texts = {cat(info.text, levels)};
      if (info.kind == ElementKind::integer) {
        texts.push_back(cat(info.text, levels, "+z", innermost, "@", info.text));
        texts.push_back(cat(info.text, levels, "+m", innermost, "@int5+o/t@f16"));
        if (info.lowest < 0) texts.push_back(cat(info.text, "n", levels));
      }
      for (const std::string& text : texts) {
        for (int64_t rows : {1, 3, 7}) {
          for (int64_t cols : {1, 31, 32, 33, 172}) {
            const CodedMatrix q =
                any_codes(text, rows, cols, static_cast<uint32_t>(++count));
            const Result<PackedTensor> packed = pack(q, {rows, cols});
            ASSERT_TRUE(packed.ok()) << packed.status().message();
            ASSERT_EQ(packed->bytes() * 8,
                      std::llround(bits_per_value(q.scheme, rows, cols) *
                                   static_cast<double>(rows * cols)));
            const Result<CodedMatrix> again = unpack(*packed);
            ASSERT_TRUE(again.ok()) << again.status().message();
            ASSERT_EQ(*again, q) << text << " " << rows << " " << cols;
            const Result<PackedTensor> repacked = pack(*again, {rows, cols});
            ASSERT_TRUE(repacked.ok());
            ASSERT_TRUE(equal(repacked->codes, packed->codes)) << text;
            for (size_t k = 0; k < packed->scales.size(); ++k) {
              ASSERT_TRUE(equal(repacked->scales[k].values, packed->scales[k].values))
                  << text;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(count, 5000);
}

TEST(Pack, DequantizedRowsAreThoseOfTheUnpackedMatrix) {
  for (const char* text :
       {"int4/g32@f16", "int3/f48@dyn8+o/f96@f32",
        "uint5/g32@uint6/g64@f16+m/g32@uint6/g64@f16", "e2m1/g16@e4m3/t@f32",
        "uint4/r@f32+z/r@uint4", "e4m3/b4x16@f32", "int6/c@bf16", "binary/g32@f16"}) {
    const CodedMatrix q = any_codes(text, 9, 172, 7);
    const PackedTensor packed = *pack(q, {9, 172});
    std::vector<float> whole(9 * 172), part(4 * 172);
    ASSERT_TRUE(dequantize(q, {whole.data(), 9, 172}).ok());
    ASSERT_TRUE(dequantize_rows(packed, 3, {part.data(), 4, 172}).ok());
    EXPECT_EQ(part, std::vector<float>(whole.begin() + 3 * 172, whole.begin() + 7 * 172))
        << text;
  }
  const PackedTensor packed = *pack(any_codes("int4/g32@f16", 4, 8, 8), {4, 8});
  std::vector<float> x(16);
  EXPECT_EQ(dequantize_rows(packed, 3, {x.data(), 2, 8}).code(),
            StatusCode::invalid_argument);
  EXPECT_EQ(dequantize_rows(packed, 0, {x.data(), 2, 7}).code(),
            StatusCode::invalid_argument);
}

// A bit string written by hand: code i of b bits at bits i*b .. i*b+b-1, low bits first.
TEST(Pack, TheBitsLieWhereTheHeaderSays) {
  CodedMatrix q;
  q.scheme = *parse_scheme("int4/t@f32");
  q.rows = 2;
  q.cols = 3;
  q.codes = {0xf8, 7, 0, 0xff, 3, 0xf9};  // -8 7 0 | -1 3 -7
  q.scales = {{1, 1, {0.5f}, 0}};
  const PackedTensor four = *pack(q, {2, 3});
  EXPECT_THAT(bytes_of(four.codes), ElementsAre(0x78, 0x00, 0x3f, 0x09));
  EXPECT_THAT(bytes_of(four.scales[0].values), ElementsAre(0x00, 0x00, 0x00, 0x3f));

  q.scheme = *parse_scheme("uint3/t@f16");
  q.rows = 1;
  q.codes = {5, 6, 7};  // 101 011 111 from bit 0: byte 0 = 11110101, byte 1 = 1
  q.cols = 3;
  EXPECT_THAT(bytes_of(pack(q, {3})->codes), ElementsAre(0xf5, 0x01));
}

TEST(Pack, RefusesWhatItsElementsCannotHold) {
  CodedMatrix q = any_codes("int4/g32@f16", 2, 40, 9);
  q.codes[41] = 8;
  EXPECT_EQ(pack(q, {2, 40}).status().code(), StatusCode::invalid_argument);
  EXPECT_THAT(pack(q, {2, 40}).status().message(),
              HasSubstr("code 41 must stand for a number of int4/g32@f16; found byte 8"));
  q = any_codes("int4/g32@f16", 2, 40, 9);
  q.scales[0].values[3] = 1.0001f;
  EXPECT_THAT(pack(q, {2, 40}).status().message(),
              HasSubstr("scale level 0: value 3 must be exactly f16; found 1.0001"));
  q = any_codes("int4n/g32@f16", 2, 40, 9);
  q.codes[0] = 0xf8;
  EXPECT_THAT(pack(q, {2, 40}).status().message(),
              HasSubstr("code 0 must stand for a number"));
  q = any_codes("int4/g32@f16", 2, 40, 9);
  EXPECT_THAT(pack(q, {2, 39}).status().message(),
              HasSubstr("the shape must have 80 elements; found [2, 39]"));
  q.scheme = *parse_scheme("f32");
  EXPECT_THAT(pack(q, {2, 40}).status().message(),
              HasSubstr("plain floats are stored as a tensor"));
}

TEST(Unpack, DamageIsFound) {
  const PackedTensor good = *pack(any_codes("int3/g32@uint6/r@f16", 2, 33, 10), {2, 33});
  ASSERT_TRUE(unpack(good).ok());

  PackedTensor bad = good;  // 33 * 3 = 99 bits: 5 unused in byte 12
  bad.codes =
      with_byte(good.codes, 12, std::to_integer<int>(good.codes.data()[12]) | 0x80);
  EXPECT_EQ(unpack(bad).status().code(), StatusCode::data_loss);
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("padding bits after row 0 must be zero"));

  bad = good;  // 2 * 6 bits: 4 unused in byte 1
  bad.scales[0].values = with_byte(good.scales[0].values, 3, 0xf0);
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("scale level 0: padding bits after row 1 must be zero"));

  bad = good;
  bad.codes = good.codes.slice(0, good.codes.size() - 1);
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("26 bytes of codes are needed; found 25"));

  bad = good;
  bad.scales.pop_back();
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("2 scale levels are needed; found 1"));

  bad = good;
  bad.scales[1].shift = 1;
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("this level has no shift; found 1"));

  bad = good;  // f16 infinity
  bad.scales[1].values = with_byte(with_byte(good.scales[1].values, 0, 0), 1, 0x7c);
  EXPECT_EQ(unpack(bad).status().code(), StatusCode::data_loss);
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("scale level 1: value 0 must be finite; found inf"));

  bad = good;
  bad.shape = {int64_t{1} << 40, int64_t{1} << 40};
  EXPECT_THAT(unpack(bad).status().message(),
              HasSubstr("the shape must have 66 elements"));

  bad = good;
  bad.rows = int64_t{1} << 40;
  EXPECT_EQ(unpack(bad).status().code(), StatusCode::data_loss);
}

TEST(Unpack, CodesThatStandForNoNumberAreFound) {
  const auto with_code = [](const char* text, int byte) {
    PackedTensor packed = *pack(any_codes(text, 1, 8, 11), {1, 8});
    packed.codes = with_byte(packed.codes, 0, byte);
    return unpack(packed).status();
  };
  EXPECT_THAT(with_code("e4m3/r@f32", 0x7f).message(),
              HasSubstr("row 0, column 0: a code of e4m3 is needed; found byte 127"));
  EXPECT_EQ(with_code("e5m2/r@f32", 0xfc).code(), StatusCode::data_loss);  // -infinity
  EXPECT_EQ(with_code("ternary/r@f32", 0x30).code(),
            StatusCode::data_loss);  // 3 in column 2
  EXPECT_THAT(with_code("ternary/r@f32", 0x35).message(), HasSubstr("column 2"));
  EXPECT_EQ(with_code("int4n/r@f32", 0x08).code(), StatusCode::data_loss);
  EXPECT_TRUE(with_code("int4/r@f32", 0x08).ok());
}

}  // namespace
}  // namespace nibble
