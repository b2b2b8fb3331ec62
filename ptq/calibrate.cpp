#include "ptq/calibrate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/program/layers.h"
#include "kernels/program/moves_codes.h"
#include "ptq/allocate.h"
#include "ptq/calibration/bias_correction.h"
#include "ptq/calibration/block_tuner.h"
#include "ptq/calibration/group_scales.h"
#include "ptq/calibration/layer_account.h"
#include "ptq/calibration/layer_rows.h"
#include "ptq/calibration/samples.h"
#include "ptq/calibration/sensitivity.h"
#include "ptq/calibration/value_stream.h"
#include "ptq/error.h"
#include "ptq/methods/low_rank.h"
#include "ptq/methods/method.h"
#include "ptq/methods/transform.h"
#include "ptq/module/dense_product.h"
#include "ptq/module/mixture.h"
#include "ptq/module/program_module.h"
#include "ptq/observers/observer.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[calibrate] ", parts...));
}

bool is_static(const std::optional<ActivationScheme>& scheme) {
  return scheme.has_value() && !scheme->dynamic;
}

bool observes(const Plan& plan) {
  return !plan.activations.empty() ||
         std::any_of(plan.layers.begin(), plan.layers.end(), [](const LayerPlan& layer) {
           return is_static(layer.scheme.input);
         });
}

const Method* method_of(const LayerPlan& layer) {
  return layer.method == "float" ? nullptr : find_method(layer.method);
}

// Who needs data, for the message when there is none.
std::string data_user(const Plan& plan) {
  if (!plan.transforms.empty()) return "transform " + plan.transforms[0];
  if (!plan.mixed.schemes.empty()) return "mixed precision";
  for (const LayerPlan& layer : plan.layers) {
    if (!plan.needs_inputs(layer)) continue;
    return cat(layer.node, method_needs_inputs(layer.method)
                               ? ": method " + layer.method
                               : ": low-rank compensation of outputs");
  }
  return "activations: static scales";
}

// The floats of one weight as [rows, cols].
std::vector<float> weight_values(const Artifact& model, const LayerPlan& layer,
                                 int64_t* rows, int64_t* cols) {
  const auto tensor = model.tensors.find(layer.tensor);
  if (tensor == model.tensors.end()) {
    throw failure(
        StatusCode::failed_precondition, layer.node, ": a float weight is required; ",
        model.packed.count(layer.tensor) ? "found it quantized already; start from the "
                                           "float checkpoint"
                                         : "the model has none by this name");
  }
  *rows = tensor->second.rows();
  *cols = tensor->second.cols();
  return value_or_throw(to_float(tensor->second));
}

// Everything that solving a layer leaves behind.
struct Outcome {
  CodedMatrix coded;
  std::optional<LowRankFactors> factors;
  Calibrated::Account account;
};

// A layer's codes, with the factors beside them. rows_before_relu: see
// LayerProblem::rows; tuned: codes that are there already.
Outcome solve_layer(const Artifact& model, const Plan& plan, const LayerPlan& layer,
                    const Hessian* inputs, const RowSample* rows_before_relu = nullptr,
                    std::optional<SolvedLayer> tuned = {}) {
  int64_t rows = 0, cols = 0;
  const std::vector<float> values = weight_values(model, layer, &rows, &cols);
  LayerProblem problem{.node = layer.node,
                       .weight = {values.data(), rows, cols},
                       .scheme = layer.scheme.weight,
                       .rule = layer.rule,
                       .gptq = plan.gptq,
                       .autoround = plan.autoround,
                       .inputs = inputs,
                       .adaround = plan.adaround,
                       .rows = rows_before_relu};
  if (problem.rows != nullptr) {
    const std::string& bias = owner_of(model.program, layer.node)->parameter("bias");
    if (!bias.empty()) problem.bias = to_torch(model.tensors.at(bias)).to(at::kFloat);
  }
  // Factors make up for the final codes, which autoround's are after their block.
  const bool is_final = tuned.has_value() || layer.method != "autoround";
  SolvedLayer solved = tuned ? std::move(*tuned) : method_of(layer)->solve(problem);
  Outcome outcome;
  if (layer.rank > 0 && is_final) {
    LayerProblem missing = problem;
    if (!plan.low_rank_on_outputs) missing.inputs = nullptr;
    outcome.factors = low_rank_factors(missing, solved.coded, layer.rank);
  }
  outcome.account = layer_account(problem, layer.method, solved,
                                  outcome.factors ? &*outcome.factors : nullptr);
  outcome.coded = std::move(solved.coded);
  return outcome;
}

