// KV caches: what is stored is what scheme/ and packing/ say, every row reads and attends
// it as the definition does, at any length, and the sizes are what was promised.
#include <gmock/gmock.h>

#include <algorithm>

#include "kernels/ops/attention/attention.h"
#include "kernels/ops/kv_attention/kv_attention.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/kv_attention/kv_pack.h"
#include "kernels/packing/packed_tensor.h"
#include "op_test.h"

namespace nibble {
namespace {

using testing::HasSubstr;

// Schemes for rows of 128: the short names' own, and others that only parts of the code
// serve (codes without vectors, several levels, blocks over channels).
const char* const kSchemes[] = {"f32",
                                "f16",
                                "bf16",
                                "int8n/g64@f16",
                                "int8/r@f32",
                                "uint8/g32@f16+z/g32@uint8",
                                "e4m3/g64@f16",
                                "int4/g32@f16",
                                "int4/r@f16",
                                "int8n/b32x1@f16",
                                "int8/b16x1@f16+z/b16x1@int8",
                                "uint4/g64@f16+m/g64@f16",
                                "uint4/g32@bf16+z/g32@uint4",
                                "uint4/b32x1@f16+m/b32x1@f16",
                                "uint4/b16x4@f16+z/b16x4@uint4",
                                "uint2/b32x1@f16+m/b32x1@f16",
                                "nf4/g32@f16",
                                "e5m2/r@f16",
                                "e2m1/g16@e8m0",
                                "int3/g64@f16",
                                "uint6/g32@uint6/g64@f16+m/g32@uint6/g64@f16"};

KvRows rows_of(const std::string& text, int64_t capacity, int64_t width) {
  const Result<QuantScheme> scheme = parse_scheme(text);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  Result<KvRows> rows = KvRows::create(*scheme, capacity, width);
  EXPECT_TRUE(rows.ok()) << rows.status().message();
  return std::move(rows).value();
}

std::vector<float> read_all(const KvRows& rows, const KvDecodeIsa* isa = nullptr) {
  std::vector<float> x(static_cast<size_t>(rows.length() * rows.width()), kPoison);
  rows.read(isa, 0, 0, {x.data(), rows.length(), rows.width()});
  return x;
}

class KvStored : public OpTest, public ::testing::WithParamInterface<const char*> {};

// An independent account: quantize and pack each position (or block of positions) with
// the general library, unpack, dequantize.
TEST_P(KvStored, IsWhatTheSchemeSays) {
  const QuantScheme scheme = *parse_scheme(GetParam());
  constexpr int64_t kWidth = 128, kLength = 275;
  const int64_t together = kv_block_positions(scheme);
  std::vector<float> x = random_floats(kLength * kWidth, 3);
  for (int64_t i = 0; i < kLength * kWidth; ++i) {
    // Channels of very different size and mean, as keys have.
    x[static_cast<size_t>(i)] = x[static_cast<size_t>(i)] * (i % 7 == 0 ? 20.0f : 1.0f) +
                                (i % 11 == 0 ? 30.0f : 0.0f);
  }
  KvRows rows = rows_of(GetParam(), kLength, kWidth);
  // In uneven parts: 1, 2, 3 ... rows a call.
  for (int64_t at = 0, n = 1; at < kLength; at += n, n = std::min(n + 1, kLength - at)) {
    ASSERT_TRUE(rows.append({x.data() + at * kWidth, n, kWidth}).ok());
  }
  ASSERT_EQ(rows.length(), kLength);
  EXPECT_EQ(rows.bytes(), KvRows::bytes_for(scheme, kLength, kWidth));
  const std::vector<float> found = read_all(rows);
  for (int64_t at = 0; at < kLength; at += together) {
    const int64_t n = std::min(together, kLength - at);
    std::vector<float> part(x.begin() + at * kWidth, x.begin() + (at + n) * kWidth);
    if (together > 1) {
      for (float& value : part) value = float_from_f16(f16_from_float(value));
    }
    if (scheme.code == Element::f16) {
      for (float& value : part) value = float_from_f16(f16_from_float(value));
    } else if (scheme.code == Element::bf16) {
      for (float& value : part) value = float_from_bf16(bf16_from_float(value));
    } else if (!scheme.is_float() && n == together) {
      const MatrixView<const float> view(part.data(), n, kWidth);
      Result<CodedMatrix> q = choose_scales(view, scheme, ScaleRule{});
      ASSERT_TRUE(q.ok() && quantize(view, *q).ok());
      const Result<PackedTensor> packed = pack(*q, {n, kWidth});
      ASSERT_TRUE(packed.ok());
      ASSERT_TRUE(dequantize_rows(*packed, 0, {part.data(), n, kWidth}).ok());
    }
    for (int64_t i = 0; i < n * kWidth; ++i) {
      ASSERT_EQ(found[static_cast<size_t>(at * kWidth + i)], part[static_cast<size_t>(i)])
          << "position " << at + i / kWidth << ", column " << i % kWidth;
    }
  }
  // Quantized, but still the rows that came in.
  double error = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(found[i]) - x[i], 2);
    size += std::pow(static_cast<double>(x[i]), 2);
  }
  EXPECT_LT(error / size, element_info(scheme.code).bits <= 2 ? 0.3 : 0.1);
  if (!scheme.is_float()) {
    EXPECT_GT(error / size, 1e-7);
  }
}

