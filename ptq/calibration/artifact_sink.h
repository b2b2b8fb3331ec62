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
      : model_(model), writer_(writer) {}

  bool has(const std::string& tensor) const override { return writer_.has(tensor); }
  void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account) override;
  void read(const std::string& tensor, int64_t first, MatrixView<float> x) const override;
  void end_block() override;

 private:
  const Artifact& model_;
  ArtifactWriter& writer_;
  mutable std::mutex mutex_;
  mutable std::string last_;  // the weight that is open
  mutable PackedTensor open_;
};

// The same for a rank that does not write: packed, in memory.
class RankLayers : public SolvedLayers {
 public:
  explicit RankLayers(const Artifact& model) : model_(model) {}
  bool has(const std::string& tensor) const override { return packed_.count(tensor) > 0; }
  void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account) override;
  void read(const std::string& tensor, int64_t first, MatrixView<float> x) const override;

 private:
  const Artifact& model_;
  std::map<std::string, PackedTensor> packed_;
};

// The ledger's entry of a solved layer.
LedgerEntry ledger_entry(const LayerPlan& layer, const CodedMatrix& coded,
                         const LayerAccount& account);

}  // namespace nibble
