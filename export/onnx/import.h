// Reads an ONNX graph into a Program, so that it can be run, quantized and written again.
//
// opset 7 to 21, one float input [batch, ..] (a fixed batch is left open), one output:
// Conv, BatchNormalization, Relu, LeakyRelu, MaxPool, GlobalAveragePool, ReduceMean over an
// image, Concat and Add of values, Gemm and MatMul with constants, Flatten, Reshape and
// Squeeze that flatten, Softmax, strided Slice and channel Pad (a ResNet's shortcut),
// Dropout, Identity and Cast between floats. Folded: Constant, Transpose and Cast of
// constants, Shape with what picks the batch out of it; If on a constant.
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
Result<ImportedGraph> import_onnx(const std::filesystem::path& file);

}  // namespace nibble
