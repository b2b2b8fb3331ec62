#include "ptq/module/fake_quantize.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

#include "kernels/scheme/kv_scheme.h"
#include "ptq/error.h"
#include "ptq/module/fake_quantize_any.h"
#include "ptq/module/fake_quantize_composed.h"
#include "ptq/module/fake_quantize_kernel.h"

namespace nibble {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, "[fake_quantize] " + text));
}

// x as memory order sees it, without gaps: channels-last stays channels-last.
Tensor dense(const Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : x.contiguous();
}

// Level 0's gradient from the grid's: every grid cell belongs to one of its values.
// part(cell) -> what the cell gives.
template <class Part>
Tensor to_level(const ScaleGrid& grid, Block::Kind level, int64_t values, Part part) {
  std::vector<double> sums(values, 0.0);
  for (int64_t i = 0; i < grid.rows * grid.groups; ++i) {
    sums[grid.value_of(level, i)] += part(i);
  }
  Tensor result = at::empty({values}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values; ++i)
    out[i] = static_cast<float>(sums[i] * grid.gradient_scale);
  return result;
}

// The grid rides along with the autograd node as a custom holder.
struct GridHolder : torch::CustomClassHolder {
  explicit GridHolder(ScaleGrid g) : grid(std::move(g)) {}
  ScaleGrid grid;
};

// Integer codes whose scales lie on a grid of rows and column groups: every scheme of t,
// r and gN levels. One pass forward, one backward.
class GridFunction : public torch::autograd::Function<GridFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_any, const Tensor& scale,
                        const Tensor& zero, c10::intrusive_ptr<GridHolder> holder) {
    const Tensor x = dense(x_any);
    Tensor y;
    if (x.is_cpu()) {
      y = at::empty_like(x);
      grid_forward(holder->grid, x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
    } else {
      y = composed::grid_forward(holder->grid, x);
    }
    ctx->save_for_backward({x});
    ctx->saved_data["grid"] = torch::IValue::make_capsule(holder);
    ctx->saved_data["values"] = scale.numel();
    ctx->saved_data["zeros"] = zero.numel();
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    const Tensor x = ctx->get_saved_variables()[0];
    auto holder = c10::static_intrusive_pointer_cast<GridHolder>(
        ctx->saved_data["grid"].toCapsule());
    const ScaleGrid& grid = holder->grid;
    const int64_t values = ctx->saved_data["values"].toInt();
    const int64_t zeros = ctx->saved_data["zeros"].toInt();
    // dy in the memory order of x.
    Tensor dy = gradients[0];
    if (dy.strides() != x.strides()) dy = at::empty_like(x).copy_(dy);
    Tensor dx;
    std::vector<CellGradient> cells(values + zeros > 0 ? grid.scales.size() : 0);
    if (x.is_cpu()) {
      dx = at::empty_like(x);
      grid_backward(grid, x.const_data_ptr<float>(), dy.const_data_ptr<float>(),
                    dx.mutable_data_ptr<float>(), cells.empty() ? nullptr : cells.data());
    } else {
      dx = composed_backward(grid, x, dy, cells);
    }
    Tensor ds, dz;
    if (values > 0) {
      ds = to_level(grid, grid.level0, values, [&](int64_t i) {
             return cells[i].scale * grid.outer_of(i);
           }).to(x.device());
    }
    if (zeros > 0) {
      dz = to_level(grid, grid.zero_level, zeros, [&](int64_t i) {
             return cells[i].zero;
           }).to(x.device());
    }
    return {dx, ds, dz, Tensor()};
  }

 private:
  static Tensor composed_backward(const ScaleGrid& grid, const Tensor& x,
                                  const Tensor& dy, std::vector<CellGradient>& cells) {
    const composed::GridGradients found = composed::grid_backward(grid, x, dy);
    if (cells.empty()) return found.dx;
    const Tensor scale = found.scale.cpu(), zero = found.zero.cpu();
    for (size_t i = 0; i < cells.size(); ++i)
      cells[i] = {scale.const_data_ptr<double>()[i], zero.const_data_ptr<double>()[i]};
    return found.dx;
  }
};

