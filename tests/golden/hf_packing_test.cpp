// The writers of quantized Hugging Face directories lay down, bit for bit, what AutoGPTQ,
// GPTQModel, AutoAWQ, bitsandbytes and compressed-tensors made of the same codes; and the
// readers find those codes in the tools' own bytes. The data lie beside the checkout.
#include <gtest/gtest.h>

#include <cmath>

#include "export/exporter.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/scheme/element_codec.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using sample::take;
namespace fs = std::filesystem;

class HfPacking : public ::testing::Test {
 protected:
  void SetUp() override {
    const fs::path folder = fs::path(NIBBLE_SOURCE_DIR) / "../shared/data/golden/packing";
    for (const char* name :
         {"golden_packing.safetensors", "golden_packing2.safetensors"}) {
      if (!fs::exists(folder / name))
        GTEST_SKIP() << "no " << name << " beside the checkout";
      tensors_.merge(take(read_safetensors(folder / name)).tensors);
    }
    directory_ = sample::fresh_directory("golden");
  }
  void TearDown() override { fs::remove_all(directory_); }

  const Tensor& tensor(const std::string& name) { return tensors_.at(name); }
  std::vector<float> floats(const std::string& name) { return *to_float(tensor(name)); }
  std::vector<uint8_t> bytes(const std::string& name) {
    const Bytes& b = tensor(name).bytes;
    const auto* data = reinterpret_cast<const uint8_t*>(b.data());
    return std::vector<uint8_t>(data, data + b.size());
  }

  // A model of one linear layer, fc.
  static Artifact one_layer(const CodedMatrix& q) {
    Artifact artifact;
    Program& program = artifact.program;
    program.architecture = "One";
    program.vocabulary = 4;
    program.context_length = 4;
    program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
    artifact.tensors["embed.weight"] = make_tensor(
        {4, q.cols}, std::vector<float>(static_cast<size_t>(4 * q.cols), 1.0f));
    program.nodes = {{"embedding",
                      "embed",
                      kFirstBlock,
                      {"input_ids"},
                      {"embed"},
                      {{"weight", "embed.weight"}},
                      {{"features", q.cols}}},
                     {"linear",
                      "fc",
                      0,
                      {"embed"},
                      {"fc"},
                      {{"weight", "fc.weight"}},
                      {{"out_features", q.rows}}}};
    program.outputs = {{"fc", DType::f32, {"batch", "sequence", std::to_string(q.rows)}}};
    artifact.packed["fc.weight"] = take(pack(q, {q.rows, q.cols}));
    artifact.layers["fc.weight"].weight = q.scheme;
    artifact.config_json = R"({"model_type":"llama"})";
    return artifact;
  }

  std::map<std::string, Tensor> written(const std::string& format, const CodedMatrix& q,
                                        ExportOptions options = {}) {
    options.overwrite = true;
    const Status status =
        take(find_exporter(format))->write(one_layer(q), directory_, options);
    EXPECT_TRUE(status.ok()) << status.message();
    return take(read_safetensors(directory_ / "model.safetensors")).tensors;
  }
  void expect_same(const Tensor& found, const std::string& golden) {
    EXPECT_EQ(found.dtype, tensor(golden).dtype) << golden;
    EXPECT_EQ(found.shape, tensor(golden).shape) << golden;
    EXPECT_EQ(found.bytes.text(), tensor(golden).bytes.text()) << golden;
  }
  // Puts the tools' own bytes in place of what was written, and reads them.
  CodedMatrix read_with(const std::string& format, std::map<std::string, Tensor> stored,
                        const std::map<std::string, std::string>& golden,
                        const std::function<void(nlohmann::json&)>& change = {}) {
    for (const auto& [name, from] : golden) stored[name] = tensor(from);
    EXPECT_TRUE(
        write_safetensors_atomically(directory_ / "model.safetensors", stored, {}).ok());
    if (change) {
      auto config = parse_json_or_throw(take(read_text_file(directory_ / "config.json")));
      change(config["quantization_config"]);
      EXPECT_TRUE(write_file_atomically(directory_ / "config.json", config.dump()).ok());
    }
    return take(take(find_exporter(format))->read(directory_)).coded.at("fc.weight");
  }

  // uintB/g32 with zero points: X.codes_out_in, X.zeros_out_group, X.scales [groups,
  // rows].
  CodedMatrix grouped(const std::string& key, int bits) {
    CodedMatrix q;
    q.scheme = take(parse_scheme(cat("uint", bits, "/g32@f16+z/g32@uint", bits)));
    q.rows = tensor(key + ".codes_out_in").shape[0];
    q.cols = tensor(key + ".codes_out_in").shape[1];
    q.codes = bytes(key + ".codes_out_in");
    const int64_t groups = q.cols / 32;
    const std::vector<float> scales = floats(key + ".scales");
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
    return q;
  }

