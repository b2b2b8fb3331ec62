// Sentence embeddings of an encoder, and how near two models' are.
//
//   embedding  the program's output; of an encoder that makes hidden states, their mean
//              over the sentence's tokens
//   cosine     a . b / (|a| |b|) of one sentence's two embeddings, in double
//   ci95       of the mean cosine, by bootstrap over sentences (eval/evaluate.h)
//
// Sentences run alone, one after another, so that no figure depends on a batch. Errors:
// the executor's; out_of_range: an embedding that is not finite (names the sentence);
// invalid_argument: no encoder, nothing to embed, or embeddings of different widths.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"
#include "recipes/eval/evaluate.h"

namespace nibble {

struct EmbeddingQuality {
  double mean_cosine = 0, lowest_cosine = 0;
  Interval mean_ci95;
  int64_t sentences = 0, tokens = 0;
  int64_t lowest = 0;  // the sentence whose cosine is the lowest
  std::vector<double> cosines;
};

// [sentences, embedding width], row by row.
Result<std::vector<float>> embed_sentences(
    Executor& model, const std::vector<std::vector<int32_t>>& sentences,
    const std::function<void(int64_t done, int64_t total)>& progress);

Result<EmbeddingQuality> evaluate_embeddings(
    Executor& model, Executor& reference,
    const std::vector<std::vector<int32_t>>& sentences,
    const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace nibble
