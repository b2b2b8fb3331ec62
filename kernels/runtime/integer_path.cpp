#include "kernels/runtime/integer_path.h"

#include <algorithm>

#include "kernels/base/parallel.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/requantize.h"
#include "kernels/ops/scratch.h"
#include "kernels/runtime/integer_layer.h"
#include "kernels/runtime/pool_shape.h"

namespace nibble {
namespace {

// Images that go through a node together: their values stay in the caches.
constexpr int64_t kImages = 16;

// A value as codes. uint8 or two's complement int8 bytes, [images, channels, height, width].
struct CodeValue {
  std::string name;
  ActivationScheme scheme;
  int64_t channels = 0, height = 1, width = 1;
  std::vector<uint8_t> codes;
  bool is_signed() const { return element_info(scheme.scheme.code).lowest < 0; }
  int64_t pixels() const { return height * width; }
  int64_t size() const { return channels * height * width; }
};

int32_t code_at(const uint8_t* codes, int64_t i, bool is_signed) {
  return is_signed ? static_cast<int8_t>(codes[i]) : codes[i];
}

// Where a node's real numbers go: the scheme of its own value, or of the ReLU that alone
// reads it, or (value -1) the logits.
struct Target {
  int value = -1;
  float scale = 0;
  int lowest = 0, highest = 0;
};

struct Step {
  const Node* node = nullptr;
  std::vector<int> inputs;
  Target target;
  std::unique_ptr<IntegerLayer> layer;
  bool requantizes = false;  // the layer has an input scheme of its own
  MaxPoolShape pool;
};

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

}  // namespace

struct IntegerPath::Implementation {
  std::vector<CodeValue> values;
  std::map<std::string, int> index;
  std::vector<Step> steps;
  int64_t classes = 0;
  bool ends_with_softmax = false;  // of the logits, in float
  int64_t capacity = 0;  // images that the values have room for

  int find(const std::string& name) const {
    const auto found = index.find(name);
    return found == index.end() ? -1 : found->second;
  }

  Status add_value(const Artifact& artifact, const std::string& name, int64_t channels,
                   int64_t height, int64_t width) {
    const auto scheme = artifact.activations.find(name);
    if (scheme == artifact.activations.end()) {
      return failure(StatusCode::failed_precondition, name,
                     "an activation scheme was required; the artifact has none for this value; "
                     "quantize with a static recipe");
    }
    NIBBLE_RETURN_IF_ERROR(check_static_input(name, scheme->second));
    if (index.count(name)) return ok_status();
    index[name] = static_cast<int>(values.size());
    CodeValue value;
    value.name = name;
    value.scheme = scheme->second;
    value.channels = channels;
    value.height = height;
    value.width = width;
    values.push_back(std::move(value));
    return ok_status();
  }

  // The target of a node with the output [channels, height, width].
  Status aim(const Artifact& artifact, const Node& node, int64_t channels, int64_t height,
             int64_t width, Target* target) {
    std::string value = node.outputs[0];
    if (!artifact.activations.count(value)) {
      const auto readers = artifact.program.consumers(value);
      const bool makes_floats = node.op == "conv2d" || node.op == "linear" ||
                                node.op == "global_average_pool";
      if (readers.size() == 1 && readers[0]->op == "relu") {
        value = readers[0]->outputs[0];
        const auto relu = artifact.activations.find(value);
        if (relu != artifact.activations.end() &&
            element_info(relu->second.scheme.code).lowest < 0) {
          return failure(StatusCode::failed_precondition, value,
                         "unsigned codes were required, whose clamp at 0 is the ReLU; found ",
                         to_string(relu->second.scheme), "; change the recipe");
        }
      } else if (makes_floats && (value == artifact.program.outputs[0].name ||
                                  (readers.size() == 1 && ends_with_softmax &&
                                   readers[0] == &artifact.program.nodes.back()))) {
        classes = channels * height * width;
        return ok_status();
      }
    }
    NIBBLE_RETURN_IF_ERROR(add_value(artifact, value, channels, height, width));
    target->value = find(value);
    const ActivationScheme& scheme = values[static_cast<size_t>(target->value)].scheme;
    target->scale = scheme.scale;
    target->lowest = code_lowest(scheme.scheme);
    target->highest = code_highest(scheme.scheme);
    return ok_status();
  }

