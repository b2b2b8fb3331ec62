// A RowSample over samples that are cut into a fixed number of shards (ptq/distributed):
// the same rows in the same order, whichever rank draws which shard's.
#pragma once

#include <vector>

#include "ptq/distributed/ranks.h"
#include "ptq/methods/row_sample.h"

namespace nibble {

class ShardedRows {
 public:
  // limit: RowSample's, of all shards together.
  ShardedRows(Ranks& ranks, int64_t limit) : ranks_(ranks), limit_(limit) {}

  // Of this rank's shards, in their order: rows are added to it, then end_shard.
  RowSample& shard(int index);
  void end_shard(int index);
  // All shards' rows, shuffled, on every rank. Collective.
  RowSample finish();

 private:
  at::Tensor shared(at::Tensor rows, int from);

  Ranks& ranks_;
  int64_t limit_;
  std::vector<RowSample> drawn_;  // the last one is open until its shard ends
  int open_ = -1;                 // its shard; -1: none
};

}  // namespace nibble
