// One node of a program, ready to run in float: what the executor's loops over decoders and
// images go through. Values live in the executor's slots, which are used again once nobody
// reads them.
//
// not_found: a tensor that the artifact lacks. unsupported: what no kernel runs. The message
// names the node or tensor. Allocates. Safe to call from any thread, for different steps.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/integer_layer.h"
#include "kernels/runtime/lstm_step.h"
#include "kernels/runtime/moe_step.h"

namespace nibble {

struct Step {
  const Node* node = nullptr;
  std::vector<int> inputs;  // slots; -1: token ids
  int output = -1;
  int64_t features = 0;               // of the output: its size over batch (and sequence)
  std::vector<int64_t> input_features;  // concat: the same of each input
  std::vector<int64_t> image_shape;   // of the first input, [channels, height, width]
  std::vector<int64_t> output_shape;  // without the batch
  std::vector<int64_t> full_shape;    // of the first input, with the batch
  LinearWeight table;                 // embedding
  PreparedLinear linear;
  std::unique_ptr<PreparedConv2d> conv;
  std::unique_ptr<IntegerLayer> integer;  // linear, conv2d: its input is in static codes
  std::unique_ptr<MoeStep> moe;
  std::unique_ptr<LstmStep> lstm;
  std::vector<float> weight, bias, shift;  // norms; batch norm: y = x * weight + bias
  AttentionShape attention;
  size_t state = 0;
  size_t rope = 0;        // of the executor's tables
  bool reversed = false;  // its weight's columns are; so must its input's be
  std::optional<ActivationScheme> rounded;  // a linear layer's input is rounded to it
};

// Fills the step (node, image_shape given) with what its op needs. ropes: tables by shape,
// to which a new one is added. kernels: receives the kernel row of every layer.
Status prepare_step(const Artifact& artifact, const ExecutorOptions& options, Step& step,
                    std::vector<RopeTable>& ropes,
                    std::map<std::string, std::string>* kernels);

// The role in which the node owns the tensor as a layer's weight; "" where it does not.
std::string role_of(const Node& node, const std::string& tensor);

// The step's weight of this role becomes that of `other`, a model of the same program, with
// whose input scheme it runs. Returns what brings the step's own back; it must run while the
// step stands where it is. unsupported: a convolution.
Result<std::function<void()>> exchange_weight(const Artifact& other,
                                              const ExecutorOptions& options,
                                              const std::string& role, Step& step);

}  // namespace nibble
