#include "kernels/scheme/quant_scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace nibble {
namespace {

using ::testing::HasSubstr;

QuantScheme scheme(const std::string& text) {
  Result<QuantScheme> parsed = parse_scheme(text);
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return parsed.ok() ? *parsed : QuantScheme{};
}

TEST(QuantScheme, TheSchemesOfTheDesignParseAndPrintBack) {
  for (const char* text : {
           "int4/g128@f16",
           "uint4/g128@f16+z/g128@uint4",
           "int8n/r@f32",
           "int8/t@f32",
           "uint8/t@f32",
           "e4m3/b128x128@f32",
           "nf4/f64@f32",
           "nf4/f64@dyn8+o/f256@f32",
           "nf4/f64@dyn8+o/f16384@f32",
           "e2m1/g32@e8m0",
           "e2m1/g16@e4m3/t@f32",
           "int4/g32@f16",
           "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16",
           "uint2/b32x1@f16+m/b32x1@f16",
           "f32",
           "bf16",
           "f16",
       }) {
    EXPECT_EQ(to_string(scheme(text)), text);
  }
}

TEST(QuantScheme, PartsMeanWhatTheySay) {
  const QuantScheme s = scheme("uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16");
  EXPECT_EQ(s.code, Element::uint4);
  EXPECT_FALSE(s.narrow);
  ASSERT_EQ(s.scales.size(), 2u);
  EXPECT_EQ(s.scales[0].block, (Block{Block::Kind::group, 1, 32}));
  EXPECT_EQ(s.scales[0].element, Element::uint6);
  EXPECT_EQ(s.scales[1].element, Element::f16);
  EXPECT_EQ(s.offset, OffsetKind::minimum);
  ASSERT_EQ(s.offsets.size(), 2u);
  const QuantScheme nested = scheme("nf4/f64@dyn8+o/f256@f32");
  EXPECT_TRUE(nested.scales[0].shifted);
  EXPECT_FALSE(nested.scales[1].shifted);
  EXPECT_EQ(scheme("e4m3/b128x64@f32").scales[0].block,
            (Block{Block::Kind::grid, 128, 64}));
}

TEST(QuantScheme, EveryProductParsesAndPrintsBack) {
  const std::vector<std::string> blocks = {"t", "r", "c", "g1", "g32", "f64", "b2x3"};
  int count = 0;
  for (Element code : all_elements()) {
    const ElementInfo& info = element_info(code);
    if (info.bits > 8 || code == Element::e8m0) continue;
    for (const std::string& block : blocks) {
      for (Element scale : all_elements()) {
        std::string text = cat(info.text, "/", block, "@", element_info(scale).text);
        const bool outermost =
            element_info(scale).kind == ElementKind::minifloat && scale != Element::e2m1;
        if (!outermost) text += "/t@f32";
        if (scale == Element::ternary || scale == Element::binary) {
          EXPECT_THAT(parse_scheme(text).status().message(),
                      HasSubstr("cannot hold a scale"));
          continue;
        }
        EXPECT_EQ(to_string(scheme(text)), text);
        ++count;
        if (info.kind != ElementKind::integer) continue;
        const std::string z = cat(text, "+z/", block, "@", info.text);
        EXPECT_EQ(to_string(scheme(z)), z);
        const std::string m = cat(text, "+m/", block, "@int8+o/t@f16");
        EXPECT_EQ(to_string(scheme(m)), m);
        count += 2;
      }
    }
  }
  EXPECT_GT(count, 5000);
}

TEST(QuantScheme, BadTextSaysWhereAndWhatWasExpected) {
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"", "[scheme] \"\" at 0: expected an element: one of int2 int3"},
      {"int9/r@f32", "at 0: expected an element"},
      {"int4/x128@f16",
       "[scheme] \"int4/x128@f16\" at 5: expected a block: t, r, c, gN, fN or "
       "bRxC; found \"x128@f16\""},
      {"int4/g@f16",
       "at 6: expected a block size of 1 or more, without leading zeros; found \"@f16\""},
      {"int4/g0@f16", "at 6: expected a block size of 1 or more"},
      {"int4/g032@f16",
       "at 6: expected a block size of 1 or more, without leading zeros"},
      {"int4/b128@f16", "at 9: expected x between the rows and columns of a block"},
      {"int4/g128", "at 9: expected @ and the element of the scale; found the end"},
      {"int4/g128@f17", "at 10: expected an element"},
      {"int4/g128@f16 ",
       "at 13: expected / and a block, + and an offset, or the end; found \" \""},
      {"int4/g128@f16+q/g128@int4", "at 14: expected z (zero point) or m (minimum)"},
      {"int4/g99999999999@f16", "at 16: expected @ and the element"},
      {"int4/g4294967296@f16",
       "a block size must be between 1 and 2^31; found 4294967296"},
  };
  for (const auto& [text, message] : rows) {
    const Status status = parse_scheme(text).status();
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << text;
    EXPECT_THAT(status.message(), HasSubstr(message));
  }
}

