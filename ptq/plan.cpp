#include "ptq/plan.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/program/edits/fold_normalization.h"
#include "kernels/program/edits/low_rank.h"
#include "kernels/program/layers.h"
#include "kernels/program/moves_codes.h"

namespace nibble {
namespace {

struct MethodName {
  std::string name;
  bool needs_inputs;
};
std::vector<MethodName>& method_table() {
  static std::vector<MethodName> table = {
#define NIBBLE_METHOD(name, needs_inputs, description) {#name, needs_inputs},
#include "ptq/methods/methods.inc"
#undef NIBBLE_METHOD
  };
  return table;
}
constexpr const char* kTransforms[] = {
#define NIBBLE_TRANSFORM(name, kind, description) #name,
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM
};
const char* const kObservers[] = {
#define NIBBLE_OBSERVER(name) #name,
#include "ptq/observers/observers.inc"
#undef NIBBLE_OBSERVER
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

template <class... Parts>
Status refuse(const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[plan] ", parts...);
}

// Static activations ship as one scale a tensor on symmetric integer codes
// (layer_scheme.h).
Status check_activation(const std::string& where, const ActivationScheme& activation) {
  NIBBLE_RETURN_IF_ERROR(validate_scheme(activation.scheme));
  const bool integer = element_info(activation.scheme.code).kind == ElementKind::integer;
  if (activation.scheme.is_float() || !integer) {
    return refuse(where, ": an activation scheme must have integer codes; found ",
                  to_string(activation.scheme), "; use ", kSignedActivation, " or ",
                  kUnsignedActivation);
  }
  if (activation.dynamic) return ok_status();
  if (activation.scheme.scales.size() != 1 ||
      activation.scheme.scales[0].block.kind != Block::Kind::tensor ||
      activation.scheme.offset != OffsetKind::none) {
    return refuse(where,
                  ": a static activation must have one scale and no offset; found ",
                  to_string(activation.scheme), "; use ", kSignedActivation, " or ",
                  kUnsignedActivation, ", or make it dynamic");
  }
  return ok_status();
}

Status check_method(const LayerPlan& layer, const Plan& plan,
                    const std::vector<Layer>& layers) {
  if (layer.method == "float") {
    if (!layer.scheme.weight.is_float()) {
      return refuse(layer.node, ": method float keeps a layer as it is; found scheme ",
                    to_string(layer.scheme.weight),
                    "; name a method or remove the scheme");
    }
    if (layer.reason.empty()) {
      return refuse(layer.node, ": a layer that stays float needs a reason; found none");
    }
    return ok_status();
  }
  const MethodName* method = nullptr;
  for (const MethodName& row : method_table()) {
    if (layer.method == row.name) method = &row;
  }
  if (method == nullptr) {
    return refuse(layer.node, ": no method is called `", layer.method, "`; there are ",
                  joined(method_names()));
  }
  if (layer.scheme.weight.is_float()) {
    return refuse(layer.node, ": method ", layer.method,
                  " needs a quantized scheme; found ", to_string(layer.scheme.weight),
                  "; use method float");
  }
  NIBBLE_RETURN_IF_ERROR(validate_scheme(layer.scheme.weight));
  if (element_info(layer.scheme.weight.code).bits > 8) {
    return refuse(layer.node, ": codes of at most 8 bits; found ",
                  to_string(layer.scheme.weight));
  }
  if (!method->needs_inputs) return ok_status();
  for (const Layer& reader : layers) {
    if (reader.tensor == layer.tensor && !method_solves(layer.method, *reader.node)) {
      return refuse(layer.node, ": method ", layer.method, " solves ",
                    solvable_by(layer.method), "; ", reader.name, " reads ", layer.tensor,
                    " as ", reader.node->op, "; use rtn for it");
    }
  }
  if (plan.gptq.act_order && !plan.gptq.static_groups && !plan.gptq.group_aware) {
    return refuse(
        layer.node,
        ": act_order needs static_groups (groups are stored in the order of "
        "the columns); found static_groups false; set it or group_aware true, or "
        "act_order false");
  }
  const QuantScheme& scheme = layer.scheme.weight;
  const bool one_group =
      scheme.scales.size() == 1 && scheme.offsets.size() <= 1 &&
      scheme.scales[0].block.kind == Block::Kind::group &&
      (scheme.offsets.empty() || scheme.offsets[0].block == scheme.scales[0].block);
  if (!plan.gptq.static_groups && !one_group) {
    return refuse(layer.node, ": static_groups false needs one scale a group; found ",
                  to_string(scheme), "; set static_groups true");
  }
  return ok_status();
}

Status check_rule(const std::string& where, const ScaleRule& rule) {
  const bool lowest = rule.mse_lowest > 0 && rule.mse_lowest <= 1;
  if (!lowest || rule.mse_steps < 1 || !(rule.mse_norm > 0)) {
    return refuse(
        where,
        ": scale rule needs 0 < mse_lowest <= 1, mse_steps >= 1, mse_norm > 0; found ",
        rule.mse_lowest, ", ", rule.mse_steps, ", ", rule.mse_norm);
  }
  return ok_status();
}

// Factors are nodes beside a linear layer of a block that read floats, and belong to it
// alone.
Status check_rank(const LayerPlan& layer, const Node& node, const Plan& plan,
                  const std::vector<Layer>& layers) {
  if (layer.rank == 0) return ok_status();
  const auto refuse_rank = [&layer](const auto&... found) {
    return refuse(layer.node, ": low-rank compensation (rank ", layer.rank,
                  ") stands beside a quantized linear layer of a block; found ", found...,
                  "; set its rank to 0");
  };
  if (layer.rank < 0) return refuse_rank("a rank below 0");
  if (layer.method == "float") return refuse_rank("one that stays float");
  if (!takes_low_rank(node)) return refuse_rank(node.op, " ", node.name);
  const bool reads_codes = layer.scheme.input.has_value() && !layer.scheme.input->dynamic;
  if (!plan.activations.empty() || reads_codes)
    return refuse_rank("static activations, whose layers read codes");
  if (!plan.mixed.schemes.empty())
    return refuse_rank("mixed precision, whose budget knows no factors");
  for (const Layer& reader : layers) {
    if (reader.tensor != layer.tensor || reader.name == layer.node) continue;
    return refuse_rank(reader.name, ", which reads the same weight");
  }
  return ok_status();
}

Status check_options(const Plan& plan) {
  const GptqOptions& gptq = plan.gptq;
  if (!(gptq.damping > 0) || !std::isfinite(gptq.damping) || gptq.damping_attempts < 1) {
    return refuse(
        "gptq: damping must be positive and damping_attempts at least 1; found ",
        gptq.damping, " and ", gptq.damping_attempts);
  }
  if (plan.minimum_tokens_per_expert < 0) {
    return refuse("calibration: minimum_tokens_per_expert must be at least 0; found ",
                  plan.minimum_tokens_per_expert);
  }
  if (plan.calibration_sequences < 1 || plan.calibration_length < 1) {
    return refuse("calibration: sequences and length must be at least 1; found ",
                  plan.calibration_sequences, " and ", plan.calibration_length);
  }
  for (const std::string& name : plan.transforms) {
    const std::vector<std::string> known = transform_names();
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    return refuse("transforms: no transform is called `", name, "`; there are ",
                  joined(known));
  }
  const AutoRoundOptions& autoround = plan.autoround;
  if (autoround.iterations < 1 || autoround.batch < 1 ||
      !(autoround.learning_rate >= 0)) {
    return refuse(
        "autoround: at least one iteration and sample a step and a rate of at least 0 "
        "are "
        "required; found ",
        autoround.iterations, ", ", autoround.batch, " and ", autoround.learning_rate);
  }
  if (autoround.start != "gptq" && autoround.start != "imatrix" &&
      autoround.start != "rtn") {
    return refuse("autoround: start is one of gptq, imatrix, rtn; found ",
                  autoround.start);
  }
  const AdaRoundOptions& adaround = plan.adaround;
  if (adaround.iterations < 1 || adaround.rows < 1 || adaround.batch < 1 ||
      !(adaround.learning_rate > 0) || !(adaround.regularization >= 0)) {
    return refuse(
        "adaround: at least one iteration and row, a rate above 0 and a regularization "
        "of "
        "at least 0 are required; found ",
        adaround.iterations, ", ", adaround.rows, " (", adaround.batch, " a step), ",
        adaround.learning_rate, " and ", adaround.regularization);
  }
  const std::set<std::string> transforms(plan.transforms.begin(), plan.transforms.end());
  if (transforms.size() != plan.transforms.size())
    return refuse("transforms: each at most once is required; found one twice");
  if (!(plan.smoothquant_alpha >= 0 && plan.smoothquant_alpha < 1)) {
    return refuse("smoothquant: alpha must be at least 0 (searched) and below 1; found ",
                  plan.smoothquant_alpha);
  }
  if (!(plan.equalize_alpha > 0 && plan.equalize_alpha <= 1)) {
    return refuse("equalize: alpha must be above 0 and at most 1; found ",
                  plan.equalize_alpha);
  }
  for (const char* name : kObservers) {
    if (plan.observer == name) return ok_status();
  }
  return refuse("observer: no observer is called `", plan.observer, "`; there are ",
                joined(observer_names()));
}

// What re-estimation multiplies is the scale of a row.
Status check_reestimation(const Plan& plan, const Program& program) {
  if (plan.batch_norm_reestimation <= 0) return ok_status();
  if (plan.activations.empty()) {
    return refuse(
        "batch_norm_reestimation: static activations are required, as "
        "w8a8-static has; found none; leave it out");
  }
  if (plan.bias_correction > 0) {
    return refuse(
        "batch_norm_reestimation: it corrects the biases too; found "
        "bias_correction ",
        plan.bias_correction, " beside it; set one of them to 0");
  }
  for (const Node& node : program.nodes) {
    const LayerPlan* layer =
        node.op == "conv2d" ? plan.find(node.parameter("weight")) : nullptr;
    if (layer == nullptr || layer->method == "float") continue;
    const QuantScheme& scheme = layer->scheme.weight;
    if (scheme.scales.size() == 1 && scheme.scales[0].block.kind == Block::Kind::row &&
        scheme.scales[0].element == Element::f32 && !scheme.scales[0].shifted &&
        scheme.offset != OffsetKind::minimum) {
      continue;
    }
    return refuse(layer->node,
                  ": batch_norm_reestimation needs one f32 scale a row, as "
                  "int8/r@f32 has; found ",
                  to_string(scheme),
                  "; give the layer such a scheme, or use bias_correction");
  }
  return ok_status();
}

// Of a convolution the Hessian is that of its patches, the same for every output channel
// where there is one group.
bool solves_convolutions(const std::string& method) {
  return method == "gptq" || method == "imatrix" || method == "adaround";
}

}  // namespace

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const MethodName& row : method_table()) names.push_back(row.name);
  names.push_back("float");
  return names;
}

