#include "ptq/calibration/streaming_solver.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/program/layers.h"
#include "ptq/calibration/block_tuner.h"
#include "ptq/calibration/layer_account.h"
#include "ptq/calibration/layer_rows.h"
#include "ptq/calibration/samples.h"
#include "ptq/calibration/sharded_hessian.h"
#include "ptq/calibration/sharded_rows.h"
#include "ptq/error.h"
#include "ptq/methods/low_rank.h"
#include "ptq/methods/method.h"
#include "ptq/module/dense_product.h"
#include "ptq/module/mixture.h"
#include "ptq/one_thread.h"
#include "ptq/topology.h"

namespace nibble {
namespace {

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[calibrate] ", parts...));
}

const Method* method_of(const LayerPlan& layer) {
  return layer.method == "float" ? nullptr : find_method(layer.method);
}

void check_finite(const Hessian& inputs, const LayerPlan& layer) {
  const at::Tensor diagonal = inputs.sums().diagonal();
  if (at::isfinite(diagonal).all().item<bool>() &&
      (!inputs.has_drift() || at::isfinite(inputs.drift().diagonal()).all().item<bool>())) {
    return;
  }
  throw failure(StatusCode::out_of_range, layer.node,
                ": its inputs must be finite on the calibration data; found NaN or "
                "infinity, which a layer before it makes; check the weights, or "
                "calibrate on other data");
}

// --- a solved layer as bytes, for the other ranks

void put_bytes(std::string& text, const void* data, size_t size) {
  text.append(reinterpret_cast<const char*>(&size), sizeof(size));
  text.append(static_cast<const char*>(data), size);
}

template <class T>
void put_values(std::string& text, const std::vector<T>& values) {
  put_bytes(text, values.data(), values.size() * sizeof(T));
}

template <class T>
std::vector<T> take_values(std::string_view& text) {
  size_t size = 0;
  std::memcpy(&size, text.data(), sizeof(size));
  std::vector<T> values(size / sizeof(T));
  if (size > 0) std::memcpy(values.data(), text.data() + sizeof(size), size);
  text.remove_prefix(sizeof(size) + size);
  return values;
}

}  // namespace

// Everything that solving a layer leaves behind.
struct StreamingSolver::Outcome {
  CodedMatrix coded;
  std::optional<LowRankFactors> factors = {};
  LayerAccount account;

  std::string bytes() const {
    std::string text;
    put_values(text, coded.codes);
    for (const auto* levels : {&coded.scales, &coded.offsets}) {
      for (const CodedLevel& level : *levels) {
        put_values(text, level.values);
        put_values(text, std::vector<float>{level.shift});
      }
    }
    put_values(text, std::vector<double>{account.error, account.output_error,
                                         account.rtn_error, account.rtn_output_error,
                                         static_cast<double>(account.tokens)});
    put_values(text, std::vector<char>(account.note.begin(), account.note.end()));
    for (const Tensor* factor :
         {factors ? &factors->a : nullptr, factors ? &factors->b : nullptr}) {
      if (factor != nullptr) put_bytes(text, factor->bytes.data(), factor->bytes.size());
    }
    return text;
  }

  static Outcome from(std::string_view text, const LayerPlan& layer, int64_t rows,
                      int64_t cols) {
    const QuantScheme& scheme = layer.scheme.weight;
    Outcome outcome;
    CodedMatrix& coded = outcome.coded;
    coded.scheme = scheme;
    coded.rows = rows;
    coded.cols = cols;
    coded.codes = take_values<uint8_t>(text);
    const auto take_levels = [&](const std::vector<ScaleLevel>& levels) {
      std::vector<CodedLevel> result;
      for (const ScaleLevel& level : levels) {
        const LevelShape shape = level_shape(level.block, rows, cols);
        CodedLevel taken{.rows = shape.rows, .cols = shape.cols, .values = {}};
        taken.values = take_values<float>(text);
        taken.shift = take_values<float>(text).at(0);
        result.push_back(std::move(taken));
      }
      return result;
    };
    coded.scales = take_levels(scheme.scales);
    coded.offsets = take_levels(scheme.offsets);
    const std::vector<double> figures = take_values<double>(text);
    outcome.account.error = figures.at(0);
    outcome.account.output_error = figures.at(1);
    outcome.account.rtn_error = figures.at(2);
    outcome.account.rtn_output_error = figures.at(3);
    outcome.account.tokens = static_cast<int64_t>(figures.at(4));
    const std::vector<char> note = take_values<char>(text);
    outcome.account.note.assign(note.begin(), note.end());
    if (text.empty()) return outcome;
    const auto take_factor = [&text](std::vector<int64_t> shape) {
      const std::vector<char> bytes = take_values<char>(text);
      return Tensor{DType::bf16, std::move(shape),
                    Bytes::copy_of(bytes.data(), bytes.size())};
    };
    outcome.factors.emplace();
    outcome.factors->a = take_factor({layer.rank, cols});
    outcome.factors->b = take_factor({rows, layer.rank});
    return outcome;
  }
};

