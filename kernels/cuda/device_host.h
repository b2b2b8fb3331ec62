// device.h for the emulator: the same functions as plain C++.
//
// What concerns several threads (barriers, warps, copies on their way) is the emulator's
// (tests/kernels/cuda_emulator.cpp); arithmetic of one thread is here. A read that is not
// aligned to its size stops the emulation with a message, as it would stop a GPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/base/float_types.h"

namespace nibble::cuda {

int thread_index();
int block_x();
int block_y();
int block_z();
void sync_threads();
uint32_t shuffle(uint32_t x, int lane);
uint32_t shuffle_xor_word(uint32_t x, int mask);
uint8_t* shared_memory();
void copy_async16(void* shared, const void* global, int bytes);
void copies_arrived();
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
// Stops the emulation unless p is a multiple of `bytes`.
void must_be_aligned(const void* p, int bytes);

template <class T>
T aligned_read(const void* p) {
  must_be_aligned(p, sizeof(T));
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
inline uint32_t load4(const void* p) { return aligned_read<uint32_t>(p); }
inline Words2 load8(const void* p) { return aligned_read<Words2>(p); }
inline Words4 load16(const void* p) { return aligned_read<Words4>(p); }
inline Words4 stream16(const void* p) { return aligned_read<Words4>(p); }
inline uint32_t load_fresh(const uint32_t* p) { return *p; }
inline uint32_t atomic_add(uint32_t* p, uint32_t x) {
  const uint32_t old = *p;
  *p += x;
  return old;
}
inline void memory_fence() {}

inline float float_of_word(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t word_of_float(float x) { return std::bit_cast<uint32_t>(x); }
inline float shuffle_xor(float x, int mask) {
  return float_of_word(shuffle_xor_word(word_of_float(x), mask));
}

template <int kLut>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int index = 0; index < 8; ++index) {
    if ((kLut >> index & 1) == 0) continue;
    d |= (index & 4 ? a : ~a) & (index & 2 ? b : ~b) & (index & 1 ? c : ~c);
  }
  return d;
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (pick & 7))) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    d |= byte << (8 * i);
  }
  return d;
}
inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) {
    c += static_cast<int8_t>(a >> i & 255) * static_cast<int8_t>(b >> i & 255);
  }
  return c;
}

inline float f16_to_float(uint32_t bits) {
  return float_from_f16(static_cast<uint16_t>(bits));
}
inline uint16_t float_to_f16(float x) { return f16_from_float(x); }
inline uint16_t float_to_bf16(float x) { return bf16_from_float(x); }
// By way of double and f32: what the kernels compute so is exact in 16 bits, so nothing
// is rounded twice.
template <class Function>
uint32_t each_half(Function function) {
  return static_cast<uint32_t>(function(0)) | static_cast<uint32_t>(function(16)) << 16;
}
inline uint32_t f16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  return each_half([&](int at) {
    return f16_from_float(
        static_cast<float>(static_cast<double>(f16_to_float(a >> at & 0xffff)) *
                               f16_to_float(b >> at & 0xffff) +
                           f16_to_float(c >> at & 0xffff)));
  });
}
inline uint32_t f16x2_sub(uint32_t a, uint32_t b) {
  return f16x2_fma(a, 0x3c003c00u, b ^ 0x80008000u);
}
inline uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  const auto value = [](uint32_t word, int at) {
    return static_cast<double>(float_from_bf16(static_cast<uint16_t>(word >> at)));
  };
  return each_half([&](int at) {
    return bf16_from_float(
        static_cast<float>(value(a, at) * value(b, at) + value(c, at)));
  });
}

inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float quotient(float a, float b) { return a / b; }
inline float root(float x) { return std::sqrt(x); }
inline float nearest_integer(float x) { return std::nearbyint(x); }
inline float larger(float a, float b) { return std::fmax(a, b); }
inline float smaller(float a, float b) { return std::fmin(a, b); }
inline float magnitude(float x) { return std::fabs(x); }
inline float power_of_2(float x) { return std::exp2(x); }
inline float log_2(float x) { return std::log2(x); }

}  // namespace nibble::cuda
