#include "recipes/eval/layer_cost.h"

#include <algorithm>
#include <optional>

#include "kernels/base/cancel.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "kernels/base/sha256.h"
#include "kernels/base/splitmix64.h"
#include "kernels/hardware/machine.h"
#include "kernels/runtime/node_weights.h"
#include "recipes/eval/prepared_copy.h"
#include "recipes/eval/speed.h"

namespace nibble {
namespace {

constexpr double kLeastSeconds = 0.01;  // of one timing
constexpr int64_t kMostCopies = 64;     // of a weight

Result<LinearWeight> weight_of(const Tensor& tensor, const std::string& scheme,
                               double* squared_error) {
  *squared_error = 0;
  if (scheme.empty()) return linear_weight(tensor);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
  const MatrixView<const float> x(values.data(), tensor.rows(), tensor.cols());
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme parsed, parse_scheme(scheme));
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, choose_scales(x, parsed, ScaleRule{}));
  NIBBLE_RETURN_IF_ERROR(quantize(x, q));
  std::vector<float> back(values.size());
  NIBBLE_RETURN_IF_ERROR(
      dequantize(q, MatrixView<float>(back.data(), tensor.rows(), tensor.cols())));
  double lost = 0, energy = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double difference = static_cast<double>(back[i]) - values[i];
    lost += difference * difference;
    energy += static_cast<double>(values[i]) * values[i];
  }
  *squared_error = energy > 0 ? lost / energy : 0;
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, tensor.shape));
  return linear_weight(packed);
}

// Seconds of one layer, one timing: each copy in turn; of a prompt, which is long enough,
// the first alone.
double seconds_of(const std::vector<PreparedLinear>& layers, MatrixView<const float> x,
                  std::vector<float>& y) {
  y.resize(static_cast<size_t>(x.rows * layers[0].rows));
  const MatrixView<float> out(y.data(), x.rows, layers[0].rows);
  const int threads = thread_count();
  const double start = work_seconds(threads);
  double seconds = 0;
  int64_t calls = 0;
  do {
    for (const PreparedLinear& layer : layers) {
      run_linear(layer, x, nullptr, out);
      ++calls;
      if (x.rows > 64) break;
    }
    seconds = work_seconds(threads) - start;
  } while (seconds < kLeastSeconds);
  return seconds / static_cast<double>(calls);
}

// What serves a case, while it is timed.
struct Timed {
  CostCase what;
  LayerCost cost;
  std::vector<PreparedLinear> layers;
  std::vector<double> decode, prefill;
  bool known = false;  // from an earlier run
  bool is(const CostCase& other) const {
    return what.scheme == other.scheme && what.activation == other.activation;
  }
};

Result<Timed> prepare_timed(const Tensor& tensor, const CostCase& what) {
  Timed timed;
  timed.what = what;
  NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                          weight_of(tensor, what.scheme, &timed.cost.error));
  const LinearKernel* kernel = preferred_linear(weight, what.activation);
  timed.cost.kernel = kernel->name;
  timed.cost.falls_back = timed.cost.kernel.find("_any__") != std::string::npos;
  timed.cost.bytes = weight.bytes();
  NIBBLE_ASSIGN_OR_RETURN(PreparedLinear first, prepare_linear(*kernel, weight));
  timed.layers.push_back(std::move(first));
  const int64_t wanted =
      std::min(what.spread / std::max<int64_t>(1, timed.cost.bytes), kMostCopies);
  while (static_cast<int64_t>(timed.layers.size()) < wanted) {
    timed.layers.push_back(copy_of(timed.layers[0]));
  }
  return timed;
}

