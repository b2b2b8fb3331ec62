// proof.json as a value: printed, read back, and refused where it makes no sense.
#include "export/validate/attestation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "export/validate/attest.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

Attestation whole() {
  Attestation a;
  a.tool_version = "nibble 0.1.0";
  a.format = "gptq";
  a.sources = {{"config.json", "00"}};
  a.recipe = "bits: 4\n";
  a.calibration = "a text";
  a.files = {{"model.safetensors", {12, "ab"}}};
  a.weights = {{"fc.weight", {"int4/g32@f16", "cd", {{"scale", "ef"}}}}};
  a.floats = {{"fc.bias", {"F32", "01"}}};
  a.outputs = {{1, 2, 3}, {{0, 0.1f}, {7, -2.5f}}, 2.5, 1e-4, {{"row", 2}}};
  AttestedMeasurement measured;
  measured.data = {"text", "t.txt", "t.txt, 2 sequences", "23", 4, 2, 16, 8, 3,
                   true,   false};
  measured.compute = "int8";
  measured.kv = "fp8";
  measured.reference = {{"model.safetensors", "45"}};
  measured.figures = {{"kl", {0.1, {{0.05, 0.2}}}}, {"lowest_cosine", {0.5, {}}}};
  measured.values = {{"kl", {0.1, 1.0 / 3}}, {"right", {1, 0, 1}}, {"none", {}}};
  a.measured = {measured};
  return a;
}

TEST(Attestation, ReadsBackAsItWasPrinted) {
  const std::string text = sample::take(print_attestation(whole()));
  EXPECT_EQ(sample::take(parse_attestation(text, "p")), whole());
  EXPECT_EQ(sample::take(print_attestation(whole())), text);
  EXPECT_THAT(text, HasSubstr("\"right\": \"101\""));
}

TEST(Attestation, KnowsThatItWasChanged) {
  std::string text = sample::take(print_attestation(whole()));
  text.replace(text.find("a text"), 6, "b text");
  const Attestation changed = sample::take(parse_attestation(text, "p"));
  EXPECT_FALSE(changed.sealed);
  const Check check = check_attested_seal(changed);
  EXPECT_EQ(check.outcome, Check::Outcome::failed);
  EXPECT_EQ(
      check.detail,
      "proof.json: must have its own SHA-256; found another: it was changed after it "
      "was written");
}

TEST(Attestation, RefusesWhatIsNone) {
  Attestation broken = whole();
  broken.measured[0].figures["kl"].value = std::nan("");
  EXPECT_EQ(print_attestation(broken).status().code(), StatusCode::out_of_range);
  EXPECT_THAT(print_attestation(broken).status().message(),
              HasSubstr("[proof] kl: must be finite; found nan"));
  EXPECT_EQ(parse_attestation("[]", "p").status().code(), StatusCode::data_loss);
  std::string text = sample::take(print_attestation(whole()));
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  EXPECT_EQ(
      parse_attestation(text, "p").status().message(),
      "[proof] p: this build reads format nibble-proof version 1; found nibble-proof "
      "version 2; use the tool that wrote it");
  text = sample::take(print_attestation(whole()));
  text.replace(text.find("\"calibration\""), 13, "\"calibrates\"\n");
  EXPECT_THAT(parse_attestation(text, "p").status().message(),
              HasSubstr("[proof] p: must have the fields of a proof.json"));
}

// Files that a proof names must lie inside.
TEST(Attestation, FilesOutsideAreNotRead) {
  const auto directory = sample::fresh_directory("outside");
  std::filesystem::create_directories(directory);
  for (const char* name : {"../x", "/etc/hostname", ""}) {
    Attestation attestation;
    attestation.files[name] = {1, ""};
    EXPECT_EQ(check_attested_files(attestation, directory).detail,
              std::string(name) + ": must be there; found no such file");
  }
  std::filesystem::remove_all(directory);
}

// An image model, and integer activations: its outputs hold to the last bits.
TEST(Attestation, OutputsOfAnIntegerNet) {
  Artifact artifact = sample::quantized(sample::residual_net(5), "int8n/r@f32");
  sample::add_activations(artifact, [](const std::string&) { return 4.0; });
  Executor model = sample::take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  Attestation attestation;
  attestation.outputs = sample::take(attest_outputs(model));
  EXPECT_TRUE(attestation.outputs.ids.empty());
  EXPECT_EQ(attestation.outputs.bound, 1e-6);
  EXPECT_FALSE(attestation.outputs.values.empty());
}

}  // namespace
}  // namespace nibble
