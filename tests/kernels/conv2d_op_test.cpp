#include <gmock/gmock.h>

#include "kernels/ops/conv2d/conv2d.h"
#include "op_test.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const Conv2dShape kShapes[] = {
    {.channels = 3,
     .height = 32,
     .width = 32,
     .outputs = 16,
     .kernel_h = 3,
     .kernel_w = 3,
     .pad_h = 1,
     .pad_w = 1},
    {.channels = 16,
     .height = 17,
     .width = 13,
     .outputs = 33,
     .kernel_h = 3,
     .kernel_w = 3,
     .stride_h = 2,
     .stride_w = 2,
     .pad_h = 1,
     .pad_w = 1},
    {.channels = 20, .height = 9, .width = 7, .outputs = 12},
    {.channels = 20, .height = 9, .width = 7, .outputs = 5, .stride_h = 2, .stride_w = 3},
    {.channels = 12,
     .height = 8,
     .width = 8,
     .outputs = 18,
     .kernel_h = 3,
     .kernel_w = 3,
     .pad_h = 1,
     .pad_w = 1,
     .groups = 3},
    {.channels = 7,
     .height = 11,
     .width = 5,
     .outputs = 7,
     .kernel_h = 3,
     .kernel_w = 3,
     .pad_h = 1,
     .pad_w = 1,
     .groups = 7},
    {.channels = 5,
     .height = 6,
     .width = 10,
     .outputs = 3,
     .kernel_h = 2,
     .kernel_w = 5,
     .stride_h = 1,
     .stride_w = 2,
     .pad_h = 0,
     .pad_w = 3},
    {.channels = 1, .height = 3, .width = 3, .outputs = 1, .kernel_h = 3, .kernel_w = 3},
    {.channels = 172, .height = 1, .width = 1, .outputs = 31},  // a linear layer
    {.channels = 37,  // every width of a tile of outputs, and some behind the last
     .height = 12,
     .width = 10,
     .outputs = 107,
     .kernel_h = 3,
     .kernel_w = 3,
     .pad_h = 1,
     .pad_w = 1},
    {.channels = 6,  // rows of whole vectors but one pixel: read where they lie
     .height = 7,
     .width = 31,
     .outputs = 14,
     .kernel_h = 3,
     .kernel_w = 3,
     .pad_h = 1,
     .pad_w = 1},
    {.channels = 16,  // an odd number of vectors
     .height = 5,
     .width = 15,
     .outputs = 13,
     .kernel_h = 2,
     .kernel_w = 3,
     .stride_h = 2,
     .pad_h = 1,
     .pad_w = 1},
    {.channels = 64,
     .height = 9,
     .width = 11,
     .outputs = 96,
     .kernel_h = 3,
     .kernel_w = 2,
     .stride_h = 2,
     .stride_w = 2,
     .pad_h = 1,
     .pad_w = 1,
     .groups = 2},
};

std::string text(const Conv2dShape& s) {
  return cat("[", s.channels, ", ", s.height, ", ", s.width, "] -> ", s.outputs,
             ", kernel ", s.kernel_h, " x ", s.kernel_w, ", groups ", s.groups);
}

int64_t inputs_of(const Conv2dShape& s) { return s.channels * s.height * s.width; }
int64_t outputs_of(const Conv2dShape& s) {
  return s.outputs * s.out_height() * s.out_width();
}

std::vector<uint8_t> random_bytes(int64_t n, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(n));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.below(256));
  return bytes;
}

std::vector<int8_t> random_codes(int64_t n, uint64_t seed) {
  const std::vector<uint8_t> bytes = random_bytes(n, seed);
  return {bytes.begin(), bytes.end()};
}

class Conv2dRow : public OpTest, public ::testing::WithParamInterface<size_t> {
 protected:
  const Conv2dKernel& kernel() const { return conv2d_kernels()[GetParam()]; }
  void SetUp() override {
    if (!this_cpu_has(kernel().flags))
      GTEST_SKIP() << "this CPU lacks what the row needs";
  }
};
class Conv2dF32Row : public Conv2dRow {};
class Conv2dS8Row : public Conv2dRow {};