// What a layer's codes are before its block is tuned, and what it read.
struct StreamingSolver::Start {
  Outcome outcome;
  std::shared_ptr<const Hessian> inputs;
};

// What one expert read: its tokens' rows of a round, of the model as it is quantized so far
// and (where the float model is followed) of the float one.
struct StreamingSolver::ExpertRows {
  at::Tensor inputs, float_inputs;
};

StreamingSolver::StreamingSolver(const Artifact& model, const ModelWeights& weights,
                                 const Plan& plan, SolvedLayers& solved,
                                 const std::map<std::string, std::string>& notes,
                                 const StreamOptions& options)
    : model_(model),
      weights_(weights),
      plan_(plan),
      solved_(solved),
      notes_(notes),
      options_(options),
      device_(options.device),
      ranks_(Ranks::instance()) {
  for (const LayerPlan& layer : plan_.layers) {
    total_ += layer.method != "float";
    done_ += layer.method != "float" && solved.has(layer.tensor);
  }
}

StreamingSolver::~StreamingSolver() = default;

void StreamingSolver::solve_without_inputs() {
  // A block at a time: what runs side by side, and what a kill costs.
  std::vector<const LayerPlan*> layers;
  int block = kFirstBlock;
  const auto solve_block = [&] {
    if (!layers.empty()) solve(layers, nullptr);
    layers.clear();
    end_block(block);
  };
  for (const LayerPlan& layer : plan_.layers) {
    if (layer.method == "float" || needs_inputs(layer) || solved_.has(layer.tensor))
      continue;
    const Node* node = model_.program.find(layer.node);  // none for an expert's
    if (node != nullptr && node->block != block) {
      solve_block();
      block = node->block;
    }
    layers.push_back(&layer);
  }
  solve_block();
}

void StreamingSolver::solve_with_inputs(const CalibrationData& data) {
  const std::optional<size_t> last = last_station();
  if (!last) return;
  const Program& program = model_.program;
  const bool prefix = plan_.gptq.quantized_prefix;
  if (prefix) rounding_ = input_rounding(plan_, program);
  ShardedStreams streams(model_, plan_, data, options_.spill, options_.device);
  const auto follow = [&](bool quantized, InputRounding rounding) {
    streams.add(
        [this, quantized](const std::string& name) { return parameter(name, quantized); },
        [this, quantized](const std::string& name, const at::Tensor& ids) {
          if (!quantized || !solved_.has(name)) return weights_.rows(name, ids);
          const int64_t cols = weights_.stored(name).cols();
          return weights_.rows(name, ids, [&](int64_t row, float* values) {
            solved_.read(name, row, MatrixView<float>(values, 1, cols));
          });
        },
        std::move(rounding));
  };
  bool tunes = false;
  for (size_t i = 0; i < program.nodes.size(); ++i) tunes = tunes || is_tuned(i);
  follow(prefix, rounding_);
  if (plan_.follows_float() || tunes) follow(false, {});

  for (size_t begin = 0; begin <= *last;) {
    const int block = program.nodes[begin].block;
    size_t end = begin;
    keeps_starts_ = false;
    for (; end < program.nodes.size() && program.nodes[end].block == block; ++end)
      keeps_starts_ = keeps_starts_ || is_tuned(end);
    // Never more than a block's parameters at once, also where nothing is left to solve.
    streams.advance(begin);
    std::unique_ptr<SampleStream> before;
    if (keeps_starts_) before = streams.fork(0);
    for (size_t i = begin; i < end && (i <= *last || keeps_starts_); ++i) {
      if (program.nodes[i].op == "moe" && !unsolved_experts(program.nodes[i]).empty()) {
        streams.advance(i);
        solve_experts(streams, program.nodes[i]);
        continue;
      }
      const std::vector<const LayerPlan*> layers = unsolved_readers(i);
      if (!layers.empty()) solve_readers(streams, i, layers);
    }
    if (keeps_starts_) {
      streams.advance(end);
      tune(streams, begin, end, std::move(before));
    }
    end_block(block);
    begin = end;
  }
}

