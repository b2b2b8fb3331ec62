// Tokenizers against the packages that their files come from: ids and decoded text equal
// on 1,000 seeded strings, random and adversarial, for every component and model.
//
// Python only runs the other side (tests/interop/tokenizer_vectors.py); without its
// packages the tests skip and say what is missing.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/json.h"
#include "kernels/tokenizer/stream_decoder.h"
#include "kernels/tokenizer/tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<int32_t>;

const fs::path kData = fs::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// Counts what differs and shows the first of it.
class Differences {
 public:
  explicit Differences(std::string name) : name_(std::move(name)) {}
  template <class T>
  void expect(const T& ours, const T& theirs, const char* what, const std::string& of) {
    ++compared_;
    if (ours == theirs) return;
    if (++different_ <= 2)
      shown_ += "\n  " + std::string(what) + " of " + json(of).dump() + "\n    ours   " +
                json(ours).dump(-1, ' ', true, json::error_handler_t::replace) +
                "\n    theirs " + json(theirs).dump(-1, ' ', true);
  }
  ~Differences() {
    EXPECT_EQ(different_, 0) << name_ << ": of " << compared_ << shown_;
    EXPECT_GT(compared_, 0) << name_;
  }

 private:
  std::string name_, shown_;
  int compared_ = 0, different_ = 0;
};

Ids value_of(const Result<Ids>& ids, std::string& failure) {
  if (!ids.ok()) failure = ids.status().message();
  return ids.ok() ? *ids : Ids{-1};
}

void compare(const fs::path& folder) {
  const std::string name = folder.filename().string();
  const json vectors = parse_json_or_throw(slurp(folder / "vectors.json"));
  std::map<std::string, Bytes> files;
  for (const char* file : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"})
    if (fs::exists(folder / file)) {
      const std::string text = slurp(folder / file);
      files[file] = Bytes::copy_of(text.data(), text.size());
    }
  const auto made = make_tokenizer(files, 1 << 20);
  ASSERT_TRUE(made.ok()) << name << ": " << made.status().message();
  const Tokenizer& tokenizer = **made;
  Differences differences(name);
  const auto texts = vectors["texts"].get<std::vector<std::string>>();
  std::string failure;
  for (size_t i = 0; i < texts.size(); ++i) {
    const Ids plain = vectors["plain"][i].get<Ids>();
    differences.expect(value_of(tokenizer.encode_without_special(texts[i]), failure),
                       plain, "ids", texts[i]);
    if (vectors.contains("special"))
      differences.expect(value_of(tokenizer.encode(texts[i]), failure),
                         vectors["special"][i].get<Ids>(), "all ids", texts[i]);
    const std::string decoded = vectors["decoded"][i].get<std::string>();
    differences.expect(tokenizer.decode(plain), decoded, "text", texts[i]);
    if (i % 4 != 0) continue;
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (int32_t id : plain) streamed += stream.push(id);
    differences.expect(streamed + stream.finish(), decoded, "stream", texts[i]);
  }
  for (size_t i = 0; i < vectors["random_ids"].size(); ++i)
    differences.expect(tokenizer.decode(vectors["random_ids"][i].get<Ids>()),
                       vectors["random_decoded"][i].get<std::string>(), "random text",
                       vectors["random_ids"][i].dump());
  if (vectors.contains("pairs"))
    for (const json& pair : vectors["pairs"]) {
      const std::string first = pair["first"], second = pair["second"];
      const auto ours = tokenizer.encode_pair(first, second);
      ASSERT_TRUE(ours.ok()) << ours.status().message();
      differences.expect(ours->ids, pair["ids"].get<Ids>(), "pair", first + "|" + second);
      differences.expect(ours->types, pair["types"].get<Ids>(), "types", first);
    }
  EXPECT_EQ(failure, "") << name;
}

void compare_all(const std::string& package, size_t least) {
  const fs::path output = fs::temp_directory_path() / ("nibble_" + package);
  fs::remove_all(output);
  const std::string command = std::string(NIBBLE_PYTHON) + " " + NIBBLE_SOURCE_DIR +
                              "/tests/interop/tokenizer_vectors.py " + package + " " +
                              output.string() + " " + kData.string() + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string said;
  char buffer[4096];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) said += buffer;
  const int status = WEXITSTATUS(pclose(pipe));
  if (status == 77) GTEST_SKIP() << "Python cannot import what it needs: " << said;
  ASSERT_EQ(status, 0) << said;
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(output)) {
    compare(entry.path());
    ++count;
  }
  EXPECT_GE(count, least);
  fs::remove_all(output);
}

TEST(TokenizersPackage, EveryComponentAndModel) { compare_all("tokenizers", 110); }

TEST(SentencePiecePackage, EveryKindOfModel) { compare_all("sentencepiece", 11); }

}  // namespace
}  // namespace nibble