  fs::path directory_;
  std::map<std::string, Tensor> tensors_;
};

TEST_F(HfPacking, GptqOfAutoGptq) {
  for (const int bits : {2, 3, 4, 8}) {
    SCOPED_TRACE(bits);
    const std::string key = cat("gptq", bits);
    const CodedMatrix q = grouped(key, bits);
    ExportOptions options;
    options.gptq_version = 1;
    const auto stored = written("gptq", q, options);
    expect_same(stored.at("fc.qweight"), key + ".qweight");
    expect_same(stored.at("fc.qzeros"), key + ".qzeros");
    expect_same(stored.at("fc.scales"), key + ".scales");
    expect_same(stored.at("fc.g_idx"), key + ".g_idx");
    EXPECT_EQ(read_with("gptq", stored,
                        {{"fc.qweight", key + ".qweight"},
                         {"fc.qzeros", key + ".qzeros"},
                         {"fc.scales", key + ".scales"}}),
              q);
  }
}

// Zero points of 0 borrow from their neighbours in GPTQModel's version 1.
TEST_F(HfPacking, GptqZeroPointsOfZero) {
  for (const int bits : {2, 3, 4, 8}) {
    SCOPED_TRACE(bits);
    const std::string key = cat("gptq_v1z0_", bits);
    const CodedMatrix q = grouped(key, bits);
    const auto stored = written("gptq", q);  // version 2, by itself
    expect_same(stored.at("fc.qzeros"), key + ".qzeros_v2");
    const auto config =
        parse_json_or_throw(take(read_text_file(directory_ / "config.json")));
    EXPECT_EQ(config.at("quantization_config").at("checkpoint_format"), "gptq_v2");
    EXPECT_EQ(read_with("gptq", stored, {{"fc.qzeros", key + ".qzeros_v2"}}), q);
    EXPECT_EQ(read_with("gptq", stored, {{"fc.qzeros", key + ".qzeros_v1"}},
                        [](nlohmann::json& c) { c["checkpoint_format"] = "gptq"; }),
              q);
    ExportOptions options;
    options.overwrite = true;
    options.gptq_version = 1;
    const Status refused =
        take(find_exporter("gptq"))->can_express(one_layer(q), options);
    EXPECT_NE(
        refused.message().find("version 1 holds zero points of 1 and more; found 0"),
        std::string::npos)
        << refused.message();
  }
}

TEST_F(HfPacking, GptqInPlanesOfGptqModel) {
  for (const int bits : {3, 5, 6, 7}) {
    SCOPED_TRACE(bits);
    const std::string key = cat("gptq_p", bits);
    const CodedMatrix q = grouped(key, bits);
    // There is no writer: the tensors of another width, replaced by the tool's.
    const auto stored = written("gptq", grouped("gptq4", 4));
    EXPECT_EQ(read_with("gptq", stored,
                        {{"fc.qweight", key + ".qweight"},
                         {"fc.qzeros", key + ".qzeros"},
                         {"fc.scales", key + ".scales"}},
                        [&](nlohmann::json& c) {
                          c["checkpoint_format"] = "gptq_p";
                          c["bits"] = bits;
                        }),
              q);
  }
}

TEST_F(HfPacking, AwqOfAutoAwq) {
  const CodedMatrix q = grouped("awq4", 4);
  const auto stored = written("awq", q);
  for (const char* part : {"qweight", "qzeros", "scales"}) {
    expect_same(stored.at(cat("fc.", part)), cat("awq4.", part));
  }
  EXPECT_EQ(read_with("awq", stored,
                      {{"fc.qweight", "awq4.qweight"},
                       {"fc.qzeros", "awq4.qzeros"},
                       {"fc.scales", "awq4.scales"}}),
            q);
}

TEST_F(HfPacking, RowsOfCompressedTensors) {
  for (const char* name : {"ct_pack2_k64", "ct_pack3_k64", "ct_pack4_k36", "ct_pack4_k64",
                           "ct_pack6_k64", "ct_pack8_k64"}) {
    SCOPED_TRACE(name);
    const std::string key = name;
    const Tensor& codes = tensor(key + ".codes");
    CodedMatrix q;
    q.scheme = take(parse_scheme(cat("int", key[7], "/r@f32")));
    q.rows = codes.shape[0];
    q.cols = codes.shape[1];
    q.codes = bytes(key + ".codes");
    q.scales = {{q.rows, 1, std::vector<float>(static_cast<size_t>(q.rows), 0.5f), 0}};
    const auto stored = written("compressed-tensors", q);
    expect_same(stored.at("fc.weight_packed"), key + ".weight_packed");
    EXPECT_EQ(read_with("compressed-tensors", stored,
                        {{"fc.weight_packed", key + ".weight_packed"}}),
              q);
  }
}

