#include "ptq/module/program_module.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/program/moves_codes.h"
#include "ptq/module/packed_linear.h"
#include "ptq/module/recompute.h"
#include "ptq/module/torch_ops.h"

namespace nibble {
namespace {

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, text));
}

// Module names may not hold dots.
std::string child_name(std::string name) {
  std::replace(name.begin(), name.end(), '.', '/');
  return name;
}

// Does every node that reads this tensor do so as a linear layer's weight?
bool only_linear(const Program& program, const std::string& tensor) {
  for (const Node& node : program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      if (name == tensor && (node.op != "linear" || role != "weight")) return false;
    }
  }
  return true;
}

}  // namespace

torch::Tensor to_torch(const Tensor& tensor) {
  if (tensor.is_float()) {
    const std::vector<float> values = value_or_throw(to_float(tensor));
    torch::Tensor result = at::empty(tensor.shape, at::kFloat);
    std::memcpy(result.mutable_data_ptr<float>(), values.data(),
                values.size() * sizeof(float));
    return result;
  }
  const std::vector<int32_t> values = value_or_throw(to_int32(tensor));
  torch::Tensor result = at::empty(tensor.shape, at::kLong);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

Tensor from_torch(const torch::Tensor& tensor) {
  const bool is_float = tensor.is_floating_point();
  const torch::Tensor plain =
      tensor.detach().to(is_float ? at::kFloat : at::kInt).contiguous().cpu();
  Tensor result;
  result.dtype = is_float ? DType::f32 : DType::i32;
  result.shape = plain.sizes().vec();
  result.bytes = Bytes::copy_of(plain.const_data_ptr(), plain.numel() * 4);
  return result;
}

ProgramModuleImpl::ProgramModuleImpl(const Artifact& artifact,
                                     PackedWeights packed_weights)
    : torch::nn::Module("ProgramModule"), program_(artifact.program) {
  for (const Node& node : program_.nodes) {
    if (find_torch_op(node.op) == nullptr) {
      fail(StatusCode::unsupported,
           cat("[program_module] ", node.name,
               ": an op of ptq/module/torch_ops.inc was required; found '", node.op,
               "'; add its row"));
    }
    for (const auto& [role, name] : node.parameters) {
      if (by_name_.count(name) || packed_.count(name)) continue;
      if (packed_weights == PackedWeights::stay && only_linear(program_, name)) {
        if (auto found = artifact.packed.find(name); found != artifact.packed.end()) {
          packed_[name] = std::make_shared<const PackedTensor>(found->second);
          continue;
        }
      }
      // Running statistics move with batch_norm's forward, not with the optimizer.
      const bool trainable = role != "running_mean" && role != "running_var";
      if (auto found = artifact.tensors.find(name); found != artifact.tensors.end()) {
        register_tensor(name, to_torch(found->second), trainable);
      } else if (auto packed = artifact.packed.find(name);
                 packed != artifact.packed.end()) {
        register_tensor(name, dequantized(packed->second), false);
      } else {
        fail(StatusCode::not_found,
             cat("[program_module] ", node.name, ": ", role, " '", name,
                 "' was required; the model has no such tensor; check the checkpoint"));
      }
    }
  }
  // Where a value is read for the last time, so that evaluation holds few of them at
  // once.
  dies_.resize(program_.nodes.size());
  std::set<std::string> seen;
  for (const ProgramValue& output : program_.outputs) seen.insert(output.name);
  for (size_t i = program_.nodes.size(); i-- > 0;) {
    const Node& node = program_.nodes[i];
    for (const auto* names : {&node.inputs, &node.outputs}) {
      for (const std::string& name : *names) {
        if (seen.insert(name).second) dies_[i].push_back(name);
      }
    }
  }
}

void ProgramModuleImpl::register_tensor(const std::string& name, torch::Tensor value,
                                        bool trainable) {
  torch::nn::Module* at = this;
  size_t begin = 0;
  for (size_t dot; (dot = name.find('.', begin)) != std::string::npos; begin = dot + 1) {
    const std::string part = name.substr(begin, dot - begin);
    auto children = at->named_children();
    if (auto* child = children.find(part)) {
      at = child->get();
    } else {
      at = at->register_module(part, std::make_shared<torch::nn::Module>(part)).get();
    }
  }
  const std::string leaf = name.substr(begin);
  by_name_[name] =
      trainable ? at->register_parameter(leaf, value) : at->register_buffer(leaf, value);
}

torch::Tensor ProgramModuleImpl::parameter(const std::string& tensor_name) const {
  auto found = by_name_.find(tensor_name);
  if (found == by_name_.end()) {
    fail(StatusCode::not_found,
         cat("[program_module] parameter: a tensor of the program was required; found '",
             tensor_name, "'; use the checkpoint's names"));
  }
  return found->second;
}

void ProgramModuleImpl::set_parameter(const std::string& tensor_name,
                                      const torch::Tensor& value) {
  torch::Tensor target = parameter(tensor_name);
  if (target.sizes() != value.sizes()) {
    fail(StatusCode::invalid_argument,
         cat("[program_module] ", tensor_name, ": shape ", target.sizes(),
             " was required; found ", value.sizes(), "; give the parameter's own shape"));
  }
  torch::NoGradGuard no_grad;
  target.copy_(value);
}

void ProgramModuleImpl::place(const char* folder,
                              std::map<std::string, FakeQuantize>& table,
                              const std::string& name, FakeQuantize quantizer) {
  std::shared_ptr<torch::nn::Module> home;
  auto children = named_children();
  if (auto* child = children.find(folder)) {
    home = *child;
  } else {
    home = register_module(folder, std::make_shared<torch::nn::Module>(folder));
  }
  const std::string leaf = child_name(name);
  if (table.erase(name)) home->unregister_module(leaf);
  if (quantizer) {
    quantizer->train(is_training());
    home->register_module(leaf, quantizer);
    table.emplace(name, quantizer);
  }
}

void ProgramModuleImpl::quantize_weight(const std::string& tensor_name,
                                        FakeQuantize quantizer) {
  parameter(tensor_name);  // throws when there is none
  place("weight_quantizers", weights_, tensor_name, std::move(quantizer));
}

void ProgramModuleImpl::quantize_value(const std::string& value, FakeQuantize quantizer) {
  bool known = program_.producer(value) != nullptr;
  for (const ProgramValue& input : program_.inputs) known |= input.name == value;
  if (!known) {
    fail(StatusCode::not_found, cat("[program_module] quantize_value: a value of the "
                                    "program was required; found '",
                                    value, "'; `nibble inspect` lists them"));
  }
  place("value_quantizers", values_, value, std::move(quantizer));
}

void ProgramModuleImpl::quantize_input(const std::string& node, FakeQuantize quantizer) {
  if (program_.find(node) == nullptr) {
    fail(StatusCode::not_found, cat("[program_module] quantize_input: a node of the "
                                    "program was required; found '",
                                    node, "'; `nibble inspect` lists them"));
  }
  place("input_quantizers", inputs_, node, std::move(quantizer));
}

void ProgramModuleImpl::round_bias(const std::string& node) {
  const Node* found = program_.find(node);
  if (found == nullptr || found->parameter("bias").empty()) {
    fail(StatusCode::not_found,
         cat("[program_module] round_bias: a node with a bias was required; found '",
             node, "'; `nibble inspect` lists them"));
  }
  rounded_biases_.insert(node);
}

void ProgramModuleImpl::set_recompute(bool on) {
  for (const Node& node : program_.nodes) {
    if (!on || node.op != "batch_norm") continue;
    fail(StatusCode::unsupported,
         cat("[program_module] ", node.name,
             ": a program without batch norms was required to run blocks again in the "
             "backward pass; found this one; fold them or set train.recompute=false"));
  }
  recompute_ = on;
}

void ProgramModuleImpl::set_tap(NodeTap tap) { tap_ = std::move(tap); }

std::map<std::string, Tensor> ProgramModuleImpl::tensors() const {
  std::map<std::string, Tensor> result;
  for (const auto& [name, value] : by_name_) result.emplace(name, from_torch(value));
  return result;
}

torch::Tensor ProgramModuleImpl::weight_of(const std::string& tensor_name, Pass& pass) {
  auto quantizer = weights_.find(tensor_name);
  if (quantizer == weights_.end()) return by_name_.at(tensor_name);
  torch::Tensor& weight = pass.weights[tensor_name];
  if (!weight.defined()) weight = quantizer->second->forward(by_name_.at(tensor_name));
  return weight;
}

torch::Tensor ProgramModuleImpl::value_as_read(const std::string& value,
                                               const torch::Tensor& x) {
  auto quantizer = values_.find(value);
  return quantizer == values_.end() ? x : quantizer->second->forward(x);
}

torch::Tensor ProgramModuleImpl::bias_of(const Node& node,
                                         const std::string& tensor_name) {
  // s_x: the layer's own input scheme, else its value's, found behind ops that move
  // codes.
  const FakeQuantize* input = nullptr;
  if (auto own = inputs_.find(node.name); own != inputs_.end()) input = &own->second;
  for (std::string value = node.inputs[0]; input == nullptr;) {
    if (auto found = values_.find(value); found != values_.end()) {
      input = &found->second;
      break;
    }
    const Node* producer = program_.producer(value);
    if (!producer || !moves_codes(*producer)) break;
    value = producer->inputs[0];
  }
  const std::string& weight = node.parameter("weight");
  const auto quantizer = weights_.find(weight);
  CodedMatrix levels;
  if (quantizer != weights_.end())
    levels = quantizer->second->levels(by_name_.at(weight));
  const int64_t channels = by_name_.at(tensor_name).numel();
  const int64_t scales = levels.scales.size() == 1 ? levels.scales[0].values.size() : 0;
  if (input == nullptr || (scales != 1 && scales != channels) ||
      !levels.offsets.empty()) {
    fail(StatusCode::failed_precondition,
         cat("[program_module] ", node.name,
             ": a static input scale and a symmetric weight with one scale "
             "a row or a tensor were required to round its bias; found none; quantize "
             "both"));
  }
  const torch::Tensor bias = by_name_.at(tensor_name);
  const torch::Tensor unit = at::tensor(levels.scales[0].values, at::kFloat)
                                 .mul((*input)->activation().scale)
                                 .to(bias.device());
  // Double, as integer_bias divides.
  const torch::Tensor counts =
      bias.detach().to(at::kDouble).div(unit.to(at::kDouble)).round();
  return bias + (counts.to(at::kFloat) * unit - bias).detach();
}

torch::Tensor ProgramModuleImpl::input_as_read(const std::string& name,
                                               const torch::Tensor& x) {
  // Channels last is the order that LibTorch's convolutions compute in: a fifth less time
  // a training step, and every later value follows.
  const bool images = x.dim() == 4;
  return value_as_read(name, images ? x.contiguous(at::MemoryFormat::ChannelsLast) : x);
}

torch::Tensor ProgramModuleImpl::run_node(const Node& node, Pass& pass) {
  std::vector<torch::Tensor> inputs;
  for (const std::string& name : node.inputs) {
    auto found = pass.values.find(name);
    if (found == pass.values.end()) {
      fail(StatusCode::invalid_argument,
           cat("[program_module] ", node.name, ": value '", name,
               "' was required; it was not given; pass every live input"));
    }
    inputs.push_back(found->second);
  }
  if (auto quantizer = inputs_.find(node.name); quantizer != inputs_.end()) {
    inputs[0] = quantizer->second->forward(inputs[0]);
  }
  TorchOpCall call{.node = node,
                   .inputs = inputs,
                   .parameters = {},
                   .training = is_training(),
                   .bf16_products = bf16_products_,
                   .packed = nullptr};
  for (const auto& [role, name] : node.parameters) {
    if (auto packed = packed_.find(name); packed != packed_.end()) {
      call.packed = packed->second;
      continue;
    }
    const bool rounded = role == "bias" && rounded_biases_.count(node.name) > 0;
    call.parameters[role] = rounded ? bias_of(node, name) : weight_of(name, pass);
  }
  // A quantizer without codes below 0 cuts them off itself, forward and backward: one
  // pass over memory less each way.
  const auto cut = values_.find(node.outputs[0]);
  const bool cuts = node.op == "relu" && !tap_ && cut != values_.end() &&
                    cut->second->cuts_below_zero();
  torch::Tensor output = cuts ? inputs[0] : find_torch_op(node.op)->run(call);
  if (tap_) tap_(node, inputs, output);
  output = value_as_read(node.outputs[0], output);
  pass.values[node.outputs[0]] = output;
  return output;
}

torch::Tensor ProgramModuleImpl::forward(const torch::Tensor& input) {
  Values values;
  const std::string& first = program_.inputs[0].name;
  values[first] = input_as_read(first, input);
  // Token types: 0, one sequence alone.
  for (size_t i = 1; i < program_.inputs.size(); ++i) {
    const std::string& name = program_.inputs[i].name;
    if (!program_.is_language_model() && program_.consumers(name).empty()) continue;
    if (!program_.is_language_model()) {
      fail(StatusCode::invalid_argument,
           cat("[program_module] input ", name,
               ": a net of one input was required; found ", program_.inputs.size(),
               " inputs; give them by name (forward_values)"));
    }
    values[name] = at::zeros_like(input);
  }
  return run_program(std::move(values)).at(program_.outputs[0].name);
}

ProgramModuleImpl::Values ProgramModuleImpl::forward_values(const Values& inputs) {
  Values values;
  for (const ProgramValue& input : program_.inputs) {
    const auto found = inputs.find(input.name);
    if (found != inputs.end())
      values[input.name] = input_as_read(input.name, found->second);
  }
  return run_program(std::move(values));
}

ProgramModuleImpl::Values ProgramModuleImpl::outputs_of(const Values& values) const {
  Values outputs;
  for (const ProgramValue& output : program_.outputs)
    outputs[output.name] = values.at(output.name);
  return outputs;
}

ProgramModuleImpl::Values ProgramModuleImpl::run_program(Values values) {
  if (recompute_ && torch::GradMode::is_enabled())
    return forward_by_blocks(std::move(values));
  Pass pass{.values = std::move(values), .weights = {}};
  for (size_t i = 0; i < program_.nodes.size(); ++i) {
    run_node(program_.nodes[i], pass);
    for (const std::string& name : dies_[i]) pass.values.erase(name);
  }
  return outputs_of(pass.values);
}

ProgramModuleImpl::Values ProgramModuleImpl::forward_by_blocks(Values values) {
  std::vector<int> blocks = {kFirstBlock};
  for (int i = 0; i < program_.block_count(); ++i) blocks.push_back(i);
  blocks.push_back(kLastBlock);
  for (const int block : blocks) {
    const BlockSlice part = slice(program_, block);
    Values live;
    for (const std::string& name : part.inputs) live[name] = values.at(name);
    Values made;
    if (block == kFirstBlock || block == kLastBlock) {
      Pass pass{.values = live, .weights = {}};
      for (const Node* node : part.nodes) run_node(*node, pass);
      for (const std::string& name : part.outputs) made[name] = pass.values.at(name);
    } else {
      made = run_again(block, live);
    }
    for (const auto& [name, value] : made) values[name] = value;
  }
  return outputs_of(values);
}

// The nodes of one block through recomputed(). Integers (ids) are no inputs of autograd.
ProgramModuleImpl::Values ProgramModuleImpl::run_again(int block, const Values& live) {
  const BlockSlice part = slice(program_, block);
  Values plain;
  std::vector<std::string> names;
  std::vector<torch::Tensor> inputs;
  for (const auto& [name, value] : live) {
    if (value.is_floating_point()) {
      names.push_back(name);
      inputs.push_back(value);
    } else {
      plain[name] = value;
    }
  }
  const auto run = [this, part, plain, names](const std::vector<torch::Tensor>& given) {
    Pass pass{.values = plain, .weights = {}};
    for (size_t i = 0; i < names.size(); ++i) pass.values[names[i]] = given[i];
    for (const Node* node : part.nodes) run_node(*node, pass);
    std::vector<torch::Tensor> outputs;
    for (const std::string& name : part.outputs) outputs.push_back(pass.values.at(name));
    return outputs;
  };
  const std::vector<torch::Tensor> outputs = recomputed(run, inputs);
  Values made;
  for (size_t i = 0; i < outputs.size(); ++i) made[part.outputs[i]] = outputs[i];
  return made;
}

std::map<std::string, torch::Tensor> ProgramModuleImpl::run_block(
    int block, const std::map<std::string, torch::Tensor>& live) {
  Pass pass{.values = live, .weights = {}};
  for (const ProgramValue& input : program_.inputs) {
    if (auto found = pass.values.find(input.name); found != pass.values.end()) {
      found->second = input_as_read(input.name, found->second);
    }
  }
  const BlockSlice part = slice(program_, block);
  for (const Node* node : part.nodes) run_node(*node, pass);
  std::map<std::string, torch::Tensor> result;
  for (const std::string& name : part.outputs) result[name] = pass.values.at(name);
  return result;
}

}  // namespace nibble