// A rank is at most that of the weight.
void check_ranks(const Artifact& model, const Plan& plan) {
  for (const LayerPlan& layer : plan.layers) {
    const auto tensor = model.tensors.find(layer.tensor);
    if (layer.rank == 0 || tensor == model.tensors.end()) continue;
    const int64_t most = std::min(tensor->second.rows(), tensor->second.cols());
    if (layer.rank <= most) continue;
    throw failure(StatusCode::invalid_argument, layer.node,
                  ": low-rank compensation of a rank of at most ", most,
                  " is required, its weight's; found ", layer.rank);
  }
}

// Fills weights and accounts of a Calibrated, in program order.
class LayerSolver {
 public:
  // device: where samples run and products of inputs are summed.
  LayerSolver(Calibrated& result, const Progress& progress,
              const BlockProgress& block_done, const std::string& device)
      : result_(result),
        plan_(result.plan),
        model_(*result.model),
        progress_(progress),
        block_done_(block_done),
        device_(device) {
    for (const LayerPlan& layer : plan_.layers) total_ += layer.method != "float";
  }

  // The layers whose method looks at the weight alone: in any order, side by side.
  void solve_without_inputs() {
    std::vector<const LayerPlan*> layers;
    for (const LayerPlan& layer : plan_.layers) {
      if (layer.method != "float" && !plan_.needs_inputs(layer)) layers.push_back(&layer);
    }
    for (size_t begin = 0; begin < layers.size(); begin += kRound) {
      const size_t end = std::min(layers.size(), begin + kRound);
      solve({layers.begin() + begin, layers.begin() + end}, nullptr);
    }
  }

