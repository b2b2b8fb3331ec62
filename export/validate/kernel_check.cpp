#include "export/validate/kernel_check.h"

#include <cmath>
#include <set>

#include "kernels/base/cpu.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {
namespace {

// One token takes the decode path, several the tiled one; odd, so that tiles end early.
constexpr int64_t kTokens[] = {1, 7};

std::vector<float> seeded_inputs(int64_t count) {
  SplitMix64 random(20260101);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = static_cast<float>(4 * random.uniform() - 2);
  return x;
}

Status disagrees(const std::string& layer, const char* row, int64_t t, int64_t n,
                 float required, double tolerance, float found) {
  return error(StatusCode::failed_precondition, "[validate] ", layer, ": ", row,
               ", token ", t, ", output ", n, ": must be the reference's ", required,
               tolerance == 0 ? std::string(" bit for bit") : cat(" within ", tolerance),
               "; found ", found, "; please report this kernel and CPU");
}

// Every row for one activation kind against the reference, on the same inputs.
Status check_linear(const std::string& layer, const LinearWeight& weight,
                    const float* bias, LinearActivation activation, KernelCheck* result) {
  std::vector<const LinearKernel*> rows;
  for (const LinearKernel& row : linear_kernels()) {
    const bool runs = (row.flags & ~usable_cpu_flags()) == 0;
    if (runs && row.flags != 0 && row.can_run(weight.scheme, activation))
      rows.push_back(&row);
  }
  if (rows.empty()) return ok_status();
  const bool exact = activation == LinearActivation::s8;
  for (const int64_t tokens : kTokens) {
    const std::vector<float> inputs = seeded_inputs(tokens * weight.cols);
    const MatrixView<const float> x(inputs.data(), tokens, weight.cols);
    const auto outputs = static_cast<size_t>(tokens * weight.rows);
    std::vector<float> required(outputs);
    std::vector<double> magnitude(outputs, 0);
    NIBBLE_RETURN_IF_ERROR(linear_reference(weight, activation, x, bias,
                                            {required.data(), tokens, weight.rows}));
    if (!exact) {
      NIBBLE_RETURN_IF_ERROR(
          linear_magnitude(weight, x, bias, {magnitude.data(), tokens, weight.rows}));
    }
    for (const LinearKernel* row : rows) {
      NIBBLE_ASSIGN_OR_RETURN(const PreparedLinear prepared,
                              prepare_linear(*row, weight));
      std::vector<float> found(outputs, std::nanf(""));
      run_linear(prepared, x, bias, {found.data(), tokens, weight.rows});
      for (size_t i = 0; i < outputs; ++i) {
        const double tolerance = exact ? 0 : linear_tolerance(weight.cols) * magnitude[i];
        const double difference = std::abs(static_cast<double>(found[i]) - required[i]);
        if (!(difference <= tolerance)) {
          const auto at = static_cast<int64_t>(i);
          return disagrees(layer, row->name, at / weight.rows, at % weight.rows,
                           required[i], tolerance, found[i]);
        }
      }
      if (tokens == kTokens[0]) ++result->rows[row->name];
    }
  }
  return ok_status();
}

Result<LinearWeight> weight_of(const Artifact& artifact, const std::string& tensor) {
  const auto packed = artifact.packed.find(tensor);
  if (packed != artifact.packed.end()) return linear_weight(packed->second);
  const auto plain = artifact.tensors.find(tensor);
  if (plain != artifact.tensors.end()) return linear_weight(plain->second);
  return error(StatusCode::not_found, "[validate] ", tensor,
               ": every parameter must be in the artifact; found none of this name");
}

}  // namespace

Result<KernelCheck> check_layer_kernels(const Artifact& artifact) {
  KernelCheck result;
  std::set<std::string> seen;
  for (const Node& node : artifact.program.nodes) {
    if (node.op != "linear" || !seen.insert(node.parameter("weight")).second) continue;
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                            weight_of(artifact, node.parameter("weight")));
    std::vector<float> bias;
    const auto found = artifact.tensors.find(node.parameter("bias"));
    if (found != artifact.tensors.end()) {
      NIBBLE_ASSIGN_OR_RETURN(bias, to_float(found->second));
    }
    for (const auto activation : {LinearActivation::f32, LinearActivation::s8}) {
      NIBBLE_RETURN_IF_ERROR(check_linear(
          node.name, weight, bias.empty() ? nullptr : bias.data(), activation, &result));
    }
  }
  return result;
}

}  // namespace nibble
