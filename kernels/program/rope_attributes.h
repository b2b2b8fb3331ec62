// What a rope node's attributes say: ops/rope/rope.h's RopeShape.
//
//   head_dim, theta                             always
//   scaling ("linear" or "llama3"), factor      a stretched context; absent: none
//   low_frequency_factor, high_frequency_factor, original_context     llama3
//
// Allocates a string. Safe to call from any thread.
#pragma once

#include "kernels/ops/rope/rope.h"
#include "kernels/program/program.h"

namespace nibble {

// The node has passed check_shapes.
RopeShape rope_shape(const Node& node);
std::map<std::string, Attribute> rope_attributes(const RopeShape& shape);

// Is every number there and sane? invalid_argument, naming the node and the attribute.
Status check_rope(const Node& node);

}  // namespace nibble
