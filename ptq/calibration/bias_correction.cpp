#include "ptq/calibration/bias_correction.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "ptq/calibration/samples.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/module/program_module.h"
#include "ptq/module/torch_ops.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

using torch::Tensor;
using Values = std::map<std::string, Tensor>;

constexpr int64_t kPart = 16;  // images

class Correction {
 public:
  // scales: correct variances too.
  Correction(Calibrated& calibrated, bool scales)
      : calibrated_(calibrated),
        scales_(scales),
        model_(std::make_shared<Artifact>(*calibrated.model)),
        program_(model_->program) {
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      for (const std::string& input : program_.nodes[i].inputs) last_reader_[input] = i;
    }
  }

  void run(const Tensor& images) {
    images_ = images.size(0);
    const std::string& input = program_.inputs[0].name;
    float_values_[input] = images;
    values_[input] = rounded(input, images);
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      run_node(program_.nodes[i]);
      for (const std::string& name : program_.nodes[i].inputs) {
        if (last_reader_.at(name) != i) continue;
        float_values_.erase(name);
        values_.erase(name);
      }
    }
    calibrated_.model = model_;
  }

 private:
  void run_node(const Node& node) {
    const TorchOp* op = find_torch_op(node.op);
    if (op == nullptr) {
      throw Error(error(StatusCode::unsupported, "[bias_correction] ", node.name,
                        ": an op that LibTorch runs was required; found ", node.op));
    }
    std::map<std::string, Tensor> parameters, quantized;
    for (const auto& [role, name] : node.parameters) {
      parameters[role] = to_torch(calibrated_.model->tensors.at(name));
      quantized[role] = weight(name, parameters[role]);
    }
    const std::string& value = node.outputs[0];
    const Tensor x = own_input(node);
    const Tensor y = op->run({.node = node, .inputs = inputs(node, float_values_),
                              .parameters = parameters});
    std::vector<Tensor> read = inputs(node, values_);
    read[0] = x;
    const bool layer = node.op == "conv2d" || node.op == "linear";
    const bool corrects = layer && !node.parameter("bias").empty();
    if (corrects) quantized.erase("bias");
    Tensor z = op->run({.node = node, .inputs = read, .parameters = quantized});
    if (corrects && scales_ && node.op == "conv2d") z = rescaled(node, y, z);
    if (corrects) z.add_(corrected(node, y, z));
    float_values_[value] = y;
    values_[value] = rounded(value, z);
  }

  // z under scales that give each channel y's variance.
  Tensor rescaled(const Node& node, const Tensor& y, const Tensor& z) {
    const std::string& name = node.parameter("weight");
    const auto found = calibrated_.weights.find(name);
    if (found == calibrated_.weights.end()) return z;  // a float layer
    CodedMatrix& q = found->second;
    const auto deviation = [](const Tensor& x) {
      const Tensor mean = mean_of(x, [](const Tensor& part) { return part; });
      const Tensor middle = mean.view({1, -1, 1, 1});
      return mean_of(x, [&](const Tensor& part) { return (part - middle).square_(); })
          .sqrt();
    };
    const Tensor of_y = deviation(y), of_z = deviation(z);
    // A channel that is constant in one of the nets stays as it is.
    const Tensor wanted =
        at::where(of_y.gt(0).logical_and_(of_z.gt(0)), of_y / of_z, 1.0);
    Tensor ratios = at::empty({q.rows}, at::kFloat);  // as f32 scales hold them
    for (int64_t r = 0; r < q.rows; ++r) {
      float& scale = q.scales[0].values[static_cast<size_t>(r)];
      const auto after = static_cast<float>(scale * wanted.data_ptr<double>()[r]);
      ratios.data_ptr<float>()[r] = after / scale;
      scale = after;
    }
    Calibrated::Account& account = calibrated_.accounts[name];
    const std::vector<float> values =
        value_or_throw(to_float(calibrated_.model->tensors.at(name)));
    account.error = weight_error({values.data(), q.rows, q.cols}, q);
    account.output_error = -1;  // that of the scales before is no longer true
    account.note += cat(account.note.empty() ? "" : "; ", "scales by ",
                        ratios.min().item<float>(), " to ", ratios.max().item<float>(),
                        ": its channels' variance over ", images_, " images");
    return z.mul(ratios.view({1, -1, 1, 1}));
  }

  // The bias that makes z, the products alone, as large in the mean as y; as the integers
  // hold it.
  Tensor corrected(const Node& node, const Tensor& y, const Tensor& z) {
    int64_t first = 0;
    Tensor bias = mean_of(y, [&](const Tensor& part) {
      const Tensor other = z.narrow(0, first, part.size(0)).to(at::kDouble);
      first += part.size(0);
      return part - other;
    });
    const std::string& name = node.parameter("bias");
    model_->tensors[name] = from_torch(bias.to(at::kFloat));
    calibrated_.accounts[name].note =
        cat("corrected by its layer's mean error over ", images_, " images");
    if (const Tensor step = bias_step(node); step.defined()) {
      bias = bias.div(step).round().mul(step);
    }
    bias = bias.to(at::kFloat);
    return y.dim() == 4 ? bias.view({1, -1, 1, 1}) : bias;
  }

  // The mean of f(x) over all but the channels, f64; in parts, which take less memory.
  static Tensor mean_of(const Tensor& x, const std::function<Tensor(const Tensor&)>& f) {
    std::vector<int64_t> axes;
    const int64_t channel = x.dim() == 4 ? 1 : x.dim() - 1;
    for (int64_t d = 0; d < x.dim(); ++d) {
      if (d != channel) axes.push_back(d);
    }
    Tensor sum = at::zeros({x.size(channel)}, at::kDouble);
    for (int64_t i = 0; i < x.size(0); i += kPart) {
      const int64_t count = std::min(kPart, x.size(0) - i);
      sum += f(x.narrow(0, i, count).to(at::kDouble)).sum(axes);
    }
    return sum / (x.numel() / x.size(channel));
  }

  // s_x s_w of each channel (kernels/runtime/integer_node.h); undefined: no integer path.
  Tensor bias_step(const Node& node) const {
    const auto own = calibrated_.layer_inputs.find(node.name);
    const auto value = calibrated_.activations.find(node.inputs[0]);
    const auto codes = calibrated_.weights.find(node.parameter("weight"));
    const bool reads_codes =
        own != calibrated_.layer_inputs.end() || value != calibrated_.activations.end();
    if (!reads_codes || codes == calibrated_.weights.end()) return {};
    const CodedMatrix& q = codes->second;
    const auto count = static_cast<int64_t>(q.scales.empty() ? 0 : q.scales[0].values.size());
    if (q.scales.size() != 1 || (count != 1 && count != q.rows)) return {};
    const float scale =
        own != calibrated_.layer_inputs.end() ? own->second.scale : value->second.scale;
    return at::tensor(q.scales[0].values, at::kFloat).mul(scale).to(at::kDouble);
  }

  Tensor weight(const std::string& name, const Tensor& as_float) const {
    const LayerPlan* layer = calibrated_.plan.find(name);
    if (layer == nullptr || layer->method == "float") return as_float;
    const auto codes = calibrated_.weights.find(name);
    if (codes == calibrated_.weights.end()) {
      throw Error(error(StatusCode::failed_precondition, "[bias_correction] ", name,
                        ": codes were required; found none; solve the layers first"));
    }
    const CodedMatrix& q = codes->second;
    Tensor made = at::empty({q.rows, q.cols}, at::kFloat);
    throw_if_error(dequantize(q, MatrixView<float>(made.data_ptr<float>(), q.rows, q.cols)));
    return made.view(as_float.sizes());
  }

  Tensor own_input(const Node& node) const {
    const Tensor& x = values_.at(node.inputs[0]);
    const auto own = calibrated_.layer_inputs.find(node.name);
    return own == calibrated_.layer_inputs.end() ? x : through_codes(own->second, x);
  }

  Tensor rounded(const std::string& value, const Tensor& x) const {
    const auto found = calibrated_.activations.find(value);
    return found == calibrated_.activations.end() ? x : through_codes(found->second, x);
  }

  static Tensor through_codes(const ActivationScheme& scheme, const Tensor& x) {
    return x.div(scheme.scale)
        .round_()
        .clamp_(code_lowest(scheme.scheme), code_highest(scheme.scheme))
        .mul_(scheme.scale);
  }

  static std::vector<Tensor> inputs(const Node& node, const Values& values) {
    std::vector<Tensor> found;
    for (const std::string& name : node.inputs) found.push_back(values.at(name));
    return found;
  }

  Calibrated& calibrated_;
  bool scales_;
  std::shared_ptr<Artifact> model_;
  const Program& program_;
  std::map<std::string, size_t> last_reader_;
  Values float_values_, values_;
  int64_t images_ = 0;
};

}  // namespace

bool has_corrections(const Plan& plan) {
  return plan.bias_correction > 0 || plan.batch_norm_reestimation > 0;
}

void apply_corrections(Calibrated& calibrated, const CalibrationData& data) {
  const OneThread one_thread;  // sums decide scales and biases
  if (calibrated.plan.bias_correction > 0)
    correct_biases(calibrated, view_of(data.images));
  if (calibrated.plan.batch_norm_reestimation > 0)
    reestimate_batch_norms(calibrated, view_of(data.images));
}

void correct_biases(Calibrated& calibrated, const torch::Tensor& images) {
  const at::NoGradGuard no_gradients;
  const int64_t count = std::min(calibrated.plan.bias_correction, images.size(0));
  Correction(calibrated, /*scales=*/false).run(images.narrow(0, 0, count));
}

void reestimate_batch_norms(Calibrated& calibrated, const torch::Tensor& images) {
  const at::NoGradGuard no_gradients;
  const int64_t count = std::min(calibrated.plan.batch_norm_reestimation, images.size(0));
  Correction(calibrated, /*scales=*/true).run(images.narrow(0, 0, count));
}

}  // namespace nibble
