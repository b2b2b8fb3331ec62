// SmoothQuant: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training
// Quantization for Large Language Models", arXiv 2211.10438.
//
//   s_c = max|X_c|^alpha / max|W_c|^(1 - alpha)          eq. 4, over all readers' weights
//   Y   = (X diag(s)^-1) (diag(s) W)                     eq. 3, s folded into the layer
//   before
//
// alpha is searched for each group of readers where the plan does not fix it: the one of
// {none, 0.05, 0.1 .. 0.95} with the least squared error of Q(X / s) Q(W s) against X W
// on up to 1,024 tokens and as many rows of each weight, both roundings being those that
// ship.
#include <ATen/ATen.h>

#include "ptq/methods/round_trip.h"
#include "ptq/methods/transform.h"
#include "ptq/module/dense_product.h"

namespace nibble {
namespace {

constexpr int kGrid = 20;

struct Reader {
  const LayerPlan* layer = nullptr;
  at::Tensor weight;  // f32 [out, in]
  at::Tensor output;  // f32 [tokens, out]: X W^T in float
};

double output_error(const Reader& reader, const at::Tensor& rows,
                    const at::Tensor& column_scale) {
  const QuantScheme& scheme = reader.layer->scheme.weight;
  const at::Tensor inputs = round_trip((rows / column_scale).contiguous(),
                                       reader.layer->scheme.input->scheme, {});
  double error = 0;
  over_rows(reader.weight.size(0), scheme, [&](int64_t first, int64_t count) {
    const at::Tensor scaled = reader.weight.narrow(0, first, count) * column_scale;
    const at::Tensor weight = round_trip(scaled.contiguous(), scheme, reader.layer->rule);
    const at::Tensor difference =
        dense_linear(inputs, weight) - reader.output.narrow(1, first, count);
    error += difference.square().sum(at::kDouble).item<double>();
  });
  return error;
}

}  // namespace

GroupSearch search_smoothquant(const Plan& plan, const ModelWeights& weights,
                               const GroupInputs& inputs) {
  const ScaleGroup& group = inputs.group;
  std::vector<const LayerPlan*> readers;
  at::Tensor w_most = at::zeros({inputs.rows.size(1)}, at::kDouble);
  for (const std::string& name : group.readers) {
    // Only where inputs are rounded do their outliers cost anything.
    const LayerPlan* layer = plan.find(name);
    if (layer == nullptr || layer->method == "float" || !layer->scheme.input) continue;
    readers.push_back(layer);
    w_most = at::maximum(w_most, weights.matrix(name).abs().amax(0).to(at::kDouble));
  }
  // The largest over the columns that read a channel.
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(group.channel_of_column));
  const auto by_channel = [&](const at::Tensor& columns) {
    return at::zeros({group.channels}, at::kDouble)
        .scatter_reduce(0, index, columns, "amax")
        .clamp_min(1e-5);
  };
  const at::Tensor x = by_channel(inputs.most), w = by_channel(w_most);

  GroupSearch search;
  search.measured = "error";
  search.takes_last = plan.smoothquant_alpha > 0;
  search.candidates.push_back({at::ones({group.channels}, at::kDouble), ""});
  for (int i = 1; i < kGrid; ++i) {
    const double alpha =
        search.takes_last ? plan.smoothquant_alpha : static_cast<double>(i) / kGrid;
    search.candidates.push_back(
        {(x.pow(alpha) / w.pow(1 - alpha)).clamp_min(1e-5), cat("alpha ", alpha)});
    if (search.takes_last) break;
  }
  const auto now = std::make_shared<Reader>();
  search.readers = readers.size();
  search.open = [now, readers, rows = inputs.rows, &weights](size_t reader) {
    *now = {};  // before the next is there
    now->layer = readers[reader];
    now->weight =
        judged_rows(weights.matrix(now->layer->tensor), now->layer->scheme.weight)
            .contiguous();
    now->output = dense_linear(rows, now->weight);
  };
  search.error = [now, rows = inputs.rows](const at::Tensor& scale) {
    return output_error(*now, rows, scale);
  };
  return search;
}

}  // namespace nibble
