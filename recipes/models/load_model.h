// Opens what a person calls a model: a Hugging Face directory, a nibble artifact, a GGUF,
// a llama2.c .bin, a ResNet's or MLP's safetensors. One entry for every verb that takes
// MODEL.
//
// unsupported: a pickle (.bin/.pt/.th with PK or 0x80 at its start; says how to convert),
// an unknown architecture (lists the known ones). not_found, data_loss,
// invalid_argument: names the file or tensor. A checkpoint with a NaN weight is refused
// (out_of_range), one with a tensor that its architecture does not use as well.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"

namespace nibble {

struct LoadOptions {
  // For models that carry none: a tokenizer file (told apart by content) or a directory.
  std::filesystem::path tokenizer;
  std::string architecture;  // "" = config.json, else guessed from names and shapes
  std::vector<std::string> sizes;  // NAME=N: open sizes of an ONNX graph's inputs
  // For a directory with config.json but no weights (nibble train, recipe float):
  // initialise.
  bool initialise = false;
  uint64_t seed = 1;
};
Result<Artifact> load_model(const std::filesystem::path& path,
                            const LoadOptions& options);

}  // namespace nibble
