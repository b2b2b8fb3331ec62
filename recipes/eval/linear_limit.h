// Which instruction a linear row computes a number of tokens with: whose peak it is held
// to, and by how many of its operations.
//
//   seconds >= tokens rows cols operations / peak(row, threads)
//
//   regime      how the row goes about it (kernels/ops/linear/run.cpp):
//               "direct"     products straight from the codes, a few tokens
//               "digits"     likewise, float activations as four int8 digits
//               "panels"     vector products with panels, decoded where they are codes
//               "tiles"      tile products (AMX)
//               "reference"  the definition, which nothing is expected of
//   peak        the instruction's row of hardware/peaks.inc; null: a reference row
//   operations  of the instruction, for one weight and token: a product and a sum are two
//               of them, and digits take four of each
//
// The padding of rows, columns and tokens counts as nothing: what it costs is the
// kernel's own loss. Float activations are taken for such as have digits (numbers, not
// all tiny).
//
// Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>

#include "kernels/hardware/probe.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

struct LinearLimit {
  const char* regime = "reference";
  const PeakRow* peak = nullptr;
  double operations = 0;
};

// tokens >= 1.
LinearLimit linear_limit(const PreparedLinear& weight, int64_t tokens);
// The same of a weight that this row would prepare: kernel.can_run(scheme, cols) holds.
LinearLimit linear_limit(const LinearKernel& kernel, const QuantScheme& scheme,
                         int64_t cols, int64_t tokens, const LinearInput& input = {});

}  // namespace nibble
