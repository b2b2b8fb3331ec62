#include "recipes/eval/layer_speed.h"

#include <algorithm>
#include <chrono>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/node_weights.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLeastSeconds = 0.005;  // of a timing: shorter ones run several times

struct Kind {
  LayerSpeed speed;
  std::vector<PreparedLinear> layers;
  double bytes = 0;
  std::vector<double> decode, prefill;  // of each repeat
};

// Seconds that each layer once takes with these tokens.
double time_kind(const Kind& kind, MatrixView<const float> x, std::vector<float>& y) {
  y.resize(static_cast<size_t>(x.rows * kind.speed.rows));
  const MatrixView<float> out(y.data(), x.rows, kind.speed.rows);
  const Clock::time_point start = Clock::now();
  double seconds = 0;
  int64_t rounds = 0;
  do {
    for (const PreparedLinear& layer : kind.layers) run_linear(layer, x, nullptr, out);
    ++rounds;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds < kLeastSeconds);
  return seconds / static_cast<double>(rounds);
}

}  // namespace

Result<std::vector<LayerSpeed>> measure_layers(const Executor& model, int64_t repeats,
                                               int64_t tokens) {
  const Artifact& artifact = model.artifact();
  const std::map<std::string, std::string> kernels = model.kernels();
  std::vector<Kind> kinds;
  for (const Node& node : artifact.program.nodes) {
    if (node.op != "linear") continue;
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, node_weight(artifact, node));
    const auto kernel = kernels.find(node.parameter("weight"));
    if (kernel == kernels.end()) continue;
    const auto row =
        std::find_if(linear_kernels().begin(), linear_kernels().end(),
                     [&](const LinearKernel& k) { return k.name == kernel->second; });
    if (row == linear_kernels().end()) continue;
    NIBBLE_ASSIGN_OR_RETURN(
        PreparedLinear layer,
        prepare_node_linear(artifact, node, weight, row->activation, nullptr));
    const LayerSpeed key{.kernel = layer.kernel->name,
                         .scheme = to_string(weight.scheme),
                         .rows = weight.rows,
                         .cols = weight.cols,
                         .decode = {},
                         .prefill = {}};
    const auto same = [&](const Kind& kind) {
      return kind.speed.kernel == key.kernel && kind.speed.scheme == key.scheme &&
             kind.speed.rows == key.rows && kind.speed.cols == key.cols;
    };
    auto kind = std::find_if(kinds.begin(), kinds.end(), same);
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), Kind{key, {}, 0, {}, {}});
    kind->bytes += static_cast<double>(weight.bytes());
    ++kind->speed.layers;
    kind->layers.push_back(std::move(layer));
  }
  if (kinds.empty()) {
    return error(StatusCode::unsupported, "[bench] ", artifact.program.architecture,
                 ": linear layers are timed one by one; found none that the linear kernels "
                 "run (an integer net runs as a whole); leave the layers out");
  }
  int64_t widest = 0;
  for (const Kind& kind : kinds) widest = std::max(widest, kind.speed.cols);
  SplitMix64 random(20261);  // any: the values do not change the work
  std::vector<float> values(static_cast<size_t>(tokens * widest)), y;
  for (float& value : values) value = static_cast<float>(random.uniform() * 2 - 1);
  for (int64_t repeat = 0; repeat <= repeats; ++repeat) {  // the first warms up
    for (Kind& kind : kinds) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("bench"));
      const auto x = [&](int64_t n) {
        return MatrixView<const float>(values.data(), n, kind.speed.cols);
      };
      const double one = time_kind(kind, x(1), y), many = time_kind(kind, x(tokens), y);
      if (repeat == 0) continue;
      const double products = 2.0 * static_cast<double>(kind.speed.rows) *
                              static_cast<double>(kind.speed.cols) *
                              static_cast<double>(kind.speed.layers);
      kind.decode.push_back(kind.bytes / one);
      kind.prefill.push_back(products * static_cast<double>(tokens) / many);
    }
  }
  std::vector<LayerSpeed> result;
  for (Kind& kind : kinds) {
    kind.speed.decode = rate_of(std::move(kind.decode));
    kind.speed.prefill = rate_of(std::move(kind.prefill));
    result.push_back(std::move(kind.speed));
  }
  return result;
}

std::string layer_kind_text(const LayerSpeed& kind) {
  return cat(kind.scheme, " [", kind.rows, ", ", kind.cols, "]");
}

std::vector<std::vector<std::string>> layer_speed_rows(
    const std::vector<LayerSpeed>& speeds) {
  std::vector<std::vector<std::string>> rows = {
      {"layers", "scheme, shape", "kernel", "decode GB/s", "prefill GFLOP/s"}};
  for (const LayerSpeed& kind : speeds) {
    rows.push_back({cat(kind.layers), layer_kind_text(kind), kind.kernel,
                    rate_text(kind.decode, 1e9), rate_text(kind.prefill, 1e9)});
  }
  return rows;
}

}  // namespace nibble
