#include "ptq/calibration/group_inputs.h"

#include <ATen/ATen.h>

#include "kernels/base/cancel.h"
#include "ptq/calibration/samples.h"
#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

// The node before which every sample has the value: its first reader.
size_t first_reader(const Program& program, const std::string& value) {
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    for (const std::string& input : program.nodes[i].inputs) {
      if (input == value) return i;
    }
  }
  return program.nodes.size();
}

}  // namespace

void observe_groups(const Artifact& model, const Plan& plan, const CalibrationData& data,
                    const std::vector<ScaleGroup>& groups,
                    const std::function<void(const GroupInputs&)>& visit) {
  ValueStream stream(
      model.program, make_samples(model, plan, data),
      [&](const std::string& name) {
        const auto tensor = model.tensors.find(name);
        if (tensor != model.tensors.end()) return to_torch(tensor->second);
        throw Error(error(StatusCode::not_found, "[calibrate] ", name,
                          ": the program names it; the model has it not"));
      },
      data.device);
  const int64_t tokens = plan.calibration_sequences * plan.calibration_length;
  const int64_t step = std::max<int64_t>(1, tokens / GroupInputs::kKeptRows);
  size_t done = 0;
  for (const ScaleGroup& group : groups) {
    const size_t here = first_reader(model.program, group.value);
    const auto columns = static_cast<int64_t>(group.channel_of_column.size());
    GroupInputs inputs{.group = group,
                       .hessian = Hessian(columns, data.device),
                       .mean = at::zeros({columns}, at::kDouble),
                       .most = at::zeros({columns}, at::kDouble),
                       .rows = {}};
    std::vector<at::Tensor> kept;
    int64_t count = 0;
    for (int64_t first = 0; first < stream.size(); first += kRound) {
      throw_if_error(check_cancelled("calibrate"));
      const int64_t last = std::min(stream.size(), first + kRound);
      stream.run(done, here, first, last);
      const at::Tensor rows = gather_rows(stream, group.value, first, last);
      inputs.hessian.accumulate(rows);
      const at::Tensor magnitude = rows.abs();
      inputs.mean += magnitude.sum(0, false, at::kDouble);
      inputs.most = at::maximum(inputs.most, magnitude.amax(0).to(at::kDouble));
      const int64_t begin = (step - count % step) % step;
      if (begin < rows.size(0))
        kept.push_back(rows.slice(0, begin, rows.size(0), step).clone());
      count += rows.size(0);
    }
    done = here;
    inputs.hessian.to_cpu();
    inputs.mean /= static_cast<double>(std::max<int64_t>(count, 1));
    inputs.rows = at::cat(kept).narrow(
        0, 0, std::min<int64_t>(GroupInputs::kKeptRows, (count + step - 1) / step));
    visit(inputs);
  }
}

}  // namespace nibble
