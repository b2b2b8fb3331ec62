// Solves the layers of a plan block by block: what calibration (ptq/stream.h) runs, of
// language models and other nets alike.
//
// Layers whose method looks at the weight alone come first, in program order; then the
// samples move through the program node by node, and the layers that read one value are
// solved as soon as it is there. A layer that `solved` has already (of a run that was
// interrupted) is not solved again: the samples only pass through it. Throws
// nibble::Error.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/program/layers.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/calibration/sharded_streams.h"
#include "ptq/calibration/solved_layers.h"
#include "ptq/methods/method.h"
#include "ptq/stream.h"

namespace nibble {

class StreamingSolver {
 public:
  // notes: what a transform says of a tensor, for its account. All outlive the solver.
  StreamingSolver(const Artifact& model, const ModelWeights& weights, const Plan& plan,
                  SolvedLayers& solved, const std::map<std::string, std::string>& notes,
                  const StreamOptions& options);
  ~StreamingSolver();

  void solve_without_inputs();
  void solve_with_inputs(const CalibrationData& data);

 private:
  struct ExpertRows;
  struct Outcome;

  std::vector<const LayerPlan*> unsolved_readers(size_t node) const;
  std::vector<Layer> unsolved_experts(const Node& moe) const;
  std::optional<size_t> last_station() const;
  void solve_readers(ShardedStreams& streams, size_t node,
                     const std::vector<const LayerPlan*>& layers);
  void solve_experts(ShardedStreams& streams, const Node& moe);
  void solve_expert(const std::vector<Layer>& layers, const std::string& name,
                    std::vector<std::vector<ExpertRows>>& shards, int64_t tokens);
  bool is_tuned(size_t node) const;
  void tune(ShardedStreams& streams, size_t begin, size_t end,
            std::unique_ptr<SampleStream> before);
  void round_to_nearest(const std::vector<const LayerPlan*>& layers, int64_t tokens);
  // rows: of the inputs, for those layers that mind the ReLU behind them.
  void solve(const std::vector<const LayerPlan*>& layers,
             const std::shared_ptr<Hessian>& inputs, const RowSample* rows = nullptr);
  void keep(const LayerPlan& layer, Outcome outcome);
  void end_block(int block);

  bool needs_inputs(const LayerPlan& layer) const { return plan_.needs_inputs(layer); }
  bool minds_relu(const LayerPlan& layer) const;
  Outcome solve_layer(const LayerPlan& layer, const Hessian* inputs,
                      const RowSample* rows = nullptr,
                      std::optional<SolvedLayer> tuned = {}) const;
  at::Tensor parameter(const std::string& name, bool quantized) const;

  const Artifact& model_;
  const ModelWeights& weights_;
  const Plan& plan_;
  SolvedLayers& solved_;
  const std::map<std::string, std::string>& notes_;
  const StreamOptions& options_;
  InputRounding rounding_;
  const at::Device device_;  // where samples run and what they give is summed
  Ranks& ranks_;
  int64_t done_ = 0, total_ = 0;
  // Of the block whose layers are tuned together once all have a start: by tensor.
  struct Start;
  std::map<std::string, Start> starts_;
  bool keeps_starts_ = false;
  // Of the block that is being solved, for its line of progress.
  int64_t block_layers_ = 0;
  double block_error_ = 0;
};

}  // namespace nibble
