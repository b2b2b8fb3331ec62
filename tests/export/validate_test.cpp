// What validate proves of an artifact directory, and what it catches.
#include "export/validate/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "export/exporter.h"
#include "export/validate/kernel_check.h"
#include "kernels/base/cpu.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using sample::fresh_directory;
using sample::take;
using ::testing::HasSubstr;
using Outcome = Check::Outcome;

const Check& find(const ValidationReport& report, const std::string& name) {
  for (const Check& check : report.checks) {
    if (check.name == name) return check;
  }
  static const Check none;
  ADD_FAILURE() << "no check " << name;
  return none;
}

Artifact sample_artifact() {
  return sample::quantized(sample::llama({}, 21), "int4/g32@f16");
}

std::filesystem::path written(const Artifact& artifact, const std::string& name) {
  const auto directory = fresh_directory(name);
  const Status status = take(find_exporter("nibble"))->write(artifact, directory, {});
  EXPECT_TRUE(status.ok()) << status.message();
  return directory;
}

void flip(const std::filesystem::path& path, int64_t from_end, char bits) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-from_end, std::ios::end);
  const auto at = file.tellg();
  const char byte = static_cast<char>(file.get() ^ bits);
  file.seekp(at);
  file.put(byte);
}

TEST(Validate, AGoodArtifactPassesEveryCheck) {
  const auto directory = written(sample_artifact(), "good");
  const ValidationReport report = validate_artifact(directory);
  ASSERT_EQ(report.checks.size(), 5u);
  for (const Check& check : report.checks) {
    EXPECT_EQ(check.outcome, Outcome::passed) << check.name << ": " << check.detail;
  }
  EXPECT_TRUE(report.passed());
  // 96*48 embedding; a block has 2*48*48 + 2*24*48 + 2*80*48 + 48*80 = 18,432 codes.
  EXPECT_THAT(find(report, "decode").detail,
              HasSubstr("15 quantized tensors, 41,472 codes"));
  EXPECT_THAT(find(report, "ledger").detail, HasSubstr("20 entries"));
  std::filesystem::remove_all(directory);
}

TEST(Validate, KernelsNamesEveryRowThatRan) {
  if (cpu_levels().size() < 2)
    GTEST_SKIP() << "this CPU has no kernel row but the reference";
  const KernelCheck check = take(check_layer_kernels(sample_artifact()));
  ASSERT_FALSE(check.rows.empty());
  for (const auto& [row, layers] : check.rows) {
    EXPECT_THAT(row, HasSubstr("linear_"));
    EXPECT_GE(layers, 1) << row;
    EXPECT_LE(layers, 15) << row;
  }
}

TEST(Validate, ConvolutionsRunAsFloatsAndAsIntegers) {
  if (cpu_levels().size() < 2)
    GTEST_SKIP() << "this CPU has no kernel row but the reference";
  const Artifact artifact = sample::quantized(sample::residual_net(24), "int8n/r@f32");
  const KernelCheck check = take(check_layer_kernels(artifact));
  int64_t floats = 0, integers = 0;
  for (const auto& [row, layers] : check.rows) {
    if (row.find("conv2d_f32") == 0) floats = std::max(floats, layers);
    if (row.find("conv2d_s8") == 0) integers = std::max(integers, layers);
  }
  EXPECT_EQ(floats, 3);
  EXPECT_EQ(integers, 4);  // the linear head too
}

TEST(Validate, AFlippedBitFailsFilesAndSkipsTheRest) {
  const auto directory = written(sample_artifact(), "flipped");
  flip(directory / "model.safetensors", 1, 0x10);
  const ValidationReport report = validate_artifact(directory);
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(find(report, "files").outcome, Outcome::failed);
  EXPECT_THAT(find(report, "files").detail, HasSubstr("model.safetensors"));
  for (const char* name : {"decode", "scales", "ledger", "kernels"}) {
    EXPECT_EQ(find(report, name).outcome, Outcome::skipped);
    EXPECT_EQ(find(report, name).detail, "the artifact cannot be read");
  }
  std::filesystem::remove_all(directory);
}

TEST(Validate, AMissingDirectoryIsAFailedCheck) {
  const ValidationReport report = validate_artifact(fresh_directory("missing"));
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(find(report, "files").outcome, Outcome::failed);
  EXPECT_THAT(find(report, "files").detail, HasSubstr("manifest.json"));
}

