// Runs an Artifact: float or quantized, language model or convolutional net, without
// LibTorch.
//
// Weight-only layers take float activations, or what Compute says (runtime/compute.h).
// Where the artifact has activation schemes on all values of a convolutional net, its
// integer path runs: int32 sums, one requantization per node (runtime/integer_node.h has
// the formulas), bit for bit the torch module's exact mode.
//
// One Executor may be used from one thread at a time; it uses parallel_for inside.
// Results do not depend on the thread count. Allocation: at create, and when a sequence
// outgrows earlier.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/matrix_view.h"
#include "kernels/base/status.h"
#include "kernels/runtime/compute.h"

namespace nibble {

struct ExecutorOptions {
  Compute compute = Compute::float_activations;
  // Integer path of CNNs; false simulates in float (dequantized weights, no activation rounding).
  bool integer = true;
  // Float layers add their inputs in reverse order (runtime/summation_order.h): another
  // rounding of the same function, for the noise floor of a comparison.
  bool reversed_sums = false;
  // What KV caches are stored as (kernels/scheme/kv_scheme.h); "": as the artifact says.
  std::string kv = {};
};

// A value as a tap sees it: floats, or on the integer path the codes with their scale.
struct TapValue {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> floats;
  std::span<const int32_t> codes;
  float scale = 0;
};

class KvCache;  // runtime/kv_cache.h

// What goes into a net by an input's name, and what comes out: [..] with the batch where the
// program has it.
struct NetInput {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> values;
};
struct NetOutput {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// What a pass over tokens leaves of the start of each block, so that another pass over the
// same tokens can begin there: stage 0 is the program's start, then a stage a block.
struct BlockInputs {
  int64_t tokens = 0;
  std::vector<std::vector<float>> stages;  // the live values, one after the other
};

class Executor {
 public:
  // Repacks weights for the kernels of this machine. Keeps a reference to the tensors' bytes.
  static Result<Executor> create(std::shared_ptr<const Artifact> artifact, ExecutorOptions options);
  Executor(Executor&&) noexcept;
  Executor& operator=(Executor&&) noexcept;
  ~Executor();

  const Artifact& artifact() const;
  std::shared_ptr<const Artifact> shared_artifact() const;
  // That the values of one row, image or sample take; 0 for encoders.
  int64_t row_bytes() const;

  // --- language models
  // An empty cache for `capacity` positions (at most the model's context), stored as
  // kv_schemes() says, one a program state.
  Result<std::unique_ptr<KvCache>> make_cache(int64_t capacity) const;
  // Runs tokens at positions cache.length() ...; appends to the cache. logits: [tokens, vocab],
  // or [1, vocab] for the last position only.
  // out_of_range: a token id outside the vocabulary, or the context is exceeded.
  Status forward(std::span<const int32_t> tokens, KvCache& cache, MatrixView<float> logits);
  // One token of each of several sequences together, every weight read once for all: tokens[i]
  // at position caches[i]->length(), appended there; logits [tokens, vocab]. Linear layers on
  // int8 activations give what forward gives token by token, bit for bit; float ones may sum in
  // another order. Errors as forward; invalid_argument: a cache twice.
  Status decode(std::span<const int32_t> tokens, std::span<KvCache* const> caches,
                MatrixView<float> logits);

  // --- encoders
  // A batch of sequences, one after the other in `tokens`, lengths[i] tokens each. types: a
  // token type a token, or empty for 0. output: [embedding_rows(lengths),
  // embedding_features()], a row a sequence where the program pools, else a row a token.
  // A sequence's rows do not depend on the others of its batch where the linear layers read
  // int8; float ones may sum in another order (ops/linear/linear.h).
  // out_of_range: an id or type outside its table, a sequence longer than the context.
  Status encode(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
                std::span<const int32_t> types, MatrixView<float> output);
  int64_t embedding_features() const;  // 0: not an encoder
  int64_t embedding_rows(std::span<const int64_t> lengths) const;

  // --- one layer at a time (language models)
  // As forward, all logits; keeps the inputs of every block.
  Status forward_keeping(std::span<const int32_t> tokens, KvCache& cache,
                         MatrixView<float> logits, BlockInputs& kept);
  // The same from a stage on, its inputs being the kept ones; later blocks' rows of the
  // cache are written anew. invalid_argument: kept of other tokens or another program.
  Status forward_from(size_t stage, const BlockInputs& kept,
                      std::span<const int32_t> tokens, KvCache& cache,
                      MatrixView<float> logits);
  // The first stage that reads the layer (a tensor's name). not_found.
  Result<size_t> stage_of(const std::string& layer) const;
  // From now on the layer's weight is that of `other`, a model of the same program; null:
  // its own again. One layer at a time.
  Status exchange_layer(const std::string& layer, const Artifact* other);

  // --- images: [count, channels, height, width] floats, preprocessed -> logits [count, classes]
  Status forward_images(std::span<const float> images, std::span<const int64_t> shape,
                        MatrixView<float> logits);

  // --- nets of any inputs and outputs, each by its name (a recurrent net's state is one of
  // both): every output for one batch. Inputs that no node reads need not be there.
  // invalid_argument: an input is missing, twice, unknown, or of another shape or batch.
  Result<std::vector<NetOutput>> forward_values(std::span<const NetInput> inputs);

  const std::vector<KvScheme>& kv_schemes() const;

  // Called after each node with its output while set (tests, validation); may be empty.
  void set_tap(std::function<void(const TapValue&)> tap);

  // For each layer (tensor name): the kernel row that serves it, e.g. "linear_f32_int4g__avx512vnni".
  std::map<std::string, std::string> kernels() const;

 private:
  Executor();
  Status check_tokens(std::span<const int32_t> tokens, const KvCache& cache,
                      MatrixView<float> logits) const;
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
