#include "kernels/runtime/step.h"

#include <cmath>
#include <utility>

#include "kernels/ops/embedding/embedding.h"
#include "kernels/program/layers.h"
#include "kernels/program/rope_attributes.h"
#include "kernels/runtime/node_weights.h"
#include "kernels/runtime/rounded_inputs.h"
#include "kernels/runtime/summation_order.h"

namespace nibble {
namespace {

using KernelNames = std::map<std::string, std::string>;

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

// What a convolution's node and input say of its shape; the weight says the rest. A
// linear layer's is one pixel of its columns.
Conv2dShape input_shape(const Step& step) {
  const Node& node = *step.node;
  if (node.op == "linear")
    return {.channels = step.image_shape.back(), .height = 1, .width = 1};
  const auto stride = node.integers("stride", {1, 1});
  const auto padding = node.integers("padding", {0, 0});
  return {.channels = step.image_shape[0],
          .height = step.image_shape[1],
          .width = step.image_shape[2],
          .stride_h = stride[0],
          .stride_w = stride[1],
          .pad_h = padding[0],
          .pad_w = padding[1],
          .groups = node.integer("groups", 1)};
}

// Of a layer whose input is in static codes; false of others.
Result<bool> prepare_integer(const Artifact& artifact, const ExecutorOptions& options,
                             KernelNames* kernels, Step& step) {
  const Node& node = *step.node;
  const std::string& weight = node.parameter("weight");
  const ActivationScheme* input = static_input(artifact, weight);
  if (input == nullptr || !options.integer) return false;
  NIBBLE_ASSIGN_OR_RETURN(
      IntegerLayer layer,
      IntegerLayer::create(artifact, node.name, weight, node.parameter("bias"),
                           input_shape(step), *input, kernels));
  step.integer = std::make_unique<IntegerLayer>(std::move(layer));
  return true;
}

Status prepare_linear_weight(const Artifact& artifact, const ExecutorOptions& options,
                             KernelNames* kernels, Step& step) {
  const Node& node = *step.node;
  NIBBLE_ASSIGN_OR_RETURN(const bool integer,
                          prepare_integer(artifact, options, kernels, step));
  if (integer) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(LinearWeight weight, node_weight(artifact, node));
  step.reversed = options.reversed_sums && weight.is_plain();
  if (step.reversed) weight = with_reversed_columns(weight, 1);
  const ActivationScheme* input = asked_input(artifact, node);
  step.rounded.reset();
  if (input != nullptr && is_rounded_input(*input)) {
    step.rounded = *input;
    input = nullptr;
  }
  NIBBLE_ASSIGN_OR_RETURN(
      step.linear, prepare_linear_for(artifact, node, weight, input,
                                      linear_activation(options.compute), kernels));
  return ok_status();
}

Status prepare_rope(std::vector<RopeTable>& ropes, Step& step) {
  const RopeShape shape = rope_shape(*step.node);
  step.rope = ropes.size();
  for (size_t i = 0; i < ropes.size(); ++i) {
    if (ropes[i].shape() == shape) step.rope = i;
  }
  if (step.rope == ropes.size()) ropes.emplace_back(shape);
  return ok_status();
}

Status prepare_attention(const Program& program, Step& step) {
  const Node& node = *step.node;
  step.attention = {.heads = node.integer("heads", 0),
                    .kv_heads = node.integer("kv_heads", 0),
                    .head_dim = node.integer("head_dim", 0),
                    .scale = static_cast<float>(node.number("scale", 1.0)),
                    .window = node.integer("window", 0)};
  const std::string name = node.text("state", "");
  while (step.state < program.states.size() && program.states[step.state].name != name) {
    ++step.state;
  }
  if (step.state < program.states.size()) return ok_status();
  return failure(StatusCode::invalid_argument, node.name, "a state named '", name,
                 "' was required; the program has none by this name");
}

Status prepare_conv(const Artifact& artifact, const ExecutorOptions& options,
                    KernelNames* kernels, Step& step) {
  const Node& node = *step.node;
  NIBBLE_ASSIGN_OR_RETURN(const bool integer,
                          prepare_integer(artifact, options, kernels, step));
  if (integer) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(LinearWeight weight, node_weight(artifact, node));
  NIBBLE_ASSIGN_OR_RETURN(step.bias, node_floats(artifact, node, "bias"));
  const std::vector<int64_t>& w = weight.is_plain() ? weight.plain.shape : weight.packed.shape;
  Conv2dShape shape = input_shape(step);
  shape.outputs = w[0];
  shape.kernel_h = w[2];
  shape.kernel_w = w[3];
  // Of a grouped convolution the channels would change their groups.
  step.reversed = options.reversed_sums && weight.is_plain() && shape.groups == 1;
  if (step.reversed) weight = with_reversed_columns(weight, shape.kernel_h * shape.kernel_w);
  NIBBLE_ASSIGN_OR_RETURN(PreparedConv2d conv, prepare_conv2d(shape, weight));
  if (kernels != nullptr) (*kernels)[node.parameter("weight")] = conv2d_kernel_name(conv);
  step.conv = std::make_unique<PreparedConv2d>(std::move(conv));
  return ok_status();
}

Status prepare_batch_norm(const Artifact& artifact, Step& step) {
  const Node& node = *step.node;
  NIBBLE_ASSIGN_OR_RETURN(step.weight, node_floats(artifact, node, "weight"));
  NIBBLE_ASSIGN_OR_RETURN(step.bias, node_floats(artifact, node, "bias"));
  NIBBLE_ASSIGN_OR_RETURN(step.shift, node_floats(artifact, node, "running_mean"));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> variance,
                          node_floats(artifact, node, "running_var"));
  const double epsilon = node.number("epsilon", 1e-5);
  for (size_t c = 0; c < variance.size(); ++c) {
    const double factor = step.weight[c] / std::sqrt(variance[c] + epsilon);
    step.bias[c] = static_cast<float>(step.bias[c] - step.shift[c] * factor);
    step.weight[c] = static_cast<float>(factor);
  }
  return ok_status();
}

}  // namespace

