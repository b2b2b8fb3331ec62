// Where the batch of a net's value is: the one size of its shape that is no number. It
// may be any axis (a recurrent state is [2, batch, 128]).
#pragma once

#include <string>

#include "kernels/program/program.h"

namespace nibble {

inline bool is_open_size(const std::string& size) {
  return size.find_first_not_of("0123456789") != std::string::npos;
}

// -1: the shape has no open size.
inline int batch_axis(const ProgramValue& value) {
  for (size_t i = 0; i < value.shape.size(); ++i) {
    if (is_open_size(value.shape[i])) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace nibble
