// A Hessian over samples that are cut into a fixed number of shards (ptq/distributed): the
// same sum, to the bit, whichever rank makes which shard.
#pragma once

#include <vector>

#include "ptq/distributed/ranks.h"

namespace nibble {

class ShardedHessian {
 public:
  // device: of the inputs; the sum is on the CPU.
  ShardedHessian(Ranks& ranks, int64_t columns, at::Device device)
      : ranks_(ranks), columns_(columns), device_(device) {}

  // Of this rank's shards, in their order: accumulate into it, then end_shard.
  Hessian& shard();
  void end_shard();
  // The sum over all ranks' shards, on every rank; at least one shard ended on each.
  Hessian finish();

 private:
  Ranks& ranks_;
  int64_t columns_;
  at::Device device_;
  std::vector<Hessian> ended_;  // on the first rank one: their sum
  std::vector<Hessian> open_;   // none or one
};

}  // namespace nibble
