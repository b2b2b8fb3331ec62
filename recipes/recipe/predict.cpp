#include "recipes/recipe/predict.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "kernels/program/layers.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/value_slots.h"
#include "ptq/topology.h"
#include "recipes/eval/signal_quality.h"

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
constexpr int64_t kKeptRows = 1024;                      // transform.h
constexpr int64_t kTriedRows = 256, kJudgedRows = 1024;  // round_trip.h
constexpr int64_t kImagesPerSample = 16;
// The program and LibTorch's pages that quantize touches; with products and threads at work.
constexpr int64_t kProgram = 130'000'000, kProducts = 40'000'000;
// A thread's room where factors are found: LAPACK's pages and blocks.
constexpr int64_t kFactors = 10'000'000;
// What ptq/calibration/pooled_allocator.h keeps for the next tensors of a size.
constexpr int64_t kPool = 64 << 20, kLargestPooled = 32 << 20;
// Bytes a weight while its layer is solved: f32 weights, codes, and what is made of them
// to search scales, to round, and to compare.
constexpr int64_t kSolved = 17, kRounded = 14;
constexpr int64_t kTuned = 14;  // while its block is: gradients, one a shard, not counted
constexpr int64_t kRotated = 16;       // bytes a weight while it is rotated
constexpr int64_t kFactorBytes = 2;    // of ptq/methods/low_rank.h: bf16
// While factors are found: bytes a weight, and of the square of its smaller side.
constexpr int64_t kMissing = 28, kVectors = 40;
constexpr int64_t kWithGradient = 2;   // a value that gradients pass
constexpr int64_t kTriedScheme = 32;   // bytes a weight of the rows that are tried
constexpr int64_t kLogits = 64 << 20;  // recipes/eval: of each model
// A code in recipes/torch/exact_check.cpp: int32 where it is made, and where it is kept
// to be compared; and the most images' codes there.
constexpr int64_t kExactBytes = 8;
constexpr int64_t kMostExact = 128 << 20, kMostExactImages = 10;

int64_t total(const std::vector<MemoryPart>& parts) {
  int64_t sum = 0;
  for (const MemoryPart& part : parts) sum += part.bytes;
  return sum;
}

std::vector<MemoryPart> larger(std::vector<MemoryPart> a, std::vector<MemoryPart> b) {
  return total(a) >= total(b) ? std::move(a) : std::move(b);
}

