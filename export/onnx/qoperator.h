// Lowers a net with static integer activations to operators that read and make codes
// themselves: QOperator, as ONNX Runtime's static quantizer calls it.
//
//   conv2d               QLinearConv, with the int32 bias of the integer path
//   linear               QLinearMatMul without a bias, else QGemm; QGemm makes the floats
//                        where nothing quantizes them
//   add, concat          QLinearAdd, QLinearConcat
//   leaky_relu           QLinearLeakyRelu
//   global_average_pool  QLinearGlobalAveragePool, Flatten
//   max_pool, shortcut_pad, flatten    MaxPool, Slice and Pad, Flatten of the codes
//
// Codes are uint8, which all of these have: signed ones lie 128 higher, and so does their
// zero point. A ReLU that alone reads a sum is the lower end of its value's codes, and of
// a narrower range than uint8's a Clip follows. What has no such operator (Softmax)
// computes in floats between DequantizeLinear and QuantizeLinear.
//
// QLinearConv and QLinearMatMul are the standard's, the others com.microsoft's.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "export/onnx/onnx_graph.h"
#include "kernels/artifact/artifact.h"
#include "kernels/program/shape.h"

namespace nibble {

// unsupported: a quantized layer that none of these operators holds (all are listed, each
// with its reason). invalid_argument: no layer with static integer inputs.
Status check_qoperator(const Artifact& artifact);

class QOperatorLowering {
 public:
  // What is passed must outlive this; shapes are those of the program's values.
  QOperatorLowering(const Artifact& artifact, OnnxGraph& graph, const Shapes& shapes)
      : artifact_(artifact), graph_(graph), shapes_(shapes) {}

  bool has_codes(const std::string& value) const { return codes_.count(value) > 0; }
  // The codes of `value` from the floats x.
  void quantize(const std::string& value, const std::string& x);
  // The floats that its codes stand for, under this name; made once.
  std::string floats(const std::string& value, const std::string& name);
  // Lowers the node, or is done with it already (a ReLU). false: it has no such operator.
  // output: what floats that it makes are called.
  Result<bool> lower(const Node& node, const std::string& output);

 private:
  struct Codes {
    std::string name, scale, zero;
  };
  std::string byte(int code);
  Codes scheme_of(const ActivationScheme& activation, const std::string& name);
  // What an operator is to make, of which narrow() makes `codes` in their range.
  static std::string wide(const ActivationScheme& activation, const std::string& codes);
  void narrow(const ActivationScheme& activation, const std::string& codes);
  Codes quantized(const ActivationScheme& activation, const std::string& x,
                  const std::string& codes);
  Codes input(const Node& node);
  Status lower_layer(const Node& node, const std::string& value,
                     const std::string& output);
  Result<bool> lower_moving(const Node& node);
  bool lower_values(const Node& node, const std::string& value);
  std::vector<std::string> dimensions(const std::string& value) const;

  const Artifact& artifact_;
  OnnxGraph& graph_;
  const Shapes& shapes_;
  std::map<std::string, Codes> codes_;  // of a value of the program
  std::set<std::string> made_;          // floats that exist already
  std::set<std::string> fused_;         // ReLUs whose values are made
};

}  // namespace nibble
