// Half-precision scales, one a row or a group of columns, with zero points of the codes'
// own bits: what GPTQ and AWQ hold of a weight.
//
// unsupported: another scheme, a scale that is no half (names tensor, row and group, and
// what to quantize with).
#pragma once

#include <string>

#include "kernels/base/tensor.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {

// Columns of a group; -1: the whole row.
Result<int64_t> half_scale_group(const char* format, const std::string& tensor,
                                 const PackedTensor& packed);

// F16 [groups, rows]
Tensor half_scales(const CodedMatrix& q);

}  // namespace nibble
