// Opens what a person calls a model: a Hugging Face directory, a nibble artifact, a llama2.c
// .bin, a ResNet's or MLP's safetensors. One entry for every verb that takes MODEL.
//
// unsupported: a pickle (.bin/.pt/.th with PK or 0x80 at its start; says how to convert), an
// unknown architecture (lists the known ones). not_found, data_loss, invalid_argument: names
// the file or tensor. A checkpoint with a NaN weight is refused (out_of_range).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"

namespace nibble {

struct LoadOptions {
  std::filesystem::path tokenizer;  // for files that carry none
  std::string architecture;         // "" = config.json, else guessed from names and shapes
  // For a directory with config.json but no weights (nibble train, recipe float): initialise.
  bool initialise = false;
  uint64_t seed = 1;
};
Result<Artifact> load_model(const std::filesystem::path& path, const LoadOptions& options);

// One row of architectures.inc.
struct ModelArchitecture {
  const char* name;  // "LlamaForCausalLM"
  // config.json text -> Program; tensors: for what config does not say (may be empty)
  Result<Program> (*program)(const std::string& config_json,
                             const std::map<std::string, Tensor>& tensors);
  // Is this certainly my checkpoint, by tensor names and shapes?
  bool (*recognises)(const std::map<std::string, Tensor>& tensors);
};
const std::vector<ModelArchitecture>& all_architectures();

// Shapes of every parameter of a program; used by check_artifact and initialisation.
Result<std::map<std::string, std::vector<int64_t>>> parameter_shapes(const Program& program,
                                                                     const std::string& config_json);

}  // namespace nibble
