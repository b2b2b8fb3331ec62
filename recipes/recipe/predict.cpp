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

// f32 bytes of a value for one token or image: every size that the graph knows.
int64_t value_bytes(const std::vector<int64_t>& shape) {
  int64_t bytes = 4;
  for (const int64_t size : shape) {
    if (size > 0) bytes *= size;
  }
  return bytes;
}

// What ptq/calibration holds (samples.h, sharded_hessian.h, gptq.cpp).
constexpr int64_t kRound = 8, kShards = 4;
constexpr int64_t kImagesPerSample = 16;
// The program and LibTorch's pages that quantize touches; with products and threads at work.
constexpr int64_t kProgram = 130'000'000, kProducts = 30'000'000;
// What ptq/calibration/pooled_allocator.h keeps for the next tensors of a size.
constexpr int64_t kPool = 64 << 20;
// Bytes a weight while its layer is solved: f32 weights, codes, and what is made of them
// to search scales, to round, and to compare.
constexpr int64_t kSolved = 17, kRounded = 14;
constexpr int64_t kFactorBytes = 2;    // of ptq/methods/low_rank.h: bf16
constexpr int64_t kLogits = 64 << 20;  // recipes/eval: of each model

int64_t total(const std::vector<MemoryPart>& parts) {
  int64_t sum = 0;
  for (const MemoryPart& part : parts) sum += part.bytes;
  return sum;
}

std::vector<MemoryPart> larger(std::vector<MemoryPart> a, std::vector<MemoryPart> b) {
  return total(a) >= total(b) ? std::move(a) : std::move(b);
}

