// A transform changes the float model before its layers are solved, so that less is lost
// in rounding; the model's function stays what it is. The rows are in transforms.inc; a
// recipe names them, in order, under `transforms`.
//
//   scales   factors per channel that move from the layers that read a value to what
//   makes
//            it, group by group (ptq/topology.h): search_<name> gives the candidates of
//            one group and their errors, ptq/calibration/group_scales.h the statistics.
//   edits    the whole model in memory: transform_<name>.
//
// Throws nibble::Error. Deterministic at any thread count.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/topology.h"

namespace nibble {

// What the calibration data looks like to the readers of one group, in the float model.
struct GroupInputs {
  const ScaleGroup& group;
  at::Tensor hessian;  // f32 [columns, columns]: mean of x x^T; undefined: not asked for
  at::Tensor mean;     // f64 [columns]: mean |x|
  at::Tensor most;     // f64 [columns]: max |x|
  at::Tensor rows;     // f32 [at most kKeptRows, columns]: tokens at even steps
  static constexpr int64_t kKeptRows = 1024;
};

struct GroupSearch {
  struct Candidate {
    at::Tensor
        scale;  // f64 [channels], finite and positive: the readers' columns times it
    std::string what;  // "alpha 0.45", for the ledger
  };
  std::vector<Candidate>
      candidates;           // the first: ones; the first of the least error wins
  bool takes_last = false;  // the last one does, whatever the errors
  // The group's weights that count, one in memory at a time: open(i) for i in [0,
  // readers), then the error of its outputs for a candidate's scale, f32 [columns], on
  // any thread.
  size_t readers = 0;
  std::function<void(size_t reader)> open;
  std::function<double(const at::Tensor& column_scale)> error;
  std::string measured;  // "error before the clip search", for the ledger
};

struct TransformProblem {
  const Plan& plan;
  const CalibrationData& data;
  const Progress& progress;
  Artifact& model;                            // edited in place
  std::map<std::string, std::string>& notes;  // by tensor: what the ledger should say
};

struct Transform {
  const char* name;
  // One of the two.
  GroupSearch (*search)(const Plan& plan, const ModelWeights& weights,
                        const GroupInputs& inputs);
  void (*edit)(const TransformProblem& problem);
  bool uses_hessian = false;  // of search
};
const std::vector<Transform>& all_transforms();
const Transform* find_transform(const std::string& name);

#define NIBBLE_TRANSFORM_scales(name)                                      \
  GroupSearch search_##name(const Plan& plan, const ModelWeights& weights, \
                            const GroupInputs& inputs);
#define NIBBLE_TRANSFORM_edits(name) \
  void transform_##name(const TransformProblem& problem);
#define NIBBLE_TRANSFORM(name, kind, description) NIBBLE_TRANSFORM_##kind(name)
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM
#undef NIBBLE_TRANSFORM_edits
#undef NIBBLE_TRANSFORM_scales

}  // namespace nibble
