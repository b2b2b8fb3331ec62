// A decoder wherever it runs, for what only needs its logits: on this machine's CPU
// (Executor) or on a GPU (cuda::Decoder).
//
// Errors are those of the two; invalid_argument: no such device. Used from one thread at
// a time.
#pragma once

#include <memory>
#include <string>

#include "kernels/runtime/cuda_decoder.h"
#include "kernels/runtime/executor.h"

namespace nibble {

class TextModel {
 public:
  virtual ~TextModel() = default;
  virtual const Artifact& artifact() const = 0;
  // An empty sequence with room for so many positions. out_of_range: beyond the context.
  virtual Status open(int64_t positions) = 0;
  virtual void begin() = 0;  // an empty sequence, the room stays
  // Appends; logits as Executor::forward has them.
  virtual Status forward(std::span<const int32_t> tokens, MatrixView<float> logits) = 0;
  // For each layer (tensor name): the kernel that serves it; on a GPU once it is open.
  virtual std::map<std::string, std::string> kernels() const = 0;
};

// executor outlives it.
std::unique_ptr<TextModel> text_model(Executor& executor);
// Values between layers are bf16. kv: what the cache is stored as; "": as the artifact
// says.
std::unique_ptr<TextModel> text_model(std::shared_ptr<const Artifact> artifact,
                                      const std::string& kv,
                                      std::shared_ptr<cuda::Runner> runner);

// "cpu", or "cuda" or "cuda:N" where there is such a GPU.
bool is_gpu(const std::string& device);
Result<std::shared_ptr<cuda::Runner>> open_gpu(const std::string& device);

}  // namespace nibble
