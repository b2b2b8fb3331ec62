// nibble validate: proves an artifact, check by check; exit code 7 when one fails.
#include "export/validate/validate.h"

#include <cmath>
#include <iostream>

#include "export/assemble.h"
#include "export/exporter.h"
#include "kernels/base/json.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/sampler.h"
#include "recipes/cli/attestation.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/evaluate.h"
#include "recipes/eval/model_data.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kSampleSequences = 8, kSampleLength = 64, kSampleImages = 64;
constexpr uint64_t kSampleSeed = 7;

Result<Executor> open(Artifact artifact) {
  return Executor::create(std::make_shared<const Artifact>(std::move(artifact)),
                          ExecutorOptions{});
}

// Sequences that the reference itself writes: text of its own kind, whatever that is.
Result<std::vector<std::vector<int32_t>>> sample_text(Executor& reference) {
  const Program& program = reference.artifact().program;
  const int64_t length = std::min(kSampleLength, program.context_length);
  std::vector<std::vector<int32_t>> sequences;
  std::vector<float> logits(static_cast<size_t>(program.vocabulary));
  SplitMix64 random(kSampleSeed);
  for (int64_t s = 0; s < kSampleSequences; ++s) {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache, reference.make_cache(length));
    Sampler sampler(kSampleSeed + static_cast<uint64_t>(s), 1.0f, 1.0f);
    std::vector<int32_t> ids = {
        static_cast<int32_t>(random.below(static_cast<uint64_t>(program.vocabulary)))};
    while (static_cast<int64_t>(ids.size()) < length) {
      NIBBLE_RETURN_IF_ERROR(
          reference.forward(std::span<const int32_t>(ids).last(1), *cache,
                            MatrixView<float>(logits.data(), 1, program.vocabulary)));
      ids.push_back(sampler.next(logits));
    }
    sequences.push_back(std::move(ids));
  }
  return sequences;
}

struct Limits {
  double kl = 0, agreement = 0;
};

Check judged(double agreement, std::optional<double> kl, const Limits& limits,
             std::string detail) {
  const bool close = std::isfinite(agreement) && agreement >= limits.agreement &&
                     (!kl || (std::isfinite(*kl) && *kl <= limits.kl));
  if (!close)
    detail += cat("; allowed: agreement of at least ", limits.agreement,
                  kl ? cat(", KL of at most ", limits.kl) : "");
  return {"outputs", close ? Check::Outcome::passed : Check::Outcome::failed,
          std::move(detail)};
}

Result<Check> compare_text(const CommandLine& line, Executor& model, Executor& reference,
                           const Limits& limits) {
  std::vector<std::vector<int32_t>> sequences;
  std::string data = cat(kSampleSequences, " sequences that the reference wrote");
  if (line.has("text")) {
    TextOptions options;
    options.length = std::min<int64_t>(default_sequence_length(model.artifact()), 512);
    options.limit = 64;
    options.per_line = line.has("per-line");
    options.append_eos = line.has("append-eos");
    NIBBLE_ASSIGN_OR_RETURN(TextData text,
                            load_text_for(model.artifact(), line.path("text"), options));
    sequences = std::move(text.sequences);
    data = text.description;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(sequences, sample_text(reference));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const TextQuality quality,
      evaluate_text(model, &reference, sequences, make_counter("outputs", "sequences")));
  const double agreement = quality.top1_agreement.value_or(0);
  const double kl = quality.kl.value_or(0);
  return judged(agreement, kl, limits,
                cat("KL ", number_text(kl, 3), " nats a token, same best token ",
                    number_text(agreement * 100, 4), " %, on ", data));
}

