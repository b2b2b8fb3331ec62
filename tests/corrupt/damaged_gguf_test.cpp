// Damaged GGUF files: each gives its exact message, and no damage of any byte does worse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "export/exporter.h"
#include "export/gguf/gguf_model.h"
#include "export/gguf/metadata_writer.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using sample::take;
using testing::HasSubstr;
namespace fs = std::filesystem;

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
template <class T>
std::string raw(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}
std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }
std::string u32_key(const std::string& key, uint32_t value) {
  return text(key) + raw<uint32_t>(4) + raw(value);
}

struct Info {
  std::string name;
  std::vector<uint64_t> dims;
  uint32_t type = 0;
  uint64_t offset = 0;
};
std::string file_of(const std::vector<Info>& infos, size_t data,
                    const std::string& keys = "", uint64_t key_count = 0) {
  std::string out =
      "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(infos.size()) + raw(key_count) + keys;
  for (const Info& info : infos) {
    out += text(info.name) + raw(static_cast<uint32_t>(info.dims.size()));
    for (const uint64_t size : info.dims) out += raw(size);
    out += raw(info.type) + raw(info.offset);
  }
  out.resize((out.size() + 31) / 32 * 32);
  return out + std::string(data, '\0');
}
std::string message(const std::string& file) {
  const auto parsed = parse_gguf(Bytes::copy_of(file.data(), file.size()));
  return parsed.ok() ? "ok"
                     : cat(status_code_name(parsed.status().code()), ": ",
                           parsed.status().message());
}

TEST(DamagedGguf, EveryFieldOfATensorsHeader) {
  EXPECT_EQ(message(file_of({{"a", {4, 2}}, {"b", {3}, 0, 32}}, 64)), "ok");
  EXPECT_EQ(
      message(file_of({{"", {4}}}, 32)),
      "data_loss: [gguf] tensor 0 of 1: a name of 1 to 63 bytes was required; found "
      "0; the file is damaged");
  EXPECT_THAT(message(file_of({{std::string(64, 'n'), {4}}}, 32)), HasSubstr("found 64"));
  EXPECT_EQ(
      message(file_of({{"a", {1, 1, 1, 1, 1}}}, 32)),
      "data_loss: [gguf] tensor a: at most 4 dimensions were required; found 5; the "
      "file is damaged");
  EXPECT_EQ(message(file_of({{"a", {4, 0}}}, 32)),
            "data_loss: [gguf] tensor a: sizes whose product is 1 to 2^40 were required; "
            "found 0 as number 1; the file is damaged");
  EXPECT_THAT(message(file_of({{"a", {uint64_t{1} << 32, uint64_t{1} << 32}}}, 32)),
              HasSubstr("found 4294967296 as number 1"));
  EXPECT_THAT(
      message(file_of({{"a", {256}, 16}}, 66)),
      testing::AllOf(testing::StartsWith("unsupported: [gguf] tensor a: a type of "
                                         "F32 F16 BF16 Q4_0 "),
                     HasSubstr("was required; found number 16; convert the file")));
  EXPECT_EQ(message(file_of({{"a", {48}, 2}}, 64)),
            "data_loss: [gguf] tensor a: rows of whole Q4_0 blocks of 32 were required; "
            "found 48; the file is damaged");
  EXPECT_EQ(message(file_of({{"a", {4}, 0, 32}}, 64)),
            "data_loss: [gguf] tensor a: offset 0, the sum of the sizes before it, was "
            "required; found 32; the file is damaged");
  EXPECT_THAT(message(file_of({{"a", {4}}, {"b", {4}, 0, 16}}, 64)),
              HasSubstr("tensor b: offset 32, the sum of the sizes before it"));
  EXPECT_EQ(
      message(file_of({{"a", {4}}, {"a", {4}, 0, 32}}, 64)),
      "data_loss: [gguf] tensor a: each name once was required; found it twice; the "
      "file is damaged");
  EXPECT_EQ(
      message(file_of({{"a", {64}}}, 128)),
      "data_loss: [gguf] tensor a: bytes 64 to 320 were required; the file has 192; "
      "the file is damaged");
  std::string many = file_of({{"a", {4}}}, 32);
  many.replace(8, 8, raw<uint64_t>(uint64_t{1} << 60));
  EXPECT_THAT(message(many),
              HasSubstr("header: 1152921504606846976 tensors need 24 bytes "
                        "each at least; found "));
  const std::string whole = file_of({{"a", {4}}}, 32);
  EXPECT_EQ(message(whole.substr(0, 40)),
            "data_loss: [gguf] header: 1 tensors need 24 bytes each at least; found 16 "
            "bytes after the keys; the file is damaged");
  EXPECT_THAT(
      message("GGUF" + raw<uint32_t>(3) + raw<uint64_t>(1) + raw<uint64_t>(0) +
              raw<uint64_t>(900) + std::string(40, 'x')),
      HasSubstr("tensor 0 of 1: a name, sizes, a type and an offset were required "
                "at byte 24; the file ends"));
}

