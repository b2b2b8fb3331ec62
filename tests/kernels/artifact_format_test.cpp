// The worked example of kernels/artifact/FORMAT.md, byte by byte: what the document shows
// is what the writer writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "kernels/artifact/artifact.h"
#include "kernels/base/file.h"
#include "kernels/scheme/coded_matrix.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// y = W x + b with W [2, 3] = [[0.5, -1, 3.5], [-2, 0, 0.75]] under int4/r@f16, b = [1,
// -1].
Result<Artifact> worked_example() {
  Artifact artifact;
  artifact.program.architecture = "Example";
  artifact.program.inputs = {{"x", DType::f32, {"batch", "3"}}};
  artifact.program.outputs = {{"y", DType::f32, {"batch", "2"}}};
  artifact.program.nodes = {{"linear",
                             "fc",
                             0,
                             {"x"},
                             {"y"},
                             {{"weight", "fc.weight"}, {"bias", "fc.bias"}},
                             {{"out_features", int64_t{2}}}}};
  const std::vector<float> bias = {1, -1};
  artifact.tensors["fc.bias"] = make_tensor({2}, std::span<const float>(bias));
  CodedMatrix coded;
  NIBBLE_ASSIGN_OR_RETURN(coded.scheme, parse_scheme("int4/r@f16"));
  coded.rows = 2;
  coded.cols = 3;
  coded.codes = {1, 0xfe, 7, 0xf8, 0, 3};
  coded.scales = {{2, 1, {0.5f, 0.25f}, 0}};
  NIBBLE_ASSIGN_OR_RETURN(artifact.packed["fc.weight"], pack(coded, {2, 3}));
  artifact.layers["fc.weight"].weight = coded.scheme;
  artifact.config_json = "{}";
  LedgerEntry float_entry, packed_entry;
  float_entry.tensor = "fc.bias", float_entry.scheme = "f32",
  float_entry.method = "float";
  float_entry.reason = "biases stay float", float_entry.parameters = 2,
  float_entry.bits = 64;
  packed_entry.tensor = "fc.weight", packed_entry.scheme = "int4/r@f16";
  packed_entry.method = "rtn", packed_entry.parameters = 6, packed_entry.bits = 64;
  artifact.ledger.entries = {float_entry, packed_entry};
  artifact.provenance.tool_version = kToolVersion;
  return artifact;
}

std::string hex_lines(const std::string& bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 16) {
    char text[24];  // what %zx may need, as the compiler sees it
    std::snprintf(text, sizeof(text), "%04zx:", i);
    out += text;
    for (size_t k = i; k < std::min(i + 16, bytes.size()); ++k) {
      std::snprintf(text, sizeof(text), " %02x", static_cast<unsigned char>(bytes[k]));
      out += text;
    }
    out += "\n";
  }
  return out;
}

TEST(ArtifactFormat, TheDocumentShowsWhatIsWritten) {
  const Result<Artifact> artifact = worked_example();
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  TemporaryDirectory directory;
  const fs::path path = directory.path() / "example";
  const Status written = write_artifact(*artifact, path, false);
  ASSERT_TRUE(written.ok()) << written.message();
  const std::string document =
      *read_text_file(fs::path(NIBBLE_SOURCE_DIR) / "kernels/artifact/FORMAT.md");
  const std::string weights = hex_lines(*read_text_file(path / "model.safetensors"));
  const std::string manifest = *read_text_file(path / "manifest.json");
  EXPECT_NE(document.find("```\n" + weights + "```"), std::string::npos)
      << "FORMAT.md must show:\n"
      << weights;
  EXPECT_NE(document.find("```json\n" + manifest + "```"), std::string::npos)
      << "FORMAT.md must show:\n"
      << manifest;
  EXPECT_EQ(*read_text_file(path / "config.json"), "{}");
}

}  // namespace
}  // namespace nibble