bool method_solves(const std::string& method, const Node& node) {
  if (!method_needs_inputs(method) || node.op == "linear" || node.op == "moe")
    return true;
  return node.op == "conv2d" && node.integer("groups", 1) == 1 &&
         solves_convolutions(method);
}

std::string solvable_by(const std::string& method) {
  return solves_convolutions(method) ? "linear layers and convolutions of one group"
                                     : "linear layers";
}

bool method_needs_inputs(const std::string& name) {
  for (const MethodName& row : method_table()) {
    if (row.name == name) return row.needs_inputs;
  }
  return false;
}

std::vector<std::string> transform_names() {
  return {std::begin(kTransforms), std::end(kTransforms)};
}

Status add_method_name(const std::string& name, bool needs_inputs) {
  for (const std::string& known : method_names()) {
    if (known == name)
      return refuse("method: a new name is required; found `", name, "`, which exists");
  }
  method_table().push_back({name, needs_inputs});
  return ok_status();
}

std::vector<std::string> observer_names() {
  return {std::begin(kObservers), std::end(kObservers)};
}

const LayerPlan* Plan::find(const std::string& tensor) const {
  for (const LayerPlan& layer : layers) {
    if (layer.tensor == tensor) return &layer;
  }
  return nullptr;
}

bool Plan::needs_inputs(const LayerPlan& layer) const {
  if (layer.method == "float") return false;
  return method_needs_inputs(layer.method) || (layer.rank > 0 && low_rank_on_outputs);
}

