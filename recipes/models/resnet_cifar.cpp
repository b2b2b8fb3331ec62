// ResNetCIFAR: the CIFAR-10 residual nets of He et al. (arXiv 1512.03385, sec. 4.2): a
// 3x3 convolution, three stages of residual blocks, mean pool, linear. Shortcut A: where
// a block changes shape, every second pixel, zero channels added on both sides.
//
//   config.json   {"architectures": ["ResNetCIFAR"], "depth": 20, "widths": [16, 32, 64],
//                  "num_classes": 10, "image_mean": [..], "image_std": [..]}
#include <algorithm>

#include "kernels/base/json.h"
#include "recipes/models/architecture.h"
#include "recipes/models/config_reader.h"
#include "recipes/models/graph_builder.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

class Builder : public GraphBuilder {
 public:
  using GraphBuilder::GraphBuilder;

  std::string conv_norm(const std::string& conv, const std::string& norm,
                        const std::string& input, int64_t channels, int64_t stride) {
    using Pair = std::vector<int64_t>;
    const std::string value = add("conv2d", conv, {input}, {{"weight", conv + ".weight"}},
                                  {{"stride", Pair{stride, stride}},
                                   {"padding", Pair{1, 1}},
                                   {"kernel", Pair{3, 3}},
                                   {"groups", int64_t{1}},
                                   {"out_channels", channels}});
    return add("batch_norm", norm, {value},
               {{"weight", norm + ".weight"},
                {"bias", norm + ".bias"},
                {"running_mean", norm + ".running_mean"},
                {"running_var", norm + ".running_var"}},
               {{"epsilon", 1e-5}});
  }
};

int64_t blocks_in_stage(const std::map<std::string, Tensor>& tensors, int stage) {
  int64_t count = 0;
  while (tensors.count(cat("layer", stage, ".", count, ".conv1.weight"))) ++count;
  return count;
}

bool has_shape(const std::map<std::string, Tensor>& tensors, const std::string& name,
               const std::vector<int64_t>& shape) {  // -1: any size
  const auto found = tensors.find(name);
  if (found == tensors.end() || found->second.shape.size() != shape.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] >= 0 && shape[i] != found->second.shape[i]) return false;
  }
  return true;
}

}  // namespace

Result<Program> resnet_cifar_program(const std::string& config_json) {
  ConfigReader config(config_json);
  const int64_t depth = config.integer("depth", 20, 8, 10000);
  const int64_t classes = config.integer("num_classes", 10, 1, 1 << 20);
  const std::vector<int64_t> widths = config.integers("widths", {16, 32, 64});
  const std::vector<int64_t> image = config.integers("image_shape", {3, 32, 32});
  NIBBLE_RETURN_IF_ERROR(config.status());
  const int64_t blocks = (depth - 2) / 6;
  const bool good_widths = widths.size() == 3 && widths[0] > 0 &&
                           widths[1] >= widths[0] && widths[2] >= widths[1] &&
                           (widths[1] - widths[0]) % 2 == 0 &&
                           (widths[2] - widths[1]) % 2 == 0 && widths[2] < (1 << 20);
  if (6 * blocks + 2 != depth || !good_widths || image.size() != 3) {
    return error(
        StatusCode::invalid_argument,
        "[models] config.json: ResNetCIFAR needs depth = 6 n + 2, three widths that "
        "rise by even steps and a three-part image_shape; found depth ",
        depth, ", widths ", shape_text(widths), ", image_shape ", shape_text(image));
  }
  Program program;
  program.architecture = "ResNetCIFAR";
  program.inputs = {{"image",
                     DType::f32,
                     {"batch", std::to_string(image[0]), std::to_string(image[1]),
                      std::to_string(image[2])}}};
  program.outputs = {{"logits", DType::f32, {"batch", std::to_string(classes)}}};
  Builder build(program);
  std::string x = build.conv_norm("conv1", "bn1", "image", widths[0], 1);
  x = build.add("relu", "relu", {x});
  int block = 0;
  for (int stage = 0; stage < 3; ++stage) {
    for (int64_t i = 0; i < blocks; ++i) {
      const std::string name = cat("layer", stage + 1, ".", i);
      const size_t width = static_cast<size_t>(stage);
      const bool shrinks = stage > 0 && i == 0;
      build.set_block(block++);
      std::string y = build.conv_norm(name + ".conv1", name + ".bn1", x, widths[width],
                                      shrinks ? 2 : 1);
      y = build.add("relu", name + ".relu1", {y});
      y = build.conv_norm(name + ".conv2", name + ".bn2", y, widths[width], 1);
      if (shrinks) {
        const int64_t pad = (widths[width] - widths[width - 1]) / 2;
        x = build.add("shortcut_pad", name + ".shortcut", {x}, {},
                      {{"stride", int64_t{2}}, {"pad_before", pad}, {"pad_after", pad}});
      }
      x = build.add("add", name + ".add", {y, x});
      x = build.add("relu", name + ".relu2", {x});
    }
  }
  build.set_block(kLastBlock);
  x = build.add("global_average_pool", "avgpool", {x});
  build.add("linear", "linear", {x},
            {{"weight", "linear.weight"}, {"bias", "linear.bias"}},
            {{"out_features", classes}}, "logits");
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return program;
}

bool resnet_cifar_recognises(const std::map<std::string, Tensor>& tensors) {
  const int64_t blocks = blocks_in_stage(tensors, 1);
  return blocks > 0 && blocks_in_stage(tensors, 2) == blocks &&
         blocks_in_stage(tensors, 3) == blocks && blocks_in_stage(tensors, 4) == 0 &&
         has_shape(tensors, "conv1.weight", {-1, 3, 3, 3}) &&
         has_shape(tensors, "bn1.running_mean", {-1}) &&
         has_shape(tensors, "linear.weight", {-1, -1});
}

Result<std::string> resnet_cifar_config(const std::map<std::string, Tensor>& tensors) {
  const int64_t blocks = blocks_in_stage(tensors, 1);
  Json config;
  config["architectures"] = Json::array({"ResNetCIFAR"});
  config["model_type"] = "resnet_cifar";
  config["depth"] = 6 * blocks + 2;
  for (int stage = 1; stage <= 3; ++stage) {
    const auto found = tensors.find(cat("layer", stage, ".0.conv1.weight"));
    if (found == tensors.end()) {
      return error(
          StatusCode::not_found, "[models] layer", stage,
          ".0.conv1.weight: ResNetCIFAR needs this tensor; found none of that name");
    }
    config["widths"].push_back(found->second.rows());
  }
  const auto linear = tensors.find("linear.weight");
  config["num_classes"] = linear == tensors.end() ? 10 : linear->second.rows();
  // ImageNet's statistics, with which the published CIFAR checkpoints were trained.
  config["image_mean"] = Json::array({0.485, 0.456, 0.406});
  config["image_std"] = Json::array({0.229, 0.224, 0.225});
  return config.dump(2) + "\n";
}

bool resnet_cifar_ignores(const std::string& tensor, const Program&) {
  const std::string counter = ".num_batches_tracked";  // of training only
  return tensor.size() > counter.size() &&
         tensor.compare(tensor.size() - counter.size(), std::string::npos, counter) == 0;
}

}  // namespace nibble
