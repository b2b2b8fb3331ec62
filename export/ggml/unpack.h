// Codes and scales of ggml's blocks: the inverse of pack_ggml, written apart from it, so
// that what it reads proves what was written.
//
// data_loss: the bytes are not rows * type.row_bytes(cols), or a block holds what stands
// for no number: a scale that is not finite, a code without a meaning (names row and
// column). Rows are read in parallel.
#pragma once

#include <cstddef>
#include <span>

#include "export/ggml/ggml_type.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

Result<CodedMatrix> unpack_ggml(const GgmlType& type, int64_t rows, int64_t cols,
                                std::span<const std::byte> bytes);

}  // namespace nibble
