// Random decoders through the GGUF writer and reader: 50 of them, or as many as
// NIBBLE_RANDOM_ARTIFACTS says (1,000 under the ctest label `long`).
#include <gtest/gtest.h>

#include <cstdlib>

#include "export/exporter.h"
#include "export/gguf/gguf_model.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using sample::take;

constexpr const char* kSchemes[] = {
    "",  // float
    "int4/g32@f16",
    "int4n/r@f16",
    "int3/g64@f16",
    "int5/g32@f16",
    "int7/g96@f16",
    "int8/g32@f16",
    "uint4/g64@f16+z/g64@uint4",
    "uint4/g32@f16+m/g32@f16",
    "uint5/g32@f16+m/g32@f16",
    "iq4nl/g32@f16",
    "e2m1/g32@e8m0",
    "ternary/g32@f16",
    "binary/r@f16",
    "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16",
    "int6/g16@int8/g256@f16",
    "int3/g16@int6/g256@f16",
    "iq4nl/g32@int6/g256@f16",
};

Artifact random_decoder(uint64_t seed) {
  SplitMix64 random(seed);
  const auto pick = [&](int64_t low, int64_t count) {
    return low + static_cast<int64_t>(random.below(static_cast<uint64_t>(count)));
  };
  sample::LlamaSize size;
  const bool wide = random.below(4) == 0;  // rows for the blocks of 256
  size.vocabulary = pick(3, 30);
  size.hidden = wide ? 256 : 32 * pick(1, 3);
  size.kv_heads = pick(1, 2);
  size.heads = size.kv_heads * pick(1, 2);
  size.head_dim = 2 * pick(1, 8);
  // o_proj reads heads * head_dim columns: quantized only where that is whole blocks.
  size.intermediate = wide ? 512 : 32 * pick(1, 4);
  size.layers = pick(1, 2);
  size.context = 16;
  size.tied = random.below(2);
  size.bias = random.below(2);
  Artifact artifact = sample::llama(size, seed + 1000);
  std::map<std::string, std::string> chosen;
  for (const Node& node : artifact.program.nodes) {
    if (node.op != "linear" && node.op != "embedding") continue;
    const std::string& tensor = node.parameter("weight");
    const int64_t cols = artifact.tensors.at(tensor).shape[1];
    const std::string scheme = kSchemes[random.below(std::size(kSchemes))];
    const bool wants_256 = scheme.find("g256") != std::string::npos;
    if (cols % (wants_256 ? 256 : 32) == 0) chosen.emplace(tensor, scheme);
  }
  for (const auto& [tensor, scheme] : chosen) {
    if (scheme.empty()) continue;
    const Tensor weight = artifact.tensors.at(tensor);
    const std::vector<float> values = take(to_float(weight));
    const MatrixView<const float> x(values.data(), weight.shape[0], weight.shape[1]);
    CodedMatrix q = take(choose_scales(x, take(parse_scheme(scheme)), ScaleRule{}));
    const Status status = quantize(x, q);
    EXPECT_TRUE(status.ok()) << status.message();
    artifact.packed[tensor] = take(pack(q, weight.shape));
    artifact.layers[tensor].weight = q.scheme;
    artifact.tensors.erase(tensor);
  }
  return artifact;
}

std::vector<float> values_of(const PackedTensor& packed) {
  std::vector<float> values(static_cast<size_t>(packed.rows * packed.cols));
  const Status status = dequantize_rows(
      packed, 0, MatrixView<float>(values.data(), packed.rows, packed.cols));
  EXPECT_TRUE(status.ok()) << status.message();
  return values;
}

TEST(GgufRandom, ArtifactsComeBackEqual) {
  const char* asked = std::getenv("NIBBLE_RANDOM_ARTIFACTS");
  const int count = asked == nullptr ? 50 : std::atoi(asked);
  ASSERT_GT(count, 0);
  const TemporaryDirectory directory;
  const auto file = directory.path() / "model.gguf";
  const Exporter& gguf = *take(find_exporter("gguf"));
  int quantized = 0;
  for (int i = 0; i < count; ++i) {
    const Artifact artifact = random_decoder(static_cast<uint64_t>(i));
    const Status written = gguf.write(artifact, file, {.overwrite = true});
    ASSERT_TRUE(written.ok()) << i << ": " << written.message();
    const Artifact loaded = take(load_model(file, {}));
    ASSERT_EQ(loaded.packed.size(), artifact.packed.size()) << i;
    for (const auto& [name, packed] : artifact.packed) {
      ASSERT_EQ(values_of(loaded.packed.at(name)), values_of(packed)) << i << " " << name;
      ++quantized;
    }
    for (const auto& [name, tensor] : artifact.tensors) {
      ASSERT_EQ(take(to_float(loaded.tensors.at(name))), take(to_float(tensor)))
          << i << " " << name;
    }
    const auto decoded = gguf.read(file);
    ASSERT_TRUE(decoded.ok()) << decoded.status().message();
    const Status same = check_decoded(loaded, *decoded);
    ASSERT_TRUE(same.ok()) << i << ": " << same.message();
    // What came out of a GGUF goes into one again, byte for byte the same tensors.
    const auto again = directory.path() / "again.gguf";
    const Status rewritten = gguf.write(loaded, again, {.overwrite = true});
    ASSERT_TRUE(rewritten.ok()) << i << ": " << rewritten.message();
    const GgufFile a = take(open_gguf(file)), b = take(open_gguf(again));
    ASSERT_EQ(a.tensors.size(), b.tensors.size());
    for (const GgufTensor& tensor : a.tensors) {
      const GgufTensor* other = b.find(tensor.name);
      ASSERT_NE(other, nullptr) << tensor.name;
      ASSERT_EQ(other->type, tensor.type) << i << " " << tensor.name;
      ASSERT_EQ(other->bytes.text(), tensor.bytes.text()) << i << " " << tensor.name;
    }
  }
  EXPECT_GT(quantized, count);
}

}  // namespace
}  // namespace nibble
