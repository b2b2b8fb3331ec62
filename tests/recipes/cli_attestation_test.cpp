// proof.json: written by evaluate and validate, re-checked anywhere, and what every kind
// of tampering is called.
#include <gmock/gmock.h>

#include "export/validate/attest.h"
#include "tests/export/sample_models.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

class CliAttestation : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryDirectory;
    write_small_llama(shared_->path() / "model");
    std::ofstream(shared_->path() / "heldout.txt") << story_text(2, 6);
    std::ofstream(shared_->path() / "other.txt") << story_text(3, 6);
    Artifact artifact = sample::quantized(
        sample::take(load_model(shared_->path() / "model", {})), "int4/g16@f16",
        [](const Node& node) {
          return node.op == "linear" && node.name.rfind("model.layers.", 0) == 0;
        });
    ASSERT_TRUE(write_artifact(artifact, shared_->path() / "w4", false).ok());
    const Outcome attested =
        nibble({"evaluate", (shared_->path() / "w4").string(), "--text",
                (shared_->path() / "heldout.txt").string(), "--per-line", "--reference",
                (shared_->path() / "model").string(), "--attest"},
               shared_->path());
    ASSERT_EQ(attested.code, 0) << attested.error;
    const Outcome exported =
        nibble({"export", (shared_->path() / "w4").string(), "--to", "compressed-tensors",
                "--output", (shared_->path() / "ct").string()},
               shared_->path());
    ASSERT_EQ(exported.code, 0) << exported.error;
    const Outcome checked = nibble(
        {"validate", (shared_->path() / "ct").string(), "--attest"}, shared_->path());
    ASSERT_EQ(checked.code, 0) << checked.error;
  }
  static void TearDownTestSuite() { delete shared_; }

  std::string at(const std::string& name) const {
    return (shared_->path() / name).string();
  }
  // A copy that may be spoiled.
  fs::path copy(const std::string& name) const {
    fs::copy(shared_->path() / name, scratch_.path() / name, fs::copy_options::recursive);
    return scratch_.path() / name;
  }
  Outcome validate(const fs::path& path,
                   const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"validate", path.string(), "--attestation"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return nibble(arguments, scratch_.path());
  }
  static Json read(const fs::path& path) {
    return parse_json_or_throw(*read_text_file(path / "proof.json"));
  }
  // With its checksum made right again, as a forger would.
  static void write(const fs::path& path, const Json& json, bool sealed) {
    std::string text = json.dump(1) + "\n";
    if (sealed) {
      Result<Attestation> attestation = parse_attestation(text, "");
      ASSERT_TRUE(attestation.ok()) << attestation.status().message();
      text = *print_attestation(*attestation);
    }
    std::ofstream(path / "proof.json", std::ios::binary) << text;
  }
  // A changed artifact whose own manifest says nothing of it.
  static void rewrite(const fs::path& path,
                      const std::function<void(CodedMatrix&)>& change) {
    Artifact artifact = sample::take(read_artifact(path));
    const std::string proof = *read_text_file(path / "proof.json");
    PackedTensor& packed = artifact.packed.at("model.layers.1.mlp.up_proj.weight");
    CodedMatrix q = sample::take(unpack(packed));
    change(q);
    packed = sample::take(pack(q, packed.shape));
    ASSERT_TRUE(write_artifact(artifact, path, true).ok());
    std::ofstream(path / "proof.json", std::ios::binary) << proof;
  }

  TemporaryDirectory scratch_;
  static TemporaryDirectory* shared_;
};
TemporaryDirectory* CliAttestation::shared_ = nullptr;

TEST_F(CliAttestation, HoldsWithAndWithoutTheData) {
  const Outcome plain = validate(at("w4"));
  EXPECT_EQ(plain.code, 0) << plain.error;
  EXPECT_THAT(plain.out, HasSubstr("attested weights"));
  EXPECT_THAT(plain.out, HasSubstr("outputs on the fixed input equal"));
  EXPECT_THAT(plain.out,
              HasSubstr("kl, perplexity, perplexity_increase, top1_agreement"));
  EXPECT_THAT(plain.out, HasSubstr("nothing is known of kl_p90, kl_p99"));
  EXPECT_THAT(plain.out, HasSubstr("not measured again: give --text"));
  const Outcome text = validate(at("w4"), {"--text", at("heldout.txt")});
  EXPECT_EQ(text.code, 0) << text.error;
  EXPECT_THAT(text.out,
              HasSubstr("measured again, equal: perplexity; needs the reference"));
  const Outcome whole = validate(
      at("w4"), {"--text", at("heldout.txt"), "--per-line", "--reference", at("model"),
                 "--min-agreement", "0", "--max-kl", "9", "--json"});
  const nlohmann::json json = parsed(whole);
  std::map<std::string, std::string> outcomes;
  for (const auto& check : json["checks"]) outcomes[check["name"]] = check["outcome"];
  for (const char* name :
       {"attested files", "attested weights", "attested outputs", "attested figures",
        "figures on heldout.txt", "attested seal"}) {
    EXPECT_EQ(outcomes[name], "passed") << name;
  }
  // The artifact was made in this process: its sources are the model's files.
  EXPECT_EQ(outcomes["attested sources"], "passed");
}

