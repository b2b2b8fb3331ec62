// The vector versions of GELU, an instruction set each (ops/gelu/gelu.h).
#pragma once

#include <cstdint>

namespace nibble {

namespace avx2 {
void gelu(const float* x, int64_t n, float* y);
void gelu_tanh(const float* x, int64_t n, float* y);
}  // namespace avx2
namespace avx512vnni {
void gelu(const float* x, int64_t n, float* y);
void gelu_tanh(const float* x, int64_t n, float* y);
}  // namespace avx512vnni

}  // namespace nibble