// The bytes that are packed without an allocation are those of the general functions, signs
// of zeros included; what those refuse is not packed.
TEST_P(KvStored, PacksTheGeneralBytes) {
  const QuantScheme scheme = *parse_scheme(GetParam());
  if (!packs_kv(scheme)) {  // which the general functions store
    const std::vector<float> x(64, 1.0f);
    EXPECT_FALSE(pack_kv(scheme, {x.data(), 1, 64}, 0, {nullptr, nullptr, nullptr}));
    return;
  }
  const int64_t together = kv_block_positions(scheme);
  const auto values = [](const Bytes& bytes) {
    const uint8_t* data = reinterpret_cast<const uint8_t*>(bytes.data());
    return std::vector<uint8_t>(data, data + bytes.size());
  };
  for (const int64_t width : {64, 128, 100, 20, 3}) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      SCOPED_TRACE(cat("width ", width, ", seed ", seed));
      std::vector<float> x = random_floats(together * width, seed);
      SplitMix64 random(seed + 100);
      for (float& value : x) {
        const double draw = random.uniform();
        if (seed % 4 == 1 && draw < 0.9) value = draw < 0.45 ? 0.0f : -0.0f;
        if (seed % 4 == 2) value = std::fabs(value) * (draw < 0.1 ? 200.0f : 1e-7f);
        if (seed % 4 == 3) value = 3 - 1e-3f * value;
      }
      if (seed == 5) std::fill(x.begin(), x.end(), -0.0f);
      const MatrixView<const float> view(x.data(), together, width);
      Result<CodedMatrix> q = choose_scales(view, scheme, ScaleRule{});
      ASSERT_TRUE(q.ok() && quantize(view, *q).ok());
      const Result<PackedTensor> packed = pack(*q, {together, width});
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      std::vector<uint8_t> codes(packed->codes.size(), 0xa5), offsets,
          scales(packed->scales[0].values.size(), 0xa5);
      if (!packed->offsets.empty()) offsets.resize(packed->offsets[0].values.size());
      ASSERT_TRUE(pack_kv(scheme, view, 0, {codes.data(), scales.data(), offsets.data()}));
      EXPECT_EQ(codes, values(packed->codes));
      EXPECT_EQ(scales, values(packed->scales[0].values));
      if (!offsets.empty()) {
        EXPECT_EQ(offsets, values(packed->offsets[0].values));
      }
      x.back() = std::numeric_limits<float>::infinity();
      EXPECT_FALSE(pack_kv(scheme, view, 0, {codes.data(), scales.data(), offsets.data()}));
      x.back() = 1e38f;  // which some scales hold
      q = choose_scales(view, scheme, ScaleRule{});
      EXPECT_EQ(pack_kv(scheme, view, 0, {codes.data(), scales.data(), offsets.data()}),
                q.ok() && quantize(view, *q).ok() && pack(*q, {together, width}).ok());
    }
  }
}

TEST(KvRows, ShortNamesArePackedWithoutTheGeneralFunctions) {
  for (const char* name : {"int8", "fp8", "int4", "int8-static", "fp8-static"}) {
    const KvScheme scheme = *parse_kv_scheme(name, 2, 64);
    EXPECT_TRUE(packs_kv(scheme.keys) && packs_kv(scheme.values)) << name;
  }
  EXPECT_FALSE(packs_kv(*parse_scheme("e2m1/g16@e8m0")));
  EXPECT_FALSE(packs_kv(*parse_scheme("uint6/g32@uint6/g64@f16+m/g32@uint6/g64@f16")));
}

