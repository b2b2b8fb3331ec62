#include "ptq/calibration/sharded_rows.h"

#include <ATen/ATen.h>

#include <array>
#include <cstring>

namespace nibble {

RowSample& ShardedRows::shard(int index) {
  if (open_ != index) drawn_.emplace_back(limit_, static_cast<uint64_t>(index) + 1);
  open_ = index;
  return drawn_.back();
}

void ShardedRows::end_shard(int index) {
  shard(index).join();
  open_ = -1;
}

RowSample ShardedRows::finish() {
  RowSample all(limit_, kShards + 1);
  auto next = drawn_.begin();
  for (int index = 0; index < kShards; ++index) {
    const int from = ranks_.owner(index);
    at::Tensor rows, float_rows;
    if (from == ranks_.rank()) {
      rows = next->inputs();
      // The same rows are sent once.
      if (!next->float_inputs().is_same(rows)) float_rows = next->float_inputs();
      ++next;
    }
    rows = shared(std::move(rows), from);
    float_rows = shared(std::move(float_rows), from);
    if (rows.defined()) all.append(rows, float_rows);
  }
  drawn_.clear();
  all.shuffle();
  return all;
}

// f32 [rows, columns] or undefined, of rank `from`.
at::Tensor ShardedRows::shared(at::Tensor rows, int from) {
  if (ranks_.count() == 1) return rows;
  std::array<int64_t, 2> sizes = {0, 0};
  if (rows.defined()) sizes = {rows.size(0), rows.size(1)};
  const std::string text = ranks_.broadcast(
      std::string(reinterpret_cast<const char*>(sizes.data()), sizeof(sizes)), from);
  std::memcpy(sizes.data(), text.data(), sizeof(sizes));
  if (sizes[0] == 0) return {};
  rows = from == ranks_.rank() ? rows.contiguous()
                               : at::empty({sizes[0], sizes[1]}, at::kFloat);
  ranks_.broadcast(rows, from);
  return rows;
}

}  // namespace nibble