  // The others, each once the layers before it are solved and have run.
  void solve_with_inputs(const CalibrationData& data) {
    const Program& program = model_.program;
    const bool prefix = plan_.gptq.quantized_prefix;
    const bool tunes = std::any_of(program.nodes.begin(), program.nodes.end(),
                                   [&](const Node& node) { return is_tuned(node); });
    ValueStream stream(
        program, make_samples(model_, plan_, data),
        [&](const std::string& name) { return parameter(name, prefix); }, device_, {},
        prefix ? input_rounding(plan_, model_.program) : InputRounding());
    std::optional<ValueStream> float_stream;
    if (tunes || plan_.follows_float()) {
      float_stream.emplace(
          program, make_samples(model_, plan_, data),
          [&](const std::string& name) { return parameter(name, false); }, device_);
    }
    const bool match = plan_.follows_float();
    const InputRounding rounding =
        prefix ? input_rounding(plan_, model_.program) : InputRounding();
    size_t done = 0;
    // Runs both streams up to node i, round by round; each(first, last) after a round.
    const auto advance = [&](size_t i, const auto& each) {
      for (int64_t first = 0; first < stream.size(); first += kRound) {
        throw_if_error(check_cancelled("calibrate"));
        const int64_t last = std::min(stream.size(), first + kRound);
        stream.run(done, i, first, last);
        if (float_stream) float_stream->run(done, i, first, last);
        each(first, last);
      }
      done = i;
    };
    const auto nothing = [](int64_t, int64_t) {};
    std::vector<StreamValues>
        block_inputs;  // of the block that is being solved, if tuned
    for (size_t begin = 0; begin < program.nodes.size();) {
      const int block = program.nodes[begin].block;
      size_t end = begin;
      bool tuned = false;
      for (; end < program.nodes.size() && program.nodes[end].block == block; ++end)
        tuned = tuned || is_tuned(program.nodes[end]);
      if (tuned) {
        advance(begin, nothing);
        block_inputs = stream.samples();
      }
      for (size_t i = begin; i < end; ++i) {
        if (program.nodes[i].op == "moe" && !unsolved_experts(program.nodes[i]).empty()) {
          advance(i, nothing);
          solve_experts(program.nodes[i], stream, match ? &*float_stream : nullptr);
          continue;
        }
        const std::vector<const LayerPlan*> layers = unsolved_readers(i);
        if (layers.empty()) continue;
        const std::string& value = program.nodes[i].inputs.at(0);
        std::shared_ptr<Hessian> inputs;
        std::optional<RowSample> sample;
        if (std::any_of(layers.begin(), layers.end(),
                        [&](const LayerPlan* layer) { return minds_relu(*layer); })) {
          sample.emplace(plan_.adaround.rows);
        }
        // What the layers multiply: rounded, where their activations are.
        const auto accumulate = [&](at::Tensor x, const at::Tensor& float_x,
                                    int64_t samples) {
          const Node& node = program.nodes[i];
          if (rounding) x = rounding(node, 0, x);
          const at::Tensor rows = layer_rows(node, model_, x);
          const at::Tensor float_rows =
              match ? layer_rows(node, model_, float_x) : at::Tensor();
          if (!inputs) inputs = std::make_shared<Hessian>(rows.size(1), device_);
          inputs->accumulate(rows, float_rows);
          if (!sample) return;
          sample->add(rows, float_rows,
                      static_cast<double>(samples) / static_cast<double>(stream.size()));
        };
        advance(i, [&](int64_t first, int64_t last) {
          if (program.nodes[i].op != "conv2d") {
            accumulate(
                gather_rows(stream, value, first, last),
                match ? gather_rows(*float_stream, value, first, last) : at::Tensor(),
                last - first);
            return;
          }
          // Unfolded, an image is kh * kw times as large: one sample at a time.
          for (int64_t s = first; s < last; ++s) {
            accumulate(stream.value(s, value),
                       match ? float_stream->value(s, value) : at::Tensor(), 1);
          }
        });
        inputs->to_cpu();
        if (sample) sample->shuffle();
        solve(layers, inputs.get(), sample ? &*sample : nullptr);
        inputs->forget_derived();
        for (const LayerPlan* layer : layers) {
          if (layer->method == "autoround") block_hessians_[layer->tensor] = inputs;
        }
      }
      if (tuned) {
        advance(end, nothing);
        tune(begin, end, std::move(block_inputs), stream, *float_stream);
        block_inputs.clear();
        block_hessians_.clear();
      }
      end_block(block, begin, end);
      begin = end;
    }
  }

 private:
  // Says what became of the layers of nodes [begin, end) that were solved on data.
  void end_block(int block, size_t begin, size_t end) {
    if (!block_done_) return;
    BlockDone done{.step = "",
                   .block = block,
                   .blocks = model_.program.block_count(),
                   .done = done_,
                   .total = total_};
    for (size_t i = begin; i < end; ++i) {
      for (const Layer& layer : layers_of(model_.program.nodes[i])) {
        const LayerPlan* plan = plan_.find(layer.tensor);
        if (plan == nullptr || plan->method == "float" || !plan_.needs_inputs(*plan))
          continue;
        const auto account = result_.accounts.find(layer.tensor);
        if (account == result_.accounts.end()) continue;
        ++done.layers;
        done.output_error += std::max(account->second.output_error, 0.0);
      }
    }
    if (done.layers == 0) return;
    done.output_error /= static_cast<double>(done.layers);
    block_done_(done);
  }

  // Its layers' codes are tuned with their block's. The ends of a model are no blocks.
  bool is_tuned(const Node& node) const {
    if (node.block < 0 || node.block == kLastBlock) return false;
    for (const Layer& layer : layers_of(node)) {
      const LayerPlan* plan = plan_.find(layer.tensor);
      if (plan != nullptr && plan->method == "autoround") return true;
    }
    return false;
  }

