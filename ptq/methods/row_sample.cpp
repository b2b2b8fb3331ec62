#include "ptq/methods/row_sample.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

// The first `count` of a random order of [0, total), i64.
at::Tensor drawn(int64_t count, int64_t total, SplitMix64& random) {
  std::vector<int64_t> order(static_cast<size_t>(total));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    const auto j =
        i + static_cast<int64_t>(random.below(static_cast<uint64_t>(total - i)));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  order.resize(static_cast<size_t>(count));
  return at::tensor(order);
}

}  // namespace

void RowSample::add(const at::Tensor& rows, const at::Tensor& float_rows, double share) {
  const auto wanted =
      static_cast<int64_t>(std::ceil(static_cast<double>(limit_) * share));
  const int64_t total = rows.size(0);
  const at::Tensor index = drawn(std::min(wanted, total), total, random_);
  const auto taken = [&index](const at::Tensor& x) {
    return x.index_select(0, index.to(x.device())).cpu();
  };
  append(taken(rows), float_rows.defined() ? taken(float_rows) : at::Tensor());
}

void RowSample::append(const at::Tensor& rows, const at::Tensor& float_rows) {
  parts_.push_back(rows);
  if (float_rows.defined()) float_parts_.push_back(float_rows);
}

void RowSample::join() {
  if (parts_.empty()) return;
  inputs_ = at::cat(parts_);
  parts_.clear();
  float_inputs_ = float_parts_.empty() ? inputs_ : at::cat(float_parts_);
  float_parts_.clear();
}

void RowSample::shuffle() {
  join();
  const at::Tensor index = drawn(inputs_.size(0), inputs_.size(0), random_);
  const bool one = float_inputs_.is_same(inputs_);
  inputs_ = inputs_.index_select(0, index);
  float_inputs_ = one ? inputs_ : float_inputs_.index_select(0, index);
}

}  // namespace nibble
