#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/rope/rope_isa.h"

namespace nibble::avx2 {
namespace {

// Of a vector of pairs (a, b).
struct Pairs {
  static V::F exchanged(V::F x) { return _mm256_permute_ps(x, 0b10110001); }
  static V::F first_negated(V::F x) {
    return _mm256_xor_ps(x, _mm256_setr_ps(-0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f, 0));
  }
  // 4 numbers, each for both of a pair.
  static V::F each_twice(const float* p) {
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  }
};

}  // namespace
#include "kernels/ops/rope/rope_vector.inc"
}  // namespace nibble::avx2