// Are a node's layers tuned with their block's? The ends of a model are no blocks.
bool StreamingSolver::is_tuned(size_t node) const {
  const Node& owner = model_.program.nodes[node];
  if (owner.block < 0 || owner.block == kLastBlock) return false;
  for (const Layer& layer : layers_of(owner)) {
    const LayerPlan* plan = plan_.find(layer.tensor);
    if (plan != nullptr && plan->method == "autoround" && !solved_.has(layer.tensor))
      return true;
  }
  return false;
}

// Both streams stand at `end`, `before` at begin: from there the quantized one goes
// again, with what tuning has made of the codes.
void StreamingSolver::tune(ShardedStreams& streams, size_t begin, size_t end,
                           std::unique_ptr<SampleStream> before) {
  std::set<std::string> made;
  for (size_t i = begin; i < end; ++i) made.insert(model_.program.nodes[i].outputs.at(0));
  BlockProblem problem{
      .model = model_,
      .plan = plan_,
      .begin = begin,
      .end = end,
      .samples = sample_count(model_, plan_),
      .input = [&](int64_t sample) { return before->values(sample); },
      .target =
          [&](int64_t sample) {
            StreamValues target = streams[1].values(sample);
            std::erase_if(target,
                          [&](const auto& entry) { return !made.count(entry.first); });
            return target;
          },
      .tensors = {},
      .weight = [&](const std::string& name) { return weights_.value(name); },
      .parameter = [&](const std::string& name) { return parameter(name, true); },
      .rounding = input_rounding(plan_, model_.program),
      .device = options_.device};
  std::vector<const LayerPlan*> layers;
  std::map<std::string, CodedMatrix> codes;
  for (const LayerPlan& layer : plan_.layers) {
    const auto start = starts_.find(layer.tensor);
    if (start == starts_.end()) continue;
    layers.push_back(&layer);
    problem.tensors.push_back(layer.tensor);
    codes[layer.tensor] = std::move(start->second.outcome.coded);
  }
  const TunedBlock tuned = tune_block(problem, codes);
  keeps_starts_ = false;
  for (const LayerPlan* layer : layers) {
    const Start& start = starts_.at(layer->tensor);
    const std::string& note = start.outcome.account.note;
    // Errors of outputs are those on the inputs that the start's codes gave.
    Outcome outcome;
    if (ranks_.is_first())
      outcome =
          solve_layer(*layer, start.inputs.get(), nullptr,
                      SolvedLayer{std::move(codes.at(layer->tensor)),
                                  cat(note, note.empty() ? "" : "; ", "block error ",
                                      tuned.loss_before, " -> ", tuned.loss_after)});
    if (ranks_.count() > 1) {
      const Tensor& weight = weights_.stored(layer->tensor);
      const std::string text =
          ranks_.broadcast(ranks_.is_first() ? outcome.bytes() : std::string(), 0);
      if (!ranks_.is_first())
        outcome = Outcome::from(text, *layer, weight.rows(), weight.cols());
    }
    outcome.account.tokens = start.outcome.account.tokens;
    if (start.inputs == nullptr) {
      outcome.account.output_error = start.outcome.account.output_error;
      outcome.account.rtn_output_error = start.outcome.account.rtn_output_error;
    }
    starts_.erase(layer->tensor);
    keep(*layer, std::move(outcome));
  }
  streams.replace(0, std::move(before), begin);
}

