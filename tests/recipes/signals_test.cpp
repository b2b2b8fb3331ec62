// Data of nets over values: how files are read, what is refused, and the figures.
#include "recipes/data/signals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/artifact/safetensors.h"
#include "recipes/eval/signal_quality.h"
#include "tests/kernels/small_detector.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Floats = std::vector<float>;
using Tensors = std::map<std::string, Tensor>;

Tensor zeros(std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return make_tensor(shape, Floats(static_cast<size_t>(count), 0.0f));
}

class Signals : public ::testing::Test {
 protected:
  Result<SignalSet> load(const Tensors& tensors, const std::string& carry = "",
                         int64_t limit = 0) {
    const auto file = files.path() / "data.safetensors";
    EXPECT_TRUE(write_safetensors(file, tensors, {}).ok());
    return load_signals(file, program, parse_carries(carry, "[test]").value(), limit);
  }
  std::string refused(const Tensors& tensors, const std::string& carry = "") {
    const Result<SignalSet> set = load(tensors, carry);
    EXPECT_FALSE(set.ok());
    return set.status().message();
  }
  TemporaryDirectory files;
  Program program = testing::small_detector().program;
};

TEST_F(Signals, RowsPutTheBatchInFront) {
  // state [2, 3, 4]: sample b has the values of [0, b, :] and [1, b, :].
  Floats state(24);
  for (size_t i = 0; i < 24; ++i) state[i] = static_cast<float>(i);
  const auto set =
      load({{"input", zeros({3, 24})}, {"state", make_tensor({2, 3, 4}, state)}});
  ASSERT_TRUE(set.ok()) << set.status().message();
  EXPECT_EQ(set->count(), 3);
  EXPECT_FALSE(set->is_stream());
  EXPECT_THAT(
      Floats(set->inputs.at("state").begin() + 8, set->inputs.at("state").begin() + 16),
      ElementsAre(4, 5, 6, 7, 16, 17, 18, 19));
  const std::vector<int64_t> all = {0, 1, 2}, last = {2};
  const ProgramValue& value = program.inputs[1];
  EXPECT_EQ(rows_to_batch(value, set->inputs.at("state"), all), state);
  EXPECT_THAT(rows_to_batch(value, set->inputs.at("state"), last),
              ElementsAre(8, 9, 10, 11, 20, 21, 22, 23));
  EXPECT_THAT(batch_shape(value, 1), ElementsAre(2, 1, 4));
}

TEST_F(Signals, StreamsHaveTheirStepsInFrontAndStatesThatBegin) {
  const auto set = load({{"input", zeros({5, 2, 24})},
                         {"target.speech", zeros({5, 2, 1})},
                         {"sr", make_tensor({}, Floats{16000})}},
                        "next=state");
  ASSERT_TRUE(set.ok()) << set.status().message();
  EXPECT_EQ(set->steps, 5);
  EXPECT_EQ(set->streams, 2);
  EXPECT_EQ(set->starts.at("state"), Floats(16, 0.0f));
  EXPECT_EQ(set->targets.at("speech").size(), 10u);
  EXPECT_EQ(set->description, "data.safetensors, 5 steps of 2 streams");
  const SignalSet part = part_of(*set, 3, 2);
  EXPECT_EQ(part.count(), 4);
  EXPECT_EQ(part.inputs.at("input").size(), 4u * 24);
  EXPECT_EQ(load({{"input", zeros({5, 2, 24})}}, "next=state", 6)->steps, 3);
}

TEST_F(Signals, WhatIsWrongIsSaid) {
  const Tensor input = zeros({3, 24}), state = zeros({2, 3, 4});
  EXPECT_THAT(
      refused({{"input", input}}),
      HasSubstr("[data] state: [2, batch, 4], a tensor of this name, was required; "
                "found none; give it, or carry it, next=state"));
  EXPECT_THAT(
      refused({{"input", input}, {"state", zeros({2, 4, 4})}}),
      HasSubstr("[data] state: [2, batch, 4] was required, batch 3 as the tensors "
                "before it; found [2, 4, 4]"));
  EXPECT_THAT(refused({{"input", zeros({3, 23})}, {"state", state}}),
              HasSubstr("[data] input: [batch, 24] was required; found [3, 23]"));
  EXPECT_THAT(refused({{"input", input}}, "next=state"),
              HasSubstr("[data] input: [steps, batch, 24] was required; found [3, 24]"));
  EXPECT_THAT(refused({{"input", input}, {"state", state}, {"inputs", input}}),
              HasSubstr("data.safetensors: inputs: a tensor named as an input (input, "
                        "state, sr) or target.OUTPUT (speech, next) was required"));
  EXPECT_THAT(refused({{"input", input}, {"state", state}, {"target.y", input}}),
              HasSubstr("target.y: a tensor named as an input"));
  Tensor whole = input;
  whole.dtype = DType::i32;
  EXPECT_THAT(
      refused({{"input", whole}, {"state", state}}),
      HasSubstr("[data] input: floats (F32, F16, BF16) were required; found I32"));
  Floats bad(72, 0.0f);
  bad[30] = std::numeric_limits<float>::quiet_NaN();
  const Result<SignalSet> nan =
      load({{"input", make_tensor({3, 24}, bad)}, {"state", state}});
  EXPECT_EQ(nan.status().code(), StatusCode::out_of_range);
  EXPECT_THAT(
      nan.status().message(),
      HasSubstr("[data] input: finite numbers were required; found nan in sample 1"));
  EXPECT_THAT(
      refused({{"input", input}}, "speech=state"),
      HasSubstr("speech=state: an output and an input of one shape were required; "
                "found two that differ"));
  EXPECT_THAT(refused({{"input", input}}, "next=state,next=state"),
              HasSubstr("found state twice"));
  EXPECT_THAT(parse_carries("next", "[x]").status().message(),
              HasSubstr("[x] next: OUTPUT=INPUT was required"));
  EXPECT_THAT(refused({{"input", zeros({0, 24})}, {"state", zeros({2, 0, 4})}}),
              HasSubstr("[data] input: [batch, 24] was required; found [0, 24]"));
}

