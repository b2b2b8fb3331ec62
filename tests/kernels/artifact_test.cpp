#include "kernels/artifact/artifact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

#include "kernels/artifact/manifest.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "tests/kernels/random_artifact.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

bool equal(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.bytes.text() == b.bytes.text();
}

void expect_equal(const PackedTensor& a, const PackedTensor& b) {
  EXPECT_EQ(a.scheme, b.scheme);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.cols, b.cols);
  EXPECT_EQ(a.shape, b.shape);
  EXPECT_EQ(a.codes.text(), b.codes.text());
  ASSERT_EQ(a.scales.size(), b.scales.size());
  ASSERT_EQ(a.offsets.size(), b.offsets.size());
  for (size_t i = 0; i < a.scales.size(); ++i) {
    EXPECT_EQ(a.scales[i].values.text(), b.scales[i].values.text());
    EXPECT_EQ(a.scales[i].shift, b.scales[i].shift);
  }
  for (size_t i = 0; i < a.offsets.size(); ++i) {
    EXPECT_EQ(a.offsets[i].values.text(), b.offsets[i].values.text());
    EXPECT_EQ(a.offsets[i].shift, b.offsets[i].shift);
  }
}

void expect_equal(const Artifact& a, const Artifact& b) {
  EXPECT_EQ(a.program, b.program);
  EXPECT_EQ(a.config_json, b.config_json);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    EXPECT_TRUE(equal(tensor, b.tensors.at(name))) << name;
  }
  ASSERT_EQ(a.packed.size(), b.packed.size());
  for (const auto& [name, packed] : a.packed) expect_equal(packed, b.packed.at(name));
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.activations, b.activations);
  EXPECT_EQ(a.image_mean, b.image_mean);
  EXPECT_EQ(a.image_std, b.image_std);
  ASSERT_EQ(a.tokenizer.size(), b.tokenizer.size());
  for (const auto& [name, bytes] : a.tokenizer) {
    EXPECT_EQ(bytes.text(), b.tokenizer.at(name).text());
  }
  EXPECT_EQ(a.ledger, b.ledger);
  EXPECT_EQ(a.provenance, b.provenance);
}

std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    files[entry.path().filename().string()] = *read_text_file(entry.path());
  }
  return files;
}

TEST(ArtifactFiles, EverySchemeAndOddShapeReadsBack) {
  TemporaryDirectory directory;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SplitMix64 random(seed);
    std::vector<std::string> schemes;
    for (int i = 0; i < 4; ++i) {
      const size_t pick = random.below(artifact_schemes().size() + 1);
      schemes.push_back(pick == artifact_schemes().size() ? ""
                                                          : artifact_schemes()[pick]);
    }
    const Result<Artifact> artifact = random_artifact(seed, schemes);
    ASSERT_TRUE(artifact.ok()) << artifact.status().message();
    const fs::path path = directory.path() / "artifact";
    const Status written = write_artifact(*artifact, path, true);
    ASSERT_TRUE(written.ok()) << written.message();
    const Result<Artifact> read = read_artifact(path);
    ASSERT_TRUE(read.ok()) << read.status().message();
    expect_equal(*artifact, *read);
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(ArtifactFiles, EqualContentGivesEqualBytes) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact = random_artifact(1, artifact_schemes());
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  ASSERT_TRUE(write_artifact(*artifact, directory.path() / "a", false).ok());
  const Result<Artifact> read = read_artifact(directory.path() / "a");
  ASSERT_TRUE(read.ok()) << read.status().message();
  ASSERT_TRUE(write_artifact(*read, directory.path() / "b", false).ok());
  const auto a = contents(directory.path() / "a");
  EXPECT_EQ(a, contents(directory.path() / "b"));
  EXPECT_EQ(a.size(), 4u);
}

