// freeze(): the only step from tensors to bytes.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "ptq/calibration/artifact_sink.h"
#include "ptq/error.h"
#include "ptq/stream.h"
#include "ptq/topology.h"

namespace nibble {
namespace {

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[freeze] ", parts...));
}

// A dtype as a scheme prints it: BF16 -> "bf16".
std::string dtype_text(DType dtype) {
  std::string text = dtype_name(dtype);
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return text;
}

void check_activation(const std::string& where, const ActivationScheme& activation) {
  if (activation.dynamic) return;
  if (!(activation.scale > 0) || !std::isfinite(activation.scale)) {
    throw failure(StatusCode::failed_precondition, where,
                  ": a static activation needs a finite, positive scale; found ",
                  activation.scale, "; calibrate first");
  }
}

// Why a parameter that is no layer stays float; "" when there is no reason to leave it
// so.
std::string float_reason(const Node& node, const std::string& role) {
  if (role == "bias" && node.op != "batch_norm") return "bias";
  if (node.op == "rms_norm" || node.op == "layer_norm") return "norm";
  if (node.op == "batch_norm") return "batch norm";
  return "";
}

class Freezer {
 public:
  explicit Freezer(const Calibrated& calibrated, ArtifactWriter* writer = nullptr)
      : calibrated_(calibrated), writer_(writer), result_(*calibrated.model) {}

  Artifact freeze(const Provenance& provenance) {
    for (const LayerPlan& layer : calibrated_.plan.layers) {
      if (layer.method == "float") {
        add_float(layer.tensor, layer.reason);
      } else if (writer_ != nullptr) {
        add_written(layer);
      } else {
        add_packed(layer);
      }
    }
    add_factors();
    for (const Node& node : result_.program.nodes) {
      for (const auto& [role, name] : node.parameters) add_parameter(node, role, name);
    }
    check_nothing_is_left();
    for (const auto& [value, activation] : calibrated_.activations) {
      check_activation(value, activation);
    }
    result_.activations = calibrated_.activations;
    result_.provenance = provenance;
    result_.provenance.calibration = calibrated_.calibration;
    write_ledger();
    if (writer_ != nullptr) {
      for (const auto& [name, values] : result_.tensors) {
        if (!writer_->has_float(name)) throw_if_error(writer_->add_float(name, values));
      }
      throw_if_error(writer_->open(result_));
    }
    return std::move(result_);
  }

 private:
  const Tensor& tensor(const std::string& name) const {
    const auto found = calibrated_.model->tensors.find(name);
    if (found == calibrated_.model->tensors.end()) {
      throw failure(StatusCode::not_found, name,
                    ": the program names it; the model has it not");
    }
    return found->second;
  }

  void add_packed(const LayerPlan& layer) {
    const auto coded = calibrated_.weights.find(layer.tensor);
    if (coded == calibrated_.weights.end()) throw not_solved(layer);
    const CodedMatrix& q = coded->second;
    LayerScheme scheme = input_of(layer);
    const auto account = calibrated_.accounts.find(layer.tensor);
    ledger_[layer.tensor] = ledger_entry(
        layer, q, account != calibrated_.accounts.end() ? account->second : LayerAccount{});
    result_.packed[layer.tensor] = value_or_throw(pack(q, tensor(layer.tensor).shape));
    result_.tensors.erase(layer.tensor);
    result_.layers[layer.tensor] = std::move(scheme);
  }

  // The same of a layer that is on disk already.
  void add_written(const LayerPlan& layer) {
    if (!writer_->has(layer.tensor)) throw not_solved(layer);
    (void)input_of(layer);
    ledger_[layer.tensor] = writer_->entry(layer.tensor);
    result_.tensors.erase(layer.tensor);
  }

  // What stands beside packed weights: nodes of their own.
  void add_factors() {
    std::map<std::string, LowRankFactors> factors;  // by node
    for (const LayerPlan& layer : calibrated_.plan.layers) {
      const auto found = calibrated_.low_rank.find(layer.tensor);
      if (found != calibrated_.low_rank.end()) {
        factors[layer.node] = found->second;
      } else if (writer_ != nullptr && layer.rank > 0 &&
                 writer_->has_float(low_rank_a(layer.node))) {
        factors[layer.node] = {
            value_or_throw(writer_->stored_float(low_rank_a(layer.node))),
            value_or_throw(writer_->stored_float(low_rank_b(layer.node)))};
      } else if (layer.rank > 0) {
        throw failure(StatusCode::failed_precondition, layer.tensor,
                      ": low-rank compensation of rank ", layer.rank,
                      " is planned, so it needs factors; found none; calibrate first");
      }
    }
    if (factors.empty()) return;
    for (const std::string& name :
         value_or_throw(insert_low_rank(result_.program, result_.tensors, factors))) {
      const Tensor& values = result_.tensors.at(name);
      ledger_[name] = {.tensor = name,
                       .scheme = dtype_text(values.dtype),
                       .method = "low_rank",
                       .reason = "",
                       .kernel = "",
                       .parameters = values.numel(),
                       .bits = static_cast<double>(values.bytes.size()) * 8,
                       .note = ""};
    }
  }

