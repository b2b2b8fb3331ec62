#include <gmock/gmock.h>

#include <thread>
#include <utility>

#include "emulated_tiles.h"
#include "kernels/ops/linear/linear.h"
#include "op_test.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// Every decoder with one and several levels, groups that end inside a row of 172 or 2100
// columns, groups that are no multiple of a step, codes of every width.
const char* const kSchemes[] = {
    "f32",
    "bf16",
    "f16",
    "int2/g32@f16",
    "int3/g64@f16",
    "int4/g32@f16",
    "int4/g64@bf16",
    "int4/g128@f16",
    "int4/g12@f32",
    "int4/r@f32",
    "int4n/g128@f16",
    "int4/b16x32@f32",
    "uint2/g16@f16+z/g16@uint2",
    "uint3/g32@f16+m/g32@f16",
    "uint4/g128@f16+z/g128@uint4",
    "uint4/g32@f16+m/g32@f16",
    "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16",
    "int5/g32@f16",
    "uint2/g16@uint4/g256@f16+m/g16@uint4/g256@f16",
    "int3/g16@int6/g256@f16",
    "int6/g16@int8/g256@f16",
    "iq4nl/g32@int6/g256@f16",
    "int7/r@f32",
    "int8/r@f32",
    "int8/g128@f16",
    "int8/t@f32",
    "uint8/r@f32+z/r@uint8",
    "uint8/g36@f32+z/g36@uint8",
    "int8/c@f32",
    "nf4/f64@f32",
    "nf4/f64@dyn8+o/f16384@f32",
    "e2m1/g16@e4m3/t@f32",
    "e2m1/g32@e8m0",
    "fp4/f64@f32",
    "e4m3/r@f32",
    "e4m3/g32@f16",
    "e5m2/g128@f32",
    "int4/f64@f16",
    "ternary/t@f32",
    "binary/r@f32",
};
constexpr int64_t kLongRow = 2100;  // several decoded blocks; tested with fewer shapes
constexpr int64_t kWholeRow = 2144;  // the same, of whole tiles
const int64_t kInputs[] = {8, 31, 172, 256, kLongRow, kWholeRow};
const int64_t kOutputs[] = {1, 15, 16, 17, 33};
constexpr int64_t kTokens = 64;

// The rows of the table, and those with tile products once more with tiles in memory:
// they run on CPUs without AMX too.
const std::vector<LinearKernel>& rows() {
  static const std::vector<LinearKernel> all = [] {
    std::vector<LinearKernel> kernels = linear_kernels();
    static std::vector<std::string> names;
    names.reserve(kernels.size());
    for (const LinearKernel& row : linear_kernels()) {
      if (row.tiles == nullptr) continue;
      names.push_back(std::string(row.name) + "_emulated");
      LinearKernel again = row;
      again.name = names.back().c_str();
      again.flags &= ~(kCpuAmxInt8 | kCpuAmxBf16);
      again.tiles = &emulated::linear_tile_isa;
      kernels.push_back(again);
    }
    return kernels;
  }();
  return all;
}

// The expected numbers for `tokens` tokens, of which every run takes the first few.
struct Case {
  LinearWeight weight;
  Spaced x, expected;
  std::vector<float> bias;
  std::vector<double> magnitude;

  Case(const char* scheme, LinearActivation activation, int64_t inputs, int64_t outputs,
       int64_t tokens)
      : weight(random_weight(scheme, outputs, inputs, 1)),
        x(random_floats(tokens * inputs, 2), tokens, inputs, 5),
        expected(tokens, outputs),
        bias(random_floats(outputs, 3)),
        magnitude(static_cast<size_t>(tokens * outputs)) {
    // A token of zeros and one with a single large value.
    for (int64_t k = 0; k < inputs; ++k) x.view()(2, k) = 0;
    x.view()(3, inputs / 2) = 1000;
    Status status =
        linear_reference(weight, activation, x.view(), bias.data(), expected.view());
    EXPECT_TRUE(status.ok()) << status.message();
    status = linear_magnitude(weight, x.view(), bias.data(),
                              MatrixView<double>(magnitude.data(), tokens, outputs));
    EXPECT_TRUE(status.ok()) << status.message();
  }
};

class LinearRow : public OpTest, public ::testing::WithParamInterface<size_t> {
 protected:
  const LinearKernel& kernel() const { return rows()[GetParam()]; }
  bool can_run(const char* scheme, int64_t inputs) const {
    return kernel().can_run(*parse_scheme(scheme), inputs, kernel().activation);
  }
  void SetUp() override {
    if (!this_cpu_has(kernel().flags))
      GTEST_SKIP() << "this CPU lacks what the row needs";
  }
};

