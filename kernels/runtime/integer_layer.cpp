#include "kernels/runtime/integer_layer.h"

#include <cmath>
#include <cstdlib>

#include "kernels/ops/scratch.h"
#include "kernels/runtime/integer_node.h"

namespace nibble {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

bool is_integer(const QuantScheme& scheme) {
  return !scheme.is_float() && element_info(scheme.code).kind == ElementKind::integer;
}

}  // namespace

Status check_static_input(const std::string& where, const ActivationScheme& scheme) {
  const QuantScheme& q = scheme.scheme;
  const bool integer = is_integer(q) && q.offset == OffsetKind::none &&
                       q.scales.size() == 1 &&
                       q.scales[0].block.kind == Block::Kind::tensor;
  if (integer && !scheme.dynamic && scheme.zero_point == 0 && scheme.scale > 0 &&
      std::isfinite(scheme.scale)) {
    return ok_status();
  }
  return failure(
      StatusCode::unsupported, where,
      "static integer codes with one scale > 0 and zero point 0 were required; found ",
      to_string(q), scheme.dynamic ? ", dynamic" : "", ", scale ", scheme.scale,
      ", zero point ", scheme.zero_point, "; change the recipe");
}

const ActivationScheme* static_input(const Artifact& artifact,
                                     const std::string& weight) {
  const auto layer = artifact.layers.find(weight);
  if (layer == artifact.layers.end() || !layer->second.input) return nullptr;
  const ActivationScheme& input = *layer->second.input;
  const bool integer =
      !artifact.program.is_language_model() && !input.dynamic && is_integer(input.scheme);
  return integer ? &input : nullptr;
}

Result<IntegerLayer> IntegerLayer::create(const Artifact& artifact,
                                          const std::string& node,
                                          const std::string& weight,
                                          const std::string& bias, Conv2dShape shape,
                                          const ActivationScheme& input,
                                          std::map<std::string, std::string>* kernels) {
  NIBBLE_RETURN_IF_ERROR(check_static_input(node + " input", input));
  const auto packed = artifact.packed.find(weight);
  if (packed == artifact.packed.end()) {
    return failure(StatusCode::failed_precondition, node,
                   "integer codes were required for ", weight,
                   "; the layer is float; quantize it with a static recipe");
  }
  const QuantScheme& scheme = packed->second.scheme;
  const bool fits = is_integer(scheme) && element_info(scheme.code).lowest < 0 &&
                    scheme.offset == OffsetKind::none && scheme.scales.size() == 1 &&
                    !scheme.scales[0].shifted &&
                    (scheme.scales[0].block.kind == Block::Kind::row ||
                     scheme.scales[0].block.kind == Block::Kind::tensor);
  if (!fits) {
    return failure(
        StatusCode::unsupported, node,
        "symmetric integer weights with a scale a channel or a tensor were required, "
        "as int8/r@f32; found ",
        to_string(scheme), "; change the recipe");
  }
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed->second));
  shape.outputs = q.rows;
  if (const std::vector<int64_t>& w = packed->second.shape; w.size() == 4) {
    shape.kernel_h = w[2];
    shape.kernel_w = w[3];
  }
  if (shape.patch() != q.cols) {
    return failure(StatusCode::invalid_argument, node, "a weight of ", shape.patch(),
                   " columns was required; found ", q.cols);
  }
  IntegerLayer layer;
  layer.shape = shape;
  layer.input = input;
  std::vector<int8_t> weights(q.codes.size());
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = static_cast<int8_t>(q.codes[i]);
  const bool is_unsigned = element_info(input.scheme.code).lowest >= 0;
  NIBBLE_ASSIGN_OR_RETURN(layer.conv, prepare_conv2d_s8(shape, weights, is_unsigned));
  if (kernels != nullptr) (*kernels)[weight] = conv2d_s8_kernel_name(layer.conv);
  std::vector<float> reals;
  if (!bias.empty()) {
    const auto tensor = artifact.tensors.find(bias);
    if (tensor == artifact.tensors.end()) {
      return failure(StatusCode::not_found, node, "tensor ", bias,
                     " was required; the artifact has none by this name");
    }
    NIBBLE_ASSIGN_OR_RETURN(reals, to_float(tensor->second));
  }
  const int64_t reach = shape.patch() * 255 * 128;  // of the products alone
  for (int64_t c = 0; c < q.rows; ++c) {
    const std::vector<float>& scales = q.scales[0].values;
    const float scale = scales.size() == 1 ? scales[0] : scales[static_cast<size_t>(c)];
    layer.multiplier.push_back(input.scale * scale);
    const float real = reals.empty() ? 0 : reals[static_cast<size_t>(c)];
    layer.bias.push_back(integer_bias(real, input.scale, scale));
    if (std::abs(static_cast<int64_t>(layer.bias.back())) + reach >= (int64_t{1} << 31)) {
      return failure(StatusCode::out_of_range, node, "a bias within int32 at scale ",
                     layer.multiplier.back(), " was required; found ", real,
                     " for channel ", c, "; keep this layer float");
    }
  }
  return layer;
}

void IntegerLayer::run_codes(const uint8_t* codes, float* y) const {
  thread_local Scratch<int32_t> scratch;
  const int64_t each = pixels();
  int32_t* sums = scratch.get(static_cast<size_t>(shape.outputs * each));
  run_conv2d_s8(conv, codes, sums);
  for (int64_t c = 0; c < shape.outputs; ++c) {
    const float m = multiplier[static_cast<size_t>(c)];
    const int32_t offset = bias[static_cast<size_t>(c)];
    for (int64_t i = c * each; i < (c + 1) * each; ++i) {
      y[i] = static_cast<float>(sums[i] + offset) * m;
    }
  }
}

void IntegerLayer::run(const float* x, float* y) const {
  thread_local Scratch<uint8_t> scratch;
  const int64_t size = input_size();
  uint8_t* codes = scratch.get(static_cast<size_t>(size));
  const int lowest = code_lowest(input.scheme), highest = code_highest(input.scheme);
  for (int64_t i = 0; i < size; ++i) {
    codes[i] = static_cast<uint8_t>(quantize_real(x[i], input.scale, lowest, highest));
  }
  run_codes(codes, y);
}

}  // namespace nibble