TEST_P(KvStored, EveryRowReadsTheSameBits) {
  for (const int64_t width : {128, 96, 20}) {
    const QuantScheme scheme = *parse_scheme(GetParam());
    KvRows rows = rows_of(GetParam(), 50, width);
    const std::vector<float> x = random_floats(50 * width, 8);
    ASSERT_TRUE(rows.append({x.data(), 50, width}).ok());
    for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
      if (!this_cpu_has(kernel.flags) || kernel.decode == nullptr) continue;
      for (const int64_t column : {0, 16, 4}) {
        for (const int64_t cols : {width - column, int64_t{5}, int64_t{8}}) {
          if (column + cols > width) continue;
          std::vector<float> a(static_cast<size_t>(50 * (cols + 2)), kPoison), b = a;
          rows.read(nullptr, 0, column, {a.data(), 50, cols, cols + 2});
          rows.read(kernel.decode, 0, column, {b.data(), 50, cols, cols + 2});
          ASSERT_TRUE(same_bytes(a, b)) << kernel.name << ", " << cols << " columns from "
                                        << column << " of " << width;
        }
      }
    }
  }
}

TEST_P(KvStored, ForgetsAndGoesOn) {
  const std::vector<float> x = random_floats(80 * 64, 4);
  KvRows rows = rows_of(GetParam(), 80, 64), once = rows_of(GetParam(), 80, 64);
  ASSERT_TRUE(rows.append({x.data() + 64 * 7, 60, 64}).ok());
  rows.truncate(0);
  EXPECT_EQ(rows.length(), 0);
  ASSERT_TRUE(rows.append({x.data(), 33, 64}).ok());
  ASSERT_TRUE(once.append({x.data(), 33, 64}).ok());
  EXPECT_TRUE(same_bytes(read_all(rows), read_all(once)));
  // Cut inside: what is left reads as before, up to the partial block's f16.
  const std::vector<float> before = read_all(rows);
  rows.truncate(21);
  const std::vector<float> after = read_all(rows);
  ASSERT_EQ(after.size(), size_t{21 * 64});
  for (size_t i = 0; i < after.size(); ++i)
    EXPECT_NEAR(after[i], before[i], std::fabs(before[i]) * 0x1p-11 + 1e-7);
  ASSERT_TRUE(rows.append({x.data() + 21 * 64, 59, 64}).ok());
  EXPECT_EQ(rows.length(), 80);
  EXPECT_EQ(rows.append({x.data(), 1, 64}).code(), StatusCode::invalid_argument);
}

class KvAttends : public OpTest {};

struct Shapes {
  int64_t heads, kv_heads, head_dim;
};

