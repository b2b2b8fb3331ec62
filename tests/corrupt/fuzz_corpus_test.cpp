// Every input of the fuzzers' corpora, and of what they found, through the readers again.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/fuzz/gguf_fuzz.cpp"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TEST(FuzzCorpus, GgufIsReadOrRefused) {
  int count = 0, whole = 0;
  for (const auto& entry :
       fs::directory_iterator(fs::path(NIBBLE_SOURCE_DIR) / "tests/fuzz/corpus/gguf")) {
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(in), {});
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()),
                                     bytes.size()),
              0)
        << entry.path();
    const auto file = parse_gguf(Bytes::copy_of(bytes.data(), bytes.size()));
    whole += file.ok() && gguf_model_of(*file).ok();
    ++count;
  }
  EXPECT_GE(count, 4);
  EXPECT_GE(whole, 3);  // what is broken anyway would not lead a fuzzer far
}

}  // namespace
}  // namespace nibble
