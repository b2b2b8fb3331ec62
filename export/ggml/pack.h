// The bytes of ggml's blocks from codes and scales, and a matrix's scheme as a block type
// that holds it exactly.
//
//   pack_ggml   [rows, cols] codes under type.scheme -> rows * type.row_bytes(cols) bytes
//   unpack_ggml (export/ggml/unpack.h) is written apart from this, and undoes it
//
// invalid_argument: the matrix's scheme is not type.scheme, the columns are not whole
// blocks, or a scale is not one of its element's values. pack_ggml allocates nothing;
// rows are packed in parallel.
#pragma once

#include <cstddef>

#include "export/ggml/ggml_type.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// out: as many bytes as said above.
Status pack_ggml(const GgmlType& type, const CodedMatrix& q, std::byte* out);

}  // namespace nibble