TEST_P(KvStored, EveryRowAttendsAsTheDefinitionDoes) {
  for (const Shapes& heads :
       {Shapes{6, 2, 64}, {3, 1, 80}, {4, 2, 96}, {5, 1, 128}, {2, 2, 32}, {7, 1, 200}}) {
    const AttentionShape shape{heads.heads, heads.kv_heads, heads.head_dim,
                               1.0f / std::sqrt(static_cast<float>(heads.head_dim))};
    const int64_t width = heads.kv_heads * heads.head_dim;
    for (const auto& [before, tokens] :
         {std::pair<int64_t, int64_t>{0, 1}, {0, 5}, {130, 3}, {261, 1}, {140, 9}}) {
      const int64_t length = before + tokens;
      KvRows k = rows_of(GetParam(), length, width),
             v = rows_of(GetParam(), length, width);
      const std::vector<float> keys = random_floats(length * width, 5);
      const std::vector<float> values = random_floats(length * width, 6);
      ASSERT_TRUE(k.append({keys.data(), length, width}).ok());
      ASSERT_TRUE(v.append({values.data(), length, width}).ok());
      const int64_t q_width = heads.heads * heads.head_dim;
      const Spaced q(random_floats(tokens * q_width, 7), tokens, q_width);
      Spaced expected(tokens, q_width);
      kv_attention_reference(shape, q.view(), k, v, expected.view());
      for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
        // The reference row is the definition.
        if (!this_cpu_has(kernel.flags) || kernel.isa == nullptr) continue;
        Spaced y(tokens, q_width);
        kv_attention(kernel, shape, q.view(), k, v, y.view());
        ASSERT_TRUE(y.gaps_untouched());
        // attention.h's bound: |q k| scale <= 5 sqrt(dim) and |v| <= 6 here, and the
        // errors are far inside it.
        const double bound = (8.0 * static_cast<double>(heads.head_dim + 8) * 8 +
                              2 * static_cast<double>(length + 8)) *
                             0x1p-24 * 6;
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < q_width; ++c) {
            ASSERT_NEAR(y.view()(t, c), expected.view()(t, c), bound)
                << kernel.name << ", " << before << " + " << tokens << " tokens, token "
                << t << ", column " << c;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, KvStored, ::testing::ValuesIn(kSchemes),
                         [](const auto& info) { return test_name(info.param); });

// Products by digits are exact: sums of integers below 2^24 come out as they are.
TEST_F(KvAttends, DigitsMultiplyExactly) {
  constexpr int64_t kDim = 72, kLength = 37, kRows = 3;
  for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
    if (!this_cpu_has(kernel.flags) || kernel.decode == nullptr) continue;
    const KvDigitsIsa* isa = kernel.decode->digits;
    if (isa == nullptr) continue;
    for (const char* text :
         {"int8/t@f32", "int4/t@f32", "uint8/r@f32+m/r@f32", "uint4/r@f32+m/r@f32"}) {
      const QuantScheme scheme = *parse_scheme(text);
      KvRows rows = *KvRows::create(scheme, kLength, kDim, 0.02f);
      const std::vector<float> x = random_floats(kLength * kDim, 5);
      ASSERT_TRUE(rows.append({x.data(), kLength, kDim}).ok());
      const KvCodes codes = rows.codes(0, 0);
      const bool halves = bits_of(codes.code) == 4;
      // The codes themselves, from the bytes.
      const auto code = [&](int64_t j, int64_t d) -> int64_t {
        const uint8_t byte = codes.at(halves ? d / 2 : d)[j * codes.row_bytes];
        const int bits = halves ? (d % 2 == 0 ? byte & 15 : byte >> 4) : byte;
        return bits - (element_info(scheme.code).lowest < 0 && bits >> (halves ? 3 : 7)
                           ? (halves ? 16 : 256)
                           : 0);
      };
      const auto number = [](int64_t r, int64_t i) {
        return (r * 31 + i * 17) % 101 - 50;
      };
      const auto digits_of = [&](int64_t n, int64_t padded, std::vector<int32_t>& dwords,
                                 std::vector<int32_t>& starts, const auto& at) {
        const int64_t steps = padded / 4;
        dwords.assign(static_cast<size_t>(kRows * steps * kKvDigits), 0);
        starts.assign(kRows * kKvDigits, 0);
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t i = 0; i < n; ++i) {
            // Its lowest digit; the next holds a tenth, so that both count.
            const int64_t place = at(i);
            auto* bytes = reinterpret_cast<int8_t*>(dwords.data()) +
                          (r * steps + place / 4) * kKvDigits * 4 + place % 4;
            bytes[0] = static_cast<int8_t>(number(r, i));
            bytes[4] = static_cast<int8_t>(number(r, i) / 10);
            starts[static_cast<size_t>(r * kKvDigits)] -=
                kv_bias(codes.code) * static_cast<int32_t>(bytes[0]);
            starts[static_cast<size_t>(r * kKvDigits + 1)] -=
                kv_bias(codes.code) * static_cast<int32_t>(bytes[4]);
          }
        }
      };
      const auto whole = [&](int64_t r, int64_t i) {
        return number(r, i) + 256 * (number(r, i) / 10);
      };
      std::vector<int32_t> dwords, starts, sums(kRows * kKvDigits * 16);
      std::vector<float> ones(kRows, 1), zeros(kRows, 0);
      const auto in_step = [&](int64_t d) {
        return halves ? d / 8 * 8 + d % 2 * 4 + d % 8 / 2 : d;
      };
      digits_of(kDim, kDim, dwords, starts, in_step);
      constexpr int64_t kStride = kLength + 16;
      std::vector<float> a(kRows * kStride);
      isa->scores(codes, kDim, kLength,
                  {dwords.data(), starts.data(), ones.data(), kDim / 4}, kRows, nullptr,
                  nullptr, zeros.data(), sums.data(), a.data(), kStride);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t j = 0; j < kLength; ++j) {
          int64_t sum = 0;
          for (int64_t d = 0; d < kDim; ++d) sum += whole(r, d) * code(j, d);
          ASSERT_EQ(a[static_cast<size_t>(r * kStride + j)], static_cast<float>(sum))
              << kernel.name << ", " << text << ", row " << r << ", position " << j;
        }
      }
      const int64_t steps = (kLength + 3) / 4, columns = 128;
      digits_of(kLength, steps * 4, dwords, starts, [](int64_t j) { return j; });
      std::vector<float> y(kRows * columns, 3);
      isa->weighted_sum(codes, kDim, kLength,
                        {dwords.data(), starts.data(), ones.data(), steps}, kRows,
                        ones.data(), ones.data(), ones.data(), y.data(), columns);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t d = value_column(halves, c);
          if (d >= kDim) continue;
          int64_t sum = 4;  // what was there, and what is added
          for (int64_t j = 0; j < kLength; ++j) sum += whole(r, j) * code(j, d);
          ASSERT_EQ(y[static_cast<size_t>(r * columns + c)], static_cast<float>(sum))
              << kernel.name << ", " << text << ", row " << r << ", column " << d;
        }
      }
    }
  }
}

