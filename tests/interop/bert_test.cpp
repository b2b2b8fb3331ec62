// Encoders against transformers, and their ONNX graphs in ONNX Runtime against the runtime.
#include <numeric>

#include "export/exporter.h"
#include "kernels/base/cpu.h"
#include "kernels/runtime/executor.h"
#include "recipes/models/load_model.h"
#include "tests/interop/bert_reference.h"

namespace nibble {
namespace {

using bert::Reference;
using bert::relative_difference;
using bert::Sequences;
using sample::take;

constexpr double kFloat = 1e-4;    // of the largest value; 1e-6 is what was measured
// The two runtimes sum norms and softmax in their own order, so that with dynamic int8
// activations some values round to the next code, and each such code moves others: results
// are apart by a part of what the codes lose, not by rounding alone.
constexpr double kCodes = 0.05;           // of the largest state
// 1e-3 was measured: a fifth of what the codes lose.
constexpr double kCosineDistance = 3e-3;  // of embeddings
// With every float operation in float64 on both sides no code differs.
constexpr double kSameCodes = 1e-6;  // of the largest value; 1e-7 was measured

class Bert : public bert::Encoders {
 protected:
  // What ONNX Runtime makes of an artifact's graph: all sequences as one padded batch, and
  // each alone.
  struct Theirs {
    std::vector<float> padded, alone;
  };
  // One Python process for all: importing takes it longer than running.
  std::vector<Theirs> theirs(const std::vector<Artifact>& artifacts, const Sequences& ids,
                             ExportOptions options = {}) {
    options.overwrite = true;
    const Exporter* onnx = take(find_exporter("onnx"));
    std::ofstream lines(file("ids"));
    for (const auto& sequence : ids) {
      for (size_t i = 0; i < sequence.size(); ++i) lines << (i ? "," : "") << sequence[i];
      lines << "\n";
    }
    lines.close();
    std::string arguments = cat("onnx ", file("ids"));
    for (size_t i = 0; i < artifacts.size(); ++i) {
      const std::string folder = file("onnx") + std::to_string(i);
      const Status status = onnx->write(artifacts[i], folder, options);
      EXPECT_TRUE(status.ok()) << status.message();
      arguments += " " + folder;
    }
    const bert::Ran ran = bert::run_python(arguments);
    EXPECT_EQ(ran.status, 0) << ran.output;
    std::vector<Theirs> result;
    for (size_t i = 0; i < artifacts.size(); ++i) {
      const auto both = bert::read_floats(file("onnx") + std::to_string(i) + "/out.f32");
      const auto middle = both.begin() + static_cast<std::ptrdiff_t>(both.size() / 2);
      result.push_back({{both.begin(), middle}, {middle, both.end()}});
    }
    return result;
  }

  void compare(const Theirs& theirs, const std::vector<float>& mine, double tolerance) {
    const double padded = relative_difference(theirs.padded, mine);
    const double alone = relative_difference(theirs.alone, mine);
    std::printf("ONNX Runtime differs by %.2g (padded batch), %.2g (alone)\n", padded, alone);
    EXPECT_LT(padded, tolerance);
    EXPECT_LT(alone, tolerance);
  }

  // The graphs in float64 beside the reference rows.
  void compare_float64(const std::vector<Artifact>& artifacts, const Sequences& ids) {
    const std::vector<Theirs> runs = theirs(artifacts, ids, {.float64 = true});
    ASSERT_TRUE(force_cpu("reference").ok());
    for (size_t i = 0; i < runs.size(); ++i) {
      compare(runs[i], ours(artifacts[i], ids, true), kSameCodes);
    }
    ASSERT_TRUE(force_cpu("").ok());
  }

