#include "qat/batch_norm.h"

#include <cmath>

#include "kernels/program/edits/fold_batch_norm.h"
#include "ptq/error.h"

namespace nibble {
namespace {

using Factors = std::map<std::string, std::vector<double>>;

std::vector<float> floats_of(const Artifact& model, const std::string& name) {
  const auto found = model.tensors.find(name);
  if (found == model.tensors.end()) {
    throw Error(error(StatusCode::not_found, "[batch norm] ", name,
                      ": this tensor was required; the model has none by this name"));
  }
  return value_or_throw(to_float(found->second));
}

// |g| of the batch norm that the fold takes into each weight, by the weight's name.
Factors factors_of(const Artifact& model) {
  Factors factors;
  for (const Node& norm : model.program.nodes) {
    if (norm.op != "batch_norm") continue;
    const Node* layer = model.program.producer(norm.inputs[0]);
    if (layer == nullptr || layer->parameter("weight").empty()) continue;
    const std::vector<float> gamma = floats_of(model, norm.parameter("weight")),
                             variance = floats_of(model, norm.parameter("running_var"));
    std::vector<double>& g = factors[layer->parameter("weight")];
    const double epsilon = norm.number("epsilon", 0);
    for (size_t o = 0; o < gamma.size(); ++o) {
      // A channel that the norm shut keeps a scale: its weights fold to zeros.
      g.push_back(std::max(std::abs(gamma[o]) / std::sqrt(variance[o] + epsilon), 1e-8));
    }
  }
  return factors;
}

// Each row's scales times (or over) its factor.
void scale_rows(const std::string& tensor, CodedMatrix& levels,
                const std::vector<double>& factors, bool up) {
  const ScaleLevel& level = levels.scheme.scales[0];
  const bool rows = level.block.kind == Block::Kind::row;
  if (!levels.scheme.offsets.empty() || levels.scheme.scales.size() != 1 ||
      (!rows && level.block.kind != Block::Kind::group)) {
    throw Error(error(StatusCode::unsupported, "[batch norm] ", tensor,
                      ": one symmetric scale a row or group was required to train with "
                      "batch norms; found '",
                      to_string(levels.scheme),
                      "'; set qat.batch_norm.epochs=0 or another scheme"));
  }
  const int64_t per_row =
      rows ? 1 : (levels.cols + level.block.cols - 1) / level.block.cols;
  std::vector<float>& values = levels.scales[0].values;
  for (size_t i = 0; i < values.size(); ++i) {
    const double factor = factors[i / static_cast<size_t>(per_row)];
    values[i] = round_to_element(
        level.element, static_cast<float>(up ? values[i] * factor : values[i] / factor));
  }
}

// Nearest codes of the model's own weights under the levels.
void code_again(const Artifact& model, const std::string& tensor, CodedMatrix& levels) {
  const std::vector<float> weight = floats_of(model, tensor);
  throw_if_error(quantize({weight.data(), levels.rows, levels.cols}, levels));
}

// `calibrated` with another model's weights, scales moved over the norms.
Calibrated moved(const Calibrated& calibrated, std::shared_ptr<const Artifact> model,
                 const Factors& factors, bool up) {
  Calibrated result = calibrated;
  result.model = std::move(model);
  for (auto& [tensor, codes] : result.weights) {
    const auto found = factors.find(tensor);
    if (found != factors.end()) scale_rows(tensor, codes, found->second, up);
    code_again(*result.model, tensor, codes);
  }
  return result;
}

}  // namespace

ProgramModule prepare_with_norms(const Artifact& model, const Calibrated& calibrated,
                                 const QatOptions& options) {
  const Calibrated unfolded = moved(calibrated, std::make_shared<const Artifact>(model),
                                    factors_of(model), /*up=*/false);
  return prepare(unfolded, options);
}

Calibrated fold_trained(ProgramModule module, const Artifact& model,
                        const Calibrated& before) {
  Calibrated unfolded = before;
  unfolded.model = std::make_shared<const Artifact>(model);
  unfolded = finish(std::move(module), unfolded);
  FoldedModel folded =
      value_or_throw(fold_batch_norm(unfolded.model->program, unfolded.model->tensors));
  auto artifact = std::make_shared<Artifact>(*before.model);
  artifact->program = std::move(folded.program);
  artifact->tensors = std::move(folded.tensors);
  return moved(unfolded, std::move(artifact), factors_of(*unfolded.model), /*up=*/true);
}

}  // namespace nibble