// Follows ptq/calibration (group_scales.cpp, streaming_solver.cpp) through the program,
// and adds up what it holds wherever it stops to solve.
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
    // Samples are in shards, an image net's mostly of whole rounds.
    if (program.is_language_model()) {
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
    streams_ = plan.follows_float() ? 2 : 1;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      for (const std::string& input : program.nodes[i].inputs) last_reader_[input] = i;
    }
  }

  std::vector<MemoryPart> find() {
    std::vector<MemoryPart> most = rounding();
    std::set<std::string> solved;  // values whose readers are solved together
    tunes_ =
        model_.program.is_language_model() &&
        std::any_of(plan_.layers.begin(), plan_.layers.end(),
                    [](const LayerPlan& layer) { return layer.method == "autoround"; });
    if (tunes_) streams_ = 2;
    pass([&](const Node& node) -> Station {
      std::vector<const LayerPlan*> layers = unsolved(node);
      if (layers.empty() || !solved.insert(node.inputs.at(0)).second) return {};
      return [this, layers, &node, &most](int64_t parameters) {
        most = larger(std::move(most), at_station(parameters, layers, node));
      };
    });
    const int64_t streams =
        std::exchange(streams_, 1);  // what is before sees the float model
    const bool tunes = std::exchange(tunes_, false);
    if (!plan_.mixed.schemes.empty()) {
      most = larger(std::move(most), at_gradients());
      pass([&](const Node& node) -> Station {
        std::vector<const LayerPlan*> layers;
        for (const Layer& mine : layers_of(node)) {
          const LayerPlan* layer = plan_.find(mine.tensor);
          if (layer != nullptr && is_quantized(*layer)) layers.push_back(layer);
        }
        if (layers.empty()) return {};
        return [this, layers, &node, &most](int64_t parameters) {
          most = larger(std::move(most), at_choice(parameters, *layers[0], node));
        };
      });
    }
    for (const std::string& transform : plan_.transforms) {
      if (transform == "equalize") most = larger(std::move(most), at_equalization());
      const auto groups =
          groups_to_scale(transform, plan_, model_.program, model_.tensors);
      std::map<std::string, const ScaleGroup*> left;  // by value
      for (size_t i = 0; groups.ok() && i < groups->size(); ++i)
        left[(*groups)[i].value] = &(*groups)[i];
      pass([&](const Node& node) -> Station {
        for (const std::string& input : node.inputs) {
          const auto found = left.find(input);
          if (found == left.end()) continue;
          const ScaleGroup& group = *found->second;
          left.erase(found);
          return [this, &transform, &group, &most](int64_t parameters) {
            most = larger(std::move(most), at_search(parameters, transform, group));
          };
        }
        return {};
      });
    }
    if (reads_codes() || !plan_.activations.empty()) {
      pass([&](const Node&) -> Station {
        return [this, &most](int64_t parameters) {
          most = larger(std::move(most), on_the_way(parameters, 0));
        };
      });
    }
    if (plan_.bias_correction > 0 || plan_.batch_norm_reestimation > 0)
      most = larger(std::move(most), at_correction());
    streams_ = streams;
    tunes_ = tunes;
    return most;
  }

 private:
  // What is done where the samples stop, given the parameters of the way there.
  using Station = std::function<void(int64_t parameters)>;

  // All samples through the program; station(node): what is done before it, or nothing.
  void pass(const std::function<Station(const Node& node)>& station) {
    const Program& program = model_.program;
    alive_.clear();
    before_ = now_ = widest_ = 0;
    size_t done = 0;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      const Station here = station(program.nodes[i]);
      if (!here && program.nodes[i].block == program.nodes[done].block) continue;
      const int64_t weights = stretch(done, i);
      if (program.nodes[i].block != program.nodes[done].block) block_start_ = now_;
      done = i;
      if (here) here(weights);
    }
  }

  // A layer whose method looks at its weight alone.
  std::vector<MemoryPart> rounding() const {
    int64_t largest = 0, factors = 0;
    for (const LayerPlan& layer : plan_.layers) {
      const auto tensor = model_.tensors.find(layer.tensor);
      if (tensor == model_.tensors.end() || !is_quantized(layer)) continue;
      largest = std::max(largest, tensor->second.numel());
      if (!plan_.needs_inputs(layer))
        factors = std::max(factors, threads_ * factors_bytes(layer));
    }
    return {{"the program with LibTorch", kProgram + (factors > 0 ? kProducts : 0)},
            {"the layer that is rounded", kRounded * largest},
            {"its factors", factors}};
  }

  // What ptq/methods/low_rank.cpp makes of one weight.
  int64_t factors_bytes(const LayerPlan& layer) const {
    if (layer.rank == 0) return 0;
    const Tensor& weight = model_.tensors.at(layer.tensor);
    const int64_t side = std::min(weight.rows(), weight.cols());
    return kMissing * weight.numel() + kVectors * side * side;
  }

  // Are there layers whose inputs' scales are found?
  bool reads_codes() const {
    return std::any_of(plan_.layers.begin(), plan_.layers.end(),
                       [](const LayerPlan& layer) {
                         return layer.scheme.input && !layer.scheme.input->dynamic;
                       });
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
  // values that were alive before are in before_, those after in now_, the most on the
  // way in widest_.
  int64_t stretch(size_t begin, size_t end) {
    int64_t parameters = 0;
    std::set<std::string> loaded;
    before_ = widest_ = now_;
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
      int64_t pooled = 0;
      for (const auto& [name, bytes] : alive_)
        if (each_ * bytes <= kLargestPooled) pooled += bytes;
      pooled_ = std::max(pooled_, pooled);
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
    const int64_t rows = read_bytes(node, columns);
    std::vector<MemoryPart> solving = waiting(rows),
                            passing = on_the_way(parameters, rows);
    passing.push_back({"Hessians of the widest layer", 2 * streams_ * square});
    if (node.op == "moe") passing.push_back({"experts' rows", all_ * columns * 4 * streams_});
    // H and D in f64. While H is factored, a copy of it in f64, and damped in f32; then,
    // in f32, H damped, its factor, D, and rows of H for each group's scale.
    const int64_t sums = streams_ * square, half = square / 2;
    const int64_t refined = plan_.gptq.refine_scales > 0 ? half : 0;
    const bool factored =
        std::any_of(layers.begin(), layers.end(), [](const LayerPlan* layer) {
          return layer->method != "awq" && layer->method != "imatrix";
        });
    const int64_t factors =
        factored ? std::max(3 * half, (1 + streams_) * half + refined) : 0;
    solving.push_back({"Hessians of the widest layer", sums + factors});
    // Layers with factors are solved side by side.
    std::vector<int64_t> with_factors;
    for (const LayerPlan* layer : layers) {
      if (layer->rank == 0) continue;
      with_factors.push_back(factors_bytes(*layer) +
                             kSolved * model_.tensors.at(layer->tensor).numel());
    }
    std::sort(with_factors.rbegin(), with_factors.rend());
    if (with_factors.size() > static_cast<size_t>(threads_))
      with_factors.resize(static_cast<size_t>(threads_));
    const int64_t beside =
        std::accumulate(with_factors.begin(), with_factors.end(), int64_t{0});
    solving.push_back({"the layer that is solved", std::max(kSolved * largest, beside)});
    // Rows of both nets, once more while they are put in order
    // (ptq/methods/row_sample.h).
    const bool keeps_rows =
        std::any_of(layers.begin(), layers.end(), [this](const LayerPlan* layer) {
          const Node* owner = model_.program.find(layer->node);
          return layer->method == "adaround" && owner != nullptr &&
                 feeds_a_relu_alone(model_.program, *owner);
        });
    const int64_t most_rows = std::min(plan_.adaround.rows, all_ * positions_of(node));
    const int64_t kept = keeps_rows ? most_rows * columns * 4 : 0;
    passing.push_back({"rows of inputs", streams_ * kept});
    solving.push_back({"rows of inputs", (streams_ + 1) * kept});
    std::vector<MemoryPart> most = larger(std::move(passing), std::move(solving));
    if (!tunes_ || node.block < 0 || node.block == kLastBlock) return most;
    const auto [weights, values, squares] = of_block(node.block);
    most.push_back({"what a block's other layers have",
                    std::max<int64_t>(squares - square, 0) + weights});
    return larger(std::move(most), at_tuning(node));
  }

  // Where all of a block's layers have a start and are tuned together: what samples hold
  // at both ends of the block; of each weight its place, its move, its codes and scales,
  // its floats and a gradient a shard; and the values of a sample a thread, kept for the
  // way back.
  std::vector<MemoryPart> at_tuning(const Node& node) const {
    const auto [weights, values, squares] = of_block(node.block);
    std::vector<MemoryPart> parts = waiting(0);
    parts.push_back({"Hessians of a block's layers", squares});
    parts.push_back(
        {"a block that is tuned",
         (kTuned + 4 * (kShards + std::min<int64_t>(threads_, kShards))) * weights});
    parts.push_back({"activations on their way", 3 * threads_ * each_ * values});
    return parts;
  }

  // Where the gradients of one block pass (ptq/calibration/sensitivity.cpp): what samples
  // hold at every block's start, and the gradient at one; the values of a sample a
  // thread.
  std::vector<MemoryPart> at_gradients() {
    const Program& program = model_.program;
    const int64_t samples =
        std::min(MixedOptions::kGradientSamples, plan_.calibration_sequences);
    const int64_t tokens = std::min(all_, samples * each_);
    // The gradient is at a block's end, then at its start; starts behind it are dropped.
    int64_t starts = 0, held = 0, widest = 0, before = 0;
    int64_t values = 0, weights = 0, parameters = 0, most = 0;
    pass([&](const Node& node) -> Station {
      if (&node == program.nodes.data() || node.block == (&node - 1)->block) return {};
      return [&](int64_t) {
        held = std::max(held, starts + std::max(before, now_));
        starts += now_;
        before = now_;
        widest = std::max(widest, now_);
      };
    });
    held = std::max(held, starts + before);
    std::set<std::string> loaded;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      const Node& node = program.nodes[i];
      if (i > 0 && node.block != program.nodes[i - 1].block) values = parameters = 0;
      const auto shape = values_.find(node.outputs.at(0));
      if (shape != values_.end()) values += value_bytes(shape->second);
      // Beside logits, and their gradient, the same of their logarithms.
      if (shape != values_.end() && node.outputs.at(0) == program.outputs.at(0).name)
        values += value_bytes(shape->second);
      for (const auto& [role, name] : node.parameters) {
        const auto tensor = model_.tensors.find(name);
        if (node.op != "embedding" && tensor != model_.tensors.end())
          parameters += 4 * tensor->second.numel();
      }
      most = std::max(most, values);
      weights = std::max(weights, parameters);
    }
    const int64_t passing = kWithGradient * threads_ * each_ * most;
    return {{"the program with LibTorch", kProgram + kProducts},
            {"tensors kept for reuse", std::min(kPool, passing)},
            {"calibration activations", (spills_ ? widest : held) * tokens},
            {"activations on their way", passing},
            {"a stretch of weights in float32", weights}};
  }

  // Where schemes are tried on a weight, after what its layer reads has passed.
  std::vector<MemoryPart> at_choice(int64_t parameters, const LayerPlan& layer,
                                    const Node& node) const {
    const Tensor& weight = model_.tensors.at(layer.tensor);
    const int64_t columns = weight.cols();
    const int64_t square = node.op == "embedding" ? 0 : columns * columns * 8;
    const int64_t rows = read_bytes(node, columns);
    std::vector<MemoryPart> passing = on_the_way(parameters, rows),
                            trying = waiting(rows);
    passing.push_back({"Hessians of the widest layer", 2 * square});
    trying.push_back({"Hessians of the widest layer", square});
    trying.push_back(
        {"the weight that is tried",
         4 * weight.numel() +
             threads_ * kTriedScheme * std::min(kTriedRows, weight.rows()) * columns});
    return larger(std::move(passing), std::move(trying));
  }

  // Where a transform looks at a group's inputs, and then tries factors on its weights.
  std::vector<MemoryPart> at_search(int64_t parameters, const std::string& transform,
                                    const ScaleGroup& group) const {
    const auto columns = static_cast<int64_t>(group.channel_of_column.size());
    const bool products = transform == "awq";
    const int64_t square = products ? columns * columns * 8 : 0;
    int64_t rows = 0;  // of the largest weight
    for (const std::string& reader : group.readers) {
      const LayerPlan* layer = plan_.find(reader);
      if (layer != nullptr && is_quantized(*layer))
        rows = std::max(rows, model_.tensors.at(reader).rows());
    }
    const int64_t kept = kKeptRows * columns * 4;
    const int64_t read = read_bytes(columns);
    std::vector<MemoryPart> passing = on_the_way(parameters, read);
    passing.push_back({"Hessians of the widest layer", 2 * square});
    passing.push_back({"rows of inputs", 2 * kept});
    std::vector<MemoryPart> averaging = waiting(read);
    averaging.push_back({"Hessians of the widest layer", square + square / 2});
    averaging.push_back({"rows of inputs", kept});
    // A weight in f32 and its magnitudes or some of its rows; then these alone, for
    // smoothquant with their outputs, and a run of rows a thread in up to seven versions.
    const int64_t weight = rows * columns * 4;
    const int64_t judged = std::min(kJudgedRows, rows) * 4;
    const int64_t runs = threads_ * 28 * std::min(kTriedRows, rows) * columns;
    const int64_t beside =
        std::max(weight, judged * (columns + (products ? 0 : kKeptRows)) + runs - weight);
    std::vector<MemoryPart> trying = waiting(read);
    trying.push_back({"Hessians of the widest layer", square / 2});
    trying.push_back({"rows of inputs", kept});
    trying.push_back({"the weight that is tried", weight + beside});
    return larger(larger(std::move(passing), std::move(averaging)), std::move(trying));
  }

  // Its weights, the bytes of all values of a token, and of its layers' Hessians
  // (experts' are not kept).
  struct BlockSize {
    int64_t weights = 0, values = 0, squares = 0;
  };
  BlockSize of_block(int block) const {
    BlockSize size;
    std::set<std::string> read;
    for (const Node& node : model_.program.nodes) {
      if (node.block != block) continue;
      const auto shape = values_.find(node.outputs.at(0));
      if (shape != values_.end()) size.values += value_bytes(shape->second);
      for (const Layer& layer : layers_of(node)) {
        const Tensor& weight = model_.tensors.at(layer.tensor);
        size.weights += weight.numel();
        if (node.op != "moe" && read.insert(node.inputs.at(0)).second)
          size.squares += weight.cols() * weight.cols() * 8;
      }
    }
    return size;
  }

  // Where channels' largest values are looked for: samples side by side, with what their
  // layers make, and every weight (ptq/methods/equalize.cpp).
  std::vector<MemoryPart> at_equalization() {
    int64_t watched = 0, parameters = 0, most = 0;
    alive_.clear();
    now_ = 0;
    for (size_t i = 0; i < model_.program.nodes.size(); ++i) {
      const Node& node = model_.program.nodes[i];
      parameters += stretch(i, i + 1);
      most = std::max(most, widest_);
      const auto made = values_.find(node.outputs.at(0));
      if (!layers_of(node).empty() && made != values_.end())
        watched += value_bytes(made->second);
    }
    return {{"the program with LibTorch", kProgram + kProducts},
            {"activations on their way", going() * (most + watched)},
            {"a stretch of weights in float32", parameters}};
  }

  // Where the values of both nets are compared, all images at once
  // (ptq/calibration/bias_correction.h).
  std::vector<MemoryPart> at_correction() {
    const int64_t images =
        std::min(plan_.calibration_sequences,
                 std::max(plan_.bias_correction, plan_.batch_norm_reestimation));
    int64_t most = 0;
    alive_.clear();
    now_ = 0;
    for (size_t i = 0; i < model_.program.nodes.size(); ++i) {
      const int64_t before = now_;
      stretch(i, i + 1);
      // One of the nets' outputs is there once more, rounded.
      most = std::max(most, 2 * widest_ + (widest_ - before));
    }
    return {
        {"the program with LibTorch", kProgram + kProducts},
        {"tensors kept for reuse", std::min(kPool, most * images + going() * pooled_)},
        {"values of both nets", most * images}};
  }

  // What samples hold that wait at a station where so many bytes are read (read_bytes).
  std::vector<MemoryPart> waiting(int64_t read) const { return holding(now_, read); }
  // Where a sample holds so many bytes a token or image.
  std::vector<MemoryPart> holding(int64_t alive, int64_t read) const {
    const int64_t tokens = spills_ ? round_ * each_ : all_;
    // Where a block will be tuned, its start waits too: on disk, if anything does.
    const int64_t start = tunes_ && !spills_ ? block_start_ : 0;
    // What waits on disk gives back the sizes that the next round asks for.
    const int64_t rows = read <= 2 * kLargestPooled ? read : 0;
    const int64_t kept = std::min(kPool, going() * pooled_ + rows) / (spills_ ? 2 : 1);
    const int64_t factors = plan_.has_low_rank() ? threads_ * kFactors : 0;
    return {{"the program with LibTorch", kProgram + kProducts + factors},
            {"tensors kept for reuse", kept},
            {"calibration activations", (alive * streams_ + start) * tokens}};
  }
  std::vector<MemoryPart> on_the_way(int64_t parameters, int64_t read) const {
    // The first samples go while the others hold what they held, the last while the
    // others hold what they will; the one that goes is one of them, unless all wait on
    // disk.
    const int64_t held = spills_ ? now_ : std::max(before_, now_);
    std::vector<MemoryPart> parts = holding(held, read);
    const int64_t counted = spills_ ? 0 : going() * held;
    parts.push_back({"activations on their way", passing_bytes(read) - counted});
    parts.push_back({"a stretch of weights in float32", parameters * streams_});
    return parts;
  }
  // Tokens or images: a sample a thread.
  int64_t going() const { return std::min(all_, threads_ * each_); }
  int64_t passing_bytes(int64_t read) const { return going() * widest_ + read; }
  // The rows that statistics are made of: those of a round, or the patches under a
  // kernel, of a sample at a time, where they are in one order and in the other.
  int64_t read_bytes(int64_t columns) const {
    return (2 * streams_ - 1) * round_ * each_ * columns * 4;
  }
  int64_t read_bytes(const Node& node, int64_t columns) const {
    if (node.op != "conv2d") return read_bytes(columns);
    return (streams_ + 1) * each_ * positions_of(node) * columns * 4;
  }
  // Of a convolution's output; 1 of any other.
  int64_t positions_of(const Node& node) const {
    const auto made = values_.find(node.outputs.at(0));
    if (node.op != "conv2d" || made == values_.end()) return 1;
    return std::max<int64_t>(made->second.at(2), 1) *
           std::max<int64_t>(made->second.at(3), 1);
  }

  const Plan& plan_;
  const Artifact& model_;
  const Shapes& values_;
  int threads_;
  bool spills_;
  int64_t each_ = 0, all_ = 0;  // tokens or images: of a sample, of all
  int64_t round_ = kRound;      // samples of a round: a shard's, where there are few
  int64_t streams_ = 1;
  bool tunes_ = false;
  int64_t block_start_ = 0;  // of a token or image: what is alive where its block begins
  std::map<std::string, size_t> last_reader_;
  std::map<std::string, int64_t> alive_;  // bytes a token or image
  int64_t before_ = 0, now_ = 0, widest_ = 0;
  int64_t pooled_ = 0;  // the most so far, of values that ptq/calibration pools
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
  const std::set<std::string> scaled = scaled_tensors(plan, model.program, model.tensors);
  for (const std::string& name : named) {
    const auto tensor = model.tensors.find(name);
    if (tensor == model.tensors.end()) continue;
    const int64_t count = tensor->second.numel();
    parameters += count;
    const LayerPlan* layer = plan.find(name);
    out.layers += layer != nullptr;
    if (layer == nullptr || !is_quantized(*layer)) {
      bytes += scaled.count(name) ? 4.0 * static_cast<double>(count)
                                  : static_cast<double>(tensor->second.bytes.size());
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

int64_t exact_together(int64_t codes) {
  return std::clamp<int64_t>(kMostExact / (kExactBytes * std::max<int64_t>(codes, 1)), 1,
                             kMostExactImages);
}

namespace {

// Weights that are no longer those of a mapped file: rotated, or read from a file that is
// not mapped. They stay, whatever streams.
int64_t held_bytes(const Artifact& model, int64_t* largest) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : model.tensors) {
    if (tensor.bytes.is_mapped()) continue;
    bytes += static_cast<int64_t>(tensor.bytes.size());
    *largest = std::max(*largest, tensor.numel());
  }
  return bytes;
}

// The values of an image that are codes.
int64_t codes_of(const Plan& plan, const Shapes& values) {
  int64_t codes = 0;
  for (const auto& [name, activation] : plan.activations) {
    const auto shape = values.find(name);
    if (shape != values.end()) codes += features_of(shape->second);
  }
  return codes;
}

// The exact mode's.
int64_t exact_bytes(const Plan& plan, const Shapes& values, int64_t images) {
  const int64_t codes = codes_of(plan, values);
  return std::min(exact_together(codes), images) * kExactBytes * codes;
}

// What both nets make of images or samples, many together (kernels/runtime), and the
// inputs that they are given: where they are compared, and where they are timed.
int64_t values_bytes(const Plan& plan, const Program& program, const Shapes& values,
                     const MemoryRequest& request) {
  constexpr int64_t kTogether = 16, kInputs = 100, kTimed = 32;
  if (program.is_language_model()) return 0;
  const int64_t floats = share_slots(program, [&](const std::string& value) {
                           return features_of(values.at(value));
                         }).row_bytes();
  const int64_t codes = codes_of(plan, values);
  const bool timed = program.inputs.size() == 1 && program.outputs.size() == 1;
  int64_t rows = std::min(request.samples, kTogether), inputs = request.samples;
  if (request.signals) {
    rows = std::min(request.samples, rows_together(std::max(floats, codes)));
    inputs = rows;
  }
  if (timed) rows = std::max(rows, kTogether);
  inputs = std::max(std::min(inputs, kInputs), timed ? kTimed : 1);
  return rows * floats + (codes > 0 ? std::min(rows, kTogether) * codes : rows * floats) +
         inputs * 4 * features_of(values.at(program.inputs.front().name));
}

}  // namespace

