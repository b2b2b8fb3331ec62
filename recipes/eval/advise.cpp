#include "recipes/eval/advise.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/hardware/probe.h"
#include "kernels/hardware/roofline.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/node_weights.h"
#include "recipes/eval/layer_cost.h"
#include "recipes/eval/linear_limit.h"
#include "recipes/eval/speed.h"
#include "recipes/recipe/recipe.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

constexpr double kLeastSeconds = 0.04;  // of one timing of a step

// What is tried: the layers that w4a16-rtn quantizes get `scheme`, lm_head another.
struct Candidate {
  const char* name;
  const char* command;
  const char* scheme;   // "" as it is
  const char* lm_head;  // "" as it is
  Compute compute;
};
const Candidate kCandidates[] = {
    {"float", "", "", "", Compute::float_activations},
    {"float, bf16 activations", "--compute bf16", "", "", Compute::bf16_activations},
    {"w8a16", "--recipe w8a16", "int8/r@f16", "", Compute::float_activations},
    {"w8a16, bf16 activations", "--recipe w8a16; --compute bf16", "int8/r@f16", "",
     Compute::bf16_activations},
    {"w8a16, int8 activations", "--recipe w8a16; --compute int8", "int8/r@f16", "",
     Compute::dynamic_int8},
    {"w4a16 group 128", "--recipe w4a16-gptq", "int4/g128@f16", "",
     Compute::float_activations},
    {"w4a16 group 32", "--recipe w4a16-gptq --set group=32", "int4/g32@f16", "",
     Compute::float_activations},
    {"w4a16 group 128, bf16 activations", "--recipe w4a16-gptq; --compute bf16",
     "int4/g128@f16", "", Compute::bf16_activations},
    {"w4a16 group 128, int8 activations", "--recipe w4a16-gptq; --compute int8",
     "int4/g128@f16", "", Compute::dynamic_int8},
    {"w4a16 group 32, int8 activations",
     "--recipe w4a16-gptq --set group=32; --compute int8", "int4/g32@f16", "",
     Compute::dynamic_int8},
    {"w4a16 group 128, lm_head w8", "--recipe w4a16-gptq --set lm_head=int8n/r@f32",
     "int4/g128@f16", "int8n/r@f32", Compute::float_activations},
    {"w4a16 group 128, lm_head w8, int8 activations",
     "--recipe w4a16-gptq --set lm_head=int8n/r@f32; --compute int8", "int4/g128@f16",
     "int8n/r@f32", Compute::dynamic_int8},
    {"nf4", "--recipe w4a16-rtn --set weight=nf4/f64@f32", "nf4/f64@f32", "",
     Compute::float_activations},
    {"nf4, bf16 activations",
     "--recipe w4a16-rtn --set weight=nf4/f64@f32; --compute bf16", "nf4/f64@f32", "",
     Compute::bf16_activations},
    {"mxfp4", "--recipe w4a16-rtn --set weight=e2m1/g32@e8m0", "e2m1/g32@e8m0", "",
     Compute::float_activations},
    {"mxfp4, bf16 activations",
     "--recipe w4a16-rtn --set weight=e2m1/g32@e8m0; --compute bf16", "e2m1/g32@e8m0", "",
     Compute::bf16_activations},
    {"fp8", "--recipe w4a16-rtn --set weight=e4m3/r@f32", "e4m3/r@f32", "",
     Compute::float_activations},
    {"w3a16 group 128", "--recipe w4a16-gptq --set bits=3", "int3/g128@f16", "",
     Compute::float_activations},
    {"w2a16 group 32, zero points", "--recipe w2a16-qat", "uint2/g32@f16+z/g32@uint2", "",
     Compute::float_activations},
    {"fp8, bf16 activations",
     "--recipe w4a16-rtn --set weight=e4m3/r@f32; --compute bf16", "e4m3/r@f32", "",
     Compute::bf16_activations},
};

struct Shape {
  int64_t rows = 0, cols = 0, layers = 0;
  bool lm_head = false, quantized = false;  // what the candidates say of it
  std::string sample;                       // a tensor of it
};