// Follows ptq/calibration/layer_solver.cpp through the program, and adds up what it holds
// wherever it stops to solve.
class CalibrationPeak {
 public:
  CalibrationPeak(const Plan& plan, const Artifact& model, const Shapes& values,
                  const MemoryRequest& request, bool spills)
      : plan_(plan),
        model_(model),
        values_(values),
        threads_(request.threads),
        spills_(spills) {
    const Program& program = model.program;
    // Layers that are solved from a stream have their samples in shards.
    if (program.is_language_model() && plan.transforms.empty() &&
        plan.mixed.schemes.empty()) {
      round_ = std::clamp<int64_t>((plan.calibration_sequences + kShards - 1) / kShards,
                                   1, kRound);
    }
    const bool text = program.is_language_model();
    each_ = text ? std::min(plan.calibration_length, program.context_length)
                 : kImagesPerSample;
    all_ = text ? plan.calibration_sequences * each_ : plan.calibration_sequences;
    if (text && request.tokens > 0) {
      all_ = request.tokens;
      each_ = request.longest;
    }
    const bool drift = plan.gptq.quantized_prefix && plan.gptq.match_float;
    streams_ = drift ? 2 : 1;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      for (const std::string& input : program.nodes[i].inputs) last_reader_[input] = i;
    }
  }

  std::vector<MemoryPart> find() {
    const Program& program = model_.program;
    std::vector<MemoryPart> most = rounding();
    std::set<std::string> solved;  // values whose readers are solved together
    size_t done = 0;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      const Node& node = program.nodes[i];
      const std::vector<const LayerPlan*> layers = unsolved(node);
      const bool station = !layers.empty() && solved.insert(node.inputs.at(0)).second;
      if (station || node.block != program.nodes[done].block) {
        const int64_t weights = stretch(done, i);
        done = i;
        if (station) most = larger(std::move(most), at_station(weights, layers, node));
      }
    }
    return most;
  }

 private:
  // A layer whose method looks at its weight alone.
  std::vector<MemoryPart> rounding() const {
    int64_t largest = 0;
    for (const LayerPlan& layer : plan_.layers) {
      const auto tensor = model_.tensors.find(layer.tensor);
      if (tensor != model_.tensors.end() && is_quantized(layer))
        largest = std::max(largest, tensor->second.numel());
    }
    return {{"the program with LibTorch", kProgram},
            {"the layer that is rounded", kRounded * largest}};
  }

  std::vector<const LayerPlan*> unsolved(const Node& node) const {
    std::vector<const LayerPlan*> layers;
    const auto add = [&](const Node& reader) {
      for (const Layer& mine : layers_of(reader)) {
        const LayerPlan* layer = plan_.find(mine.tensor);
        if (layer != nullptr && plan_.needs_inputs(*layer)) layers.push_back(layer);
      }
    };
    add(node);
    if (layers.empty() || node.op == "moe") return layers;
    layers.clear();
    for (const Node* reader : model_.program.consumers(node.inputs.at(0))) add(*reader);
    return layers;
  }

  // Moves all samples over nodes [begin, end): the f32 parameters that this takes; the
  // values that are alive then are in now_, the most on the way in widest_.
  int64_t stretch(size_t begin, size_t end) {
    int64_t parameters = 0;
    std::set<std::string> loaded;
    widest_ = now_;
    for (size_t i = begin; i < end; ++i) {
      const Node& node = model_.program.nodes[i];
      for (const auto& [role, name] : node.parameters) {
        const auto tensor = model_.tensors.find(name);
        if (node.op == "embedding" || tensor == model_.tensors.end()) continue;
        if (loaded.insert(name).second) parameters += 4 * tensor->second.numel();
      }
      for (const std::string& output : node.outputs) {
        const auto shape = values_.find(output);
        if (shape == values_.end()) continue;
        alive_[output] = value_bytes(shape->second);
        now_ += alive_[output];
      }
      widest_ = std::max(widest_, now_);
      for (auto at = alive_.begin(); at != alive_.end();) {
        const auto last = last_reader_.find(at->first);
        if (last == last_reader_.end() || last->second <= i) {
          now_ -= at->second;
          at = alive_.erase(at);
        } else {
          ++at;
        }
      }
    }
    return parameters;
  }

  std::vector<MemoryPart> at_station(int64_t parameters,
                                     const std::vector<const LayerPlan*>& layers,
                                     const Node& node) const {
    int64_t columns = 0, largest = 0;
    for (const LayerPlan* layer : layers) {
      const Tensor& weight = model_.tensors.at(layer->tensor);
      columns = std::max(columns, weight.cols());
      largest = std::max(largest, weight.numel());
    }
    const int64_t square = columns * columns * 8;
    const int64_t waiting = spills_ ? round_ * each_ : all_;
    const int64_t on_their_way =
        threads_ * each_ * widest_ + (2 * streams_ - 1) * round_ * each_ * columns * 4;
    std::vector<MemoryPart> parts = {
        {"the program with LibTorch", kProgram + kProducts},
        {"tensors kept for reuse", std::min(kPool, on_their_way)},
        {"calibration activations", now_ * waiting * streams_}};
    std::vector<MemoryPart> passing = parts, solving = parts;
    passing.push_back({"activations on their way", on_their_way});
    passing.push_back({"a stretch of weights in float32", parameters * streams_});
    passing.push_back({"Hessians of the widest layer", 2 * streams_ * square});
    if (node.op == "moe") passing.push_back({"experts' rows", all_ * columns * 4 * streams_});
    // H and D in f64. While H is factored, a copy of it in f64, and damped in f32; then,
    // in f32, H damped, its factor, D, and rows of H for each group's scale.
    const int64_t sums = streams_ * square, half = square / 2;
    const int64_t refined = plan_.gptq.refine_scales > 0 ? half : 0;
    solving.push_back({"Hessians of the widest layer",
                       sums + std::max(3 * half, (1 + streams_) * half + refined)});
    solving.push_back({"the layer that is solved", kSolved * largest});
    return larger(std::move(passing), std::move(solving));
  }

  const Plan& plan_;
  const Artifact& model_;
  const Shapes& values_;
  int threads_;
  bool spills_;
  int64_t each_ = 0, all_ = 0;  // tokens or images: of a sample, of all
  int64_t round_ = kRound;      // samples of a round: a shard's, where there are few
  int64_t streams_ = 1;
  std::map<std::string, size_t> last_reader_;
  std::map<std::string, int64_t> alive_;  // bytes a token or image
  int64_t now_ = 0, widest_ = 0;
};

