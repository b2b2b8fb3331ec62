#include "ptq/calibration/sharded_hessian.h"

namespace nibble {

Hessian& ShardedHessian::shard() {
  if (open_.empty()) open_.emplace_back(columns_, device_);
  return open_.front();
}

void ShardedHessian::end_shard() {
  Hessian made = std::move(shard());
  open_.clear();
  made.to_cpu();
  // The first rank's shards come first in the order of the sum: it can add at once.
  if (ranks_.is_first() && !ended_.empty()) {
    ended_.front().add(made);
  } else {
    ended_.push_back(std::move(made));
  }
}

Hessian ShardedHessian::finish() { return ranks_.sum(std::move(ended_), columns_); }

}  // namespace nibble
