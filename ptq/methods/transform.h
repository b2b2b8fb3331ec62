// A transform edits the float model before its layers are solved: factors per channel
// that move from a layer to the one before it, so that less is lost in rounding. The
// model's function stays what it is. The rows are in transforms.inc; a recipe names them,
// in order, under `transforms`.
//
// Throws nibble::Error. Deterministic at any thread count.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ptq/calibrate.h"

namespace nibble {

struct TransformProblem {
  const Plan& plan;
  const CalibrationData& data;
  const Progress& progress;
  Artifact& model;                            // edited in place
  std::map<std::string, std::string>& notes;  // by tensor: what the ledger should say
};

struct Transform {
  const char* name;
  bool needs_inputs;
  void (*apply)(const TransformProblem& problem);
};
const std::vector<Transform>& all_transforms();
const Transform* find_transform(const std::string& name);

#define NIBBLE_TRANSFORM(name, needs_inputs, description) \
  void transform_##name(const TransformProblem& problem);
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM

}  // namespace nibble
