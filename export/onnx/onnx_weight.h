// A quantized matrix as ONNX stores it: codes of one ONNX type, and one scale (and zero
// point) a block along one axis, as DequantizeLinear of opset 21 reads them (e2m1: 23).
//
//   y[.., k, ..] = (code[.., k, ..] - zero_point[.., k / B, ..]) * scale[.., k / B, ..]
//
// Every scheme whose scale is constant on runs of columns has this form: levels are
// multiplied out in float (exactly as dequantize does), blocks of several rows are
// repeated row by row, and codes of 2, 3 (5, 6, 7) bits lie in INT4 (INT8), so no value
// changes. NVFP4's e4m3 scales stay codes, under their tensor's scale; MXFP4's e8m0 ones
// do from opset 24 on.
//
// unsupported: an element without an ONNX type, a minimum, a zero point that is not an
// integer of the code's range, flat blocks that run over row ends. The message names
// tensor and scheme.
#pragma once

#include <string>
#include <vector>

#include "export/onnx/onnx_graph.h"
#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

// The smallest ONNX type that holds every code of the element.
Result<OnnxType> onnx_code_type(Element element, const std::string& where);

// Where a scale is constant. group: columns that share one, 0 when all of a row do.
struct OnnxBlocks {
  OnnxType type = OnnxType::int8;
  bool per_row = false;
  int64_t group = 0;
};
Result<OnnxBlocks> onnx_blocks(const QuantScheme& scheme, int64_t rows, int64_t cols,
                               const std::string& where);

enum class Orientation {
  rows_first,     // [rows, cols]: embedding (Gather), convolution
  columns_first,  // [cols, rows]: MatMul's right operand
};

struct OnnxWeight {
  OnnxType type = OnnxType::int8;
  std::vector<int64_t> shape;        // two dimensions
  std::string codes;                 // raw bytes
  std::vector<int64_t> scale_shape;  // also the zero points'; empty: per tensor
  std::vector<float> scales;         // where scale_type is float32
  OnnxType scale_type = OnnxType::float32;
  std::string scale_codes;  // raw bytes of another scale_type
  float outer_scale = 0;    // scale_codes are dequantized with this one; 0: they are not
  std::string zero_points;    // raw bytes of `type`; empty: none
  OnnxAttributes attributes;  // axis, block_size
  bool blocked = false;
};
Result<OnnxWeight> make_onnx_weight(const CodedMatrix& q, Orientation orientation,
                                    const std::string& where, int64_t opset = kOnnxOpset);

// Static activations: integers, or FP8 for TensorRT, with one scale. unsupported: anything
// dynamic or finer.
Status check_onnx_activation(const ActivationScheme& activation, const std::string& where,
                             bool tensorrt);

}  // namespace nibble
