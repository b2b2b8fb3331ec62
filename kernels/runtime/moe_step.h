// One mixture-of-experts node, ready to run: the experts' layers prepared for this
// machine's kernels.
//
// y[t] = sum over the experts e that t goes to, in rising order, of
//        weight[t, e] * down_e(silu(gate_e(x[t])) * up_e(x[t]))
//
// x, y [tokens, hidden]; router logits [tokens, experts] (kernels/ops/moe). An expert
// sees its tokens as one matrix. Results do not depend on the thread count.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/runtime/executor.h"

namespace nibble {

class MoeStep {
 public:
  // kernels: receives the kernel row of every expert layer.
  // unsupported, not_found: names the layer.
  static Result<MoeStep> create(const Artifact& artifact, const Node& node,
                                const ExecutorOptions& options,
                                std::map<std::string, std::string>* kernels);
  void run(MatrixView<const float> x, MatrixView<const float> logits,
           MatrixView<float> y);
  // One expert's layer ("3.gate_proj") becomes that of `other`; what is returned, and must
  // not outlive the step, brings its own back.
  Result<std::function<void()>> exchange(const Artifact& other, const Node& node,
                                         const std::string& role,
                                         const ExecutorOptions& options);

 private:
  struct Expert {
    PreparedLinear gate, up, down;
  };
  std::vector<Expert> experts_;
  int64_t top_k_ = 0;
  bool normalize_ = false;
  // Between calls only room.
  std::vector<int32_t> chosen_;
  std::vector<std::pair<int64_t, float>> tokens_;  // and what an expert counts for them
  std::vector<float> weights_, rows_, gate_, up_, out_;
};

}  // namespace nibble