  // Both streams stand at `end`. The quantized one runs the block again, from its inputs.
  void tune(size_t begin, size_t end, std::vector<StreamValues> inputs,
            ValueStream& stream, const ValueStream& float_stream) {
    const Program& program = model_.program;
    std::set<std::string> made;
    for (size_t i = begin; i < end; ++i) made.insert(program.nodes[i].outputs.at(0));
    BlockProblem problem{
        .model = model_,
        .plan = plan_,
        .begin = begin,
        .end = end,
        .samples = stream.size(),
        .input = [&](int64_t i) { return inputs[static_cast<size_t>(i)]; },
        .target =
            [&](int64_t i) {
              StreamValues target;
              for (const auto& [name, value] :
                   float_stream.samples()[static_cast<size_t>(i)]) {
                if (made.count(name)) target[name] = value;
              }
              return target;
            },
        .tensors = {},
        .weight = [&](const std::string& name) { return parameter(name, false); },
        .parameter = [&](const std::string& name) { return parameter(name, true); },
        .rounding = input_rounding(plan_, model_.program),
        .device = device_};
    for (size_t i = begin; i < end; ++i) {
      for (const Layer& layer : layers_of(program.nodes[i])) {
        const LayerPlan* plan = plan_.find(layer.tensor);
        if (plan != nullptr && plan->method == "autoround")
          problem.tensors.push_back(layer.tensor);
      }
    }
    const TunedBlock tuned = tune_block(problem, result_.weights);
    // Errors of outputs are those on the inputs that the start's codes gave.
    for (const std::string& tensor : problem.tensors) {
      Calibrated::Account& account = result_.accounts[tensor];
      const std::string note =
          cat(account.note, account.note.empty() ? "" : "; ", "block error ",
              tuned.loss_before, " -> ", tuned.loss_after);
      const auto inputs = block_hessians_.find(tensor);
      Outcome outcome =
          solve_layer(model_, plan_, *plan_.find(tensor),
                      inputs != block_hessians_.end() ? inputs->second.get() : nullptr,
                      nullptr, SolvedLayer{std::move(result_.weights.at(tensor)), note});
      outcome.account.tokens = account.tokens;
      keep(tensor, std::move(outcome));
    }
    // Again with the tuned weights, so that the next block sees what they give.
    stream.restore(std::move(inputs));
    for (int64_t first = 0; first < stream.size(); first += kRound) {
      stream.run(begin, end, first, std::min(stream.size(), first + kRound));
    }
  }

  // Does the method look at what a ReLU, which alone reads the layer, lets through?
  bool minds_relu(const LayerPlan& layer) const {
    if (!method_of(layer)->wants_rows) return false;
    const std::string& value = owner_of(model_.program, layer.node)->outputs.at(0);
    const std::vector<const Node*> readers = model_.program.consumers(value);
    return readers.size() == 1 && readers[0]->op == "relu" && !is_output(value);
  }

  bool is_output(const std::string& value) const {
    const std::vector<ProgramValue>& outputs = model_.program.outputs;
    return std::any_of(outputs.begin(), outputs.end(),
                       [&](const ProgramValue& output) { return output.name == value; });
  }

  // The layers from node i on that read what node i reads, if node i is a layer to be
  // solved.
  std::vector<const LayerPlan*> unsolved_readers(size_t i) const {
    const Program& program = model_.program;
    const auto unsolved = [&](const Node& node) -> const LayerPlan* {
      const LayerPlan* layer = plan_.find(node.parameter("weight"));
      const bool wanted = layer != nullptr && plan_.needs_inputs(*layer);
      return wanted && !result_.weights.count(layer->tensor) ? layer : nullptr;
    };
    std::vector<const LayerPlan*> layers;
    if (unsolved(program.nodes[i]) == nullptr) return layers;
    const std::string& value = program.nodes[i].inputs.at(0);
    for (const Node* reader : program.consumers(value)) {
      const LayerPlan* layer = unsolved(*reader);
      const bool again = std::find(layers.begin(), layers.end(), layer) != layers.end();
      if (layer != nullptr && !again && same_rows(program.nodes[i], *reader, model_))
        layers.push_back(layer);
    }
    return layers;
  }