Status unfit(const std::string& what, const std::string& found) {
  return error(StatusCode::unsupported, "[advise] ", what,
               ": a float decoder without mixtures of experts is required; found ",
               found);
}

// The linear layers by shape. What w4a16-rtn leaves in float stays so, but for lm_head.
Result<std::vector<Shape>> shapes_of(const Artifact& model) {
  NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, load_recipe("w4a16-rtn", {}));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, make_plan(recipe, model.program));
  std::vector<Shape> shapes;
  for (const Layer& layer : layers_of(model.program)) {
    if (layer.node->op != "linear") continue;
    const auto tensor = model.tensors.find(layer.tensor);
    if (tensor == model.tensors.end()) {
      return unfit(layer.tensor, "a quantized one; give the model that it was made from");
    }
    const LayerPlan* row = plan.find(layer.tensor);
    Shape shape{.rows = tensor->second.rows(),
                .cols = tensor->second.cols(),
                .layers = 1,
                .lm_head = layer.name == "lm_head",
                .quantized = row != nullptr && row->method != "float",
                .sample = layer.tensor};
    const auto same = std::find_if(shapes.begin(), shapes.end(), [&](const Shape& other) {
      return other.rows == shape.rows && other.cols == shape.cols &&
             other.lm_head == shape.lm_head && other.quantized == shape.quantized;
    });
    if (same == shapes.end()) {
      shapes.push_back(shape);
    } else {
      ++same->layers;
    }
  }
  return shapes;
}

const char* scheme_of(const Candidate& candidate, const Shape& shape) {
  if (shape.lm_head && candidate.lm_head[0] != '\0') return candidate.lm_head;
  return shape.quantized ? candidate.scheme : "";
}

std::vector<CostCase> cost_cases(const Shape& shape, const std::vector<int64_t>& touched,
                                 int64_t cold) {
  std::vector<CostCase> cases;
  for (size_t i = 0; i < std::size(kCandidates); ++i) {
    const char* scheme = scheme_of(kCandidates[i], shape);
    cases.push_back({.scheme = scheme,
                     .activation = linear_activation(kCandidates[i].compute),
                     .spread = std::min(cold, touched[i])});
  }
  return cases;
}

// A machine that is busy with other things meanwhile says the same of one thread.
double now() { return work_seconds(thread_count()); }

// Adds up what an executor spends outside its linear layers, node by node. By the wall
// clock: to ask for CPU time takes as long as a small node, and who takes the median of
// steps is not disturbed by what interrupts some of them.
class RestClock {
 public:
  explicit RestClock(Executor& model) : model_(model) {
    for (const Node& node : model.artifact().program.nodes) {
      linear_[node.outputs[0]] = node.op == "linear";
    }
    model.set_tap([this](const TapValue& value) {
      const double at = work_seconds(kWallClock);
      if (!linear_[value.name]) seconds_ += at - last_;
      last_ = work_seconds(kWallClock);
    });
  }
  ~RestClock() { model_.set_tap({}); }
  RestClock(const RestClock&) = delete;
  RestClock& operator=(const RestClock&) = delete;

  void start() { last_ = work_seconds(kWallClock); }
  double take() { return std::exchange(seconds_, 0.0); }

 private:
  static constexpr int kWallClock = 2;  // what several threads are timed by
  Executor& model_;
  std::map<std::string, bool> linear_;
  double last_ = 0;
  double seconds_ = 0;
};

