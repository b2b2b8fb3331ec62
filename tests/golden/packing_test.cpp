// Codes, scales and packed bytes against those that AutoGPTQ, AutoAWQ, bitsandbytes and
// compressed-tensors made of the same weights. The data lie beside the checkout.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/safetensors.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class PackingGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    const fs::path folder = fs::path(NIBBLE_SOURCE_DIR) / "../shared/data/golden/packing";
    for (const char* name :
         {"golden_packing.safetensors", "golden_packing2.safetensors"}) {
      if (!fs::exists(folder / name))
        GTEST_SKIP() << "no " << name << " beside the checkout";
      Result<SafetensorsFile> file = read_safetensors(folder / name);
      ASSERT_TRUE(file.ok()) << file.status().message();
      tensors_.merge(file->tensors);
    }
  }

  const Tensor& tensor(const std::string& name) { return tensors_.at(name); }
  std::vector<float> floats(const std::string& name) { return *to_float(tensor(name)); }
  std::vector<uint8_t> bytes(const std::string& name) {
    const Bytes& b = tensor(name).bytes;
    const auto* data = reinterpret_cast<const uint8_t*>(b.data());
    return std::vector<uint8_t>(data, data + b.size());
  }

  std::map<std::string, Tensor> tensors_;
};

std::vector<float> decoded(const CodedMatrix& q) {
  std::vector<float> x(static_cast<size_t>(q.rows * q.cols));
  EXPECT_TRUE(dequantize(q, {x.data(), q.rows, q.cols}).ok());
  return x;
}

CodedMatrix coded(const std::vector<float>& x, int64_t rows, int64_t cols,
                  const char* text) {
  const MatrixView<const float> view(x.data(), rows, cols);
  Result<CodedMatrix> q = choose_scales(view, *parse_scheme(text), {});
  EXPECT_TRUE(q.ok()) << q.status().message();
  EXPECT_TRUE(quantize(view, *q).ok());
  return *q;
}

TEST_F(PackingGolden, GptqAndAwqCodesMeanTheirWeights) {
  for (const char* name : {"gptq2", "gptq3", "gptq4", "gptq8", "awq4"}) {
    const std::string key = name;
    const std::string element = cat("uint", key.back());
    CodedMatrix q;
    q.scheme = *parse_scheme(cat(element, "/g32@f16+z/g32@", element));
    q.rows = tensor(key + ".codes_out_in").shape[0];
    q.cols = tensor(key + ".codes_out_in").shape[1];
    q.codes = bytes(key + ".codes_out_in");
    const int64_t groups = q.cols / 32;
    const std::vector<float> scales = floats(key + ".scales");  // [groups, rows]
    const std::vector<uint8_t> zeros = bytes(key + ".zeros_out_group");
    CodedLevel s{q.rows, groups, {}, 0}, z{q.rows, groups, {}, 0};
    for (int64_t r = 0; r < q.rows; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        s.values.push_back(scales[static_cast<size_t>(g * q.rows + r)]);
        z.values.push_back(zeros[static_cast<size_t>(r * groups + g)]);
      }
    }
    q.scales = {s};
    q.offsets = {z};
    const std::vector<float> weight = floats(key + ".weight_f32");
    EXPECT_EQ(decoded(q), weight) << name;
    CodedMatrix again = q;
    ASSERT_TRUE(quantize({weight.data(), q.rows, q.cols}, again).ok());
    EXPECT_EQ(again.codes, q.codes) << name;
    EXPECT_EQ(*unpack(*pack(q, {q.rows, q.cols})), q) << name;
  }
}

// bitsandbytes puts the first of two codes into the high nibble.
std::vector<uint8_t> high_nibble_first(const std::vector<uint8_t>& packed) {
  std::vector<uint8_t> codes;
  for (const uint8_t byte : packed) {
    codes.push_back(byte >> 4);
    codes.push_back(byte & 15);
  }
  return codes;
}

TEST_F(PackingGolden, BitsandbytesCodesAndScales) {
  const std::vector<float> weight = floats("bnb.weight_f32");  // [64, 512]
  for (const char* name : {"nf4", "fp4"}) {
    const std::string key = cat("bnb.", name);
    const CodedMatrix q = coded(weight, 64, 512, cat(name, "/f64@f32").c_str());
    EXPECT_EQ(q.scales[0].values, floats(key + ".absmax")) << name;
    EXPECT_EQ(q.codes, high_nibble_first(bytes(key + ".packed"))) << name;
    EXPECT_EQ(decoded(q), floats(key + ".dequant_f32")) << name;
    const std::vector<float> table = floats(key + "_code");
    for (int code = 0; code < 16; ++code) {
      EXPECT_EQ(value_of(q.scheme.code, static_cast<uint8_t>(code)), table[code]);
    }

    // 256 scales of 64 weights each under one outer value.
    const CodedMatrix nested =
        coded(weight, 64, 512, cat(name, "/f64@dyn8+o/f16384@f32").c_str());
    const float offset = floats(key + ".nested_offset")[0];
    EXPECT_NEAR(nested.scales[0].shift, offset, 2e-7 * offset);
    const std::vector<float> outer = floats(key + ".nested_absmax");
    ASSERT_EQ(nested.scales[1].values.size(), outer.size());
    for (size_t i = 0; i < outer.size(); ++i) {
      EXPECT_NEAR(nested.scales[1].values[i], outer[i], 1e-6 * outer[i]);
    }
    const std::vector<uint8_t> absmax_codes = bytes(key + ".absmax_u8");
    const std::vector<float> round_trip = floats(key + ".absmax_roundtrip");
    for (size_t i = 0; i < absmax_codes.size(); ++i) {
      EXPECT_EQ(bits_of_value(Element::dyn8, nested.scales[0].values[i]), absmax_codes[i])
          << i;
      const float s = nested.scales[0].values[i] * nested.scales[1].values[i / 256] +
                      nested.scales[0].shift;
      EXPECT_NEAR(s, round_trip[i], 1e-6 * round_trip[i]);
    }
  }
}