  std::vector<Layer> unsolved_experts(const Node& moe) const {
    std::vector<Layer> layers;
    for (Layer& layer : layers_of(moe)) {
      const LayerPlan* plan = plan_.find(layer.tensor);
      const bool wanted = plan != nullptr && plan_.needs_inputs(*plan);
      if (wanted && !result_.weights.count(layer.tensor)) {
        layers.push_back(std::move(layer));
      }
    }
    return layers;
  }

  // What one expert read: its tokens' rows of a round, of the model as it is quantized so
  // far and (where the float model is followed) of the float one.
  struct ExpertRows {
    at::Tensor inputs, float_inputs;
  };

  // Experts one after another, each on the tokens that were routed to it: gate and up on
  // the node's input, then down on what these two (solved) make of it.
  void solve_experts(const Node& moe, const ValueStream& stream,
                     const ValueStream* float_stream) {
    std::vector<at::Tensor> chosen;  // a sample each
    for (int64_t sample = 0; sample < stream.size(); ++sample) {
      chosen.push_back(route(moe, stream.value(sample, moe.inputs[1])).chosen);
    }
    const std::vector<Layer> layers = layers_of(moe);
    for (size_t i = 0; i < layers.size(); i += 3) {
      const auto expert = static_cast<int64_t>(i / 3);
      std::vector<ExpertRows> rounds;
      int64_t tokens = 0;
      for (int64_t first = 0; first < stream.size(); first += kRound) {
        const int64_t last = std::min(stream.size(), first + kRound);
        std::vector<at::Tensor> rows, float_rows;
        for (int64_t sample = first; sample < last; ++sample) {
          const at::Tensor mine =
              tokens_of(chosen[static_cast<size_t>(sample)], expert).tokens;
          const auto taken = [&](const ValueStream& from) {
            const at::Tensor& x = from.value(sample, moe.inputs[0]);
            return x.reshape({-1, x.size(-1)}).index_select(0, mine);
          };
          rows.push_back(taken(stream));
          if (float_stream != nullptr) float_rows.push_back(taken(*float_stream));
        }
        rounds.push_back({at::cat(rows), {}});
        if (float_stream != nullptr) rounds.back().float_inputs = at::cat(float_rows);
        tokens += rounds.back().inputs.size(0);
      }
      solve_expert({layers.begin() + static_cast<std::ptrdiff_t>(i),
                    layers.begin() + static_cast<std::ptrdiff_t>(i + 3)},
                   cat(moe.name, ".", expert), rounds, tokens);
    }
  }

