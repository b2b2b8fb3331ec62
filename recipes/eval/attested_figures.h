// The figures of an attestation (export/validate/attestation.h): written from a
// measurement, recomputed from its own values a sequence, and measured again where the
// data is given.
//
// recompute  perplexity = exp(sum w nll / sum w), kl, top1_agreement,
// perplexity_increase,
//            accuracy, argmax_agreement, cosine and their intervals
//            (recipes/eval/bootstrap.h) must follow from `values`; kl_p90 and kl_p99 need
//            the data
// remeasure  |found - stated| <= max((high - low) / 20, |stated| / 1000) + 1e-7: other
// machines
//            add in another order, and a figure moved by a twentieth of its own interval
//            claims nothing else. The data must have the attested SHA-256
//
// Errors: those of loading data and of evaluate_text; a mismatch is a failed check that
// names the figure, both numbers and the allowed difference.
#pragma once

#include <filesystem>
#include <vector>

#include "export/validate/attestation.h"
#include "export/validate/validate.h"
#include "recipes/data/images.h"
#include "recipes/data/text.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/evaluate.h"

namespace nibble {

// SHA-256 over each sequence's length and ids, and where it begins to count; over pixels
// and labels.
std::string data_sha256(const std::vector<std::vector<int32_t>>& sequences,
                        const std::vector<int64_t>& counted_from = {});
std::string data_sha256(const ImageSet& images);

// file, options and description of what a measurement is made on; kind, SHA-256 and count
// come from the data.
AttestedData attested_data(const std::filesystem::path& file, const TextOptions& options,
                           const std::string& description);

AttestedMeasurement attest_figures(const TextQuality& quality);
AttestedMeasurement attest_figures(const EmbeddingQuality& quality);
AttestedMeasurement attest_figures(const ImageQuality& quality);

// Do the figures follow from the values a sequence?
Check recompute_figures(const std::vector<AttestedMeasurement>& measured);

// What is given to measure again: the models in float and as attested, and one path or
// none of each kind.
struct Remeasure {
  Executor* model = nullptr;
  Executor* reference = nullptr;  // may be null
  std::filesystem::path text, dataset;
  EvaluationProgress progress;
};
// One check a measurement that is on this kind of data, skipped with the reason
// otherwise.
Result<std::vector<Check>> remeasure_figures(
    const std::vector<AttestedMeasurement>& measured, const Remeasure& given);

}  // namespace nibble
