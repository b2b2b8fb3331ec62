// Which ops only move or choose the values they read: their output has the codes and the
// scale of their first input.
#pragma once

#include "kernels/program/program.h"

namespace nibble {

inline bool moves_codes(const Node& node) {
  return node.op == "shortcut_pad" || node.op == "flatten" || node.op == "max_pool";
}

}  // namespace nibble
