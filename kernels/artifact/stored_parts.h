// The tensors that one packed weight becomes in a safetensors file: names, types, shapes.
//
//   X.codes             U8 [rows, ceil(cols * bits / 8)]
//   X.scale, X.scale1   one a level, innermost first; X.zero_point or X.minimum alike.
//                       dtype of the element and [level rows, level cols]; elements of
//                       fewer than 8 bits: U8 [level rows, ceil(level cols * bits / 8)]
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct StoredPart {
  enum class Kind : uint8_t { codes, scale, offset } kind = Kind::codes;
  size_t level = 0;  // of scale and offset
  std::string name;
  DType dtype = DType::u8;
  std::vector<int64_t> shape;
};
std::vector<StoredPart> stored_parts(const std::string& weight, const QuantScheme& scheme,
                                     int64_t rows, int64_t cols);
const Bytes& part_bytes(const PackedTensor& packed, const StoredPart& part);

// Moves the parts of one packed weight out of `stored`. data_loss: a part is missing or of
// another type or shape, or the sizes make no sense.
struct ManifestWeight;  // manifest.h
Result<PackedTensor> take_packed(const std::string& name, const ManifestWeight& weight,
                                 std::map<std::string, Tensor>& stored);

}  // namespace nibble
