// Where solved layers go, and whence the layers after them read them back: into memory, or
// to the artifact on disk as they come (artifact_sink.h).
//
// Throws nibble::Error. put from one thread at a time; read from any.
#pragma once

#include <optional>
#include <string>

#include "kernels/base/matrix_view.h"
#include "kernels/scheme/coded_matrix.h"
#include "ptq/calibrate.h"

namespace nibble {

using LayerAccount = Calibrated::Account;

class SolvedLayers {
 public:
  virtual ~SolvedLayers() = default;
  // Of an interrupted run as well.
  virtual bool has(const std::string& tensor) const = 0;
  // layer.method: the one that was used, should it not be the plan's. factors: what
  // stands beside the codes; of a layer with a rank.
  virtual void put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
                   std::optional<LowRankFactors> factors) = 0;
  // Rows [first, first + x.rows), dequantized, the factors' product added.
  virtual void read(const std::string& tensor, int64_t first,
                    MatrixView<float> x) const = 0;
  // What was put is kept, whatever comes.
  virtual void end_block() {}
};

}  // namespace nibble
