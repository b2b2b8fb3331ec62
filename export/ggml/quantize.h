// Floats to ggml's block types by ggml's own rules: the scales and codes that its
// reference makes of the same floats, so that files are equal byte for byte.
//
//   x           [rows, cols], cols whole blocks of the type
//   importance  empty, or [cols] weights of the squared error (the mean square of each
//               input): the types of 2 to 6 bits use it, the others do not
//   result      codes and levels under type.scheme
//
// The rules are searches for scales over float sums in the order of the elements; they
// are not nibble's own (choose_scales) and scales may come out negative, or 0 in a block
// of zeros. IQ4_NL is the searched form (ggml_quantize_chunk's).
//
// invalid_argument: cols are not whole blocks, or importance has not cols weights.
// out_of_range: x is not finite, or a scale does not fit f16 (names row and column).
// Rows run in parallel: equal results at any thread count.
#pragma once

#include <span>

#include "export/ggml/ggml_type.h"
#include "kernels/base/matrix_view.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

Result<CodedMatrix> quantize_ggml(const GgmlType& type, MatrixView<const float> x,
                                  std::span<const float> importance = {});

}  // namespace nibble