TEST(QuantScheme, CombinationsWithoutMeaningAreRefused) {
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"int4", "int4 needs a scale, such as int4/r@f32"},
      {"e4m3", "e4m3 needs a scale"},
      {"f16/g32@f16", "f16 is stored as it is, without scale or offset"},
      {"f32+z/t@int8", "f32 is stored as it is"},
      {"e8m0/g32@f32", "e8m0 has no sign and no zero: it can only be a scale"},
      {"uint4n/r@f32", "n (narrow) is for signed integers; found uint4"},
      {"nf4n/r@f32", "n (narrow) is for signed integers; found nf4"},
      {"int4/g32@uint6",
       "the outermost scale level must be f32, f16, bf16, e4m3, e5m2 or e8m0; "
       "found uint6"},
      {"nf4/f64@dyn8+o", "the outermost scale level must be"},
      {"int4/g32@binary/t@f32", "binary cannot hold a scale"},
      {"int4/g32@uint6/g48@f16", "level 1 must be made of whole blocks of level 0"},
      {"int4/g32@uint6/f256@f16", "level 1 must be made of whole blocks of level 0"},
      {"int4/r@uint8/g256@f16", "level 1 must be made of whole blocks of level 0"},
      {"int4/t@uint8/r@f16", "level 1 must be made of whole blocks of level 0"},
      {"int4/b4x4@uint8/b6x8@f16", "level 1 must be made of whole blocks of level 0"},
      {"int4/g32@uint6/g256@f16+o", "only the innermost level may be shifted (+o)"},
      {"e4m3/r@f32+z/r@int8", "a zero point needs integer codes; found e4m3"},
      {"nf4/f64@f32+m/f64@f32", "a minimum needs integer codes; found nf4"},
      {"uint4/g32@f16+z", "a zero point needs a level such as /g128@uint4"},
      {"uint4/g32@f16+m", "a minimum needs a level such as /g128@f16"},
      {"uint4/g32@f16+z/g64@uint4",
       "the blocks of the zero point must be those of the scale"},
      {"uint4/g32@f16+z/g32@f16", "its element must hold them all; found f16 for uint4"},
      {"uint4/g32@f16+z/g32@int4",
       "its element must hold them all; found int4 for uint4"},
      {"uint4/g32@f16+z/g32@uint4/t@f32", "one level, not shifted"},
      {"uint4/g32@f16+m/g32@e8m0", "e8m0 cannot hold a minimum: it has no sign"},
      {"uint4/g32@f16+m/g32@uint6", "the outermost minimum level must be"},
  };
  for (const auto& [text, message] : rows) {
    const Status status = parse_scheme(text).status();
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << text;
    EXPECT_THAT(status.message(), HasSubstr(message));
    EXPECT_THAT(status.message(), HasSubstr(cat("[scheme] \"", text, "\": ")));
  }
}

