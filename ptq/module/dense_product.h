// f32 products of LibTorch tensors by kernels/ops/gemm: LibTorch's own library runs AMD
// processors at half of their vector width.
//
//   dense_mm      y = a b              a [m, k], b [k, n]
//   dense_linear  y = x w^T + bias     x [..., in], w [out, in], bias [out] or undefined
//
// With their gradients, by the same products. Tensors that are not f32 on the CPU go to
// LibTorch. The same bits at any thread count, with and without gradients; errors are
// LibTorch's (c10::Error: shapes that do not agree).
#pragma once

#include <ATen/core/Tensor.h>

namespace nibble {

at::Tensor dense_mm(const at::Tensor& a, const at::Tensor& b);
at::Tensor dense_linear(const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias = {});

}  // namespace nibble