// Of an f32 cache the new way must give what attention() gives.
TEST_F(KvAttends, AgreesWithAttentionOverFloats) {
  const AttentionShape shape{6, 2, 64, 0.125f};
  const std::vector<float> keys = random_floats(300 * 128, 1),
                           values = random_floats(300 * 128, 2);
  KvRows k = rows_of("f32", 300, 128), v = rows_of("f32", 300, 128);
  ASSERT_TRUE(k.append({keys.data(), 300, 128}).ok());
  ASSERT_TRUE(v.append({values.data(), 300, 128}).ok());
  EXPECT_EQ(k.floats()[129], keys[129]);
  for (const int64_t tokens : {1, 50}) {
    const std::vector<float> q = random_floats(tokens * 384, 3);
    std::vector<float> a(static_cast<size_t>(tokens * 384)), b = a;
    attention(select_attention(), shape, {q.data(), tokens, 384}, {keys.data(), 300, 128},
              {values.data(), 300, 128}, {a.data(), tokens, 384});
    kv_attention(select_kv_attention(), shape, {q.data(), tokens, 384}, k, v,
                 {b.data(), tokens, 384});
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5);
  }
}

// A window hides what lies before it: in part of a tile, whole tiles, whole runs.
TEST_F(KvAttends, WindowsHideWhatLiesBefore) {
  for (const int64_t window : {1, 5, 128, 200, 1100}) {
    AttentionShape shape{4, 2, 32, 0.2f};
    shape.window = window;
    constexpr int64_t kLength = 1300;
    KvRows k = rows_of("int8n/g32@f16", kLength, 64);
    KvRows v = rows_of("f16", kLength, 64);
    const std::vector<float> keys = random_floats(kLength * 64, 1),
                             values = random_floats(kLength * 64, 2);
    ASSERT_TRUE(k.append({keys.data(), kLength, 64}).ok());
    ASSERT_TRUE(v.append({values.data(), kLength, 64}).ok());
    for (const int64_t tokens : {1, 9}) {
      const std::vector<float> q = random_floats(tokens * 128, 3);
      std::vector<float> expected(q.size()), y(q.size());
      kv_attention_reference(shape, {q.data(), tokens, 128}, k, v,
                             {expected.data(), tokens, 128});
      for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
        if (!this_cpu_has(kernel.flags)) continue;
        std::fill(y.begin(), y.end(), kPoison);
        kv_attention(kernel, shape, {q.data(), tokens, 128}, k, v,
                     {y.data(), tokens, 128});
        for (size_t i = 0; i < y.size(); ++i)
          ASSERT_NEAR(y[i], expected[i], 2e-5) << kernel.name << ", window " << window;
      }
    }
  }
}

// A long context goes in runs of 1,024 positions that are joined.
TEST_F(KvAttends, LongContextsAndAnyThreadCount) {
  const AttentionShape shape{2, 1, 32, 0.2f};
  constexpr int64_t kLength = 1300;
  KvRows k = rows_of("int8n/r@f16", kLength, 32);
  KvRows v = rows_of("uint4/r@f16+m/r@f16", kLength, 32);
  const std::vector<float> keys = random_floats(kLength * 32, 1),
                           values = random_floats(kLength * 32, 2);
  ASSERT_TRUE(k.append({keys.data(), kLength, 32}).ok());
  ASSERT_TRUE(v.append({values.data(), kLength, 32}).ok());
  for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    for (const int64_t tokens : {1, 9}) {
      const std::vector<float> q = random_floats(tokens * 64, 3);
      std::vector<float> expected(static_cast<size_t>(tokens * 64)), first;
      kv_attention_reference(shape, {q.data(), tokens, 64}, k, v,
                             {expected.data(), tokens, 64});
      for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        std::vector<float> y(expected.size(), kPoison);
        kv_attention(kernel, shape, {q.data(), tokens, 64}, k, v, {y.data(), tokens, 64});
        if (first.empty()) first = y;
        EXPECT_TRUE(same_bytes(first, y)) << kernel.name << ", " << threads << " threads";
        for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], expected[i], 2e-5);
      }
    }
  }
}