// A step of `batch` sequences with `context` positions in each one's cache, and a prompt.
// rest: the same outside linear layers instead.
Result<MeasuredAdvice> time_model(Executor& model, const AdviseOptions& options,
                                  bool rest = false) {
  const Program& program = model.artifact().program;
  const int64_t context =
      std::clamp<int64_t>(options.context, 1, program.context_length - 1);
  const int64_t prefill = std::min(options.prefill, program.context_length);
  std::vector<std::unique_ptr<KvCache>> owned;
  std::vector<KvCache*> caches;
  for (int64_t i = 0; i < options.batch; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(
        std::unique_ptr<KvCache> cache,
        model.make_cache(i == 0 ? std::max(context + 1, prefill) : context + 1));
    caches.push_back(cache.get());
    owned.push_back(std::move(cache));
  }
  SplitMix64 random(20263);
  const std::vector<int32_t> ids = [&] {
    std::vector<int32_t> result(static_cast<size_t>(std::max(prefill, options.batch)));
    for (int32_t& id : result) {
      id = static_cast<int32_t>(random.below(static_cast<uint64_t>(program.vocabulary)));
    }
    return result;
  }();
  const std::span<const int32_t> all(ids);
  std::vector<float> logits(static_cast<size_t>(options.batch * program.vocabulary));
  std::optional<RestClock> clock;
  if (rest) clock.emplace(model);
  std::vector<double> decode, prompt;
  for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("advise"));
    for (KvCache* cache : caches) cache->truncate(0);
    double start = now();
    if (clock) clock->start();
    NIBBLE_RETURN_IF_ERROR(
        model.forward(all.first(static_cast<size_t>(prefill)), *caches[0],
                      MatrixView<float>(logits.data(), 1, program.vocabulary)));
    const double prompt_seconds = clock ? clock->take() : now() - start;
    caches[0]->truncate(std::min(prefill, context));
    for (KvCache* cache : caches) {
      while (cache->length() < context) {  // what the rows hold does not change the work
        const int64_t more = std::min<int64_t>(256, context - cache->length());
        for (size_t state = 0; state < program.states.size(); ++state) {
          const int64_t width =
              program.states[state].kv_heads * program.states[state].head_dim;
          std::vector<float> rows(static_cast<size_t>(more * width));
          for (float& value : rows) value = static_cast<float>(random.uniform() - 0.5);
          const MatrixView<const float> view(rows.data(), more, width);
          NIBBLE_RETURN_IF_ERROR(cache->append(state, view, view));
        }
        cache->advance(more);
      }
    }
    start = now();
    std::vector<double> steps;
    do {
      for (KvCache* cache : caches) cache->truncate(context);
      const double step = now();
      if (clock) clock->start();
      NIBBLE_RETURN_IF_ERROR(model.decode(
          all.first(static_cast<size_t>(options.batch)), caches,
          MatrixView<float>(logits.data(), options.batch, program.vocabulary)));
      steps.push_back(clock ? clock->take() : now() - step);
    } while (now() - start < kLeastSeconds);
    if (repeat == 0) continue;
    prompt.push_back(prompt_seconds);
    decode.push_back(rate_of(steps).median);
  }
  return MeasuredAdvice{rate_of(decode).median, rate_of(prompt).median};
}

using Peaks = std::map<const PeakRow*, double>;  // operations a second, once measured

// Whether memory binds a layer at `tokens` tokens, were its kernel as fast as the
// instruction that it uses.
Result<bool> memory_binds(const Tensor& tensor, const std::string& scheme,
                          const LayerCost& cost, int64_t tokens, double bandwidth,
                          Peaks& peaks) {
  const auto row =
      std::find_if(linear_kernels().begin(), linear_kernels().end(),
                   [&](const LinearKernel& kernel) { return cost.kernel == kernel.name; });
  if (row == linear_kernels().end()) return false;
  QuantScheme parsed;
  if (scheme.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight plain, linear_weight(tensor));
    parsed = plain.scheme;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(parsed, parse_scheme(scheme));
  }
  const LinearLimit limit = linear_limit(*row, parsed, tensor.cols(), tokens);
  if (limit.peak == nullptr) return false;  // a reference row: computing binds it
  if (!peaks.count(limit.peak)) {
    NIBBLE_ASSIGN_OR_RETURN(peaks[limit.peak], peak(*limit.peak, thread_count(), 0.05));
  }
  const double operations = limit.operations * static_cast<double>(tokens) *
                            static_cast<double>(tensor.rows() * tensor.cols());
  return roofline(static_cast<double>(cost.bytes), operations, bandwidth,
                  peaks[limit.peak])
      .memory_binds();
}