Result<MemoryPlan> plan_memory(const Plan& plan, const Artifact& model,
                               const MemoryRequest& request) {
  Shapes given, values;
  for (const auto& [name, tensor] : model.tensors) given[name] = tensor.shape;
  NIBBLE_RETURN_IF_ERROR(check_shapes(model.program, given, &values));
  int64_t largest = 0;
  int64_t held = held_bytes(model, &largest);
  held += request.data;
  // Equalized weights are floats of their own beside those that were loaded.
  const bool equalizes = std::count(plan.transforms.begin(), plan.transforms.end(),
                                    std::string("equalize")) > 0;
  int64_t equalized = 0;
  for (const auto& [name, tensor] : model.tensors) {
    if (equalizes && tensor.is_float()) equalized += 4 * tensor.numel();
  }
  held += equalized;
  const auto fits = [&request, held](const std::vector<MemoryPart>& parts) {
    return request.cap == 0 || held + total(parts) <= request.cap;
  };
  MemoryPlan result;
  result.parts = CalibrationPeak(plan, model, values, request, false).find();
  // As rotate (kernels/program/edits) makes them: read, turned in f64, rounded.
  const std::vector<MemoryPart> made = {
      {"the program with LibTorch", kProgram},
      {"the weight that is rotated", kRotated * largest}};
  result.parts = larger(std::move(result.parts), made);
  std::vector<MemoryPart> spilled =
      larger(CalibrationPeak(plan, model, values, request, true).find(), made);
  result.least = held + total(spilled);
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
    // The noise floor's reference has kernels of its own.
    int64_t floats = 0;
    for (const auto& [name, tensor] : model.tensors)
      floats += (request.compares ? 8 : 4) * tensor.numel();
    const int64_t program =
        kProgram +
        (products || plan.has_low_rank() || !plan.activations.empty() ? kProducts : 0);
    const std::vector<MemoryPart> evaluation = {
        {"the program with LibTorch", program},
        {"the artifact and its kernels' copy", 2 * artifact},
        {"the float model and its kernels' copies", model.weight_bytes() + floats},
        {"logits of both", 2 * logits},
        {"values of both", values_bytes(plan, model.program, values, request)}};
    // Before it, of nets of codes.
    const std::vector<MemoryPart> exact = {
        {"the program with LibTorch", program},
        {"the artifact and its kernels' copy", 2 * artifact},
        {"values of the exact mode's check", exact_bytes(plan, values, request.exact)}};
    result.evaluates = fits(evaluation);
    result.evaluation = held + total(evaluation);
    if (result.evaluates) result.parts = larger(std::move(result.parts), evaluation);
    result.least = std::max(result.least, held + total(exact));
    result.parts = larger(std::move(result.parts), exact);
  }
  const bool whole = fits(result.parts);
  if (held > request.data + equalized) {
    result.parts.push_back(
        {"weights that are in memory already", held - request.data - equalized});
  }
  if (equalized > 0) result.parts.push_back({"equalized weights", equalized});
  if (request.data > 0) result.parts.push_back({"data", request.data});
  sort_parts(result.parts);
  if (!whole) {
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
