// The integer path of a convolutional net: every value in codes, int32 sums, one
// requantization a node (runtime/integer_node.h has the formulas).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/matrix_view.h"
#include "kernels/runtime/executor.h"

namespace nibble {

class IntegerPath {
 public:
  // failed_precondition: a value has no activation scheme; unsupported: an op, weight or
  // activation scheme that has no integer form (names the node).
  static Result<std::unique_ptr<IntegerPath>> create(const Artifact& artifact,
                                                     std::map<std::string, std::string>* kernels);
  ~IntegerPath();
  // images [count, channels, height, width] floats -> logits [count, classes].
  Status run(std::span<const float> images, std::span<const int64_t> shape,
             const std::function<void(const TapValue&)>& tap, MatrixView<float> logits);
  int64_t row_bytes() const;  // that the values of one image take

 private:
  IntegerPath();
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