void StreamingSolver::solve_readers(ShardedStreams& streams, size_t node,
                                    const std::vector<const LayerPlan*>& layers) {
  const Node& reader = model_.program.nodes[node];
  const std::string& value = reader.inputs.at(0);
  const InputRounding rounding = rounding_on(device_, rounding_);
  const bool matches = plan_.follows_float();
  // What a layer reads is as wide as its weight.
  ShardedHessian sum(ranks_, weights_.stored(layers[0]->tensor).cols(), device_);
  ShardedRows sample(ranks_, plan_.adaround.rows);
  const bool samples_rows =
      std::any_of(layers.begin(), layers.end(),
                  [&](const LayerPlan* layer) { return minds_relu(*layer); });
  const auto all = static_cast<double>(sample_count(model_, plan_));
  // What the layers multiply: rounded, where their activations are.
  const auto accumulate = [&](const ShardedStreams::Shard& shard, at::Tensor x,
                              const at::Tensor& float_x, int64_t samples) {
    if (rounding) x = rounding(reader, 0, x);
    const at::Tensor rows = layer_rows(reader, model_, x);
    const at::Tensor float_rows =
        matches ? layer_rows(reader, model_, float_x) : at::Tensor();
    sum.shard().accumulate(rows, float_rows);
    if (samples_rows) {
      sample.shard(shard.index).add(rows, float_rows, static_cast<double>(samples) / all);
    }
  };
  streams.advance(
      node,
      [&](const ShardedStreams::Shard& shard, int64_t first, int64_t last) {
        if (reader.op != "conv2d") {
          accumulate(shard, streams.gather(0, value, first, last),
                     matches ? streams.gather(1, value, first, last) : at::Tensor(),
                     last - first);
          return;
        }
        // Unfolded, an image is kh * kw times as large: one sample at a time.
        for (int64_t s = first; s < last; ++s) {
          accumulate(shard, streams[0].value(s, value),
                     matches ? streams[1].value(s, value) : at::Tensor(), 1);
        }
      },
      [&](const ShardedStreams::Shard& shard) {
        sum.end_shard();
        if (samples_rows) sample.end_shard(shard.index);
      });
  std::optional<RowSample> rows;
  if (samples_rows) rows = sample.finish();
  solve(layers, std::make_shared<Hessian>(sum.finish()), rows ? &*rows : nullptr);
  // Of a net that is no decoder, whose blocks are few and uneven, each station is one:
  // what a kill costs.
  if (!model_.program.is_language_model()) end_block(reader.block);
}

// Does the method look at what a ReLU, which alone reads the layer, lets through?
bool StreamingSolver::minds_relu(const LayerPlan& layer) const {
  return method_of(layer)->wants_rows &&
         feeds_a_relu_alone(model_.program, *owner_of(model_.program, layer.node));
}

// The layers from a node on that read what it reads, if the node is a layer to be solved.
std::vector<const LayerPlan*> StreamingSolver::unsolved_readers(size_t node) const {
  const Program& program = model_.program;
  const auto unsolved = [&](const Node& reader) -> const LayerPlan* {
    const LayerPlan* layer = plan_.find(reader.parameter("weight"));
    const bool wanted = layer != nullptr && needs_inputs(*layer);
    const bool done =
        wanted && (solved_.has(layer->tensor) || starts_.count(layer->tensor));
    return wanted && !done ? layer : nullptr;
  };
  std::vector<const LayerPlan*> layers;
  if (unsolved(program.nodes[node]) == nullptr) return layers;
  const std::string& value = program.nodes[node].inputs.at(0);
  for (const Node* reader : program.consumers(value)) {
    const LayerPlan* layer = unsolved(*reader);
    const bool again = std::find(layers.begin(), layers.end(), layer) != layers.end();
    if (layer != nullptr && !again && same_rows(program.nodes[node], *reader, model_))
      layers.push_back(layer);
  }
  return layers;
}

std::vector<Layer> StreamingSolver::unsolved_experts(const Node& moe) const {
  std::vector<Layer> layers;
  for (Layer& layer : layers_of(moe)) {
    const LayerPlan* plan = plan_.find(layer.tensor);
    const bool wanted = plan != nullptr && needs_inputs(*plan);
    const bool done = solved_.has(layer.tensor) || starts_.count(layer.tensor) > 0;
    if (wanted && !done) layers.push_back(std::move(layer));
  }
  return layers;
}

