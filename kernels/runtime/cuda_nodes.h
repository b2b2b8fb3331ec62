// The nodes of a decoder as calls of CUDA kernels over device memory: what cuda_decoder.h
// says, without the sequence that it keeps.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

struct NodeOptions {
  Float16 type = Float16::bf16;
  int64_t capacity = 0;
  std::string kv = {};
};

// Tokens that go through the nodes together, and rows of logits that there is room for.
// Beyond kMostTokens linear layers are products by cuBLASLt where the runner has them.
inline constexpr int kChunk = 512, kLogitRows = kMostTokens;

struct NodeCalls {
  // In their order; each takes the number of tokens, at most kChunk, and of how many, the
  // last ones, at most kLogitRows, logits are wanted.
  std::vector<std::function<Status(int tokens, int with_logits)>> calls;
  int32_t *ids = nullptr, *positions = nullptr, *lengths = nullptr;  // [kChunk]
  float* logits = nullptr;  // [kLogitRows, vocabulary]
  int64_t weight_bytes = 0, position_bytes = 0;
  std::map<std::string, std::string> kernels;  // by the layer's tensor

  Status run(int tokens, int with_logits) const {
    for (const auto& call : calls) NIBBLE_RETURN_IF_ERROR(call(tokens, with_logits));
    return ok_status();
  }
};

// The CUDA rows of the tables of kernels: an op and a name. Whether they can be used is a
// question of the build and the machine (device_info), not of the row.
struct CudaKernel {
  const char* op;
  std::string name;  // "linear_bf16_int4__cuda"
};
std::vector<CudaKernel> cuda_kernels();

// The calls keep a reference to the runner, whose memory they read and write. Errors as
// in cuda_decoder.h.
Result<NodeCalls> make_node_calls(const Artifact& artifact, const NodeOptions& options,
                                  Runner& runner);

}  // namespace nibble::cuda
