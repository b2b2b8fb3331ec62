#include "export/validate/kernel_check.h"

#include <cmath>
#include <set>

#include "kernels/base/cpu.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/program/layers.h"

namespace nibble {
namespace {

// One token takes the decode path, several the tiled one; odd, so that tiles end early.
constexpr int64_t kTokens[] = {1, 7};

std::vector<float> seeded_inputs(int64_t count) {
  SplitMix64 random(20260101);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = static_cast<float>(4 * random.uniform() - 2);
  return x;
}

Status disagrees(const std::string& layer, const char* row, size_t index, double required,
                 double tolerance, double found) {
  return error(StatusCode::failed_precondition, "[validate] ", layer, ": ", row,
               ", output ", index, ": must be the reference's ", required,
               tolerance == 0 ? std::string(" bit for bit") : cat(" within ", tolerance),
               "; found ", found, "; please report this kernel and CPU");
}

// Every row for one activation kind against the reference, on the same inputs.
Status check_linear(const std::string& layer, const LinearWeight& weight,
                    const float* bias, LinearActivation activation, KernelCheck* result) {
  std::vector<const LinearKernel*> rows;
  for (const LinearKernel& row : linear_kernels()) {
    const bool runs = (row.flags & ~usable_cpu_flags()) == 0;
    if (runs && row.flags != 0 && row.can_run(weight.scheme, weight.cols, activation))
      rows.push_back(&row);
  }
  if (rows.empty()) return ok_status();
  const bool exact = activation == LinearActivation::s8;
  for (const int64_t tokens : kTokens) {
    const std::vector<float> inputs = seeded_inputs(tokens * weight.cols);
    const MatrixView<const float> x(inputs.data(), tokens, weight.cols);
    const auto outputs = static_cast<size_t>(tokens * weight.rows);
    std::vector<float> required(outputs);
    std::vector<double> magnitude(outputs, 0);
    NIBBLE_RETURN_IF_ERROR(linear_reference(weight, activation, x, bias,
                                            {required.data(), tokens, weight.rows}));
    if (!exact) {
      NIBBLE_RETURN_IF_ERROR(
          linear_magnitude(weight, x, bias, {magnitude.data(), tokens, weight.rows}));
    }
    for (const LinearKernel* row : rows) {
      NIBBLE_ASSIGN_OR_RETURN(const PreparedLinear prepared,
                              prepare_linear(*row, weight));
      std::vector<float> found(outputs, std::nanf(""));
      run_linear(prepared, x, bias, {found.data(), tokens, weight.rows});
      for (size_t i = 0; i < outputs; ++i) {
        const double tolerance = exact ? 0 : linear_tolerance(weight.cols) * magnitude[i];
        const double difference = std::abs(static_cast<double>(found[i]) - required[i]);
        if (!(difference <= tolerance)) {
          return disagrees(layer, row->name, i, required[i], tolerance, found[i]);
        }
      }
      if (tokens == kTokens[0]) ++result->rows[row->name];
    }
  }
  return ok_status();
}

// The rows of conv2d for one activation that this machine runs, the reference left out.
std::vector<const Conv2dKernel*> conv_rows(LinearActivation activation) {
  std::vector<const Conv2dKernel*> rows;
  for (const Conv2dKernel& row : conv2d_kernels()) {
    const bool runs = (row.flags & ~usable_cpu_flags()) == 0;
    if (runs && row.flags != 0 && row.activation == activation) rows.push_back(&row);
  }
  return rows;
}

Status check_float_conv(const std::string& layer, const Conv2dShape& shape,
                        const LinearWeight& weight, const float* bias,
                        KernelCheck* result) {
  const auto outputs =
      static_cast<size_t>(shape.outputs * shape.out_height() * shape.out_width());
  std::vector<float> x = seeded_inputs(shape.channels * shape.height * shape.width);
  std::vector<float> w(static_cast<size_t>(weight.rows * weight.cols));
  std::vector<float> required(outputs), magnitude(outputs), found(outputs);
  NIBBLE_RETURN_IF_ERROR(weight_rows(weight, 0, {w.data(), weight.rows, weight.cols}));
  conv2d_reference(shape, x.data(), w.data(), bias, required.data());
  std::vector<float> x_size = x, w_size = w, bias_size;
  for (float& value : x_size) value = std::abs(value);
  for (float& value : w_size) value = std::abs(value);
  for (int64_t i = 0; bias != nullptr && i < shape.outputs; ++i) {
    bias_size.push_back(std::abs(bias[i]));
  }
  conv2d_reference(shape, x_size.data(), w_size.data(),
                   bias == nullptr ? nullptr : bias_size.data(), magnitude.data());
  for (const Conv2dKernel* row : conv_rows(LinearActivation::f32)) {
    NIBBLE_ASSIGN_OR_RETURN(const PreparedConv2d conv,
                            prepare_conv2d(shape, weight, row->flags));
    run_conv2d(conv, x.data(), bias, found.data());
    for (size_t i = 0; i < outputs; ++i) {
      const double tolerance = linear_tolerance(shape.patch()) * magnitude[i];
      if (!(std::abs(static_cast<double>(found[i]) - required[i]) <= tolerance)) {
        return disagrees(layer, row->name, i, required[i], tolerance, found[i]);
      }
    }
    ++result->rows[conv.kernel->name];
  }
  return ok_status();
}

// Codes of both signs: whichever value feeds the layer.
Status check_integer_conv(const std::string& layer, const Conv2dShape& shape,
                          const PackedTensor& packed, KernelCheck* result) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed));
  const std::vector<int8_t> w(q.codes.begin(), q.codes.end());
  SplitMix64 random(20260102);
  std::vector<uint8_t> codes(
      static_cast<size_t>(shape.channels * shape.height * shape.width));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(256));
  const auto outputs =
      static_cast<size_t>(shape.outputs * shape.out_height() * shape.out_width());
  std::vector<int32_t> required(outputs), found(outputs);
  for (const bool unsigned_input : {true, false}) {
    conv2d_s8_reference(shape, codes.data(), unsigned_input, w.data(), required.data());
    for (const Conv2dKernel* row : conv_rows(LinearActivation::s8)) {
      NIBBLE_ASSIGN_OR_RETURN(const PreparedConv2dS8 conv,
                              prepare_conv2d_s8(shape, w, unsigned_input, row->flags));
      run_conv2d_s8(conv, codes.data(), found.data());
      for (size_t i = 0; i < outputs; ++i) {
        if (found[i] != required[i]) {
          return disagrees(layer, row->name, i, required[i], 0, found[i]);
        }
      }
      if (unsigned_input) ++result->rows[conv.kernel->name];
    }
  }
  return ok_status();
}

