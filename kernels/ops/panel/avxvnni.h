// The vector of AVX2 with AVX-VNNI: avx2.h's, with int8 products in one instruction.
//
// Included by x86_avxvnni.cpp files only.
#pragma once

#include "kernels/ops/panel/avx2.h"

namespace nibble::avxvnni {

struct V : avx2::V {
  static constexpr int kDwords = 1;
  static constexpr int kSums = 8;
  static constexpr int kDirectS8 = 4;
  // acc + sum of 4 products u * x in each lane; x is one step, the same for all lanes.
  // Assembler, because compilers may choose AVX-512's form, which such a CPU may lack.
  static I dot(I acc, I u, const int32_t* x) {
    const I value = _mm256_set1_epi32(*x);
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "x"(value));
    return acc;
  }
};

}  // namespace nibble::avxvnni