TEST(ArtifactFiles, ShardsReadBackTheSame) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact =
      random_artifact(2, {"int4/g32@f16", "", "int8n/r@f32"});
  ASSERT_TRUE(artifact.ok());
  const fs::path path = directory.path() / "sharded";
  ASSERT_TRUE(write_artifact(*artifact, path, false, {}, 2000).ok());
  const auto files = contents(path);
  EXPECT_EQ(files.count("model.safetensors"), 0u);
  size_t shards = 0;
  for (const auto& [name, text] : files) shards += name.rfind("model-0000", 0) == 0;
  EXPECT_GT(shards, 2u);
  EXPECT_EQ(files.count(cat("model-00001-of-0000", shards, ".safetensors")), 1u);
  const Result<Artifact> read = read_artifact(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  expect_equal(*artifact, *read);
  // And as any reader of sharded checkpoints sees it.
  const auto tensors = read_sharded_safetensors(path, nullptr);
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  EXPECT_EQ(tensors->count("layers.0.weight.codes"), 1u);

  fs::remove(path / cat("model-00002-of-0000", shards, ".safetensors"));
  const Status missing = read_artifact(path).status();
  EXPECT_EQ(missing.code(), StatusCode::not_found);
  EXPECT_EQ(missing.message(),
            cat("[artifact] ",
                (path / cat("model-00002-of-0000", shards, ".safetensors")).string(),
                ": manifest.json lists this file; found no such file; copy the whole "
                "directory"));
}

TEST(ArtifactFiles, EveryFlippedBitIsFound) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact = random_artifact(3, {"uint4/g32@f16+z/g32@uint4"});
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  const fs::path path = directory.path() / "artifact";
  ASSERT_TRUE(write_artifact(*artifact, path, false).ok());
  for (const auto& [name, text] : contents(path)) {
    // Every bit of the small files; of the weights, a walk that meets header and data
    // alike.
    const size_t step = name == "model.safetensors" ? 97
                        : name == "manifest.json"   ? 61
                                                    : 1;
    size_t flips = 0;
    for (size_t bit = 0; bit < text.size() * 8; bit += step) {
      std::string damaged = text;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
      std::ofstream(path / name, std::ios::binary) << damaged;
      const Status status = read_artifact(path).status();
      ASSERT_EQ(status.code(), StatusCode::data_loss) << name << " bit " << bit;
      ASSERT_THAT(status.message(), HasSubstr(name)) << bit;
      ++flips;
    }
    EXPECT_GT(flips, 80u) << name;
    std::ofstream(path / name, std::ios::binary) << text;
  }
  EXPECT_TRUE(read_artifact(path).ok());
}

TEST(ArtifactFiles, DamageIsNamed) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact = random_artifact(4, {"int4/g32@f16"});
  ASSERT_TRUE(artifact.ok());
  const fs::path path = directory.path() / "artifact";
  ASSERT_TRUE(write_artifact(*artifact, path, false).ok());
  const std::string weights = *read_text_file(path / "model.safetensors");
  const std::string file = (path / "model.safetensors").string();
  std::string damaged = weights;
  damaged.back() ^= 1;  // the U8 codes come last
  std::ofstream(path / "model.safetensors", std::ios::binary) << damaged;
  EXPECT_EQ(read_artifact(path).status().message(),
            cat("[artifact] ", file, ", tensor layers.0.weight.codes: SHA-256 must be ",
                sha256_hex(weights), "; found ", sha256_hex(damaged),
                "; the file was changed or damaged"));
  damaged = weights;
  damaged[damaged.find("\"pt\"") + 1] ^= 1;
  std::ofstream(path / "model.safetensors", std::ios::binary) << damaged;
  EXPECT_THAT(read_artifact(path).status().message(),
              HasSubstr("model.safetensors (its header differs): SHA-256 must be "));
  std::ofstream(path / "model.safetensors", std::ios::binary)
      << weights.substr(0, weights.size() - 7);
  EXPECT_EQ(read_artifact(path).status().message(),
            cat("[artifact] ", file, ": needs ", weights.size(), " bytes; found ",
                weights.size() - 7, "; the file is truncated"));
  std::ofstream(path / "model.safetensors", std::ios::binary) << weights;

  const std::string manifest = *read_text_file(path / "manifest.json");
  std::ofstream(path / "manifest.json", std::ios::binary)
      << manifest.substr(0, manifest.size() / 2);
  EXPECT_THAT(read_artifact(path).status().message(),
              HasSubstr("manifest.json: manifest_sha256 must be that of the text, "));
  EXPECT_EQ(read_artifact(path).status().code(), StatusCode::data_loss);
  std::ofstream(path / "manifest.json", std::ios::binary) << "{}";
  EXPECT_THAT(read_artifact(path).status().message(), HasSubstr("; found none; "));
  fs::remove(path / "manifest.json");
  EXPECT_EQ(read_artifact(path).status().message(),
            cat("[artifact] ", path.string(),
                ": an artifact directory needs manifest.json; found none"));
}

