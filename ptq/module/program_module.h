// A Program as a torch::nn::Module: parameters and buffers under the checkpoint's names, one
// forward for calibration and training, with places for fake quantizers and taps.
//
// forward: ids int64 [batch, sequence] -> logits [batch, sequence, vocabulary], or images f32
// [batch, channels, height, width] -> logits [batch, classes]. f32 parameters.
// Throws nibble::Error. One thread at a time, except run_block in eval without taps.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "kernels/artifact/artifact.h"
#include "ptq/module/fake_quantize.h"

namespace nibble {

class ProgramModuleImpl : public torch::nn::Module {
 public:
  // Tensors (and packed weights, dequantized, without gradient) of the artifact's program.
  // A weight shared by two nodes is one parameter.
  explicit ProgramModuleImpl(const Artifact& artifact);

  torch::Tensor forward(const torch::Tensor& input);

  // Runs the nodes of one block (or pseudo-block) on its live values; returns its live outputs.
  std::map<std::string, torch::Tensor> run_block(int block,
                                                 const std::map<std::string, torch::Tensor>& live);

  const Program& program() const { return program_; }
  torch::Tensor parameter(const std::string& tensor_name) const;  // by checkpoint name; throws
  void set_parameter(const std::string& tensor_name, const torch::Tensor& value);  // copies data

  // Fake quantizers: of a weight (by tensor name), of a value (by value name), of one layer's
  // input (by node name; applied to what that consumer reads). nullptr removes.
  void quantize_weight(const std::string& tensor_name, FakeQuantize quantizer);
  void quantize_value(const std::string& value, FakeQuantize quantizer);
  void quantize_input(const std::string& node, FakeQuantize quantizer);
  const std::map<std::string, FakeQuantize>& weight_quantizers() const { return weights_; }
  const std::map<std::string, FakeQuantize>& value_quantizers() const { return values_; }
  const std::map<std::string, FakeQuantize>& input_quantizers() const { return inputs_; }

  // Called with every node's inputs before it runs / output after it ran. Empty removes.
  using NodeTap = std::function<void(const Node&, const std::vector<torch::Tensor>& inputs,
                                     const torch::Tensor& output)>;
  void set_tap(NodeTap tap);

  // The parameters and buffers as the artifact's tensors (f32), by checkpoint name.
  std::map<std::string, Tensor> tensors() const;

 private:
  torch::Tensor run_node(const Node& node, const std::vector<torch::Tensor>& inputs);

  Program program_;
  std::map<std::string, torch::Tensor> by_name_;
  std::map<std::string, FakeQuantize> weights_, values_, inputs_;
  NodeTap tap_;
};
TORCH_MODULE(ProgramModule);

torch::Tensor to_torch(const Tensor& tensor);    // a copy, f32 for float dtypes, int64 for ints
Tensor from_torch(const torch::Tensor& tensor);  // f32 or int32

}  // namespace nibble