  // The target of a node that copies codes: its value has its input's scheme.
  Status move_codes(const Artifact& artifact, const Node& node, const CodeValue& x,
                    int64_t channels, int64_t height, int64_t width, Target* target) {
    NIBBLE_RETURN_IF_ERROR(add_value(artifact, node.outputs[0], channels, height, width));
    target->value = find(node.outputs[0]);
    const ActivationScheme& scheme = values[static_cast<size_t>(target->value)].scheme;
    if (scheme == x.scheme) return ok_status();
    return failure(StatusCode::failed_precondition, node.name, "the scheme of its input, ",
                   to_string(x.scheme.scheme), " at ", x.scheme.scale, ", was required; found ",
                   to_string(scheme.scheme), " at ", scheme.scale,
                   "; this op moves codes and cannot rescale them");
  }

  Status prepare_layer(const Artifact& artifact, const Node& node, Step& step,
                       std::map<std::string, std::string>* kernels) {
    const std::string& weight = node.parameter("weight");
    const CodeValue& x = values[static_cast<size_t>(step.inputs[0])];
    Conv2dShape shape;
    if (node.op == "conv2d") {
      const auto stride = node.integers("stride", {1, 1});
      const auto padding = node.integers("padding", {0, 0});
      shape = {.channels = x.channels,
               .height = x.height,
               .width = x.width,
               .stride_h = stride[0],
               .stride_w = stride[1],
               .pad_h = padding[0],
               .pad_w = padding[1],
               .groups = node.integer("groups", 1)};
    } else {
      shape.channels = x.size();
      shape.height = shape.width = 1;
    }
    const auto own = artifact.layers.find(weight);
    step.requantizes = own != artifact.layers.end() && own->second.input;
    NIBBLE_ASSIGN_OR_RETURN(
        IntegerLayer layer,
        IntegerLayer::create(artifact, node.name, weight, node.parameter("bias"), shape,
                             step.requantizes ? *own->second.input : x.scheme, kernels));
    step.layer = std::make_unique<IntegerLayer>(std::move(layer));
    shape = step.layer->shape;
    return aim(artifact, node, shape.outputs, shape.out_height(), shape.out_width(), &step.target);
  }

  Status prepare(const Artifact& artifact, std::map<std::string, std::string>* kernels) {
    const ProgramValue& input = artifact.program.inputs[0];
    std::vector<int64_t> sizes;
    for (const std::string& size : input.shape) {
      int64_t number = 0;
      for (const char c : size) number = c >= '0' && c <= '9' ? number * 10 + (c - '0') : 0;
      sizes.push_back(number);
    }
    if (sizes.size() != 4) {
      return failure(StatusCode::unsupported, input.name,
                     "an image input [batch, channels, height, width] was required; found ",
                     sizes.size(), " dimensions");
    }
    NIBBLE_RETURN_IF_ERROR(add_value(artifact, input.name, sizes[1], sizes[2], sizes[3]));
    ends_with_softmax = artifact.program.nodes.back().op == "softmax";
    for (const Node& node : artifact.program.nodes) {
      if (ends_with_softmax && &node == &artifact.program.nodes.back()) break;
      if (node.op == "relu" && index.count(node.outputs[0])) continue;  // fused
      Step step;
      step.node = &node;
      for (const std::string& name : node.inputs) {
        if (find(name) < 0) {
          return failure(StatusCode::failed_precondition, node.name, "codes of '", name,
                         "' were required; that value has no activation scheme; quantize with a "
                         "static recipe");
        }
        step.inputs.push_back(find(name));
      }
      const CodeValue x = values[static_cast<size_t>(step.inputs[0])];
      if (node.op == "conv2d" || node.op == "linear") {
        NIBBLE_RETURN_IF_ERROR(prepare_layer(artifact, node, step, kernels));
      } else if (node.op == "add" || node.op == "relu") {
        NIBBLE_RETURN_IF_ERROR(aim(artifact, node, x.channels, x.height, x.width, &step.target));
      } else if (node.op == "global_average_pool") {
        NIBBLE_RETURN_IF_ERROR(aim(artifact, node, x.channels, 1, 1, &step.target));
      } else if (node.op == "concat") {
        int64_t channels = 0;
        for (const int i : step.inputs) channels += values[static_cast<size_t>(i)].channels;
        NIBBLE_RETURN_IF_ERROR(aim(artifact, node, channels, x.height, x.width, &step.target));
      } else if (node.op == "max_pool") {
        step.pool = max_pool_shape(node, x.channels, x.height, x.width);
        NIBBLE_RETURN_IF_ERROR(move_codes(artifact, node, x, x.channels, step.pool.out_height(),
                                          step.pool.out_width(), &step.target));
      } else if (node.op == "shortcut_pad" || node.op == "flatten") {
        const bool pad = node.op == "shortcut_pad";
        const int64_t stride = pad ? node.integer("stride", 1) : 1;
        const int64_t channels =
            pad ? x.channels + node.integer("pad_before", 0) + node.integer("pad_after", 0) : x.size();
        NIBBLE_RETURN_IF_ERROR(move_codes(artifact, node, x, channels,
                                          pad ? (x.height + stride - 1) / stride : 1,
                                          pad ? (x.width + stride - 1) / stride : 1,
                                          &step.target));
      } else {
        return failure(StatusCode::unsupported, node.name,
                       "an op with an integer form was required; found '", node.op,
                       "'; fold batch norms, keep the net float otherwise");
      }
      steps.push_back(std::move(step));
    }
    if (classes == 0) {
      return failure(StatusCode::failed_precondition, artifact.program.outputs[0].name,
                     "a last layer that makes floats was required; its value has an activation "
                     "scheme or another op makes it; quantize with a static recipe");
    }
    return ok_status();
  }

