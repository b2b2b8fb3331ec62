// One choice for each layer, so that the sum of losses is least under a budget of the sum
// of costs: a knapsack with one item of each group, solved exactly.
//
//   min sum_l loss[l][c_l]   subject to   sum_l cost[l][c_l] <= budget
//
// Layers are taken in one after the other; of all partial sums only those are kept that
// no other beats in both cost and loss. Where more than kMostSums remain, of those within
// budget / kMostSums of each other the one of least loss is kept, so the answer may then
// use up to that much less of the budget per layer than the best one.
//
// failed_precondition: the cheapest choices exceed the budget (the message has their
// sum).
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

struct LayerChoice {
  double cost = 0;
  double loss = 0;
};
inline constexpr size_t kMostSums = 1 << 14;

Result<std::vector<size_t>> allocate(const std::vector<std::vector<LayerChoice>>& layers,
                                     double budget);

}  // namespace nibble