// Every tile's fill once; then the counts where a run changes its way. The reference rows
// are compared with themselves: two counts show that the table calls them rightly.
std::vector<int64_t> token_counts(const LinearKernel& kernel, int64_t inputs) {
  if (kernel.panel == nullptr)
    return inputs == 31 ? std::vector<int64_t>{1, 17} : std::vector<int64_t>{};
  if (inputs == kLongRow) return {1, 2, 4, 5, 13, 17};
  if (inputs == kWholeRow && kernel.tiles == nullptr) return {};
  if (inputs == kWholeRow) return {9, 16, 17, 32, 33, 50};
  if (inputs != 172) return {1, 2, 3, 4, 5, 9, 12, 13, kTokens};
  return {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, kTokens};
}

void compare(const LinearKernel& kernel, const Case& c, int64_t n, const Spaced& y) {
  const double tolerance = linear_tolerance(c.weight.cols);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t o = 0; o < c.weight.rows; ++o) {
      const float found = y.view()(t, o);
      const float wanted = c.expected.view()(t, o);
      if (kernel.activation == LinearActivation::s8) {
        ASSERT_EQ(found, wanted) << "token " << t << " of " << n << ", output " << o;
      } else {
        const double bound =
            tolerance * c.magnitude[static_cast<size_t>(t * c.weight.rows + o)];
        ASSERT_LE(std::fabs(found - wanted), bound)
            << "token " << t << " of " << n << ", output " << o << ": " << found
            << " where " << wanted << " was expected";
      }
    }
  }
  ASSERT_TRUE(y.gaps_untouched());
}

// Bytes of columns that one tile product of the row takes; 0 where it has none.
int64_t step_of(const PreparedLinear& w) {
  if (w.kernel->tiles == nullptr) return 0;
  return tile_step(w.groups == 1 ? w.padded_cols : (w.group + 7) / 8 * 8, w.padded_cols,
                   w.kernel->activation == LinearActivation::s8 ? 1 : 2);
}
// Products of tiles in memory for n tokens, more than a few: 17 take two tiles of
// activations, 33 three; panels come in pairs.
int64_t emulated_dots(const PreparedLinear& w, int64_t n) {
  const int64_t step = step_of(w);
  if (step == 0 || w.kernel->tiles != &emulated::linear_tile_isa) return 0;
  const int64_t bytes = w.kernel->activation == LinearActivation::s8 ? 1 : 2;
  return (n + 15) / 16 * w.panels * (w.padded_cols * bytes / step);
}

