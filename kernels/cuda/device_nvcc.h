// device.h on a GPU: each function is one instruction of PTX, or a few.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace nibble::cuda {

NIBBLE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
NIBBLE_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
NIBBLE_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
NIBBLE_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
NIBBLE_DEVICE void sync_threads() { __syncthreads(); }
NIBBLE_DEVICE uint32_t shuffle(uint32_t x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
NIBBLE_DEVICE float shuffle_xor(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
NIBBLE_DEVICE uint8_t* shared_memory() {
  extern __shared__ __align__(16) uint8_t nibble_shared[];
  return nibble_shared;
}

NIBBLE_DEVICE uint32_t load4(const void* p) {
  return __ldg(static_cast<const unsigned int*>(p));
}
NIBBLE_DEVICE Words2 load8(const void* p) {
  const uint2 v = __ldg(static_cast<const uint2*>(p));
  return {v.x, v.y};
}
NIBBLE_DEVICE Words4 load16(const void* p) {
  const uint4 v = __ldg(static_cast<const uint4*>(p));
  return {v.x, v.y, v.z, v.w};
}
NIBBLE_DEVICE Words4 stream16(const void* p) {
  uint64_t policy;  // not volatile: made once a kernel
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  Words4 v;
  asm volatile(
      "ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "l"(policy));
  return v;
}
NIBBLE_DEVICE uint32_t load_fresh(const uint32_t* p) { return __ldcg(p); }
NIBBLE_DEVICE void copy_async16(void* shared, const void* global, int bytes) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(bytes)
               : "memory");
}
NIBBLE_DEVICE void copies_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }
NIBBLE_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
NIBBLE_DEVICE void memory_fence() { __threadfence(); }

template <int kLut>
NIBBLE_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kLut));
  return d;
}
NIBBLE_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
NIBBLE_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

NIBBLE_DEVICE uint32_t f16x2_sub(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
NIBBLE_DEVICE uint32_t f16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
NIBBLE_DEVICE uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
NIBBLE_DEVICE float f16_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
NIBBLE_DEVICE uint16_t float_to_f16(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
NIBBLE_DEVICE uint16_t float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
NIBBLE_DEVICE float float_of_word(uint32_t bits) { return __uint_as_float(bits); }
NIBBLE_DEVICE uint32_t word_of_float(float x) { return __float_as_uint(x); }

NIBBLE_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
NIBBLE_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
NIBBLE_DEVICE float root(float x) { return __fsqrt_rn(x); }
NIBBLE_DEVICE float nearest_integer(float x) { return rintf(x); }
NIBBLE_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
NIBBLE_DEVICE float smaller(float a, float b) { return fminf(a, b); }
NIBBLE_DEVICE float magnitude(float x) { return fabsf(x); }
// 2^x and log2(x), within 2 units in the last place for the arguments of softmax.
NIBBLE_DEVICE float power_of_2(float x) { return exp2f(x); }
NIBBLE_DEVICE float log_2(float x) { return log2f(x); }

NIBBLE_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
NIBBLE_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
NIBBLE_DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                          uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace nibble::cuda