bool Plan::has_low_rank() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerPlan& layer) { return layer.rank > 0; });
}

bool Plan::follows_float() const {
  if (!gptq.quantized_prefix || !gptq.match_float) return false;
  return std::any_of(layers.begin(), layers.end(), [this](const LayerPlan& layer) {
    const bool starts_elsewhere =
        layer.method == "autoround" && autoround.start != "gptq";
    if (layer.rank > 0 && low_rank_on_outputs) return true;
    return needs_inputs(layer) && layer.method != "awq" && layer.method != "imatrix" &&
           !starts_elsewhere;
  });
}

Status check_plan(const Plan& plan, const Program& program) {
  NIBBLE_RETURN_IF_ERROR(check_options(plan));
  if (plan.bias_correction > 0 && plan.activations.empty()) {
    return refuse("bias_correction: static activations are required, as w8a8-static has; "
                  "found none; leave it out");
  }
  NIBBLE_RETURN_IF_ERROR(check_reestimation(plan, program));
  const auto images = plan.activations.find(program.inputs.at(0).name);
  if (plan.byte_images && (images == plan.activations.end() ||
                           images->second.scheme.code != Element::uint8)) {
    return refuse(
        "byte images: static activations of uint8 codes are required; found ",
        images == plan.activations.end() ? "none" : to_string(images->second.scheme));
  }
  std::set<std::string> planned;
  const std::vector<Layer> layers = layers_of(program);
  std::map<std::string, const Layer*> by_name;
  for (const Layer& layer : layers) by_name[layer.name] = &layer;
  for (const LayerPlan& layer : plan.layers) {
    const auto found = by_name.find(layer.node);
    if (found == by_name.end() || found->second->tensor != layer.tensor) {
      return refuse(layer.node, ": the program has no such layer with weight ",
                    layer.tensor);
    }
    if (!planned.insert(layer.tensor).second) {
      return refuse(layer.node, ": ", layer.tensor, " is planned twice");
    }
    NIBBLE_RETURN_IF_ERROR(check_method(layer, plan, layers));
    NIBBLE_RETURN_IF_ERROR(check_rule(layer.node, layer.rule));
    NIBBLE_RETURN_IF_ERROR(check_rank(layer, *found->second->node, plan, layers));
    if (layer.scheme.input) {
      const Node& node = *found->second->node;
      const bool codes = !layer.scheme.input->dynamic && reader_layer(node) == layer.node;
      if (node.op == "moe" || (node.op == "lstm" && !codes)) {
        return refuse(layer.node,
                      node.op == "moe" ? " input: experts read" : " input: an lstm reads",
                      " floats; found ", to_string(layer.scheme.input->scheme),
                      "; leave it out");
      }
      NIBBLE_RETURN_IF_ERROR(
          check_activation(layer.node + " input", *layer.scheme.input));
    }
  }
  for (const Layer& layer : layers) {
    if (planned.count(layer.tensor)) continue;
    return refuse(layer.name, ": every layer needs a row; ", layer.tensor,
                  " has none; give it a method, or float with a reason");
  }
  for (const auto& [value, activation] : plan.activations) {
    bool known = program.producer(value) != nullptr;
    for (const ProgramValue& input : program.inputs) known = known || input.name == value;
    if (!known) return refuse(value, ": the program has no such value");
    NIBBLE_RETURN_IF_ERROR(check_activation(value, activation));
    if (activation.dynamic) {
      return refuse(
          value,
          ": the scheme of a value is static; a dynamic one belongs to a layer's input");
    }
  }
  return ok_status();
}