TEST_P(LinearRow, GivesWhatTheDefinitionGives) {
  int schemes = 0;
  for (const char* scheme : kSchemes) {
    for (int64_t inputs : kInputs) {
      if (!can_run(scheme, inputs)) continue;
      ++schemes;
      if (token_counts(kernel(), inputs).empty()) continue;
      for (int64_t outputs : kOutputs) {
        if (inputs >= kLongRow && outputs != 17 && outputs != 33) continue;
        SCOPED_TRACE(cat(scheme, " [", outputs, ", ", inputs, "]"));
        const Case c(scheme, kernel().activation, inputs, outputs,
                     token_counts(kernel(), inputs).back());
        const Result<PreparedLinear> prepared = prepare_linear(kernel(), c.weight);
        ASSERT_TRUE(prepared.ok()) << prepared.status().message();
        for (int64_t tokens : token_counts(kernel(), inputs)) {
          Spaced y(tokens, outputs);
          run_linear(*prepared,
                     MatrixView<const float>(c.x.data.data(), tokens, inputs, c.x.stride),
                     c.bias.data(), y.view());
          compare(kernel(), c, tokens, y);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  EXPECT_GE(schemes, 1);
}

TEST_P(LinearRow, AddsNothingWithoutABias) {
  for (const char* scheme : kSchemes) {
    const int64_t inputs = 192;  // whole blocks of 64
    if (!can_run(scheme, inputs)) continue;
    SCOPED_TRACE(scheme);
    const LinearWeight weight = random_weight(scheme, 33, inputs, 4);
    const Result<PreparedLinear> prepared = prepare_linear(kernel(), weight);
    ASSERT_TRUE(prepared.ok()) << prepared.status().message();
    const std::vector<float> zeros(33, 0.0f);
    for (int64_t n : {1, 3, 14}) {
      const std::vector<float> x = random_floats(n * inputs, 5);
      std::vector<float> with(static_cast<size_t>(n * 33), kPoison), without = with;
      const MatrixView<const float> in(x.data(), n, inputs);
      run_linear(*prepared, in, zeros.data(), MatrixView<float>(with.data(), n, 33));
      run_linear(*prepared, in, nullptr, MatrixView<float>(without.data(), n, 33));
      for (size_t i = 0; i < with.size(); ++i) ASSERT_EQ(with[i], without[i]);
    }
  }
}

TEST_P(LinearRow, GivesTheSameBytesAtAnyThreadCount) {
  for (const char* scheme : kSchemes) {
    const int64_t outputs = 300, inputs = 576;
    if (!can_run(scheme, inputs)) continue;
    SCOPED_TRACE(scheme);
    const LinearWeight weight = random_weight(scheme, outputs, inputs, 6);
    for (int64_t n : {1, 4, 41}) {
      if (kernel().panel == nullptr && n > 4) continue;  // the definition is slow
      const std::vector<float> x = random_floats(n * inputs, 7);
      std::vector<float> first;
      for (int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Result<PreparedLinear> prepared = prepare_linear(kernel(), weight);
        ASSERT_TRUE(prepared.ok()) << prepared.status().message();
        std::vector<float> y(static_cast<size_t>(n * outputs), kPoison);
        run_linear(*prepared, MatrixView<const float>(x.data(), n, inputs), nullptr,
                   MatrixView<float>(y.data(), n, outputs));
        if (first.empty()) first = y;
        ASSERT_TRUE(same_bytes(first, y)) << n << " tokens, " << threads << " threads";
        ASSERT_FALSE(std::isnan(y.back()));
      }
    }
  }
}

// Rows that read activations as digits have none for these.
TEST_P(LinearRow, TakesInfinityNaNAndTinyActivations) {
  if (kernel().activation == LinearActivation::s8) return;
  for (const char* scheme : kSchemes) {
    const int64_t inputs = 128;
    if (!can_run(scheme, inputs)) continue;
    SCOPED_TRACE(scheme);
    const LinearWeight weight = random_weight(scheme, 5, inputs, 9);
    const Result<PreparedLinear> prepared = prepare_linear(kernel(), weight);
    ASSERT_TRUE(prepared.ok()) << prepared.status().message();
    // 17 and 33 tokens are more than any row takes straight from the codes.
    const bool is_slow = kernel().panel == nullptr;
    for (const int64_t n :
         is_slow ? std::vector<int64_t>{2} : std::vector<int64_t>{2, 17, 33}) {
      for (const float special : {INFINITY, NAN, 1e-31f}) {
        std::vector<float> x = random_floats(n * inputs, 10);
        if (special == 1e-31f) {
          for (float& value : x) value *= special;
        } else {
          x[7] = x[static_cast<size_t>((n - 1) * inputs + 9)] = special;
        }
        const MatrixView<const float> in(x.data(), n, inputs);
        const size_t outputs = static_cast<size_t>(n * 5);
        std::vector<float> found(outputs, kPoison), wanted(outputs);
        std::vector<double> magnitude(outputs);
        const int64_t before = emulated::dot_count();
        run_linear(*prepared, in, nullptr, MatrixView<float>(found.data(), n, 5));
        EXPECT_EQ(emulated::dot_count() - before,
                  n > 2 ? emulated_dots(*prepared, n) : 0);
        ASSERT_TRUE(linear_reference(weight, kernel().activation, in, nullptr,
                                     MatrixView<float>(wanted.data(), n, 5))
                        .ok());
        ASSERT_TRUE(linear_magnitude(weight, in, nullptr,
                                     MatrixView<double>(magnitude.data(), n, 5))
                        .ok());
        for (size_t i = 0; i < outputs; ++i) {
          if (std::isfinite(wanted[i])) {
            EXPECT_LE(std::fabs(found[i] - wanted[i]),
                      linear_tolerance(inputs) * magnitude[i])
                << special << ", " << n << " tokens, output " << i;
          } else {
            EXPECT_FALSE(std::isfinite(found[i])) << n << " tokens, output " << i;
          }
        }
      }
    }
  }
}

class LinearS8Row : public LinearRow {};

// 255 * 127 twice leaves 16 bits: the products that vpmaddubsw would cut off.
TEST_P(LinearS8Row, ExtremeCodesDoNotSaturate) {
  for (const char* text : {"uint8/t@f32", "int8/t@f32", "uint4/t@f32", "int4/t@f32"}) {
    const QuantScheme scheme = *parse_scheme(text);
    // 544 columns are whole tiles.
    for (const auto& [inputs, code] : {std::pair<int64_t, int>{520, code_lowest(scheme)},
                                       {520, code_highest(scheme)},
                                       {544, code_lowest(scheme)},
                                       {544, code_highest(scheme)}}) {
      if (!can_run(text, inputs)) continue;
      SCOPED_TRACE(cat(text, ", ", inputs, " columns, code ", code));
      CodedMatrix q;
      q.scheme = scheme;
      q.rows = 3;
      q.cols = inputs;
      q.codes.assign(static_cast<size_t>(3 * inputs), static_cast<uint8_t>(code));
      q.scales.push_back({1, 1, {1.0f}, 0});
      const Result<PackedTensor> packed = pack(q, {3, inputs});
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      const Result<PreparedLinear> prepared =
          prepare_linear(kernel(), *linear_weight(*packed));
      ASSERT_TRUE(prepared.ok()) << prepared.status().message();
      for (int64_t n : {1, 2, 12, 33}) {
        for (float sign : {-1.0f, 1.0f}) {
          const std::vector<float> x(static_cast<size_t>(n * inputs), 127 * sign);
          std::vector<float> y(static_cast<size_t>(n * 3), kPoison);
          run_linear(*prepared, MatrixView<const float>(x.data(), n, inputs), nullptr,
                     MatrixView<float>(y.data(), n, 3));
          for (float value : y) {
            ASSERT_EQ(value, sign * 127 * static_cast<float>(code) * inputs);
          }
        }
      }
    }
  }
}

class LinearTileRow : public LinearRow {};

// Groups that end inside a step, or are filled up to one; a last group of fewer columns;
// groups longer than a decoded block; rows of weights and of tokens that fill no tile.
TEST_P(LinearTileRow, TakesRemaindersOffsetsAndOddRows) {
  struct Shape {
    const char* scheme;
    int64_t inputs;
  };
  int shapes = 0;
  for (const Shape& shape : {Shape{"int4/g128@f16", 160},
                             {"int4/g60@f16", 150},
                             {"uint4/g64@f16+z/g64@uint4", 224},
                             {"uint4/g60@f16+z/g60@uint4", 150},
                             {"uint4/g60@f16+m/g60@f16", 150},
                             {"uint4/g640@f16+m/g640@f16", 1376},
                             {"int4/r@f32", 155},
                             {"int8/g128@f16", 160},
                             {"int8/r@f32", 155},
                             {"uint8/g60@f32+z/g60@uint8", 150},
                             {"uint8/g640@f16+m/g640@f16", 1376},
                             {"uint8/r@f32+z/r@uint8", 157},
                             {"nf4/f64@f32", 192},
                             {"e4m3/g32@f16", 80},
                             {"f32", 157},
                             {"bf16", 1056}}) {
    if (!can_run(shape.scheme, shape.inputs)) continue;
    ++shapes;
    for (int64_t outputs : {1, 33}) {
      SCOPED_TRACE(cat(shape.scheme, " [", outputs, ", ", shape.inputs, "]"));
      const Case c(shape.scheme, kernel().activation, shape.inputs, outputs, 33);
      const Result<PreparedLinear> prepared = prepare_linear(kernel(), c.weight);
      ASSERT_TRUE(prepared.ok()) << prepared.status().message();
      ASSERT_GT(step_of(*prepared), 0);
      for (int64_t n : {16, 17, 33}) {
        Spaced y(n, outputs);
        const int64_t before = emulated::dot_count();
        run_linear(*prepared,
                   MatrixView<const float>(c.x.data.data(), n, shape.inputs, c.x.stride),
                   c.bias.data(), y.view());
        EXPECT_EQ(emulated::dot_count() - before, emulated_dots(*prepared, n));
        compare(kernel(), c, n, y);
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GE(shapes, 2);
}

// 65 tokens of so many columns are more than go through the panels together.
TEST_P(LinearTileRow, LongPromptsOfWideRowsAreCutWithoutATrace) {
  const int64_t inputs = 16384, outputs = 40, n = 65;
  for (const char* scheme : {"uint4/g128@f16+m/g128@f16", "int8/r@f32", "bf16"}) {
    if (!can_run(scheme, inputs)) continue;
    SCOPED_TRACE(scheme);
    const Case c(scheme, kernel().activation, inputs, outputs, n);
    const Result<PreparedLinear> prepared = prepare_linear(kernel(), c.weight);
    ASSERT_TRUE(prepared.ok()) << prepared.status().message();
    std::vector<float> first;
    for (int threads : {1, 3}) {
      set_thread_count(threads);
      Spaced y(n, outputs);
      run_linear(*prepared, c.x.view(), c.bias.data(), y.view());
      compare(kernel(), c, n, y);
      if (HasFatalFailure()) return;
      if (first.empty()) first = y.data;
      ASSERT_TRUE(same_bytes(first, y.data)) << threads << " threads";
    }
  }
}

template <class Wanted>
std::vector<size_t> rows_where(const Wanted& wanted) {
  std::vector<size_t> found;
  for (size_t i = 0; i < rows().size(); ++i) {
    if (wanted(rows()[i])) found.push_back(i);
  }
  return found;
}
std::vector<size_t> s8_rows() {
  return rows_where(
      [](const LinearKernel& row) { return row.activation == LinearActivation::s8; });
}
std::vector<size_t> tile_rows() {
  return rows_where([](const LinearKernel& row) { return row.tiles != nullptr; });
}
std::string row_name(const ::testing::TestParamInfo<size_t>& info) {
  return test_name(rows()[info.param].name);
}

INSTANTIATE_TEST_SUITE_P(Rows, LinearS8Row, ::testing::ValuesIn(s8_rows()), row_name);
INSTANTIATE_TEST_SUITE_P(Rows, LinearTileRow, ::testing::ValuesIn(tile_rows()), row_name);
INSTANTIATE_TEST_SUITE_P(Rows, LinearRow, ::testing::Range<size_t>(0, rows().size()),
                         row_name);

// What the tiles in memory refuse, as a CPU does.
class TileRules : public OpTest {
 protected:
  void SetUp() override {
    if (!this_cpu_has(kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni))
      GTEST_SKIP() << "the tiles in memory are compiled for AVX-512 VNNI";
    runs_ = true;
  }
  void TearDown() override {
    if (runs_) emulated::release();
  }
  bool runs_ = false;
};

template <class Body>
std::string fault_of(const Body& body) {
  try {
    body();
  } catch (const emulated::TileFault& fault) {
    return fault.what();
  }
  return "none";
}

TEST_F(TileRules, AConfigurationIsOneThatTheCpuLoads) {
  const auto fault = [](auto change) {
    TileConfig config = tile_config(64);
    change(config);
    const std::string found = fault_of([&] { emulated::configure(config); });
    emulated::release();
    return found;
  };
  EXPECT_EQ(fault([](TileConfig&) {}), "none");
  EXPECT_EQ(fault([](TileConfig& c) { c.palette = 0; }), "the palette is 1");
  EXPECT_EQ(fault([](TileConfig& c) { c.palette = 2; }), "the palette is 1");
  EXPECT_EQ(fault([](TileConfig& c) { c.start_row = 1; }), "loads start at row 0");
  EXPECT_EQ(fault([](TileConfig& c) { c.reserved[13] = 1; }),
            "reserved bytes of a configuration are 0");
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[3] = 17; }), "a tile has at most 16 rows");
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[7] = 68; }),
            "a tile's rows have at most 64 bytes");
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[4] = 62; }),
            "a tile's rows are whole dwords");
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[0] = 0; }),
            "a tile has both rows and bytes, or neither");
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[0] = 0; }),
            "a tile has both rows and bytes, or neither");
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[0] = c.row_bytes[0] = 0; }), "none");
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[8] = c.row_bytes[8] = 16; }),
            "there are eight tiles");
}

