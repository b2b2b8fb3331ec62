#include "kernels/ops/embedding/embedding.h"

namespace nibble {

Status embedding(std::span<const int32_t> ids, const LinearWeight& weight,
                 MatrixView<float> y) {
  if (y.rows != static_cast<int64_t>(ids.size()) || y.cols != weight.cols) {
    return error(StatusCode::invalid_argument, "[embedding] output must be [", ids.size(),
                 ", ", weight.cols, "]; found [", y.rows, ", ", y.cols, "]");
  }
  for (int64_t t = 0; t < y.rows; ++t) {
    const int32_t id = ids[static_cast<size_t>(t)];
    if (id < 0 || id >= weight.rows) {
      return error(StatusCode::out_of_range, "[embedding] position ", t,
                   ": a token id must be in [0, ", weight.rows, "); found ", id,
                   "; does the tokenizer belong to this model?");
    }
    NIBBLE_RETURN_IF_ERROR(
        weight_rows(weight, id, MatrixView<float>(y.row(t), 1, y.cols)));
  }
  return ok_status();
}

}  // namespace nibble
