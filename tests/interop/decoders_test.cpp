// Every decoder architecture against transformers, which wrote the checkpoints and the
// logits; and its ONNX exports in ONNX Runtime against our own runtime.
#include "export/exporter.h"
#include "tests/interop/transformers.h"

namespace nibble::transformers {
namespace {

// f32 sums in another order; 3e-6 is what was measured.
constexpr double kLogits = 1e-4;

class Decoders : public Checkpoints {};

TEST_F(Decoders, GiveTransformersLogitsInPrefillAndDecode) {
  for (const std::string& name : cases_) {
    SCOPED_TRACE(name);
    const Artifact artifact = load(name);
    const std::vector<float> theirs = logits(name);
    for (const size_t first : {size_t{48}, size_t{20}, size_t{1}}) {
      const double difference =
          relative_difference(runtime_logits(artifact, ids(name), first), theirs);
      EXPECT_LT(difference, kLogits) << "prefill of " << first;
      std::printf("%s, prefill of %d: logits differ by %.2g of their largest\n",
                  name.c_str(), static_cast<int>(first), difference);
    }
  }
  // The same weights with and without what the case is about: it must show.
  for (const auto& [with, without] :
       {std::pair{"llama3", "llama"}, std::pair{"linear", "llama"},
        std::pair{"mistral", "mistral_null"}, std::pair{"qwen2_window", "qwen2"}}) {
    EXPECT_GT(relative_difference(logits(with), logits(without)), 0.01) << with;
  }
  EXPECT_EQ(logits("llama3"), logits("llama3_old"));
}

// Float, 8 bits a row and 4 bits a group; where embedding and lm_head are one tensor they
// are quantized too.
TEST_F(Decoders, RunTheSameInOnnxRuntime) {
  const Ran check = run_python("onnx_run.py", "check /nonexistent");
  if (check.status == 77)
    GTEST_SKIP() << "Python cannot import what it needs: " << check.output;
  const std::filesystem::path out = directory_ / "out";
  for (const std::string& name : cases_) {
    if (name.ends_with("_old")) continue;  // the same program
    const Artifact floats = load(name);
    std::string prompt;
    std::vector<int32_t> fed = ids(name);
    for (const int32_t id : fed) prompt += cat(prompt.empty() ? "" : ",", id);
    for (const char* scheme : {"f32", "int8n/r@f32", "int4/g16@f16"}) {
      SCOPED_TRACE(cat(name, " ", scheme));
      const Artifact artifact =
          std::string(scheme) == "f32" ? floats : sample::quantized(floats, scheme);
      ExportOptions options;
      options.overwrite = true;
      const auto folder = directory_ / "onnx";
      const Status status =
          sample::take(find_exporter("onnx"))->write(artifact, folder, options);
      ASSERT_TRUE(status.ok()) << status.message();
      // The prompt, then four tokens through past and present.
      const Ran ran = run_python("onnx_run.py", cat("tokens ", folder.string(), " ",
                                                    prompt, " 4 ", out.string()));
      ASSERT_EQ(ran.status, 0) << ran.output;
      std::vector<int32_t> all = fed;
      std::istringstream chosen(ran.output);
      for (std::string id; std::getline(chosen, id, ',');) all.push_back(std::stoi(id));
      ASSERT_EQ(all.size(), fed.size() + 4);
      EXPECT_LT(relative_difference(read_values<float>(out),
                                    runtime_logits(artifact, all, fed.size())),
                kLogits);
    }
  }
}

}  // namespace
}  // namespace nibble::transformers