TEST(ArtifactFiles, AnotherVersionIsRefused) {
  const Result<std::string> text = print_manifest(Manifest{});
  ASSERT_TRUE(text.ok());
  std::string other = *text;
  other.replace(other.find("\"version\": 1"), 12, "\"version\": 2");
  const size_t digits = other.find("\"manifest_sha256\": \"") + 20;
  other.replace(digits, 64, std::string(64, '0'));
  other.replace(digits, 64, sha256_hex(other));
  const Status status = parse_manifest(other, "manifest.json").status();
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_EQ(status.message(),
            "[manifest] manifest.json: this build reads format nibble-artifact version "
            "1; found "
            "nibble-artifact version 2; use the tool that wrote it");
  EXPECT_EQ(*parse_manifest(*text, "manifest.json"), Manifest{});
}

TEST(ArtifactFiles, ExistingDirectoriesAreKeptUnlessOverwritten) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact = random_artifact(5, {""});
  const Result<Artifact> other = random_artifact(6, {"int4/g32@f16"});
  ASSERT_TRUE(artifact.ok() && other.ok());
  const fs::path path = directory.path() / "artifact";
  ASSERT_TRUE(write_artifact(*artifact, path, false, {{"report.html", "<p>"}}).ok());
  EXPECT_EQ(*read_text_file(path / "report.html"), "<p>");
  EXPECT_EQ(write_artifact(*other, path, false).code(), StatusCode::already_exists);
  expect_equal(*artifact, *read_artifact(path));
  ASSERT_TRUE(write_artifact(*other, path, true).ok());
  expect_equal(*other, *read_artifact(path));
  EXPECT_FALSE(fs::exists(path / "report.html"));
  EXPECT_EQ(contents(directory.path() / "artifact").size(), 4u);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), {}), 1);
  EXPECT_THAT(
      write_artifact(*other, path, true, {{"config.json", "x"}}).message(),
      HasSubstr("config.json: a file of an artifact needs a plain name of its own; "
                "found one that is taken"));
}

// --- a disk that is full

TEST(ArtifactFiles, AFileThatCannotGrowLeavesNothing) {
  TemporaryDirectory directory;
  const Result<Artifact> artifact = random_artifact(7, {"", "", ""});
  ASSERT_TRUE(artifact.ok());
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1000, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status status = write_artifact(*artifact, directory.path() / "artifact", false);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(),
              HasSubstr("model.safetensors: cannot write; File too large"));
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST(ArtifactFiles, AFullDiskLeavesNothing) {
  TemporaryDirectory directory;
  if (mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=16k") != 0) {
    GTEST_SKIP() << "cannot mount a small tmpfs here: " << std::strerror(errno);
  }
  const Result<Artifact> artifact = random_artifact(7, {"", "", "", "", "", "", "", ""});
  const Status status = write_artifact(*artifact, directory.path() / "artifact", false);
  const bool empty = fs::is_empty(directory.path());
  umount(directory.path().c_str());
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(), HasSubstr("No space left on device"));
  EXPECT_TRUE(empty);
}

