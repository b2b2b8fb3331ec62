#include "recipes/cli/attestation.h"

#include <algorithm>

#include "export/assemble.h"
#include "kernels/base/file.h"
#include "recipes/cli/console.h"
#include "recipes/eval/attested_figures.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Outcome = Check::Outcome;

struct Opened {
  std::string format;
  std::shared_ptr<const Artifact> artifact;
  Decoded decoded;
};

Result<Opened> open_both(const fs::path& path, const LoadOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Exporter* format, find_format(path));
  Opened opened;
  opened.format = format->name;
  NIBBLE_ASSIGN_OR_RETURN(Artifact artifact, load_model(path, options));
  opened.artifact = std::make_shared<const Artifact>(std::move(artifact));
  NIBBLE_ASSIGN_OR_RETURN(opened.decoded, format->read(path));
  return opened;
}

Result<Executor> run(const std::shared_ptr<const Artifact>& artifact,
                     const std::string& compute = "", const std::string& kv = "") {
  // Nets on integers are attested as such; what they compute with is their own.
  NIBBLE_ASSIGN_OR_RETURN(const Compute parsed,
                          parse_compute(compute == "integer" ? "" : compute));
  return Executor::create(artifact, {.compute = parsed, .kv = kv});
}

// The first file of the reference that is not the attested one; "" where all are.
std::string other_source(const std::map<std::string, std::string>& required,
                         const Artifact& reference) {
  const auto& found = reference.provenance.sources;
  for (const auto& [name, digest] : required) {
    const auto at = found.find(name);
    const std::string here = at == found.end() ? "no such file" : at->second;
    if (here != digest) return cat(name, ": SHA-256 must be ", digest, "; found ", here);
  }
  return "";
}

Check check_sources(const Attestation& attestation, const Artifact* reference) {
  const char* name = "attested sources";
  if (attestation.sources.empty())
    return {name, Outcome::skipped,
            "the proof names no checkpoint that this was made from"};
  if (reference == nullptr) {
    return {name, Outcome::skipped,
            cat("give the checkpoint it was made from as --reference: ",
                attestation.sources.size(), " files with known checksums")};
  }
  const std::string other = other_source(attestation.sources, *reference);
  if (!other.empty()) return {name, Outcome::failed, other};
  return {name, Outcome::passed,
          cat("the reference's ", attestation.sources.size(),
              " files are those it was made from")};
}

Result<std::vector<Check>> check_figures(
    const CommandLine& line, const Attestation& attestation,
    const std::shared_ptr<const Artifact>& artifact,
    const std::shared_ptr<const Artifact>& reference) {
  std::vector<Check> checks;
  std::optional<Executor> float_model;
  if (reference) {
    NIBBLE_ASSIGN_OR_RETURN(Executor executor, run(reference, "", "f32"));
    float_model.emplace(std::move(executor));
  }
  for (const AttestedMeasurement& measured : attestation.measured) {
    const std::string other =
        reference ? other_source(measured.reference, *reference) : "";
    if (!other.empty()) {
      checks.push_back({cat("figures on ", measured.data.file), Outcome::failed,
                        "the reference they were measured against, " + other});
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(Executor model, run(artifact, measured.compute, measured.kv));
    Remeasure given;
    given.model = &model;
    given.reference =
        float_model && !measured.reference.empty() ? &*float_model : nullptr;
    given.text = line.path("text");
    given.dataset = line.path("dataset");
    given.progress = make_counter("figures", "sequences");
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Check> more,
                            remeasure_figures({measured}, given));
    checks.insert(checks.end(), more.begin(), more.end());
  }
  return checks;
}

Result<Attestation> read_attestation(const fs::path& artifact) {
  const fs::path path = attestation_path(artifact);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    return error(
        StatusCode::not_found, "[validate] ", path.string(),
        ": an attestation is required; found none; quantize and train write one, "
        "nibble evaluate --attest and nibble validate --attest too");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  return parse_attestation(text, path.string());
}

}  // namespace

Result<std::vector<Check>> check_attestation(const CommandLine& line, bool readable) {
  const fs::path path = line.path("ARTIFACT");
  NIBBLE_ASSIGN_OR_RETURN(const Attestation attestation, read_attestation(path));
  if (!readable) {
    const char* why = "the artifact cannot be read";
    return std::vector<Check>{check_attested_files(attestation, path),
                              {"attested weights", Outcome::skipped, why},
                              {"attested outputs", Outcome::skipped, why},
                              recompute_figures(attestation.measured),
                              check_attested_seal(attestation)};
  }
  NIBBLE_ASSIGN_OR_RETURN(const Opened opened, open_both(path, line.load_options()));
  NIBBLE_ASSIGN_OR_RETURN(Executor model, run(opened.artifact));
  std::vector<Check> checks =
      check_attested_artifact(attestation, path, opened.decoded, model);
  std::shared_ptr<const Artifact> reference;
  if (line.has("reference")) {
    LoadOptions options;
    options.architecture = line.text("architecture");
    NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_model(line.path("reference"), options));
    reference = std::make_shared<const Artifact>(std::move(loaded));
  }
  checks.push_back(check_sources(attestation, reference.get()));
  checks.push_back(recompute_figures(attestation.measured));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Check> figures,
                          check_figures(line, attestation, opened.artifact, reference));
  checks.insert(checks.end(), figures.begin(), figures.end());
  checks.push_back(check_attested_seal(attestation));
  return checks;
}

Status attest_beside(const fs::path& path, const LoadOptions& options,
                     const std::optional<AttestedMeasurement>& measured) {
  NIBBLE_ASSIGN_OR_RETURN(const Opened opened, open_both(path, options));
  NIBBLE_ASSIGN_OR_RETURN(Executor model, run(opened.artifact));
  Attestation attestation;
  NIBBLE_ASSIGN_OR_RETURN(attestation.outputs, attest_outputs(model));
  // What an earlier proof says of the same weights stays true.
  attest_tensors(opened.decoded, attestation);
  const Result<Attestation> earlier = read_attestation(path);
  if (earlier.ok() && earlier->sealed && earlier->weights == attestation.weights &&
      earlier->floats == attestation.floats) {
    attestation.measured = earlier->measured;
  }
  if (measured) {
    std::erase_if(attestation.measured, [&](const AttestedMeasurement& one) {
      return one.data.sha256 == measured->data.sha256 &&
             one.compute == measured->compute && one.kv == measured->kv;
    });
    attestation.measured.push_back(*measured);
  }
  return write_attestation(path, opened.format, *opened.artifact, &opened.decoded,
                           std::move(attestation));
}

}  // namespace nibble