TEST_F(Signals, AFileThatIsNoneIsRefused) {
  const auto file = files.path() / "data.safetensors";
  ASSERT_TRUE(write_safetensors(file, {{"input", zeros({3, 24})}}, {}).ok());
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 5);
  EXPECT_EQ(load_signals(file, program, {}).status().code(), StatusCode::data_loss);
  EXPECT_EQ(load_signals(files.path() / "none.safetensors", program, {}).status().code(),
            StatusCode::not_found);
}

// One weight moved: the errors are those of the outputs, summed by hand.
TEST_F(Signals, FiguresAreTheSumsWrittenDown) {
  const auto model = std::make_shared<const Artifact>(testing::small_detector());
  Artifact moved = *model;
  moved.tensors["out.bias"] = make_tensor({1}, Floats{0.4f});
  Executor a = Executor::create(std::make_shared<const Artifact>(moved), {}).value();
  Executor b = Executor::create(model, {}).value();
  const Floats audio = testing::small_audio(40 * 2 * 24, 3);
  const auto set = load({{"input", make_tensor({40, 2, 24}, audio)}}, "next=state");
  ASSERT_TRUE(set.ok()) << set.status().message();
  const Result<SignalQuality> quality = evaluate_signals(a, b, *set, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  const Result<UnrolledSignals> ours = unroll(a, *set, {}), theirs = unroll(b, *set, {});
  ASSERT_TRUE(ours.ok() && theirs.ok());
  double error = 0, size = 0, largest = 0;
  for (size_t i = 0; i < 80; ++i) {
    const double y = ours->outputs.at("speech")[i], r = theirs->outputs.at("speech")[i];
    error += (y - r) * (y - r);
    size += r * r;
    largest = std::max(largest, std::abs(y - r));
  }
  const SignalQuality::Output& speech = quality->outputs[0];
  EXPECT_EQ(speech.name, "speech");
  EXPECT_NEAR(speech.relative_error, std::sqrt(error / size), 1e-12);
  EXPECT_NEAR(speech.snr, -10 * std::log10(error / size), 1e-9);
  EXPECT_EQ(speech.largest_difference, largest);
  EXPECT_LT(speech.relative_error_ci95.low, speech.relative_error);
  EXPECT_GT(speech.relative_error_ci95.high, speech.relative_error);
  EXPECT_EQ(quality->units, 4);  // 40 steps are two runs of at most 32, of two streams
  EXPECT_EQ(quality->outputs[1].relative_error, 0);  // the state hears nothing of it
  EXPECT_NEAR(quality->loss(), error / size / 2, 1e-12);
  // The state before a step is what the one before it left.
  const SignalRows &states = theirs->states, &outputs = theirs->outputs;
  EXPECT_EQ(Floats(states.at("state").begin(), states.at("state").begin() + 16),
            Floats(16, 0.0f));
  EXPECT_EQ(Floats(states.at("state").begin() + 16, states.at("state").end()),
            Floats(outputs.at("next").begin(), outputs.at("next").end() - 16));
  // Against what it is itself there is nothing to find; without targets nothing to say.
  SignalSet with = *set;
  with.targets["speech"] = ours->outputs.at("speech");
  EXPECT_EQ(evaluate_targets(a, with, {})->outputs[0].relative_error, 0);
  EXPECT_NEAR(evaluate_targets(b, with, {})->outputs[0].largest_difference, largest,
              1e-9);
  EXPECT_THAT(evaluate_targets(a, *set, {}).status().message(),
              HasSubstr("target.<output> tensors were required"));
}

// A batch of samples gives what each gives alone, whatever its axis.
TEST_F(Signals, SamplesAreIndependentOfTheirBatch) {
  Executor net =
      Executor::create(std::make_shared<const Artifact>(testing::small_detector()), {})
          .value();
  const Tensor state = testing::random_values({2, 70, 4}, 0.5, 4);
  const auto all =
      load({{"input", make_tensor({70, 24}, testing::small_audio(70 * 24, 8))},
            {"state", state}});
  ASSERT_TRUE(all.ok()) << all.status().message();
  const auto together = unroll(net, *all, {});
  ASSERT_TRUE(together.ok()) << together.status().message();
  const auto one = unroll(net, part_of(*all, 68, 1), {});
  EXPECT_NEAR(together->outputs.at("speech")[68], one->outputs.at("speech")[0], 1e-6);
  EXPECT_NEAR(together->outputs.at("next")[68 * 8 + 5], one->outputs.at("next")[5], 1e-6);
}

}  // namespace
}  // namespace nibble