// Random ids where no text is given: an encoder writes none itself. As near as --min-agreement.
Result<Check> compare_sentences(const CommandLine& line, Executor& model,
                                Executor& reference, const Limits& limits) {
  const Program& program = model.artifact().program;
  std::vector<std::vector<int32_t>> sentences;
  std::string data = cat(kSampleSequences, " sequences of random ids");
  if (line.has("text")) {
    TextOptions options;
    options.length = 0;  // the context
    options.limit = 64;
    NIBBLE_ASSIGN_OR_RETURN(
        TextData text, load_sentences_for(model.artifact(), line.path("text"), options));
    sentences = std::move(text.sequences);
    data = text.description;
  } else {
    SplitMix64 random(kSampleSeed);
    for (int64_t s = 0; s < kSampleSequences; ++s) {
      sentences.emplace_back();
      for (int64_t t = 0; t < std::min(kSampleLength, program.context_length); ++t) {
        sentences.back().push_back(
            static_cast<int32_t>(random.below(static_cast<uint64_t>(program.vocabulary))));
      }
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const EmbeddingQuality quality,
      evaluate_embeddings(model, reference, sentences, make_counter("outputs", "sentences")));
  return judged(quality.lowest_cosine, std::nullopt, limits,
                cat("embeddings' cosine ", number_text(quality.mean_cosine, 6), ", lowest ",
                    number_text(quality.lowest_cosine, 6), ", on ", data));
}

Result<Check> compare_images(const CommandLine& line, Executor& model,
                             Executor& reference, const Limits& limits) {
  if (!line.has("dataset")) {
    return Check{"outputs", Check::Outcome::skipped,
                 "an image model is compared on real images; give --dataset DIR"};
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const ImageSet images,
      load_images_for(model.artifact(), line.path("dataset"), Split::test, 1000));
  NIBBLE_ASSIGN_OR_RETURN(
      const ImageQuality quality,
      evaluate_images(model, &reference, images, make_counter("outputs", "images")));
  const double agreement = quality.argmax_agreement.value_or(0);
  return judged(
      agreement, std::nullopt, limits,
      cat("same class ", number_text(agreement * 100, 4), " %, accuracy ",
          number_text(quality.accuracy * 100, 4), " %, on ", images.description));
}

Result<Check> compare_outputs(const CommandLine& line, const Limits& limits) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact artifact,
                          load_model(line.path("ARTIFACT"), line.load_options()));
  LoadOptions options;
  options.architecture = line.text("architecture");
  NIBBLE_ASSIGN_OR_RETURN(Artifact float_model,
                          load_model(line.path("reference"), options));
  if (artifact.program.vocabulary != float_model.program.vocabulary) {
    return Check{
        "outputs", Check::Outcome::failed,
        cat("a reference with the artifact's vocabulary of ", artifact.program.vocabulary,
            " is required; found ", float_model.program.vocabulary)};
  }
  const bool text = artifact.program.is_language_model();
  NIBBLE_ASSIGN_OR_RETURN(Executor model, open(std::move(artifact)));
  NIBBLE_ASSIGN_OR_RETURN(Executor reference, open(std::move(float_model)));
  if (model.artifact().program.is_encoder()) {
    return compare_sentences(line, model, reference, limits);
  }
  return text ? compare_text(line, model, reference, limits)
              : compare_images(line, model, reference, limits);
}

// A nibble artifact, a GGUF, or a directory in another tool's format.
Result<ValidationReport> validate_directory(const CommandLine& line) {
  const std::filesystem::path path = line.path("ARTIFACT");
  const Result<const Exporter*> format = find_format(path);
  // A directory that names a tool nobody reads is refused; any other is an artifact without
  // its manifest.
  if (!format.ok() && format.status().message().rfind("[models]", 0) == 0)
    return format.status();
  const std::string_view name = format.ok() ? (*format)->name : "nibble";
  if (name == "nibble") return validate_artifact(path);
  if (name == "gguf") {
    // Read as a model, and its blocks once more by the format's own reader.
    return validate_read(load_model(path, line.load_options()), (*format)->read(path),
                         "sizes and offsets of every tensor hold");
  }
  const auto broken = [](const Status& status) {
    return ValidationReport{{{"files", Check::Outcome::failed, status.message()}}};
  };
  const Result<Artifact> artifact = load_model(path, line.load_options());
  if (!artifact.ok()) return broken(artifact.status());
  const Result<Decoded> decoded = (*format)->read(path);
  if (!decoded.ok()) return broken(decoded.status());
  if (!line.has("reference")) {
    return validate_checkpoint(*artifact, *decoded, (*format)->name);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact reference, load_model(line.path("reference"), {}));
  return validate_checkpoint(*artifact, *decoded, (*format)->name, &reference);
}

const char* outcome_name(Check::Outcome outcome) {
  switch (outcome) {
    case Check::Outcome::passed:
      return "passed";
    case Check::Outcome::failed:
      return "failed";
    case Check::Outcome::skipped:
      return "skipped";
  }
  return "skipped";
}

}  // namespace