  uint8_t* codes(int value, int64_t image) {
    CodeValue& v = values[static_cast<size_t>(value)];
    return v.codes.data() + image * v.size();
  }

  void run_layer(const Step& step, int64_t image, float* logits) {
    thread_local Scratch<uint8_t> input_scratch;
    const CodeValue& x = values[static_cast<size_t>(step.inputs[0])];
    const IntegerLayer& layer = *step.layer;
    const uint8_t* from = codes(step.inputs[0], image);
    if (step.requantizes) {
      uint8_t* own = input_scratch.get(static_cast<size_t>(x.size()));
      const int lowest = code_lowest(layer.input.scheme);
      const int highest = code_highest(layer.input.scheme);
      const bool is_signed = x.is_signed();
      for (int64_t i = 0; i < x.size(); ++i) {
        const float real = static_cast<float>(code_at(from, i, is_signed)) * x.scheme.scale;
        own[i] =
            static_cast<uint8_t>(quantize_real(real, layer.input.scale, lowest, highest));
      }
      from = own;
    }
    const Target& target = step.target;
    if (target.value < 0) return layer.run_codes(from, logits);
    run_conv2d_s8(layer.conv, from,
                  Conv2dCodes{.bias = layer.bias.data(),
                              .multiplier = layer.multiplier.data(),
                              .scale = target.scale,
                              .lowest = target.lowest,
                              .highest = target.highest},
                  codes(target.value, image));
  }

  void run_step(const Step& step, int64_t image, float* logits) {
    const Node& node = *step.node;
    if (step.layer) return run_layer(step, image, logits);
    const CodeValue& x = values[static_cast<size_t>(step.inputs[0])];
    const uint8_t* a = codes(step.inputs[0], image);
    const Target& t = step.target;
    uint8_t* to = t.value < 0 ? nullptr : codes(t.value, image);
    const bool a_signed = x.is_signed();
    if (node.op == "add") {
      const CodeValue& other = values[static_cast<size_t>(step.inputs[1])];
      const uint8_t* b = codes(step.inputs[1], image);
      const bool b_signed = other.is_signed();
      for (int64_t i = 0; i < x.size(); ++i) {
        const float real = static_cast<float>(code_at(a, i, a_signed)) * x.scheme.scale +
                           static_cast<float>(code_at(b, i, b_signed)) * other.scheme.scale;
        to[i] = static_cast<uint8_t>(quantize_real(real, t.scale, t.lowest, t.highest));
      }
    } else if (node.op == "relu") {
      for (int64_t i = 0; i < x.size(); ++i) {
        const float real = static_cast<float>(code_at(a, i, a_signed)) * x.scheme.scale;
        to[i] = static_cast<uint8_t>(
            quantize_real(real > 0 ? real : 0.0f, t.scale, t.lowest, t.highest));
      }
    } else if (node.op == "global_average_pool") {
      for (int64_t c = 0; c < x.channels; ++c) {
        int32_t sum = 0;
        for (int64_t i = 0; i < x.pixels(); ++i) sum += code_at(a, c * x.pixels() + i, a_signed);
        const float real =
            (static_cast<float>(sum) * x.scheme.scale) / static_cast<float>(x.pixels());
        if (to == nullptr) {
          logits[c] = real;
        } else {
          to[c] = static_cast<uint8_t>(quantize_real(real, t.scale, t.lowest, t.highest));
        }
      }
    } else if (node.op == "concat") {
      for (const int input : step.inputs) {
        const CodeValue& part = values[static_cast<size_t>(input)];
        const uint8_t* from = codes(input, image);
        const bool is_signed = part.is_signed();
        for (int64_t i = 0; i < part.size(); ++i) {
          const float real = static_cast<float>(code_at(from, i, is_signed)) * part.scheme.scale;
          *to++ = static_cast<uint8_t>(quantize_real(real, t.scale, t.lowest, t.highest));
        }
      }
    } else if (node.op == "max_pool") {
      if (a_signed) {
        max_pool(step.pool, reinterpret_cast<const int8_t*>(a), reinterpret_cast<int8_t*>(to));
      } else {
        max_pool(step.pool, a, to);
      }
    } else if (node.op == "shortcut_pad") {
      shortcut_pad(a, x.channels, x.height, x.width, node.integer("stride", 1),
                   node.integer("pad_before", 0), node.integer("pad_after", 0), to);
    } else {  // flatten
      std::copy_n(a, x.size(), to);
    }
  }

