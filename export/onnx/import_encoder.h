// Reads the ONNX graph of a BERT-like encoder, as other exporters write it, into a
// Program.
//
// Inputs: token ids, and where there are an attention mask (1: a token, 0: padding) and
// token types, each int64 or int32 [batch, sequence], both sizes open. The first output
// is the program's: hidden states [batch, sequence, features] or an embedding [batch,
// features].
//
//   embedding    Gather of a constant table by ids, by token types, by the places 0, 1, 2
//   ..;
//                token types that are a constant go into the table of positions
//   linear       MatMul with a constant, and Add of a constant; Gemm of [tokens,
//   features] layer_norm   LayerNormalization, or ReduceMean, Sub, Pow or Mul,
//   ReduceMean, Add, Sqrt,
//                Div, Mul, Add
//   gelu         Gelu, or x/2 (1 + Erf(x / sqrt 2)), or x/2 (1 + Tanh(sqrt(2/pi) (x +
//   0.044715
//                x^3))), their factors in any order;  relu
//   attention    Reshape and Transpose to heads, MatMul, a scale on queries, keys or
//   scores,
//                a mask that is added or chosen by Where, Softmax, MatMul, and back
//   mean_pool, first_token, l2_normalize as sentence-transformers' modules write them
//   add          of two values
//
// Constant, shape and mask sub-graphs are folded (symbolic.h), If on what they make is
// its branch. A mask must hide padding from every token and nothing else. Dropout,
// Identity and Cast pass through. What only other outputs read (a pooler) is left out,
// and the ledger says so of each parameter.
//
// unsupported: what the first output needs and is none of these, by the node's name.
// data_loss: data that is not there. Allocates; safe from any thread.
#pragma once

#include "export/onnx/import.h"

namespace onnx {
class GraphProto;
class ModelProto;
}  // namespace onnx

namespace nibble {

// Do all inputs hold integers?
bool reads_tokens(const onnx::GraphProto& graph);

Result<ImportedGraph> import_encoder(const onnx::ModelProto& model,
                                     const std::filesystem::path& directory);

}  // namespace nibble
