// Matrix products of many rows by cuBLASLt: blas.cu or, in a build without cuBLASLt,
// no_blas.cpp, where every function says that there is none.
//
//   d[t, n] = sum_k x[t, k] w[n, k]
//
//   type   x, w            d
//   f16    f16             f16, or f32 sums
//   bf16   bf16            bf16, or f32 sums
//   s8     int8            int32 sums, exact; strides multiples of 16
//   e4m3   FP8             f32 sums; strides multiples of 16, compute capability 8.9 on
//
// unsupported: no cuBLASLt in this build, or no algorithm of it for the shape. internal:
// its own error, by number. Used from one thread at a time; the first product of a shape
// asks cuBLASLt for an algorithm, which later ones use again: the same bits in each run.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/base/status.h"

namespace nibble::cuda {

enum class ProductType : uint8_t { f16, bf16, s8, e4m3 };

struct ProductCall {
  ProductType type = ProductType::f16;
  bool sums = false;                   // d is int32 or f32
  int rows = 0, cols = 0, tokens = 0;  // n, k, t
  const void* w = nullptr;
  int64_t w_stride = 0;  // elements, as all
  const void* x = nullptr;
  int64_t x_stride = 0;
  void* d = nullptr;
  int64_t d_stride = 0;
};

class Blas {
 public:
  static Result<Blas> create();
  Blas();
  Blas(Blas&&) noexcept;
  Blas& operator=(Blas&&) noexcept;
  ~Blas();
  Status multiply(const ProductCall& call, void* stream);
  static bool is_there();  // in this build

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble::cuda
