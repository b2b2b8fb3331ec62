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
// needed per candidate. mean|w|: of each weight over its group's largest (as the authors'
// code normalises it); candidates with and without it are tried, and s = 1 too.
//
// The method: the clip search of the same paper (sec. 4.1), then round to nearest:
//
//   r* = argmin |(Q(clamp(W_g, r min, r max)) - W_g) X_g|^2,  r = 1, 0.95 .. 0.5
//
// for each row and each group g of columns alone.
#include <ATen/ATen.h>

#include <optional>

#include "kernels/program/edits/scale_channels.h"
#include "ptq/calibration/group_inputs.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/methods/round_trip.h"
#include "ptq/methods/transform.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int kGrid = 20;  // the authors' n_grid

// mean over rows of |w| / (largest |w| of its group), [in]
at::Tensor relative_magnitude(const at::Tensor& weight, const QuantScheme& scheme) {
  const at::Tensor magnitude = weight.abs();
  const Block& block = scheme.scales.at(0).block;
  const int64_t cols = weight.size(1);
  const int64_t size = block.kind == Block::Kind::group ? block.cols : cols;
  at::Tensor relative = at::empty_like(magnitude);
  for (int64_t begin = 0; begin < cols; begin += size) {
    const int64_t count = std::min(size, cols - begin);
    const at::Tensor part = magnitude.narrow(1, begin, count);
    relative.narrow(1, begin, count)
        .copy_(part / part.amax(1, /*keepdim=*/true).clamp_min(1e-6));
  }
  return relative.mean(0, false, at::kDouble);
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

struct Reader {
  const LayerPlan* plan;
  at::Tensor weight;  // f32 [out, in]
};

struct Candidate {
  double alpha = 0;
  bool with_weights = false;
  at::Tensor scale;  // f64 [channels]
  double error = 0;
};

double group_error(const std::vector<Reader>& readers, const at::Tensor& hessian,
                   const at::Tensor& column_scale) {
  double error = 0;
  for (const Reader& reader : readers) {
    const at::Tensor scale = column_scale.to(at::kFloat);
    const at::Tensor difference =
        round_trip((reader.weight * scale).contiguous(), reader.plan->scheme.weight,
                   reader.plan->rule) /
            scale -
        reader.weight;
    error += (at::mm(difference, hessian) * difference).sum(at::kDouble).item<double>();
  }
  return error;
}

void scale_group(const TransformProblem& problem, const GroupInputs& inputs) {
  const ScaleGroup& group = inputs.group;
  std::vector<Reader> readers;
  for (const std::string& name : group.readers) {
    const LayerPlan* layer = problem.plan.find(name);
    if (layer == nullptr || layer->method == "float") continue;
    readers.push_back({layer, to_matrix(problem.model.tensors.at(name))});
  }
  if (readers.empty()) return;

  std::vector<at::Tensor> weights;
  for (const Reader& reader : readers)
    weights.push_back(relative_magnitude(reader.weight, reader.plan->scheme.weight));
  const at::Tensor w_mean = by_channel(at::stack(weights).mean(0), group);
  const at::Tensor x_mean = by_channel(inputs.mean, group);
  std::vector<Candidate> candidates;
  candidates.push_back({.scale = at::ones({group.channels}, at::kDouble)});
  for (const bool with_weights : {false, true}) {
    for (int i = with_weights ? 0 : 1; i < kGrid; ++i) {
      const double alpha = static_cast<double>(i) / kGrid;
      at::Tensor scale = x_mean.pow(alpha);
      if (with_weights) scale = scale / (w_mean.pow(1 - alpha) + 1e-4);
      scale = scale.clamp_min(1e-4);
      scale = scale / (scale.max() * scale.min()).sqrt();
      candidates.push_back({alpha, with_weights, scale});
    }
  }
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(group.channel_of_column));
  const at::Tensor hessian =
      (inputs.hessian.matrix() /
       static_cast<double>(std::max<int64_t>(inputs.hessian.tokens(), 1)))
          .to(at::kFloat);
  in_parallel(static_cast<int64_t>(candidates.size()), [&](int64_t i) {
    candidates[i].error =
        group_error(readers, hessian, candidates[i].scale.index_select(0, index));
  });
  const Candidate* best = &candidates[0];
  for (const Candidate& candidate : candidates) {
    if (candidate.error < best->error) best = &candidate;
  }
  if (best == &candidates[0]) return;
  const double* scale = best->scale.data_ptr<double>();
  throw_if_error(scale_channels({.makers = group.makers,
                                 .readers = group.readers,
                                 .channel_of_column = group.channel_of_column,
                                 .scale = {scale, scale + group.channels}},
                                problem.model.tensors));
  const std::string note =
      cat("awq: alpha ", best->alpha, best->with_weights ? " with weights" : "",
          ", error before the clip search ", best->error / candidates[0].error,
          " of unscaled");
  for (const std::string& name : group.readers) problem.notes[name] = note;
  for (const std::string& name : group.makers)
    problem.notes[name] = cat("awq: divided by the factors of ", group.readers[0]);
}