TEST_F(TileRules, TilesAreUsedWhileTheyAreConfigured) {
  std::vector<uint8_t> memory(16 * 64);
  const auto each = [&](int tile, const std::string& rule) {
    EXPECT_EQ(fault_of([&] { emulated::zero(tile); }), rule);
    EXPECT_EQ(fault_of([&] { emulated::load(tile, memory.data(), 64); }), rule);
    EXPECT_EQ(fault_of([&] { emulated::store(tile, memory.data(), 64); }), rule);
    EXPECT_EQ(fault_of([&] { emulated::dot_s8(tile, 4, 6); }), rule);
    EXPECT_EQ(fault_of([&] { emulated::dot_bf16(tile, 4, 6); }), rule);
    EXPECT_EQ(fault_of([&] { emulated::dot_s8(0, 4, tile); }), rule);
  };
  const char* const unused = "tiles are used between ldtilecfg and tilerelease";
  each(1, unused);
  TileConfig config = tile_config(64);
  config.rows[1] = config.row_bytes[1] = 0;
  emulated::configure(config);
  EXPECT_EQ(fault_of([&] { emulated::configure(config); }),
            "a thread gives its tiles back before it configures them again");
  each(2, "none");
  each(1, "a tile that is used has rows in the configuration");
  each(8, "there are eight tiles");
  // Another thread has registers of its own.
  std::thread([&] { EXPECT_EQ(fault_of([] { emulated::zero(2); }), unused); }).join();
  emulated::release();
  each(2, unused);
}