  // Of embeddings of length 1.
  static std::vector<double> cosines(const std::vector<float>& a,
                                     const std::vector<float>& b) {
    std::vector<double> result(a.size() / 384);
    for (size_t i = 0; i < result.size() * 384; ++i) {
      result[i / 384] += static_cast<double>(a[i]) * b[i];
    }
    return result;
  }
};

TEST_F(Bert, TinyOnesGiveWhatTransformersGives) {
  std::map<std::string, Reference> references;
  if (!tiny(references)) GTEST_SKIP() << skipped_;
  std::vector<Artifact> artifacts;
  for (const auto& [kind, reference] : references) {
    SCOPED_TRACE(kind);
    const Artifact artifact = take(load_model(reference.model, {}));
    EXPECT_EQ(artifact.program.outputs[0].name, "last_hidden_state");
    for (const bool batch : {false, true}) {
      const std::vector<float> mine = ours(artifact, reference.ids, batch);
      const double difference = relative_difference(mine, reference.values);
      std::printf("transformers differs by %.2g\n", difference);
      EXPECT_LT(difference, kFloat) << (batch ? "batch" : "alone");
    }
    // The pooler's two tensors; of the model with heads, theirs too.
    for (const LedgerEntry& entry : artifact.ledger.entries) {
      EXPECT_EQ(entry.method, "ignored") << entry.tensor;
      EXPECT_FALSE(entry.reason.empty()) << entry.tensor;
    }
    EXPECT_GE(artifact.ledger.entries.size(), kind == "heads" ? 5u : 2u);
    artifacts.push_back(artifact);
  }
  artifacts.push_back(w8a8(artifacts[0]));
  const Sequences ids = bert::tiny_ids();
  const std::vector<Theirs> runs = theirs(artifacts, ids);
  for (size_t i = 0; i < runs.size(); ++i) {
    const bool dynamic = i + 1 == runs.size();
    compare(runs[i], ours(artifacts[i], ids, true), dynamic ? kCodes : kFloat);
  }
  compare_float64({w8a8(artifacts[0]), w8a8(take(load_model(references["tanh"].model, {}))),
                   w8a8(take(load_model(references["relu"].model, {})))},
                  ids);
}

TEST_F(Bert, MiniLMGivesTheEmbeddingsThatTransformersGives) {
  Reference reference;
  if (!minilm(reference)) GTEST_SKIP() << skipped_;
  const Artifact artifact = take(load_model(reference.model, {}));
  ASSERT_EQ(reference.values.size(), reference.ids.size() * 384);
  EXPECT_EQ(artifact.program.outputs[0].name, "sentence_embedding");
  EXPECT_EQ(artifact.program.context_length, 256);  // sentence_bert_config.json's
  for (const bool batch : {false, true}) {
    const double difference =
        relative_difference(ours(artifact, reference.ids, batch), reference.values);
    std::printf("transformers differs by %.2g\n", difference);
    EXPECT_LT(difference, kFloat);
  }
  const Artifact integer = w8a8(artifact);
  const std::vector<float> mine = ours(integer, reference.ids, false);
  EXPECT_EQ(mine, ours(integer, reference.ids, true));  // no sentence sees another
  const std::vector<double> near = cosines(mine, reference.values);
  EXPECT_GT(std::accumulate(near.begin(), near.end(), 0.0) / 6, 0.99);
  for (const double cosine : near) {
    EXPECT_GT(cosine, 0.97);
    EXPECT_LT(cosine, 0.99999);  // or nothing was quantized
  }
  const std::vector<Theirs> runs = theirs({artifact, integer}, reference.ids);
  compare(runs[0], ours(artifact, reference.ids, true), kFloat);
  for (const auto* values : {&runs[1].padded, &runs[1].alone}) {
    for (const double cosine : cosines(*values, mine)) {
      std::printf("1 - cosine with ONNX Runtime %.2g\n", 1 - cosine);
      EXPECT_LT(1 - cosine, kCosineDistance);
    }
  }
  compare_float64({integer}, reference.ids);
}

}  // namespace
}  // namespace nibble
