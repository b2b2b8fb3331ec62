// Layers of a net of floats whose inputs are static codes: against the formula written
// out, and refusals.
#include "kernels/runtime/integer_layer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/program/layers.h"
#include "kernels/program/never_negative.h"
#include "kernels/runtime/executor.h"
#include "tests/kernels/small_detector.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using Floats = std::vector<float>;

PackedTensor packed_codes(const Tensor& values, const char* scheme) {
  const Floats floats = *to_float(values);
  const MatrixView<const float> x(floats.data(), values.rows(), values.cols());
  CodedMatrix coded = choose_scales(x, parse_scheme(scheme).value(), ScaleRule{}).value();
  EXPECT_TRUE(quantize(x, coded).ok());
  return pack(coded, values.shape).value();
}

ActivationScheme static_codes(const char* scheme, float scale) {
  ActivationScheme activation;
  activation.scheme = parse_scheme(scheme).value();
  activation.scale = scale;
  return activation;
}

// The detector with int8 weights; every layer but the cell's second matrix reads codes.
Artifact in_codes() {
  Artifact artifact = testing::small_detector();
  const std::map<std::string, ActivationScheme> inputs = {
      {"stft.weight", static_codes("int8/t@f32", 0.009f)},
      {"features.weight", static_codes("uint8/t@f32", 0.02f)},
      {"cell.ih", static_codes("uint8/t@f32", 0.015f)},
      {"out.weight", static_codes("uint8/t@f32", 0.004f)}};
  for (const char* tensor :
       {"stft.weight", "features.weight", "cell.ih", "cell.hh", "out.weight"}) {
    artifact.packed[tensor] = packed_codes(artifact.tensors.at(tensor), "int8/r@f32");
    artifact.tensors.erase(tensor);
    artifact.layers[tensor].weight = artifact.packed[tensor].scheme;
    if (inputs.count(tensor)) artifact.layers[tensor].input = inputs.at(tensor);
  }
  return artifact;
}

Result<Executor> executor_of(const Artifact& artifact, ExecutorOptions options = {}) {
  return Executor::create(std::make_shared<const Artifact>(artifact), options);
}

TEST(NeverNegative, FollowsWhatMakesAndKeepsSigns) {
  const Program program = testing::small_detector().program;
  for (const char* value : {"magnitude", "power", "real2", "active", "times", "heard",
                            "probability", "speech"})
    EXPECT_TRUE(never_negative(program, value)) << value;
  for (const char* value : {"input", "state", "padded", "stft", "real", "features",
                            "cell", "next", "out", "nothing"})
    EXPECT_FALSE(never_negative(program, value)) << value;
}

TEST(ReaderLayer, IsTheLayerThatReadsTheFirstInput) {
  const Program program = testing::small_detector().program;
  EXPECT_EQ(reader_layer(*program.find("stft")), "stft");
  EXPECT_EQ(reader_layer(*program.find("cell")), "cell.weight_ih");
  EXPECT_EQ(reader_layer(*program.find("active")), "");
  EXPECT_EQ(owner_of(program, "cell.weight_hh"), program.find("cell"));
  EXPECT_EQ(owner_of(program, "cell"), nullptr);
}

