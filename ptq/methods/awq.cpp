// AWQ: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and
// Acceleration", arXiv 2306.00978.
//
// The transform: channels that carry large activations are multiplied before rounding and
// divided again in the layer before (sec. 3.2):
//
//   s = mean|x|^alpha [/ mean|w|^(1 - alpha)],  alpha = 0, 1/20 .. 19/20        eq. 5
//   alpha* = argmin |Q(W diag(s)) diag(s)^-1 X - W X|^2                         eq. 4
//
// over all readers of a value, the error taken from H = X X^T, so no forward pass is
// needed per candidate, and from 1,024 rows of each weight at most, evenly apart.
// mean|w|: of each weight over its group's largest (as the authors' code normalises it);
// candidates with and without it are tried, and s = 1 too.
//
// The method: the clip search of the same paper (sec. 4.1), then round to nearest:
//
//   r* = argmin |(Q(clamp(W_g, r min, r max)) - W_g) X_g|^2,  r = 1, 0.95 .. 0.5
//
// for each row and each group g of columns alone.
#include <ATen/ATen.h>

#include <algorithm>

#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/methods/round_trip.h"
#include "ptq/methods/transform.h"
#include "ptq/module/dense_product.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int kGrid = 20;  // the authors' n_grid

// mean over rows of |w| / (largest |w| of its group), [in]
at::Tensor relative_magnitude(const at::Tensor& weight, const QuantScheme& scheme) {
  const Block& block = scheme.scales.at(0).block;
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const int64_t size = block.kind == Block::Kind::group ? block.cols : cols;
  at::Tensor sum = at::zeros({cols}, at::kDouble);
  for (int64_t first = 0; first < rows; first += kRowsOfRun) {
    const at::Tensor magnitude =
        weight.narrow(0, first, std::min(kRowsOfRun, rows - first)).abs();
    for (int64_t begin = 0; begin < cols; begin += size) {
      const int64_t count = std::min(size, cols - begin);
      at::Tensor part = magnitude.narrow(1, begin, count);
      part.div_(part.amax(1, /*keepdim=*/true).clamp_min(1e-6));
    }
    sum += magnitude.sum(0, false, at::kDouble);
  }
  return sum / static_cast<double>(rows);
}

// The columns' value of each channel: the mean over the columns that read it.
at::Tensor by_channel(const at::Tensor& columns, const ScaleGroup& group) {
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(group.channel_of_column));
  const at::Tensor sum =
      at::zeros({group.channels}, at::kDouble).index_add(0, index, columns);
  const double times = static_cast<double>(group.channel_of_column.size()) /
                       static_cast<double>(group.channels);
  return sum / times;
}

double output_error(const LayerPlan& layer, const at::Tensor& weight,
                    const at::Tensor& hessian, const at::Tensor& scale) {
  const QuantScheme& scheme = layer.scheme.weight;
  double error = 0;
  over_rows(weight.size(0), scheme, [&](int64_t first, int64_t count) {
    const at::Tensor rows = weight.narrow(0, first, count);
    const at::Tensor difference =
        round_trip((rows * scale).contiguous(), scheme, layer.rule) / scale - rows;
    error += (dense_mm(difference, hessian) * difference).sum(at::kDouble).item<double>();
  });
  return error;
}

Error failure(const LayerProblem& problem, StatusCode code, const std::string& message) {
  return Error(Status(code, cat("[awq] ", problem.node, ": ", message)));
}

// Each row's and group's weights between the ratios' ends.
at::Tensor clamped(const at::Tensor& weight, const at::Tensor& ratios, int64_t size) {
  at::Tensor result = at::empty_like(weight);
  for (int64_t g = 0; g < ratios.size(1); ++g) {
    const int64_t count = std::min(size, weight.size(1) - g * size);
    const at::Tensor part = weight.narrow(1, g * size, count);
    const at::Tensor r = ratios.narrow(1, g, 1);
    result.narrow(1, g * size, count)
        .copy_(at::maximum(at::minimum(part, part.amax(1, true) * r),
                           part.amin(1, true) * r));
  }
  return result;
}

// Of each row and group of `weight` [rows, cols] the ratio of least error, [rows,
// groups].
at::Tensor best_ratios(const at::Tensor& weight, const QuantScheme& scheme, int64_t size,
                       const at::Tensor& hessian) {
  constexpr double kLowest = 0.5;
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const int64_t groups = (cols + size - 1) / size;
  at::Tensor best, best_ratio;
  for (int i = 0; i <= kGrid / 2; ++i) {
    const double ratio = 1 - (1 - kLowest) * i / (kGrid / 2);
    const at::Tensor ratios = at::full({rows, groups}, ratio, at::kFloat);
    const at::Tensor difference =
        round_trip(clamped(weight, ratios, size), scheme, ScaleRule()) - weight;
    at::Tensor errors = at::empty({rows, groups}, at::kFloat);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t count = std::min(size, cols - g * size);
      const at::Tensor d = difference.narrow(1, g * size, count);
      const at::Tensor h =
          hessian.narrow(0, g * size, count).narrow(1, g * size, count).to(at::kFloat);
      errors.narrow(1, g, 1).copy_((at::mm(d, h) * d).sum(1, true));
    }
    if (i == 0) {
      best = errors;
      best_ratio = ratios;
      continue;
    }
    const at::Tensor better = errors < best;
    best = at::where(better, errors, best);
    best_ratio = at::where(better, ratios, best_ratio);
  }
  return best_ratio;
}

}  // namespace