// The layer's own weights on a small image: odd sides, so that tiles end early.
Conv2dShape conv_shape(const Node& node, const std::vector<int64_t>& weight) {
  Conv2dShape shape;
  shape.outputs = weight[0];
  shape.groups = node.integer("groups", 1);
  shape.channels = weight[1] * shape.groups;
  if (weight.size() == 2) {  // a linear layer
    shape.height = shape.width = 1;
    return shape;
  }
  shape.kernel_h = weight[2];
  shape.kernel_w = weight[3];
  shape.height = weight[2] + 6;
  shape.width = weight[3] + 8;
  const std::vector<int64_t> stride = node.integers("stride", {1, 1});
  const std::vector<int64_t> padding = node.integers("padding", {0, 0});
  shape.stride_h = stride[0];
  shape.stride_w = stride[1];
  shape.pad_h = padding[0];
  shape.pad_w = padding[1];
  return shape;
}

bool integer_codes(const QuantScheme& scheme) {
  const ElementInfo& info = element_info(scheme.code);
  return scheme.offset == OffsetKind::none && info.kind == ElementKind::integer &&
         info.lowest < 0;
}

Result<LinearWeight> weight_of(const Artifact& artifact, const std::string& tensor) {
  const auto packed = artifact.packed.find(tensor);
  if (packed != artifact.packed.end()) return linear_weight(packed->second);
  const auto plain = artifact.tensors.find(tensor);
  if (plain != artifact.tensors.end()) return linear_weight(plain->second);
  return error(StatusCode::not_found, "[validate] ", tensor,
               ": every parameter must be in the artifact; found none of this name");
}

}  // namespace

Result<KernelCheck> check_layer_kernels(const Artifact& artifact) {
  KernelCheck result;
  std::set<std::string> seen;
  for (const Layer& layer : layers_of(artifact.program)) {
    const Node& node = *layer.node;
    const std::string& tensor = layer.tensor;
    const bool conv = node.op == "conv2d";
    if (node.op == "embedding" || !seen.insert(tensor).second) continue;
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, weight_of(artifact, tensor));
    std::vector<float> bias;
    const auto found = artifact.tensors.find(node.parameter("bias"));
    if (found != artifact.tensors.end()) {
      NIBBLE_ASSIGN_OR_RETURN(bias, to_float(found->second));
    }
    const float* bias_data = bias.empty() ? nullptr : bias.data();
    const auto packed = artifact.packed.find(tensor);
    const Conv2dShape shape = conv_shape(node, packed != artifact.packed.end()
                                                   ? packed->second.shape
                                                   : artifact.tensors.at(tensor).shape);
    if (conv) {
      NIBBLE_RETURN_IF_ERROR(
          check_float_conv(layer.name, shape, weight, bias_data, &result));
    } else {
      for (const auto activation :
           {LinearActivation::f32, LinearActivation::bf16, LinearActivation::s8}) {
        NIBBLE_RETURN_IF_ERROR(
            check_linear(layer.name, weight, bias_data, activation, &result));
      }
    }
    if (packed != artifact.packed.end() && !artifact.program.is_language_model() &&
        integer_codes(packed->second.scheme)) {
      NIBBLE_RETURN_IF_ERROR(
          check_integer_conv(layer.name, shape, packed->second, &result));
    }
  }
  return result;
}

}  // namespace nibble
