// Reads an ONNX graph into a Program, so that it can be run, quantized and written again.
//
// opset 7 to 21, float inputs with a batch (of one input a fixed batch is left open): Conv,
// BatchNormalization, Relu, LeakyRelu, MaxPool, GlobalAveragePool, ReduceMean over an image,
// Concat and Add of values, Gemm and MatMul with constants, Flatten, Reshape and Squeeze
// that flatten, Softmax, strided Slice and channel Pad (a ResNet's shortcut), Dropout,
// Identity and Cast between floats; and of nets over signals (several inputs, or one of
// three dimensions) Conv over [n, c, l], LSTM, Pad by reflection, Slice, Gather of one index,
// Transpose, Squeeze, Unsqueeze, Reshape, Sqrt, Sigmoid, Mul, squares, ReduceMean over the
// last axes. Folded (import_fold.h): what follows from constants and sizes, and If on it.
//
// Graphs whose inputs are all integers are encoders': import_encoder.h.
//
// Values and tensors keep their names, nodes theirs or else their first output's. A pool's
// [n, c, 1, 1] is [n, c] in the Program, and so is an output that has it.
//
// unsupported: an operator or attribute that has no form here, by the node's name.
// data_loss: no model, or data that is not there. Allocates; safe from any thread.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "kernels/artifact/ledger.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct ImportedGraph {
  Program program;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;  // image_mean ... as the graph has it
  Ledger ledger;                                // of what the program does not read
};
// sizes: what open sizes other than the batch are, and integer inputs, by name.
Result<ImportedGraph> import_onnx(const std::filesystem::path& file,
                                  const std::map<std::string, int64_t>& sizes = {});

}  // namespace nibble
