// The shapes that a program's graph needs: of every parameter and of every value.
//
// Walks the nodes with each op's shape rule. A size that the graph does not say (a
// linear's rows, a convolution's channels and kernel) comes from the attributes in <> of
// ops.inc or, where a node lacks them, from the parameter's own shape.
//
// invalid_argument: a parameter's shape is not what its node needs, or two values do not
// fit (names the tensor or node, what was required, what was found). not_found: a
// parameter is not among `given`. Safe to call from any thread.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/program/program.h"

namespace nibble {

using Shapes = std::map<std::string, std::vector<int64_t>>;

inline constexpr int64_t kUnknownSize = -1;  // "batch", "sequence"

// Parameter shapes, by tensor name, from the graph alone: for initialisation.
// invalid_argument when an attribute that says a size is missing.
Result<Shapes> parameter_shapes(const Program& program);

// Are the shapes of the tensors (given, by tensor name) what the graph needs? Tensors
// that the program does not name are not looked at. values (may be null) receives each
// value's shape.
Status check_shapes(const Program& program, const Shapes& given,
                    Shapes* values = nullptr);

}  // namespace nibble
