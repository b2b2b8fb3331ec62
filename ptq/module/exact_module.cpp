#include "ptq/module/exact_module.h"

#include <ATen/ATen.h>

#include <map>

#include "kernels/packing/packed_tensor.h"
#include "kernels/program/moves_codes.h"
#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

using torch::Tensor;

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, "[exact_module] " + text));
}

// Codes (int32) with the scale that they count in.
struct Coded {
  Tensor codes;
  float scale = 0;
  Tensor reals() const { return codes.to(at::kFloat).mul(scale); }  // float(q) * s
};

// A layer's weight as the integer path reads it.
struct Weight {
  Tensor codes;   // f64, the weight's own shape
  Tensor scales;  // f32 [rows]
};

class ExactRun {
 public:
  using Tap = std::function<void(const std::string&, const Tensor&)>;
  ExactRun(const Artifact& artifact, const Tap& tap)
      : artifact_(artifact), program_(artifact.program), tap_(tap) {}

  Tensor run(const Tensor& images) {
    const std::string& input = program_.inputs[0].name;
    keep(input, quantized(images, scheme_of(input)), scheme_of(input).scale);
    for (const Node& node : program_.nodes) run_node(node);
    if (!logits_.defined()) {
      fail(StatusCode::failed_precondition,
           cat(program_.outputs[0].name,
               ": a last layer that makes floats was required; its value "
               "has an activation scheme or another op makes it; quantize with a static "
               "recipe"));
    }
    return logits_;
  }

  Tensor run_alone(const Node& node, const Tensor& x) {
    const auto layer = artifact_.layers.find(node.parameter("weight"));
    if (layer == artifact_.layers.end() || !layer->second.input) {
      fail(StatusCode::failed_precondition,
           cat(node.name,
               ": a static input scheme was required; the artifact has none; "
               "quantize with a static recipe"));
    }
    const ActivationScheme& own = *layer->second.input;
    check_static(node.name + " input", own);
    return layer_reals(node, {quantized(x, own), own.scale});
  }

 private:
  void run_node(const Node& node) {
    if (node.op == "conv2d" || node.op == "linear") {
      run_layer(node);
    } else if (node.op == "add") {
      finish(node, input(node, 0).reals() + input(node, 1).reals());
    } else if (node.op == "relu") {
      if (!values_.count(node.outputs[0])) finish(node, input(node, 0).reals());
    } else if (node.op == "global_average_pool") {
      const Coded& x = input(node, 0);
      const double pixels = static_cast<double>(x.codes.size(2) * x.codes.size(3));
      const Tensor total = x.codes.to(at::kDouble).sum({2, 3}).to(at::kFloat);
      finish(node, total.mul(x.scale).div(pixels));
    } else if (moves_codes(node)) {
      move_codes(node);
    } else if (node.op == "concat") {
      std::vector<Tensor> reals;
      for (size_t i = 0; i < node.inputs.size(); ++i) reals.push_back(input(node, i).reals());
      finish(node, at::cat(reals, 1));
    } else if (node.op == "softmax" && &node == &program_.nodes.back() && logits_.defined()) {
      logits_ = at::softmax(logits_, -1);
    } else {
      fail(StatusCode::unsupported,
           cat(node.name, ": an op with an integer form was required; found '", node.op,
               "'; fold batch norms, keep the net float otherwise"));
    }
  }

  void run_layer(const Node& node) {
    Coded x = input(node, 0);
    const auto layer = artifact_.layers.find(node.parameter("weight"));
    if (layer != artifact_.layers.end() && layer->second.input) {
      const ActivationScheme& own = *layer->second.input;
      check_static(node.name + " input", own);
      x = {quantized(x.reals(), own), own.scale};
    }
    finish(node, layer_reals(node, x));
  }

  // y = float(acc + bias_q) * m
  Tensor layer_reals(const Node& node, const Coded& x) {
    const std::string& name = node.parameter("weight");
    const auto layer = artifact_.layers.find(name);
    if (layer == artifact_.layers.end() || !artifact_.packed.count(name)) {
      fail(StatusCode::failed_precondition,
           cat(node.name, ": integer codes were required for ", name,
               "; the layer is float; quantize it with a static recipe"));
    }
    const Weight weight = weight_of(node.name, artifact_.packed.at(name));
    const Tensor multiplier = weight.scales.mul(x.scale);  // m[c] = s_x * s_w[c]
    Tensor bias;
    if (const std::string& bias_name = node.parameter("bias"); !bias_name.empty()) {
      bias = to_torch(artifact_.tensors.at(bias_name))
                 .to(at::kDouble)
                 .div(multiplier.to(at::kDouble))
                 .round();
    }
    const Tensor codes = x.codes.to(at::kDouble);
    const bool conv = node.op == "conv2d";
    const Tensor sums =
        conv ? at::conv2d(codes, weight.codes, bias, node.integers("stride", {1, 1}),
                          node.integers("padding", {0, 0}), {1, 1},
                          node.integer("groups", 1))
             : at::linear(codes, weight.codes, bias);
    return sums.to(at::kFloat).mul(conv ? multiplier.view({1, -1, 1, 1}) : multiplier);
  }

