#include "ptq/methods/inverse_factor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>

#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Columns of a block and rows of a panel: products of this size run at speed, and what is
// done to a block itself is little beside them.
constexpr int64_t kBlock = 128;

int64_t blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

// V of one block, upper, by the factor of the reversed block: P A P = L L^T gives V = P L P.
// Undefined: not positive definite.
at::Tensor upper_factor(const at::Tensor& block) {
  // Its lower triangle may be anything: the upper one counts.
  const at::Tensor symmetric = block.triu() + block.triu(1).t();
  const auto [lower, info] = at::linalg_cholesky_ex(symmetric.flip({0, 1}));
  return info.item<int>() != 0 ? at::Tensor() : lower.flip({0, 1}).contiguous();
}

}  // namespace

bool inverse_factor(at::Tensor& a) {
  const OneThread one_thread;
  const int64_t n = a.size(0);
  const auto part = [&a](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    return a.narrow(0, row, rows).narrow(1, column, columns);
  };
  // V, from the last columns to the first; V_JJ is needed as its inverse only.
  for (int64_t block = blocks(n); block-- > 0;) {
    const int64_t j = block * kBlock, columns = std::min(kBlock, n - j);
    const int64_t k = j + columns, behind = n - k;
    const at::Tensor own = part(j, columns, j, columns);
    const at::Tensor done = behind > 0 ? part(j, columns, k, behind) : at::Tensor();
    if (behind > 0) own.sub_(at::mm(done, done.t()));
    const at::Tensor v = upper_factor(own);
    if (!v.defined()) return false;
    const at::Tensor inverse =
        at::linalg_solve_triangular(v, at::eye(columns, v.options()), /*upper=*/true);
    own.copy_(inverse);
    in_parallel(blocks(j), [&](int64_t panel) {
      const int64_t row = panel * kBlock, rows = std::min(kBlock, j - row);
      at::Tensor x = part(row, rows, j, columns);
      if (behind > 0) x.sub_(at::mm(part(row, rows, k, behind), done.t()));
      x.copy_(at::mm(x, inverse.t()));
    });
  }
  // U, from the first columns to the last: U_IJ = -U_II' V_I'J V_JJ^-1.
  std::atomic<bool> finite{true};
  for (int64_t block = 0; block < blocks(n); ++block) {
    const int64_t j = block * kBlock, columns = std::min(kBlock, n - j);
    const at::Tensor own = part(j, columns, j, columns);
    if (j > 0) {
      const at::Tensor right = at::mm(part(0, j, j, columns), own).neg_();
      in_parallel(blocks(j), [&](int64_t panel) {
        const int64_t row = panel * kBlock, rows = std::min(kBlock, j - row);
        const at::Tensor x =
            at::mm(part(row, rows, row, j - row), right.narrow(0, row, j - row));
        if (!at::isfinite(x).all().item<bool>()) finite = false;
        part(row, rows, j, columns).copy_(x);
        part(j, columns, row, rows).zero_();
      });
    }
    if (!at::isfinite(own).all().item<bool>()) finite = false;
  }
  return finite;
}

}  // namespace nibble
