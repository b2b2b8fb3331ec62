// Some of the rows that a layer's weight multiplies, where a method needs them and not
// their second moments alone: what follows the layer is not linear.
//
//   inputs        f32 [n, in]   what the layer reads in the net as it is quantized so far
//   float_inputs  f32 [n, in]   what it reads in the same places of the float net;
//                               inputs again where that is not followed
//
// Rows are drawn without return from each call's, in proportion to its share of the data,
// and shuffled at the end: any stretch of them is a sample. The same for the same calls
// and seed; ptq/calibration/sharded_rows.h draws them over several processes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/base/splitmix64.h"

namespace nibble {

class RowSample {
 public:
  // limit: how many rows are kept of all data together, within one a call.
  explicit RowSample(int64_t limit, uint64_t seed = 1) : limit_(limit), random_{seed} {}

  // rows, float_rows: f32 [tokens, in], float_rows undefined: the same as rows; share: of
  // all data, in (0, 1].
  void add(const at::Tensor& rows, const at::Tensor& float_rows, double share);
  // Rows that were drawn elsewhere: all of them.
  void append(const at::Tensor& rows, const at::Tensor& float_rows);
  // After the last add, one of these: the rows as they were drawn, or in a random order.
  void join();
  void shuffle();

  const at::Tensor& inputs() const { return inputs_; }
  const at::Tensor& float_inputs() const { return float_inputs_; }

 private:
  int64_t limit_;
  SplitMix64 random_;
  std::vector<at::Tensor> parts_, float_parts_;
  at::Tensor inputs_, float_inputs_;
};

}  // namespace nibble
