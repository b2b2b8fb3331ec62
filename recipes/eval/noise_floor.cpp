#include "recipes/eval/noise_floor.h"

#include <cmath>

#include "recipes/data/images.h"

namespace nibble {
namespace {

Result<Executor> other_sums(const Executor& reference) {
  return Executor::create(reference.shared_artifact(), {.reversed_sums = true});
}

}  // namespace

Result<TextNoise> measure_text_noise(Executor& reference,
                                     const std::vector<std::vector<int32_t>>& sequences,
                                     int64_t predictions,
                                     const EvaluationProgress& progress) {
  std::vector<std::vector<int32_t>> part;
  int64_t taken = 0;
  for (const auto& sequence : sequences) {
    if (predictions > 0 && taken >= predictions) break;
    part.push_back(sequence);
    taken += static_cast<int64_t>(sequence.size()) - 1;
  }
  NIBBLE_ASSIGN_OR_RETURN(Executor changed, other_sums(reference));
  NIBBLE_ASSIGN_OR_RETURN(const TextQuality quality,
                          evaluate_text(changed, &reference, part, progress));
  TextNoise noise;
  noise.kl = *quality.kl;
  noise.kl_p90 = *quality.kl_p90;
  noise.kl_p99 = *quality.kl_p99;
  noise.perplexity_change = std::fabs(*quality.perplexity_increase);
  noise.top1_disagreement = 1 - *quality.top1_agreement;
  noise.tokens = quality.tokens;
  return noise;
}

Result<ImageNoise> measure_image_noise(Executor& reference, const ImageSet& images,
                                       int64_t images_limit,
                                       const EvaluationProgress& progress) {
  ImageSet part = images;
  if (images_limit > 0 && images_limit < part.count) {
    part.count = images_limit;
    part.labels.resize(static_cast<size_t>(images_limit));
  }
  NIBBLE_ASSIGN_OR_RETURN(Executor changed, other_sums(reference));
  NIBBLE_ASSIGN_OR_RETURN(const ImageQuality after,
                          evaluate_images(changed, &reference, part, progress));
  NIBBLE_ASSIGN_OR_RETURN(const ImageQuality before,
                          evaluate_images(reference, nullptr, part, {}));
  return ImageNoise{std::fabs(after.accuracy - before.accuracy),
                    1 - *after.argmax_agreement, after.images};
}

}  // namespace nibble