// From four runs on a task takes every key head of its run; query heads go four, or two,
// at a time.
TEST_F(KvAttends, VeryLongContextsReadRowsOfAllHeads) {
  constexpr int64_t kLength = 3200;
  for (const int64_t group : {1, 3, 7}) {
    const AttentionShape shape{2 * group, 2, 32, 0.2f};
    const int64_t width = shape.heads * shape.head_dim;
    for (const auto& [keys_as, values_as] :
         {std::pair<const char*, const char*>{"int8n/g32@f16", "e4m3/g32@f16"},
          {"bf16", "uint4/g32@f16+m/g32@f16"},
          {"int8/g32@int8/g64@f32", "f16"},
          {"int8/t@f32", "e4m3/t@bf16"}}) {
      // Static schemes bring their scale.
      const auto make = [](const char* as) {
        const QuantScheme scheme = *parse_scheme(as);
        return is_static_kv(scheme) ? *KvRows::create(scheme, kLength, 64, 0.03125f)
                                    : rows_of(as, kLength, 64);
      };
      KvRows k = make(keys_as), v = make(values_as);
      const std::vector<float> keys = random_floats(kLength * 64, 1),
                               values = random_floats(kLength * 64, 2);
      ASSERT_TRUE(k.append({keys.data(), kLength, 64}).ok());
      ASSERT_TRUE(v.append({values.data(), kLength, 64}).ok());
      for (const int64_t tokens : {1, 2}) {
        const std::vector<float> q = random_floats(tokens * width, 3);
        std::vector<float> expected(q.size());
        kv_attention_reference(shape, {q.data(), tokens, width}, k, v,
                               {expected.data(), tokens, width});
        for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
          if (!this_cpu_has(kernel.flags)) continue;
          std::vector<float> first;
          for (const int threads : {1, 2}) {
            set_thread_count(threads);
            std::vector<float> y(q.size(), kPoison);
            kv_attention(kernel, shape, {q.data(), tokens, width}, k, v,
                         {y.data(), tokens, width});
            if (first.empty()) first = y;
            EXPECT_TRUE(same_bytes(first, y)) << kernel.name;
            for (size_t i = 0; i < y.size(); ++i) {
              ASSERT_NEAR(y[i], expected[i], 2e-5)
                  << kernel.name << ", " << keys_as << ", " << group
                  << " heads a key head";
            }
          }
        }
      }
    }
  }
}

// Scores so far apart that exp would overflow, the largest in the first tile, then in the
// last.
TEST_F(KvAttends, LargeScoresPickOneValue) {
  const AttentionShape shape{1, 1, 8, 1.0f};
  for (const int64_t chosen : {7, 290}) {
    for (const int64_t tokens : {1, 5}) {
      std::vector<float> keys(300 * 8), values = random_floats(300 * 8, 2);
      for (int64_t j = 0; j < 300; ++j)
        std::fill_n(keys.begin() + j * 8, 8, j == chosen ? 100.0f : -100.0f);
      KvRows k = rows_of("f16", 300, 8), v = rows_of("f16", 300, 8);
      ASSERT_TRUE(k.append({keys.data(), 300, 8}).ok());
      ASSERT_TRUE(v.append({values.data(), 300, 8}).ok());
      const std::vector<float> q(static_cast<size_t>(tokens * 8), 1.0f);
      for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
        if (!this_cpu_has(kernel.flags)) continue;
        std::vector<float> y(q.size(), kPoison);
        kv_attention(kernel, shape, {q.data(), tokens, 8}, k, v, {y.data(), tokens, 8});
        for (size_t i = 0; i < y.size(); ++i) {
          EXPECT_FLOAT_EQ(y[i], float_from_f16(f16_from_float(
                                    values[static_cast<size_t>(chosen * 8) + i % 8])));
        }
      }
    }
  }
}

