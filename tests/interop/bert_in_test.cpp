// BERTs that torch.onnx.export wrote, read from ONNX: run, quantized and written back,
// against ONNX Runtime on the original file.
#include <fstream>

#include "export/exporter.h"
#include "kernels/runtime/executor.h"
#include "recipes/models/load_model.h"
#include "tests/interop/bert_reference.h"

namespace nibble {
namespace {

using bert::Ran;
using bert::relative_difference;
using bert::Sequences;
using sample::take;

constexpr double kFloat = 1e-5;  // of the largest value
// Dynamic int8 activations: a value that rounds to the next code here or there moves
// others.
constexpr double kCodes = 0.05;

class BertIn : public bert::Encoders {
 protected:
  Ran python(const std::string& arguments) {
    return transformers::run_python("bert_in_run.py", arguments);
  }
  // Directories of those kinds that Python could make.
  std::vector<std::string> make(const std::string& kinds) {
    const Ran ran = python(cat("make ", directory_.string(), " ", kinds));
    skipped_ = ran.status == 77 ? ran.output : "";
    if (ran.status != 77) {
      EXPECT_EQ(ran.status, 0) << ran.output;
    }
    std::vector<std::string> made;
    std::istringstream words(kinds);
    for (std::string kind; words >> kind;) {
      if (std::filesystem::exists(directory_ / kind / "model.onnx")) made.push_back(kind);
    }
    if (ran.status == 0)
      std::fputs(ran.output.c_str(), stdout);  // why there is no dynamo
    return made;
  }
  void run(const std::vector<std::string>& folders) {
    std::string list;
    for (const std::string& folder : folders) list += " " + file(folder.c_str());
    const Ran ran = python("run" + list);
    ASSERT_EQ(ran.status, 0) << ran.output;
  }
  std::vector<float> result(const std::string& folder) {
    return bert::read_floats(directory_ / folder / "out.f32");
  }
  // Three tokens of type 0, three of type 1, and so on, where the model has types.
  static Sequences types(const Artifact& artifact) {
    Sequences result;
    if (artifact.program.inputs.size() == 1) return result;
    for (const auto& ids : bert::tiny_ids()) {
      result.emplace_back();
      for (size_t i = 0; i < ids.size(); ++i) {
        result.back().push_back(static_cast<int32_t>(i / 3 % 2));
      }
    }
    return result;
  }

  void there_and_back(const std::string& kinds) {
    const std::vector<std::string> made = make(kinds);
    if (made.empty()) GTEST_SKIP() << skipped_;
    ASSERT_NO_FATAL_FAILURE(run(made));
    const Sequences ids = bert::tiny_ids();
    const Exporter* onnx = take(find_exporter("onnx"));
    std::map<std::string, Artifact> written;
    for (const std::string& kind : made) {
      SCOPED_TRACE(kind);
      const Artifact artifact = take(load_model(directory_ / kind / "model.onnx", {}));
      const std::vector<float> theirs = result(kind);
      for (const bool batch : {false, true}) {
        const double difference =
            relative_difference(ours(artifact, ids, batch, types(artifact)), theirs);
        std::printf("%s: ONNX Runtime differs by %.2g\n", kind.c_str(), difference);
        EXPECT_LT(difference, kFloat);
      }
      const std::map<std::string, Artifact> kept = {
          {"float", artifact},
          {"w8a16", sample::quantized(artifact, "int8n/r@f32")},
          {"w8a8", w8a8(artifact)}};
      for (const auto& [name, model] : kept) {
        const std::string folder = kind + "." + name;
        const Status status = onnx->write(model, directory_ / folder, {});
        ASSERT_TRUE(status.ok()) << status.message();
        written[folder] = model;
      }
    }
    std::vector<std::string> folders;
    for (const auto& [folder, model] : written) folders.push_back(folder);
    ASSERT_NO_FATAL_FAILURE(run(folders));
    for (const auto& [folder, model] : written) {
      SCOPED_TRACE(folder);
      const bool dynamic = folder.find("w8a8") != std::string::npos;
      const std::vector<float> mine = ours(model, ids, true, types(model));
      const double difference = relative_difference(result(folder), mine);
      const double lost =
          relative_difference(mine, result(folder.substr(0, folder.find('.'))));
      std::printf("%s: ONNX Runtime differs by %.2g, from the original %.2g\n",
                  folder.c_str(), difference, lost);
      EXPECT_LT(difference, dynamic ? kCodes : 2 * kFloat);
      EXPECT_LT(lost, folder.find("float") != std::string::npos ? kFloat : 0.2);
      if (folder.find("float") == std::string::npos) {
        EXPECT_GT(lost, 1e-4);
      }
    }
  }
};

TEST_F(BertIn, OnesOfBothExportersAndOneOfMiniLMsShape) {
  there_and_back("eager17 sdpa14 sdpa17 tanh relu plain sentence minilm dynamo");
  if (IsSkipped() || HasFailure()) return;
  // Tensors are called as the checkpoint's, and what only the pooler reads is accounted
  // for.
  const Artifact artifact = take(load_model(directory_ / "sdpa17", {}));
  EXPECT_EQ(artifact.program.context_length, 32);
  EXPECT_EQ(artifact.program.vocabulary, 61);
  EXPECT_EQ(artifact.program.block_count(), 2);
  EXPECT_EQ(artifact.tensors.count("bert.encoder.layer.1.attention.self.query.weight"),
            1u);
  EXPECT_NE(artifact.program.find("bert.encoder.layer.0.intermediate.dense"), nullptr);
  ASSERT_EQ(artifact.ledger.entries.size(), 2u);
  EXPECT_EQ(artifact.ledger.entries[0].tensor, "bert.pooler.dense.bias");
  EXPECT_EQ(artifact.ledger.entries[1].method, "ignored");
}

}  // namespace
}  // namespace nibble
