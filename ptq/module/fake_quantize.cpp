#include "ptq/module/fake_quantize.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "ptq/error.h"
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
    Tensor y = at::empty_like(x);
    grid_forward(holder->grid, x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
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
    Tensor dx = at::empty_like(x);
    // dy in the memory order of x.
    Tensor dy = gradients[0];
    if (dy.strides() != x.strides()) dy = at::empty_like(x).copy_(dy);
    std::vector<CellGradient> cells(values + zeros > 0 ? grid.scales.size() : 0);
    grid_backward(grid, x.const_data_ptr<float>(), dy.const_data_ptr<float>(),
                  dx.mutable_data_ptr<float>(), cells.empty() ? nullptr : cells.data());
    Tensor ds, dz;
    if (values > 0) {
      ds = to_level(grid, grid.level0, values,
                    [&](int64_t i) { return cells[i].scale * grid.outer_of(i); });
    }
    if (zeros > 0) {
      dz = to_level(grid, grid.zero_level, zeros,
                    [&](int64_t i) { return cells[i].zero; });
    }
    return {dx, ds, dz, Tensor()};
  }
};

// Every other scheme, element by element through kernels/scheme.
//   range  [2]: the smallest and largest number that a code stands for
class AnyFunction : public torch::autograd::Function<AnyFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_any, const Tensor& scale,
                        CodedMatrix levels, double lowest, double highest,
                        double gradient_scale) {
    const Tensor x = x_any.contiguous();
    Tensor y = at::empty_like(x);
    const int64_t rows = levels.rows, cols = levels.cols;
    throw_if_error(quantize({x.const_data_ptr<float>(), rows, cols}, levels));
    throw_if_error(dequantize(levels, {y.mutable_data_ptr<float>(), rows, cols}));
    auto tensor_of = [&](const std::vector<float>& values) {
      return at::tensor(values, at::kFloat).view(x.sizes());
    };
    const Tensor s = tensor_of(expanded_scales(levels));
    const Tensor offset = tensor_of(expanded_offsets(levels));
    const bool shifted_zero = levels.scheme.offset == OffsetKind::zero_point;
    // u and v relative to the offset, so that y = s * v (+ m) for every kind.
    const Tensor u = shifted_zero ? x / s : (x - offset) / s;
    const Tensor v = shifted_zero ? y / s : (y - offset) / s;
    const Tensor low = shifted_zero ? lowest - offset : at::full_like(x, lowest);
    const Tensor high = shifted_zero ? highest - offset : at::full_like(x, highest);
    const Tensor inside = (u >= low).logical_and_(u <= high);
    tensor_list saved = {inside};
    if (scale.numel() > 0) {
      const ScaleLevel& level = levels.scheme.scales[0];
      Tensor index = at::empty({rows * cols}, at::kLong);
      int64_t* at = index.mutable_data_ptr<int64_t>();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          at[r * cols + c] = level_index(level.block, rows, cols, r, c);
        }
      }
      // ds / dlevel0 is the product of the outer levels, s / level0.
      const Tensor level0 = at::tensor(levels.scales[0].values, at::kFloat);
      const Tensor outer = s / level0.index_select(0, index).view(x.sizes());
      saved.push_back(at::where(inside, v - u, v) * outer * gradient_scale);
      saved.push_back(index);
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["values"] = scale.numel();
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dy = gradients[0].contiguous();
    const int64_t values = ctx->saved_data["values"].toInt();
    Tensor ds;
    if (values > 0) {
      const Tensor parts = (dy * saved[1]).contiguous();
      std::vector<double> sums(values, 0.0);
      const float* part = parts.const_data_ptr<float>();
      const int64_t* index = saved[2].const_data_ptr<int64_t>();
      for (int64_t i = 0; i < parts.numel(); ++i) sums[index[i]] += part[i];
      ds = at::tensor(sums, at::kDouble).to(at::kFloat);
    }
    return {dy * saved[0], ds, Tensor(), Tensor(), Tensor(), Tensor()};
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

