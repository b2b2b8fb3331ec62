// What the program that will serve a model asks of a plan, checked before any work:
// schemes that it has kernels for, group sizes, and whether rows, columns and heads
// divide over
// --tensor-parallel devices.
//
//   a layer that reads attention or an MLP's product is split along its columns, all
//   others along their rows; a split of columns must end with a group
//
// unsupported: the first layer that the target could not serve: what it has, what is left
// a device, and which group or how many devices would do. not_found: an unknown target
// (lists them).
#pragma once

#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "ptq/plan.h"

namespace nibble {

struct DeploymentTarget {
  const char* name;
  const char* format;           // which nibble export --to writes for it
  std::vector<int> bits;        // of integer weights
  std::vector<int64_t> groups;  // columns of a scale; 0: a row
  bool zero_points, fp8, tables, integer_inputs;
  bool splits;            // over devices, by rows and columns
  int64_t table_devices;  // that nf4 and fp4 may be split over
};
const std::vector<DeploymentTarget>& deployment_targets();

// model: the one that the plan was made for.
Status check_deployment(const Plan& plan, const Artifact& model,
                        const std::string& target, int64_t tensor_parallel);

}  // namespace nibble