Status run_validate_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "validate ARTIFACT [--reference MODEL]",
      "Reads an artifact back with a decoder of its own, compares every code and "
      "scale, runs its layers on\nevery kernel of this machine; with a reference, "
      "compares the outputs. Exit code 7 when a check fails.\n\nA directory that export "
      "wrote "
      "(compressed-tensors, gptq, awq, bitsandbytes, fp8,\n"
      "modelopt) is read and checked likewise, and what its format does not let be "
      "proven is "
      "said. With the\nartifact as --reference, every code and scale is held against the "
      "artifact's.\n\n--attestation re-checks proof.json: the "
      "checksums of files, codes and scales, the outputs on a fixed\ninput, that the "
      "figures "
      "follow from their values a sequence; with the data (--text, --dataset) and "
      "the\nfloat "
      "model (--reference) the figures themselves. Checksums are no signature: compare "
      "the "
      "SHA-256 of\nproof.json with one from a place that you trust.");
  line.positional("ARTIFACT");
  line.text("reference", "MODEL",
            "the float model, or of an export the artifact; outputs are compared");
  line.text("text", "FILE",
            "compare on this text (default: text that the reference writes)");
  line.flag("per-line", "take each line of the text alone");
  line.flag("append-eos", "with --per-line: a whole line ends with the tokenizer's EOS");
  line.text("dataset", "DIR", "compare on these images");
  line.flag("attestation", "re-check proof.json, which quantize and train write");
  line.flag("attest", "write proof.json when every check has passed");
  line.number("max-kl", "the outputs check fails above this, nats a token", 0.5);
  line.number("min-agreement", "and below this share of equal best tokens or classes, or cosine of embeddings",
              0.6);
  line.model_options();
  line.json();
  line.example(
      "nibble validate build/w4",
      "files, codes, scales, kernels");
  line.example(
      "nibble validate build/w4 --reference recipes/examples/stories --max-kl 0.2 --json",
      "the outputs as well, with a limit of your own");
  line.example(
      "nibble validate build/w4 --attestation --text build/heldout.txt --reference "
      "recipes/examples/stories",
      "everything that its proof.json says, the figures measured again");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  const std::filesystem::path directory = line.path("ARTIFACT");
  std::error_code ignored;
  if (!std::filesystem::exists(directory, ignored)) {
    return error(StatusCode::not_found, "[validate] ", directory.string(),
                 ": an artifact directory is required; found nothing; check the path");
  }

  NIBBLE_ASSIGN_OR_RETURN(ValidationReport report, validate_directory(line));
  // A damaged artifact has no outputs worth comparing.
  if (line.has("reference") && report.passed()) {
    NIBBLE_ASSIGN_OR_RETURN(
        Check check,
        compare_outputs(line, {line.number("max-kl"), line.number("min-agreement")}));
    report.checks.push_back(std::move(check));
  } else {
    const char* why =
        line.has("reference") ? "an earlier check failed" : "no --reference was given";
    report.checks.push_back({"outputs", Check::Outcome::skipped, why});
  }

  if (line.has("attestation")) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Check> attested,
                            check_attestation(line, report.passed()));
    report.checks.insert(report.checks.end(), attested.begin(), attested.end());
  }
  if (line.has("attest") && report.passed()) {
    NIBBLE_RETURN_IF_ERROR(attest_beside(directory, line.load_options(), std::nullopt));
  }

  const Check* failed = nullptr;
  Json checks = Json::array();
  std::vector<std::vector<std::string>> rows = {{"check", "outcome", "detail"}};
  for (const Check& check : report.checks) {
    if (check.outcome == Check::Outcome::failed && failed == nullptr) failed = &check;
    checks.push_back({{"name", check.name},
                      {"outcome", outcome_name(check.outcome)},
                      {"detail", check.detail}});
    rows.push_back({check.name, outcome_name(check.outcome), check.detail});
  }
  if (line.wants_json()) {
    const Json json = {{"artifact", line.text("ARTIFACT")},
                       {"passed", failed == nullptr},
                       {"checks", checks}};
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << table_text(rows);
  }
  if (failed == nullptr) return ok_status();
  return error(StatusCode::failed_precondition, "[validate] ", line.text("ARTIFACT"),
               ": check ", failed->name, " failed: ", failed->detail);
}

}  // namespace nibble
