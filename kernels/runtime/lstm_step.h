// One lstm node, ready to run: its two matrices prepared for this machine's kernels.
//
// a[t] = W_ih x[t] + bias + W_hh h[t - 1],  h[t], c[t] of it (kernels/ops/lstm/lstm.h)
//
//   x  [n, T, I];  h, c [n, H], or null for zeros;  y [n, T + 1, H]: h[0] .. h[T - 1],
//   c[T - 1]
//
// The products read floats; the first reads codes where weight_ih has a static input
// scheme (runtime/integer_layer.h): float(acc) * m, then the bias. h stays a float.
// Results do not depend on the thread count.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/runtime/integer_layer.h"

namespace nibble {

class LstmStep {
 public:
  // kernels: receives the kernel rows of both matrices, by tensor name. integer: false
  // leaves x as it is. unsupported: another input scheme; not_found: a tensor. Names the
  // layer.
  static Result<LstmStep> create(const Artifact& artifact, const Node& node, bool integer,
                                 std::map<std::string, std::string>* kernels);
  void run(int64_t n, int64_t steps, const float* x, const float* h, const float* c,
           float* y);

 private:
  PreparedLinear over_x_, over_h_;
  std::unique_ptr<IntegerLayer> integer_x_;  // in place of over_x_
  std::vector<float> bias_;
  // Between calls only room.
  std::vector<float> gates_, sums_, h_, c_;
};

}  // namespace nibble
