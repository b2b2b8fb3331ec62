// Every element's values and codes, and one row of the arithmetic between floats and
// codes: what coded_matrix.h and packing/packed_tensor.h share.
//
//   quantize_row    codes[c] from x[c], scale[c], offset[c]   (formulas in
//   coded_matrix.h) dequantize_row  x[c] from codes[c], scale[c], offset[c]
//
//   x, scale, offset  [n] float; offset is not read where the scheme has none
//   codes             [n], one a byte
//
// Preconditions, not checked here: x finite, scale finite and positive, zero points
// integral and within the codes. Allocates nothing. Safe to call from any thread.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

// values[code] of an element of at most 8 bits; NaN for a code that stands for no number.
const std::array<float, 256>& value_table(Element element);

// The number that a stored bit pattern of element_info(element).bits bits stands for, and
// back. bits_of_value is exact only for numbers that the element holds.
float value_of_bits(Element element, uint32_t bits);
uint32_t bits_of_value(Element element, float value);

// The smallest positive value of an element (f32, bf16: 2^-100, so that a product of
// levels does not underflow).
float smallest_positive(Element element);

void quantize_row(const QuantScheme& scheme, const float* x, const float* scale,
                  const float* offset, uint8_t* codes, int64_t n);
void dequantize_row(const QuantScheme& scheme, const uint8_t* codes, const float* scale,
                    const float* offset, float* x, int64_t n);

}  // namespace nibble
