// quantize as a process: killed and gone on with, under a cap of memory, over several ranks.
#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "kernels/base/splitmix64.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr int kKills = 20;

// A command that quantizes: its arguments, for an output and with more of them.
using Request = std::function<std::vector<std::string>(
    const std::string& output, const std::vector<std::string>& more)>;

class Streaming : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryDirectory;
    write_small_llama(shared_->path() / "model");
    std::ofstream(shared_->path() / "train.txt") << story_text(1, 200);
    const fs::path net = shared_->path() / "net";
    write_small_resnet(net);
    LoadOptions options;
    options.initialise = true;
    options.seed = 4;
    const Result<Artifact> model = load_model(net, options);
    ASSERT_TRUE(model.ok()) << model.status().message();
    ASSERT_TRUE(write_safetensors(net / "model.safetensors", model->tensors, {}).ok());
    fs::create_directory(shared_->path() / "images");
    write_images(shared_->path() / "images/train.bin", 512, 1);
    write_images(shared_->path() / "images/test_batch.bin", 16, 2);
  }
  static void TearDownTestSuite() { delete shared_; }
  void SetUp() override {
    if (!built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has no LibTorch";
  }

  std::string at(const std::string& name) const {
    return (shared_->path() / name).string();
  }
  std::string mine(const std::string& name) const {
    return (scratch_.path() / name).string();
  }
  std::vector<std::string> quantize(const std::string& output,
                                    const std::vector<std::string>& more = {},
                                    const std::string& recipe = "w4a16-gptq") const {
    std::vector<std::string> arguments = {"quantize",      at("model"),
                                          "--recipe",      recipe,
                                          "--calibration", at("train.txt"),
                                          "--set",         "calibration.sequences=96",
                                          "--set",         "calibration.length=64",
                                          "--set",         "evaluation.sequences=2",
                                          "--threads",     "1",
                                          "--output",      mine(output)};
    if (recipe == "w4a16-autoround")
      arguments.insert(arguments.end(), {"--set", "autoround.iterations=20"});
    if (recipe.starts_with("w4a16"))
      arguments.insert(arguments.end(), {"--set", "group=16"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Request text(const std::string& recipe) const {
    return
        [this, recipe](const std::string& output, const std::vector<std::string>& more) {
          return quantize(output, more, recipe);
        };
  }
  // A convolutional net, by what is set of w8a8-static.
  Request images(const std::vector<std::string>& settings) const {
    return [this, settings](const std::string& output,
                            const std::vector<std::string>& more) {
      std::vector<std::string> arguments = {"quantize",      at("net"),
                                            "--recipe",      "w8a8-static",
                                            "--calibration", at("images"),
                                            "--set",         "calibration.sequences=112",
                                            "--set",         "evaluation.images=16",
                                            "--threads",     "1",
                                            "--output",      mine(output)};
      for (const std::string& setting : settings) {
        arguments.push_back("--set");
        arguments.push_back(setting);
      }
      arguments.insert(arguments.end(), more.begin(), more.end());
      return arguments;
    };
  }
  void kill_again_and_again(const Request& request, int times);
  void expect_same_bytes_of_ranks(const std::string& name, const Request& request);

  TemporaryDirectory scratch_;
  static TemporaryDirectory* shared_;
};
TemporaryDirectory* Streaming::shared_ = nullptr;

// Kills a run at random instants and runs it again, `times` kills in all: always the
// bytes of a run that nobody killed.
void Streaming::kill_again_and_again(const Request& request, int times) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  ASSERT_EQ(nibble(request("whole", {}), scratch_.path()).code, 0);
  const double whole = std::chrono::duration<double>(Clock::now() - start).count();
  const auto expected = files_of(mine("whole"));

  SplitMix64 random(7);
  int kills = 0, resumed = 0, finished = 0;
  const auto look = [&](const Outcome& outcome) {
    resumed += outcome.error.find("resumes an interrupted run") != std::string::npos;
  };
  // On, a while, where none came between a finished block and the end.
  while (kills < times || (resumed == 0 && kills < 4 * times)) {
    Command command(request("parted", {}), scratch_.path());
    const fs::path work = mine("parted.run");
    if (kills % 4 == 3) {
      // Between a finished block and the end, however fast or slow the machine is just now.
      const auto has_a_block = [&work] {
        const auto has_lines = [&work](const char* name) {
          std::error_code none;
          const auto bytes = fs::file_size(work / name, none);
          return !none && bytes > 200;
        };
        return has_lines("journal") || has_lines("scales");
      };
      for (int i = 0; i < 10000 && !has_a_block() && !fs::exists(mine("parted")); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } else {
      std::this_thread::sleep_for(
          std::chrono::duration<double>(whole * random.uniform()));
    }
    kill(command.process(), SIGKILL);
    const Outcome outcome = command.wait();
    look(outcome);
    const bool is_there = fs::exists(mine("parted"));
    if (outcome.code == 0) {
      ASSERT_TRUE(is_there) << outcome.error;
    } else {
      ASSERT_EQ(outcome.code, 1000 + SIGKILL) << outcome.error;
      ++kills;
    }
    if (!is_there) continue;
    ++finished;  // also where it was killed after the last rename
    EXPECT_EQ(files_of(mine("parted")), expected);
    fs::remove_all(mine("parted"));
  }
  const Outcome last = nibble(request("parted", {}), scratch_.path());
  ASSERT_EQ(last.code, 0) << last.error;
  look(last);
  const auto parted = files_of(mine("parted"));
  for (const auto& [name, text] : expected)
    EXPECT_TRUE(parted.count(name) > 0 && parted.at(name) == text) << name;
  EXPECT_EQ(parted.size(), expected.size());
  EXPECT_FALSE(fs::exists(mine("parted.run")));
  for (const auto& entry : fs::directory_iterator(scratch_.path()))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".partial"))) << "left behind";
  EXPECT_GT(resumed, 0) << kills << " kills, " << finished << " finished";
}

