// Each ONNX operator as nodes of a Program (export/onnx/import.h lists them).
#include <algorithm>

#include "export/onnx/import_graph.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

using Sizes = Import::Sizes;

}  // namespace

Status Import::conv(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  NIBBLE_RETURN_IF_ERROR(check_ones(node, "dilations"));
  NIBBLE_ASSIGN_OR_RETURN(const Sizes pads, padding(node));
  const Tensor* weight = has_input(node, 1) ? constant(node.input(1)) : nullptr;
  if (weight == nullptr || weight->shape.size() != 4) {
    return refuse(node, "needs a constant weight [o, c, kh, kw]; found ",
                  weight == nullptr ? std::string("none") : shape_text(weight->shape));
  }
  Node& made = emit(node, "conv2d", {x}, 4);
  made.attributes["stride"] = integers(node, "strides", {1, 1});
  made.attributes["padding"] = pads;
  made.attributes["groups"] = integer(node, "group", 1);
  parameter(made, "weight", node.input(1));
  if (!has_input(node, 2)) return ok_status();
  if (constant(node.input(2)) == nullptr) return refuse(node, "needs a constant bias");
  parameter(made, "bias", node.input(2));
  return ok_status();
}

Status Import::batch_norm(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  if (integer(node, "training_mode", 0) != 0 || integer(node, "spatial", 1) == 0) {
    return refuse(node, "is for inference, per channel; found training_mode or spatial = 0");
  }
  Node& made = emit(node, "batch_norm", {x}, 4);
  made.attributes["epsilon"] = static_cast<double>(number(node, "epsilon", 1e-5f));
  constexpr const char* kRoles[] = {"weight", "bias", "running_mean", "running_var"};
  for (int i = 0; i < 4; ++i) {
    if (!has_input(node, i + 1) || constant(node.input(i + 1)) == nullptr) {
      return refuse(node, "needs a constant ", kRoles[i]);
    }
    parameter(made, kRoles[i], node.input(i + 1));
  }
  return ok_status();
}

Status Import::rectifier(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  const Value from = of(node, 0);
  const bool leaky = node.op_type() == "LeakyRelu";
  Node& made = emit(node, leaky ? "leaky_relu" : "relu", {x}, from.rank, from.squeezed);
  if (leaky) made.attributes["slope"] = static_cast<double>(number(node, "alpha", 0.01f));
  return ok_status();
}

Status Import::pool(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  NIBBLE_RETURN_IF_ERROR(check_ones(node, "dilations"));
  NIBBLE_ASSIGN_OR_RETURN(const Sizes pads, padding(node));
  if (integer(node, "ceil_mode", 0) != 0) {
    return refuse(node, "needs ceil_mode 0; found 1; pad in a node of its own");
  }
  Node& made = emit(node, "max_pool", {x}, 4);
  made.attributes["kernel"] = integers(node, "kernel_shape", {1, 1});
  made.attributes["stride"] = integers(node, "strides", {1, 1});
  made.attributes["padding"] = pads;
  return ok_status();
}

Status Import::average(const NodeProto& node, bool keeps_axes) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  emit(node, "global_average_pool", {x}, keeps_axes ? 4 : 2, keeps_axes);
  return ok_status();
}

Status Import::reduce_mean(const NodeProto& node) {
  Sizes axes = integers_at(node, "axes", 1);
  for (int64_t& axis : axes) axis += axis < 0 ? 4 : 0;
  std::sort(axes.begin(), axes.end());
  if (axes != Sizes{2, 3}) {
    return refuse(node, "is over the axes 2 and 3 of an image; found ", shape_text(axes));
  }
  return average(node, integer(node, "keepdims", 1) != 0);
}

