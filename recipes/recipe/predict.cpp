#include "recipes/recipe/predict.h"

#include <algorithm>
#include <set>

#include "kernels/program/layers.h"
#include "kernels/program/shape.h"

namespace nibble {
namespace {

bool is_quantized(const LayerPlan& layer) { return layer.method != "float"; }

double bits_each(double bytes, int64_t count) {
  return count > 0 ? 8 * bytes / static_cast<double>(count) : 0;
}

// f32 bytes of a value for `samples` tokens or images: every size that the graph knows,
// times those.
int64_t value_bytes(const std::vector<int64_t>& shape, int64_t samples) {
  int64_t bytes = 4 * samples;
  for (const int64_t size : shape) {
    if (size > 0) bytes *= size;
  }
  return bytes;
}

// The bytes of the values that are alive while a sample moves through the graph, node by
// node: before it runs (what waits for it and for later ones), and the most up to there.
struct Live {
  std::vector<int64_t> before;
  std::vector<int64_t> most;
};
Live live_bytes(const Program& program, const Shapes& values, int64_t samples) {
  std::map<std::string, size_t> last_reader;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    for (const std::string& input : program.nodes[i].inputs) last_reader[input] = i;
  }
  std::map<std::string, int64_t> alive;
  Live live;
  int64_t now = 0;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    live.before.push_back(now);
    for (const std::string& output : program.nodes[i].outputs) {
      const auto shape = values.find(output);
      if (shape == values.end()) continue;
      alive[output] = value_bytes(shape->second, samples);
      now += alive[output];
    }
    live.most.push_back(std::max(i ? live.most.back() : 0, now));
    for (auto at = alive.begin(); at != alive.end();) {
      const auto last = last_reader.find(at->first);
      if (last == last_reader.end() || last->second <= i) {
        now -= at->second;
        at = alive.erase(at);
      } else {
        ++at;
      }
    }
  }
  return live;
}

constexpr int64_t kRound = 8;  // samples that ptq/calibrate runs side by side
constexpr int64_t kImagesPerSample = 16;

}  // namespace

PlanSize predict_size(const Plan& plan, const Artifact& model) {
  PlanSize out;
  std::set<std::string> named;
  for (const Node& node : model.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) named.insert(tensor);
  }
  int64_t parameters = 0, quantized = 0;
  double bytes = 0, quantized_bytes = 0;
  for (const std::string& name : named) {
    const auto tensor = model.tensors.find(name);
    if (tensor == model.tensors.end()) continue;
    const int64_t count = tensor->second.numel();
    parameters += count;
    const LayerPlan* layer = plan.find(name);
    out.layers += layer != nullptr;
    if (layer == nullptr || !is_quantized(*layer)) {
      bytes += static_cast<double>(tensor->second.bytes.size());
      continue;
    }
    const double stored = bits_per_value(layer->scheme.weight, tensor->second.rows(),
                                         tensor->second.cols()) *
                          static_cast<double>(count) / 8;
    ++out.quantized_layers;
    quantized += count;
    quantized_bytes += stored;
    bytes += stored;
  }
  out.bytes = static_cast<int64_t>(bytes + 0.5);
  out.bits_per_weight = bits_each(bytes, parameters);
  out.quantized_bits_per_weight = bits_each(quantized_bytes, quantized);
  return out;
}

Result<std::vector<MemoryPart>> predict_memory(const Plan& plan, const Artifact& model) {
  Shapes given, values;
  for (const auto& [name, tensor] : model.tensors) given[name] = tensor.shape;
  NIBBLE_RETURN_IF_ERROR(check_shapes(model.program, given, &values));

  const bool text = model.program.is_language_model();
  const int64_t each =
      text ? std::min(plan.calibration_length, model.program.context_length)
           : kImagesPerSample;
  const int64_t all =
      text ? plan.calibration_sequences * each : plan.calibration_sequences;
  int64_t codes = 0, widest = 0;
  for (const LayerPlan& layer : plan.layers) {
    const auto tensor = model.tensors.find(layer.tensor);
    if (tensor == model.tensors.end() || !is_quantized(layer)) continue;
    codes += tensor->second.numel();  // one code a byte until it is packed
    if (method_needs_inputs(layer.method))
      widest = std::max(widest, tensor->second.cols());
  }
  const bool drift = widest > 0 && plan.gptq.quantized_prefix && plan.gptq.match_float;

  const Live live = live_bytes(model.program, values, 1);  // of one token or image
  int64_t activations = 0;
  std::set<std::string> solved;  // values whose readers are solved together
  for (size_t i = 0; i < model.program.nodes.size(); ++i) {
    const Node& node = model.program.nodes[i];
    bool waits = false;
    for (const Layer& mine : layers_of(node)) {
      const LayerPlan* layer = plan.find(mine.tensor);
      waits = waits || (layer != nullptr && method_needs_inputs(layer->method));
    }
    if (!waits) continue;
    if (!solved.insert(node.inputs.at(0)).second) continue;
    // All samples wait at the layer; a few were on their way to it.
    const int64_t here = live.before[i] * all + live.most[i ? i - 1 : 0] * kRound * each;
    activations = std::max(activations, here * (drift ? 2 : 1));
  }
  if (activations == 0) {
    for (const auto& [value, scheme] : plan.activations) {
      if (values.count(value))
        activations += value_bytes(values.at(value), kRound * each);
    }
  }
  // H and D in double, and what the solve makes of H: its permuted copy, factor, inverse.
  const int64_t hessians = widest * widest * 8 * (drift ? 5 : 4);

  const int64_t artifact = predict_size(plan, model).bytes;
  std::vector<MemoryPart> calibration = {{"codes", codes},
                                         {"calibration activations", activations},
                                         {"Hessians of the widest layer", hessians}};
  std::vector<MemoryPart> evaluation = {
      {"the artifact and its kernels' copy", 2 * artifact},
      {"the float model's kernels' copy", model.weight_bytes()}};
  const auto total = [](const std::vector<MemoryPart>& parts) {
    int64_t sum = 0;
    for (const MemoryPart& part : parts) sum += part.bytes;
    return sum;
  };
  std::vector<MemoryPart>& larger =
      total(calibration) >= total(evaluation) ? calibration : evaluation;
  std::erase_if(larger, [](const MemoryPart& part) { return part.bytes == 0; });
  std::stable_sort(
      larger.begin(), larger.end(),
      [](const MemoryPart& a, const MemoryPart& b) { return a.bytes > b.bytes; });
  return std::move(larger);
}

}  // namespace nibble