  void move_codes(const Node& node) {
    const Coded x = input(node, 0);
    const ActivationScheme& scheme = scheme_of(node.outputs[0]);
    if (scheme.scale != x.scale) {
      fail(StatusCode::failed_precondition,
           cat(node.name, ": the scale of its input, ", x.scale, ", was required; found ",
               scheme.scale, "; this op moves codes and cannot rescale them"));
    }
    Tensor codes = x.codes;
    if (node.op == "flatten") {
      codes = codes.flatten(1);
    } else if (node.op == "max_pool") {  // in double: padding is below every code there
      codes = at::max_pool2d(codes.to(at::kDouble), node.integers("kernel", {1, 1}),
                             node.integers("stride", {1, 1}), node.integers("padding", {0, 0}))
                  .to(at::kInt);
    } else {
      const int64_t stride = node.integer("stride", 1);
      codes = at::constant_pad_nd(
          codes.slice(2, 0, INT64_MAX, stride).slice(3, 0, INT64_MAX, stride),
          {0, 0, 0, 0, node.integer("pad_before", 0), node.integer("pad_after", 0)});
    }
    keep(node.outputs[0], codes, x.scale);
  }

  // A node's output in real units becomes codes: of its own value, or of the ReLU that
  // alone reads it; or the logits.
  void finish(const Node& node, const Tensor& reals) {
    const std::string& value = node.outputs[0];
    if (artifact_.activations.count(value)) {
      keep(value, quantized(reals, scheme_of(value)), scheme_of(value).scale);
      return;
    }
    const auto readers = program_.consumers(value);
    if (readers.size() == 1 && readers[0]->op == "relu") {
      const std::string& relu = readers[0]->outputs[0];
      if (element_info(scheme_of(relu).scheme.code).lowest < 0) {
        fail(StatusCode::failed_precondition,
             cat(relu,
                 ": unsigned codes were required, whose clamp at 0 is the ReLU; found ",
                 to_string(scheme_of(relu).scheme), "; change the recipe"));
      }
      keep(relu, quantized(reals, scheme_of(relu)), scheme_of(relu).scale);
      return;
    }
    const bool last = value == program_.outputs[0].name ||
                      (readers.size() == 1 && readers[0] == &program_.nodes.back() &&
                       readers[0]->op == "softmax");
    if (last && (node.op == "conv2d" || node.op == "linear" ||
                 node.op == "global_average_pool")) {
      logits_ = reals;
      return;
    }
    scheme_of(value);  // there is none: its message says so
  }

  const Coded& input(const Node& node, size_t i) const {
    const auto found = values_.find(node.inputs[i]);
    if (found == values_.end()) {
      fail(StatusCode::failed_precondition,
           cat(node.name, ": codes of '", node.inputs[i],
               "' were required; that value has no activation "
               "scheme; quantize with a static recipe"));
    }
    return found->second;
  }

  void keep(const std::string& value, const Tensor& codes, float scale) {
    values_[value] = {codes, scale};
    if (tap_) tap_(value, codes);
  }

  const ActivationScheme& scheme_of(const std::string& value) const {
    const auto found = artifact_.activations.find(value);
    if (found == artifact_.activations.end()) {
      fail(StatusCode::failed_precondition,
           cat(value,
               ": an activation scheme was required; the artifact "
               "has none for this value; quantize with a static recipe"));
    }
    check_static(value, found->second);
    return found->second;
  }

  static void check_static(const std::string& where, const ActivationScheme& scheme) {
    if (scheme.dynamic || scheme.zero_point != 0 ||
        element_info(scheme.scheme.code).kind != ElementKind::integer) {
      fail(StatusCode::unsupported,
           cat(where, ": static integer codes with zero point 0 were required; found ",
               to_string(scheme.scheme), scheme.dynamic ? ", dynamic" : "",
               ", zero point ", scheme.zero_point, "; change the recipe"));
    }
  }

  // clamp(rint(x / s)), int32. One f32 division, one rounding.
  static Tensor quantized(const Tensor& reals, const ActivationScheme& scheme) {
    return reals.div(scheme.scale)
        .round()
        .clamp(code_lowest(scheme.scheme), code_highest(scheme.scheme))
        .to(at::kInt);
  }

  static Weight weight_of(const std::string& node, const PackedTensor& packed) {
    const QuantScheme& scheme = packed.scheme;
    const bool integer = element_info(scheme.code).kind == ElementKind::integer &&
                         element_info(scheme.code).lowest < 0;
    const bool one_level = scheme.scales.size() == 1 &&
                           scheme.offset == OffsetKind::none &&
                           !scheme.scales[0].shifted &&
                           (scheme.scales[0].block.kind == Block::Kind::row ||
                            scheme.scales[0].block.kind == Block::Kind::tensor);
    if (!integer || !one_level) {
      fail(StatusCode::unsupported,
           cat(node,
               ": symmetric integer weights with a scale a channel or a tensor "
               "were required, as int8/r@f32; found ",
               to_string(scheme), "; change the recipe"));
    }
    const CodedMatrix coded = value_or_throw(unpack(packed));
    Tensor codes = at::empty(packed.shape, at::kDouble);
    double* out = codes.mutable_data_ptr<double>();
    for (size_t i = 0; i < coded.codes.size(); ++i) {
      out[i] = value_of(scheme.code, coded.codes[i]);
    }
    return {codes, at::tensor(coded.scales[0].values, at::kFloat).expand({packed.rows})};
  }

  const Artifact& artifact_;
  const Program& program_;
  const Tap tap_;
  std::map<std::string, Coded> values_;
  Tensor logits_;
};

}  // namespace

torch::Tensor run_exact(
    const Artifact& artifact, const torch::Tensor& images,
    const std::function<void(const std::string&, const torch::Tensor&)>& tap) {
  torch::NoGradGuard no_grad;
  return ExactRun(artifact, tap).run(images);
}

torch::Tensor run_exact_layer(const Artifact& artifact, const Node& node,
                              const torch::Tensor& x) {
  torch::NoGradGuard no_grad;
  return ExactRun(artifact, {}).run_alone(node, x);
}

}  // namespace nibble