TEST_P(Conv2dF32Row, GivesWhatTheDefinitionGives) {
  for (const Conv2dShape& s : kShapes) {
    for (const char* scheme :
         {"f32", "bf16", "int4/g32@f16", "int8/r@f32", "nf4/f64@f32"}) {
      SCOPED_TRACE(cat(text(s), ", ", scheme));
      const LinearWeight weight = random_weight(scheme, s.outputs, s.patch(), 1);
      const std::vector<float> x = random_floats(inputs_of(s), 2);
      const std::vector<float> bias = random_floats(s.outputs, 3);
      std::vector<float> w(static_cast<size_t>(s.outputs * s.patch()));
      ASSERT_TRUE(
          weight_rows(weight, 0, MatrixView<float>(w.data(), s.outputs, s.patch())).ok());
      const Result<PreparedConv2d> conv = prepare_conv2d(s, weight, kernel().flags);
      ASSERT_TRUE(conv.ok()) << conv.status().message();
      ASSERT_EQ(conv2d_kernel_name(*conv), kernel().name);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        std::vector<float> expected(static_cast<size_t>(outputs_of(s)), kPoison);
        std::vector<float> y(static_cast<size_t>(outputs_of(s)) + 1, kPoison);
        std::vector<float> magnitude = expected;
        conv2d_reference(s, x.data(), w.data(), b, expected.data());
        run_conv2d(*conv, x.data(), b, y.data());
        std::vector<float> ax = x, aw = w, ab = bias;
        for (std::vector<float>* v : {&ax, &aw, &ab}) {
          for (float& value : *v) value = std::fabs(value);
        }
        conv2d_reference(s, ax.data(), aw.data(), b ? ab.data() : nullptr,
                         magnitude.data());
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_LE(std::fabs(y[i] - expected[i]),
                    linear_tolerance(s.patch()) * magnitude[i])
              << "at " << i << ": " << y[i] << ", expected " << expected[i];
        }
        ASSERT_TRUE(std::isnan(y.back()));
      }
    }
  }
}

TEST_P(Conv2dF32Row, GivesTheSameBytesAtAnyThreadCount) {
  const Conv2dShape& s = kShapes[1];
  const LinearWeight weight = random_weight("f32", s.outputs, s.patch(), 4);
  const std::vector<float> x = random_floats(inputs_of(s), 5);
  std::vector<float> first;
  for (int threads : {1, 2, 3}) {
    set_thread_count(threads);
    const Result<PreparedConv2d> conv = prepare_conv2d(s, weight, kernel().flags);
    ASSERT_TRUE(conv.ok());
    std::vector<float> y(static_cast<size_t>(outputs_of(s)), kPoison);
    run_conv2d(*conv, x.data(), nullptr, y.data());
    if (first.empty()) first = y;
    EXPECT_TRUE(same_bytes(first, y)) << threads << " threads";
  }
}

TEST_P(Conv2dS8Row, GivesTheDefinitionsIntegers) {
  for (const Conv2dShape& s : kShapes) {
    for (bool unsigned_input : {false, true}) {
      SCOPED_TRACE(cat(text(s), unsigned_input ? ", uint8" : ", int8"));
      const std::vector<int8_t> weight = random_codes(s.outputs * s.patch(), 6);
      const std::vector<uint8_t> codes = random_bytes(inputs_of(s), 7);
      const Result<PreparedConv2dS8> conv =
          prepare_conv2d_s8(s, weight, unsigned_input, kernel().flags);
      ASSERT_TRUE(conv.ok()) << conv.status().message();
      ASSERT_STREQ(conv2d_s8_kernel_name(*conv), kernel().name);
      std::vector<int32_t> expected(static_cast<size_t>(outputs_of(s)));
      conv2d_s8_reference(s, codes.data(), unsigned_input, weight.data(),
                          expected.data());
      const int32_t poison = 0x7ffffff1;
      for (int threads : {1, 2}) {
        set_thread_count(threads);
        std::vector<int32_t> acc(expected.size() + 1, poison);
        run_conv2d_s8(*conv, codes.data(), acc.data());
        ASSERT_EQ(acc.back(), poison);
        acc.pop_back();
        ASSERT_EQ(acc, expected);
      }
    }
  }
}