TEST_F(HfPacking, ZeroPointsOfCompressedTensors) {
  for (const int bits : {2, 3, 4, 5, 8}) {
    SCOPED_TRACE(bits);
    const std::string key = cat("ct_zp", bits);
    const Tensor& zeros = tensor(key + ".codes_out_group");  // [rows, groups], signed
    CodedMatrix q;
    q.scheme = take(parse_scheme(cat("uint", bits, "/g8@f32+z/g8@uint", bits)));
    q.rows = zeros.shape[0];
    const int64_t groups = zeros.shape[1];
    q.cols = 8 * groups;
    q.codes.assign(static_cast<size_t>(q.rows * q.cols), 1);
    const auto count = static_cast<size_t>(q.rows * groups);
    q.scales = {{q.rows, groups, std::vector<float>(count, 0.5f), 0}};
    q.offsets = {{q.rows, groups, {}, 0}};
    for (const uint8_t zero : bytes(key + ".codes_out_group")) {
      q.offsets[0].values.push_back(
          static_cast<float>(static_cast<int8_t>(zero) + (1 << (bits - 1))));
    }
    const auto stored = written("compressed-tensors", q);
    expect_same(stored.at("fc.weight_zero_point"), key + ".weight_zero_point");
    EXPECT_EQ(read_with("compressed-tensors", stored,
                        {{"fc.weight_zero_point", key + ".weight_zero_point"}}),
              q);
  }
}

// compressed-tensors' own bytes are read, mean its weights, and are written again.
TEST_F(HfPacking, Fp4OfCompressedTensors) {
  for (const auto& [key, scheme] : {std::pair("ct_mxfp4", "e2m1/g32@e8m0"),
                                    std::pair("ct_nvfp4", "e2m1/g16@e4m3/t@f32")}) {
    SCOPED_TRACE(key);
    const bool nvfp4 = std::string_view(key) == "ct_nvfp4";
    const std::vector<float> weight = floats(cat(key, ".weight_f32"));  // [8, 64]
    CodedMatrix any = take(choose_scales(MatrixView<const float>(weight.data(), 8, 64),
                                         take(parse_scheme(scheme)), {}));
    ASSERT_TRUE(quantize(MatrixView<const float>(weight.data(), 8, 64), any).ok());
    auto stored = written("compressed-tensors", any);
    stored["fc.weight_packed"] = tensor(cat(key, ".weight_packed"));
    stored["fc.weight_scale"].bytes = tensor(cat(key, ".weight_scale")).bytes;
    if (nvfp4) stored["fc.weight_global_scale"] = tensor("ct_nvfp4.weight_global_scale");
    const CodedMatrix q = read_with("compressed-tensors", stored, {});
    EXPECT_EQ(to_string(q.scheme), scheme);
    std::vector<float> values(weight.size());
    ASSERT_TRUE(dequantize(q, MatrixView<float>(values.data(), 8, 64)).ok());
    double difference = 0, size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += (values[i] - weight[i]) * (values[i] - weight[i]);
      size += weight[i] * weight[i];
    }
    EXPECT_LT(difference, 0.02 * size);
    EXPECT_GT(difference, 0.001 * size);  // 4 bits are no more than 4 bits
    const auto again = written("compressed-tensors", q);
    expect_same(again.at("fc.weight_packed"), cat(key, ".weight_packed"));
    EXPECT_EQ(again.at("fc.weight_scale").bytes.text(),
              tensor(cat(key, ".weight_scale")).bytes.text());
    if (nvfp4) expect_same(again.at("fc.weight_global_scale"), "ct_nvfp4.weight_global_scale");
  }
}

