// SmoothQuant: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training
// Quantization for Large Language Models", arXiv 2211.10438.
//
//   s_c = max|X_c|^alpha / max|W_c|^(1 - alpha)          eq. 4, over all readers' weights
//   Y   = (X diag(s)^-1) (diag(s) W)                     eq. 3, s folded into the layer
//   before
//
// alpha is searched for each group of readers where the plan does not fix it: the one of
// {none, 0.05, 0.1 .. 0.95} with the least squared error of Q(X / s) Q(W s) against X W
// on up to 1,024 tokens, both roundings being those that ship.
#include <ATen/ATen.h>

#include "kernels/program/edits/scale_channels.h"
#include "ptq/calibration/group_inputs.h"
#include "ptq/error.h"
#include "ptq/methods/round_trip.h"
#include "ptq/methods/transform.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int kGrid = 20;

struct Reader {
  const LayerPlan* plan;
  at::Tensor weight;  // f32 [out, in]
  at::Tensor output;  // f32 [tokens, out]: X W^T in float
};

// Whose inputs are rounded when it runs: only there do outliers of activations cost
// anything.
bool rounds_inputs(const Plan& plan, const std::string& tensor) {
  const LayerPlan* layer = plan.find(tensor);
  return layer != nullptr && layer->method != "float" && layer->scheme.input.has_value();
}

double group_error(const std::vector<Reader>& readers, const at::Tensor& rows,
                   const at::Tensor& column_scale) {
  double error = 0;
  at::Tensor inputs;
  for (const Reader& reader : readers) {
    if (!inputs.defined()) {
      inputs = round_trip((rows / column_scale).contiguous(),
                          reader.plan->scheme.input->scheme, {});
    }
    const at::Tensor weight = round_trip((reader.weight * column_scale).contiguous(),
                                         reader.plan->scheme.weight, reader.plan->rule);
    const at::Tensor difference = at::mm(inputs, weight.t()) - reader.output;
    error += difference.square().sum(at::kDouble).item<double>();
  }
  return error;
}

void smooth(const TransformProblem& problem, const GroupInputs& inputs) {
  const ScaleGroup& group = inputs.group;
  std::vector<Reader> readers;
  at::Tensor w_most = at::zeros({inputs.rows.size(1)}, at::kDouble);
  for (const std::string& name : group.readers) {
    if (!rounds_inputs(problem.plan, name)) continue;
    const at::Tensor weight = to_matrix(problem.model.tensors.at(name));
    readers.push_back({problem.plan.find(name), weight, at::mm(inputs.rows, weight.t())});
    w_most = at::maximum(w_most, weight.abs().amax(0).to(at::kDouble));
  }
  // The largest over the columns that read a channel.
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(group.channel_of_column));
  const auto by_channel = [&](const at::Tensor& columns) {
    return at::zeros({group.channels}, at::kDouble)
        .scatter_reduce(0, index, columns, "amax")
        .clamp_min(1e-5);
  };
  const at::Tensor x = by_channel(inputs.most), w = by_channel(w_most);

  struct Candidate {
    double alpha = 0;
    at::Tensor scale;
    double error = 0;
  };
  std::vector<Candidate> candidates = {
      {.scale = at::ones({group.channels}, at::kDouble)}};
  const double fixed = problem.plan.smoothquant_alpha;
  for (int i = 1; i < kGrid; ++i) {
    const double alpha = fixed > 0 ? fixed : static_cast<double>(i) / kGrid;
    candidates.push_back({alpha, (x.pow(alpha) / w.pow(1 - alpha)).clamp_min(1e-5)});
    if (fixed > 0) break;
  }
  in_parallel(static_cast<int64_t>(candidates.size()), [&](int64_t i) {
    candidates[i].error = group_error(
        readers, inputs.rows, candidates[i].scale.index_select(0, index).to(at::kFloat));
  });
  const Candidate* best = &candidates[fixed > 0 ? 1 : 0];
  for (const Candidate& candidate : candidates) {
    if (fixed <= 0 && candidate.error < best->error) best = &candidate;
  }
  if (best == &candidates[0]) return;
  const double* scale = best->scale.data_ptr<double>();
  throw_if_error(scale_channels({.makers = group.makers,
                                 .readers = group.readers,
                                 .channel_of_column = group.channel_of_column,
                                 .scale = {scale, scale + group.channels}},
                                problem.model.tensors));
  const std::string note = cat("smoothquant: alpha ", best->alpha, ", error ",
                               best->error / candidates[0].error, " of unsmoothed");
  for (const std::string& name : group.readers) problem.notes[name] = note;
  for (const std::string& name : group.makers)
    problem.notes[name] =
        cat("smoothquant: divided by the factors of ", group.readers[0]);
}

}  // namespace

void transform_smoothquant(const TransformProblem& problem) {
  const OneThread one_thread;
  const Artifact before = problem.model;  // shares its tensors
  std::vector<ScaleGroup> groups;
  for (ScaleGroup& group : scale_groups(before.program, before.tensors)) {
    const bool wanted =
        !group.convolution &&
        std::any_of(group.readers.begin(), group.readers.end(),
                    [&](const auto& name) { return rounds_inputs(problem.plan, name); });
    if (wanted) groups.push_back(std::move(group));
  }
  if (groups.empty()) {
    throw Error(error(
        StatusCode::invalid_argument,
        "[smoothquant] a layer whose inputs are quantized, behind a norm or a layer that "
        "can take its factors, is required; found none; give the layers an input scheme "
        "(recipe w8a8-dynamic), or leave the transform out"));
  }
  int64_t done = 0;
  observe_groups(before, problem.plan, problem.data, groups,
                 [&](const GroupInputs& inputs) {
                   smooth(problem, inputs);
                   if (problem.progress) {
                     problem.progress("smoothquant", inputs.group.value, ++done,
                                      static_cast<int64_t>(groups.size()));
                   }
                 });
}

}  // namespace nibble
