// A voice detector as silero's are, small: 24 samples mirrored at the end, a transform as
// a convolution, magnitudes, a convolution, an LSTM whose state comes in and goes out
// with the batch as its second axis, a probability. A sample rate is asked for and not
// read.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/splitmix64.h"

namespace nibble::testing {

inline Tensor random_values(const std::vector<int64_t>& shape, double limit,
                            uint64_t seed) {
  SplitMix64 random(seed);
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>((2 * random.uniform() - 1) * limit));
  return make_tensor(shape, values);
}

inline Artifact small_detector() {
  using Ints = std::vector<int64_t>;
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Detector";
  program.inputs = {{"input", DType::f32, {"batch", "24"}},
                    {"state", DType::f32, {"2", "batch", "4"}},
                    {"sr", DType::i64, {}}};
  program.outputs = {{"speech", DType::f32, {"batch", "1"}},
                     {"next", DType::f32, {"2", "batch", "4"}}};
  const auto add = [&](const char* op, const char* name, std::vector<std::string> inputs,
                       std::map<std::string, Attribute> attributes) -> Node& {
    program.nodes.push_back(
        {op, name, 0, std::move(inputs), {name}, {}, std::move(attributes)});
    return program.nodes.back();
  };
  const auto range = [](int64_t axis, int64_t start, int64_t end) {
    return std::map<std::string, Attribute>{
        {"axis", axis}, {"start", start}, {"end", end}};
  };
  const auto shape = [](Ints sizes) {
    return std::map<std::string, Attribute>{{"shape", std::move(sizes)}};
  };
  add("transpose", "state.first", {"state"}, {{"perm", Ints{1, 0, 2}}});
  add("reflect_pad", "padded", {"input"},
      {{"before", int64_t{0}}, {"after", int64_t{4}}});
  add("reshape", "signal", {"padded"}, shape({1, 1, 28}));
  add("conv2d", "stft", {"signal"},
      {{"stride", Ints{1, 4}}, {"padding", Ints{0, 0}}, {"groups", int64_t{1}}})
      .parameters = {{"weight", "stft.weight"}};
  add("slice", "real", {"stft"}, range(1, 0, 4));
  add("slice", "imaginary", {"stft"}, range(1, 4, 8));
  add("mul", "real2", {"real", "real"}, {});
  add("mul", "imaginary2", {"imaginary", "imaginary"}, {});
  add("add", "power", {"real2", "imaginary2"}, {});
  add("sqrt", "magnitude", {"power"}, {});
  add("conv2d", "features", {"magnitude"},
      {{"stride", Ints{1, 2}}, {"padding", Ints{0, 1}}, {"groups", int64_t{1}}})
      .parameters = {{"weight", "features.weight"}, {"bias", "features.bias"}};
  add("relu", "active", {"features"}, {});
  add("reshape", "frames", {"active"}, shape({6, 3}));
  add("transpose", "times", {"frames"}, {{"perm", Ints{0, 2, 1}}});
  add("slice", "h.row", {"state.first"}, range(1, 0, 1));
  add("slice", "c.row", {"state.first"}, range(1, 1, 2));
  add("reshape", "h", {"h.row"}, shape({4}));
  add("reshape", "c", {"c.row"}, shape({4}));
  add("lstm", "cell", {"times", "h", "c"}, {{"hidden_size", int64_t{4}}}).parameters = {
      {"weight_ih", "cell.ih"}, {"weight_hh", "cell.hh"}, {"bias", "cell.bias"}};
  add("slice", "last.h", {"cell"}, range(1, 2, 3));
  add("slice", "last.c", {"cell"}, range(1, 3, 4));
  add("concat", "next.first", {"last.h", "last.c"}, {});
  add("transpose", "next", {"next.first"}, {{"perm", Ints{1, 0, 2}}});
  add("reshape", "column", {"last.h"}, shape({4, 1, 1}));
  add("relu", "heard", {"column"}, {});
  add("conv2d", "out", {"heard"},
      {{"stride", Ints{1, 1}}, {"padding", Ints{0, 0}}, {"groups", int64_t{1}}})
      .parameters = {{"weight", "out.weight"}, {"bias", "out.bias"}};
  add("sigmoid", "probability", {"out"}, {});
  add("reshape", "speech", {"probability"}, shape({1}));
  artifact.tensors = {{"stft.weight", random_values({8, 1, 1, 8}, 0.7, 1)},
                      {"features.weight", random_values({6, 4, 1, 3}, 0.6, 2)},
                      {"features.bias", random_values({6}, 0.2, 3)},
                      {"cell.ih", random_values({16, 6}, 0.8, 4)},
                      {"cell.hh", random_values({16, 4}, 0.8, 5)},
                      {"cell.bias", random_values({16}, 0.3, 6)},
                      {"out.weight", random_values({1, 4, 1, 1}, 2, 7)},
                      {"out.bias", random_values({1}, 0.1, 8)}};
  artifact.config_json = "{}\n";
  return artifact;
}

// Audio-like: louder and softer, with a tone.
inline std::vector<float> small_audio(int64_t count, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const double loud = 0.05 + static_cast<double>((i / 100) % 7) / 7;
    values.push_back(static_cast<float>(loud * (2 * random.uniform() - 1)));
  }
  return values;
}

}  // namespace nibble::testing