TEST_F(PackingGolden, TheDynamicMapIsThatOfBitsandbytes) {
  const std::vector<float> map = floats("bnb.dynamic_map_signed");
  for (size_t code = 0; code < 256; ++code) {
    const float mine = value_of(Element::dyn8, static_cast<uint8_t>(code));
    // One ulp: their sum in float depends on the CPU.
    EXPECT_LE(std::fabs(mine - map[code]), 1.2e-7 * std::fabs(map[code])) << code;
  }
}

TEST_F(PackingGolden, DenseRowsAreThoseOfCompressedTensors) {
  for (const char* name : {"ct_pack2_k64", "ct_pack3_k64", "ct_pack4_k36", "ct_pack4_k64",
                           "ct_pack6_k64", "ct_pack8_k64"}) {
    const std::string key = name;
    const int bits = key[7] - '0';
    const Tensor& codes =
        tensor(key + ".codes");  // signed; stored with 2^(bits - 1) added
    CodedMatrix q;
    q.scheme = *parse_scheme(cat("uint", bits, "/r@f32"));
    q.rows = codes.shape[0];
    q.cols = codes.shape[1];
    for (const uint8_t code : bytes(key + ".codes")) {
      q.codes.push_back(static_cast<uint8_t>(code + (1 << (bits - 1))));
    }
    q.scales = {{q.rows, 1, std::vector<float>(static_cast<size_t>(q.rows), 1.0f), 0}};
    const PackedTensor packed = *pack(q, {q.rows, q.cols});
    const Tensor& expected =
        tensor(key + ".weight_packed");  // rows of whole 32-bit words
    const size_t mine = static_cast<size_t>(packed_row_bytes(q.scheme.code, q.cols));
    const size_t theirs = 4 * static_cast<size_t>(expected.shape[1]);
    for (size_t r = 0; r < static_cast<size_t>(q.rows); ++r) {
      EXPECT_EQ(std::memcmp(packed.codes.data() + r * mine,
                            expected.bytes.data() + r * theirs, mine),
                0)
          << name << " row " << r;
    }
  }
}

TEST_F(PackingGolden, Nvfp4OfCompressedTensors) {
  const std::vector<float> weight =
      floats("ct_nvfp4.weight_f32");  // [8, 64], 32 zeros in a row
  const CodedMatrix q = coded(weight, 8, 64, "e2m1/g16@e4m3/t@f32");
  const float global = floats("ct_nvfp4.weight_global_scale")[0];
  EXPECT_NEAR(q.scales[1].values[0], 1 / global, 1e-6 / global);
  const std::vector<uint8_t> scales = bytes("ct_nvfp4.weight_scale");
  const std::vector<uint8_t> packed =
      bytes("ct_nvfp4.weight_packed");  // low nibble first
  int zero_groups = 0;
  for (size_t g = 0; g < scales.size(); ++g) {
    bool zeros = true;
    for (size_t i = 0; i < 16; ++i) {
      const uint8_t theirs = packed[(16 * g + i) / 2] >> (4 * (i % 2)) & 15;
      EXPECT_EQ(q.codes[16 * g + i], theirs) << g << " " << i;
      zeros = zeros && weight[16 * g + i] == 0;
    }
    zero_groups += zeros;
    if (!zeros) {
      EXPECT_EQ(bits_of_value(Element::e4m3, q.scales[0].values[g]), scales[g]) << g;
    }
  }
  EXPECT_EQ(zero_groups, 2);
}

TEST_F(PackingGolden, Mxfp4OfCompressedTensorsWhereItsRuleIsTheFloorRule) {
  const std::vector<float> weight = floats("ct_mxfp4.weight_f32");  // [8, 64]
  const CodedMatrix q = coded(weight, 8, 64, "e2m1/g32@e8m0");
  const std::vector<uint8_t> scales = bytes("ct_mxfp4.weight_scale");
  const std::vector<uint8_t> packed = bytes("ct_mxfp4.weight_packed");
  int compared = 0;
  for (size_t g = 0; g < scales.size(); ++g) {
    float largest = 0;
    for (size_t i = 0; i < 32; ++i)
      largest = std::max(largest, std::fabs(weight[32 * g + i]));
    if (largest == 0) continue;
    const uint32_t mine = bits_of_value(Element::e8m0, q.scales[0].values[g]);
    // Theirs rounds up from a mantissa of 1.75.
    const bool up = std::ldexp(largest, -std::ilogb(largest)) >= 1.75f;
    ASSERT_EQ(scales[g], mine + (up ? 1 : 0)) << g;
    if (up) continue;
    ++compared;
    for (size_t i = 0; i < 32; ++i) {
      const uint8_t theirs = packed[(32 * g + i) / 2] >> (4 * (i % 2)) & 15;
      EXPECT_EQ(q.codes[32 * g + i], theirs) << g << " " << i;
    }
  }
  EXPECT_GE(compared, 4);
}

}  // namespace
}  // namespace nibble