struct LevelsHolder : torch::CustomClassHolder {
  LevelsHolder(CodedMatrix l, double g) : levels(std::move(l)), gradient_scale(g) {}
  CodedMatrix levels;
  double gradient_scale;
};

// Every other scheme.
class AnyFunction : public torch::autograd::Function<AnyFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_any, const Tensor& scale,
                        const Tensor& minimum, c10::intrusive_ptr<LevelsHolder> holder) {
    const Tensor x = x_any.cpu().contiguous();  // loops of the CPU alone
    Tensor y = at::empty_like(x);
    any_forward(holder->levels, x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
    ctx->save_for_backward({x});
    ctx->saved_data["levels"] = torch::IValue::make_capsule(holder);
    ctx->saved_data["values"] = scale.numel();
    ctx->saved_data["minima"] = minimum.numel();
    return y.to(x_any.device());
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    const Tensor x = ctx->get_saved_variables()[0];
    const at::Device device = gradients[0].device();
    const Tensor dy = gradients[0].cpu().contiguous();
    auto holder = c10::static_intrusive_pointer_cast<LevelsHolder>(
        ctx->saved_data["levels"].toCapsule());
    Tensor dx = at::empty_like(x);
    std::vector<double> scale(ctx->saved_data["values"].toInt()),
        minimum(ctx->saved_data["minima"].toInt());
    any_backward(holder->levels, x.const_data_ptr<float>(), dy.const_data_ptr<float>(),
                 dx.mutable_data_ptr<float>(), scale.empty() ? nullptr : &scale,
                 minimum.empty() ? nullptr : &minimum);
    const auto gradient = [&](const std::vector<double>& sums) {
      if (sums.empty()) return Tensor();
      return at::tensor(sums, at::kDouble)
          .mul_(holder->gradient_scale)
          .to(device, at::kFloat);
    };
    return {dx.to(device), gradient(scale), gradient(minimum), Tensor()};
  }
};

// The smallest positive number of an element that may hold a learned scale; 0: none may.
float smallest_scale(const ScaleLevel& level) {
  if (level.shifted) return 0;
  switch (level.element) {
    case Element::f32:
    case Element::bf16:
    case Element::e8m0:
      return 0x1p-100f;  // far below any useful scale, far above the subnormals
    case Element::f16:
      return 0x1p-24f;  // its smallest subnormal
    case Element::e4m3:
      return 0x1p-9f;
    case Element::e5m2:
      return 0x1p-16f;
    case Element::e2m1:
      return 0.5f;
    default:
      return element_info(level.element).kind == ElementKind::integer ? 1.0f : 0.0f;
  }
}

// The largest number that a code stands for: LSQ's Qp.
double largest_of(const QuantScheme& scheme) {
  const ElementInfo& info = element_info(scheme.code);
  return info.kind == ElementKind::integer ? code_highest(scheme)
                                           : static_cast<double>(info.highest);
}

CodedLevel level_of_one(float value) {
  CodedLevel level;
  level.rows = level.cols = 1;
  level.values = {value};
  return level;
}

}  // namespace

FakeQuantizeImpl::FakeQuantizeImpl(QuantScheme scheme, ScaleRule rule)
    : torch::nn::Module("FakeQuantize"), scheme_(std::move(scheme)), rule_(rule) {
  if (scheme_.is_float()) {
    fail(StatusCode::invalid_argument,
         cat("weight: a scheme with scales was required; found '", to_string(scheme_),
             "'; leave the layer float"));
  }
}

FakeQuantizeImpl::FakeQuantizeImpl(ActivationScheme scheme)
    : torch::nn::Module("FakeQuantize"),
      scheme_(scheme.scheme),
      activation_(std::move(scheme)),
      is_activation_(true) {
  if (scheme_.is_float()) {
    fail(StatusCode::invalid_argument,
         cat("activation: a scheme with scales was required; found '", to_string(scheme_),
             "'; leave the value float"));
  }
  if (activation_.dynamic) return;
  if (scheme_.scales.size() != 1 || scheme_.scales[0].block.kind != Block::Kind::tensor ||
      element_info(scheme_.code).kind != ElementKind::integer ||
      !scheme_.offsets.empty()) {
    fail(StatusCode::invalid_argument,
         cat("activation: a static activation's scheme is one integer scale per tensor, "
             "as ",
             kSignedActivation, "; found '", to_string(scheme_),
             "'; change it or make it dynamic"));
  }
  if (activation_.scale != 0) set_scale(activation_.scale);
}