  void solve_expert(const std::vector<Layer>& layers, const std::string& name,
                    std::vector<ExpertRows>& rounds, int64_t tokens) {
    const int64_t minimum = plan_.minimum_tokens_per_expert;
    std::vector<const LayerPlan*> first, last;
    for (const Layer& layer : layers) {
      const LayerPlan* plan = plan_.find(layer.tensor);
      if (plan == nullptr || !plan_.needs_inputs(*plan) ||
          result_.weights.count(layer.tensor)) {
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
      Hessian inputs(rounds[0].inputs.size(1), device_);
      for (const ExpertRows& round : rounds) {
        if (round.inputs.size(0) == 0) continue;
        inputs.accumulate(round.inputs, round.float_inputs);
      }
      inputs.to_cpu();
      solve(plans, &inputs);
    };
    if (!first.empty()) solve_on(first);
    if (last.empty()) return;
    const bool prefix = plan_.gptq.quantized_prefix;
    const auto hidden = [&](const at::Tensor& x, bool quantized) {
      return at::silu(dense_linear(x, parameter(layers[0].tensor, quantized))) *
             dense_linear(x, parameter(layers[1].tensor, quantized));
    };
    for (ExpertRows& round : rounds) {
      round.inputs = hidden(round.inputs, prefix);
      if (round.float_inputs.defined()) {
        round.float_inputs = hidden(round.float_inputs, false);
      }
    }
    solve_on(last);
  }

  // The fallback of experts that too few tokens reached, if the recipe allows it.
  void round_to_nearest(const std::vector<const LayerPlan*>& layers, int64_t tokens) {
    for (const LayerPlan* layer : layers) {
      for (LayerPlan& mine : result_.plan.layers) {
        if (mine.tensor == layer->tensor) mine.method = "rtn";
      }
    }
    solve(layers, nullptr);
    for (const LayerPlan* layer : layers) {
      Calibrated::Account& account = result_.accounts[layer->tensor];
      account.tokens = tokens;
      account.note =
          cat("rounded to nearest: ", tokens,
              " calibration tokens reached this expert, fewer than ", Plan::kFewTokens);
    }
  }

  at::Tensor parameter(const std::string& name, bool quantized) const {
    const auto tensor = model_.tensors.find(name);
    if (tensor == model_.tensors.end()) {
      throw failure(StatusCode::not_found, name,
                    ": the program names it; the model has it not");
    }
    const auto solved = result_.weights.find(name);
    if (!quantized || solved == result_.weights.end()) return to_torch(tensor->second);
    const CodedMatrix& coded = solved->second;
    at::Tensor weight = at::empty(tensor->second.shape, at::kFloat);
    const MatrixView<float> values(weight.data_ptr<float>(), coded.rows, coded.cols);
    throw_if_error(dequantize(coded, values));
    const auto factors = result_.low_rank.find(name);
    if (factors != result_.low_rank.end()) add_factors(factors->second, values);
    return weight;
  }

  // rows: of the inputs, for those layers that mind the ReLU behind them.
  void solve(const std::vector<const LayerPlan*>& layers, const Hessian* inputs,
             const RowSample* rows = nullptr) {
    throw_if_error(check_cancelled("calibrate"));
    std::vector<Outcome> outcomes(layers.size());
    in_parallel(static_cast<int64_t>(layers.size()), [&](int64_t i) {
      outcomes[i] = solve_layer(model_, plan_, *layers[i], inputs,
                                minds_relu(*layers[i]) ? rows : nullptr);
    });
    for (size_t i = 0; i < layers.size(); ++i) {
      keep(layers[i]->tensor, std::move(outcomes[i]));
      if (progress_) progress_("quantize", layers[i]->node, ++done_, total_);
    }
  }

  void keep(const std::string& tensor, Outcome outcome) {
    result_.weights[tensor] = std::move(outcome.coded);
    result_.accounts[tensor] = std::move(outcome.account);
    if (outcome.factors) result_.low_rank[tensor] = std::move(*outcome.factors);
  }

  Calibrated& result_;
  const Plan& plan_;
  const Artifact& model_;
  const Progress& progress_;
  const BlockProgress& block_done_;
  const std::string device_;
  // Of the layers that are tuned with their block, until they are.
  std::map<std::string, std::shared_ptr<const Hessian>> block_hessians_;
  int64_t done_ = 0, total_ = 0;
};

// Runs the float model over the data and finds the scale of every static activation.
class ActivationScales {
 public:
  ActivationScales(const Artifact& model, const Plan& plan) : model_(model), plan_(plan) {
    for (const auto& [value, scheme] : plan.activations) statistics_[value];
    for (const LayerPlan& layer : plan.layers) {
      if (is_static(layer.scheme.input)) statistics_[input_of(layer)];
    }
  }

  void observe(const CalibrationData& data, const Progress& progress) {
    std::set<std::string> watched;
    std::vector<std::pair<const std::string, ValueStatistics>*> entries;
    for (auto& entry : statistics_) {
      watched.insert(entry.first);
      entries.push_back(&entry);
    }
    ValueStream stream(
        model_.program, make_samples(model_, plan_, data),
        [&](const std::string& name) { return to_torch(model_.tensors.at(name)); },
        data.device, watched);
    for (int64_t first = 0; first < stream.size(); first += kRound) {
      throw_if_error(check_cancelled("calibrate"));
      const int64_t last = std::min(stream.size(), first + kRound);
      stream.run(0, model_.program.nodes.size(), first, last);
      in_parallel(static_cast<int64_t>(entries.size()), [&](int64_t i) {
        for (int64_t sample = first; sample < last; ++sample) {
          const at::Tensor x = stream.value(sample, entries[i]->first).contiguous();
          entries[i]->second.add({x.data_ptr<float>(), static_cast<size_t>(x.numel())});
        }
      });
      for (int64_t sample = first; sample < last; ++sample) stream.drop(sample);
      if (progress) progress("observe", "activations", last, stream.size());
    }
  }

