// Where values enter and leave the executor: a program's inputs that are read and its
// outputs.
//
// A net's value is floats with one open size, the batch, at any axis. A decoder has one
// input, ids, and one output, made by its last node.
//
// Errors name the value, what was required and what was found. Safe to call from any
// thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/program/shape.h"
#include "kernels/runtime/executor.h"

namespace nibble {

struct NetPort {
  std::string name;
  int slot = -1;
  std::vector<int64_t> shape;  // the batch is kUnknownSize
  int64_t features = 0;        // of a row of the batch
};

// unsupported: the program's ends are not as above. shapes: of its values.
Status check_ends(const Program& program, const Shapes& shapes);

// The batch that the inputs agree on. invalid_argument: one is missing, there twice,
// unknown, or of another shape or number of values.
Result<int64_t> net_batch(const Program& program, std::span<const NetPort> ports,
                          std::span<const NetInput> inputs);

}  // namespace nibble