// Another weight of the same shape has another error: the first values tell them apart.
std::string key_of(const Tensor& tensor, const CostCase& what, const CostOptions& options) {
  const std::string_view first(reinterpret_cast<const char*>(tensor.bytes.data()),
                               std::min<size_t>(tensor.bytes.size(), size_t{1} << 20));
  return cat(tensor.rows(), " x ", tensor.cols(), " ", dtype_name(tensor.dtype), " ",
             sha256_hex(first).substr(0, 16), "; ", what.scheme, " by ",
             static_cast<int>(what.activation), ", spread ", what.spread, "; ",
             options.tokens, " and ", options.prompt, " tokens, ", options.repeats,
             " repeats");
}

nlohmann::json to_json(const LayerCost& cost) {
  return {{"kernel", cost.kernel}, {"decode", cost.decode},
          {"prompt", cost.prefill}, {"bytes", cost.bytes},
          {"error", cost.error}, {"falls_back", cost.falls_back}};
}

// nullopt where the file was changed by hand.
std::optional<LayerCost> cost_from(const nlohmann::json& json) {
  const auto number = [&](const char* key) {
    return json.contains(key) && json[key].is_number();
  };
  const bool whole = json.is_object() && number("decode") && number("prompt") &&
                     number("bytes") && number("error") && json.contains("kernel") &&
                     json["kernel"].is_string() && json.contains("falls_back") &&
                     json["falls_back"].is_boolean();
  if (!whole || !(json["decode"].get<double>() > 0)) return std::nullopt;
  return LayerCost{.kernel = json["kernel"],
                   .decode = json["decode"],
                   .prefill = json["prompt"],
                   .bytes = json["bytes"],
                   .error = json["error"],
                   .falls_back = json["falls_back"]};
}

}  // namespace

Result<std::vector<LayerCost>> time_layer(const Tensor& tensor,
                                          const std::vector<CostCase>& cases,
                                          const CostOptions& options) {
  std::vector<Timed> all;
  for (const CostCase& what : cases) {
    if (std::any_of(all.begin(), all.end(), [&](const Timed& t) { return t.is(what); })) {
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(check_cancelled("time_layer"));
    if (options.timings != nullptr) {
      const std::string* known = options.timings->find(key_of(tensor, what, options));
      const auto cost = known == nullptr ? std::nullopt : cost_from(parse_json(*known));
      if (cost) {
        Timed timed;
        timed.what = what;
        timed.cost = *cost;
        timed.known = true;
        all.push_back(std::move(timed));
        continue;
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(Timed timed, prepare_timed(tensor, what));
    all.push_back(std::move(timed));
  }
  SplitMix64 random(20262);  // any: the values do not change the work
  std::vector<float> values(
      static_cast<size_t>(std::max(options.tokens, options.prompt) * tensor.cols())),
      y;
  for (float& value : values) value = static_cast<float>(random.uniform() * 2 - 1);
  for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {  // the first warms up
    for (Timed& timed : all) {
      if (timed.known) continue;
      NIBBLE_RETURN_IF_ERROR(check_cancelled("time_layer"));
      const double one =
          seconds_of(timed.layers, {values.data(), options.tokens, tensor.cols()}, y);
      double many = 0;
      if (options.prompt > 0) {
        many =
            seconds_of(timed.layers, {values.data(), options.prompt, tensor.cols()}, y);
      }
      if (repeat == 0) continue;
      timed.decode.push_back(one);
      timed.prefill.push_back(many);
    }
  }
  for (Timed& timed : all) {
    if (timed.known) continue;
    timed.cost.decode = rate_of(timed.decode).median;
    timed.cost.prefill = rate_of(timed.prefill).median;
    if (options.timings != nullptr) {
      options.timings->put(key_of(tensor, timed.what, options), to_json(timed.cost).dump());
    }
  }
  std::vector<LayerCost> costs;
  for (const CostCase& what : cases) {
    const auto timed =
        std::find_if(all.begin(), all.end(), [&](const Timed& t) { return t.is(what); });
    costs.push_back(timed->cost);
  }
  return costs;
}

Result<LinearWeight> rounded_weight(const Tensor& tensor, const std::string& scheme) {
  double ignored = 0;
  return weight_of(tensor, scheme, &ignored);
}

}  // namespace nibble