Status prepare_step(const Artifact& artifact, const ExecutorOptions& options, Step& step,
                    std::vector<RopeTable>& ropes, KernelNames* kernels) {
  const Node& node = *step.node;
  if (node.op == "embedding") {
    NIBBLE_ASSIGN_OR_RETURN(step.table, node_weight(artifact, node));
    if (kernels != nullptr) kernels->emplace(node.parameter("weight"), kEmbeddingKernel);
  } else if (node.op == "linear") {
    NIBBLE_ASSIGN_OR_RETURN(step.bias, node_floats(artifact, node, "bias"));
    return prepare_linear_weight(artifact, options, kernels, step);
  } else if (node.op == "moe") {
    NIBBLE_ASSIGN_OR_RETURN(MoeStep moe, MoeStep::create(artifact, node, options, kernels));
    step.moe = std::make_unique<MoeStep>(std::move(moe));
  } else if (node.op == "lstm") {
    NIBBLE_ASSIGN_OR_RETURN(LstmStep lstm,
                            LstmStep::create(artifact, node, options.integer, kernels));
    step.lstm = std::make_unique<LstmStep>(std::move(lstm));
  } else if (node.op == "rms_norm") {
    NIBBLE_ASSIGN_OR_RETURN(step.weight, node_floats(artifact, node, "weight"));
  } else if (node.op == "rope") {
    return prepare_rope(ropes, step);
  } else if (node.op == "attention") {
    return prepare_attention(artifact.program, step);
  } else if (node.op == "conv2d") {
    return prepare_conv(artifact, options, kernels, step);
  } else if (node.op == "batch_norm") {
    return prepare_batch_norm(artifact, step);
  }
  return ok_status();
}

std::string role_of(const Node& node, const std::string& tensor) {
  for (const Layer& layer : layers_of(node)) {
    if (layer.tensor == tensor) return layer.role;
  }
  return "";
}

Result<std::function<void()>> exchange_weight(const Artifact& other,
                                              const ExecutorOptions& options,
                                              const std::string& role, Step& step) {
  const Node& node = *step.node;
  if (node.op == "embedding") {
    auto own = std::make_shared<LinearWeight>();
    NIBBLE_ASSIGN_OR_RETURN(*own, node_weight(other, node));
    std::swap(step.table, *own);
    return std::function<void()>([&step, own] { std::swap(step.table, *own); });
  }
  if (node.op == "linear") {
    Step changed;
    changed.node = &node;
    NIBBLE_RETURN_IF_ERROR(prepare_linear_weight(other, options, nullptr, changed));
    std::swap(step.linear, changed.linear);
    std::swap(step.reversed, changed.reversed);
    std::swap(step.rounded, changed.rounded);
    auto own = std::make_shared<PreparedLinear>(std::move(changed.linear));
    return std::function<void()>(
        [&step, own, reversed = changed.reversed, rounded = changed.rounded] {
          std::swap(step.linear, *own);
          step.reversed = reversed;
          step.rounded = rounded;
        });
  }
  if (node.op == "moe") return step.moe->exchange(other, node, role, options);
  return failure(StatusCode::unsupported, node.name,
                 "a linear or embedding layer was required; found one of ", node.op);
}

}  // namespace nibble