  ActivationScheme scaled(const std::string& value, ActivationScheme scheme) const {
    const ValueStatistics& seen = statistics_.at(value);
    if (!seen.finite()) {
      throw failure(
          StatusCode::out_of_range, value,
          ": activations must be finite on the calibration data; found NaN or infinity; "
          "check the weights and the preprocessing");
    }
    scheme.scale = find_observer(plan_.observer)->scale(seen, scheme.scheme);
    return scheme;
  }

  std::string input_of(const LayerPlan& layer) const {
    return owner_of(model_.program, layer.node)->inputs.at(0);
  }

 private:
  const Artifact& model_;
  const Plan& plan_;
  std::map<std::string, ValueStatistics> statistics_;
};

void calibrate_activations(Calibrated& result, const CalibrationData& data,
                           const Progress& progress) {
  const Artifact& model = *result.model;
  ActivationScales scales(model, result.plan);
  scales.observe(data, progress);
  for (auto& [value, scheme] : result.plan.activations)
    scheme = scales.scaled(value, scheme);
  if (result.plan.byte_images) {
    result.plan.activations.at(model.program.inputs.at(0).name).scale = 1.0f / 255;
  }
  // These move codes and do not compute: what comes out has the scale of what went in.
  for (const Node& node : model.program.nodes) {
    if (!moves_codes(node)) continue;
    const auto from = result.plan.activations.find(node.inputs.at(0));
    const auto to = result.plan.activations.find(node.outputs.at(0));
    if (from != result.plan.activations.end() && to != result.plan.activations.end()) {
      to->second = from->second;
    }
  }
  // What only a concat reads is rounded once, to the scale of the whole.
  for (auto node = model.program.nodes.rbegin(); node != model.program.nodes.rend();
       ++node) {
    const auto whole = result.plan.activations.find(node->outputs.at(0));
    if (node->op != "concat" || whole == result.plan.activations.end()) continue;
    for (const std::string& input : node->inputs) {
      const auto part = result.plan.activations.find(input);
      const bool alone = model.program.consumers(input).size() == 1;
      if (part != result.plan.activations.end() && alone &&
          part->second.scheme == whole->second.scheme) {
        part->second = whole->second;
      }
    }
  }
  result.activations = result.plan.activations;
  for (LayerPlan& layer : result.plan.layers) {
    if (is_static(layer.scheme.input)) {
      layer.scheme.input = scales.scaled(scales.input_of(layer), *layer.scheme.input);
    }
  }
}

// Mixed precision: every quantized layer's scheme anew, as the plan's budget allows.
void choose_schemes(Calibrated& result, const CalibrationData& data,
                    const Progress& progress, std::map<std::string, std::string>& notes) {
  const MixedOptions& mixed = result.plan.mixed;
  std::vector<std::string> tensors;
  for (const LayerPlan& layer : result.plan.layers) {
    if (layer.method != "float") tensors.push_back(layer.tensor);
  }
  const bool known = mixed.losses != nullptr && !mixed.losses->empty();
  const MixedLosses losses = known ? *mixed.losses
                                   : predicted_losses(*result.model, result.plan, data,
                                                      tensors, mixed.schemes, progress);
  if (mixed.losses != nullptr) *mixed.losses = losses;
  std::vector<std::vector<LayerChoice>> layers;
  for (const std::string& tensor : tensors) {
    const std::vector<double>& loss = losses.at(tensor);
    const auto costs = mixed.costs.find(tensor);
    if (costs == mixed.costs.end() || costs->second.size() != loss.size()) {
      throw failure(StatusCode::internal, tensor, ": a cost a scheme is required; found ",
                    costs == mixed.costs.end() ? 0 : costs->second.size());
    }
    layers.emplace_back();
    for (size_t i = 0; i < loss.size(); ++i)
      layers.back().push_back({costs->second[i], loss[i]});
  }
  Result<std::vector<size_t>> chosen = allocate(layers, mixed.budget);
  if (!chosen.ok()) {
    throw Error(error(chosen.status().code(), chosen.status().message(), " (in ",
                      mixed.unit, ")"));
  }
  for (size_t l = 0; l < tensors.size(); ++l) {
    for (LayerPlan& layer : result.plan.layers) {
      if (layer.tensor == tensors[l]) layer.scheme.weight = mixed.schemes[(*chosen)[l]];
    }
    std::string& note = notes[tensors[l]];
    note += cat(note.empty() ? "" : "; ", "mixed: KL foretold ",
                layers[l][(*chosen)[l]].loss);
  }
  throw_if_error(check_plan(result.plan, result.model->program));
}

// The model after the plan's transforms; notes by tensor say what they did.
std::shared_ptr<const Artifact> transformed(std::shared_ptr<const Artifact> model,
                                            const Plan& plan, const CalibrationData& data,
                                            const Progress& progress,
                                            std::map<std::string, std::string>& notes) {
  for (const std::string& name : plan.transforms) {
    const Transform& transform = *find_transform(name);
    auto edited = std::make_shared<Artifact>(*model);
    std::map<std::string, std::string> mine;
    if (transform.edit != nullptr) {
      transform.edit({plan, data, progress, *edited, mine});
    } else {
      ModelWeights weights(*model);
      StreamOptions options;
      options.progress = progress;
      options.device = data.device;
      FoundScales found;
      scale_groups(transform, {*model, plan, data, options, found, weights, mine});
      for (auto& [tensor, values] :
           weights.scaled([](const std::string&) { return true; }))
        edited->tensors[tensor] = std::move(values);
    }
    for (const auto& [tensor, note] : mine) {
      std::string& text = notes[tensor];
      text += cat(text.empty() ? "" : "; ", note);
    }
    model = std::move(edited);
  }
  return model;
}

}  // namespace

