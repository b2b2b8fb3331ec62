// A real voice detector (silero, 16 kHz, opset 15) read from ONNX, run, quantized to int8
// weights and written back, on a minute of audio, chunk by chunk with its state carried,
// against the original file in ONNX Runtime.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>

#include "export/exporter.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/runtime/executor.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"
#include "tests/interop/transformers.h"

namespace nibble {
namespace {

using sample::take;
using transformers::Ran;

constexpr int64_t kChunk = 512, kContext = 64, kRead = kChunk + kContext;  // samples
constexpr int64_t kState = 2 * 128, kRow = 1 + kState;  // what a chunk gives
constexpr float kSpeech = 0.5f;                         // the detector's usual threshold

Ran run_python(const std::string& arguments) {
  return transformers::run_python("onnx_run.py", arguments);
}

// 16-bit mono samples as floats in [-1, 1), a row a chunk with the samples before it.
std::vector<float> chunks_of(const std::filesystem::path& wav) {
  std::ifstream file(wav, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  const size_t data = bytes.find("data");
  EXPECT_NE(data, std::string::npos);
  std::vector<int16_t> samples((bytes.size() - data - 8) / 2);
  std::memcpy(samples.data(), bytes.data() + data + 8, samples.size() * 2);
  const auto at = [&](int64_t i) {
    return i < 0 ? 0.0f : samples[static_cast<size_t>(i)] / 32768.0f;
  };
  std::vector<float> rows;
  for (int64_t first = 0; first + kChunk <= static_cast<int64_t>(samples.size());
       first += kChunk) {
    for (int64_t i = first - kContext; i < first + kChunk; ++i) rows.push_back(at(i));
  }
  return rows;
}

struct Difference {
  double probability = 0, state = 0;
  int64_t chunks = 0, same = 0, speech = 0;  // same decision; of them speech in b
};
Difference compare(std::span<const float> a, std::span<const float> b) {
  Difference found;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i + kRow <= std::min(a.size(), b.size()); i += kRow) {
    const auto apart = [&](size_t k) {
      return std::abs(static_cast<double>(a[i + k]) - b[i + k]);
    };
    found.probability = std::max(found.probability, apart(0));
    for (size_t k = 1; k < kRow; ++k) found.state = std::max(found.state, apart(k));
    ++found.chunks;
    found.same += (a[i] > kSpeech) == (b[i] > kSpeech);
    found.speech += b[i] > kSpeech;
  }
  return found;
}

class Silero : public ::testing::Test {
 protected:
  void SetUp() override {
    const Ran ran = run_python("check /nonexistent");
    if (ran.status == 77)
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    const auto data =
        std::filesystem::path(NIBBLE_SOURCE_DIR).parent_path() / "shared/data";
    original_ = data / "models/silero_vad/silero_vad_16k_op15.onnx";
    if (!std::filesystem::exists(original_)) GTEST_SKIP() << original_ << " is absent";
    chunks_ = chunks_of(data / "models/silero_vad/test.wav");
    directory_ = sample::fresh_directory("silero");
    std::filesystem::create_directory(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  // A chunk a row: its probability and the state after it.
  std::vector<float> run_onnx(const std::filesystem::path& model) {
    std::ofstream(directory_ / "in", std::ios::binary)
        .write(reinterpret_cast<const char*>(chunks_.data()),
               static_cast<std::streamsize>(chunks_.size() * sizeof(float)));
    const Ran ran =
        run_python(cat("stream ", model.string(), " ", (directory_ / "in").string(), " ",
                       kRead, " ", (directory_ / "out").string()));
    EXPECT_EQ(ran.status, 0) << ran.output;
    return transformers::read_values<float>(directory_ / "out");
  }
  std::vector<float> run_ours(const Artifact& artifact) {
    Executor net = take(Executor::create(std::make_shared<const Artifact>(artifact), {}));
    std::vector<float> state(kState, 0), rows;
    for (size_t at = 0; at < chunks_.size(); at += kRead) {
      const std::span<const float> chunk(chunks_.data() + at, kRead);
      const auto made = take(net.forward_values(std::vector<NetInput>{
          {"input", {1, kRead}, chunk}, {"state", {2, 1, 128}, state}}));
      rows.insert(rows.end(), made[0].values.begin(), made[0].values.end());
      rows.insert(rows.end(), made[1].values.begin(), made[1].values.end());
      state = made[1].values;
    }
    return rows;
  }
  std::filesystem::path written(const Artifact& artifact, const char* name) {
    const Status status =
        take(find_exporter("onnx"))->write(artifact, directory_ / name, {});
    EXPECT_TRUE(status.ok()) << status.message();
    const Ran checked = run_python("check " + (directory_ / name).string());
    EXPECT_EQ(checked.status, 0) << checked.output;
    return directory_ / name / "model.onnx";
  }

  std::filesystem::path original_, directory_;
  std::vector<float> chunks_;
};

TEST_F(Silero, IsReadQuantizedAndWrittenBackWithItsDecisions) {
  LoadOptions options;
  options.sizes = {cat("sequence=", kRead)};
  const Artifact artifact = take(load_model(original_, options));
  EXPECT_EQ(artifact.program.inputs.size(), 3u);  // sr stays an input
  const std::vector<float> theirs = run_onnx(original_);
  const Difference plain = compare(run_ours(artifact), theirs);
  EXPECT_GT(plain.chunks, 1000);
  std::printf(
      "%d chunks, %d of speech; float here and in ONNX Runtime: probabilities within "
      "%.2g, states within %.2g, %d decisions equal\n",
      static_cast<int>(plain.chunks), static_cast<int>(plain.speech), plain.probability,
      plain.state, static_cast<int>(plain.same));
  EXPECT_GT(plain.speech, plain.chunks / 10);
  EXPECT_LT(plain.speech, plain.chunks * 9 / 10);
  EXPECT_LT(plain.probability, 2e-5);
  EXPECT_LT(plain.state, 2e-4);
  EXPECT_EQ(plain.same, plain.chunks);
  const Difference there = compare(run_onnx(written(artifact, "float")), theirs);
  EXPECT_LT(there.probability, 2e-5);

  // Every matrix in int8, a scale a row.
  const Artifact quantized = sample::quantized(artifact, "int8n/r@f16");
  EXPECT_EQ(quantized.packed.size(), 8u);
  const std::vector<float> ours = run_ours(quantized);
  const std::vector<float> in_graph = run_onnx(written(quantized, "w8"));
  const Difference cost = compare(in_graph, theirs), same = compare(ours, in_graph);
  std::printf(
      "int8 weights in ONNX Runtime against the original: probabilities within %.2g, %d "
      "decisions of %d equal; here and there within %.2g\n",
      cost.probability, static_cast<int>(cost.same), static_cast<int>(cost.chunks),
      same.probability);
  EXPECT_LT(same.probability, 1e-4);
  EXPECT_LT(cost.probability, 0.2);
  EXPECT_GT(cost.probability, 1e-5);  // it is quantized
  EXPECT_GE(cost.same, cost.chunks * 99 / 100);
}

// Calibrated on three quarters of the minute as a stream, its state carried, measured on
// the rest: static INT8 inputs of every layer that QDQ can say, in our runtime and in
// ONNX Runtime.
TEST_F(Silero, IsCalibratedOnAStreamAndRunsAsQdq) {
  const Ran version = transformers::run_command(cat(NIBBLE_BINARY, " --version"));
  if (version.output.find("with LibTorch") == std::string::npos)
    GTEST_SKIP() << "this build has no LibTorch";
  const auto rows = static_cast<int64_t>(chunks_.size()) / kRead;
  const int64_t seen = rows * 3 / 4;
  const auto write = [&](const char* name, int64_t first, int64_t count) {
    const std::vector<float> part(chunks_.begin() + first * kRead,
                                  chunks_.begin() + (first + count) * kRead);
    EXPECT_TRUE(write_safetensors(directory_ / name,
                                  {{"input", make_tensor({count, 1, kRead}, part)}}, {})
                    .ok());
    return (directory_ / name).string();
  };
  const std::string made =
      cat(NIBBLE_BINARY, " quantize ", original_.string(), " --size sequence=", kRead,
          " --recipe w8a8-static --set data.carry=stateN=state --calibration ",
          write("seen.safetensors", 0, seen), " --evaluation ",
          write("held.safetensors", seen, rows - seen), " --output ",
          (directory_ / "w8a8").string(), " --json");
  const Ran quantized = transformers::run_command(made);
  ASSERT_EQ(quantized.status, 0) << quantized.output;
  EXPECT_NE(quantized.output.find("exact mode: "), std::string::npos);
  const Artifact artifact = take(load_model(directory_ / "w8a8", {}));
  int64_t inputs = 0;
  for (const auto& [tensor, layer] : artifact.layers) inputs += layer.input.has_value();
  EXPECT_EQ(artifact.packed.size(), 8u);
  EXPECT_EQ(inputs, 7);  // all but the one over h

  chunks_.erase(chunks_.begin(), chunks_.begin() + seen * kRead);
  const std::vector<float> theirs = run_onnx(original_);
  const std::vector<float> ours = run_ours(artifact);
  const std::vector<float> in_graph = run_onnx(written(artifact, "qdq"));
  const Difference cost = compare(ours, theirs), same = compare(ours, in_graph);
  std::printf(
      "static INT8 against the original, %d chunks held out: probabilities within %.2g, "
      "%d decisions equal; here and in ONNX Runtime probabilities within %.2g, states "
      "within %.2g, %d decisions equal\n",
      static_cast<int>(cost.chunks), cost.probability, static_cast<int>(cost.same),
      same.probability, same.state, static_cast<int>(same.same));
  EXPECT_GE(cost.same, cost.chunks * 97 / 100);
  EXPECT_GT(cost.probability, 1e-4);  // it is quantized
  // Sums of another order put a code on the other side of a rounding now and then, and
  // the state remembers it.
  EXPECT_LT(same.probability, 0.01);
  EXPECT_GE(same.same, same.chunks * 99 / 100);
}

}  // namespace
}  // namespace nibble