TEST_F(TileRules, ProductsTakeThreeDifferentTiles) {
  emulated::configure(tile_config(64));  // all of one shape
  const char* const rule = "a product takes three different tiles";
  for (const auto& dot : {emulated::dot_s8, emulated::dot_bf16}) {
    EXPECT_EQ(fault_of([&] { dot(0, 0, 6); }), rule);
    EXPECT_EQ(fault_of([&] { dot(0, 4, 0); }), rule);
    EXPECT_EQ(fault_of([&] { dot(0, 4, 4); }), rule);
    EXPECT_EQ(fault_of([&] { dot(0, 4, 6); }), "none");
  }
}

TEST_F(TileRules, ProductsTakeTilesOfShapesThatAgree) {
  const auto fault = [](auto change) {
    TileConfig config = tile_config(32);
    change(config);
    emulated::configure(config);
    const std::string integers = fault_of([] { emulated::dot_s8(0, 4, 6); });
    EXPECT_EQ(fault_of([] { emulated::dot_bf16(0, 4, 6); }), integers);
    emulated::release();
    return integers;
  };
  const std::string rows = "a product has as many rows as its left operand";
  const std::string width = "a product is as wide as its right operand";
  const std::string inner =
      "a dword of the left operand's rows meets a row of the right one";
  EXPECT_EQ(fault([](TileConfig&) {}), "none");
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[0] = 15; }), rows);
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[4] = 15; }), rows);
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[0] = c.rows[4] = 3; }), "none");
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[0] = 60; }), width);
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[6] = 60; }), width);
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[4] = 28; }), inner);
  EXPECT_EQ(fault([](TileConfig& c) { c.row_bytes[4] = 64; }), inner);
  EXPECT_EQ(fault([](TileConfig& c) { c.rows[6] = 7; }), inner);
}