Status Import::concat(const NodeProto& node) {
  if (std::all_of(node.input().begin(), node.input().end(),
                  [&](const std::string& input) { return sizes_.count(input) > 0; })) {
    return fold_shape(node);
  }
  std::vector<std::string> inputs;
  for (int i = 0; i < node.input_size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, i));
    inputs.push_back(x);
  }
  const Value first = of(node, 0);
  for (int i = 1; i < node.input_size(); ++i) {
    if (of(node, i).rank != first.rank || of(node, i).squeezed != first.squeezed) {
      return refuse(node, "needs inputs of the same dimensions");
    }
  }
  if (integer(node, "axis", 1) != 1 && integer(node, "axis", 1) != 1 - first.rank) {
    return refuse(node, "joins channels, axis 1; found axis ", integer(node, "axis", 1));
  }
  if (inputs.size() == 1) {
    same(node);
  } else {
    emit(node, "concat", std::move(inputs), first.rank, first.squeezed);
  }
  return ok_status();
}

// Two values; or a constant, which is the bias of the product before it.
Status Import::add(const NodeProto& node) {
  for (int i = 0; i < 2 && node.input_size() == 2; ++i) {
    const Tensor* bias = constant(node.input(i));
    if (bias == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 1 - i));
    Node* product = nullptr;
    for (Node& made : result_.program.nodes) {
      if (made.outputs[0] == x) product = &made;
    }
    const bool alone = result_.program.consumers(x).empty();
    const bool layer =
        product != nullptr && (product->op == "linear" || product->op == "conv2d") &&
        product->parameter("bias").empty();
    int64_t channels = 0;
    if (layer) {
      const Tensor& weight = result_.tensors.at(product->parameter("weight"));
      channels = weight.shape[0];
    }
    // [N], [1, N] of a matrix; [1, C, 1, 1] or [C, 1, 1] of a convolution.
    Sizes tail = bias->shape;
    if (layer && product->op == "conv2d") {
      for (int k = 0; k < 2 && !tail.empty() && tail.back() == 1; ++k) tail.pop_back();
    }
    const bool fits = layer && alone && bias->numel() == channels && !tail.empty() &&
                      tail.back() == channels;
    if (!fits) {
      return refuse(node, "of a constant is the bias of a product just before it; found ",
                    shape_text(bias->shape), " after another node");
    }
    Tensor flat = *bias;
    flat.shape = {channels};
    result_.tensors[node.input(i)] = flat;
    product->parameters["bias"] = node.input(i);
    values_[node.output(0)] = values_.at(node.input(1 - i));
    return ok_status();
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string a, value(node, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string b, value(node, 1));
  emit(node, "add", {a, b}, of(node, 0).rank, of(node, 0).squeezed);
  return ok_status();
}

// y = x B + C, B [K, N] or (transB) [N, K].
Status Import::gemm(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  const Tensor* weight = has_input(node, 1) ? constant(node.input(1)) : nullptr;
  const bool plain = number(node, "alpha", 1) == 1 && number(node, "beta", 1) == 1 &&
                     integer(node, "transA", 0) == 0;
  if (!plain || weight == nullptr || weight->shape.size() != 2 || of(node, 0).rank != 2) {
    return refuse(node, "needs [n, K] times a constant matrix, alpha and beta 1, transA 0");
  }
  const bool turned = integer(node, "transB", 0) != 0;
  Node& made = emit(node, "linear", {x}, 2);
  const std::string name = turned ? node.input(1) : made.name + ".weight";
  result_.tensors[name] = turned ? *weight : transposed(*weight);
  made.parameters["weight"] = name;
  if (!has_input(node, 2)) return ok_status();
  const Tensor* bias = constant(node.input(2));
  const int64_t outputs = result_.tensors.at(name).shape[0];
  if (bias == nullptr || bias->numel() != outputs) {
    return refuse(node, "needs a constant bias of ", outputs, " values");
  }
  Tensor flat = *bias;
  flat.shape = {outputs};
  result_.tensors[node.input(2)] = flat;
  made.parameters["bias"] = node.input(2);
  return ok_status();
}

Status Import::matmul(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  const Tensor* weight = has_input(node, 1) ? constant(node.input(1)) : nullptr;
  if (weight == nullptr || weight->shape.size() != 2 || of(node, 0).squeezed) {
    return refuse(node, "needs a value times a constant matrix [K, N]");
  }
  Node& made = emit(node, "linear", {x}, of(node, 0).rank);
  made.parameters["weight"] = made.name + ".weight";
  result_.tensors[made.name + ".weight"] = transposed(*weight);
  return ok_status();
}