TEST_P(Conv2dS8Row, RoundsToTheNextCodesAsTheFormulaSays) {
  for (const Conv2dShape& s : kShapes) {
    SCOPED_TRACE(text(s));
    const std::vector<int8_t> weight = random_codes(s.outputs * s.patch(), 6);
    const std::vector<uint8_t> codes = random_bytes(inputs_of(s), 7);
    const Result<PreparedConv2dS8> conv =
        prepare_conv2d_s8(s, weight, true, kernel().flags);
    ASSERT_TRUE(conv.ok()) << conv.status().message();
    std::vector<int32_t> acc(static_cast<size_t>(outputs_of(s)));
    conv2d_s8_reference(s, codes.data(), true, weight.data(), acc.data());
    // Ties (a half), both ends, and the negative multiplier of a negative gamma.
    std::vector<int32_t> bias(static_cast<size_t>(s.outputs));
    std::vector<float> multiplier(bias.size());
    for (size_t o = 0; o < bias.size(); ++o) {
      bias[o] = static_cast<int32_t>(o * 37) - 50;
      multiplier[o] = o % 3 == 0 ? 0.5f : o % 3 == 1 ? 0.00137f : -0.0021f;
    }
    for (const auto& [lowest, highest] : {std::pair<int, int>{0, 255}, {-127, 127}}) {
      for (const float scale : {1.0f, 0.37f, 64.0f}) {
        const Conv2dCodes target{bias.data(), multiplier.data(), scale, lowest, highest};
        std::vector<uint8_t> y(acc.size() + 1, 0xa5);
        run_conv2d_s8(*conv, codes.data(), target, y.data());
        ASSERT_EQ(y.back(), 0xa5);
        for (size_t i = 0; i < acc.size(); ++i) {
          const size_t o = i / (acc.size() / bias.size());
          const float real = static_cast<float>(acc[i] + bias[o]) * multiplier[o];
          const float rounded = std::nearbyint(real / scale);
          const float code = std::clamp(rounded, static_cast<float>(lowest),
                                        static_cast<float>(highest));
          ASSERT_EQ(y[i], static_cast<uint8_t>(static_cast<int>(code))) << i;
        }
      }
    }
  }
}

TEST_P(Conv2dS8Row, ExtremeCodesDoNotSaturate) {
  const Conv2dShape s{.channels = 512,
                      .height = 3,
                      .width = 3,
                      .outputs = 2,
                      .kernel_h = 3,
                      .kernel_w = 3};
  for (int weight : {-128, 127}) {
    const std::vector<int8_t> w(static_cast<size_t>(2 * s.patch()),
                                static_cast<int8_t>(weight));
    for (int code : {-128, 0, 127, 255}) {
      const bool unsigned_input = code >= 0;
      const std::vector<uint8_t> x(static_cast<size_t>(inputs_of(s)),
                                   static_cast<uint8_t>(code));
      const Result<PreparedConv2dS8> conv =
          prepare_conv2d_s8(s, w, unsigned_input, kernel().flags);
      ASSERT_TRUE(conv.ok());
      int32_t acc[2] = {1, 1};
      run_conv2d_s8(*conv, x.data(), acc);
      EXPECT_EQ(acc[0], code * weight * 512 * 9);
      EXPECT_EQ(acc[1], acc[0]);
    }
  }
}

TEST_P(Conv2dS8Row, RunsInsideALoopOverImages) {
  const Conv2dShape& s = kShapes[0];
  const std::vector<int8_t> weight = random_codes(s.outputs * s.patch(), 8);
  const int64_t images = 9;
  const std::vector<uint8_t> codes = random_bytes(images * inputs_of(s), 9);
  const Result<PreparedConv2dS8> conv =
      prepare_conv2d_s8(s, weight, true, kernel().flags);
  ASSERT_TRUE(conv.ok());
  set_thread_count(3);
  std::vector<int32_t> acc(static_cast<size_t>(images * outputs_of(s)));
  parallel_for(images, [&](int64_t i) {
    run_conv2d_s8(*conv, codes.data() + i * inputs_of(s), acc.data() + i * outputs_of(s));
  });
  std::vector<int32_t> expected(static_cast<size_t>(outputs_of(s)));
  for (int64_t i = 0; i < images; ++i) {
    conv2d_s8_reference(s, codes.data() + i * inputs_of(s), true, weight.data(),
                        expected.data());
    ASSERT_EQ(std::memcmp(expected.data(), acc.data() + i * outputs_of(s),
                          expected.size() * sizeof(int32_t)),
              0)
        << "image " << i;
  }
}

