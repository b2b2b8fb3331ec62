// The architectures that nibble knows: config.json -> Program, one row of
// architectures.inc each.
//
// Where a checkpoint carries no config.json (a ResNet's safetensors), `config` writes one
// from names and shapes, so that all that follows reads config.json alone. unsupported:
// config.json asks for something that the architecture here cannot do (named).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct ModelArchitecture {
  const char* name;  // as config.json's "architectures" has it: "LlamaForCausalLM"
  const char*
      model_type;  // config.json's "model_type", for files without "architectures"
  Result<Program> (*program)(const std::string& config_json);
  // Is this certainly my checkpoint, by tensor names and shapes?
  bool (*recognises)(const std::map<std::string, Tensor>& tensors);
  // config.json for tensors that come without one; nullptr when they do not say enough.
  Result<std::string> (*config)(const std::map<std::string, Tensor>& tensors);
  // Tensors that checkpoints of this architecture may carry and no node reads.
  bool (*ignores)(const std::string& tensor, const Program& program);
};
const std::vector<ModelArchitecture>& all_architectures();
// unsupported: lists the known names.
Result<const ModelArchitecture*> find_architecture(const std::string& name);

#define NIBBLE_ARCHITECTURE(name, model_type, prefix)                                \
  Result<Program> prefix##_program(const std::string& config_json);                  \
  bool prefix##_recognises(const std::map<std::string, Tensor>& tensors);            \
  Result<std::string> prefix##_config(const std::map<std::string, Tensor>& tensors); \
  bool prefix##_ignores(const std::string& tensor, const Program& program);
#include "recipes/models/architectures.inc"
#undef NIBBLE_ARCHITECTURE

}  // namespace nibble