// Rows and bytes beyond a tile's are neither read nor written.
TEST_F(TileRules, LoadsAndStoresKeepToTheConfiguredRows) {
  TileConfig config = tile_config(32);
  config.rows[4] = 3;
  emulated::configure(config);
  std::vector<uint8_t> from(3 * 40, 7), to(16 * 64, 9);
  from.resize(2 * 40 + 32);  // as much as 3 rows of 32 bytes take, 40 apart
  emulated::load(4, from.data(), 40);
  emulated::store(4, to.data(), 64);
  for (size_t i = 0; i < to.size(); ++i) {
    ASSERT_EQ(to[i], i / 64 < 3 && i % 64 < 32 ? 7 : 9) << i;
  }
  emulated::zero(4);
  emulated::store(4, to.data(), 64);
  EXPECT_EQ(to[2 * 64 + 31], 0);
  EXPECT_EQ(to[2 * 64 + 32], 9);
}

TEST_F(TileRules, ProductsByHand) {
  emulated::configure(tile_config(32));
  // Row 1 of codes is -1 2 0 ..., column 2 of the others 255 3: signed by unsigned.
  std::vector<int8_t> left(16 * 32);
  std::vector<uint8_t> right(8 * 64);
  left[32] = -1;
  left[33] = 2;
  right[8] = 255;
  right[9] = 3;
  emulated::load(4, left.data(), 32);
  emulated::load(6, right.data(), 64);
  std::vector<int32_t> sums(256, 1);
  emulated::load(0, sums.data(), 64);
  emulated::dot_s8(0, 4, 6);
  emulated::store(0, sums.data(), 64);
  for (size_t i = 0; i < sums.size(); ++i) {
    ASSERT_EQ(sums[i], i == 16 + 2 ? 1 - 255 + 6 : 1) << i;
  }
  // First and second halves of pairs are summed apart: 2^24 - 2^24, and 1 + 1. One after
  // another the sum would be 1. Numbers below 2^-126 count as 0.
  std::vector<uint16_t> a(16 * 16), b(8 * 32);
  a[0] = bf16_from_float(0x1p24f);
  a[1] = a[3] = bf16_from_float(1);
  a[2] = bf16_from_float(-0x1p24f);
  a[16] = bf16_from_float(0x1p-127f);
  a[32] = bf16_from_float(0x1p-100f);
  b[0] = b[1] = b[32] = b[33] = bf16_from_float(1);
  b[2] = bf16_from_float(0x1p100f);
  b[4] = bf16_from_float(0x1p-27f);
  emulated::load(4, a.data(), 32);
  emulated::load(6, b.data(), 64);
  std::vector<float> y(256);
  emulated::zero(0);
  emulated::dot_bf16(0, 4, 6);
  emulated::store(0, y.data(), 64);
  EXPECT_EQ(y[0], 2);
  EXPECT_EQ(y[16 + 1], 0);  // 2^-127 2^100
  EXPECT_EQ(y[32 + 0], 0x1p-100f);
  EXPECT_EQ(y[32 + 1], 1);
  EXPECT_EQ(y[32 + 2], 0);  // 2^-127
}

class LinearTable : public OpTest {};

std::string selected(const char* scheme, LinearActivation activation, uint32_t flags,
                     int64_t cols = 256) {
  const LinearKernel* kernel =
      select_linear(*parse_scheme(scheme), cols, activation, flags);
  return kernel ? kernel->name : "none";
}

