// From a float Artifact and a Plan to codes: calibration, observers and methods, block by
// block.
//
// calibrate() moves every sample forward node by node (ptq/stream.h) and solves a
// layer as soon as its inputs are there: with plan.gptq.quantized_prefix they come from
// the layers already quantized. Layers that read one value share one Hessian. Each node
// runs once a sample (twice with match_float, which also follows the float model), and a
// block's weights are in memory only while it runs. Deterministic at any thread count:
// samples run in parallel with one intra-op thread each, and what is summed is summed in
// a fixed order.
//
// A moe node's experts are solved on the tokens that are routed to them, by the router's
// choice in the model as it is quantized so far; fewer tokens than
// plan.minimum_tokens_per_expert are failed_precondition, naming the expert.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/program/edits/low_rank.h"
#include "ptq/plan.h"
#include "ptq/progress.h"

namespace nibble {

// Token sequences (each of at most plan.calibration_length ids), preprocessed images, or
// the values of every input that a net reads.
struct CalibrationData {
  std::vector<std::vector<int32_t>> sequences;
  Tensor images;            // f32 [count, channels, height, width]; empty for text
  std::map<std::string, Tensor> values;  // by input, f32 in its own shape, batch = count
  std::string description;  // for provenance: name, count, SHA-256
  std::string device =
      "cpu";  // where samples run, LibTorch's name; the same code anywhere
  bool empty() const {
    return sequences.empty() && images.numel() == 0 && values.empty();
  }
};

// A model whose every planned layer has its codes and every planned value its scale: the
// only thing that freeze accepts. QAT returns one too.
struct Calibrated {
  std::shared_ptr<const Artifact>
      model;  // float; after QAT: the trained floats; batch norms folded where the plan
              // quantizes convolutions
  Plan plan;  // schemes with their calibrated scales
  std::map<std::string, CodedMatrix> weights;            // by tensor name
  std::map<std::string, LowRankFactors> low_rank;        // likewise, beside them
  std::map<std::string, ActivationScheme> activations;   // by value name
  std::map<std::string, ActivationScheme> layer_inputs;  // by layer name
  struct Account {
    int64_t tokens = 0;
    double error = 0;
    double output_error = -1;
    double rtn_error = -1, rtn_output_error = -1;  // LedgerEntry's
    std::string note;
  };
  std::map<std::string, Account> accounts;  // by tensor name
  std::string calibration;                  // CalibrationData::description
};

// failed_precondition: a method needs data and there is none; fewer sequences than
// planned (says how many). Throws nibble::Error.
Calibrated calibrate(std::shared_ptr<const Artifact> model, const Plan& plan,
                     const CalibrationData& data, const Progress& progress,
                     const BlockProgress& block_done = {});

// The only step from tensors to bytes: packs, fills layer schemes and the ledger, and
// fails when a parameter is not accounted for.
Artifact freeze(const Calibrated& calibrated, const Provenance& provenance);

}  // namespace nibble
