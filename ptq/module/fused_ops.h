// Ops of a decoder that are one pass over memory forward and one backward, where a chain
// of torch ops would make five.
//
//   rms_norm  y = x * r * w, r = 1 / sqrt(mean(x^2) + epsilon).  x [.., D], w [D]
//             dx = r * (dy * w - x * r^2 * mean(dy * w * x)),  dw = sum over rows of dy *
//             x * r
//   rope      pairs (a, b) of a head at position t turn by t * f[i] (ops/rope/rope.h):
//             a' = a cos - b sin, b' = b cos + a sin.  x [.., T, heads * head_dim];
//             backward turns the other way
//   hadamard  blocks of the last axis by Sylvester's matrix (ops/hadamard/hadamard.h);
//             backward is the same again
//
// Contiguous or not; float32. The sums are in a fixed order whatever the thread count.
// Safe to call from any thread.
#pragma once

#include <torch/types.h>

#include <vector>

namespace nibble {

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight,
                       double epsilon);
torch::Tensor rope(const torch::Tensor& x, const std::vector<double>& frequencies,
                   bool interleaved);
torch::Tensor hadamard(const torch::Tensor& x, int64_t block);

// The same of torch's ops, for any device: what the above do where x is not on the CPU.
namespace composed {
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight,
                       double epsilon);
torch::Tensor rope(const torch::Tensor& x, const std::vector<double>& frequencies,
                   bool interleaved);
torch::Tensor hadamard(const torch::Tensor& x, int64_t block);
}  // namespace composed

}  // namespace nibble