// The model as a candidate would have it, rounded to nearest.
Result<Executor> executor_of(const std::shared_ptr<const Artifact>& model,
                             const Candidate& candidate, const std::string& kv) {
  Artifact quantized = *model;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Shape> shapes, shapes_of(*model));
  for (const Layer& layer : layers_of(model->program)) {
    if (layer.node->op != "linear" || !quantized.tensors.count(layer.tensor)) continue;
    NIBBLE_RETURN_IF_ERROR(check_cancelled("advise"));
    const Tensor tensor = quantized.tensors.at(layer.tensor);
    const bool lm_head = layer.name == "lm_head";
    const auto shape = std::find_if(shapes.begin(), shapes.end(), [&](const Shape& s) {
      return s.rows == tensor.rows() && s.cols == tensor.cols() && s.lm_head == lm_head;
    });
    const char* scheme = scheme_of(candidate, *shape);
    if (scheme[0] == '\0') continue;
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, rounded_weight(tensor, scheme));
    quantized.packed[layer.tensor] = weight.packed;
    quantized.layers[layer.tensor].weight = weight.scheme;
    // A tied embedding gathers from the same codes.
    quantized.tensors.erase(layer.tensor);
  }
  return Executor::create(std::make_shared<const Artifact>(std::move(quantized)),
                          ExecutorOptions{.compute = candidate.compute, .kv = kv});
}

// What this CPU lacks for codes that stand for values in a table; "" for integers.
std::string missing_product(const Advice& advice) {
  for (const AdvisedKind& kind : advice.kinds) {
    const Result<QuantScheme> scheme = parse_scheme(kind.scheme);
    if (!scheme.ok() || scheme->is_float() ||
        element_info(scheme->code).kind == ElementKind::integer) {
      continue;
    }
    return cat("no native product on this CPU (codes are looked up, then multiplied as ",
               kind.kernel.rfind("linear_bf16_", 0) == 0 ? "bf16" : "f32", "), ");
  }
  return "";
}

bool is_eight_bits(const Advice& advice) { return advice.name.rfind("w8a16", 0) == 0; }

std::string verdict_of(const Advice& advice, const std::vector<Advice>& all) {
  const auto named = [&](const char* name) {
    return std::find_if(all.begin(), all.end(),
                        [&](const Advice& a) { return a.name == name; });
  };
  const auto floats = named("float");
  for (const AdvisedKind& kind : advice.kinds) {
    if (kind.falls_back) {
      return cat(kind.scheme, ": no kernel of this CPU reads it as it is; ", kind.kernel,
                 " decodes rows first");
    }
  }
  if (advice.name != "float" && advice.decode_seconds >= floats->decode_seconds) {
    return cat(missing_product(advice), "decode ",
               number_text(floats->decode_seconds / advice.decode_seconds, 2),
               "x of the float model's");
  }
  // Smaller, but slower than 8 bits, which lose less.
  for (const Advice& other : all) {
    if (!is_eight_bits(other) || is_eight_bits(advice) || advice.name == "float" ||
        other.compute != advice.compute || advice.error <= other.error ||
        other.decode_seconds >= 0.97 * advice.decode_seconds) {
      continue;
    }
    return cat(missing_product(advice), "decode ",
               number_text(other.decode_seconds / advice.decode_seconds, 2), "x of ",
               other.name, ", which loses less: memory is all it saves");
  }
  // Beaten in speed by one that is no larger and loses no more.
  for (const Advice& other : all) {
    if (&other == &advice || other.decode_seconds >= 0.97 * advice.decode_seconds ||
        other.weight_bytes > advice.weight_bytes * 1.02 ||
        other.error > advice.error * 1.02 || other.compute != advice.compute) {
      continue;
    }
    return cat(missing_product(advice), "decode ",
               number_text(other.decode_seconds / advice.decode_seconds, 2), "x of ",
               other.name, ", which is no larger and loses no more");
  }
  return "";
}

}  // namespace

