// Solved layers straight to the artifact's files: packed as they come, read back from there.
//
// Throws nibble::Error. put from one thread; read from any.
#pragma once

#include <mutex>

#include "kernels/artifact/artifact_writer.h"
#include "ptq/calibration/solved_layers.h"

namespace nibble {

class ArtifactSink : public SolvedLayers {
 public:
  // Both outlive the sink.
  ArtifactSink(const Artifact& model, ArtifactWriter& writer)
      : model_(model), writer_(writer) {
    for (const Node& node : model.program.nodes) {
      if (node.op == "linear") node_of_[node.parameter("weight")] = node.name;
    }
  }

  bool has(const std::string& tensor) const override { return writer_.has(tensor); }
  void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
           std::optional<LowRankFactors> factors) override;
  void read(const std::string& tensor, int64_t first, MatrixView<float> x) const override;
  void end_block() override;
  // Of a layer that is there; none: it has none.
  std::optional<LowRankFactors> factors(const std::string& tensor) const;

 private:
  const Artifact& model_;
  ArtifactWriter& writer_;
  std::map<std::string, std::string> node_of_;  // by weight
  mutable std::mutex mutex_;
  mutable std::string last_;  // the weight that is open
  mutable PackedTensor open_;
  mutable std::optional<LowRankFactors> beside_;
};

// The same for a rank that does not write: packed, in memory.
class RankLayers : public SolvedLayers {
 public:
  explicit RankLayers(const Artifact& model) : model_(model) {}
  bool has(const std::string& tensor) const override { return packed_.count(tensor) > 0; }
  void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
           std::optional<LowRankFactors> factors) override;
  void read(const std::string& tensor, int64_t first, MatrixView<float> x) const override;

 private:
  const Artifact& model_;
  std::map<std::string, PackedTensor> packed_;
  std::map<std::string, LowRankFactors> factors_;
};

// In memory, and into a Calibrated (whose model and plan are there).
class KeptLayers : public RankLayers {
 public:
  explicit KeptLayers(Calibrated& result) : RankLayers(*result.model), result_(result) {}
  void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
           std::optional<LowRankFactors> factors) override;

 private:
  Calibrated& result_;
};

// The ledger's entry of a solved layer.
LedgerEntry ledger_entry(const LayerPlan& layer, const CodedMatrix& coded,
                         const LayerAccount& account);

}  // namespace nibble
