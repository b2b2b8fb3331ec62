#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/rope/rope_isa.h"

namespace nibble::avx512vnni {
namespace {

// Of a vector of pairs (a, b).
struct Pairs {
  static V::F exchanged(V::F x) { return _mm512_permute_ps(x, 0b10110001); }
  static V::F first_negated(V::F x) {
    return _mm512_xor_ps(
        x, _mm512_castsi512_ps(_mm512_set1_epi64(int64_t{0x80000000})));
  }
  // 8 numbers, each for both of a pair.
  static V::F each_twice(const float* p) {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
        _mm512_castps256_ps512(_mm256_loadu_ps(p)));
  }
};

}  // namespace
#include "kernels/ops/rope/rope_vector.inc"
}  // namespace nibble::avx512vnni
