// A quantized matrix with one code a byte: what quantization makes, packing stores, a
// format's reader returns, and the arithmetic between floats and codes.
//
//   quantize   codes[r, c] = clamp(round(x[r, c] / s) + z)      round half to even;
//   divides:
//                                                               x * (1 / s) differs on
//                                                               ties
//              codes[r, c] = clamp(round((x[r, c] - m) / s))    minimum
//              codes[r, c] = nearest element to x[r, c] / s     minifloat and table
//              elements
//   dequantize x[r, c] = s * (q - z)  |  s * q + m  |  s * value(code)     in float, in
//   the
//              order written; s = ((v0 * v1) * v2 ...) + shift in float
//
//   x       [rows, cols] float
//   codes   [rows * cols] row-major, one a byte: an integer code's value (two's
//   complement for
//           intN, plain for uintN; int4 -8 is 0xf8), or the bit pattern of a minifloat or
//           table code (ternary 0 1 2 = -1 0 1, binary 0 1 = -1 1).
//           8 bits at most: f16, bf16 and f32 matrices are plain Tensors, not
//           CodedMatrix.
//   level   values [level.rows * level.cols]: the decoded numbers of its element, exactly
//           representable in it (choose_scales rounds them), before outer levels multiply
//
// Everything runs over fixed parts of the matrix in parallel: equal results at any thread
// count.
//
// invalid_argument: shapes disagree (the message names both) or the scheme is plain
// float. out_of_range: x is not finite, or a scale is not finite and positive (not 0,
// where the scheme has_signed_scales; names row and column). Safe to call from any thread
// on different objects.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/matrix_view.h"
#include "kernels/base/status.h"
#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct CodedLevel {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;
  float shift = 0;  // added to every value, only where the scheme's level is `shifted`
  bool operator==(const CodedLevel&) const = default;
};

struct CodedMatrix {
  QuantScheme scheme;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint8_t> codes;
  std::vector<CodedLevel> scales;   // one a level of scheme.scales
  std::vector<CodedLevel> offsets;  // one a level of scheme.offsets
  bool operator==(const CodedMatrix&) const = default;
};

// How scales are found from data alone.
struct ScaleRule {
  enum class Kind : uint8_t {
    absmax,  // the largest magnitude (or range, with an offset) is just representable
    mse,     // the shrink factor of absmax in {1, 1 - step, ...} with the least squared
             // error
  };
  Kind kind = Kind::absmax;
  double mse_lowest = 0.5;  // smallest shrink factor tried
  int mse_steps = 50;       // how many factors between 1 and mse_lowest
  double mse_norm = 2.0;    // the error's exponent
  // Where the scheme has_signed_scales: scales of both signs, whichever serves the
  // block's longer side (absmax) or loses less (mse).
  bool full_range = false;
};

// Scale and offset levels for x; result.codes is empty. importance: empty, or [cols]
// weights of the squared error (rule mse). Every level is rounded to its element before
// anything is coded with it, and no scale is ever 0: a block of zeros gets scale 1 under
// one level, the smallest its element can hold under several.
//   integer, no offset  s = max(max(x) / highest, min(x) / lowest): int4 keeps -8; narrow
//   and
//                       unsigned fall out of the same formula
//   zero_point          s = (max(x,0) - min(x,0)) / (highest - lowest),
//                       z = round(lowest - min(x,0) / s), clamped to the codes
//   minimum             s = (max(x) - min(x)) / (highest - lowest), m = min(x) - s *
//   lowest;
//                       an unsigned minimum (ggml's) reads min(x,0) and max(x,0)
//   minifloat, table    s = max|x| / highest
//   e8m0, one level     s = 2^(floor(log2 max|x|) - floor(log2 highest)), OCP MX v1.0
//   sec. 6.3;
//                       for a table the next power of two that is not below max|x|
//   several levels      an outer value is the largest inner one of its block / the
//   largest the
//                       inner element should hold (integer its highest, e4m3 448, table
//                       1);
//                       "+o": shift = mean of the innermost values (their minimum where
//                       the element is unsigned), subtracted first
// out_of_range: a scale too large for its element (names element, value, row and column).
Result<CodedMatrix> choose_scales(MatrixView<const float> x, const QuantScheme& scheme,
                                  const ScaleRule& rule,
                                  std::span<const float> importance = {});

// Fills q.codes from x and q's levels.
Status quantize(MatrixView<const float> x, CodedMatrix& q);
Status dequantize(const CodedMatrix& q, MatrixView<float> x);

// The scale and the offset that govern each element, expanded: [rows, cols] floats. For
// methods (GPTQ, LSQ) and tests; kernels read the levels.
std::vector<float> expanded_scales(const CodedMatrix& q);
std::vector<float> expanded_offsets(const CodedMatrix& q);  // zeros when there is none

// One element: the code byte nearest to x (already divided by the scale; integers:
// rounded half to even and clamped to [lowest, highest] of the scheme), and the value of
// a code byte.
uint8_t code_of(const QuantScheme& scheme, float x);
float value_of(Element element, uint8_t code);
// x rounded to the nearest value of the element (as scales are), e.g. to f16 or e8m0.
float round_to_element(Element element, float x);

}  // namespace nibble
