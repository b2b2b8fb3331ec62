#include "recipes/eval/net_run.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/base/cancel.h"

namespace nibble {
namespace {

template <class... Parts>
Status wrong(const std::string& where, const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[run] ", where, ": ", parts...);
}

const ProgramValue* find(const std::vector<ProgramValue>& values,
                         const std::string& name) {
  for (const ProgramValue& value : values) {
    if (value.name == name) return &value;
  }
  return nullptr;
}

// One input over the steps.
struct Source {
  std::vector<int64_t> shape;  // of a step
  std::vector<float> values;
  int64_t size = 0;  // of a step
  bool carried = false;
};

}  // namespace

Result<std::map<std::string, Tensor>> run_net(Executor& net,
                                              const std::map<std::string, Tensor>& inputs,
                                              const std::vector<Carry>& carries) {
  const Program& program = net.artifact().program;
  NIBBLE_RETURN_IF_ERROR(check_carries(program, carries));
  std::map<std::string, Source> sources;
  int64_t steps = carries.empty() ? 1 : -1, batch = 1;
  for (const ProgramValue& input : program.inputs) {
    if (program.consumers(input.name).empty()) continue;
    Source& source = sources[input.name];
    source.carried = std::any_of(carries.begin(), carries.end(), [&](const Carry& carry) {
      return carry.input == input.name;
    });
    const auto found = inputs.find(input.name);
    if (found == inputs.end() && source.carried) continue;  // zeros
    if (found == inputs.end())
      return wrong(input.name, "a tensor of this name was required; found none");
    NIBBLE_ASSIGN_OR_RETURN(source.values, to_float(found->second));
    source.shape = found->second.shape;
    if (source.carried || carries.empty()) continue;
    if (source.shape.size() != input.shape.size() + 1 ||
        (steps >= 0 && source.shape[0] != steps) || source.shape[0] < 1) {
      return wrong(
          input.name, "[steps, ..] with ", input.shape.size(),
          " sizes behind the steps, the same steps for all, were required; found ",
          shape_text(source.shape));
    }
    steps = source.shape[0];
    source.shape.erase(source.shape.begin());
    for (size_t d = 0; d < source.shape.size(); ++d) {
      if (input.shape[d] == "batch") batch = source.shape[d];
    }
  }
  for (const auto& [name, tensor] : inputs) {
    if (!find(program.inputs, name))
      return wrong(name, "an input of the net was required; found none of this name");
  }
  if (steps < 0)
    return wrong("carry",
                 "an input that is not carried was required, for the number of steps");
  for (auto& [name, source] : sources) {
    if (source.shape.empty()) {
      for (const std::string& size : find(program.inputs, name)->shape)
        source.shape.push_back(size == "batch" ? batch : std::atoll(size.c_str()));
    }
    source.size = 1;
    for (const int64_t size : source.shape) source.size *= size;
    if (source.values.empty())
      source.values.assign(static_cast<size_t>(source.size), 0.0f);
  }
  std::map<std::string, std::vector<float>> made;
  std::map<std::string, std::vector<int64_t>> shapes;
  for (int64_t step = 0; step < steps; ++step) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("run"));
    std::vector<NetInput> feed;
    for (const auto& [name, source] : sources) {
      const int64_t at = source.carried ? 0 : step * source.size;
      feed.push_back({name,
                      source.shape,
                      {source.values.data() + at, static_cast<size_t>(source.size)}});
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<NetOutput> outputs,
                            net.forward_values(feed));
    for (const NetOutput& output : outputs) {
      shapes[output.name] = output.shape;
      std::vector<float>& all = made[output.name];
      all.insert(all.end(), output.values.begin(), output.values.end());
      for (const Carry& carry : carries) {
        if (carry.output == output.name) sources[carry.input].values = output.values;
      }
    }
  }
  std::map<std::string, Tensor> result;
  for (auto& [name, values] : made) {
    std::vector<int64_t> shape = shapes[name];
    if (!carries.empty()) shape.insert(shape.begin(), steps);
    result[name] = make_tensor(shape, values);
  }
  return result;
}

}  // namespace nibble
