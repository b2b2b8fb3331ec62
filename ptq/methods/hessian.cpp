#include "ptq/methods/hessian.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "ptq/module/dense_product.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Rows of H made by one product. Small enough that half of H is never computed, large
// enough for a matrix product to run at speed.
constexpr int64_t kPanel = 192;

int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

}  // namespace

Hessian::Hessian(int64_t columns, at::Device device)
    : columns_(columns),
      upper_(at::zeros({columns, columns}, at::device(device).dtype(at::kDouble))) {}

void Hessian::to_cpu() {
  upper_ = upper_.cpu();
  if (drift_.defined()) drift_ = drift_.cpu();
}

at::Tensor Hessian::drift_sums(bool drift) {
  if (drift && !drift_.defined()) drift_ = at::zeros_like(upper_);
  return drift_;
}

void Hessian::accumulate(const at::Tensor& rows, const at::Tensor& float_rows) {
  const OneThread one_thread;
  const at::Tensor inputs = rows.to(upper_.device());
  const at::Tensor float_inputs =
      float_rows.defined() ? float_rows.to(upper_.device()) : float_rows;
  tokens_ += inputs.size(0);
  whole_ = false;
  derived_ = nullptr;
  at::Tensor difference;
  if (float_inputs.defined()) {
    difference = float_inputs - inputs;
    drift_sums(true);
  }
  in_parallel(panels(columns_), [&](int64_t panel) {
    const int64_t begin = panel * kPanel;
    const int64_t rows = std::min(kPanel, columns_ - begin);
    const at::Tensor left = inputs.narrow(1, begin, rows).t();
    upper_.narrow(0, begin, rows)
        .narrow(1, begin, columns_ - begin)
        .add_(dense_mm(left, inputs.narrow(1, begin, columns_ - begin)));
    if (difference.defined()) {
      drift_.narrow(0, begin, rows)
          .add_(dense_mm(difference.narrow(1, begin, rows).t(), inputs));
    }
  });
}

void Hessian::add(const Hessian& other) {
  tokens_ += other.tokens_;
  whole_ = false;
  derived_ = nullptr;
  const bool drift = other.drift_.defined();
  drift_sums(drift);
  in_parallel(panels(columns_), [&](int64_t panel) {
    const int64_t begin = panel * kPanel;
    const int64_t rows = std::min(kPanel, columns_ - begin);
    const auto right = [&](const at::Tensor& x) {
      return x.narrow(0, begin, rows).narrow(1, begin, columns_ - begin);
    };
    right(upper_).add_(right(other.upper_));
    if (drift) drift_.narrow(0, begin, rows).add_(other.drift_.narrow(0, begin, rows));
  });
}

at::Tensor Hessian::matrix() const {
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  if (whole_) return upper_;
  double* h = upper_.data_ptr<double>();
  in_parallel(panels(columns_), [&](int64_t panel) {
    const int64_t end = std::min(columns_, (panel + 1) * kPanel);
    // Tiles of the transpose, so that neither side is read a cache line a value.
    constexpr int64_t kTile = 32;
    for (int64_t from = 0; from < end; from += kTile) {
      for (int64_t i = panel * kPanel; i < end; ++i) {
        for (int64_t j = from; j < std::min(from + kTile, i); ++j)
          h[i * columns_ + j] = h[j * columns_ + i];
      }
    }
  });
  whole_ = true;
  return upper_;
}

}  // namespace nibble
