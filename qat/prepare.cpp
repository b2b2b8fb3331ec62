#include "qat/prepare.h"

#include <ATen/ATen.h>

#include "kernels/program/layers.h"
#include "kernels/program/moves_codes.h"
#include "kernels/scheme/kv_scheme.h"
#include "ptq/error.h"

namespace nibble {
namespace {

// These ops copy codes: their output has a scheme only so that every value has one.
bool only_moves_codes(const Program& program, const std::string& value) {
  const Node* node = program.producer(value);
  return node != nullptr && moves_codes(*node);
}

FakeQuantize activation_quantizer(const ActivationScheme& scheme,
                                  const QatOptions& options) {
  FakeQuantize quantizer(scheme);
  if (scheme.dynamic) return quantizer;
  if (options.learn_activation_clip) {
    quantizer->learn_clip();
  } else if (options.learn_activation_scale) {
    quantizer->learn_scale();
  }
  return quantizer;
}

// The trained values in the dtype that the checkpoint had.
Tensor as_before(const torch::Tensor& trained, const Tensor& before) {
  const torch::Tensor values = trained.detach().contiguous();
  const auto rounded = [&](at::ScalarType type) {
    const torch::Tensor narrow = values.to(type).contiguous();
    Tensor result = before;
    result.bytes = Bytes::copy_of(narrow.const_data_ptr(), narrow.nbytes());
    return result;
  };
  if (before.dtype == DType::bf16) return rounded(at::kBFloat16);
  if (before.dtype == DType::f16) return rounded(at::kHalf);
  return from_torch(values);
}

// |W - Q|^2 / |W|^2
double relative_error(const torch::Tensor& weight, const CodedMatrix& coded) {
  const torch::Tensor w = weight.detach().contiguous();
  torch::Tensor q = at::empty_like(w);
  throw_if_error(
      dequantize(coded, {q.mutable_data_ptr<float>(), coded.rows, coded.cols}));
  const double size = w.to(at::kDouble).square().sum().item<double>();
  return size == 0 ? 0.0 : (w - q).to(at::kDouble).square().sum().item<double>() / size;
}

// The float weight; where its nearest code is another than the calibrated one, that one's
// value.
torch::Tensor start_of(const torch::Tensor& weight, const CodedMatrix& calibrated) {
  const torch::Tensor w = weight.detach().contiguous();
  CodedMatrix nearest = calibrated;
  throw_if_error(
      quantize({w.const_data_ptr<float>(), nearest.rows, nearest.cols}, nearest));
  if (nearest.codes == calibrated.codes) return w;
  torch::Tensor start = at::empty_like(w);
  throw_if_error(dequantize(
      calibrated, {start.mutable_data_ptr<float>(), calibrated.rows, calibrated.cols}));
  const float* from = w.const_data_ptr<float>();
  float* to = start.mutable_data_ptr<float>();
  for (size_t i = 0; i < nearest.codes.size(); ++i) {
    if (nearest.codes[i] == calibrated.codes[i]) to[i] = from[i];
  }
  return start;
}

bool has_integer_zeros(const QuantScheme& scheme) {
  return scheme.offset == OffsetKind::zero_point && scheme.offsets.size() == 1 &&
         element_info(scheme.offsets[0].element).kind == ElementKind::integer;
}

bool has_plain_minima(const QuantScheme& scheme) {
  return scheme.offset == OffsetKind::minimum && !scheme.offsets[0].shifted &&
         element_info(scheme.offsets[0].element).kind != ElementKind::table;
}

// What attention reads: each position's keys and values as the cache stores them, and the
// queries as the runtime rounds them.
void quantize_attention(ProgramModule module, const std::string& kv) {
  for (const Node& node : module->program().nodes) {
    if (node.op != "attention" || node.text("state", "").empty()) continue;
    const int64_t heads = node.integer("heads", 0);
    const KvScheme scheme = value_or_throw(parse_kv_scheme(
        kv, node.integer("kv_heads", heads), node.integer("head_dim", 0)));
    const auto place = [&](const std::string& value, const QuantScheme& stored) {
      if (stored.is_float()) return;
      module->quantize_value(value, FakeQuantize(ActivationScheme{stored, true, 0, 0}));
    };
    place(node.inputs[0], scheme.queries);
    place(node.inputs[1], scheme.keys);
    place(node.inputs[2], scheme.values);
  }
}

void choose_trained(ProgramModule module, Trained trained) {
  if (trained == Trained::all) return;
  for (auto& item : module->named_parameters()) {
    if (item.key().find("_quantizers.") != std::string::npos) continue;
    item.value().set_requires_grad(false);
  }
  if (trained == Trained::scales) return;
  for (const auto& [tensor, quantizer] : module->weight_quantizers())
    module->parameter(tensor).set_requires_grad(true);
}

}  // namespace

ProgramModule prepare(const Calibrated& calibrated, const QatOptions& options) {
  ProgramModule module(*calibrated.model);
  const Program& program = module->program();
  for (const LayerPlan& layer : calibrated.plan.layers) {
    if (layer.method == "float" || module->weight_quantizers().count(layer.tensor))
      continue;
    const auto codes = calibrated.weights.find(layer.tensor);
    if (codes == calibrated.weights.end()) {
      throw Error(
          error(StatusCode::failed_precondition, "[prepare] ", layer.tensor,
                ": planned as ", to_string(layer.scheme.weight),
                ", so it needs codes to start from; found none; calibrate first"));
    }
    FakeQuantize quantizer(layer.scheme.weight, layer.rule);
    quantizer->set_levels(codes->second);
    if (options.learn_weight_scale) {
      quantizer->learn_scale();
      if (options.learn_zero_point && has_integer_zeros(layer.scheme.weight))
        quantizer->learn_zero_point();
      if (options.learn_zero_point && has_plain_minima(layer.scheme.weight))
        quantizer->learn_minimum();
    }
    const torch::Tensor start = start_of(module->parameter(layer.tensor), codes->second);
    module->set_parameter(layer.tensor,
                          options.squash_weights ? quantizer->squash(start) : start);
    module->quantize_weight(layer.tensor, quantizer);
  }
  for (const auto& [value, scheme] : calibrated.activations) {
    if (only_moves_codes(program, value)) continue;
    module->quantize_value(value, activation_quantizer(scheme, options));
  }
  for (const auto& [layer, scheme] : calibrated.layer_inputs) {
    module->quantize_input(owner_of(program, layer)->name,
                           activation_quantizer(scheme, options));
  }
  // Where a layer reads integers its bias is a whole multiple of s_x * s_w: coarse for
  // 4-bit codes, so training has to see it. An lstm's stays float.
  for (const LayerPlan& layer : calibrated.plan.layers) {
    const Node* node = program.find(layer.node);
    const bool codes = !calibrated.activations.empty() ||
                       (layer.scheme.input && !layer.scheme.input->dynamic);
    if (codes && layer.method != "float" && node != nullptr &&
        !node->parameter("bias").empty()) {
      module->round_bias(layer.node);
    }
  }
  quantize_attention(module, options.kv);
  choose_trained(module, options.trained);
  return module;
}

Calibrated finish(ProgramModule module, const Calibrated& before) {
  Calibrated result = before;
  Artifact trained = *before.model;
  for (const Node& node : trained.program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      const auto tensor = trained.tensors.find(name);
      if (tensor != trained.tensors.end()) {
        tensor->second = as_before(module->parameter(name), tensor->second);
      }
    }
  }
  for (const auto& [name, quantizer] : module->weight_quantizers()) {
    const torch::Tensor weight = module->parameter(name);
    CodedMatrix coded = quantizer->coded(weight);
    Calibrated::Account& account = result.accounts[name];
    const torch::Tensor seen = quantizer->seen(weight);
    account.error = relative_error(seen, coded);
    Tensor& kept = trained.tensors.at(name);
    if (quantizer->squashes()) kept = as_before(seen, kept);
    // Calibration's figures were of another weight.
    account.output_error = account.rtn_error = account.rtn_output_error = -1;
    account.note = "trained with quantization in the loop";
    for (LayerPlan& layer : result.plan.layers) {
      if (layer.tensor == name)
        layer.method = quantizer->learns_scale() ? "lsq" : "straight-through";
    }
    result.weights[name] = std::move(coded);
  }
  for (const auto& [value, quantizer] : module->value_quantizers()) {
    if (before.activations.count(value))  // else a cache's: the states hold its scheme
      result.activations[value] = quantizer->activation();
  }
  for (const Node& node : module->program().nodes) {  // in order, so chains follow
    const auto output = result.activations.find(node.outputs[0]);
    if (output == result.activations.end() ||
        !only_moves_codes(module->program(), output->first)) {
      continue;
    }
    const auto input = result.activations.find(node.inputs[0]);
    if (input != result.activations.end()) output->second = input->second;
  }
  for (const auto& [name, quantizer] : module->input_quantizers()) {
    const std::string reader = reader_layer(*module->program().find(name));
    result.layer_inputs[reader] = quantizer->activation();
    for (LayerPlan& layer : result.plan.layers) {
      if (layer.node == reader) layer.scheme.input = quantizer->activation();
    }
  }
  for (auto& [value, scheme] : result.plan.activations)
    scheme = result.activations.at(value);
  result.model = std::make_shared<const Artifact>(std::move(trained));
  return result;
}

}  // namespace nibble
