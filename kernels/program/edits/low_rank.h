// Low-rank adapters beside linear layers (LoRA, Hu et al., arXiv 2106.09685, eq. 3), as
// nodes of the graph: whatever runs, trains or exports a Program does so with them.
//
//   y = W x + B (A x)       A [rank, in], B [out, rank]
//
//   NAME         keeps its weight, packed or float; its value becomes NAME.base_output
//   NAME.lora_A  linear, weight NAME.lora_A.weight: uniform in +-1 / sqrt(in)
//   NAME.lora_B  linear, weight NAME.lora_B.weight: zeros, so nothing changes at first
//   NAME.lora    add, makes the value that NAME made
//
// The paper's alpha / rank is part of B: trained by Adam, another alpha is another
// learning rate of B. insert_low_rank takes factors that are known: what is added back to
// weights that quantization has changed (ptq/calibration/low_rank.h).
//
// merge_low_rank is the way back: W + B A in double, rounded to W's dtype. Packed weights
// are dequantized to `dtype` first.
//
// invalid_argument: no linear layer of a block matches the pattern, the rank is below 1,
// adapters are there already (add, insert) or are not (merge), a name that is no linear
// layer of a block (insert). not_found: a weight is missing.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct LowRankOptions {
  std::string pattern = "*";  // glob over node names
  int64_t rank = 16;
  uint64_t seed = 1;
};

// shapes: [out, in] of a linear layer's weight by tensor name; packed ones included.
using WeightShapes = std::map<std::string, std::vector<int64_t>>;

// Adds nodes and tensors; returns the new tensors' names, A before B, in program order.
Result<std::vector<std::string>> add_low_rank(Program& program,
                                              std::map<std::string, Tensor>& tensors,
                                              const WeightShapes& shapes,
                                              const LowRankOptions& options);

struct LowRankFactors {
  Tensor a, b;  // [rank, in], [out, rank]
};

// The same with these factors, by node name.
Result<std::vector<std::string>> insert_low_rank(
    Program& program, std::map<std::string, Tensor>& tensors,
    const std::map<std::string, LowRankFactors>& factors);

// Takes every adapter into its weight. tensors: floats, all of them.
Status merge_low_rank(Program& program, std::map<std::string, Tensor>& tensors);

bool has_low_rank(const Program& program);
// What the tensors beside a node are called.
std::string low_rank_a(const std::string& node);
std::string low_rank_b(const std::string& node);
// The names of all A and B.
std::set<std::string> low_rank_tensors(const Program& program);
// Can factors stand beside it: a linear layer of a block?
bool takes_low_rank(const Node& node);

}  // namespace nibble
