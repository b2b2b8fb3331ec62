#include "kernels/runtime/compute.h"

namespace nibble {
namespace {

struct ComputeRow {
  Compute compute;
  const char* name;
  LinearActivation activation;
};
constexpr ComputeRow kRows[] = {
    {Compute::float_activations, "float", LinearActivation::f32},
    {Compute::bf16_activations, "bf16", LinearActivation::bf16},
    {Compute::dynamic_int8, "int8", LinearActivation::s8},
};

const ComputeRow& row_of(Compute compute) { return kRows[static_cast<int>(compute)]; }

}  // namespace

const char* compute_name(Compute compute) { return row_of(compute).name; }

Result<Compute> parse_compute(const std::string& name) {
  if (name.empty()) return Compute::float_activations;
  for (const ComputeRow& row : kRows) {
    if (name == row.name) return row.compute;
  }
  return error(StatusCode::invalid_argument,
               "[nibble] --compute: float, bf16 or int8 required; found '", name,
               "'; float is the default");
}

LinearActivation linear_activation(Compute compute) { return row_of(compute).activation; }

}  // namespace nibble