void FakeQuantizeImpl::set_levels(const CodedMatrix& levels) {
  if (!(levels.scheme == scheme_)) {
    fail(StatusCode::invalid_argument,
         cat("set_levels: levels of ", to_string(scheme_), " were required; found ",
             to_string(levels.scheme), "; quantize the weight with this scheme"));
  }
  levels_ = levels;
  levels_.codes.clear();
  if (scale_.defined()) {
    torch::NoGradGuard no_grad;
    scale_.copy_(at::tensor(levels_.scales[0].values, at::kFloat) * scale_unit_);
    if (zero_.defined())
      zero_.copy_(at::tensor(levels_.offsets[0].values, at::kFloat) * zero_unit_);
  }
}

void FakeQuantizeImpl::set_scale(float scale) {
  if (!std::isfinite(scale) || scale <= 0) {
    fail(StatusCode::out_of_range,
         cat("set_scale: a finite, positive scale was required; found ", scale,
             "; calibrate on data that reaches the layer"));
  }
  if (scheme_.scales.size() != 1 || scheme_.scales[0].block.kind != Block::Kind::tensor) {
    fail(StatusCode::invalid_argument,
         cat("set_scale: a scheme with one scale per tensor was required; found '",
             to_string(scheme_), "'; use set_levels"));
  }
  CodedMatrix levels;
  levels.scheme = scheme_;
  levels.scales = {level_of_one(scale)};
  set_levels(levels);
  activation_.scale = scale;
}

void FakeQuantizeImpl::learn_scale() {
  if (scale_.defined()) return;
  if (levels_.scales.empty()) {
    fail(StatusCode::failed_precondition,
         cat("learn_scale: a scale to begin from was required; ", to_string(scheme_),
             " has none yet; call set_levels or set_scale first"));
  }
  for (const float scale : levels_.scales[0].values) {
    if (scale >= 0) continue;
    fail(StatusCode::unsupported,
         cat("learn_scale: positive scales were required; found ", scale,
             "; calibrate without scale_rule.full_range"));
  }
  if (smallest_scale(scheme_.scales[0]) == 0) {
    fail(
        StatusCode::unsupported,
        cat("learn_scale: an innermost scale of integers or floats was required; found '",
            to_string(scheme_), "'; train it with fixed scales"));
  }
  const Tensor start = at::tensor(levels_.scales[0].values, at::kFloat);
  floor_ = (start / 256).clamp_min(smallest_scale(scheme_.scales[0]));
  scale_ = register_parameter("scale", start);
}

void FakeQuantizeImpl::learn_clip() {
  if (scale_.defined()) return;
  if (!is_activation_ || activation_.dynamic || levels_.scales.empty()) {
    fail(StatusCode::failed_precondition,
         cat("learn_clip: a static activation with a scale to begin from was required; ",
             to_string(scheme_), " is none; learn its scale"));
  }
  learns_clip_ = true;
  scale_unit_ = static_cast<float>(largest_of(scheme_));
  const Tensor start = at::tensor(levels_.scales[0].values, at::kFloat) * scale_unit_;
  floor_ = (start / 256).clamp_min(smallest_scale(scheme_.scales[0]) * scale_unit_);
  scale_ = register_parameter("alpha", start);
}

void FakeQuantizeImpl::learn_zero_point() {
  if (zero_.defined()) return;
  const std::vector<ScaleLevel>& offsets = scheme_.offsets;
  if (scheme_.offset != OffsetKind::zero_point || offsets.size() != 1 ||
      element_info(offsets[0].element).kind != ElementKind::integer) {
    fail(StatusCode::unsupported,
         cat("learn_zero_point: integer zero points in one level were required; found '",
             to_string(scheme_), "'; train it with fixed offsets"));
  }
  ScaleGrid grid;
  CodedMatrix levels = levels_;
  levels.codes.clear();
  if (!scale_.defined() || levels.offsets.empty() || !make_grid(levels, 0, &grid)) {
    fail(StatusCode::failed_precondition,
         cat("learn_zero_point: a learned scale over groups, rows or the tensor was "
             "required; found '",
             to_string(scheme_), "'; call set_levels and learn_scale first"));
  }
  // In the unit of the weights, so that one learning rate suits both.
  zero_unit_ = scale_.mean().item<float>();
  zero_ = register_parameter(
      "zero", at::tensor(levels_.offsets[0].values, at::kFloat) * zero_unit_);
}