Result<Artifact> prepare_for_plan(const Artifact& model, bool fold, bool byte_images) {
  if (!fold) return model;
  NIBBLE_ASSIGN_OR_RETURN(FoldedModel folded,
                          fold_batch_norm(model.program, model.tensors));
  Artifact result = model;
  result.program = std::move(folded.program);
  result.tensors = std::move(folded.tensors);
  for (const FoldedTensor& tensor : folded.folded) {
    result.ledger.entries.push_back({.tensor = tensor.tensor,
                                     .scheme = "f32",
                                     .method = "folded",
                                     .reason = "folded into " + tensor.into,
                                     .kernel = "",
                                     .parameters = tensor.parameters,
                                     .note = ""});
  }
  if (byte_images) {
    NIBBLE_RETURN_IF_ERROR(fold_normalization(result.program, result.tensors,
                                              result.image_mean, result.image_std));
    std::fill(result.image_mean.begin(), result.image_mean.end(), 0.0f);
    std::fill(result.image_std.begin(), result.image_std.end(), 1.0f);
  }
  return result;
}

bool has_integer_ends(const Program& program) {
  return program.inputs.size() == 1 && program.outputs.size() == 1 &&
         program.inputs[0].shape.size() == 4;
}

Result<std::map<std::string, ActivationScheme>> integer_activations(
    const Program& program, const QuantScheme& signed_scheme,
    const QuantScheme& unsigned_scheme) {
  std::map<std::string, ActivationScheme> schemes;
  const ActivationScheme is_signed{.scheme = signed_scheme};
  const ActivationScheme is_unsigned{.scheme = unsigned_scheme};
  const auto is_output = [&](const std::string& value) {
    for (const ProgramValue& output : program.outputs) {
      if (output.name == value) return true;
    }
    return false;
  };
  for (const ProgramValue& input : program.inputs) schemes[input.name] = is_signed;
  for (const Node& node : program.nodes) {
    const std::string& value = node.outputs.at(0);
    if (node.op == "batch_norm") {
      return error(StatusCode::failed_precondition, "[plan] ", node.name,
                   ": the integer path has no batch norm; fold batch norms first");
    }
    if (node.op == "relu") {
      schemes[value] = is_unsigned;
    } else if (node.op == "conv2d" || node.op == "linear" || node.op == "add") {
      const std::vector<const Node*> consumers = program.consumers(value);
      const bool fused =
          consumers.size() == 1 && consumers[0]->op == "relu" && !is_output(value);
      if (!fused && !is_output(value)) schemes[value] = is_signed;
    } else if (moves_codes(node) || node.op == "global_average_pool") {
      const auto input = schemes.find(node.inputs.at(0));
      if (input != schemes.end() && !is_output(value)) schemes[value] = input->second;
    } else if (node.op == "concat") {
      const bool all_unsigned = std::all_of(
          node.inputs.begin(), node.inputs.end(), [&](const std::string& input) {
            const auto found = schemes.find(input);
            return found != schemes.end() && found->second == is_unsigned;
          });
      if (!is_output(value)) schemes[value] = all_unsigned ? is_unsigned : is_signed;
    } else if (node.op == "softmax" && is_output(value)) {
      schemes.erase(node.inputs.at(0));  // of the floats that the node before makes
    } else {
      return error(StatusCode::unsupported, "[plan] ", node.name, ": ", node.op,
                   " has no integer form; use a weight-only scheme for this model");
    }
  }
  return schemes;
}

}  // namespace nibble