Calibrated calibrate(std::shared_ptr<const Artifact> model, const Plan& plan,
                     const CalibrationData& data, const Progress& progress,
                     const BlockProgress& block_done) {
  const OneThread one_thread;
  throw_if_error(check_plan(plan, model->program));
  check_ranks(*model, plan);
  const bool solves_with_inputs =
      std::any_of(plan.layers.begin(), plan.layers.end(),
                  [&plan](const LayerPlan& layer) { return plan.needs_inputs(layer); });
  const bool chooses = !plan.mixed.schemes.empty();
  if (solves_with_inputs || !plan.transforms.empty() || chooses || observes(plan)) {
    check_calibration_data(*model, plan, data, data_user(plan));
  }

  Calibrated result;
  result.plan = plan;
  result.calibration = data.description;
  std::map<std::string, std::string> notes;
  result.model = transformed(std::move(model), plan, data, progress, notes);
  if (chooses) choose_schemes(result, data, progress, notes);
  if (observes(plan)) calibrate_activations(result, data, progress);
  for (const LayerPlan& layer : result.plan.layers) {
    if (layer.scheme.input) result.layer_inputs[layer.node] = *layer.scheme.input;
  }
  LayerSolver solver(result, progress, block_done, data.device);
  solver.solve_without_inputs();
  if (solves_with_inputs) solver.solve_with_inputs(data);
  if (plan.bias_correction > 0) correct_biases(result, to_torch(data.images));
  if (plan.batch_norm_reestimation > 0)
    reestimate_batch_norms(result, to_torch(data.images));
  for (const auto& [tensor, note] : notes) {
    std::string& text = result.accounts[tensor].note;
    text = text.empty() ? note : cat(note, "; ", text);
  }
  return result;
}

}  // namespace nibble