TEST(KvScheme, NamesAndTexts) {
  const auto text = [](const char* name, int64_t kv_heads, int64_t head_dim) {
    const Result<KvScheme> scheme = parse_kv_scheme(name, kv_heads, head_dim);
    EXPECT_TRUE(scheme.ok()) << scheme.status().message();
    return scheme.ok() ? to_string(*scheme) : "";
  };
  EXPECT_EQ(text("int8", 2, 64), "int8n/g64@f16");
  EXPECT_EQ(text("int8", 1, 64), "int8n/r@f16");
  EXPECT_EQ(text("fp8", 8, 8), "e4m3/g32@f16");
  EXPECT_EQ(text("int4", 8, 128),
            "uint4/b32x1@f16+m/b32x1@f16,uint4/g128@f16+m/g128@f16");
  EXPECT_EQ(text("int8,int4", 2, 64), "int8n/g64@f16,uint4/g64@f16+m/g64@f16");
  EXPECT_EQ(text("f32", 2, 64), "f32");
  EXPECT_TRUE(KvScheme{}.is_f32());
  const auto refused = [](const char* name) {
    return parse_kv_scheme(name, 2, 64).status().message();
  };
  EXPECT_THAT(refused("int9"), HasSubstr("[kv] int9: f32, f16, bf16, int8, fp8, int4, "
                                         "int8-static, fp8-static, a scheme, "
                                         "KEYS,VALUES or KEYS,VALUES,QUERIES was "
                                         "required"));
  EXPECT_THAT(refused("uint8/t@f32"), HasSubstr("found one that needs every position"));
  EXPECT_THAT(refused("int8/t@f32+z/t@int8"), HasSubstr("needs every position"));
  EXPECT_THAT(refused("int8/t@e4m3"), HasSubstr("needs every position"));
  EXPECT_THAT(refused("e2m1/g16@e4m3/t@f32"), HasSubstr("needs every position"));
  EXPECT_THAT(refused("nf4/g64@dyn8+o/g64@f32"), HasSubstr("leave +o out"));
  EXPECT_THAT(refused("int4/b32x1@uint6/b64x1@f16"), HasSubstr("found 32 and 64"));
  EXPECT_THAT(refused("int4/g16@uint6/b32x16@f16"), HasSubstr("found both"));
}

TEST(KvScheme, QueriesAreNamedThirdAndOfOnePositionEach) {
  const auto parsed = [](const char* text) { return parse_kv_scheme(text, 2, 64); };
  for (const char* text : {"int8n/g64@f16,int8n/g64@f16,int8n/g64@f16",
                           "f32,f32,e4m3/g64@f16", "f16,bf16,f16"}) {
    ASSERT_TRUE(parsed(text).ok()) << parsed(text).status().message();
    EXPECT_EQ(to_string(*parsed(text)), text);
    EXPECT_TRUE(parsed(text)->rounds_queries());
    EXPECT_FALSE(parsed(text)->is_f32());
  }
  EXPECT_EQ(to_string(*parsed("int8,int8,f32")), "int8n/g64@f16");
  EXPECT_EQ(to_string(*parsed("int8,int8,fp8")),
            "int8n/g64@f16,int8n/g64@f16,e4m3/g64@f16");
  for (const char* text :
       {"int8,int8,fp8-static", "int8,int8,uint4/b32x1@f16+m/b32x1@f16",
        "f32,f32,e4m3/t@f32=0.1"}) {
    EXPECT_EQ(parsed(text).status().code(), StatusCode::unsupported) << text;
    EXPECT_THAT(parsed(text).status().message(), HasSubstr("required of queries"))
        << text;
  }
  for (const char* text : {"int8,int8,int8,int8", "int8,int8,", "f32,f32,f32=1"})
    EXPECT_EQ(parsed(text).status().code(), StatusCode::invalid_argument) << text;
}

TEST(KvScheme, StaticOnesBringTheirScales) {
  EXPECT_EQ(to_string(*parse_kv_scheme("fp8-static", 2, 64)), "e4m3/t@bf16");
  EXPECT_EQ(to_string(*parse_kv_scheme("int8-static", 2, 64)), "int8/t@bf16");
  const std::string text = "e4m3/t@f32=0.1,int8/t@bf16=0.0625";
  const KvScheme scheme = *parse_kv_scheme(text, 2, 64);
  EXPECT_EQ(scheme.key_scale, 0.1f);
  EXPECT_EQ(scheme.value_scale, 0.0625f);
  EXPECT_EQ(to_string(scheme), text);
  EXPECT_TRUE(is_static_kv(scheme));
  EXPECT_FALSE(is_static_kv(*parse_kv_scheme("int8", 2, 64)));
  for (const char* wrong :
       {"int8/t@bf16=0.1", "int8/t@f32=0", "int8/t@f32=-1", "int8/t@f32=1x",
        "int8/t@f32=", "int8/t@f32=inf", "int8/r@f32=0.5", "f32=1"}) {
    EXPECT_EQ(parse_kv_scheme(wrong, 2, 64).status().code(), StatusCode::invalid_argument)
        << wrong;
  }
  // The scale that reaches a magnitude, in its element, and hardly more.
  for (const char* name : {"int8/t@f32", "int8/t@f16", "e4m3/t@bf16", "int8n/t@bf16"}) {
    const QuantScheme keys = parse_kv_scheme(name, 2, 64)->keys;
    const float highest = keys.code == Element::e4m3 ? 448 : 127;
    for (const float largest : {0.01f, 1.0f, 3.1415927f, 500.0f, 0.0f}) {
      const float scale = static_kv_scale(keys, largest);
      EXPECT_EQ(round_to_element(keys.scales[0].element, scale), scale);
      if (largest == 0) {
        EXPECT_EQ(scale, 1);
        continue;
      }
      EXPECT_GE(scale * (1 + 1e-6f), largest / highest) << name << " " << largest;
      EXPECT_LE(scale, largest / highest * 1.02f) << name << " " << largest;
    }
  }
}

