#include "ptq/calibration/value_stream.h"

#include <ATen/ATen.h>

#include <limits>

#include "ptq/error.h"
#include "ptq/module/torch_ops.h"
#include "ptq/one_thread.h"

namespace nibble {

at::Tensor run_node(const Node& node, const StreamValues& values,
                    const StreamValues& parameters, const InputRounding& rounding) {
  std::vector<at::Tensor> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const at::Tensor& x = values.at(node.inputs[i]);
    inputs.push_back(rounding ? rounding(node, i, x) : x);
  }
  TorchOpCall call{.node = node, .inputs = inputs, .parameters = {}, .training = false};
  for (const auto& [role, name] : node.parameters)
    call.parameters[role] = parameters.at(name);
  const TorchOp* op = find_torch_op(node.op);
  if (op == nullptr) {
    throw Error(error(StatusCode::unsupported, "[calibrate] ", node.name, ": an op of ",
                      "ptq/module/torch_ops.inc was required; found ", node.op));
  }
  return op->run(call);
}

ValueStream::ValueStream(const Program& program, std::vector<Values> samples, Load load,
                         const std::string& device, std::set<std::string> keep,
                         InputRounding rounding)
    : program_(program),
      samples_(std::move(samples)),
      load_(std::move(load)),
      device_(device),
      rounding_(rounding_on(device_, std::move(rounding))) {
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    for (const std::string& name : node.outputs) last_reader_[name] = i;
    for (const std::string& name : node.inputs) last_reader_[name] = i;
    for (const auto& [role, name] : node.parameters) last_parameter_reader_[name] = i;
  }
  for (const std::string& name : keep) {
    last_reader_[name] = std::numeric_limits<size_t>::max();
  }
}

void ValueStream::load_parameters(size_t begin, size_t end) {
  std::erase_if(parameters_, [&](const auto& entry) {
    return last_parameter_reader_[entry.first] < begin;
  });
  for (size_t i = begin; i < end; ++i) {
    for (const auto& [role, name] : program_.nodes[i].parameters) {
      if (!parameters_.count(name)) parameters_[name] = load_(name).to(device_);
    }
  }
}

void ValueStream::run(size_t begin, size_t end, int64_t first, int64_t last) {
  load_parameters(begin, end);
  in_parallel(last - first, [&](int64_t i) {
    Values& values = samples_[static_cast<size_t>(first + i)];
    if (begin == end || values.empty()) return;
    const at::Device home = values.begin()->second.device();
    for (size_t n = begin; n < end; ++n) {
      const Node& node = program_.nodes[n];
      for (const std::string& name : node.inputs) {
        at::Tensor& value = values.at(name);
        value = value.to(device_);
      }
      values[node.outputs.at(0)] = run_node(node, values, parameters_, rounding_);
      for (const std::string& name : node.inputs) {
        if (last_reader_.at(name) <= n) values.erase(name);
      }
    }
    if (home == device_) return;
    for (auto& [name, value] : values) value = value.to(home);
  });
}

const at::Tensor& ValueStream::value(int64_t sample, const std::string& name) const {
  return samples_[static_cast<size_t>(sample)].at(name);
}

}  // namespace nibble