  LayerScheme input_of(const LayerPlan& layer) const {
    LayerScheme scheme = layer.scheme;
    const auto input = calibrated_.layer_inputs.find(layer.node);
    if (input != calibrated_.layer_inputs.end()) scheme.input = input->second;
    if (scheme.input) check_activation(layer.node + " input", *scheme.input);
    return scheme;
  }

  static Error not_solved(const LayerPlan& layer) {
    return failure(StatusCode::failed_precondition, layer.tensor, ": planned as ",
                   to_string(layer.scheme.weight), " by ", layer.method,
                   ", so it needs codes; found none; calibrate first");
  }

  void add_float(const std::string& name, const std::string& reason) {
    const Tensor& values = tensor(name);
    ledger_[name] = {
        .tensor = name,
        .scheme = dtype_text(values.dtype),
        .method = "float",
        .reason = reason,
        .kernel = "",
        .parameters = values.numel(),
        .bits = static_cast<double>(values.numel() * dtype_bytes(values.dtype) * 8),
        .note = note_of(name)};
  }

  std::string note_of(const std::string& name) const {
    const auto account = calibrated_.accounts.find(name);
    return account == calibrated_.accounts.end() ? "" : account->second.note;
  }

  void add_parameter(const Node& node, const std::string& role, const std::string& name) {
    if (ledger_.count(name)) return;
    const std::string reason = float_reason(node, role);
    if (reason.empty()) {
      throw failure(StatusCode::failed_precondition, name,
                    ": every parameter must be accounted for; found none for the ", role,
                    " of ", node.name, " (", node.op,
                    "); plan it, or keep it float with a reason");
    }
    add_float(name, reason);
  }

  void check_nothing_is_left() const {
    for (const auto& [name, values] : calibrated_.model->tensors) {
      if (ledger_.count(name)) continue;
      throw failure(StatusCode::failed_precondition, name,
                    ": every parameter must be accounted for; found ",
                    shape_text(values.shape),
                    " that no node of the program reads; remove it from the checkpoint");
    }
  }

  void write_ledger() {
    // The model's own entries tell where folded tensors went, and what was left out.
    for (const LedgerEntry& entry : calibrated_.model->ledger.entries) {
      if (entry.method == "folded" || entry.method == "ignored") {
        ledger_.emplace(entry.tensor, entry);
      }
    }
    result_.ledger.entries.clear();
    for (auto& [name, entry] : ledger_)
      result_.ledger.entries.push_back(std::move(entry));
    throw_if_error(check_ledger(result_.ledger, result_.program));
  }

  const Calibrated& calibrated_;
  ArtifactWriter* writer_;  // null: everything in memory
  Artifact result_;
  std::map<std::string, LedgerEntry> ledger_;
};

}  // namespace

Artifact freeze(const Calibrated& calibrated, const Provenance& provenance) {
  return Freezer(calibrated).freeze(provenance);
}

Artifact freeze(const Calibrated& calibrated, const Provenance& provenance,
                ArtifactWriter& writer) {
  return Freezer(calibrated, &writer).freeze(provenance);
}

ArtifactWriter::Outline outline_of(const Plan& plan, const Artifact& model) {
  ArtifactWriter::Outline outline;
  const std::set<std::string> scaled = scaled_tensors(plan, model.program, model.tensors);
  for (const auto& [name, tensor] : model.tensors) {
    const LayerPlan* layer = plan.find(name);
    if (layer != nullptr && layer->method != "float") {
      outline.packed[name] = {layer->scheme.weight, tensor.shape};
    } else {
      outline.floats[name] = {scaled.count(name) ? DType::f32 : tensor.dtype,
                              tensor.shape};
    }
  }
  for (const LayerPlan& layer : plan.layers) {
    const auto weight = model.tensors.find(layer.tensor);
    if (layer.rank == 0 || weight == model.tensors.end()) continue;
    outline.floats[low_rank_a(layer.node)] = {DType::bf16,
                                              {layer.rank, weight->second.cols()}};
    outline.floats[low_rank_b(layer.node)] = {DType::bf16,
                                              {weight->second.rows(), layer.rank}};
  }
  return outline;
}

}  // namespace nibble