TEST(QuantScheme, OuterBlocksMadeOfInnerOnesAreAccepted) {
  for (const char* text :
       {"int4/g32@uint6/g256@f16", "int4/g32@uint6/r@f16", "int4/g32@uint6/b4x64@f16",
        "int4/b4x4@uint8/b8x12@f16", "int4/r@uint8/t@f16", "int4/c@uint8/t@f32",
        "int4/b32x1@uint8/c@f32", "int4/f64@uint8/f640@f32",
        "int4/g32@uint8/g64@e4m3/r@f32"}) {
    EXPECT_EQ(to_string(scheme(text)), text);
  }
}

TEST(QuantScheme, EveryIndexLiesInsideItsLevelAndBlocksArePartsOfTheMatrix) {
  const int64_t rows = 7, cols = 33;
  for (const char* text : {"t", "r", "c", "g1", "g8", "g33", "g40", "f1", "f8", "f500",
                           "b1x1", "b2x5", "b3x33", "b9x40"}) {
    const Block block = scheme(cat("int4/", text, "@f32")).scales[0].block;
    const LevelShape shape = level_shape(block, rows, cols);
    std::map<int64_t, int64_t> sizes;
    int64_t largest = -1;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t i = level_index(block, rows, cols, r, c);
        ASSERT_GE(i, 0);
        ASSERT_LT(i, shape.rows * shape.cols) << text;
        ++sizes[i];
        largest = std::max(largest, i);
      }
    }
    EXPECT_EQ(largest + 1, shape.rows * shape.cols) << text;
    EXPECT_EQ(static_cast<int64_t>(sizes.size()), shape.rows * shape.cols) << text;
  }
  EXPECT_EQ(level_shape({Block::Kind::group, 1, 8}, 7, 33), (LevelShape{7, 5}));
  EXPECT_EQ(level_shape({Block::Kind::flat, 1, 8}, 7, 33), (LevelShape{1, 29}));
  EXPECT_EQ(level_shape({Block::Kind::grid, 2, 5}, 7, 33), (LevelShape{4, 7}));
  EXPECT_EQ(level_index({Block::Kind::flat, 1, 8}, 7, 33, 1, 6), 4);    // element 39
  EXPECT_EQ(level_index({Block::Kind::grid, 2, 5}, 7, 33, 3, 32), 13);  // block (1, 6)
}

TEST(QuantScheme, CodeRangesOfIntegers) {
  EXPECT_EQ(code_lowest(scheme("int4/r@f32")), -8);
  EXPECT_EQ(code_lowest(scheme("int4n/r@f32")), -7);
  EXPECT_EQ(code_highest(scheme("int4n/r@f32")), 7);
  EXPECT_EQ(code_lowest(scheme("uint3/r@f32")), 0);
  EXPECT_EQ(code_highest(scheme("uint3/r@f32")), 7);
}

TEST(QuantScheme, BitsPerValueCountsEverything) {
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("int4/g128@f16"), 64, 1024), 4 + 16.0 / 128);
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("uint4/g128@f16+z/g128@uint4"), 64, 1024),
                   4 + 20.0 / 128);
  EXPECT_DOUBLE_EQ(
      bits_per_value(scheme("uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16"), 64, 1024),
      4 + 2 * (6.0 / 32 + 16.0 / 256));  // Q4_K: 4.5
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("e2m1/g16@e4m3/t@f32"), 64, 1024),
                   4.5 + 32.0 / 65536);
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("nf4/f64@dyn8+o/f16384@f32"), 64, 1024),
                   4 + 8.0 / 64 + 32.0 / 16384 + 32.0 / 65536);  // and one shift
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("f32"), 3, 5), 32);
  // A remainder group has its own scale, and a row of 4-bit codes ends on a byte.
  EXPECT_DOUBLE_EQ(bits_per_value(scheme("int4/g32@f16"), 1, 33),
                   (8 * 17 + 2 * 16) / 33.0);
}

}  // namespace
}  // namespace nibble