// --- check_artifact

class CheckArtifact : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<Artifact> made = random_artifact(8, {"int4/g32@f16", ""});
    ASSERT_TRUE(made.ok()) << made.status().message();
    artifact_ = std::move(made).value();
    ASSERT_TRUE(check_artifact(artifact_).ok());
  }
  std::string message() {
    const Status status = check_artifact(artifact_);
    return cat(status_code_name(status.code()), ": ", status.message());
  }
  Artifact artifact_;
};

TEST_F(CheckArtifact, NamesWhereANaNIs) {
  Tensor& weight = artifact_.tensors["layers.1.weight"];
  std::vector<float> values = *to_float(weight);
  const std::string shape = shape_text(weight.shape);
  values[5] = std::numeric_limits<float>::quiet_NaN();
  weight = make_tensor(weight.shape, std::span<const float>(values));
  EXPECT_EQ(message(),
            cat("out_of_range: [artifact] layers.1.weight: every value must be finite; "
                "found NaN at index 5 of ",
                shape, "; the checkpoint is broken"));
  for (const auto& [dtype, bits] : std::vector<std::pair<DType, uint16_t>>{
           {DType::bf16, 0xff80}, {DType::f16, 0x7c00}}) {
    std::vector<uint16_t> words(values.size(), 0);
    words[2] = bits;
    weight = {dtype, weight.shape, Bytes::copy_of(words.data(), words.size() * 2)};
    EXPECT_EQ(message(),
              cat("out_of_range: [artifact] layers.1.weight: every value must be "
                  "finite; found infinity at index 2 of ",
                  shape, "; the checkpoint is broken"));
  }
}

TEST_F(CheckArtifact, NamesAScaleThatIsNotPositive) {
  PackedTensor& packed = artifact_.packed["layers.0.weight"];
  std::string scales(packed.scales[0].values.text());
  const int64_t groups = (packed.cols + 31) / 32;
  const size_t at = static_cast<size_t>(3 * groups);
  scales[2 * at] = scales[2 * at + 1] = 0;
  packed.scales[0].values = Bytes::copy_of(scales.data(), scales.size());
  EXPECT_EQ(message(),
            "out_of_range: [artifact] layers.0.weight: scale level 0 must be finite and "
            "not 0; found 0 at row 3, column 0");
  scales[2 * at + 1] = '\xbc';  // -1: int4's codes reach further down than up
  packed.scales[0].values = Bytes::copy_of(scales.data(), scales.size());
  EXPECT_TRUE(check_artifact(artifact_).ok()) << check_artifact(artifact_).message();
  scales[2 * at + 1] = 0;
  // Another tool's may be 0 or negative, but are numbers.
  const auto entry = std::find_if(
      artifact_.ledger.entries.begin(), artifact_.ledger.entries.end(),
      [](const LedgerEntry& e) { return e.tensor == "layers.0.weight"; });
  entry->method = kImported;
  scales[2 * at + 1] = '\xbc';  // -1
  packed.scales[0].values = Bytes::copy_of(scales.data(), scales.size());
  EXPECT_TRUE(check_artifact(artifact_).ok()) << check_artifact(artifact_).message();
  scales[2 * at + 1] = '\x7e';
  packed.scales[0].values = Bytes::copy_of(scales.data(), scales.size());
  EXPECT_EQ(message(),
            "out_of_range: [artifact] layers.0.weight: scale level 0 must be finite; "
            "found nan at row 3, column 0");
}

