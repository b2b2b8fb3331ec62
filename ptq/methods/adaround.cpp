#include "ptq/methods/adaround.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "kernels/base/cancel.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/methods/rounding.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr double kZeta = 1.1, kGamma = -0.1;
constexpr double kWarmStart = 0.2;  // of the steps: without the regularizer
constexpr double kBetaFirst = 20, kBetaLast = 2;
constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;  // Adam's
constexpr int64_t kRows = 32;  // rows solved together; rows do not depend on each other

// The values below and above each weight, and their codes.
struct Neighbours {
  at::Tensor low, step,
      start;  // f32 [out, in]; step = high - low; start: h of the weight
  std::vector<uint8_t> low_code, high_code;
};

// The numbers that a scale multiplies, rising, each with its code.
std::vector<std::pair<float, uint8_t>> levels_of(const QuantScheme& scheme) {
  const Rounding rounding(scheme);
  std::vector<std::pair<float, uint8_t>> levels;
  if (element_info(scheme.code).kind == ElementKind::integer) {
    for (int q = code_lowest(scheme); q <= code_highest(scheme); ++q)
      levels.emplace_back(static_cast<float>(q), static_cast<uint8_t>(q));
    return levels;
  }
  for (int code = 0; code < 1 << element_info(scheme.code).bits; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const float level = rounding.level(byte, 0);
    if (std::isfinite(level)) levels.emplace_back(level, byte);
  }
  std::stable_sort(levels.begin(), levels.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  levels.erase(
      std::unique(levels.begin(), levels.end(),
                  [](const auto& a, const auto& b) { return a.first == b.first; }),
      levels.end());
  return levels;
}

Neighbours neighbours_of(const MatrixView<const float>& weight,
                         const CodedMatrix& coded) {
  const auto levels = levels_of(coded.scheme);
  const Rounding rounding(coded.scheme);
  const std::vector<float> scales = expanded_scales(coded);
  const std::vector<float> offsets = expanded_offsets(coded);
  const bool minimum = coded.scheme.offset == OffsetKind::minimum;
  const bool zero_point = coded.scheme.offset == OffsetKind::zero_point;
  const auto count = static_cast<size_t>(weight.rows * weight.cols);
  Neighbours found{.low = at::empty({weight.rows, weight.cols}, at::kFloat),
                   .step = at::empty({weight.rows, weight.cols}, at::kFloat),
                   .start = at::empty({weight.rows, weight.cols}, at::kFloat),
                   .low_code = std::vector<uint8_t>(count),
                   .high_code = std::vector<uint8_t>(count)};
  parallel_for(weight.rows, [&](int64_t r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      const auto i = static_cast<size_t>(r * weight.cols + c);
      const float s = scales[i], offset = offsets[i], w = weight(r, c);
      const float at = minimum ? (w - offset) / s : w / s + (zero_point ? offset : 0.0f);
      const auto above =
          std::upper_bound(levels.begin(), levels.end(), at,
                           [](float x, const auto& level) { return x < level.first; });
      // What the codes do not reach is clipped: both neighbours are the last code.
      const auto low = above == levels.begin() ? above : above - 1;
      const auto high = above == levels.end() ? low : above;
      found.low_code[i] = low->second;
      found.high_code[i] = high->second;
      const float value = rounding.value(low->second, s, offset);
      found.low.data_ptr<float>()[i] = value;
      found.step.data_ptr<float>()[i] = rounding.value(high->second, s, offset) - value;
      const float between = high->first - low->first;
      found.start.data_ptr<float>()[i] =
          between > 0 ? std::clamp((at - low->first) / between, 0.0f, 1.0f) : 0.0f;
    }
  });
  return found;
}

// The layer's error of some rows of W~, up to what does not depend on them.
class Reconstruction {
 public:
  virtual ~Reconstruction() = default;
  // dL / dW~ at the next step, f32 [rows, in].
  virtual at::Tensor gradient(const at::Tensor& weight) = 0;
  // L over all of the data, f64 [rows].
  virtual at::Tensor loss(const at::Tensor& weight) const = 0;
};

