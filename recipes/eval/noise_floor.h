// How far a model is from itself under a harmless change: what lies below is noise.
//
// The change: every float layer of the reference adds its inputs in reverse order
// (kernels/runtime/summation_order.h). The figures are those of evaluate.h, with the
// reference as it is as the reference. A quantized model whose figure is not above the
// floor's cannot be told from the float one by it.
#pragma once

#include "recipes/eval/evaluate.h"

namespace nibble {

inline constexpr const char* kHarmlessChange =
    "the reference with every float layer adding its inputs in reverse order";

// What a floor costs by default: predictions of text, images.
inline constexpr int64_t kFloorPredictions = 2048;
inline constexpr int64_t kFloorImages = 200;

struct TextNoise {
  double kl = 0, kl_p90 = 0, kl_p99 = 0;
  double perplexity_change = 0;                    // |fraction|
  double top1_disagreement = 0;                    // a fraction
  int64_t tokens = 0;                              // predictions it was measured on
  bool covers(const TextQuality& quality) const {  // is the quality's KL noise?
    return quality.kl && *quality.kl <= kl;
  }
};
// predictions: about so many, whole sequences from the first on; 0: all of them.
Result<TextNoise> measure_text_noise(Executor& reference,
                                     const std::vector<std::vector<int32_t>>& sequences,
                                     int64_t predictions,
                                     const EvaluationProgress& progress);

struct ImageNoise {
  double accuracy_change = 0;      // |difference|, a fraction
  double argmax_disagreement = 0;  // a fraction
  int64_t images = 0;
  bool covers(const ImageQuality& quality) const {
    return quality.argmax_agreement &&
           1 - *quality.argmax_agreement <= argmax_disagreement;
  }
};
// images_limit: the first so many; 0: all.
Result<ImageNoise> measure_image_noise(Executor& reference, const ImageSet& images,
                                       int64_t images_limit,
                                       const EvaluationProgress& progress);

}  // namespace nibble