GroupSearch search_awq(const Plan& plan, const ModelWeights& weights,
                       const GroupInputs& inputs) {
  const ScaleGroup& group = inputs.group;
  std::vector<const LayerPlan*> readers;
  std::vector<at::Tensor> magnitudes;
  for (const std::string& name : group.readers) {
    const LayerPlan* layer = plan.find(name);
    if (layer == nullptr || layer->method == "float") continue;
    readers.push_back(layer);
    magnitudes.push_back(relative_magnitude(weights.matrix(name), layer->scheme.weight));
  }
  const at::Tensor w_mean = by_channel(at::stack(magnitudes).mean(0), group);
  const at::Tensor x_mean = by_channel(inputs.mean, group);
  GroupSearch search;
  search.measured = "error before the clip search";
  search.candidates.push_back({at::ones({group.channels}, at::kDouble), ""});
  for (const bool with_weights : {false, true}) {
    for (int i = with_weights ? 0 : 1; i < kGrid; ++i) {
      const double alpha = static_cast<double>(i) / kGrid;
      at::Tensor scale = x_mean.pow(alpha);
      if (with_weights) scale = scale / (w_mean.pow(1 - alpha) + 1e-4);
      scale = scale.clamp_min(1e-4);
      scale = scale / (scale.max() * scale.min()).sqrt();
      search.candidates.push_back(
          {scale, cat("alpha ", alpha, with_weights ? " with weights" : "")});
    }
  }
  struct Open {
    const LayerPlan* layer = nullptr;
    at::Tensor weight;  // f32 [out, in]
  };
  const auto now = std::make_shared<Open>();
  search.readers = readers.size();
  search.open = [now, readers, &weights](size_t reader) {
    *now = {};  // before the next is there
    now->layer = readers[reader];
    now->weight =
        judged_rows(weights.matrix(now->layer->tensor), now->layer->scheme.weight)
            .contiguous();
  };
  search.error = [now, hessian = inputs.hessian](const at::Tensor& scale) {
    return output_error(*now->layer, now->weight, hessian, scale);
  };
  return search;
}

SolvedLayer solve_awq(const LayerProblem& problem) {
  const OneThread one_thread;
  if (problem.inputs == nullptr || problem.inputs->tokens() == 0) {
    throw failure(problem, StatusCode::failed_precondition,
                  "needs calibration inputs; found none; give --calibration");
  }
  const int64_t rows = problem.weight.rows, cols = problem.weight.cols;
  const Block& block = problem.scheme.scales.at(0).block;
  const int64_t size = block.kind == Block::Kind::group ? block.cols : cols;
  at::Tensor weight = at::empty({rows, cols}, at::kFloat);
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(problem.weight.row(r), cols, weight.mutable_data_ptr<float>() + r * cols);
  const at::Tensor hessian = problem.inputs->matrix();

  std::vector<std::pair<int64_t, int64_t>> runs;
  over_rows(rows, problem.scheme,
            [&](int64_t first, int64_t count) { runs.emplace_back(first, count); });
  std::vector<double> sums(runs.size(), 0);
  in_parallel(static_cast<int64_t>(runs.size()), [&](int64_t i) {
    const auto [first, count] = runs[static_cast<size_t>(i)];
    at::Tensor part = weight.narrow(0, first, count);
    const at::Tensor ratios = best_ratios(part, problem.scheme, size, hessian);
    sums[static_cast<size_t>(i)] = ratios.sum(at::kDouble).item<double>();
    part.copy_(clamped(part, ratios, size));
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  const int64_t groups = (cols + size - 1) / size;
  const MatrixView<const float> view(weight.const_data_ptr<float>(), rows, cols);
  Result<CodedMatrix> coded = choose_scales(view, problem.scheme, ScaleRule());
  if (!coded.ok())
    throw failure(problem, coded.status().code(), coded.status().message());
  const Status status = quantize(view, *coded);
  if (!status.ok()) throw failure(problem, status.code(), status.message());
  return {std::move(coded).value(),
          cat("clipped to ", sum / static_cast<double>(rows * groups), " on average")};
}

}  // namespace nibble
