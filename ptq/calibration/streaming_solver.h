// Solves the layers of a plan block by block: what calibrate_into (ptq/stream.h) runs.
//
// Layers whose method looks at the weight alone come first, in program order; then the
// samples move through the program node by node, and the layers that read one value are
// solved as soon as it is there. A layer that `solved` has already (of a run that was
// interrupted) is not solved again: the samples only pass through it. Throws nibble::Error.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/program/layers.h"
#include "ptq/stream.h"
#include "ptq/calibration/solved_layers.h"
#include "ptq/calibration/sample_stream.h"
#include "ptq/distributed/ranks.h"

namespace nibble {

class StreamingSolver {
 public:
  StreamingSolver(const Artifact& model, const Plan& plan, SolvedLayers& solved,
              const StreamOptions& options);

  void solve_without_inputs();
  void solve_with_inputs(const CalibrationData& data);

 private:
  struct Streams;
  struct ExpertRows;
  struct Outcome;

  std::vector<const LayerPlan*> unsolved_readers(size_t node) const;
  std::vector<Layer> unsolved_experts(const Node& moe) const;
  std::optional<size_t> last_station() const;
  void advance(Streams& streams, size_t to);
  void solve_readers(Streams& streams, size_t node,
                     const std::vector<const LayerPlan*>& layers);
  void solve_experts(Streams& streams, const Node& moe);
  void solve_expert(const std::vector<Layer>& layers, const std::string& name,
                    std::vector<std::vector<ExpertRows>>& shards, int64_t tokens);
  void round_to_nearest(const std::vector<const LayerPlan*>& layers, int64_t tokens);
  void solve(const std::vector<const LayerPlan*>& layers, const Hessian* inputs);
  void keep(const LayerPlan& layer, Outcome outcome);
  void end_block(int block);

  Outcome solve_layer(const LayerPlan& layer, const Hessian* inputs) const;
  at::Tensor parameter(const std::string& name, bool quantized) const;
  at::Tensor rows_of(const std::string& name, const at::Tensor& ids,
                     bool quantized) const;

  const Artifact& model_;
  const Plan& plan_;
  SolvedLayers& solved_;
  const StreamOptions& options_;
  const at::Device device_;  // where samples run and what they give is summed
  Ranks& ranks_;
  int64_t done_ = 0, total_ = 0;
  // Of the block that is being solved, for its line of progress.
  int64_t block_layers_ = 0;
  double block_error_ = 0;
};

}  // namespace nibble