Result<AdviceReport> advise(std::shared_ptr<const Artifact> model,
                            const AdviseOptions& asked,
                            const std::function<void(int64_t, int64_t)>& progress) {
  const Program& program = model->program;
  if (!program.is_language_model() || program.is_encoder()) {
    return unfit(program.architecture, program.is_encoder() ? "an encoder" : "images");
  }
  for (const Node& node : program.nodes) {
    if (node.op == "moe") return unfit(node.name, "a mixture");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Shape> shapes, shapes_of(*model));
  AdviseOptions options = asked;
  options.prefill = std::min(options.prefill, program.context_length);
  const Machine machine = this_machine();

  AdviceReport report;
  report.cpu = cpu_text();
  std::string note;
  const int64_t memory_set =
      std::min<int64_t>(memory_working_set(machine, &note), int64_t{1} << 30);
  {
    NIBBLE_ASSIGN_OR_RETURN(const ReadBuffer buffer, ReadBuffer::create(memory_set));
    NIBBLE_ASSIGN_OR_RETURN(report.read_bandwidth,
                            read_bandwidth(buffer, thread_count(), 0, 0.2));
  }
  Peaks peaks;

  // How many different weights lie between two uses of one, in bytes: all of the model's,
  // or more than the caches hold.
  const int64_t cold = std::max<int64_t>(3 * machine.largest_cache(), int64_t{32} << 20);
  const int64_t float_bytes = model->weight_bytes();
  std::vector<int64_t> model_bytes;  // of each candidate
  for (const Candidate& candidate : kCandidates) {
    double bytes = static_cast<double>(float_bytes);
    for (const Shape& shape : shapes) {
      const char* scheme = scheme_of(candidate, shape);
      if (scheme[0] == '\0') continue;
      NIBBLE_ASSIGN_OR_RETURN(const QuantScheme parsed, parse_scheme(scheme));
      const auto own = static_cast<double>(model->tensors.at(shape.sample).bytes.size());
      bytes -= static_cast<double>(shape.layers) *
               (own - bits_per_value(parsed, shape.rows, shape.cols) / 8 *
                          static_cast<double>(shape.rows * shape.cols));
    }
    model_bytes.push_back(static_cast<int64_t>(bytes));
  }
  const int64_t total = static_cast<int64_t>(shapes.size()) + 1;
  int64_t done = 0;
  NIBBLE_ASSIGN_OR_RETURN(Executor executor,
                          Executor::create(model, ExecutorOptions{.kv = options.kv}));
  const int64_t cache_bytes = KvCache::bytes_for(
      program, executor.kv_schemes(), std::min(options.context, program.context_length));
  const double caches = static_cast<double>(cache_bytes) * static_cast<double>(options.batch);
  if (caches > 0.9 * static_cast<double>(machine.available)) {
    return error(StatusCode::resource_exhausted, "[advise] --batch ", options.batch,
                 ": caches of ", number_text(caches / 1e9, 3),
                 " GB in all must fit in memory; found ",
                 number_text(static_cast<double>(machine.available) / 1e9, 3),
                 " GB available; give fewer sequences, fewer positions or --kv int8");
  }
  NIBBLE_ASSIGN_OR_RETURN(const MeasuredAdvice rest, time_model(executor, options, true));
  report.rest_decode = rest.decode_seconds;
  report.rest_prefill = rest.prefill_seconds;
  // What a step of each candidate goes through: weights, and keys and values.
  std::vector<int64_t> touched = model_bytes;
  for (int64_t& bytes : touched) bytes += cache_bytes * options.batch;
  // A float step drives everything else out of the caches; one whose weights a cache
  // keeps does not.
  std::optional<MeasuredAdvice> cached_rest;
  const auto smallest = std::min_element(touched.begin(), touched.end());
  const int64_t kept = machine.largest_cache() / 2;  // beside the rest itself
  if (*smallest < kept && float_bytes >= kept) {
    NIBBLE_ASSIGN_OR_RETURN(
        Executor small,
        executor_of(model, kCandidates[smallest - touched.begin()], options.kv));
    NIBBLE_ASSIGN_OR_RETURN(cached_rest, time_model(small, options, true));
  }
  progress(++done, total);
  std::vector<std::vector<LayerCost>> costs;  // of each shape, one a candidate
  for (const Shape& shape : shapes) {
    NIBBLE_ASSIGN_OR_RETURN(auto of_shape, time_layer(model->tensors.at(shape.sample),
                                                      cost_cases(shape, touched, cold),
                                                      {.tokens = options.batch,
                                                       .prompt = options.prefill,
                                                       .repeats = options.repeats,
                                                       .timings = options.timings}));
    costs.push_back(std::move(of_shape));
    progress(++done, total);
  }

  for (size_t i = 0; i < std::size(kCandidates); ++i) {
    const Candidate& candidate = kCandidates[i];
    Advice advice;
    advice.name = candidate.name;
    advice.command = candidate.command;
    advice.compute = candidate.compute;
    advice.weight_bytes = model_bytes[i];
    advice.cache_bytes = cache_bytes * options.batch;
    const bool applies = candidate.lm_head[0] == '\0' ||
                         std::any_of(shapes.begin(), shapes.end(),
                                     [](const Shape& s) { return s.lm_head; });
    if (!applies) continue;  // no lm_head of its own
    double lost = 0, energy = 0;
    for (size_t at = 0; at < shapes.size(); ++at) {
      const Shape& shape = shapes[at];
      const char* scheme = scheme_of(candidate, shape);
      const LayerCost& cost = costs[at][i];
      NIBBLE_ASSIGN_OR_RETURN(
          const bool decode_by_memory,
          memory_binds(model->tensors.at(shape.sample), scheme, cost, options.batch,
                       report.read_bandwidth, peaks));
      NIBBLE_ASSIGN_OR_RETURN(
          const bool prefill_by_memory,
          memory_binds(model->tensors.at(shape.sample), scheme, cost, options.prefill,
                       report.read_bandwidth, peaks));
      advice.kinds.push_back({.scheme = scheme[0] == '\0' ? "float" : scheme,
                              .kernel = cost.kernel,
                              .rows = shape.rows,
                              .cols = shape.cols,
                              .layers = shape.layers,
                              .bytes = cost.bytes,
                              .decode_seconds = cost.decode,
                              .prefill_seconds = cost.prefill,
                              .decode_by_memory = decode_by_memory,
                              .prefill_by_memory = prefill_by_memory,
                              .falls_back = cost.falls_back});
      advice.decode_seconds += static_cast<double>(shape.layers) * cost.decode;
      // Of a prompt only the last token needs logits.
      advice.prefill_seconds += shape.lm_head
                                    ? cost.decode / static_cast<double>(options.batch)
                                    : static_cast<double>(shape.layers) * cost.prefill;
      if (scheme[0] == '\0') continue;
      const double weights = static_cast<double>(shape.layers) *
                             static_cast<double>(shape.rows * shape.cols);
      lost += cost.error * weights;
      energy += weights;
    }
    advice.error = energy > 0 ? std::sqrt(lost / energy) : 0;
    const bool cached = cached_rest && touched[i] < kept;
    advice.decode_seconds += cached ? cached_rest->decode_seconds : report.rest_decode;
    advice.prefill_seconds += cached ? cached_rest->prefill_seconds : report.rest_prefill;
    report.advice.push_back(std::move(advice));
  }
  for (Advice& advice : report.advice) advice.verdict = verdict_of(advice, report.advice);
  std::stable_sort(report.advice.begin(), report.advice.end(),
                   [](const Advice& a, const Advice& b) {
                     return a.decode_seconds < b.decode_seconds;
                   });
  return report;
}

Result<MeasuredAdvice> measure_advice(std::shared_ptr<const Artifact> model,
                                      const Advice& advice,
                                      const AdviseOptions& options) {
  const Candidate* candidate =
      std::find_if(std::begin(kCandidates), std::end(kCandidates),
                   [&](const Candidate& row) { return advice.name == row.name; });
  if (candidate == std::end(kCandidates)) {
    return error(StatusCode::invalid_argument, "[advise] ", advice.name,
                 ": an advice of this program was required");
  }
  NIBBLE_ASSIGN_OR_RETURN(Executor executor, executor_of(model, *candidate, options.kv));
  return time_model(executor, options);
}

}  // namespace nibble