TEST_F(LinearTable, PicksTheBestRowThatTheCpuAllows) {
  const uint32_t avx2 = kCpuAvx2, vnni = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;
  const auto f32 = LinearActivation::f32, s8 = LinearActivation::s8;
  EXPECT_EQ(selected("int4/g128@f16", f32, vnni), "linear_f32_int4g__avx512vnni");
  EXPECT_EQ(selected("int4/g128@f16", f32, avx2), "linear_f32_int4g__avx2");
  EXPECT_EQ(selected("int4/g128@f16", f32, avx2 | kCpuAvx512), "linear_f32_int4g__avx2");
  EXPECT_EQ(selected("int4/g128@f16", f32, 0), "linear_f32_any__reference");
  EXPECT_EQ(selected("int8/r@f32", f32, vnni), "linear_f32_int8__avx512vnni");
  EXPECT_EQ(selected("f32", f32, vnni), "linear_f32_f32__avx512vnni");
  EXPECT_EQ(selected("bf16", f32, avx2), "linear_f32_bf16__avx2");
  EXPECT_EQ(selected("f16", f32, vnni), "linear_f32_f16__avx512vnni");
  for (const char* scheme : {"nf4/f64@f32", "nf4/f64@dyn8+o/f16384@f32", "fp4/f64@f32",
                             "e2m1/g16@e4m3/t@f32", "e2m1/g32@e8m0", "ternary/t@f32"}) {
    EXPECT_EQ(selected(scheme, f32, vnni), "linear_f32_table4__avx512vnni") << scheme;
    EXPECT_EQ(selected(scheme, f32, avx2), "linear_f32_table4__avx2") << scheme;
  }
  // Blocks of 64 that go over the ends of rows.
  EXPECT_EQ(selected("nf4/f64@f32", f32, vnni, 100), "linear_f32_any__avx512vnni");
  EXPECT_EQ(selected("nf4/f64@dyn8+o/f16384@f32", f32, vnni, 192),
            "linear_f32_table4__avx512vnni");
  EXPECT_EQ(selected("nf4/f64@f32", f32, vnni, 32), "linear_f32_table4__avx512vnni");
  EXPECT_EQ(selected("e4m3/r@f32", f32, vnni), "linear_f32_fp8__avx512vnni");
  EXPECT_EQ(selected("e5m2/g128@f16", f32, avx2), "linear_f32_fp8__avx2");
  EXPECT_EQ(selected("int8/c@f32", f32, avx2), "linear_f32_any__avx2");
  EXPECT_EQ(selected("int4/g128@f16", s8, avx2 | kCpuAvxVnni),
            "linear_s8_int4g__avxvnni");
  EXPECT_EQ(selected("int8/r@f32", f32, avx2 | kCpuAvxVnni), "linear_f32_int8__avxvnni");
  EXPECT_EQ(selected("nf4/f64@f32", f32, avx2 | kCpuAvxVnni), "linear_f32_table4__avx2");
  const auto bf16 = LinearActivation::bf16;
  const uint32_t all = vnni | kCpuAvx512Bf16;
  for (const char* scheme : {"f32", "bf16", "f16"}) {
    EXPECT_EQ(selected(scheme, bf16, all), "linear_bf16_plain__avx512bf16") << scheme;
  }
  for (const char* scheme : {"nf4/f64@f32", "int4/g128@f16", "e2m1/g32@e8m0"}) {
    EXPECT_EQ(selected(scheme, bf16, all), "linear_bf16_table4__avx512bf16") << scheme;
  }
  for (const char* scheme : {"e4m3/r@f32", "int8/r@f32", "uint8/r@f32+z/r@uint8"}) {
    EXPECT_EQ(selected(scheme, bf16, all), "linear_bf16_table8__avx512bf16") << scheme;
  }
  EXPECT_EQ(selected("int8/c@f32", bf16, all), "linear_bf16_any__reference");
  EXPECT_EQ(selected("int4/g128@f16", s8, vnni | kCpuAmxInt8), "linear_s8_int4g__amx");
  EXPECT_EQ(selected("int8/r@f32", s8, all | kCpuAmxInt8), "linear_s8_int8__amx");
  EXPECT_EQ(selected("nf4/f64@f32", bf16, all | kCpuAmxBf16), "linear_bf16_table4__amx");
  EXPECT_EQ(selected("nf4/f64@f32", bf16, vnni | kCpuAmxBf16),
            "linear_bf16_any__reference");
  EXPECT_EQ(selected("nf4/f64@f32", bf16, vnni), "linear_bf16_any__reference");
  EXPECT_EQ(selected("uint3/g32@f16+m/g32@f16", s8, vnni), "linear_s8_int4g__avx512vnni");
  EXPECT_EQ(selected("int5/r@f32", s8, avx2), "linear_s8_int8__avx2");
  EXPECT_EQ(selected("int4/g128@f16", s8, 0), "linear_s8_any__reference");
  // int8 activations need integer codes, scales along rows, whole zero points.
  for (const char* scheme :
       {"f32", "nf4/f64@f32", "int8/c@f32", "int4/f96@f32", "int4/g4@f32"}) {
    EXPECT_EQ(selected(scheme, s8, vnni), "none") << scheme;
  }
}

TEST_F(LinearTable, AStepOfATileEndsWithItsGroup) {
  EXPECT_EQ(tile_step(128, 4096, 1), 64);
  EXPECT_EQ(tile_step(32, 4096, 1), 32);
  EXPECT_EQ(tile_step(32, 4096, 2), 64);
  EXPECT_EQ(tile_step(16, 4096, 2), 32);
  EXPECT_EQ(tile_step(16, 4096, 1), 0);
  EXPECT_EQ(tile_step(2112, 2112, 1), 64);
  EXPECT_EQ(tile_step(128, 2144, 1), 32);  // the last group has 96 columns
  EXPECT_EQ(tile_step(128, 2104, 1), 0);   // or 56
}

TEST_F(LinearTable, FollowsTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    const LinearKernel* kernel =
        select_linear(*parse_scheme("int4/g32@f16"), 64, LinearActivation::s8);
    ASSERT_NE(kernel, nullptr);
    EXPECT_THAT(
        kernel->name,
        ::testing::EndsWith("__" + (level == "amx" ? level : isa_under(level, true))));
  }
}

// A definition is no speed: where no row has the product, float activations it is.
TEST_F(LinearTable, PrefersWhatTheCpuMultiplies) {
  const LinearWeight nf4 = random_weight("nf4/f64@f32", 2, 64, 1);
  const LinearWeight columns = random_weight("int8/c@f32", 2, 64, 1);
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    const bool has = level == "avx512bf16" || level == "amx";
    EXPECT_EQ(preferred_linear(nf4, LinearActivation::bf16)->activation,
              has ? LinearActivation::bf16 : LinearActivation::f32)
        << level;
    for (const auto wanted : {LinearActivation::bf16, LinearActivation::s8}) {
      EXPECT_EQ(preferred_linear(columns, wanted)->activation, LinearActivation::f32);
    }
  }
}

