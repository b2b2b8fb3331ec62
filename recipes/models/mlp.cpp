// MLP: image -> flatten -> l1 -> LeakyReLU -> l2 ... -> logits, layers named l1, l2, ...
//
//   config.json   {"architectures": ["MLP"], "layer_sizes": [784, 128, 10],
//                  "image_shape": [1, 28, 28], "negative_slope": 0.01, "bias": false,
//                  "image_mean": [0], "image_std": [1]}

#include "kernels/base/json.h"
#include "recipes/models/architecture.h"
#include "recipes/models/config_reader.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

const Tensor* layer_weight(const std::map<std::string, Tensor>& tensors, size_t i) {
  const auto found = tensors.find(cat("l", i, ".weight"));
  return found == tensors.end() ? nullptr : &found->second;
}

}  // namespace

Result<Program> mlp_program(const std::string& config_json) {
  ConfigReader config(config_json);
  const std::vector<int64_t> sizes = config.integers("layer_sizes", {784, 128, 10});
  const std::vector<int64_t> image = config.integers("image_shape", {1, 28, 28});
  const double slope = config.positive("negative_slope", 0.01);
  const bool bias = config.boolean("bias", false);
  NIBBLE_RETURN_IF_ERROR(config.status());
  if (sizes.size() < 2 || image.size() != 3 ||
      sizes[0] != image[0] * image[1] * image[2]) {
    return error(
        StatusCode::invalid_argument,
        "[models] config.json: MLP needs two layer_sizes or more, the first equal to "
        "the product of image_shape; found ",
        shape_text(sizes), " and ", shape_text(image));
  }
  Program program;
  program.architecture = "MLP";
  program.inputs = {{"image",
                     DType::f32,
                     {"batch", std::to_string(image[0]), std::to_string(image[1]),
                      std::to_string(image[2])}}};
  program.outputs = {{"logits", DType::f32, {"batch", std::to_string(sizes.back())}}};
  std::string x = "flatten";
  program.nodes.push_back({"flatten", x, 0, {"image"}, {x}, {}, {}});
  for (size_t i = 1; i < sizes.size(); ++i) {
    const std::string name = cat("l", i);
    const bool last = i + 1 == sizes.size();
    std::map<std::string, std::string> parameters = {{"weight", name + ".weight"}};
    if (bias) parameters["bias"] = name + ".bias";
    const std::string y = last ? "logits" : name;
    program.nodes.push_back(
        {"linear", name, 0, {x}, {y}, parameters, {{"out_features", sizes[i]}}});
    x = y;
    if (!last) {
      x = name + ".leaky_relu";
      program.nodes.push_back({"leaky_relu", x, 0, {y}, {x}, {}, {{"slope", slope}}});
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return program;
}

// Certain only for MNIST's 784 inputs: a chain of l<i> alone could be another net's head.
bool mlp_recognises(const std::map<std::string, Tensor>& tensors) {
  size_t layers = 0;
  int64_t features = 784;
  while (const Tensor* weight = layer_weight(tensors, layers + 1)) {
    if (weight->shape.size() != 2 || weight->shape[1] != features) return false;
    features = weight->shape[0];
    ++layers;
  }
  const size_t biases = tensors.count("l1.bias") ? layers : 0;
  return layers >= 2 && tensors.size() == layers + biases;
}

Result<std::string> mlp_config(const std::map<std::string, Tensor>& tensors) {
  const Tensor* first = layer_weight(tensors, 1);
  if (first == nullptr) {
    return error(StatusCode::not_found,
                 "[models] l1.weight: MLP needs this tensor; found none of that name");
  }
  Json config;
  config["architectures"] = Json::array({"MLP"});
  config["model_type"] = "mlp";
  config["layer_sizes"] = Json::array({first->cols()});
  for (size_t i = 1; const Tensor* weight = layer_weight(tensors, i); ++i) {
    config["layer_sizes"].push_back(weight->rows());
  }
  if (first->cols() == 784) {
    config["image_shape"] = Json::array({1, 28, 28});
  } else {
    config["image_shape"] = Json::array({1, 1, first->cols()});
  }
  config["negative_slope"] = 0.01;
  config["bias"] = tensors.count("l1.bias") > 0;
  config["image_mean"] = Json::array({0.0});
  config["image_std"] = Json::array({1.0});
  return config.dump(2) + "\n";
}

bool mlp_ignores(const std::string&, const Program&) { return false; }

}  // namespace nibble
