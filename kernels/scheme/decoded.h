// What a format's reader found, by checkpoint tensor name: quantized weights as one code a byte
// with their levels, everything else as it is stored.
//
// A format that keeps levels multiplied out gives one level where the artifact had two:
// export/exporter.h's check_decoded compares meaning, not text.
#pragma once

#include <map>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct Decoded {
  std::string config_json;
  std::map<std::string, CodedMatrix> coded;
  std::map<std::string, Tensor> floats;  // and biases that the format stores as i32
};

}  // namespace nibble