  void tap_value(const std::function<void(const TapValue&)>& tap, int value, int64_t images) {
    const CodeValue& v = values[static_cast<size_t>(value)];
    std::vector<int32_t> codes(static_cast<size_t>(images * v.size()));
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = code_at(v.codes.data(), static_cast<int64_t>(i), v.is_signed());
    }
    tap({.name = v.name,
         .shape = {images, v.channels, v.height, v.width},
         .floats = {},
         .codes = codes,
         .scale = v.scheme.scale});
  }
};

IntegerPath::IntegerPath() : implementation_(std::make_unique<Implementation>()) {}
IntegerPath::~IntegerPath() = default;

Result<std::unique_ptr<IntegerPath>> IntegerPath::create(
    const Artifact& artifact, std::map<std::string, std::string>* kernels) {
  std::unique_ptr<IntegerPath> path(new IntegerPath);
  NIBBLE_RETURN_IF_ERROR(path->implementation_->prepare(artifact, kernels));
  return path;
}

int64_t IntegerPath::row_bytes() const {
  int64_t bytes = 0;
  for (const CodeValue& value : implementation_->values) bytes += value.size();
  return bytes;
}

Status IntegerPath::run(std::span<const float> images, std::span<const int64_t> shape,
                        const std::function<void(const TapValue&)>& tap,
                        MatrixView<float> logits) {
  Implementation& net = *implementation_;
  const CodeValue& input = net.values[0];
  if (shape.size() != 4 || shape[1] != input.channels || shape[2] != input.height ||
      shape[3] != input.width) {
    return failure(StatusCode::invalid_argument, input.name, "images [n, ", input.channels, ", ",
                   input.height, ", ", input.width, "] were required; found ", shape_text(shape));
  }
  const int64_t count = shape[0], size = input.size();
  if (logits.rows != count || logits.cols != net.classes ||
      static_cast<int64_t>(images.size()) != count * size) {
    return failure(StatusCode::invalid_argument, "logits", "[", count, ", ", net.classes,
                   "] was required; found [", logits.rows, ", ", logits.cols, "]");
  }
  // A tap sees each value of all images at once.
  const int64_t batch = tap ? count : kImages;
  if (net.capacity < std::min(batch, count)) {
    net.capacity = std::min(batch, count);
    for (CodeValue& value : net.values) {
      value.codes.resize(static_cast<size_t>(net.capacity * value.size()));
    }
  }
  const float scale = input.scheme.scale;
  const int lowest = code_lowest(input.scheme.scheme), highest = code_highest(input.scheme.scheme);
  for (int64_t first = 0; first < count; first += batch) {
    const int64_t now = std::min(batch, count - first);
    parallel_for(now, [&](int64_t i) {
      const float* from = images.data() + (first + i) * size;
      uint8_t* to = net.codes(0, i);
      for (int64_t k = 0; k < size; ++k) {
        to[k] = static_cast<uint8_t>(quantize_real(from[k], scale, lowest, highest));
      }
    });
    if (tap) net.tap_value(tap, 0, now);
    for (const Step& step : net.steps) {
      parallel_for(now, [&](int64_t i) { net.run_step(step, i, logits.row(first + i)); });
      if (tap && step.target.value >= 0) net.tap_value(tap, step.target.value, now);
    }
    if (!net.ends_with_softmax) continue;
    parallel_for(now, [&](int64_t i) {
      softmax(logits.row(first + i), net.classes, logits.row(first + i));
    });
  }
  return ok_status();
}

}  // namespace nibble