TEST_F(CheckArtifact, NamesWhatIsMissingOrWrong) {
  Artifact whole = artifact_;
  artifact_.tensors.erase("layers.1.bias");
  EXPECT_THAT(message(),
              HasSubstr("not_found: [program] layers.1.bias: node layers.1 needs "
                        "this tensor with shape ["));
  artifact_ = whole;
  artifact_.layers.clear();
  EXPECT_EQ(message(),
            "invalid_argument: [artifact] layers.0.weight: a packed weight needs a "
            "layer scheme equal to its own, int4/g32@f16; found none");
  artifact_ = whole;
  artifact_.tensors["layers.0.weight"] = artifact_.tensors["layers.1.weight"];
  EXPECT_THAT(message(),
              HasSubstr("layers.0.weight: a parameter must be a float tensor or a "
                        "packed one; found both"));
  artifact_ = whole;
  artifact_.activations["nothing"] = artifact_.activations["embed"];
  EXPECT_THAT(message(), HasSubstr("nothing: an activation scheme must name a value"));
  artifact_ = whole;
  artifact_.activations["embed"].scale = 0;
  EXPECT_EQ(message(),
            "out_of_range: [artifact] embed: a static activation's scale must be "
            "finite and positive; found 0");
  artifact_ = whole;
  artifact_.image_std = {1, -1};
  EXPECT_THAT(message(),
              HasSubstr("image_std: channel 1 needs a finite mean and a positive"));
  artifact_ = whole;
  artifact_.layers["layers.0.weight"].extras.permutation = "order";
  EXPECT_THAT(message(), HasSubstr("its extras name tensor order; found no such tensor"));
  const std::vector<int32_t> twice(
      static_cast<size_t>(whole.packed["layers.0.weight"].cols), 0);
  artifact_.tensors["order"] =
      make_tensor({static_cast<int64_t>(twice.size())}, std::span<const int32_t>(twice));
  EXPECT_THAT(message(), HasSubstr("order: a permutation must hold each of "));
}

TEST(LedgerCheck, EveryParameterIsAccountedFor) {
  Result<Artifact> artifact = random_artifact(9, {"int4/g32@f16"});
  ASSERT_TRUE(artifact.ok());
  const Ledger whole = artifact->ledger;
  const Program& program = artifact->program;
  EXPECT_TRUE(check_ledger(whole, program).ok());
  EXPECT_EQ(whole.find("layers.0.bias")->method, "float");
  EXPECT_EQ(whole.find("layers.0"), nullptr);
  Ledger ledger = whole;
  ledger.entries.pop_back();
  EXPECT_EQ(
      check_ledger(ledger, program).message(),
      "[ledger] layers.0.weight: every parameter must be accounted for; found no entry");
  ledger = whole;
  ledger.entries[0].reason.clear();
  EXPECT_EQ(
      check_ledger(ledger, program).message(),
      "[ledger] embed.weight: a tensor that is not quantized (method float) needs a "
      "reason; found none");
  ledger = whole;
  ledger.entries[0].tensor = "elsewhere";
  EXPECT_EQ(check_ledger(ledger, program).message(),
            "[ledger] elsewhere: an entry must name a tensor of the program; found no "
            "node that "
            "has it");
  ledger.entries[0].method = "folded";  // then it is what became of a tensor that is gone
  EXPECT_EQ(
      check_ledger(ledger, program).message(),
      "[ledger] embed.weight: every parameter must be accounted for; found no entry");
  TemporaryDirectory directory;
  artifact->ledger.entries.clear();
  EXPECT_EQ(write_artifact(*artifact, directory.path() / "a", false).code(),
            StatusCode::failed_precondition);
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST(LedgerCheck, SumsBits) {
  Ledger ledger;
  ledger.entries.resize(2);
  ledger.entries[0].parameters = 100, ledger.entries[0].bits = 450;
  ledger.entries[1].parameters = 20, ledger.entries[1].bits = 640;
  EXPECT_EQ(ledger.parameters(), 120);
  EXPECT_EQ(ledger.bits(), 1090);
  EXPECT_EQ(ledger.bits_per_weight(), 1090.0 / 120);
  EXPECT_EQ(Ledger{}.bits_per_weight(), 0);
}

}  // namespace
}  // namespace nibble