Error failure(const LayerProblem& problem, StatusCode code, const std::string& message) {
  return Error(Status(code, cat("[awq] ", problem.node, ": ", message)));
}

}  // namespace

void transform_awq(const TransformProblem& problem) {
  const OneThread one_thread;
  const Artifact before = problem.model;  // shares its tensors
  std::vector<ScaleGroup> groups;
  for (ScaleGroup& group : scale_groups(before.program, before.tensors)) {
    if (group.convolution) continue;
    for (const std::string& reader : group.readers) {
      const LayerPlan* layer = problem.plan.find(reader);
      if (layer == nullptr || layer->method == "float") continue;
      groups.push_back(std::move(group));
      break;
    }
  }
  int64_t done = 0;
  observe_groups(before, problem.plan, problem.data, groups,
                 [&](const GroupInputs& inputs) {
                   scale_group(problem, inputs);
                   if (problem.progress) {
                     problem.progress("awq", inputs.group.value, ++done,
                                      static_cast<int64_t>(groups.size()));
                   }
                 });
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
  const int64_t groups = (cols + size - 1) / size;
  const at::Tensor weight = at::empty({rows, cols}, at::kFloat);
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(problem.weight.row(r), cols, weight.data_ptr<float>() + r * cols);
  const at::Tensor hessian = problem.inputs->matrix().to(at::kFloat);

  const ScaleRule absmax;
  at::Tensor best, best_ratio;  // [rows, groups]
  const auto group_part = [&](const at::Tensor& matrix, int64_t g) {
    return matrix.narrow(1, g * size, std::min(size, cols - g * size));
  };
  std::vector<at::Tensor> lows, highs;
  for (int64_t g = 0; g < groups; ++g) {
    lows.push_back(group_part(weight, g).amin(1, true));
    highs.push_back(group_part(weight, g).amax(1, true));
  }
  // Each row's and group's weights between the ratios' ends.
  const auto clamped = [&](const at::Tensor& ratio) {
    at::Tensor result = at::empty_like(weight);
    for (int64_t g = 0; g < groups; ++g) {
      const at::Tensor r = ratio.narrow(1, g, 1);
      group_part(result, g).copy_(
          at::maximum(at::minimum(group_part(weight, g), highs[g] * r), lows[g] * r));
    }
    return result;
  };
  constexpr double kLowest = 0.5;
  for (int i = 0; i <= kGrid / 2; ++i) {
    const double ratio = 1 - (1 - kLowest) * i / (kGrid / 2);
    const at::Tensor ratios = at::full({rows, groups}, ratio, at::kFloat);
    const at::Tensor difference =
        round_trip(clamped(ratios), problem.scheme, absmax) - weight;
    at::Tensor errors = at::empty({rows, groups}, at::kFloat);
    for (int64_t g = 0; g < groups; ++g) {
      const at::Tensor d = group_part(difference, g);
      const at::Tensor h = group_part(hessian.narrow(0, g * size, d.size(1)), g);
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
  const at::Tensor target = clamped(best_ratio);
  const MatrixView<const float> view(target.data_ptr<float>(), rows, cols);
  Result<CodedMatrix> coded = choose_scales(view, problem.scheme, absmax);
  if (!coded.ok())
    throw failure(problem, coded.status().code(), coded.status().message());
  const Status status = quantize(view, *coded);
  if (!status.ok()) throw failure(problem, status.code(), status.message());
  return {std::move(coded).value(),
          cat("clipped to ", best_ratio.mean().item<double>(), " on average")};
}

}  // namespace nibble
