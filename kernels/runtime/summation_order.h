// A harmless change: every float linear and convolution adds its inputs in reverse order.
//
//   y[n] = sum_{k = K-1 .. 0} x[k] w[n, k]      in place of k = 0 .. K-1
//
// The same function in exact arithmetic, another rounding in f32: how far two such runs
// differ is the noise floor of every comparison with this model. The kernels stay as they
// are; a layer's columns (a convolution's input channels) are reversed once, its input at
// each run. Packed weights stay in order.
//
// Allocates. Safe to call from any thread.
#pragma once

#include <cstdint>

#include "kernels/ops/linear/linear.h"

namespace nibble {

// The columns of each row as runs of `run` (a kernel's height x width; 1), runs reversed.
// A packed weight comes back as it is.
LinearWeight with_reversed_columns(const LinearWeight& weight, int64_t run);

// rows of `columns` floats as runs of `run`, runs reversed.
void reverse_columns(const float* from, int64_t rows, int64_t columns, int64_t run,
                     float* to);

}  // namespace nibble
