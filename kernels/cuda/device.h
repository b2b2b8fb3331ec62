// What a CUDA kernel may call: the machine as nibble's kernels see it.
//
// A kernel is a struct with Params, kThreads and a static run(const Params&), written
// over the functions below alone. nvcc compiles it for the GPU (device_nvcc.h); any C++20
// compiler compiles it for the emulator of the tests (device_host.h), which runs the same
// source, thread by thread, on a machine without a GPU.
//
//   thread_index() block_x() block_y() block_z()   blocks are one-dimensional
//   sync_threads()            all threads of the block
//   shuffle, shuffle_xor      all 32 lanes of the warp, as are the mma functions
//   shared_memory()           the block's, as many bytes as the launch asked for
//   load4, load8, load16      aligned reads of what no thread of the grid writes
//   stream16                  the same, of what is read once: leaves the caches to others
//   load_fresh                a read that sees what other blocks wrote before a fence
//   copy_async16              16 aligned bytes to shared memory, there after
//                             copies_arrived() and sync_threads(); the bytes from `bytes`
//                             on become 0
//   lop3<LUT>, permute_bytes, dot4   PTX lop3.b32, prmt.b32, dp4a.s32.s32
//   f16x2_*, bf16x2_*         two numbers a word, the first in the low half
//   mma_f16, mma_bf16, mma_s8 mma.sync m16n8k16 and m16n8k32, row.col
//
// Fragments of a warp's mma (PTX ISA, "Matrix fragments for mma.m16n8k16" and k32), g =
// lane / 4, t = lane % 4; a, b and d are the lane's words:
//
//   f16   a[0] (row g,     k 2t, 2t+1)   a[2] (row g,     k 2t+8, 2t+9)
//         a[1] (row g + 8, k 2t, 2t+1)   a[3] (row g + 8, k 2t+8, 2t+9)
//         b[0] (k 2t, 2t+1, column g)    b[1] (k 2t+8, 2t+9, column g)
//   s8    a[0] (row g,     k 4t..4t+3)   a[2] (row g,     k 4t+16..4t+19)
//         a[1] (row g + 8, k 4t..4t+3)   a[3] (row g + 8, k 4t+16..4t+19)
//         b[0] (k 4t..4t+3, column g)    b[1] (k 4t+16..4t+19, column g)
//   d     d[0] (row g, column 2t)  d[1] (row g, column 2t+1)
//         d[2] (row g + 8, 2t)     d[3] (row g + 8, 2t+1)
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NIBBLE_DEVICE __device__ __forceinline__
#define NIBBLE_HOST_DEVICE __host__ __device__ __forceinline__
#define NIBBLE_UNROLL _Pragma("unroll")
#define NIBBLE_NO_UNROLL _Pragma("unroll 1")
#else
#define NIBBLE_DEVICE inline
#define NIBBLE_HOST_DEVICE inline
#define NIBBLE_UNROLL
#define NIBBLE_NO_UNROLL
#endif

namespace nibble::cuda {

struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

// What an array of 16-bit floats holds.
enum class Float16 : uint8_t { f16, bf16 };
// What a kernel writes.
enum class Output : uint8_t { f16, bf16, f32 };

}  // namespace nibble::cuda

#ifdef __CUDACC__
#include "kernels/cuda/device_nvcc.h"
#else
#include "kernels/cuda/device_host.h"
#endif

namespace nibble::cuda {

NIBBLE_DEVICE float as_float(uint32_t bits) { return float_of_word(bits); }

// Two 16-bit floats of a word as f32.
template <Float16 kType>
NIBBLE_DEVICE float low_float(uint32_t pair) {
  if constexpr (kType == Float16::f16) return f16_to_float(pair & 0xffff);
  return as_float(pair << 16);
}
template <Float16 kType>
NIBBLE_DEVICE float high_float(uint32_t pair) {
  if constexpr (kType == Float16::f16) return f16_to_float(pair >> 16);
  return as_float(pair & 0xffff0000u);
}
template <Float16 kType>
NIBBLE_DEVICE uint16_t float_to_16(float x) {
  if constexpr (kType == Float16::f16) return float_to_f16(x);
  return float_to_bf16(x);
}
template <Float16 kType>
NIBBLE_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == Float16::f16) {
    mma_f16(d, a, b0, b1);
  } else {
    mma_bf16(d, a, b0, b1);
  }
}

// y[at] = x in the output's type.
NIBBLE_DEVICE void store_output(void* y, int64_t at, Output type, float x) {
  if (type == Output::f32) {
    static_cast<float*>(y)[at] = x;
  } else if (type == Output::f16) {
    static_cast<uint16_t*>(y)[at] = float_to_f16(x);
  } else {
    static_cast<uint16_t*>(y)[at] = float_to_bf16(x);
  }
}

// Sums and maxima over the 32 lanes of a warp, in the same order in every lane.
NIBBLE_DEVICE float warp_sum(float x) {
  NIBBLE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
NIBBLE_DEVICE float warp_max(float x) {
  NIBBLE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x = larger(x, shuffle_xor(x, mask));
  return x;
}

}  // namespace nibble::cuda
