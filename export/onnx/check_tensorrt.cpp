// What TensorRT's explicit quantization takes of a QDQ graph: codes of INT8 or FP8 (e4m3)
// whose zero point is 0, one scale a tensor for activations, one a channel or tensor for
// weights, INT4 for the weights of matrices alone and in blocks, no quantized bias.
//
// Unsigned codes up to 127 (uint7 and fewer bits, after a ReLU) are INT8 codes as well;
// the 255 of uint8 are not.
#include "export/onnx/lowering.h"
#include "export/onnx/onnx_weight.h"
#include "kernels/program/layers.h"

namespace nibble {
namespace {

Status cannot(const std::string& where, const char* required, const QuantScheme& scheme,
              const char* advice) {
  return error(StatusCode::unsupported, "[onnx] ", where, ": TensorRT ", required,
               "; found ", to_string(scheme), "; ", advice);
}

Status check_values(const ActivationScheme& activation, const std::string& where) {
  const ElementInfo& code = element_info(activation.scheme.code);
  if (activation.scheme.code == Element::e4m3) return ok_status();
  if (activation.dynamic) {
    return cannot(where, "has static scales for activations", activation.scheme,
                  "calibrate static scales (recipe w8a8-static)");
  }
  if (code.kind == ElementKind::integer && code.lowest >= -128 && code.highest <= 127 &&
      activation.zero_point == 0) {
    return ok_status();
  }
  return cannot(where, "has signed codes of 8 bits with zero point 0", activation.scheme,
                "quantize with --set activations.unsigned=uint7/t@f32, or leave --target "
                "tensorrt out");
}

Status check_weight(const Node& node, const Layer& layer, const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  NIBBLE_ASSIGN_OR_RETURN(const OnnxBlocks blocks,
                          onnx_blocks(scheme, packed.rows, packed.cols, layer.tensor));
  const bool has_type = blocks.type == OnnxType::int8 || blocks.type == OnnxType::int4 ||
                        blocks.type == OnnxType::e4m3;
  if (!has_type || scheme.offset != OffsetKind::none) {
    return cannot(layer.tensor, "has symmetric INT8, INT4 and FP8 (e4m3) weights", scheme,
                  "quantize symmetrically, or leave --target tensorrt out");
  }
  if (blocks.type == OnnxType::int4 && (blocks.group == 0 || node.op == "conv2d")) {
    return cannot(layer.tensor, "has INT4 in blocks along the rows of a matrix alone",
                  scheme, "use a group for matrices and 8 bits for convolutions");
  }
  if (has_signed_scales(scheme)) {
    CodedMatrix levels;
    NIBBLE_RETURN_IF_ERROR(unpack_levels(packed, levels));
    for (const float scale : levels.scales.at(0).values) {
      if (scale > 0) continue;
      return cannot(layer.tensor, "has positive scales alone; some of these are negative",
                    scheme, "quantize with --set scale_rule.full_range=false");
    }
  }
  if (blocks.type != OnnxType::int4 && blocks.group != 0) {
    return cannot(layer.tensor, "has one scale a channel or tensor for INT8 and FP8",
                  scheme, "quantize with int8/r@f32");
  }
  return ok_status();
}

}  // namespace

Status check_tensorrt(const Artifact& artifact, const LoweringOptions& options) {
  if (options.matmul_nbits || options.qoperator) {
    return error(StatusCode::invalid_argument,
                 "[onnx] --target tensorrt: needs --quant-format qdq; found ",
                 options.matmul_nbits ? "matmulnbits" : "qoperator",
                 ", which is ONNX Runtime's own; leave one of the two out");
  }
  for (const auto& [value, activation] : artifact.activations) {
    NIBBLE_RETURN_IF_ERROR(check_values(activation, cat("value ", value)));
  }
  for (const Node& node : artifact.program.nodes) {
    for (const Layer& layer : layers_of(node)) {
      const auto packed = artifact.packed.find(layer.tensor);
      if (packed == artifact.packed.end()) continue;
      NIBBLE_RETURN_IF_ERROR(check_weight(node, layer, packed->second));
      const auto scheme = artifact.layers.find(layer.tensor);
      if (scheme != artifact.layers.end() && scheme->second.input) {
        NIBBLE_RETURN_IF_ERROR(
            check_values(*scheme->second.input, cat("the input of ", node.name)));
      }
    }
  }
  return ok_status();
}

}  // namespace nibble