// Flatten, and Reshape and Squeeze that do the same: [n, ..] -> [n, product].
Status Import::flatten(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  const Value from = of(node, 0);
  const std::string& op = node.op_type();
  bool fits = false;
  if (op == "Flatten") {
    fits = integer(node, "axis", 1) == 1;
  } else if (op == "Reshape") {
    const Sizes to = integers_at(node, "shape", 1);
    const bool batch_first = to.size() == 2 && (to[0] == 0 || to[0] == kBatchSize ||
                                                to[0] == 1 || to[0] == -1);
    fits = batch_first && (to[1] == -1 || (to[1] > 0 && to[0] != 1)) &&
           !(to[0] == -1 && to[1] == -1);
  } else {  // Squeeze
    const Sizes axes = integers_at(node, "axes", 1);
    fits = from.squeezed && (axes == Sizes{2, 3} || axes == Sizes{-2, -1});
  }
  if (!fits) return refuse(node, "must flatten [n, ..] to [n, product]; it does not");
  if (from.squeezed || from.rank == 2) {
    values_[node.output(0)] = {x, 2, false};
  } else {
    emit(node, "flatten", {x}, 2);
  }
  return ok_status();
}

Status Import::softmax(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  const Value from = of(node, 0);
  const int64_t axis = integer(node, "axis", opset_ < 13 ? 1 : -1);
  const int64_t from_front = axis < 0 ? axis + from.rank : axis;
  // Before opset 13 it went over all axes from this one on: [n, c, 1, 1] has but c.
  if (from_front != (from.squeezed ? 1 : from.rank - 1)) {
    return refuse(node, "goes over the features; found axis ", axis, " of ", from.rank,
                  " dimensions");
  }
  emit(node, "softmax", {x}, from.rank, from.squeezed);
  return ok_status();
}

Status Import::dropout(const NodeProto& node) {
  NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
  if (has_input(node, 2)) {
    const Tensor* training = constant(node.input(2));
    if (training == nullptr || training->bytes.size() != 1 ||
        training->bytes.data()[0] != std::byte{0}) {
      return refuse(node, "must not train; found a training_mode that is not a constant 0");
    }
  }
  same(node);
  return ok_status();
}

// Every stride-th row and column of an image, and channels of zeros: shortcut_pad.
Status Import::slice(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  const Sizes starts = integers_at(node, "starts", 1), ends = integers_at(node, "ends", 2);
  const Sizes axes = integers_at(node, "axes", 3), steps = integers_at(node, "steps", 4);
  const bool whole = starts == Sizes{0, 0} && ends.size() == 2 && ends[0] >= (1 << 20) &&
                     ends[1] >= (1 << 20) && axes == Sizes{2, 3};
  if (!whole || steps.size() != 2 || steps[0] != steps[1] || steps[0] < 1) {
    return refuse(node, "takes every s-th row and column of an image; found another slice");
  }
  Node& made = emit(node, "shortcut_pad", {x}, 4);
  made.attributes = {{"stride", steps[0]}, {"pad_before", int64_t{0}}, {"pad_after", int64_t{0}}};
  return ok_status();
}

Status Import::pad(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, image(node));
  const Sizes pads = integers_at(node, "pads", 1);
  const auto* mode = attribute(node, "mode");
  bool zeros = number(node, "value", 0) == 0 && (mode == nullptr || mode->s() == "constant");
  if (has_input(node, 2)) {
    const Tensor* fill = constant(node.input(2));
    zeros = zeros && fill != nullptr;
    if (zeros) {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(*fill));
      zeros = values.size() == 1 && values[0] == 0;
    }
  }
  bool channels = pads.size() == 8 && zeros;
  for (const size_t i : {0, 2, 3, 4, 6, 7}) channels = channels && pads[i] == 0;
  if (!channels || pads[1] < 0 || pads[5] < 0) {
    return refuse(node, "adds channels of zeros; found another padding");
  }
  Node& made = emit(node, "shortcut_pad", {x}, 4);
  made.attributes = {{"stride", int64_t{1}}, {"pad_before", pads[1]}, {"pad_after", pads[5]}};
  return ok_status();
}

}  // namespace nibble
