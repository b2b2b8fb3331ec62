// The vector versions of the rotation of one position's heads, an instruction set each
// (ops/rope/rope.h).
#pragma once

#include <cstdint>

namespace nibble {

namespace avx2 {
void rope(float* x, int64_t heads, int64_t half, const float* cosines, const float* sines,
          bool interleaved);
}
namespace avx512vnni {
void rope(float* x, int64_t heads, int64_t half, const float* cosines, const float* sines,
          bool interleaved);
}

}  // namespace nibble
