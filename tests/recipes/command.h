// Runs the nibble command as a person would, and makes small models for it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/splitmix64.h"
#include "recipes/data/bpe_trainer.h"
#include "recipes/data/story_grammar.h"
#include "recipes/models/load_model.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {

struct Outcome {
  int code = -1;
  std::string out, error;
};

// A command that runs; wait() ends it.
class Command {
 public:
  Command(const std::vector<std::string>& arguments, const std::filesystem::path& scratch)
      : out_(scratch / "stdout.txt"), error_(scratch / "stderr.txt") {
    std::vector<std::string> all = {NIBBLE_BINARY};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> pointers;
    for (std::string& text : all) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    // An earlier command's words must not be taken for this one's.
    std::filesystem::remove(out_);
    std::filesystem::remove(error_);
    process_ = fork();
    if (process_ == 0) {
      setenv("XDG_CACHE_HOME", scratch.c_str(), 1);  // no test meets another's timings
      dup2(open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
      dup2(open(error_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
      execv(pointers[0], pointers.data());
      _exit(127);
    }
  }
  pid_t process() const { return process_; }
  std::string error_so_far() const { return contents(error_); }

  Outcome wait() {
    int status = 0;
    waitpid(process_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status),
            contents(out_), contents(error_)};
  }

 private:
  static std::string contents(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::filesystem::path out_, error_;
  pid_t process_ = -1;
};

inline Outcome nibble(const std::vector<std::string>& arguments,
                      const std::filesystem::path& scratch) {
  return Command(arguments, scratch).wait();
}

// The same command as `ranks` processes under mpirun; out holds both streams. Code -1:
// there is no mpirun, or the build has no MPI (out says which).
inline Outcome nibble_on_ranks(int ranks, const std::vector<std::string>& arguments,
                               const std::filesystem::path& scratch) {
  if (std::system("command -v mpirun > /dev/null 2>&1") != 0)
    return {-1, "no mpirun: install openmpi-bin", ""};
  const std::filesystem::path said = scratch / "ranks.txt";
  std::string command =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl=self,vader "
      "OMPI_MCA_hwloc_base_binding_policy=none mpirun --oversubscribe -n " +
      std::to_string(ranks) + " " + NIBBLE_BINARY;
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  const int status = std::system((command + " > " + said.string() + " 2>&1").c_str());
  std::ifstream file(said, std::ios::binary);
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status),
                  {std::istreambuf_iterator<char>(file), {}},
                  ""};
  if (outcome.out.find("a build with MPI is required") != std::string::npos)
    return {-1, "built without MPI: install libopenmpi-dev", ""};
  return outcome;
}

// stdout is one JSON object and nothing else.
inline nlohmann::json parsed(const Outcome& outcome) {
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  const nlohmann::json json = parse_json(outcome.out);
  EXPECT_TRUE(json.is_object()) << outcome.out;
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1) << outcome.out;
  return json;
}

// The error line, without the directory's own path.
inline std::string last_line(const Outcome& outcome,
                             const std::filesystem::path& directory) {
  std::string text = outcome.error;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  text = text.substr(text.rfind('\n') + 1);
  const std::string prefix = directory.string() + "/";
  for (size_t at; (at = text.find(prefix)) != std::string::npos;)
    text.erase(at, prefix.size());
  return text;
}

inline bool built_with_torch(const std::filesystem::path& scratch) {
  return nibble({"--version"}, scratch).out.find("with LibTorch") != std::string::npos;
}

inline std::string story_text(uint64_t seed, int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += make_story(seed, static_cast<uint64_t>(i)).text + "\n";
  return text;
}

// A Hugging Face directory: two layers, a BPE tokenizer of stories, seeded weights.
inline void write_small_llama(const std::filesystem::path& directory,
                              bool weights = true) {
  std::filesystem::create_directory(directory);
  const auto write = [&directory](const char* name, const std::string& text) {
    std::ofstream(directory / name, std::ios::binary) << text;
  };
  write("config.json",
        R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":300,
            "hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
            "num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":128,
            "tie_word_embeddings":true,"initializer_range":0.2,"bos_token_id":0,
            "eos_token_id":1,"torch_dtype":"float32"})");
  std::vector<std::string> lines;
  for (uint64_t i = 0; i < 50; ++i) lines.push_back(make_story(9, i).text);
  const Result<std::string> tokenizer = train_bpe(lines, 300);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  write("tokenizer.json", *tokenizer);
  write("tokenizer_config.json", bpe_tokenizer_config());
  if (!weights) return;
  LoadOptions options;
  options.initialise = true;
  options.seed = 4;
  const Result<Artifact> model = load_model(directory, options);
  ASSERT_TRUE(model.ok()) << model.status().message();
  ASSERT_TRUE(
      write_safetensors(directory / "model.safetensors", model->tensors, {}).ok());
}

// A CIFAR ResNet-8 without weights.
inline void write_small_resnet(const std::filesystem::path& directory) {
  std::filesystem::create_directory(directory);
  std::ofstream(directory / "config.json")
      << R"({"architectures":["ResNetCIFAR"],"depth":8,"widths":[8,16,32],"num_classes":10,
             "image_mean":[0.5,0.5,0.5],"image_std":[0.25,0.25,0.25]})";
}

// Seeded images in CIFAR-10's format, bright in a channel and a half that the label says:
// learnable.
inline void write_images(const std::filesystem::path& file, int count, uint64_t seed) {
  SplitMix64 random(seed);
  std::ofstream out(file, std::ios::binary);
  for (int i = 0; i < count; ++i) {
    const int label = static_cast<int>(random.below(10));
    out.put(static_cast<char>(label));
    for (int p = 0; p < 3072; ++p) {
      const int bright =
          (p / 1024 == label % 3 ? 120 : 0) + ((p % 32 < 16) == (label < 5) ? 80 : 0);
      out.put(static_cast<char>(bright + static_cast<int>(random.below(50))));
    }
  }
}

// Every regular file below: path -> contents.
inline std::map<std::string, std::string> files_of(
    const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files[std::filesystem::relative(entry.path(), directory).string()] =
        *read_text_file(entry.path());
  }
  return files;
}

}  // namespace nibble