std::vector<size_t> rows_of(LinearActivation activation) {
  std::vector<size_t> rows;
  for (size_t i = 0; i < conv2d_kernels().size(); ++i) {
    if (conv2d_kernels()[i].activation == activation) rows.push_back(i);
  }
  return rows;
}
std::string row_name(const ::testing::TestParamInfo<size_t>& info) {
  return test_name(conv2d_kernels()[info.param].name);
}
INSTANTIATE_TEST_SUITE_P(Rows, Conv2dF32Row,
                         ::testing::ValuesIn(rows_of(LinearActivation::f32)), row_name);
INSTANTIATE_TEST_SUITE_P(Rows, Conv2dS8Row,
                         ::testing::ValuesIn(rows_of(LinearActivation::s8)), row_name);

class Conv2dTable : public OpTest {};

TEST_F(Conv2dTable, TheDefinitionByHand) {
  // x = 1 2 3 4, kernel 3 with padding 1: the ends see one zero each.
  const Conv2dShape s{
      .channels = 1, .height = 1, .width = 4, .outputs = 1, .kernel_w = 3, .pad_w = 1};
  ASSERT_EQ(s.out_width(), 4);
  const float x[4] = {1, 2, 3, 4}, w[3] = {10, 1, 100}, bias = 0.5f;
  float y[4];
  conv2d_reference(s, x, w, &bias, y);
  EXPECT_THAT(y, ::testing::ElementsAre(201.5f, 312.5f, 423.5f, 34.5f));
  const uint8_t codes[4] = {1, 2, 3, 0xff};
  const int8_t wq[3] = {10, 1, 100};
  int32_t acc[4];
  conv2d_s8_reference(s, codes, false, wq, acc);
  EXPECT_THAT(acc, ::testing::ElementsAre(201, 312, -77, 29));
  conv2d_s8_reference(s, codes, true, wq, acc);
  EXPECT_THAT(acc, ::testing::ElementsAre(201, 312, 25523, 285));
}

TEST_F(Conv2dTable, FollowsTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    EXPECT_EQ(select_conv2d(LinearActivation::f32).name,
              "conv2d_f32_any__" + isa_under(level));
    EXPECT_EQ(select_conv2d(LinearActivation::s8).name,
              "conv2d_s8_s8__" + isa_under(level, true));
  }
}

TEST_F(Conv2dTable, RefusalsSayWhatWasFound) {
  Conv2dShape s = kShapes[0];
  const LinearWeight small = random_weight("f32", 16, 9, 1);
  EXPECT_EQ(prepare_conv2d(s, small).status().message(),
            "[conv2d] the weight must be [16, 27]; found [16, 9]");
  const std::vector<int8_t> codes(10);
  EXPECT_EQ(prepare_conv2d_s8(s, codes, true).status().message(),
            "[conv2d] the weight must be [16, 27]; found 10 values");
  s.groups = 2;
  EXPECT_THAT(
      prepare_conv2d(s, small).status().message(),
      HasSubstr("groups divide both channel counts; found x [3, 32, 32], 16 outputs"));
  s = {
      .channels = 1, .height = 2, .width = 2, .outputs = 1, .kernel_h = 3, .kernel_w = 3};
  EXPECT_EQ(prepare_conv2d(s, random_weight("f32", 1, 9, 1)).status().message(),
            "[conv2d] a kernel of 3 x 3 must fit the padded image; found 2 x 2 with "
            "padding 0, 0");
  s = {.channels = 65537, .height = 1, .width = 1, .outputs = 1};
  const Result<PreparedConv2dS8> long_patch =
      prepare_conv2d_s8(s, std::vector<int8_t>(65537), true);
  ASSERT_FALSE(long_patch.ok());
  EXPECT_EQ(long_patch.status().code(), StatusCode::unsupported);
  EXPECT_EQ(
      long_patch.status().message(),
      "[conv2d] an integer output may sum 65536 products; found 65537; keep this layer "
      "float");
}

}  // namespace
}  // namespace nibble