// The last node at which there is something to solve.
std::optional<size_t> StreamingSolver::last_station() const {
  for (size_t i = model_.program.nodes.size(); i-- > 0;) {
    const Node& node = model_.program.nodes[i];
    if (node.op == "moe" ? !unsolved_experts(node).empty() : !unsolved_readers(i).empty())
      return i;
  }
  return std::nullopt;
}

// Experts one after another, each on the tokens that were routed to it: gate and up on the
// node's input, then down on what these two (solved) make of it.
void StreamingSolver::solve_experts(ShardedStreams& streams, const Node& moe) {
  std::map<int64_t, at::Tensor> chosen;  // by sample
  for (const ShardedStreams::Shard& shard : streams.shards()) {
    for (int64_t sample = shard.first; sample < shard.last; ++sample) {
      chosen[sample] = route(moe, streams[0].value(sample, moe.inputs[1])).chosen;
    }
  }
  const std::vector<Layer> layers = layers_of(moe);
  std::vector<int64_t> tokens(layers.size() / 3, 0);
  for (const auto& [sample, experts] : chosen) {
    for (size_t expert = 0; expert < tokens.size(); ++expert)
      tokens[expert] += tokens_of(experts, static_cast<int64_t>(expert)).tokens.size(0);
  }
  tokens = ranks_.sum(std::move(tokens));
  for (size_t i = 0; i < layers.size(); i += 3) {
    const auto expert = static_cast<int64_t>(i / 3);
    std::vector<std::vector<ExpertRows>> shards;
    for (const ShardedStreams::Shard& shard : streams.shards()) {
      std::vector<ExpertRows>& rounds = shards.emplace_back();
      for (int64_t first = shard.first; first < shard.last; first += kRound) {
        std::vector<at::Tensor> rows, float_rows;
        for (int64_t sample = first; sample < std::min(shard.last, first + kRound);
             ++sample) {
          const at::Tensor mine = tokens_of(chosen.at(sample), expert).tokens;
          const auto taken = [&](const SampleStream& from) {
            const at::Tensor x = from.value(sample, moe.inputs[0]);
            return x.reshape({-1, x.size(-1)}).index_select(0, mine);
          };
          rows.push_back(taken(streams[0]));
          if (plan_.follows_float()) float_rows.push_back(taken(streams[1]));
        }
        rounds.push_back({at::cat(rows), {}});
        if (plan_.follows_float()) rounds.back().float_inputs = at::cat(float_rows);
      }
    }
    solve_expert({layers.begin() + static_cast<std::ptrdiff_t>(i),
                  layers.begin() + static_cast<std::ptrdiff_t>(i + 3)},
                 cat(moe.name, ".", expert), shards, tokens[i / 3]);
  }
}

void StreamingSolver::solve_expert(const std::vector<Layer>& layers, const std::string& name,
                               std::vector<std::vector<ExpertRows>>& shards,
                               int64_t tokens) {
  const int64_t minimum = plan_.minimum_tokens_per_expert;
  std::vector<const LayerPlan*> first, last;
  for (const Layer& layer : layers) {
    const LayerPlan* plan = plan_.find(layer.tensor);
    if (plan == nullptr || !needs_inputs(*plan) || solved_.has(layer.tensor) ||
        starts_.count(layer.tensor)) {
      continue;
    }
    (layer.role.ends_with(".down_proj") ? last : first).push_back(plan);
  }
  if (first.empty() && last.empty()) return;
  if (tokens < minimum) {
    throw failure(StatusCode::failed_precondition, name, ": an expert needs ", minimum,
                  " calibration tokens (calibration.minimum_tokens_per_expert); found ",
                  tokens, "; give more or other calibration data, or set it to 0, ",
                  "which rounds such experts to nearest");
  }
  if (minimum == 0 && tokens < Plan::kFewTokens) {
    for (const auto* plans : {&first, &last}) {
      if (!plans->empty()) round_to_nearest(*plans, tokens);
    }
    return;
  }
  const auto solve_on = [&](const std::vector<const LayerPlan*>& plans) {
    ShardedHessian sum(ranks_, model_.tensors.at(plans[0]->tensor).cols(), device_);
    for (const std::vector<ExpertRows>& rounds : shards) {
      for (const ExpertRows& round : rounds) {
        if (round.inputs.size(0) > 0)
          sum.shard().accumulate(round.inputs, round.float_inputs);
      }
      sum.end_shard();
    }
    solve(plans, std::make_shared<Hessian>(sum.finish()));
  };
  if (!first.empty()) solve_on(first);
  if (last.empty()) return;
  const bool prefix = plan_.gptq.quantized_prefix;
  const auto hidden = [&](const at::Tensor& x, bool quantized) {
    const auto product = [&](const std::string& tensor) {
      return dense_linear(x, parameter(tensor, quantized).to(device_));
    };
    return at::silu(product(layers[0].tensor)) * product(layers[1].tensor);
  };
  for (std::vector<ExpertRows>& rounds : shards) {
    for (ExpertRows& round : rounds) {
      round.inputs = hidden(round.inputs, prefix);
      if (round.float_inputs.defined())
        round.float_inputs = hidden(round.float_inputs, false);
    }
  }
  solve_on(last);
}

