#include "qat/oscillation.h"

#include <ATen/ATen.h>

namespace nibble {
namespace {

constexpr double kMomentum = 0.02;  // m: about the last 50 steps count

// Codes as numbers, in the weight's shape.
torch::Tensor code_values(const CodedMatrix& coded, const torch::Tensor& weight) {
  torch::Tensor values = at::empty({coded.rows * coded.cols}, at::kFloat);
  float* out = values.mutable_data_ptr<float>();
  const Element element = coded.scheme.code;
  float table[256];
  for (int code = 0; code < 256; ++code)
    table[code] = value_of(element, static_cast<uint8_t>(code));
  for (size_t i = 0; i < coded.codes.size(); ++i) out[i] = table[coded.codes[i]];
  return values.view(weight.sizes()).to(weight.device());
}

}  // namespace

Oscillations::Oscillations(ProgramModule module, const TrainOptions& options)
    : module_(std::move(module)),
      dampen_(options.dampen),
      threshold_(options.freeze_oscillations) {
  if (dampen_ == 0 && threshold_ == 0) return;
  for (const auto& [tensor, quantizer] : module_->weight_quantizers()) {
    const torch::Tensor weight = module_->parameter(tensor);
    if (element_info(quantizer->scheme().code).kind != ElementKind::integer ||
        !weight.requires_grad()) {
      continue;
    }
    Layer layer;
    layer.tensor = tensor;
    layer.quantizer = quantizer;
    if (threshold_ > 0) {
      torch::NoGradGuard no_grad;
      layer.last = code_values(quantizer->coded(weight), weight);
      layer.mean = layer.last.clone();
      layer.frequency = at::zeros_like(weight);
      layer.direction = at::zeros_like(weight);
      layer.frozen = at::zeros_like(weight);
    }
    layers_.push_back(std::move(layer));
  }
}

void Oscillations::add_damping() {
  if (dampen_ == 0) return;
  torch::NoGradGuard no_grad;
  for (Layer& layer : layers_) {
    torch::Tensor weight = module_->parameter(layer.tensor);
    if (!weight.grad().defined()) continue;
    const torch::Tensor rounded = layer.quantizer->forward(weight);
    // Outside the range w^ is the range's end, and clip(w) - w^ is nothing.
    const CodedMatrix levels = layer.quantizer->levels(weight);
    const torch::Tensor away = weight - rounded;
    const torch::Tensor half = at::tensor(expanded_scales(levels), at::kFloat)
                                   .view(weight.sizes())
                                   .to(weight.device()) *
                               0.5;
    const torch::Tensor inside = away.abs() <= half * 1.0001f;
    weight.mutable_grad().add_(at::where(inside, away, at::zeros_like(away)),
                               2 * dampen_);
  }
}

void Oscillations::after_step() {
  if (threshold_ == 0) return;
  torch::NoGradGuard no_grad;
  for (Layer& layer : layers_) {
    torch::Tensor weight = module_->parameter(layer.tensor);
    CodedMatrix coded = layer.quantizer->coded(weight);
    const torch::Tensor codes = code_values(coded, weight);
    const torch::Tensor moved = at::sign(codes - layer.last);
    const torch::Tensor back =
        ((moved * layer.direction) < 0).logical_and(layer.frozen == 0);
    layer.frequency.mul_(1 - kMomentum).add_(back.to(at::kFloat), kMomentum);
    layer.direction.copy_(at::where(moved != 0, moved, layer.direction));
    layer.mean.mul_(1 - kMomentum).add_(codes, kMomentum);
    layer.last.copy_(codes);
    const torch::Tensor now =
        (layer.frequency > threshold_).logical_and(layer.frozen == 0);
    layer.mean.copy_(at::where(now, layer.mean.round(), layer.mean));
    layer.frozen.masked_fill_(now, 1);
    // A frozen weight is its code's value under the scale of now.
    const torch::Tensor held =
        at::where(layer.frozen != 0, layer.mean.round(), codes).contiguous();
    layer.mean.copy_(at::where(layer.frozen != 0, held, layer.mean));
    const torch::Tensor numbers = held.cpu();
    const float* value = numbers.const_data_ptr<float>();
    for (size_t i = 0; i < coded.codes.size(); ++i)
      coded.codes[i] = code_of(coded.scheme, value[i]);
    torch::Tensor quantized = at::empty(weight.sizes(), at::kFloat);
    throw_if_error(
        dequantize(coded, {quantized.mutable_data_ptr<float>(), coded.rows, coded.cols}));
    weight.copy_(at::where(layer.frozen != 0, quantized.to(weight.device()), weight));
    layer.last.copy_(held);
  }
}

std::vector<torch::Tensor> Oscillations::state() const {
  std::vector<torch::Tensor> tensors;
  if (threshold_ == 0) return tensors;
  for (const Layer& layer : layers_) {
    for (const torch::Tensor& tensor :
         {layer.frequency, layer.mean, layer.last, layer.direction, layer.frozen}) {
      tensors.push_back(tensor);
    }
  }
  return tensors;
}

int64_t Oscillations::frozen() const {
  int64_t count = 0;
  if (threshold_ == 0) return count;
  for (const Layer& layer : layers_)
    count += layer.frozen.sum(at::kDouble).item<int64_t>();
  return count;
}

int64_t Oscillations::watched() const {
  int64_t count = 0;
  for (const Layer& layer : layers_) count += module_->parameter(layer.tensor).numel();
  return count;
}

}  // namespace nibble
