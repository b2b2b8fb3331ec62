#include "recipes/eval/embeddings.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/cancel.h"
#include "kernels/ops/pool/pool.h"

namespace nibble {
namespace {

Status check_encoder(const Executor& model) {
  if (model.embedding_features() > 0) return ok_status();
  return error(StatusCode::invalid_argument, "[embed] ",
               model.artifact().program.architecture,
               ": an encoder is required; this model makes logits; give a BERT");
}

double cosine(const float* a, const float* b, int64_t width) {
  double product = 0, aa = 0, bb = 0;
  for (int64_t d = 0; d < width; ++d) {
    product += static_cast<double>(a[d]) * b[d];
    aa += static_cast<double>(a[d]) * a[d];
    bb += static_cast<double>(b[d]) * b[d];
  }
  // Two vectors without length are the same; one has no direction to compare.
  if (aa == 0 || bb == 0) return aa == bb ? 1 : 0;
  return product / std::sqrt(aa * bb);
}

}  // namespace

Result<std::vector<float>> embed_sentences(
    Executor& model, const std::vector<std::vector<int32_t>>& sentences,
    const std::function<void(int64_t, int64_t)>& progress) {
  NIBBLE_RETURN_IF_ERROR(check_encoder(model));
  if (sentences.empty()) {
    return error(StatusCode::invalid_argument,
                 "[embed] sentences: at least one was required; found none; give a text");
  }
  const int64_t width = model.embedding_features();
  const auto total = static_cast<int64_t>(sentences.size());
  std::vector<float> embeddings(static_cast<size_t>(total * width));
  std::vector<float> states;
  for (int64_t s = 0; s < total; ++s) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("embed"));
    const std::vector<int32_t>& ids = sentences[static_cast<size_t>(s)];
    const int64_t length[] = {static_cast<int64_t>(ids.size())};
    const int64_t rows = model.embedding_rows(length);
    states.resize(static_cast<size_t>(rows * width));
    const MatrixView<float> output(states.data(), rows, width);
    NIBBLE_RETURN_IF_ERROR(model.encode(ids, length, {}, output));
    float* embedding = embeddings.data() + s * width;
    mean_pool(output, embedding);
    for (int64_t d = 0; d < width; ++d) {
      if (!std::isfinite(embedding[d])) {
        return error(StatusCode::out_of_range, "[embed] sentence ", s,
                     ": a finite embedding was required; found NaN or infinity; the "
                     "weights or scales of the model are wrong, run nibble validate");
      }
    }
    if (progress) progress(s + 1, total);
  }
  return embeddings;
}

Result<EmbeddingQuality> evaluate_embeddings(
    Executor& model, Executor& reference,
    const std::vector<std::vector<int32_t>>& sentences,
    const std::function<void(int64_t, int64_t)>& progress) {
  NIBBLE_RETURN_IF_ERROR(check_encoder(model));
  NIBBLE_RETURN_IF_ERROR(check_encoder(reference));
  const int64_t width = model.embedding_features();
  if (width != reference.embedding_features()) {
    return error(StatusCode::invalid_argument,
                 "[embed] reference: embeddings of this model's width of ", width,
                 " were required; found ", reference.embedding_features(),
                 "; give the model that this one was made from");
  }
  const int64_t total = static_cast<int64_t>(sentences.size());
  const auto half = [&](int64_t before) {
    return [&progress, total, before](int64_t done, int64_t) {
      if (progress) progress((before + done) / 2, total);
    };
  };
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> ours,
                          embed_sentences(model, sentences, half(0)));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> theirs,
                          embed_sentences(reference, sentences, half(total)));
  EmbeddingQuality quality;
  quality.sentences = total;
  for (int64_t s = 0; s < total; ++s) {
    quality.tokens += static_cast<int64_t>(sentences[static_cast<size_t>(s)].size());
    quality.cosines.push_back(
        cosine(ours.data() + s * width, theirs.data() + s * width, width));
    quality.mean_cosine += quality.cosines.back() / static_cast<double>(total);
  }
  const auto lowest = std::min_element(quality.cosines.begin(), quality.cosines.end());
  quality.lowest_cosine = *lowest;
  quality.lowest = lowest - quality.cosines.begin();
  quality.mean_ci95 =
      bootstrap_ci95(quality.cosines, std::vector<double>(quality.cosines.size(), 1.0));
  return quality;
}

}  // namespace nibble
