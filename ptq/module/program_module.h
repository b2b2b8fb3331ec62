// A Program as a torch::nn::Module: parameters and buffers under the checkpoint's names,
// one forward for calibration and training, with places for fake quantizers and taps.
//
// forward: ids int64 [batch, sequence] -> logits [batch, sequence, vocabulary] or an
// encoder's states or embeddings (token types 0; sequences of one length, no padding), or
// images f32 [batch, channels, height, width] -> logits [batch, classes]. f32 parameters.
//
// What a layer reads: the value, through the value's fake quantizer, then through the
// layer's own input quantizer. Its weight goes through the weight's. Norms are never
// touched; a bias is where round_bias asks for what the integer path does
// (kernels/runtime/integer_node.h), straight through:
//   bias'[c] = rint(bias[c] / m[c]) * m[c],   m[c] = s_x * s_w[c]
// batch_norm follows train() and eval(): batch statistics and running ones (momentum
// 0.1).
//
// Throws nibble::Error: not_found (a tensor that the program names is missing, or a name
// that is no tensor, value or node of it), unsupported (an op without a row in
// torch_ops.inc), invalid_argument (an input value is missing). Allocates as torch does.
// One thread at a time, except run_block in eval without gradients and taps.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "ptq/error.h"
#include "ptq/module/fake_quantize.h"

namespace nibble {

// What becomes of an artifact's packed weights. stay: those that only linear layers read
// are made floats while they are used (ptq/module/packed_linear.h), and are no
// parameters.
enum class PackedWeights : uint8_t { become_floats, stay };

class ProgramModuleImpl : public torch::nn::Module {
 public:
  // Tensors (and packed weights, without gradient) of the artifact's program. A weight
  // shared by two nodes is one parameter.
  explicit ProgramModuleImpl(const Artifact& artifact,
                             PackedWeights packed = PackedWeights::become_floats);

  // A net of one input that is read, and its first output; a language model's ids.
  torch::Tensor forward(const torch::Tensor& input);
  // Any net over values: f32 by input name, in the inputs' shapes and with one batch ->
  // every output by name. Inputs that no node reads may be absent.
  std::map<std::string, torch::Tensor> forward_values(
      const std::map<std::string, torch::Tensor>& inputs);

  // Runs the nodes of one block (or pseudo-block) on its live values; returns its live
  // outputs. A program input among the live values passes its value quantizer here, as in
  // forward.
  std::map<std::string, torch::Tensor> run_block(
      int block, const std::map<std::string, torch::Tensor>& live);

  const Program& program() const { return program_; }
  torch::Tensor parameter(
      const std::string& tensor_name) const;  // by checkpoint name; throws
  void set_parameter(const std::string& tensor_name,
                     const torch::Tensor& value);  // copies data

  // Fake quantizers: of a weight (by tensor name), of a value (by value name), of one
  // layer's input (by node name; applied to what that consumer reads first). nullptr
  // removes.
  // They are submodules weight_quantizers.*, value_quantizers.*, input_quantizers.* (dots
  // as slashes).
  void quantize_weight(const std::string& tensor_name, FakeQuantize quantizer);
  void quantize_value(const std::string& value, FakeQuantize quantizer);
  void quantize_input(const std::string& node, FakeQuantize quantizer);
  // The node has a static input scale and a weight with one scale a row or a tensor.
  // failed_precondition otherwise, when it runs.
  void round_bias(const std::string& node);
  const std::map<std::string, FakeQuantize>& weight_quantizers() const {
    return weights_;
  }
  const std::map<std::string, FakeQuantize>& value_quantizers() const { return values_; }
  const std::map<std::string, FakeQuantize>& input_quantizers() const { return inputs_; }

  // The operands of linear layers' and convolutions' products rounded to bf16 (and what
  // convolutions give), sums and everything else in f32: about twice as fast where the
  // CPU has bf16 products.
  void set_bf16_products(bool on) { bf16_products_ = on; }

  // Blocks keep their inputs alone for the backward pass and run again in it
  // (ptq/module/recompute.h): the same gradients. unsupported: the program has batch
  // norms, whose running statistics would move twice.
  void set_recompute(bool on);

  // Called after every node with the inputs as the node read them (quantizers applied)
  // and its output as it made it (before the value's quantizer). Empty removes.
  using NodeTap =
      std::function<void(const Node&, const std::vector<torch::Tensor>& inputs,
                         const torch::Tensor& output)>;
  void set_tap(NodeTap tap);

  // The parameters and buffers as the artifact's tensors (f32), by checkpoint name.
  std::map<std::string, Tensor> tensors() const;

 private:
  using Values = std::map<std::string, torch::Tensor>;
  // A weight as the layers read it, quantized once a pass however many nodes share it.
  struct Pass {
    Values values;
    Values weights;
  };
  torch::Tensor run_node(const Node& node, Pass& pass);
  Values run_program(Values values);
  Values outputs_of(const Values& values) const;
  Values forward_by_blocks(Values values);
  Values run_again(int block, const Values& live);
  torch::Tensor weight_of(const std::string& tensor_name, Pass& pass);
  torch::Tensor bias_of(const Node& node, const std::string& tensor_name);
  torch::Tensor input_as_read(const std::string& name, const torch::Tensor& x);
  torch::Tensor value_as_read(const std::string& value, const torch::Tensor& x);
  void register_tensor(const std::string& name, torch::Tensor value, bool trainable);
  void place(const char* folder, std::map<std::string, FakeQuantize>& table,
             const std::string& name, FakeQuantize quantizer);

  Program program_;
  std::vector<std::vector<std::string>>
      dies_;  // per node: values that nobody reads after it
  std::map<std::string, torch::Tensor> by_name_;
  std::map<std::string, std::shared_ptr<const PackedTensor>> packed_;  // that stay so
  std::map<std::string, FakeQuantize> weights_, values_, inputs_;
  std::set<std::string> rounded_biases_;  // by node name
  bool bf16_products_ = false;
  bool recompute_ = false;
  NodeTap tap_;
};
TORCH_MODULE(ProgramModule);

torch::Tensor to_torch(
    const Tensor& tensor);  // a copy, f32 for float dtypes, int64 for ints
Tensor from_torch(
    const torch::Tensor& tensor);  // a copy, f32 for float dtypes, int32 for ints

}  // namespace nibble
