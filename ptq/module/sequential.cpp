#include "ptq/module/sequential.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include <variant>

#include "kernels/program/shape.h"
#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

namespace nn = torch::nn;

template <class... Parts>
Error refusal(const std::string& place, const Parts&... parts) {
  return Error(error(StatusCode::unsupported, "[sequential] ", place, ": ", parts...));
}

class Walk {
 public:
  explicit Walk(Artifact& out) : out_(out) {}

  void module(const std::string& place, const nn::Module& any) {
    place_ = place;
    if (const auto* linear = any.as<nn::LinearImpl>()) {
      layer("linear", linear->weight, linear->bias,
            {{"out_features", linear->weight.size(0)}});
    } else if (const auto* conv = any.as<nn::Conv2dImpl>()) {
      convolution(*conv);
    } else if (const auto* norm = any.as<nn::BatchNorm2dImpl>()) {
      batch_norm(*norm);
    } else if (any.as<nn::ReLUImpl>()) {
      node("relu", {}, {});
    } else if (const auto* leaky = any.as<nn::LeakyReLUImpl>()) {
      node("leaky_relu", {}, {{"slope", leaky->options.negative_slope()}});
    } else if (const auto* flatten = any.as<nn::FlattenImpl>()) {
      if (flatten->options.start_dim() != 1 || flatten->options.end_dim() != -1)
        throw refusal(place_, "Flatten from dimension 1 to the last is required; found ",
                      flatten->options.start_dim(), " to ", flatten->options.end_dim());
      node("flatten", {}, {});
    } else if (const auto* pool = any.as<nn::AdaptiveAvgPool2dImpl>()) {
      for (const auto& size : *pool->options.output_size()) {
        if (!size.has_value() || *size != 1)
          throw refusal(place_,
                        "AdaptiveAvgPool2d to 1x1 is required; found another size");
      }
      node("global_average_pool", {}, {});
    } else if (!any.as<nn::IdentityImpl>() && !any.as<nn::DropoutImpl>()) {
      throw refusal(
          place_,
          "Linear, Conv2d, BatchNorm2d, ReLU, LeakyReLU, Flatten, "
          "AdaptiveAvgPool2d, Identity or Dropout is required; found ",
          any.name(),
          "; give nibble a Program of the model, or save its packed weights only");
    }
  }

  std::string value = "image";  // what the next module reads

 private:
  using Parameters = std::map<std::string, std::string>;
  using Attributes = std::map<std::string, Attribute>;

  void node(const char* op, Parameters parameters, Attributes attributes) {
    out_.program.nodes.push_back(
        {op, place_, 0, {value}, {place_}, std::move(parameters), std::move(attributes)});
    value = place_;
  }

  void keep(Parameters& parameters, const std::string& role,
            const torch::Tensor& tensor) {
    parameters[role] = place_ + "." + role;
    out_.tensors[place_ + "." + role] = from_torch(tensor);
  }

  void layer(const char* op, const torch::Tensor& weight, const torch::Tensor& bias,
             Attributes attributes) {
    Parameters parameters;
    keep(parameters, "weight", weight);
    if (bias.defined()) keep(parameters, "bias", bias);
    node(op, std::move(parameters), std::move(attributes));
  }

  void convolution(const nn::Conv2dImpl& conv) {
    const auto& options = conv.options;
    const auto* padding = std::get_if<torch::ExpandingArray<2>>(&options.padding());
    const bool zeros =
        std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode());
    const bool dense = (*options.dilation())[0] == 1 && (*options.dilation())[1] == 1;
    if (padding == nullptr || !zeros || !dense)
      throw refusal(place_,
                    "Conv2d with zero padding by numbers and without dilation is "
                    "required; found another");
    const auto pair = [](const torch::ExpandingArray<2>& array) {
      return std::vector<int64_t>{(*array)[0], (*array)[1]};
    };
    layer("conv2d", conv.weight, conv.bias,
          {{"out_channels", conv.weight.size(0)},
           {"kernel", pair(options.kernel_size())},
           {"stride", pair(options.stride())},
           {"padding", pair(*padding)},
           {"groups", options.groups()}});
  }

  void batch_norm(const nn::BatchNorm2dImpl& norm) {
    if (!norm.options.affine() || !norm.options.track_running_stats())
      throw refusal(place_,
                    "BatchNorm2d with affine and running statistics is required; "
                    "found it without");
    Parameters parameters;
    keep(parameters, "weight", norm.weight);
    keep(parameters, "bias", norm.bias);
    keep(parameters, "running_mean", norm.running_mean);
    keep(parameters, "running_var", norm.running_var);
    node("batch_norm", std::move(parameters), {{"epsilon", norm.options.eps()}});
  }

  Artifact& out_;
  std::string place_;
};

}  // namespace

Artifact artifact_of(const torch::nn::Sequential& net,
                     const std::vector<int64_t>& input) {
  if (input.size() != 3) {
    throw Error(error(StatusCode::invalid_argument,
                      "[sequential] input: [channels, height, width] of one sample is "
                      "required; found ",
                      input.size(),
                      " sizes; a net over plain features takes {1, 1, "
                      "features} and a Flatten first"));
  }
  Artifact out;
  Program& program = out.program;
  program.architecture = "Sequential";
  program.inputs = {{"image",
                     DType::f32,
                     {"batch", std::to_string(input[0]), std::to_string(input[1]),
                      std::to_string(input[2])}}};
  Walk walk(out);
  for (const auto& child : net->named_children())
    walk.module(child.key(), *child.value());
  if (program.nodes.empty()) {
    throw Error(error(StatusCode::invalid_argument,
                      "[sequential] net: at least one module is required; found none"));
  }
  // The last value is what the runtime calls logits.
  program.nodes.back().outputs = {"logits"};
  out.config_json = "{\"architectures\":[\"Sequential\"]}\n";
  Shapes given, values;
  for (const auto& [name, tensor] : out.tensors) given[name] = tensor.shape;
  throw_if_error(check_program(program));
  throw_if_error(check_shapes(program, given, &values));
  program.outputs = {
      {"logits", DType::f32, {"batch", std::to_string(values.at("logits").back())}}};
  throw_if_error(check_artifact(out));
  return out;
}

}  // namespace nibble
