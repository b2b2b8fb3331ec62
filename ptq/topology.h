// Where a factor per channel can move from one layer to the next: derived from the
// Program.
//
// A group is a value, what makes it, and every layer that reads it. Its channels can be
// divided by any positive factors in the maker when the readers' columns are multiplied
// by the same (kernels/program/edits/scale_channels.h), because all that lies between
// passes a factor on:
//
//   norm -> linear, moe              the norm's weight (and bias)
//   v_proj -> attention -> o_proj    a value head serves several query heads
//   up_proj -> silu_mul -> down_proj
//   linear or conv2d -> [relu] -> linear or conv2d (groups 1)
//
// There is no group where anything else reads the value (a residual add), where the value
// is an output of the model, or where a weight serves two nodes (tied).
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"
#include "ptq/plan.h"

namespace nibble {

struct ScaleGroup {
  std::string value;                 // what the readers read
  std::vector<std::string> makers;   // tensors whose rows make its channels
  std::vector<std::string> readers;  // weights whose columns read it
  int64_t channels = 0;
  std::vector<int64_t> channel_of_column;  // a reader's column -> channel
  bool convolution = false;  // a maker or reader is one: the value is no [.., features]
};
// In program order of the makers.
std::vector<ScaleGroup> scale_groups(const Program& program,
                                     const std::map<std::string, Tensor>& tensors);

// Those that a plan's transform finds factors for: a reader is quantized, for smoothquant
// its inputs too; in the order in which their values are first read. No convolutions;
// none at all for a transform that edits the whole model. invalid_argument: smoothquant,
// and there is none.
Result<std::vector<ScaleGroup>> groups_to_scale(
    const std::string& transform, const Plan& plan, const Program& program,
    const std::map<std::string, Tensor>& tensors);
// Does a ReLU alone read what the node makes?
bool feeds_a_relu_alone(const Program& program, const Node& node);
// The tensors of these groups, of all the plan's transforms: they become f32.
std::set<std::string> scaled_tensors(const Plan& plan, const Program& program,
                                     const std::map<std::string, Tensor>& tensors);

}  // namespace nibble