TEST_F(CliAttestation, OtherKernelsGiveTheAttestedOutputs) {
  const Outcome outcome = validate(at("w4"), {"--cpu", "reference"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("outputs on the fixed input"));
}

TEST_F(CliAttestation, OneFlippedCodeIsNamed) {
  const fs::path path = copy("w4");
  rewrite(path, [](CodedMatrix& q) {
    q.codes[5] = static_cast<uint8_t>(q.codes[5] == 1 ? 2 : 1);
  });
  EXPECT_EQ(nibble({"validate", path.string()}, scratch_.path()).code, 0);
  const Outcome outcome = validate(path);
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(
      outcome.error,
      HasSubstr("attested weights failed: model.layers.1.mlp.up_proj.weight: SHA-256 "
                "of its codes must be "));
}

TEST_F(CliAttestation, OneChangedScaleIsNamed) {
  const fs::path path = copy("w4");
  rewrite(path, [](CodedMatrix& q) { q.scales[0].values[3] *= 2; });
  const Outcome outcome = validate(path);
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(
      outcome.error,
      HasSubstr("attested weights failed: model.layers.1.mlp.up_proj.weight: SHA-256 "
                "of its scale values must be "));
}

TEST_F(CliAttestation, AFlippedBitOfADirectoryWithoutChecksumsIsNamed) {
  EXPECT_EQ(validate(at("ct")).code, 0);
  const fs::path path = copy("ct");
  auto file = sample::take(read_safetensors(path / "model.safetensors"));
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, tensor] : file.tensors) {
    tensors[name] = {tensor.dtype, tensor.shape,
                     Bytes::copy_of(tensor.bytes.data(), tensor.bytes.size())};
  }
  Tensor& codes = tensors.at("model.layers.0.self_attn.o_proj.weight_packed");
  *const_cast<std::byte*>(codes.bytes.data()) ^= std::byte{1};
  fs::remove(path / "model.safetensors");
  ASSERT_TRUE(
      write_safetensors(path / "model.safetensors", tensors, {{"format", "pt"}}).ok());
  EXPECT_EQ(nibble({"validate", path.string()}, scratch_.path()).code, 0);
  const Outcome outcome = validate(path);
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.error,
              HasSubstr("model.layers.0.self_attn.o_proj.weight: SHA-256 of "
                        "its codes must be "));
}

