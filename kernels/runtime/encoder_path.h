// Runs an encoder: batches of whole sequences, no cache, no padding.
//
// The tokens of a batch lie one after the other, so that every layer but attention and
// pooling is one product over all of them; those two take each sequence alone. A residual
// sum that only a layer_norm reads is added inside it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "kernels/artifact/artifact.h"
#include "kernels/base/matrix_view.h"
#include "kernels/runtime/executor.h"

namespace nibble {

class EncoderPath {
 public:
  // unsupported: an op that does not run on the tokens of an encoder, more than the ids
  // and the token types as inputs (names the node).
  static Result<std::unique_ptr<EncoderPath>> create(
      std::shared_ptr<const Artifact> artifact, Compute compute,
      std::map<std::string, std::string>* kernels);
  ~EncoderPath();
  int64_t features() const;
  int64_t rows(std::span<const int64_t> lengths) const;
  // Executor::encode says what and which errors. Allocates when a batch is the longest yet.
  Status run(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
             std::span<const int32_t> types,
             const std::function<void(const TapValue&)>& tap, MatrixView<float> output);

 private:
  EncoderPath();
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