TEST_F(LinearTable, TheDefinitionByHand) {
  // Codes 1 -2 | 3 with scales 0.5 | 0.25; x = 1 2 | 4, bias 10.
  CodedMatrix q;
  q.scheme = *parse_scheme("int4/g8@f32");
  q.rows = 1;
  q.cols = 9;
  q.codes = {1, 0xfe, 0, 0, 0, 0, 0, 0, 3};
  q.scales.push_back({1, 2, {0.5f, 0.25f}, 0});
  const LinearWeight weight = *linear_weight(*pack(q, {1, 9}));
  const std::vector<float> x = {1, 2, 0, 0, 0, 0, 0, 0, 4};
  const float bias = 10;
  float y = kPoison;
  const MatrixView<const float> in(x.data(), 1, 9);
  ASSERT_TRUE(linear_reference(weight, LinearActivation::f32, in, &bias,
                               MatrixView<float>(&y, 1, 1))
                  .ok());
  EXPECT_EQ(y, 0.5f * (1 - 4) + 0.25f * 12 + 10);
  // 1 + 2^-8 lies between two bf16 numbers and goes to the even one; NF4's values are
  // none.
  const std::vector<float> between = {1.00390625f, 2, 0, 0, 0, 0, 0, 0, 4};
  ASSERT_TRUE(linear_reference(weight, LinearActivation::bf16,
                               MatrixView<const float>(between.data(), 1, 9), &bias,
                               MatrixView<float>(&y, 1, 1))
                  .ok());
  EXPECT_EQ(y, 0.5f * (1 - 4) + 0.25f * 12 + 10);
  CodedMatrix table;
  table.scheme = *parse_scheme("nf4/r@f32");
  table.rows = table.cols = 1;
  table.codes = {14};  // 0.7229568
  table.scales.push_back({1, 1, {2.0f}, 0});
  ASSERT_TRUE(linear_reference(*linear_weight(*pack(table, {1, 1})),
                               LinearActivation::bf16,
                               MatrixView<const float>(between.data(), 1, 1), nullptr,
                               MatrixView<float>(&y, 1, 1))
                  .ok());
  EXPECT_EQ(y, 2 * 0.72265625f);  // 185 / 256
  // s_x = 4 / 127; q_x = 32 (31.75), 64 (63.5 to even), 127.
  const float s = 4.0f / 127;
  ASSERT_TRUE(linear_reference(weight, LinearActivation::s8, in, &bias,
                               MatrixView<float>(&y, 1, 1))
                  .ok());
  EXPECT_EQ(y, ((32 - 2 * 64) * 0.5f + 127 * 3 * 0.25f) * s + 10);
  double magnitude = 0;
  ASSERT_TRUE(
      linear_magnitude(weight, in, &bias, MatrixView<double>(&magnitude, 1, 1)).ok());
  EXPECT_EQ(magnitude, 0.5 * (1 + 4) + 0.25 * 12 + 10);
}

TEST_F(LinearTable, RefusalsSayWhatWasFound) {
  const LinearWeight nf4 = random_weight("nf4/f64@f32", 2, 64, 1);
  const LinearKernel* int8 =
      select_linear(*parse_scheme("int8/r@f32"), 64, LinearActivation::s8, 0);
  ASSERT_NE(int8, nullptr);
  const Result<PreparedLinear> prepared = prepare_linear(*int8, nf4);
  ASSERT_FALSE(prepared.ok());
  EXPECT_EQ(prepared.status().code(), StatusCode::unsupported);
  EXPECT_EQ(
      prepared.status().message(),
      "[linear] linear_s8_any__reference: a weight of this row's schemes was required; "
      "found nf4/f64@f32; ask select_linear for a row");

  std::vector<float> x(64), y(3);
  const Status shapes = linear_reference(nf4, LinearActivation::f32,
                                         MatrixView<const float>(x.data(), 1, 64),
                                         nullptr, MatrixView<float>(y.data(), 1, 3));
  EXPECT_EQ(shapes.code(), StatusCode::invalid_argument);
  EXPECT_EQ(shapes.message(),
            "[linear] weight [2, 64] needs x [n, 64] and y [n, 2]; found x [1, 64] and y "
            "[1, 3]");
  const Status integer = linear_reference(nf4, LinearActivation::s8,
                                          MatrixView<const float>(x.data(), 1, 64),
                                          nullptr, MatrixView<float>(y.data(), 1, 2));
  EXPECT_EQ(integer.code(), StatusCode::unsupported);
  EXPECT_THAT(integer.message(), HasSubstr("found nf4/f64@f32"));

  const std::vector<int32_t> ids = {1, 2};
  const Result<LinearWeight> weight = linear_weight(make_tensor({2}, ids));
  ASSERT_FALSE(weight.ok());
  EXPECT_EQ(
      weight.status().message(),
      "[linear] a plain weight must be F32, F16, BF16 or F64; found I32; convert it");
}

}  // namespace
}  // namespace nibble