void sort_parts(std::vector<MemoryPart>& parts) {
  std::erase_if(parts, [](const MemoryPart& part) { return part.bytes == 0; });
  std::stable_sort(
      parts.begin(), parts.end(),
      [](const MemoryPart& a, const MemoryPart& b) { return a.bytes > b.bytes; });
}

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
    const double stored =
        bits_per_value(layer->scheme.weight, tensor->second.rows(),
                       tensor->second.cols()) *
            static_cast<double>(count) / 8 +
        static_cast<double>(layer->rank * kFactorBytes *
                            (tensor->second.rows() + tensor->second.cols()));
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

int64_t MemoryPlan::bytes() const { return total(parts); }

Result<MemoryPlan> plan_memory(const Plan& plan, const Artifact& model,
                               const MemoryRequest& request) {
  Shapes given, values;
  for (const auto& [name, tensor] : model.tensors) given[name] = tensor.shape;
  NIBBLE_RETURN_IF_ERROR(check_shapes(model.program, given, &values));
  const auto fits = [&request](const std::vector<MemoryPart>& parts) {
    return request.cap == 0 || total(parts) <= request.cap;
  };
  MemoryPlan result;
  result.parts = CalibrationPeak(plan, model, values, request, false).find();
  if (!plan.activations.empty()) {
    // Scales of activations: every value of a round is kept until it is seen.
    int64_t seen = 0;
    for (const auto& [value, shape] : values) seen += value_bytes(shape);
    result.parts = larger(std::move(result.parts),
                          {{"the program with LibTorch", kProgram + kProducts},
                           {"tensors kept for reuse", kPool},
                           {"calibration activations",
                            seen * kRound * kImagesPerSample}});
  }
  std::vector<MemoryPart> spilled =
      CalibrationPeak(plan, model, values, request, true).find();
  result.least = total(spilled);
  result.spills = !fits(result.parts);
  if (result.spills) result.parts = std::move(spilled);
  if (request.evaluates) {
    const int64_t artifact = predict_size(plan, model).bytes;
    const int64_t rows = std::max<int64_t>(model.program.context_length, 1);
    const int64_t logits =
        std::min(kLogits, rows * std::max<int64_t>(model.program.vocabulary, 1) * 4);
    const bool products =
        std::any_of(plan.layers.begin(), plan.layers.end(),
                    [&plan](const LayerPlan& layer) { return plan.needs_inputs(layer); });
    const std::vector<MemoryPart> evaluation = {
        {"the program with LibTorch", kProgram + (products ? kProducts : 0)},
        {"the artifact and its kernels' copy", 2 * artifact},
        {"the float model and its kernels' copy", 2 * model.weight_bytes()},
        {"logits of both", 2 * logits}};
    result.evaluates = fits(evaluation);
    result.evaluation = total(evaluation);
    if (result.evaluates) result.parts = larger(std::move(result.parts), evaluation);
  }
  sort_parts(result.parts);
  if (!fits(result.parts)) {
    std::string what;
    for (const MemoryPart& part : result.parts)
      what += cat(what.empty() ? "" : ", ", part.what, " ", part.bytes / 1000000, " MB");
    return error(StatusCode::resource_exhausted, "[quantize] --memory: at least ",
                 (result.least + 999999) / 1000000,
                 " MB are required, also with activations on disk (", what, "); found ",
                 request.cap / 1000000,
                 " MB; allow more, or choose shorter sequences or another method");
  }
  return result;
}

}  // namespace nibble