TEST(Validate, ZeroAndNaNScalesFail) {
  const Artifact artifact = sample_artifact();
  const auto directory = written(artifact, "scales");
  const Decoded good = take(take(find_exporter("nibble"))->read(directory));
  const std::string tensor = "model.layers.0.mlp.down_proj.weight";
  for (const float bad : {0.0f, -0.5f, std::nanf(""), INFINITY}) {
    Decoded decoded = good;
    decoded.coded.at(tensor).scales[0].values[4] = bad;  // row 1, second group of three
    const ValidationReport report = validate_decoded(artifact, decoded);
    EXPECT_FALSE(report.passed());
    const Check& check = find(report, "scales");
    EXPECT_EQ(find(report, "decode").outcome, Outcome::failed);
    if (bad == -0.5f) {  // another number, but one that int4's scales may be
      EXPECT_EQ(check.outcome, Outcome::passed);
      continue;
    }
    EXPECT_EQ(check.outcome, Outcome::failed);
    EXPECT_THAT(check.detail, HasSubstr(tensor + ": row 1, column 32"));
  }
  std::filesystem::remove_all(directory);
}

TEST(Validate, AMissingLedgerEntryOrAWrongSchemeFails) {
  Artifact artifact = sample_artifact();
  const auto directory = written(artifact, "ledger");
  const Decoded decoded = take(take(find_exporter("nibble"))->read(directory));
  EXPECT_TRUE(validate_decoded(artifact, decoded).passed());

  Artifact renamed = artifact;
  renamed.ledger.entries[3].scheme = "int8/r@f32";
  const Check wrong = find(validate_decoded(renamed, decoded), "ledger");
  EXPECT_EQ(wrong.outcome, Outcome::failed);
  EXPECT_THAT(wrong.detail, HasSubstr("the ledger must name the scheme that is stored, "
                                      "int4/g32@f16; found int8/r@f32"));

  artifact.ledger.entries.erase(artifact.ledger.entries.begin() + 3);
  const Check missing = find(validate_decoded(artifact, decoded), "ledger");
  EXPECT_EQ(missing.outcome, Outcome::failed);
  EXPECT_THAT(missing.detail, HasSubstr("[ledger]"));
  std::filesystem::remove_all(directory);
}

TEST(Validate, AFloatCheckpointSkipsWhatItHasNot) {
  const auto directory = written(sample::llama({}, 22), "float");
  const ValidationReport report = validate_artifact(directory);
  EXPECT_TRUE(report.passed());
  EXPECT_EQ(find(report, "scales").outcome, Outcome::skipped);
  EXPECT_EQ(find(report, "ledger").outcome, Outcome::skipped);
  EXPECT_EQ(find(report, "ledger").detail, "a float checkpoint has no ledger");
  std::filesystem::remove_all(directory);
}

class SecondReader : public ::testing::TestWithParam<const char*> {};

// Two decoders, one directory: equal on every scheme; and a changed bit is seen by both.
TEST_P(SecondReader, AgreesWithUnpackOnEveryCodeAndScale) {
  const Artifact artifact = sample::quantized(sample::llama({}, 23), GetParam());
  const auto directory = written(artifact, "second");
  const Exporter* nibble = take(find_exporter("nibble"));
  const Decoded decoded = take(nibble->read(directory));
  ASSERT_EQ(decoded.coded.size(), artifact.packed.size());
  for (const auto& [name, packed] : artifact.packed) {
    EXPECT_EQ(decoded.coded.at(name), take(unpack(packed))) << name;
  }
  for (const auto& [name, tensor] : artifact.tensors) {
    EXPECT_EQ(decoded.floats.at(name).bytes.text(), tensor.bytes.text()) << name;
  }
  const Status status = check_decoded(artifact, decoded);
  EXPECT_TRUE(status.ok()) << status.message();
  // The last byte of the file is a code or a level of some tensor, whatever the scheme.
  flip(directory / "model.safetensors", 1, 0x02);
  const Result<Decoded> changed = nibble->read(directory);
  EXPECT_FALSE(changed.ok() && check_decoded(artifact, *changed).ok());
  std::filesystem::remove_all(directory);
}
INSTANTIATE_TEST_SUITE_P(
    Schemes, SecondReader,
    ::testing::Values("int2/g16@f16", "int3/g32@f16", "int4/g32@f16", "int5/r@bf16",
                      "int6/g24@f32", "int7n/r@f32", "int8n/r@f32",
                      "uint4/g32@f16+z/g32@uint4", "uint3/g16@f16+m/g16@f16",
                      "uint4/g16@uint6/g48@f16+m/g16@uint6/g48@f16", "e4m3/b24x16@f32",
                      "e5m2/t@f32", "e2m1/g16@e4m3/t@f32", "e2m1/g32@e8m0", "nf4/f64@f32",
                      "nf4/f64@dyn8+o/f1024@f32", "fp4/g16@f16", "ternary/r@f32",
                      "binary/r@f32"));

}  // namespace
}  // namespace nibble