// E |W x - W~ x^|^2 from H = E x^ x^T and D = E (x - x^) x^T.
class FromMoments : public Reconstruction {
 public:
  // h: f64 [in, in]; single: the same in f32; drift: f64 [in, in], undefined for none.
  FromMoments(const at::Tensor& weight, const at::Tensor& h, const at::Tensor& single,
              const at::Tensor& drift)
      : weight_(weight), h_(h), single_(single) {
    if (!drift.defined()) return;
    moved_ = at::mm(weight.to(at::kDouble), drift);
    moved_single_ = moved_.to(at::kFloat);
  }
  at::Tensor gradient(const at::Tensor& weight) override {
    at::Tensor g = at::mm(weight - weight_, single_);
    if (moved_.defined()) g.sub_(moved_single_);
    return g.mul_(2);
  }
  at::Tensor loss(const at::Tensor& weight) const override {
    const at::Tensor d = weight.to(at::kDouble) - weight_.to(at::kDouble);
    at::Tensor g = at::mm(d, h_);
    if (moved_.defined()) g.sub_(moved_, 2);
    return (g * d).sum(1);
  }

 private:
  at::Tensor weight_, h_, single_, moved_, moved_single_;
};

// E |relu(W x + b) - relu(W~ x^ + b)|^2 over a sample of rows.
class FromRows : public Reconstruction {
 public:
  FromRows(const at::Tensor& weight, const RowSample& rows, const at::Tensor& bias,
           int64_t batch)
      : inputs_(rows.inputs()), bias_(bias), batch_(std::min(batch, inputs_.size(0))) {
    target_ = outputs(rows.float_inputs(), weight).relu_();
  }
  at::Tensor gradient(const at::Tensor& weight) override {
    const auto places = static_cast<uint64_t>(inputs_.size(0) - batch_ + 1);
    const auto first = static_cast<int64_t>(random_.below(places));
    const at::Tensor x = inputs_.narrow(0, first, batch_);
    const at::Tensor y = outputs(x, weight);
    at::Tensor error = (y.relu() - target_.narrow(0, first, batch_)).mul_(y.gt(0));
    return at::mm(error.t(), x).mul_(2.0 / static_cast<double>(batch_));
  }
  at::Tensor loss(const at::Tensor& weight) const override {
    return (outputs(inputs_, weight).relu_() - target_).to(at::kDouble).square().mean(0);
  }

 private:
  at::Tensor outputs(const at::Tensor& x, const at::Tensor& weight) const {
    const at::Tensor y = at::mm(x, weight.t());
    return bias_.defined() ? y + bias_ : y;
  }
  at::Tensor inputs_, bias_, target_;
  int64_t batch_;
  SplitMix64 random_{1};  // the same stretches for all rows
};

double beta_at(double progress) {  // progress through the steps after the warm start
  return kBetaFirst + (kBetaLast - kBetaFirst) * progress;
}

// h of the rows after all steps. unit: f32 [rows, 1].
at::Tensor learned_rounding(const AdaRoundOptions& options, Reconstruction& layer,
                            const at::Tensor& low, const at::Tensor& step,
                            const at::Tensor& start, const at::Tensor& unit) {
  at::Tensor v = inverse_rectified_sigmoid(start);
  at::Tensor mean = at::zeros_like(v), square = at::zeros_like(v);
  const at::Tensor price = step / unit;
  for (int i = 0; i < options.iterations; ++i) {
    throw_if_error(check_cancelled("calibrate"));
    const at::Tensor h = rectified_sigmoid(v);
    at::Tensor g = layer.gradient(at::addcmul(low, step, h)).mul_(price);
    const double progress =
        (static_cast<double>(i) / options.iterations - kWarmStart) / (1 - kWarmStart);
    if (progress >= 0) {
      g.add_(rounding_regularizer_slope(h, beta_at(progress)), options.regularization);
    }
    g.mul_(rectified_sigmoid_slope(v));
    mean.mul_(kBeta1).add_(g, 1 - kBeta1);
    square.mul_(kBeta2).addcmul_(g, g, 1 - kBeta2);
    const double first = 1 - std::pow(kBeta1, i + 1),
                 second = 1 - std::pow(kBeta2, i + 1);
    v.addcdiv_(mean, (square / second).sqrt_().add_(kEpsilon),
               -options.learning_rate / first);
  }
  return rectified_sigmoid(v);
}

}  // namespace

at::Tensor rectified_sigmoid(const at::Tensor& v) {
  return at::sigmoid(v).mul_(kZeta - kGamma).add_(kGamma).clamp_(0, 1);
}

at::Tensor rectified_sigmoid_slope(const at::Tensor& v) {
  const at::Tensor s = at::sigmoid(v);
  const at::Tensor h = s * (kZeta - kGamma) + kGamma;
  return (s * (1 - s)).mul_(kZeta - kGamma).mul_(h.gt(0).logical_and_(h.lt(1)));
}

