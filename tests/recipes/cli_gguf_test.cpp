// The command with GGUF files: written, and then a model like any other.
#include <gmock/gmock.h>

#include "command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CliGguf : public ::testing::Test {
 protected:
  void SetUp() override {
    write_small_llama(path() / "model");
    file_ = (path() / "model.gguf").string();
  }
  Outcome run(const std::vector<std::string>& arguments) const {
    return nibble(arguments, path());
  }
  Outcome exported(std::vector<std::string> more) const {
    std::vector<std::string> all = {
        "export", (path() / "model").string(), "--to", "gguf", "--output", file_};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  }
  const fs::path& path() const { return directory_.path(); }

  TemporaryDirectory directory_;
  std::string file_;
};

TEST_F(CliGguf, IsAModelForTheOtherVerbs) {
  const Outcome written = exported({});
  ASSERT_EQ(written.code, 0) << written.error;
  EXPECT_THAT(written.out, HasSubstr("model.gguf: F32 20 tensors\n"));
  const std::vector<std::string> prompt = {"--prompt", "Once", "--tokens", "8",
                                           "--greedy"};
  const auto generated = [&](const std::string& model) {
    std::vector<std::string> all = {"generate", model};
    all.insert(all.end(), prompt.begin(), prompt.end());
    const Outcome outcome = run(all);
    EXPECT_EQ(outcome.code, 0) << outcome.error;
    return outcome.out;
  };
  EXPECT_EQ(generated(file_), generated((path() / "model").string()));
  EXPECT_EQ(parsed(run({"inspect", file_, "--json"})).dump().find("error"),
            std::string::npos);
  std::ofstream(path() / "text.txt") << story_text(3, 2);
  const nlohmann::json evaluated =
      parsed(run({"evaluate", file_, "--text", (path() / "text.txt").string(),
                  "--reference", (path() / "model").string(), "--json"}));
  EXPECT_THAT(evaluated.dump(), HasSubstr("\"kl\""));
  const nlohmann::json valid = parsed(run({"validate", file_, "--json"}));
  EXPECT_EQ(valid["passed"], true);
  EXPECT_EQ(
      run({"export", file_, "--to", "hf", "--output", (path() / "hf").string()}).code, 0);
  EXPECT_EQ(generated((path() / "hf").string()), generated(file_));
  // And a tokenizer for a model that has none.
  fs::remove(path() / "model" / "tokenizer.json");
  const Outcome borrowed = run({"generate", (path() / "model").string(), "--tokenizer",
                                file_, "--prompt", "Once", "--tokens", "8", "--greedy"});
  EXPECT_EQ(borrowed.out, generated(file_));
}

TEST_F(CliGguf, RequantizesAndSaysWhatBecameOfTheTensors) {
  const nlohmann::json json = parsed(
      exported({"--requantize", "Q4_K", "--requantize", "*embed_tokens=Q8_0", "--json"}));
  // Rows of 32: Q4_K's fallback; down_proj's of 48 are no whole blocks.
  EXPECT_EQ(json["types"],
            "Q5_0 12 tensors, F32 5 tensors, F16 2 tensors, Q8_0 1 tensor");
  EXPECT_EQ(json["files"][0], "model.gguf");
  EXPECT_EQ(json["bytes"], fs::file_size(file_));
  const Outcome valid = run({"validate", file_});
  EXPECT_EQ(valid.code, 0) << valid.error;
  EXPECT_THAT(valid.out, HasSubstr("positive but in 13 tensors that another tool made"));
  EXPECT_EQ(exported({}).code, 9);  // it is there
  EXPECT_EQ(last_line(run({"export", (path() / "model").string(), "--to", "onnx",
                           "--requantize", "Q4_0", "--output", (path() / "o").string()}),
                      path()),
            "nibble: [export] --requantize: is for gguf; found --to onnx; leave it out");
}

}  // namespace
}  // namespace nibble
