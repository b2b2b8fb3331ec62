// What will be done to every layer: one checked scheme and method per named layer, before
// anything heavy starts. recipes/recipe makes a Plan from YAML; ptq and qat carry it out.
// No LibTorch here.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct GptqOptions {
  double damping =
      0.01;  // fraction of the mean diagonal (GPTQ, arXiv 2210.17323, sec. 3.3)
  int damping_attempts = 5;  // each failed Cholesky multiplies damping by 10
  bool act_order = true;     // columns by falling Hessian diagonal
  bool group_aware = false;  // act_order: whole groups by their mean, columns inside them
  bool static_groups =
      true;  // a group's scale is found before the solve, in original order
  bool quantized_prefix = true;  // a layer sees the outputs of the already quantized ones
  bool match_float =
      true;  // with the prefix: aim at the float model's outputs, not the prefix's
  int refine_sweeps = 10;  // descent over single codes after the column solve; 0: none
  int refine_scales = 2;   // rounds of refined scales, each with such a descent after it
};

// AutoRound, arXiv 2309.05516, sec. 4.1; its batch and steps.
struct AutoRoundOptions {
  int iterations = 200;
  int64_t batch = 8;           // samples a step
  double learning_rate = 0;    // of signed descent, in codes; 0: 1 / iterations
  std::string start = "gptq";  // where it starts: gptq, imatrix or rtn (the paper's)
};

// AdaRound, arXiv 2004.10568 (ptq/methods/adaround.h).
struct AdaRoundOptions {
  int iterations = 2000;        // of Adam (the paper: 10,000)
  double learning_rate = 0.01;  // of V
  double regularization = 1;    // lambda, in the price of moving a weight by a code
  int64_t rows = 16384;         // where a ReLU follows: inputs of the layer that are kept
  int64_t batch = 512;          // of them, in a step
};

// Mixed precision: each quantized layer takes one of the schemes, so that the foretold
// loss (ptq/calibration/sensitivity.h) is least under a budget of the sum of costs.
// What each scheme costs each tensor, foretold. Runs that differ in the budget alone
// share it.
using MixedLosses = std::map<std::string, std::vector<double>>;
struct MixedOptions {
  // Sequences (samples of 16 images) that gradients are taken of: enough for a mean of
  // squares.
  static constexpr int64_t kGradientSamples = 32;
  std::vector<QuantScheme> schemes;                  // none: every layer as it is planned
  std::map<std::string, std::vector<double>> costs;  // by tensor, one a scheme
  double budget = 0;                                 // in the unit of the costs
  std::string unit;                                  // "bits", "ms": for messages
  std::shared_ptr<MixedLosses>
      losses;  // empty: the run that finds it so fills it; or none
};

struct LayerPlan {
  std::string node;    // the layer's name: its node's, or an expert's module path
  std::string tensor;  // its weight's name
  LayerScheme scheme;  // weight scheme; input scheme (static: scale found by calibration)
  std::string method;  // a row of ptq/methods/methods.inc ("rtn", "gptq"), or "float"
  ScaleRule rule;
  std::string reason;  // why, for "float"
  int64_t rank = 0;    // of its low-rank compensation; 0: none
  // Of a layer that reads floats where the plan's other layers read static codes: why.
  std::string input_reason;
};

struct Plan {
  // Every layer of the program, in program order, floats too: one row a weight tensor (a
  // tied embedding and lm_head are one row, under the first node that names the tensor).
  std::vector<LayerPlan> layers;
  // Values that get an activation scheme (static: scale found by calibration), by name.
  // Empty with static layer inputs: a net of floats whose layers alone read codes, each
  // with a scheme of its own (kernels/runtime/integer_layer.h).
  std::map<std::string, ActivationScheme> activations;
  std::string observer = "minmax";  // a row of observers.inc: minmax, mse
  // The images' codes are their bytes: scale 1/255, whatever the observer would find. The
  // model must read bytes / 255 (prepare_for_plan).
  bool byte_images = false;
  // Images whose mean error is taken out of the biases (calibration/bias_correction.h).
  int64_t bias_correction = 0;
  // Images on which convolutions' channels get the float net's mean and variance (there).
  int64_t batch_norm_reestimation = 0;
  // Edits of the float model before anything is solved, in this order: rows of
  // ptq/methods/transforms.inc ("awq", "smoothquant").
  std::vector<std::string> transforms;
  double smoothquant_alpha = 0;  // 0: searched for each group of readers
  double equalize_alpha = 0.7;   // ptq/methods/equalize.cpp
  GptqOptions gptq;
  AutoRoundOptions autoround;
  AdaRoundOptions adaround;
  MixedOptions mixed;
  // Low-rank compensation (LayerPlan::rank, ptq/calibration/low_rank.h) minimises the
  // error of the layer's outputs on the calibration data; false: of its weight, which
  // needs none.
  bool low_rank_on_outputs = true;
  int64_t calibration_sequences = 128;
  int64_t calibration_length = 512;  // tokens a sequence
  // A method that looks at inputs needs this many of an expert's tokens, or it fails and
  // names the expert. 0: experts of fewer than kFewTokens are rounded to nearest instead,
  // and the ledger says so.
  static constexpr int64_t kFewTokens = 32;
  int64_t minimum_tokens_per_expert = kFewTokens;
  const LayerPlan* find(const std::string& tensor) const;
  // Does finding its codes or factors look at calibration inputs?
  bool needs_inputs(const LayerPlan& layer) const;
  bool has_low_rank() const;
  // Does a layer's method aim at the float model's outputs, so that both models run?
  bool follows_float() const;
};

// Every layer of the program has exactly one row; methods and observers exist and can do
// what is asked of them; static activations are per tensor. invalid_argument, naming the
// layer.
Status check_plan(const Plan& plan, const Program& program);

// The method names that a recipe may use ("rtn", "gptq", "float"), and the observers.
std::vector<std::string> method_names();
std::vector<std::string> observer_names();
bool method_needs_inputs(const std::string& name);  // false: it looks at the weight alone
// Can it solve this node's weights? One that needs no inputs can solve any.
bool method_solves(const std::string& method, const Node& node);
std::string solvable_by(const std::string& method);  // "linear layers", for messages
// Every transform looks at calibration data.
std::vector<std::string> transform_names();
// For add_method (ptq/methods/method.h), which a program calls that brings its own
// method. invalid_argument: the name is taken.
Status add_method_name(const std::string& name, bool needs_inputs);

// The program that plans are made for: batch norms folded into the convolutions before
// them where fold is true, else the model as it is; with byte_images the normalization of
// images folded into the first layer (kernels/program/edits/fold_normalization.h).
// make_plan, calibrate and freeze all take this one; its ledger says where the folded
// tensors went.
Result<Artifact> prepare_for_plan(const Artifact& model, bool fold,
                                  bool byte_images = false);

// Ends that the integer path can have: one image in, one value out.
bool has_integer_ends(const Program& program);
// The values that need a static scheme for the integer path
// (kernels/runtime/integer_node.h): images and sums signed, what a ReLU made unsigned; a
// value that only a ReLU reads has none (fused), nor has the last layer's output;
// shortcut_pad and flatten repeat their input's. unsupported: an op that has no integer
// form (names the node); a batch norm: fold it first.
Result<std::map<std::string, ActivationScheme>> integer_activations(
    const Program& program, const QuantScheme& signed_scheme,
    const QuantScheme& unsigned_scheme);

}  // namespace nibble
