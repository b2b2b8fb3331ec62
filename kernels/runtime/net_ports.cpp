#include "kernels/runtime/net_ports.h"

#include <algorithm>

namespace nibble {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

// Sizes as declared, one batch for all (0: not known yet), and as many values.
bool fits(const NetPort& port, const NetInput& input, int64_t& batch) {
  if (input.shape.size() != port.shape.size()) return false;
  for (size_t d = 0; d < port.shape.size(); ++d) {
    const int64_t found = input.shape[d];
    if (port.shape[d] == kUnknownSize && batch == 0) batch = found;
    const int64_t wanted = port.shape[d] == kUnknownSize ? batch : port.shape[d];
    if (found < 1 || found != wanted) return false;
  }
  return static_cast<int64_t>(input.values.size()) == batch * port.features;
}

}  // namespace

Status check_ends(const Program& program, const Shapes& shapes) {
  const bool text = program.is_language_model();
  const bool one = program.inputs.size() == 1 && program.outputs.size() == 1;
  if (program.nodes.empty() || program.inputs.empty() || program.outputs.empty() ||
      (text && !(one && program.nodes.back().outputs[0] == program.outputs[0].name))) {
    return failure(
        StatusCode::unsupported, program.architecture,
        "one input and one output, made by the last node, were required; found ",
        program.inputs.size(), " inputs and ", program.outputs.size(), " outputs");
  }
  if (text) return ok_status();
  const auto check = [&](const ProgramValue& value) -> Status {
    const std::vector<int64_t>& shape = shapes.at(value.name);
    if (value.dtype == DType::f32 &&
        std::count(shape.begin(), shape.end(), kUnknownSize) == 1)
      return ok_status();
    return failure(StatusCode::unsupported, value.name,
                   "floats with one open size, the batch, were required; found ",
                   dtype_name(value.dtype), " ", shape_text(shape));
  };
  for (const ProgramValue& value : program.inputs) {
    if (!program.consumers(value.name).empty()) NIBBLE_RETURN_IF_ERROR(check(value));
  }
  for (const ProgramValue& value : program.outputs) NIBBLE_RETURN_IF_ERROR(check(value));
  return ok_status();
}

Result<int64_t> net_batch(const Program& program, std::span<const NetPort> ports,
                          std::span<const NetInput> inputs) {
  for (const NetInput& input : inputs) {
    const bool declared =
        std::any_of(program.inputs.begin(), program.inputs.end(),
                    [&](const ProgramValue& value) { return value.name == input.name; });
    if (declared) continue;
    std::string known;
    for (const ProgramValue& value : program.inputs)
      known += (known.empty() ? "" : ", ") + value.name;
    return failure(StatusCode::invalid_argument, input.name, "an input of the program (",
                   known, ") was required; found none of this name");
  }
  int64_t batch = 0;
  for (const NetPort& port : ports) {
    int64_t given = 0;
    for (const NetInput& input : inputs) {
      if (input.name != port.name) continue;
      if (++given == 1 && fits(port, input, batch)) continue;
      return failure(StatusCode::invalid_argument, port.name, "one input ",
                     shape_text(port.shape), " was required, -1 being the batch, ",
                     batch > 0 ? cat("here ", batch) : std::string("at least 1"),
                     "; found ", shape_text(input.shape), " with ", input.values.size(),
                     " values", given > 1 ? ", a second one" : "");
    }
    if (given > 0) continue;
    return failure(StatusCode::invalid_argument, port.name, "this input, ",
                   shape_text(port.shape), ", was required; found none of this name");
  }
  return batch;
}

}  // namespace nibble
