// A model's float tensors as calibration reads them: from where they lie (a mapped file,
// whose pages go back behind the reader), with the factors of transforms applied on the
// way. So a transform needs no second copy of the model.
//
// Factors are applied in the order in which they came, each as scale_channels does
// (kernels/program/edits/scale_channels.h), so that a value is the same to the bit.
//
// Throws nibble::Error; not_found: no float tensor of this name. Reading is safe from
// several threads while nobody calls scale.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/program/edits/scale_channels.h"

namespace nibble {

class ModelWeights {
 public:
  explicit ModelWeights(const Artifact& model) : model_(model) {}  // outlives this

  // Shape and type as they are stored.
  const Tensor& stored(const std::string& name) const;
  // All values, f32 in the tensor's shape; of integers as they are.
  at::Tensor value(const std::string& name) const;
  at::Tensor matrix(const std::string& name) const;  // [rows, cols]
  void read(const std::string& name, float* values) const;
  // The rows `ids` (int64, any shape) of an embedding's table, which no factor touches:
  // [ids..., features]. read_row: whence a row comes; empty: from the model.
  at::Tensor rows(
      const std::string& name, const at::Tensor& ids,
      const std::function<void(int64_t row, float* values)>& read_row = {}) const;

  // makers' rows divided, readers' columns multiplied.
  void scale(ChannelScaling scaling);
  // The tensors that factors have touched, as f32 in memory: those that `wanted` names
  // true.
  template <class Wanted>
  std::map<std::string, Tensor> scaled(const Wanted& wanted) const {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, factors] : factors_) {
      if (wanted(name)) tensors[name] = in_memory(name);
    }
    return tensors;
  }

 private:
  struct Factor {
    bool divides_rows;
    std::shared_ptr<const ChannelScaling> scaling;
  };
  Tensor in_memory(const std::string& name) const;

  const Artifact& model_;
  std::map<std::string, std::vector<Factor>> factors_;  // by tensor
};

}  // namespace nibble