// The fallback of experts that too few tokens reached, if the recipe allows it.
void StreamingSolver::round_to_nearest(const std::vector<const LayerPlan*>& layers,
                                   int64_t tokens) {
  for (const LayerPlan* layer : layers) {
    LayerPlan nearest = *layer;
    nearest.method = "rtn";
    Outcome outcome = solve_layer(nearest, nullptr);
    outcome.account.tokens = tokens;
    std::string& note = outcome.account.note;
    note = cat(note, note.empty() ? "" : "; ", "rounded to nearest: ", tokens,
               " calibration tokens reached this expert, fewer than ", Plan::kFewTokens);
    keep(nearest, std::move(outcome));
  }
}

at::Tensor StreamingSolver::parameter(const std::string& name, bool quantized) const {
  const Tensor& own = weights_.stored(name);
  const auto start = starts_.find(name);
  if (quantized && start != starts_.end()) {
    at::Tensor weight = at::empty(own.shape, at::kFloat);
    throw_if_error(dequantize(
        start->second.outcome.coded,
        MatrixView<float>(weight.mutable_data_ptr<float>(), own.rows(), own.cols())));
    return weight;
  }
  if (!quantized || !own.is_float() || !solved_.has(name)) return weights_.value(name);
  at::Tensor weight = at::empty(own.shape, at::kFloat);
  solved_.read(
      name, 0,
      MatrixView<float>(weight.mutable_data_ptr<float>(), own.rows(), own.cols()));
  return weight;
}

StreamingSolver::Outcome StreamingSolver::solve_layer(
    const LayerPlan& layer, const Hessian* inputs, const RowSample* rows,
    std::optional<SolvedLayer> tuned) const {
  const auto tensor = model_.tensors.find(layer.tensor);
  if (tensor == model_.tensors.end()) {
    throw failure(
        StatusCode::failed_precondition, layer.node, ": a float weight is required; ",
        model_.packed.count(layer.tensor) ? "found it quantized already; start from the "
                                            "float checkpoint"
                                          : "the model has none by this name");
  }
  std::vector<float> values(static_cast<size_t>(tensor->second.numel()));
  weights_.read(layer.tensor, values.data());
  LayerProblem problem{
      .node = layer.node,
      .weight = {values.data(), tensor->second.rows(), tensor->second.cols()},
      .scheme = layer.scheme.weight,
      .rule = layer.rule,
      .gptq = plan_.gptq,
      .autoround = plan_.autoround,
      .inputs = inputs,
      .adaround = plan_.adaround,
      .rows = rows};
  if (rows != nullptr) {
    const std::string& bias = owner_of(model_.program, layer.node)->parameter("bias");
    if (!bias.empty()) problem.bias = weights_.value(bias);
  }
  SolvedLayer solved = tuned ? std::move(*tuned) : method_of(layer)->solve(problem);
  // Factors make up for the final codes, which autoround's are after their block.
  const bool is_start = keeps_starts_ && layer.method == "autoround";
  std::optional<LowRankFactors> factors;
  if (layer.rank > 0 && !is_start) {
    LayerProblem missing = problem;
    if (!plan_.low_rank_on_outputs) missing.inputs = nullptr;
    factors = low_rank_factors(missing, solved.coded, layer.rank);
  }
  LayerAccount account =
      layer_account(problem, layer.method, solved, factors ? &*factors : nullptr);
  const auto note = notes_.find(layer.tensor);
  if (note != notes_.end() && !is_start)
    account.note =
        account.note.empty() ? note->second : cat(note->second, "; ", account.note);
  return {std::move(solved.coded), std::move(factors), std::move(account)};
}