// Codes by the definition under the one scale; what it does not reach is clamped; no
// bytes but codes.
TEST(KvRows, StaticScale) {
  for (const char* text : {"int8/t@f32", "e4m3/t@bf16", "int4/t@f16"}) {
    const QuantScheme scheme = parse_kv_scheme(text, 2, 20)->keys;
    EXPECT_THAT(KvRows::create(scheme, 8, 40).status().message(),
                HasSubstr("a calibrated scale is required; found none"));
    const float scale = 0.0625f;
    KvRows rows = *KvRows::create(scheme, 8, 40, scale);
    EXPECT_EQ(rows.bytes(), 8 * 40 * element_info(scheme.code).bits / 8) << text;
    EXPECT_EQ(KvRows::bytes_for(scheme, 8, 40), rows.bytes());
    std::vector<float> x(8 * 40);
    SplitMix64 random(7);
    for (float& v : x) v = static_cast<float>(random.uniform() - 0.5) * 3;
    x[3] = 1e5f;
    x[44] = -1e5f;
    ASSERT_TRUE(rows.append({x.data(), 3, 40}).ok());
    ASSERT_TRUE(rows.append({x.data() + 3 * 40, 5, 40}).ok());
    CodedMatrix q{scheme, 8, 40, {}, {{1, 1, {scale}}}, {}};
    std::vector<float> expected(x.size()), found(x.size());
    ASSERT_TRUE(quantize({x.data(), 8, 40}, q).ok());
    ASSERT_TRUE(dequantize(q, {expected.data(), 8, 40}).ok());
    EXPECT_LE(expected[3], scale * 448);
    for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
      if (!this_cpu_has(kernel.flags)) continue;
      std::fill(found.begin(), found.end(), kPoison);
      rows.read(kernel.decode, 0, 0, {found.data(), 8, 40});
      EXPECT_EQ(found, expected) << text << " " << kernel.name;
    }
    rows.truncate(2);
    EXPECT_EQ(rows.length(), 2);
    const float bad[40] = {kPoison};
    EXPECT_EQ(rows.append({bad, 1, 40}).code(), StatusCode::out_of_range);
  }
}

// What the short names promise, partial block included, at a context of 1,024.
TEST(KvScheme, Sizes) {
  const double f16 = 2 * 1024 * 128 * 2;
  const auto size = [&](const char* name) {
    const KvScheme scheme = *parse_kv_scheme(name, 2, 64);
    return static_cast<double>(KvRows::create(scheme.keys, 1024, 128)->bytes() +
                               KvRows::create(scheme.values, 1024, 128)->bytes()) /
           f16;
  };
  EXPECT_EQ(size("f16"), 1);
  EXPECT_EQ(size("f32"), 2);
  EXPECT_LE(size("int8"), 0.54);
  EXPECT_GT(size("int8"), 0.5);
  EXPECT_LE(size("fp8"), 0.54);
  EXPECT_LE(size("int4"), 0.32);
  EXPECT_GT(size("int4"), 0.25);
}

TEST(KvRows, RefusesWhatItCannotHold) {
  KvRows half = rows_of("f16", 4, 2), blocks = rows_of("uint4/b2x1@f16+m/b2x1@f16", 4, 2);
  const float large[] = {1, 1e6f}, bad[] = {1, kPoison};
  EXPECT_THAT(half.append({large, 1, 2}).message(),
              HasSubstr("[kv] position 0, column 1: a number that f16 holds"));
  EXPECT_EQ(blocks.append({large, 1, 2}).code(), StatusCode::out_of_range);
  EXPECT_EQ(half.append({bad, 1, 2}).code(), StatusCode::out_of_range);
  KvRows bytes = rows_of("int8n/r@f16", 4, 2);
  EXPECT_EQ(bytes.append({bad, 1, 2}).code(), StatusCode::out_of_range);
  EXPECT_EQ(bytes.length(), 0);
}

TEST(KvTable, FollowsTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    EXPECT_EQ(select_kv_attention().name, "attention_kv__" + isa_under(level));
  }
  ASSERT_TRUE(force_cpu("").ok());
}

}  // namespace
}  // namespace nibble