// Every convolution and the cell's first product, from the values that the executor
// itself gives, in double and by hand.
TEST(IntegerLayer, IsItsFormulaBitForBit) {
  const Artifact artifact = in_codes();
  Result<Executor> net = executor_of(artifact);
  ASSERT_TRUE(net.ok()) << net.status().message();
  const Floats audio = testing::small_audio(3 * 24, 5), state(2 * 3 * 4, 0.25f);
  std::map<std::string, Floats> seen;
  net->set_tap([&](const TapValue& tap) {
    seen[tap.name].assign(tap.floats.begin(), tap.floats.end());
  });
  const auto outputs = net->forward_values(
      std::vector<NetInput>{{"input", {3, 24}, audio}, {"state", {2, 3, 4}, state}});
  ASSERT_TRUE(outputs.ok()) << outputs.status().message();
  EXPECT_EQ(seen.at("input"), audio);

  struct Case {
    const char *node, *input;
    int64_t channels, width, kernel, stride, pad;
  };
  for (const Case& c : {Case{"stft", "signal", 1, 28, 8, 4, 0},
                        Case{"features", "magnitude", 4, 6, 3, 2, 1},
                        Case{"out", "heard", 4, 1, 1, 1, 0}}) {
    const Node& node = *artifact.program.find(c.node);
    const std::string& weight = node.parameter("weight");
    const ActivationScheme& input = *artifact.layers.at(weight).input;
    const CodedMatrix w = unpack(artifact.packed.at(weight)).value();
    const std::string& bias_name = node.parameter("bias");
    const Floats bias = bias_name.empty() ? Floats(static_cast<size_t>(w.rows), 0.0f)
                                          : *to_float(artifact.tensors.at(bias_name));
    const Floats &x = seen.at(c.input), &y = seen.at(c.node);
    const int64_t out = (c.width + 2 * c.pad - c.kernel) / c.stride + 1;
    ASSERT_EQ(y.size(), static_cast<size_t>(3 * w.rows * out));
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t o = 0; o < w.rows; ++o) {
        for (int64_t j = 0; j < out; ++j) {
          int64_t sum = 0;
          for (int64_t i = 0; i < c.channels; ++i) {
            for (int64_t k = 0; k < c.kernel; ++k) {
              const int64_t at = j * c.stride + k - c.pad;
              if (at < 0 || at >= c.width) continue;
              const float value =
                  x[static_cast<size_t>((n * c.channels + i) * c.width + at)];
              const float code =
                  std::min(std::max(std::nearbyintf(value / input.scale),
                                    static_cast<float>(code_lowest(input.scheme))),
                           static_cast<float>(code_highest(input.scheme)));
              sum +=
                  static_cast<int64_t>(code) *
                  static_cast<int8_t>(
                      w.codes[static_cast<size_t>((o * c.channels + i) * c.kernel + k)]);
            }
          }
          const float m = input.scale * w.scales[0].values[static_cast<size_t>(o)];
          const auto b = static_cast<int64_t>(
              std::nearbyint(static_cast<double>(bias[static_cast<size_t>(o)]) / m));
          EXPECT_EQ(y[static_cast<size_t>((n * w.rows + o) * out + j)],
                    static_cast<float>(sum + b) * m)
              << c.node;
        }
      }
    }
  }
  // The rounding is seen: the float net gives something else, and not far from it.
  Result<Executor> plain = executor_of(artifact, {.integer = false});
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  const auto floats = plain->forward_values(
      std::vector<NetInput>{{"input", {3, 24}, audio}, {"state", {2, 3, 4}, state}});
  double apart = 0;
  for (size_t i = 0; i < floats->at(1).values.size(); ++i)
    apart = std::max<double>(
        apart, std::abs(floats->at(1).values[i] - outputs->at(1).values[i]));
  EXPECT_GT(apart, 1e-6);
  EXPECT_LT(apart, 0.05);
}

TEST(IntegerLayer, GivesTheSameAloneAndInABatch) {
  const Artifact artifact = in_codes();
  Executor net = executor_of(artifact).value();
  const Floats audio = testing::small_audio(2 * 24, 9), state(2 * 2 * 4, 0.0f);
  const auto both = *net.forward_values(
      std::vector<NetInput>{{"input", {2, 24}, audio}, {"state", {2, 2, 4}, state}});
  const auto second = *net.forward_values(std::vector<NetInput>{
      {"input", {1, 24}, std::span<const float>(audio).subspan(24)},
      {"state", {2, 1, 4}, std::span<const float>(state).first(8)}});
  EXPECT_EQ(both[0].values[1], second[0].values[0]);
}

TEST(IntegerLayer, RefusesWhatItsFormulaDoesNotSay) {
  const auto message = [](const auto& change) {
    Artifact artifact = in_codes();
    change(artifact);
    return executor_of(artifact).status().message();
  };
  EXPECT_THAT(message([](Artifact& a) { a.layers["stft.weight"].input->scale = 0; }),
              HasSubstr("[runtime] stft input: static integer codes with one scale > 0 "
                        "and zero point 0 were required"));
  EXPECT_THAT(message([](Artifact& a) {
                a.packed["out.weight"] =
                    packed_codes(testing::small_detector().tensors.at("out.weight"),
                                 "uint8/r@f32+z/r@uint8");
              }),
              HasSubstr("[runtime] out: symmetric integer weights with a scale a channel "
                        "or a tensor were required"));
  EXPECT_THAT(
      message([](Artifact& a) {
        a.layers["cell.hh"].input = static_codes("int8/t@f32", 0.01f);
      }),
      HasSubstr("[runtime] cell.weight_hh: an lstm reads floats, its first matrix "
                "static integers"));
  EXPECT_THAT(message([](Artifact& a) {
                a.tensors["features.bias"] = make_tensor({6}, Floats(6, 1e9f));
              }),
              HasSubstr("[runtime] features: a bias within int32"));
}

}  // namespace
}  // namespace nibble