TEST_F(HfPacking, BitsandbytesPlainAndNested) {
  const std::vector<float> weight = floats("bnb.weight_f32");  // [64, 512]
  for (const char* type : {"nf4", "fp4"}) {
    SCOPED_TRACE(type);
    const std::string key = cat("bnb.", type);
    const MatrixView<const float> view(weight.data(), 64, 512);
    CodedMatrix q =
        take(choose_scales(view, take(parse_scheme(cat(type, "/f64@f32"))), {}));
    ASSERT_TRUE(quantize(view, q).ok());
    auto stored = written("bitsandbytes", q);
    expect_same(stored.at("fc.weight"), key + ".packed");
    expect_same(stored.at("fc.weight.absmax"), key + ".absmax");
    expect_same(stored.at("fc.weight.quant_map"), key + "_code");
    EXPECT_EQ(read_with("bitsandbytes", stored,
                        {{"fc.weight", key + ".packed"},
                         {"fc.weight.absmax", key + ".absmax"}}),
              q);

    // Their own outer scales and offset: the mean depends on the order of its sum.
    CodedMatrix nested = q;
    nested.scheme = take(parse_scheme(cat(type, "/f64@dyn8+o/f16384@f32")));
    nested.scales = {{1, 512, {}, floats(key + ".nested_offset")[0]},
                     {1, 2, floats(key + ".nested_absmax"), 0}};
    for (const uint8_t code : bytes(key + ".absmax_u8")) {
      nested.scales[0].values.push_back(value_of_bits(Element::dyn8, code));
    }
    stored = written("bitsandbytes", nested);
    expect_same(stored.at("fc.weight"), key + ".packed");
    expect_same(stored.at("fc.weight.absmax"), key + ".absmax_u8");
    expect_same(stored.at("fc.weight.nested_absmax"), key + ".nested_absmax");
    EXPECT_EQ(read_with("bitsandbytes", stored, {}), nested);
    // Under a map that is not bit for bit ours, scales are multiplied out.
    const CodedMatrix own =
        read_with("bitsandbytes", stored,
                  {{"fc.weight.nested_quant_map", "bnb.dynamic_map_signed"}});
    const std::vector<float> theirs = floats(key + ".absmax_roundtrip");
    ASSERT_EQ(own.scales.back().values.size(), own.scales.size() == 2 ? 2u : 512u);
    if (own.scales.size() == 1) {
      EXPECT_EQ(own.scales[0].values, theirs);
    }
  }
}

// int8_fp8.safetensors: make_int8_fp8.py. Our codes are theirs, our bytes are theirs, and
// what is read means what they say it means.
class Int8Fp8 : public HfPacking {
 protected:
  void SetUp() override {
    tensors_ = take(read_safetensors(fs::path(NIBBLE_SOURCE_DIR) /
                                     "tests/golden/int8_fp8.safetensors"))
                   .tensors;
    directory_ = sample::fresh_directory("golden");
  }
  // What the levels make of weight is codes; what they stand for is values, within
  // `allowed` floats.
  void expect_golden(CodedMatrix& q, const std::string& key, float allowed) {
    const std::vector<float> weight = floats(key + ".weight");
    const MatrixView<const float> view(weight.data(), q.rows, q.cols);
    ASSERT_TRUE(quantize(view, q).ok());
    EXPECT_EQ(q.codes, bytes(key + ".codes"));
    const std::vector<float> required = floats(key + ".values");
    std::vector<float> found(required.size());
    ASSERT_TRUE(dequantize(q, MatrixView<float>(found.data(), q.rows, q.cols)).ok());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], required[i], allowed * std::abs(required[i])) << i;
  }
};

TEST_F(Int8Fp8, LlmInt8OfBitsandbytes) {
  const std::vector<float> scb = floats("int8.SCB");
  CodedMatrix q;
  q.scheme = take(parse_scheme("int8/r@f32"));
  q.rows = tensor("int8.codes").shape[0];
  q.cols = tensor("int8.codes").shape[1];
  q.scales = {{q.rows, 1, {}, 0}};
  // A row of zeros has scale 0 there and 1 here.
  for (const float absmax : scb)
    q.scales[0].values.push_back(absmax > 0 ? absmax / 127 : 1);
  expect_golden(q, "int8", 3e-7f);  // they multiply by the constant 1 / 127
  const auto stored = written("bitsandbytes", q);
  expect_same(stored.at("fc.weight"), "int8.codes");
  const std::vector<float> ours = take(to_float(stored.at("fc.SCB")));
  for (size_t r = 0; r < scb.size(); ++r) {
    if (scb[r] > 0) {
      EXPECT_FLOAT_EQ(ours[r], scb[r]) << r;
    }
  }
  EXPECT_EQ(read_with("bitsandbytes", stored,
                      {{"fc.weight", "int8.codes"}, {"fc.SCB", "int8.SCB"}}),
            q);
}

TEST_F(Int8Fp8, BlockFp8OfTorch) {
  const std::vector<float> weight = floats("fp8.weight");
  const int64_t rows = tensor("fp8.weight").shape[0],
                cols = tensor("fp8.weight").shape[1];
  const MatrixView<const float> view(weight.data(), rows, cols);
  CodedMatrix q = take(choose_scales(view, take(parse_scheme("e4m3/b16x32@f32")), {}));
  EXPECT_EQ(q.scales[0].values, floats("fp8.weight_scale_inv"));
  expect_golden(q, "fp8", 0);
  const auto stored = written("fp8", q);
  expect_same(stored.at("fc.weight"), "fp8.codes");
  expect_same(stored.at("fc.weight_scale_inv"), "fp8.weight_scale_inv");
  EXPECT_EQ(read_with("fp8", stored,
                      {{"fc.weight", "fp8.codes"},
                       {"fc.weight_scale_inv", "fp8.weight_scale_inv"}}),
            q);
}

}  // namespace
}  // namespace nibble