void FakeQuantizeImpl::learn_minimum() {
  if (zero_.defined()) return;
  const std::vector<ScaleLevel>& offsets = scheme_.offsets;
  if (scheme_.offset != OffsetKind::minimum || offsets[0].shifted ||
      element_info(offsets[0].element).kind == ElementKind::table) {
    fail(StatusCode::unsupported,
         cat("learn_minimum: minima of integers or floats were required; found '",
             to_string(scheme_), "'; train it with fixed offsets"));
  }
  if (!scale_.defined()) {
    fail(StatusCode::failed_precondition,
         cat("learn_minimum: a learned scale was required; ", to_string(scheme_),
             " has none yet; call set_levels and learn_scale first"));
  }
  // In the unit of the weights: the mean size of what multiplies them.
  const size_t levels = levels_.offsets.size();
  zero_unit_ = levels == 1 ? 1.0f : 0.0f;
  for (size_t k = 1; k < levels; ++k) {
    const float size =
        at::tensor(levels_.offsets[k].values, at::kFloat).abs().mean().item<float>();
    zero_unit_ = k == 1 ? size : zero_unit_ * size;
  }
  if (!(zero_unit_ > 0)) zero_unit_ = 1;  // every minimum is 0
  zero_ = register_parameter(
      "minimum", at::tensor(levels_.offsets[0].values, at::kFloat) * zero_unit_);
}

void FakeQuantizeImpl::keep_positive() {
  if (!scale_.defined()) return;
  torch::NoGradGuard no_grad;
  floor_ = floor_.to(scale_.device());
  at::maximum_out(scale_, scale_, floor_);
  if (!zero_.defined()) return;
  const ElementInfo& element = element_info(scheme_.offsets[0].element);
  zero_.clamp_(std::max(element.lowest * zero_unit_, -FLT_MAX),
               std::min(element.highest * zero_unit_, FLT_MAX));
}

bool FakeQuantizeImpl::cuts_below_zero() const {
  return enabled_ && is_activation_ && !activation_.dynamic &&
         activation_.zero_point == 0 && code_lowest(scheme_) == 0;
}

CodedMatrix FakeQuantizeImpl::levels_of(const float* x, int64_t rows,
                                        int64_t cols) const {
  if (levels_.scales.empty()) {
    if (is_activation_ && !activation_.dynamic) {
      fail(StatusCode::failed_precondition,
           cat("activation: a calibrated scale was required; ", to_string(scheme_),
               " has none; calibrate first"));
    }
    return value_or_throw(choose_scales({x, rows, cols}, scheme_, rule_));
  }
  CodedMatrix levels = levels_;
  if (levels.rows != 0 && (levels.rows != rows || levels.cols != cols)) {
    fail(
        StatusCode::invalid_argument,
        cat("levels of a [", levels.rows, ", ", levels.cols, "] matrix were set; found [",
            rows, ", ", cols, "]; set the levels of this weight"));
  }
  levels.rows = rows;
  levels.cols = cols;
  if (scale_.defined()) {
    const Tensor held = scale_.detach().cpu();
    const float* learned = held.const_data_ptr<float>();
    std::vector<float>& values = levels.scales[0].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = round_to_element(scheme_.scales[0].element, learned[i] / scale_unit_);
    }
  }
  if (zero_.defined()) {
    const Tensor held = zero_.detach().cpu();
    const float* learned = held.const_data_ptr<float>();
    std::vector<float>& values = levels.offsets[0].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = round_to_element(scheme_.offsets[0].element, learned[i] / zero_unit_);
    }
  }
  return levels;
}

