// Exported nets in ONNX Runtime against our own runtime: QuantizeLinear pairs, operators
// on codes, 4-bit floats.
#include <cstdio>

#include "kernels/packing/packed_tensor.h"
#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/runtime/executor.h"
#include "recipes/data/images.h"
#include "recipes/models/load_model.h"
#include "tests/interop/onnx_runtime.h"

namespace nibble {
namespace {

using namespace onnx_runtime;

class OnnxNets : public Fixture {};

std::filesystem::path shared_models() {
  return std::filesystem::path(NIBBLE_SOURCE_DIR).parent_path() / "shared/data/models";
}

std::vector<float> random_images(int64_t values, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> images;
  for (int64_t i = 0; i < values; ++i) {
    images.push_back(static_cast<float>(4 * random.uniform() - 2));
  }
  return images;
}

std::vector<float> our_logits(const Artifact& artifact, std::span<const float> images,
                              const std::vector<int64_t>& shape) {
  Executor executor = take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  std::vector<float> logits(static_cast<size_t>(shape[0] * 10));
  const Status status = executor.forward_images(
      images, shape, MatrixView<float>(logits.data(), shape[0], 10));
  if (!status.ok()) throw std::runtime_error(status.message());
  return logits;
}

// The largest magnitude of every value, by the float net.
std::map<std::string, double> value_maxima(const Artifact& artifact,
                                           std::span<const float> images,
                                           const std::vector<int64_t>& shape) {
  std::map<std::string, double> maxima;
  const auto add = [&](const std::string& name, std::span<const float> values) {
    double& most = maxima[name];
    for (const float value : values) {
      most = std::max(most, std::abs(static_cast<double>(value)));
    }
  };
  add(artifact.program.inputs.front().name, images);
  Executor executor = take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  executor.set_tap([&](const TapValue& value) { add(value.name, value.floats); });
  std::vector<float> logits(static_cast<size_t>(shape[0] * 10));
  const Status status = executor.forward_images(
      images, shape, MatrixView<float>(logits.data(), shape[0], 10));
  if (!status.ok()) throw std::runtime_error(status.message());
  return maxima;
}

TEST_F(OnnxNets, TheFloatNetGivesTheSameLogits) {
  const Artifact artifact = sample::residual_net(35);
  const std::vector<int64_t> shape = {16, 3, 8, 8};
  const std::vector<float> images = random_images(16 * 3 * 8 * 8, 1);
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  const std::vector<float> theirs = run_images(images, shape);
  ASSERT_EQ(theirs.size(), 160u);
  EXPECT_LT(relative_difference(theirs, our_logits(artifact, images, shape)), 1e-5);
}

struct IntegerNet {
  const char* weight;
  const char* signed_activation;
  const char* unsigned_activation;
  const char* quant_format = "qdq";
};
void PrintTo(const IntegerNet& row, std::ostream* out) {
  *out << row.weight << " " << row.unsigned_activation << " " << row.quant_format;
}
class IntegerNets : public OnnxNets, public ::testing::WithParamInterface<IntegerNet> {};

// ONNX Runtime requantizes with other float operations than integer_node.h, so a sum that
// lands on the edge between two codes may round the other way: logits may differ by what
// a few such steps of one code are worth, and no more.
TEST_P(IntegerNets, GivesTheSameLogitsUpToRoundingAtTheEdgeOfACode) {
  const Artifact floats = sample::residual_net(36);
  const std::vector<int64_t> shape = {64, 3, 8, 8};
  const std::vector<float> images = random_images(64 * 3 * 8 * 8, 2);
  const auto maxima = value_maxima(floats, images, shape);
  Artifact artifact = sample::quantized(floats, GetParam().weight);
  sample::add_activations(
      artifact, [&](const std::string& value) { return maxima.at(value); },
      GetParam().signed_activation, GetParam().unsigned_activation);
  ExportOptions options;
  options.quant_format = GetParam().quant_format;
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  const std::vector<float> theirs = run_images(images, shape);
  const std::vector<float> ours = our_logits(artifact, images, shape);
  ASSERT_EQ(theirs.size(), ours.size());
  int equal = 0, agree = 0;
  for (size_t i = 0; i < 64; ++i) {
    const std::span<const float> a(theirs.data() + 10 * i, 10),
        b(ours.data() + 10 * i, 10);
    equal += relative_difference(a, b) < 1e-5;
    agree += argmax(a) == argmax(b);
  }
  std::printf(
      "%d of 64 images: equal logits; %d: equal argmax; largest difference %.2g\n", equal,
      agree, relative_difference(theirs, ours));
  EXPECT_GE(equal, 60);
  EXPECT_GE(agree, 63);
  // One code of the pooled value moves a logit by less than this.
  EXPECT_LT(relative_difference(theirs, ours),
            1.5 / code_highest(take(parse_scheme(GetParam().unsigned_activation))));
}
INSTANTIATE_TEST_SUITE_P(
    Schemes, IntegerNets,
    ::testing::Values(
        IntegerNet{"int8n/r@f32", kSignedActivation, kUnsignedActivation},
        IntegerNet{"int4/r@f32", "int8/t@f32", "uint4/t@f32"},
        IntegerNet{"int8/t@f32", "int8n/t@f32", "uint6/t@f32"},
        IntegerNet{"int8n/r@f32", kSignedActivation, kUnsignedActivation, "qoperator"},
        IntegerNet{"int4/r@f32", "int8n/t@f32", "uint4/t@f32", "qoperator"}));

// Matrices alone: QLinearMatMul where there is no bias, QGemm with one and for the
// floats.
TEST_F(OnnxNets, QOperatorMatricesGiveTheSameLogits) {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "MLP";
  program.inputs = {{"images", DType::f32, {"batch", "1", "6", "6"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "10"}}};
  SplitMix64 random(7);
  artifact.tensors["fc1.weight"] = sample::random_tensor({24, 36}, 0.4, random);
  artifact.tensors["fc2.weight"] = sample::random_tensor({16, 24}, 0.4, random);
  artifact.tensors["fc2.bias"] = sample::random_tensor({16}, 0.4, random);
  artifact.tensors["fc3.weight"] = sample::random_tensor({10, 16}, 0.4, random);
  program.nodes = {
      {"flatten", "flat", 0, {"images"}, {"flat"}, {}, {}},
      {"linear", "fc1", 0, {"flat"}, {"fc1"}, {{"weight", "fc1.weight"}}, {}},
      {"relu", "relu1", 0, {"fc1"}, {"relu1"}, {}, {}},
      {"linear",
       "fc2",
       0,
       {"relu1"},
       {"fc2"},
       {{"weight", "fc2.weight"}, {"bias", "fc2.bias"}},
       {}},
      {"relu", "relu2", 0, {"fc2"}, {"relu2"}, {}, {}},
      {"linear", "fc3", 0, {"relu2"}, {"logits"}, {{"weight", "fc3.weight"}}, {}}};
  artifact.config_json = "{}";
  artifact.provenance.tool_version = kToolVersion;
  artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
  const auto add = [&](const char* value, const char* scheme, float scale) {
    artifact.activations[value] = {.scheme = take(parse_scheme(scheme)), .scale = scale};
  };
  add("images", kSignedActivation, 2.0f / 127);
  add("flat", kSignedActivation, 2.0f / 127);
  add("relu1", kUnsignedActivation, 0.02f);
  add("relu2", kUnsignedActivation, 0.02f);
  ExportOptions options;
  options.quant_format = "qoperator";
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  const std::vector<int64_t> shape = {64, 1, 6, 6};
  const std::vector<float> images = random_images(64 * 36, 3);
  const std::vector<float> theirs = run_images(images, shape);
  const std::vector<float> ours = our_logits(artifact, images, shape);
  ASSERT_EQ(theirs.size(), ours.size());
  int equal = 0;
  for (size_t i = 0; i < 64; ++i) {
    equal += relative_difference({theirs.data() + 10 * i, 10},
                                 {ours.data() + 10 * i, 10}) < 1e-6;
  }
  EXPECT_GE(equal, 60);
  EXPECT_LT(relative_difference(theirs, ours), 0.01);
}

// 4-bit floats: no kernel of ONNX Runtime's reads them on a CPU (1.31), so the standard's
// reference evaluator dequantizes every weight: MXFP4 with f32 and with e8m0 scales,
// NVFP4 with e4m3 scales under one of the tensor.
TEST_F(OnnxNets, FourBitFloatsAreTheStandardsNumbers) {
  struct Case {
    const char* scheme;
    int64_t opset;
  };
  for (const Case& one : {Case{"e2m1/g32@e8m0", 0}, Case{"e2m1/g32@e8m0", 24},
                          Case{"e2m1/g16@e4m3/t@f32", 0}}) {
    const Artifact artifact =
        sample::quantized(sample::llama({}, 41), one.scheme,
                          [](const Node& n) { return n.op == "linear"; });
    ExportOptions options;
    options.opset = one.opset;
    ASSERT_NO_FATAL_FAILURE(write(artifact, options));
    for (const char* layer :
         {"self_attn.q_proj", "mlp.down_proj"}) {  // 48 and 80 columns
      const std::string name = cat("model.layers.0.", layer, ".weight");
      const Ran ran = run_python(cat("dequantized ", directory_.string(), " ", name,
                                     ".dequantized ", file("out")));
      ASSERT_EQ(ran.status, 0) << ran.output;
      const std::vector<float> theirs = read_floats(file("out"));
      const PackedTensor& packed = artifact.packed.at(name);
      std::vector<float> ours(static_cast<size_t>(packed.rows * packed.cols));
      ASSERT_TRUE(dequantize_rows(
                      packed, 0, MatrixView<float>(ours.data(), packed.rows, packed.cols))
                      .ok());
      ASSERT_EQ(theirs.size(), ours.size());
      for (int64_t r = 0; r < packed.rows; ++r) {
        for (int64_t c = 0; c < packed.cols; ++c) {
          ASSERT_EQ(theirs[static_cast<size_t>(c * packed.rows + r)],
                    ours[static_cast<size_t>(r * packed.cols + c)])
              << one.scheme << " " << name << " " << r << " " << c;
        }
      }
    }
  }
}

// ResNet-20 with integer activations of the first 256 test images, calibrated on them.
class ResNet20 : public OnnxNets {
 protected:
  static constexpr int64_t kImages = 256;
  void SetUp() override {
    OnnxNets::SetUp();
    if (IsSkipped()) return;
    const auto file = shared_models() / "cifar10_resnet/resnet20_cifar10.safetensors";
    if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is absent";
    floats_ = take(load_model(file, {}));
    set_ = take(load_images(shared_models().parent_path() / "cifar10", Split::test));
    images_.resize(static_cast<size_t>(kImages * 3 * 32 * 32));
    preprocess(set_, 0, kImages, floats_.image_mean, floats_.image_std, images_.data());
  }
  Artifact w8a8(const char* unsigned_activation) {
    Artifact artifact = floats_;
    FoldedModel folded = take(fold_batch_norm(artifact.program, artifact.tensors));
    artifact.program = folded.program;
    artifact.tensors = folded.tensors;
    const auto maxima = value_maxima(artifact, images_, shape_);
    artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
    sample::add_activations(
        artifact, [&](const std::string& value) { return maxima.at(value); },
        kSignedActivation, unsigned_activation);
    return artifact;
  }
  int compare(const Artifact& artifact, const std::vector<float>& ours) {
    const std::vector<float> theirs = run_images(images_, shape_);
    // A step: what one code of one pooled channel moves a logit by, at most.
    const Node& head = artifact.program.nodes.back();
    const PackedTensor& packed = artifact.packed.at(head.parameter("weight"));
    std::vector<float> weights(static_cast<size_t>(packed.rows * packed.cols));
    const MatrixView<float> rows(weights.data(), packed.rows, packed.cols);
    EXPECT_TRUE(dequantize_rows(packed, 0, rows).ok());
    int agree = 0, right = 0, equal = 0, within = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      float step = 0;
      for (int64_t c = 0; c < packed.cols; ++c)
        step = std::max(step, std::abs(rows.row(static_cast<int64_t>(i) % 10)[c]));
      step *= artifact.activations.at(head.inputs.front()).scale;
      equal += std::abs(theirs[i] - ours[i]) <= 1e-6f * std::abs(ours[i]);
      within += std::abs(theirs[i] - ours[i]) <= step;
    }
    for (int64_t i = 0; i < kImages; ++i) {
      const auto begin = static_cast<size_t>(10 * i);
      const int32_t mine = argmax({ours.data() + begin, 10});
      agree += argmax({theirs.data() + begin, 10}) == mine;
      right += mine == set_.labels[static_cast<size_t>(i)];
    }
    std::printf(
        "w8a8: %d of 256 images agree, %d right; of 2560 logits %d equal, %d within a "
        "step of a pooled code; they differ by %.2g\n",
        agree, right, equal, within, relative_difference(theirs, ours));
    EXPECT_GE(right, 230);  // 91.7 % of 256 is 235
    EXPECT_LT(relative_difference(theirs, ours), 0.05);
    return agree;
  }

