// Which of ggml's block types holds a quantized matrix exactly, and the matrix as that
// type has it: the same floats, value for value.
//
//   q -> (type, codes and scales under type.scheme), dequantize of both equal bit for bit
//
// A scheme that is a block type's own is taken as it is. Else integer codes v = q - z
// under a scale that is a half go to the narrowest of Q4_0 (-8 .. 7), Q5_0 (-16 .. 15)
// and Q8_0 whose range holds every code of the scheme; codes with a minimum to Q4_1 or
// Q5_1; ternary and binary codes to Q4_0; E2M1 under powers of two to MXFP4; IQ4NL to
// IQ4_NL. A scale that governs more than a block is repeated.
//
// unsupported: the message says what GGUF lacks ("int4/g48@f16; GGUF has no block of
// 48"). Rows run in parallel.
#pragma once

#include "export/ggml/ggml_type.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct HeldMatrix {
  const GgmlType* type = nullptr;
  CodedMatrix q;
};
// q is not read again where its scheme is the type's own, but moved.
Result<HeldMatrix> hold_exactly(CodedMatrix q);

}  // namespace nibble