// Layer i by rank i, i + count ...; a method that works on rows in parallel has the machine
// for one layer after another (and memory for one alone), others run side by side.
void StreamingSolver::solve(const std::vector<const LayerPlan*>& layers,
                            const std::shared_ptr<Hessian>& inputs,
                            const RowSample* rows) {
  throw_if_error(check_cancelled("calibrate"));
  if (inputs != nullptr) {
    check_finite(*inputs, *layers[0]);
    inputs->matrix();  // made here, then only read
  }
  const auto owner = [this](size_t i) { return static_cast<int>(i) % ranks_.count(); };
  const auto take = [&](const LayerPlan& layer, Outcome outcome) {
    if (keeps_starts_ && layer.method == "autoround") {
      // An expert's inputs are many: the errors of its outputs stay those of its start.
      const bool is_expert = model_.program.find(layer.node) == nullptr;
      starts_[layer.tensor] = {std::move(outcome), is_expert ? nullptr : inputs};
    } else {
      keep(layer, std::move(outcome));
    }
  };
  const bool one_by_one =
      std::all_of(layers.begin(), layers.end(), [](const LayerPlan* layer) {
        return method_of(*layer)->rows_in_parallel && layer->rank == 0;
      });
  const auto solved = [&](const LayerPlan& layer) {
    return solve_layer(layer, inputs.get(), minds_relu(layer) ? rows : nullptr);
  };
  std::vector<Outcome> outcomes(layers.size());
  if (!one_by_one) {
    in_parallel(static_cast<int64_t>(layers.size()), [&](int64_t i) {
      if (owner(i) == ranks_.rank()) outcomes[i] = solved(*layers[i]);
    });
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool mine = owner(i) == ranks_.rank();
    if (one_by_one && mine) outcomes[i] = solved(*layers[i]);
    if (one_by_one && ranks_.count() == 1) take(*layers[i], std::move(outcomes[i]));
  }
  if (inputs != nullptr) {  // a tuned block's stay until its end
    inputs->forget_derived();
    const bool wanted =
        std::any_of(layers.begin(), layers.end(), [this](const LayerPlan* layer) {
          return starts_.count(layer->tensor) > 0 && layer->rank > 0;
        });
    if (!wanted) inputs->forget_drift();
  }
  if (one_by_one && ranks_.count() == 1) return;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (ranks_.count() > 1) {
      const bool mine = owner(i) == ranks_.rank();
      const Tensor& weight = model_.tensors.at(layers[i]->tensor);
      const std::string text =
          ranks_.broadcast(mine ? outcomes[i].bytes() : std::string(), owner(i));
      if (!mine)
        outcomes[i] = Outcome::from(text, *layers[i], weight.rows(), weight.cols());
    }
    take(*layers[i], std::move(outcomes[i]));
  }
}

void StreamingSolver::keep(const LayerPlan& layer, Outcome outcome) {
  ++block_layers_;
  block_error_ += std::max(outcome.account.output_error, 0.0);
  solved_.put(layer, std::move(outcome.coded), std::move(outcome.account),
              std::move(outcome.factors));
  ++done_;
  if (options_.progress) options_.progress("quantize", layer.node, done_, total_);
}

void StreamingSolver::end_block(int block) {
  if (block_layers_ == 0) return;
  solved_.end_block();
  if (options_.block_done) {
    options_.block_done(
        {.step = "",
         .block = block,
         .blocks = model_.program.is_language_model() ? model_.program.block_count() : 0,
         .layers = block_layers_,
         .output_error = block_error_ / static_cast<double>(block_layers_),
         .done = done_,
         .total = total_});
  }
  block_layers_ = 0;
  block_error_ = 0;
}

}  // namespace nibble
