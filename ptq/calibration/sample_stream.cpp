#include "ptq/calibration/sample_stream.h"

#include <ATen/ATen.h>

#include "ptq/error.h"
#include "ptq/module/torch_ops.h"
#include "ptq/one_thread.h"

namespace nibble {

SampleStream::SampleStream(const Program& program, std::vector<Values> samples, Load load,
                           Rows rows, SpillFile* spill, InputRounding rounding)
    : program_(program),
      load_(std::move(load)),
      rows_(std::move(rows)),
      spill_(spill),
      rounding_(std::move(rounding)) {
  for (Values& values : samples) {
    Sample& sample = samples_.emplace_back();
    for (auto& [name, tensor] : values) sample[name].tensor = std::move(tensor);
  }
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    for (const std::string& name : node.outputs) last_reader_[name] = i;
    for (const std::string& name : node.inputs) last_reader_[name] = i;
    for (const auto& [role, name] : node.parameters) {
      if (node.op != "embedding") last_parameter_reader_[name] = i;
    }
  }
}

void SampleStream::load_parameters(size_t begin, size_t end) {
  std::erase_if(parameters_, [&](const auto& entry) {
    return last_parameter_reader_[entry.first] < begin;
  });
  for (size_t i = begin; i < end; ++i) {
    if (program_.nodes[i].op == "embedding") continue;
    for (const auto& [role, name] : program_.nodes[i].parameters) {
      if (!parameters_.count(name)) parameters_[name] = load_(name);
    }
  }
}

at::Tensor SampleStream::run_node(const Node& node, const Sample& sample) const {
  std::vector<at::Tensor> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const at::Tensor x = in_memory(sample.at(node.inputs[i]));
    inputs.push_back(rounding_ ? rounding_(node, i, x) : x);
  }
  if (node.op == "embedding") return rows_(node.parameter("weight"), inputs[0]);
  TorchOpCall call{.node = node, .inputs = inputs, .parameters = {}, .training = false};
  for (const auto& [role, name] : node.parameters)
    call.parameters[role] = parameters_.at(name);
  const TorchOp* op = find_torch_op(node.op);
  if (op == nullptr) {
    throw Error(error(StatusCode::unsupported, "[calibrate] ", node.name, ": an op of ",
                      "ptq/module/torch_ops.inc was required; found ", node.op));
  }
  return op->run(call);
}

void SampleStream::run(size_t begin, size_t end, int64_t first, int64_t last) {
  load_parameters(begin, end);
  in_parallel(last - first, [&](int64_t i) {
    Sample& sample = samples_[static_cast<size_t>(first + i)];
    for (size_t n = begin; n < end; ++n) {
      const Node& node = program_.nodes[n];
      // A value that several nodes of the stretch read comes from disk once.
      for (const std::string& name : node.inputs) {
        Held& held = sample.at(name);
        held.tensor = in_memory(held);
      }
      sample[node.outputs.at(0)].tensor = run_node(node, sample);
      for (const std::string& name : node.inputs) {
        if (last_reader_.at(name) <= n) forget(sample, name);
      }
    }
  });
}

at::Tensor SampleStream::value(int64_t sample, const std::string& name) const {
  return in_memory(samples_[static_cast<size_t>(sample)].at(name));
}

SampleStream::Values SampleStream::values(int64_t sample) const {
  Values values;
  for (const auto& [name, held] : samples_[static_cast<size_t>(sample)])
    values[name] = in_memory(held);
  return values;
}

std::unique_ptr<SampleStream> SampleStream::fork() const {
  auto copy = std::make_unique<SampleStream>(program_, std::vector<Values>(), load_,
                                             rows_, spill_, rounding_);
  for (const Sample& sample : samples_) {
    Sample& mine = copy->samples_.emplace_back();
    for (const auto& [name, held] : sample) {
      Held& own = mine[name] = held;
      if (held.tensor.defined()) {
        own.place = -1;
        continue;
      }
      at::Tensor waiting =
          at::empty(held.like.sizes(), held.like.options().device(at::kCPU));
      const auto bytes = static_cast<int64_t>(waiting.nbytes());
      spill_->read(waiting.mutable_data_ptr(), bytes, held.place);
      own.place = spill_->write(waiting.const_data_ptr(), bytes);
    }
  }
  return copy;
}

void SampleStream::drop() {
  for (Sample& sample : samples_) {
    while (!sample.empty()) forget(sample, std::string(sample.begin()->first));
  }
}

at::Tensor SampleStream::in_memory(const Held& held) const {
  if (held.tensor.defined()) return held.tensor;
  at::Tensor tensor = at::empty(held.like.sizes(), held.like.options().device(at::kCPU));
  spill_->read(tensor.mutable_data_ptr(), static_cast<int64_t>(tensor.nbytes()),
               held.place);
  return tensor.to(held.device);
}

void SampleStream::forget(Sample& sample, const std::string& name) {
  const auto found = sample.find(name);
  if (found == sample.end()) return;
  const Held& held = found->second;
  if (held.place >= 0)
    spill_->release(static_cast<int64_t>(held.like.nbytes()), held.place);
  sample.erase(found);
}

void SampleStream::park(int64_t first, int64_t last) {
  if (spill_ == nullptr) return;
  in_parallel(last - first, [&](int64_t i) {
    for (auto& [name, held] : samples_[static_cast<size_t>(first + i)]) {
      if (!held.tensor.defined()) continue;
      if (held.place < 0) {
        const at::Tensor tensor = held.tensor.cpu().contiguous();
        held.device = held.tensor.device();
        held.like = at::empty(tensor.sizes(), tensor.options().device(at::kMeta));
        held.place =
            spill_->write(tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes()));
      }
      held.tensor.reset();
    }
  });
}

}  // namespace nibble