TEST_F(CliAttestation, AMissingOrOtherFileIsNamed) {
  const fs::path path = copy("ct");
  fs::remove(path / "tokenizer_config.json");
  const Outcome gone = validate(path);
  EXPECT_EQ(gone.code, 7);
  EXPECT_THAT(gone.error,
              HasSubstr("attested files failed: tokenizer_config.json: must be "
                        "there; found no such file"));
  std::ofstream(path / "tokenizer_config.json") << "{}";
  EXPECT_THAT(validate(path).error, HasSubstr("tokenizer_config.json: must have "));
  // Of an artifact the manifest knows as well; the proof's files are checked all the
  // same.
  const fs::path whole = copy("w4");
  fs::remove(whole / "tokenizer_config.json");
  const Outcome missing = validate(whole);
  EXPECT_EQ(missing.code, 7);
  EXPECT_THAT(missing.error, HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(missing.out, HasSubstr("attested files"));
}

TEST_F(CliAttestation, AnEditedFigureIsNamed) {
  const fs::path path = copy("w4");
  const Json proof = read(path);
  Json edited = proof;
  Json& kl = edited["measured"][0]["figures"]["kl"];
  kl["value"] = kl["value"].get<double>() / 2;
  for (const bool sealed : {false, true}) {
    write(path, edited, sealed);
    const Outcome outcome = validate(path);
    EXPECT_EQ(outcome.code, 7);
    EXPECT_THAT(outcome.error, HasSubstr("attested figures failed: on heldout.txt, kl: "
                                         "stated as "));
    EXPECT_THAT(outcome.error, HasSubstr("its values a sequence say"));
  }
  // Everything that follows from each other changed alike: only the data tells.
  edited = proof;
  for (Json& value : edited["measured"][0]["values"]["kl"])
    value = value.get<double>() / 2;
  Json& figure = edited["measured"][0]["figures"]["kl"];
  figure["value"] = figure["value"].get<double>() / 2;
  for (Json& end : figure["ci95"]) end = end.get<double>() / 2;
  write(path, edited, true);
  EXPECT_EQ(validate(path).code, 0);
  const Outcome measured =
      validate(path, {"--text", at("heldout.txt"), "--per-line", "--reference",
                      at("model"), "--min-agreement", "0", "--max-kl", "9"});
  EXPECT_EQ(measured.code, 7);
  EXPECT_THAT(measured.error, HasSubstr("figures on heldout.txt failed: kl: stated as "));
  EXPECT_THAT(measured.error, HasSubstr("measured as"));
  // What no figure follows from is under the seal.
  edited = proof;
  edited["recipe"] = "another";
  write(path, edited, false);
  EXPECT_THAT(validate(path).error, HasSubstr("check attested seal failed: proof.json"));
  // A percentile follows from nothing but the data.
  edited = proof;
  Json& tail = edited["measured"][0]["figures"]["kl_p99"]["value"];
  tail = tail.get<double>() * 0.7;
  write(path, edited, true);
  EXPECT_THAT(validate(path, {"--text", at("heldout.txt"), "--per-line", "--reference",
                              at("model"), "--min-agreement", "0", "--max-kl", "9"})
                  .error,
              HasSubstr("kl_p99: stated as "));
}

TEST_F(CliAttestation, AnEditedOutputOrBoundIsNamed) {
  const fs::path path = copy("w4");
  const Json proof = read(path);
  Json edited = proof;
  edited["outputs"]["values"][2] = edited["outputs"]["values"][2].get<double>() +
                                   proof["outputs"]["largest"].get<double>();
  write(path, edited, true);
  EXPECT_THAT(validate(path).error, HasSubstr("attested outputs failed: output "));
  edited = proof;
  edited["outputs"]["bound"] = 1;
  write(path, edited, true);
  EXPECT_THAT(validate(path).error, HasSubstr("outputs with a bound of at most 0.0001"));
}

TEST_F(CliAttestation, OtherDataAndOtherReferencesAreNamed) {
  const Outcome data = validate(at("w4"), {"--text", at("other.txt")});
  EXPECT_EQ(data.code, 7);
  EXPECT_THAT(data.error,
              HasSubstr("figures on heldout.txt failed: data: SHA-256 of what was "
                        "measured on (heldout.txt, 6 sequences"));
  const Outcome reference = validate(
      at("w4"), {"--reference", at("w4"), "--min-agreement", "0", "--max-kl", "9"});
  EXPECT_EQ(reference.code, 0);  // made from the same files, and says so
  fs::copy(at("model"), scratch_.path() / "model", fs::copy_options::recursive);
  std::ofstream(scratch_.path() / "model/tokenizer_config.json", std::ios::app) << " ";
  const Outcome other =
      validate(at("w4"), {"--reference", (scratch_.path() / "model").string(),
                          "--min-agreement", "0", "--max-kl", "9"});
  EXPECT_EQ(other.code, 7);
  EXPECT_THAT(other.error,
              HasSubstr("attested sources failed: tokenizer_config.json: SHA-256 "
                        "must be "));
}

TEST_F(CliAttestation, IsAskedForWhereThereIsNone) {
  fs::create_directory(scratch_.path() / "none");
  const fs::path path = copy("w4");
  fs::remove(path / "proof.json");
  const Outcome none = validate(path);
  EXPECT_EQ(none.code, 4);
  EXPECT_THAT(
      last_line(none, scratch_.path()),
      HasSubstr("w4/proof.json: an attestation is required; found none; quantize and "
                "train write one"));
  std::ofstream(path / "proof.json") << "{}";
  const Outcome damaged = validate(path);
  EXPECT_EQ(damaged.code, 3);
  EXPECT_THAT(damaged.error, HasSubstr("must have the fields of a proof.json"));
  const Outcome no_format =
      nibble({"evaluate", at("model"), "--text", at("heldout.txt"), "--attest"},
             scratch_.path());
  EXPECT_EQ(no_format.code, 5);
  EXPECT_THAT(no_format.error,
              HasSubstr("a quantized Hugging Face directory is required"));
}

TEST_F(CliAttestation, KeepsEarlierMeasurementsOfTheSameWeights) {
  const fs::path path = copy("w4");
  const std::string before = *read_text_file(path / "proof.json");
  const std::vector<std::string> again = {"evaluate",        path.string(), "--text",
                                          at("heldout.txt"), "--per-line",  "--reference",
                                          at("model"),       "--attest"};
  EXPECT_EQ(nibble(again, scratch_.path()).code, 0);
  EXPECT_EQ(*read_text_file(path / "proof.json"), before);
  EXPECT_EQ(nibble({"evaluate", path.string(), "--text", at("other.txt"), "--compute",
                    "int8", "--attest"},
                   scratch_.path())
                .code,
            0);
  const Json both = read(path);
  ASSERT_EQ(both["measured"].size(), 2u);
  EXPECT_EQ(both["measured"][1]["compute"], "int8");
  EXPECT_EQ(both["measured"][1]["data"]["file"], "other.txt");
  EXPECT_EQ(validate(path).code, 0);
}

}  // namespace
}  // namespace nibble