std::pair<float, float> range_of(const QuantScheme& scheme) {
  const ElementInfo& info = element_info(scheme.code);
  if (info.kind == ElementKind::integer) {
    return {static_cast<float>(code_lowest(scheme)),
            static_cast<float>(code_highest(scheme))};
  }
  return {info.lowest, info.highest};
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
    scale_.copy_(at::tensor(levels_.scales[0].values, at::kFloat));
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

void FakeQuantizeImpl::keep_positive() {
  if (!scale_.defined()) return;
  torch::NoGradGuard no_grad;
  at::maximum_out(scale_, scale_, floor_);
  if (!zero_.defined()) return;
  const ElementInfo& element = element_info(scheme_.offsets[0].element);
  zero_.clamp_(element.lowest * zero_unit_, element.highest * zero_unit_);
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
    const float* learned = scale_.const_data_ptr<float>();
    std::vector<float>& values = levels.scales[0].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = round_to_element(scheme_.scales[0].element, learned[i]);
    }
  }
  if (zero_.defined()) {
    const float* learned = zero_.const_data_ptr<float>();
    std::vector<float>& values = levels.offsets[0].values;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = round_to_element(scheme_.offsets[0].element, learned[i] / zero_unit_);
    }
  }
  return levels;
}

Tensor FakeQuantizeImpl::forward(const Tensor& x) {
  if (!enabled_ || x.numel() == 0) return x;
  const bool per_tensor = is_activation_ && !activation_.dynamic;
  int64_t cols = x.numel();
  if (!per_tensor) cols = is_activation_ ? x.size(-1) : x.numel() / x.size(0);
  const int64_t rows = x.numel() / cols;
  const auto [lowest, highest] = range_of(scheme_);
  const double parts = static_cast<double>(is_activation_     ? x.size(0)
                                           : scale_.defined() ? scale_.numel()
                                                              : 1);
  const double governed = static_cast<double>(x.numel()) / parts;
  const float gradient_scale = static_cast<float>(1.0 / std::sqrt(governed * highest));

  Tensor input = x;
  CodedMatrix levels;
  if (per_tensor) {
    levels = levels_of(nullptr, rows, cols);
  } else {
    input = x.contiguous();
    levels = levels_of(input.detach().const_data_ptr<float>(), rows, cols);
  }
  // Autograd nodes take no undefined tensors: no learned scale is a scale of no values.
  const Tensor none = at::empty({0}, at::kFloat);
  const Tensor learned = scale_.defined() ? scale_ : none;
  ScaleGrid grid;
  if (make_grid(levels, per_tensor ? activation_.zero_point : 0, &grid)) {
    grid.gradient_scale = gradient_scale;
    // dz is of codes, zero_ in zero_unit_s of them.
    const Tensor zero = zero_.defined() ? zero_ / zero_unit_ : none;
    return GridFunction::apply(input, learned, zero,
                               c10::make_intrusive<GridHolder>(std::move(grid)));
  }
  return AnyFunction::apply(input, learned, std::move(levels), lowest, highest,
                            gradient_scale);
}

CodedMatrix FakeQuantizeImpl::levels(const Tensor& weight) const {
  const Tensor x = weight.detach().contiguous();
  return levels_of(x.const_data_ptr<float>(), x.size(0), x.numel() / x.size(0));
}

CodedMatrix FakeQuantizeImpl::coded(const Tensor& weight) const {
  const Tensor x = weight.detach().contiguous();
  CodedMatrix result = levels(x);
  throw_if_error(quantize({x.const_data_ptr<float>(), result.rows, result.cols}, result));
  return result;
}

ActivationScheme FakeQuantizeImpl::activation() const {
  ActivationScheme result = activation_;
  if (!result.dynamic) result.scale = levels_of(nullptr, 1, 1).scales[0].values[0];
  return result;
}

}  // namespace nibble