at::Tensor rounding_regularizer(const at::Tensor& h, double beta) {
  return 1 - (2 * h - 1).abs_().pow_(beta);
}

at::Tensor rounding_regularizer_slope(const at::Tensor& h, double beta) {
  const at::Tensor from_middle = 2 * h - 1;
  return from_middle.abs().pow_(beta - 1).mul_(from_middle.sign()).mul_(-2 * beta);
}

at::Tensor inverse_rectified_sigmoid(const at::Tensor& h) {
  return -at::log((kZeta - kGamma) / (h - kGamma) - 1);
}

SolvedLayer solve_adaround(const LayerProblem& problem) {
  const OneThread one_thread;
  const auto fail = [&](StatusCode code, const std::string& message) {
    return Error(Status(code, cat("[adaround] ", problem.node, ": ", message)));
  };
  if (problem.inputs == nullptr || problem.inputs->tokens() == 0) {
    throw fail(StatusCode::failed_precondition,
               "needs calibration inputs; found none; give --calibration");
  }
  const int64_t rows = problem.weight.rows, n = problem.weight.cols;
  const auto tokens = static_cast<double>(problem.inputs->tokens());
  const at::Tensor h = problem.inputs->matrix() / tokens;
  if (!std::isfinite(h.sum().item<double>())) {
    throw fail(
        StatusCode::out_of_range,
        "inputs must be finite; found NaN or infinity; check the weights before this "
        "layer and the calibration data");
  }
  const bool matches = problem.gptq.match_float && problem.inputs->has_drift();
  const at::Tensor drift = matches ? problem.inputs->drift() / tokens : at::Tensor();
  const at::Tensor single = h.to(at::kFloat);

  Result<CodedMatrix> chosen =
      choose_scales(problem.weight, problem.scheme, problem.rule);
  if (!chosen.ok()) throw fail(chosen.status().code(), chosen.status().message());
  CodedMatrix coded = std::move(chosen).value();
  coded.codes.resize(static_cast<size_t>(rows * n));
  const Neighbours near = neighbours_of(problem.weight, coded);
  const at::Tensor diagonal = single.diagonal();

  const int64_t parts = (rows + kRows - 1) / kRows;
  std::vector<int64_t> moved(static_cast<size_t>(parts), 0);
  in_parallel(parts, [&](int64_t part) {
    const int64_t first = part * kRows, count = std::min(kRows, rows - first);
    at::Tensor weight = at::empty({count, n}, at::kFloat);
    for (int64_t r = 0; r < count; ++r)
      std::copy_n(problem.weight.row(first + r), n, weight.data_ptr<float>() + r * n);
    const at::Tensor low = near.low.narrow(0, first, count);
    const at::Tensor step = near.step.narrow(0, first, count);
    const at::Tensor start = near.start.narrow(0, first, count);
    at::Tensor unit = (step.square() * diagonal).mean(1, /*keepdim=*/true);
    unit.masked_fill_(unit.le(0), 1);
    std::unique_ptr<Reconstruction> layer;
    if (problem.rows != nullptr) {
      const at::Tensor bias =
          problem.bias.defined() ? problem.bias.narrow(0, first, count) : at::Tensor();
      layer =
          std::make_unique<FromRows>(weight, *problem.rows, bias, problem.adaround.batch);
    } else {
      layer = std::make_unique<FromMoments>(weight, h, single, drift);
    }
    const at::Tensor nearest = start.ge(0.5);
    const at::Tensor learned =
        learned_rounding(problem.adaround, *layer, low, step, start, unit).ge(0.5);
    const at::Tensor gains =
        layer->loss(low + step * nearest).sub_(layer->loss(low + step * learned));
    const at::Tensor taken = at::where(gains.gt(0).unsqueeze(1), learned, nearest);
    moved[static_cast<size_t>(part)] = taken.ne(nearest).sum().item<int64_t>();
    for (int64_t i = 0; i < count * n; ++i) {
      const auto at = static_cast<size_t>(first * n + i);
      coded.codes[at] =
          taken.data_ptr<bool>()[i] ? near.high_code[at] : near.low_code[at];
    }
  });
  int64_t all = 0;
  for (const int64_t count : moved) all += count;
  const double share = 100.0 * static_cast<double>(all) / static_cast<double>(rows * n);
  return {std::move(coded),
          cat(static_cast<int64_t>(std::lround(share)), " % rounded away from nearest",
              problem.rows != nullptr ? ", the ReLU seen" : "")};
}

}  // namespace nibble