  Artifact floats_;
  ImageSet set_;
  std::vector<float> images_;
  const std::vector<int64_t> shape_ = {kImages, 3, 32, 32};
};

TEST_F(ResNet20, FloatGivesTheSameLogits) {
  ASSERT_NO_FATAL_FAILURE(write(floats_));
  const std::vector<float> theirs = run_images(images_, shape_);
  EXPECT_LT(relative_difference(theirs, our_logits(floats_, images_, shape_)), kLogits);
}

// Placement by ONNX Runtime's own judgement: nothing but padding and the head, whose
// logits are floats, is left between a DequantizeLinear and a QuantizeLinear. Then the
// same net in operators on codes, as they are written.
TEST_F(ResNet20, W8A8GivesTheSameClassesAndRunsOnIntegers) {
  const Artifact artifact = w8a8(kUnsignedActivation);
  const std::vector<float> ours = our_logits(artifact, images_, shape_);
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  EXPECT_GE(compare(artifact, ours), 254);
  const Ran ran = run_python("fused " + directory_.string());
  ASSERT_EQ(ran.status, 0) << ran.output;
  for (const char* line :
       {"19 QLinearConv\n", "9 QLinearAdd\n", "1 QLinearGlobalAveragePool\n"}) {
    EXPECT_NE(ran.output.find(line), std::string::npos) << line << ran.output;
  }
  for (const char* op : {" Conv\n", " Relu\n", " Add\n", " FusedConv\n"}) {
    EXPECT_EQ(ran.output.find(op), std::string::npos) << op << ran.output;
  }
  ExportOptions options;
  options.quant_format = "qoperator";
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  EXPECT_EQ(compare(artifact, ours), 256);
}

// Signed codes alone, as TensorRT has them; it is not at hand, so ONNX Runtime runs them.
TEST_F(ResNet20, W8A8ForTensorRtGivesTheSameClasses) {
  const Artifact artifact = w8a8("uint7/t@f32");
  ExportOptions options;
  options.target = "tensorrt";
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  EXPECT_GE(compare(artifact, our_logits(artifact, images_, shape_)), 254);
}

}  // namespace
}  // namespace nibble