TEST(DamagedGguf, KeysThatDecideTheLayout) {
  EXPECT_EQ(message(file_of({}, 0, u32_key("general.alignment", 24), 1)),
            "data_loss: [gguf] key general.alignment: a power of two was required; found "
            "24; the file is damaged");
  EXPECT_EQ(message(file_of({}, 0, u32_key("split.count", 3), 1)),
            "unsupported: [gguf] key split.count: a whole file was required; found one "
            "part of 3; join them first (llama-gguf-split --merge)");
}

// --- a whole model

class DamagedGgufModel : public testing::Test, public TemporaryDirectory {
 protected:
  void SetUp() override {
    const sample::LlamaSize size = {.vocabulary = 8,
                                    .hidden = 32,
                                    .heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 16,
                                    .intermediate = 32,
                                    .layers = 1,
                                    .context = 16};
    const Status written =
        take(find_exporter("gguf"))
            ->write(sample::quantized(sample::llama(size, 3), "int4/g32@f16"),
                    path() / "m.gguf", {});
    ASSERT_TRUE(written.ok()) << written.message();
    whole_ = slurp(path() / "m.gguf");
  }
  std::string load(const std::string& bytes) const {
    std::ofstream(path() / "m.gguf", std::ios::binary) << bytes;
    const auto loaded = load_model(path() / "m.gguf", {});
    return loaded.ok() ? "ok"
                       : cat(status_code_name(loaded.status().code()), ": ",
                             loaded.status().message());
  }
  // The value of a key begins this many bytes after its name: a type, then the value.
  std::string with(const std::string& key, uint32_t value) const {
    std::string bytes = whole_;
    const size_t at = bytes.find(key);
    EXPECT_NE(at, std::string::npos) << key;
    bytes.replace(at + key.size() + 4, 4, raw(value));
    return bytes;
  }
  std::string renamed(const std::string& from, const std::string& to) const {
    std::string bytes = whole_;
    bytes.replace(bytes.find(from), from.size(), to);
    return bytes;
  }
  std::string whole_;
};

TEST_F(DamagedGgufModel, KeysOfTheModel) {
  EXPECT_EQ(load(whole_), "ok");
  EXPECT_EQ(load(renamed("llama.context_length", "llama.context_lengtX")),
            "unsupported: [gguf] key llama.context_lengtX: nibble does not know what it "
            "asks of the model, and leaving it out could give other results");
  EXPECT_EQ(
      load(renamed("general.architecture", "general.architecturX")),
      "data_loss: [gguf] key general.architecture: is required; found none; the file "
      "is damaged");
  EXPECT_EQ(load(with("llama.block_count", 0)),
            "data_loss: [gguf] key llama.block_count: 1 to 2^31 was required; found "
            "another; the file is damaged");
  EXPECT_THAT(load(with("llama.rope.dimension_count", 8)),
              HasSubstr("rope.dimension_count: the size of a head, 16, was required"));
  EXPECT_THAT(load(with("llama.attention.head_count", 4)), HasSubstr("q_proj"));
  EXPECT_EQ(
      load(renamed("token_embd.weight", "token_embX.weight")),
      "data_loss: [gguf] tensor token_embd.weight: is required; found none; the file "
      "is damaged");
  EXPECT_EQ(
      load(renamed("blk.0.attn_k.weight", "blk.0.attn_X.weight")),
      "unsupported: [gguf] tensor blk.0.attn_X.weight: one of a decoder that nibble "
      "knows was required; found another; its architecture has parts that nibble has "
      "not");
  EXPECT_THAT(load(with("llama.block_count", 2)),
              HasSubstr("model.layers.1.input_layernorm.weight"));
  EXPECT_THAT(load(whole_.substr(0, whole_.size() - 64)),
              HasSubstr("were required; the file has "));
}

// Truncated anywhere, or any byte changed: loaded or refused, nothing else.
TEST_F(DamagedGgufModel, AnyDamageIsLoadedOrRefused) {
  SplitMix64 random(5);
  int refused = 0;
  const size_t header = whole_.find("blk.0") + 1200;
  for (int i = 0; i < 400; ++i) {
    std::string bytes = whole_;
    const size_t at = random.below(std::min(header, bytes.size()));
    if (i % 4 == 0) {
      bytes.resize(at);
    } else {
      bytes[at] = static_cast<char>(random.below(256));
    }
    const std::string outcome = load(bytes);
    refused += outcome != "ok";
    if (outcome != "ok") {
      EXPECT_THAT(outcome, testing::ContainsRegex("^[a-z_]+: \\[[a-z_0-9]+\\] ")) << i;
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace nibble