TEST_F(Streaming, TwentyKillsAndTheSameBytes) {
  kill_again_and_again(text("w4a16-gptq"), kKills);
}

TEST_F(Streaming, KilledTransformsGoOnToTheSameBytes) {
  kill_again_and_again(text("w4a16-awq"), 8);
}

TEST_F(Streaming, KilledTuningGoesOnToTheSameBytes) {
  kill_again_and_again(text("w4a16-autoround"), 8);
}

TEST_F(Streaming, KilledMixedPrecisionGoesOnToTheSameBytes) {
  kill_again_and_again(text("mixed-gptq"), 8);
}

// What follows the layers, and reads them back, included.
const std::vector<std::string> kCorrected = {
    "weight=int4/r@f32", "method=adaround", "adaround.iterations=100",
    "transforms=equalize", "batch_norm_reestimation=64"};

TEST_F(Streaming, KilledImageNetsGoOnToTheSameBytes) {
  kill_again_and_again(images(kCorrected), 8);
  fs::remove_all(mine("whole"));
  fs::remove_all(mine("parted"));
  kill_again_and_again(images({"method=gptq"}), 4);
}

TEST_F(Streaming, AnotherRecipeBeginsAnewAndSaysSo) {
  Command command(quantize("q"), scratch_.path());
  for (int i = 0; i < 3000 && !fs::exists(mine("q.run") + "/journal"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  kill(command.process(), SIGKILL);
  command.wait();
  if (!fs::exists(mine("q.run"))) GTEST_SKIP() << "the run was over before the kill";
  const Outcome other = nibble(quantize("q", {"--set", "symmetric=false"}), scratch_.path());
  EXPECT_EQ(other.code, 0) << other.error;
  EXPECT_THAT(other.error,
              HasSubstr("an interrupted run of another request was there: begins anew"));
}

TEST_F(Streaming, ACapOfMemoryIsKeptWithTheSameBytes) {
  for (const char* recipe :
       {"w4a16-gptq", "w4a16-awq", "w8a8-smoothquant", "w4a16-autoround", "mixed-gptq"}) {
    const std::string free_run = cat("free-", recipe),
                      capped_run = cat("capped-", recipe);
    ASSERT_EQ(nibble(quantize(free_run, {}, recipe), scratch_.path()).code, 0) << recipe;
    const auto foretold = [&](const std::vector<std::string>& more) {
      std::vector<std::string> asked = {"--dry-run", "--json"};
      asked.insert(asked.end(), more.begin(), more.end());
      return parsed(nibble(quantize("x", asked, recipe), scratch_.path()))["memory_bytes"]
          .get<int64_t>();
    };
    // A byte less than it would take: activations go to disk, or both models do not run
    // at the end.
    const int64_t predicted = foretold({});
    const Outcome capped =
        nibble(quantize(capped_run, {"--memory", cat(predicted - 1), "--json"}, recipe),
               scratch_.path());
    const nlohmann::json report = parsed(capped);
    EXPECT_LE(report["memory"]["peak_bytes"].get<int64_t>(), predicted) << recipe;
    EXPECT_LT(report["memory"]["predicted_bytes"].get<int64_t>(), predicted) << recipe;
    const auto free = files_of(mine(free_run)), kept = files_of(mine(capped_run));
    for (const char* file : {"model.safetensors", "manifest.json"})
      EXPECT_EQ(free.at(file), kept.at(file)) << recipe << " " << file;
  }

  const Outcome refused = nibble(quantize("none", {"--memory", "50MB"}), scratch_.path());
  EXPECT_EQ(refused.code, 10);
  EXPECT_THAT(last_line(refused, scratch_.path()),
              HasSubstr("[quantize] --memory: at least "));
  EXPECT_THAT(last_line(refused, scratch_.path()),
              HasSubstr("are required, also with activations on disk (the program with "
                        "LibTorch "));
  EXPECT_FALSE(fs::exists(mine("none.run")));
  const Outcome unread = nibble(quantize("none", {"--memory", "lots"}), scratch_.path());
  EXPECT_EQ(unread.code, 2);
  EXPECT_THAT(unread.error, HasSubstr("--memory: a size like 3GiB or 500MB is required; "
                                      "found \"lots\""));
}

void Streaming::expect_same_bytes_of_ranks(const std::string& name,
                                           const Request& request) {
  const Outcome alone = nibble(request("one-" + name, {}), scratch_.path());
  ASSERT_EQ(alone.code, 0) << alone.error;
  const auto one = files_of(mine("one-" + name));
  for (const int ranks : {2, 4}) {
    const std::string output = cat("ranks", ranks, "-", name);
    const Outcome outcome = nibble_on_ranks(ranks, request(output, {}), scratch_.path());
    if (outcome.code == -1) GTEST_SKIP() << outcome.out;
    ASSERT_EQ(outcome.code, 0) << outcome.out;
    EXPECT_THAT(outcome.out, HasSubstr(cat(" by ", ranks, " processes")));
    const auto files = files_of(mine(output));
    for (const auto& [file, text] : one)
      EXPECT_TRUE(files.count(file) > 0 && files.at(file) == text)
          << name << " " << ranks << " " << file;
  }
}

TEST_F(Streaming, OneTwoAndFourRanksGiveTheSameBytes) {
  for (const std::string recipe : {"w4a16-gptq", "w4a16-awq", "w8a8-smoothquant",
                                   "w4a4-rotated", "w4a16-autoround", "mixed-gptq"})
    expect_same_bytes_of_ranks(recipe, text(recipe));
}

TEST_F(Streaming, RanksGiveTheSameBytesOfImageNets) {
  expect_same_bytes_of_ranks("corrected", images(kCorrected));
  expect_same_bytes_of_ranks(
      "gptq", images({"method=gptq", "activations.observer=kl", "bias_correction=64"}));
  expect_same_bytes_of_ranks(
      "mixed",
      images({"mixed.bits=5", "mixed.schemes=int3/r@f32,int4/r@f32,int8/r@f32"}));
  // Fewer samples than shards: some ranks have none.
  expect_same_bytes_of_ranks("few", images({"method=adaround", "adaround.iterations=20",
                                            "calibration.sequences=32"}));
}

TEST_F(Streaming, CorrectedImageNetsAreTheSameAtOneAndTwoThreads) {
  std::vector<std::string> one = images(kCorrected)("one", {});
  std::vector<std::string> two = images(kCorrected)("two", {});
  const auto threads = std::find(two.begin(), two.end(), "--threads");
  ASSERT_NE(threads, two.end());
  threads[1] = "2";
  ASSERT_EQ(nibble(one, scratch_.path()).code, 0);
  ASSERT_EQ(nibble(two, scratch_.path()).code, 0);
  const auto first = files_of(mine("one")), second = files_of(mine("two"));
  for (const char* file : {"model.safetensors", "manifest.json"})
    EXPECT_EQ(first.at(file), second.at(file)) << file;
}

// Activations to disk, then too little for that.
TEST_F(Streaming, ACapOfMemoryIsKeptForImageNets) {
  const Request request =
      images({"method=gptq", "weight=int4/r@f32", "calibration.sequences=512"});
  ASSERT_EQ(nibble(request("free", {}), scratch_.path()).code, 0);
  const Json plan =
      parsed(nibble(request("x", {"--dry-run", "--json"}), scratch_.path()));
  const auto predicted = plan["memory_bytes"].get<int64_t>();
  const Json capped = parsed(nibble(
      request("capped", {"--memory", cat(predicted - 1), "--json"}), scratch_.path()));
  EXPECT_LE(capped["memory"]["peak_bytes"].get<int64_t>(), predicted);
  EXPECT_LT(capped["memory"]["predicted_bytes"].get<int64_t>(), predicted);
  const auto free = files_of(mine("free")), kept = files_of(mine("capped"));
  for (const char* file : {"model.safetensors", "manifest.json"})
    EXPECT_EQ(free.at(file), kept.at(file)) << file;
  const Outcome refused = nibble(request("none", {"--memory", "60MB"}), scratch_.path());
  EXPECT_EQ(refused.code, 10);
  EXPECT_THAT(last_line(refused, scratch_.path()),
              HasSubstr("[quantize] --memory: at least "));
  EXPECT_FALSE(fs::exists(mine("none.run")));
}

TEST_F(Streaming, ADeviceThatIsNotThereIsNamed) {
  const Outcome wrong = nibble(quantize("tpu", {"--device", "tpu"}), scratch_.path());
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.error,
              HasSubstr("--device: cpu, cuda or cuda:N is required; found tpu"));
  const Outcome far = nibble(quantize("far", {"--device", "cuda:99"}), scratch_.path());
  EXPECT_NE(far.code, 0);  // a build without CUDA, or no such GPU
  EXPECT_THAT(far.error, HasSubstr("found cuda:99; leave it out to run on the CPU"));
  EXPECT_FALSE(fs::exists(mine("far")));
  const Outcome training =
      nibble({"train", at("model"), "--recipe", "w4a16-qat", "--data", at("train.txt"),
              "--device", "cuda:99", "--output", mine("far")},
             scratch_.path());
  EXPECT_NE(training.code, 0);
  EXPECT_THAT(training.error, HasSubstr("[train] --device: "));
}

}  // namespace
}  // namespace nibble
