// A language model on a GPU: a prompt in chunks of 512 tokens (64 where all of them get
// logits), then a token at a time. More than 64 tokens meet a linear layer as floats, or
// codes, multiplied by cuBLASLt where the build has it, else 64 at a time.
//
// Values between nodes are f16 or bf16, logits f32. What one launch can do is one launch:
// linear layers that read the same value (q, k and v; gate and up) are one weight, a sum
// and the norm behind it one kernel, rotations of q and k one, keys and values stored by
// one. All of a single token's kernels start as one CUDA graph; continue_greedily leaves
// the choice of the next token to the GPU as well.
//
// Runs decoders of embedding, linear, rms_norm, rope, attention, silu_mul and add, whose
// last node is a linear layer. Weights: what pack_linear takes as it is; any other
// scheme, and float ones, as 16-bit floats (kernels() says which). Inputs of layers:
// floats, or dynamic int8n/r@f32, e4m3/r@f32 or static e4m3/t@f32 where the artifact asks
// for it. KV caches: f16 (in place
// of f32), int8n/gH@f16 and e4m3/gH@f16, H = head_dim.
//
// unsupported: an op, input or cache without a kernel (names it). not_found: a tensor
// that the artifact lacks. resource_exhausted: the GPU's memory. Results are the same in
// every run on one kind of GPU. Used from one thread at a time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "kernels/artifact/artifact.h"
#include "kernels/base/matrix_view.h"
#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

struct DecoderOptions {
  Float16 type = Float16::bf16;
  int64_t capacity = 0;  // positions; 0: the model's context
  std::string kv = {};   // "f16", "int8", "fp8"; "": as the artifact says
};

class Decoder {
 public:
  // The runner's memory is the decoder's from here on; it is not cleared.
  static Result<Decoder> create(const Artifact& artifact, const DecoderOptions& options,
                                std::shared_ptr<Runner> runner);
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;
  ~Decoder();

  // Runs tokens at positions length() ...; appends to the cache. logits: [tokens,
  // vocabulary], or [1, vocabulary] for the last position only.
  // out_of_range: an id outside the vocabulary, or no room. After an error nothing was
  // appended.
  Status forward(std::span<const int32_t> tokens, MatrixView<float> logits);
  // Appends `token`, then the greedy choice chosen.size() - 1 times; chosen[i] follows
  // the i-th of them, so the last is not in the cache.
  Status continue_greedily(int32_t token, std::span<int32_t> chosen);

  int64_t length() const;
  int64_t capacity() const;
  int64_t vocabulary() const;
  void truncate(int64_t length);  // at most length(): forgets what is behind it

  // Bytes of weights that one token reads, and of the cache at a length.
  int64_t weight_bytes() const;
  int64_t cache_bytes(int64_t length) const;
  // For each layer (tensor name): what serves it, e.g. "linear_bf16_int4__cuda".
  const std::map<std::string, std::string>& kernels() const;

 private:
  Decoder();
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble::cuda
