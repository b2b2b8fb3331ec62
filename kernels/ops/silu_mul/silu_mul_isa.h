// The vector versions of the Llama MLP's gate, an instruction set each
// (ops/silu_mul/silu_mul.h).
#pragma once

#include <cstdint>

namespace nibble {

namespace avx2 {
void silu_mul(const float* gate, const float* up, int64_t n, float* y);
}
namespace avx512vnni {
void silu_mul(const float* gate, const float* up, int64_t n, float* y);
}

}  // namespace nibble