Tensor FakeQuantizeImpl::forward(const Tensor& x) {
  if (!enabled_ || x.numel() == 0) return x;
  // Of a cache whose positions share scales, the newest, partial block stays float.
  if (is_activation_ && activation_.dynamic && x.dim() == 3) {
    const int64_t shared = kv_block_positions(scheme_), length = x.size(1);
    if (length % shared != 0) {
      const int64_t whole = length / shared * shared;
      return at::cat({forward(x.slice(1, 0, whole)), x.slice(1, whole)}, 1);
    }
  }
  const bool per_tensor = is_activation_ && !activation_.dynamic;
  int64_t cols = x.numel();
  if (!per_tensor) cols = is_activation_ ? x.size(-1) : x.numel() / x.size(0);
  const int64_t rows = x.numel() / cols;
  const double parts = static_cast<double>(is_activation_     ? x.size(0)
                                           : scale_.defined() ? scale_.numel()
                                                              : 1);
  const double governed = static_cast<double>(x.numel()) / parts;
  const Tensor values = seen(x);
  const float gradient_scale =
      static_cast<float>(1.0 / std::sqrt(governed * largest_of(scheme_)));

  Tensor input = values;
  CodedMatrix levels;
  if (per_tensor) {
    levels = levels_of(nullptr, rows, cols);
  } else {
    input = values.contiguous();
    // Scales that are there already do not look at the values.
    const Tensor held = levels_.scales.empty() ? input.detach().cpu() : Tensor();
    levels =
        levels_of(held.defined() ? held.const_data_ptr<float>() : nullptr, rows, cols);
  }
  // Autograd nodes take no undefined tensors: no learned scale is a scale of no values.
  const Tensor none = at::empty({0}, x.options());
  const Tensor learned = !scale_.defined() ? none
                         : learns_clip_    ? scale_ / scale_unit_
                                           : scale_;
  ScaleGrid grid;
  if (make_grid(levels, per_tensor ? activation_.zero_point : 0, &grid)) {
    grid.gradient_scale = learns_clip_ ? 1.0f : gradient_scale;
    grid.rounding_error = !learns_clip_;
    // dz is of codes, zero_ in zero_unit_s of them.
    const Tensor zero = zero_.defined() ? zero_ / zero_unit_ : none;
    return GridFunction::apply(input, learned, zero,
                               c10::make_intrusive<GridHolder>(std::move(grid)));
  }
  // Likewise minima.
  const Tensor minimum = zero_.defined() && levels.scheme.offset == OffsetKind::minimum
                             ? zero_ / zero_unit_
                             : none;
  return AnyFunction::apply(
      input, learned, minimum,
      c10::make_intrusive<LevelsHolder>(std::move(levels), gradient_scale));
}

Tensor FakeQuantizeImpl::squash(const Tensor& weight) {
  if (is_activation_) {
    fail(StatusCode::invalid_argument,
         "squash: a weight's quantizer was required; found an activation's");
  }
  const at::NoGradGuard no_grad;
  const double most = weight.abs().max().item<double>();
  if (!(most > 0)) return weight;  // zeros stay zeros
  squash_ = most;
  // In double: near the end of tanh a float has few digits left.
  return (weight.to(at::kDouble) * (std::tanh(most) / most))
      .atanh()
      .clamp(-most, most)
      .to(at::kFloat);
}

Tensor FakeQuantizeImpl::seen(const Tensor& x) const {
  if (squash_ == 0) return x;
  const Tensor t = at::tanh(x);
  return t * (squash_ / t.detach().abs().max().clamp_min(1e-30));
}

CodedMatrix FakeQuantizeImpl::levels(const Tensor& weight) const {
  const Tensor x = seen(weight.detach()).cpu().contiguous();
  return levels_of(x.const_data_ptr<float>(), x.size(0), x.numel() / x.size(0));
}

CodedMatrix FakeQuantizeImpl::coded(const Tensor& weight) const {
  const Tensor x = seen(weight.detach()).cpu().contiguous();
  CodedMatrix result = levels(weight);
  throw_if_error(quantize({x.const_data_ptr<float>(), result.rows, result.cols}, result));
  return result;
}

ActivationScheme FakeQuantizeImpl::activation() const {
  ActivationScheme result = activation_;
  if (!result.dynamic) result.scale = levels_of(nullptr, 1, 1).scales[0].values[0];
  return result;
}

}  // namespace nibble
