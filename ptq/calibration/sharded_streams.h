// The samples of this rank (ptq/distributed), cut into its shards, on their way through
// one model, or two that are followed side by side.
//
// Between stations the parameters of one block at most are in memory; at a station none.
// Throws nibble::Error.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/calibration/sample_stream.h"
#include "ptq/calibration/spill_file.h"
#include "ptq/distributed/ranks.h"

namespace nibble {

class ShardedStreams {
 public:
  struct Shard {
    int index;  // of kShards
    int64_t first, last;
  };
  // spill: the folder where waiting activations go to; "": they wait in memory.
  ShardedStreams(const Artifact& model, const Plan& plan, const CalibrationData& data,
                 const std::filesystem::path& spill, const std::string& device);

  // load, rows: as SampleStream has them, values on the CPU.
  void add(const SampleStream::Load& load, const SampleStream::Rows& rows,
           InputRounding rounding = {});
  const SampleStream& operator[](size_t i) const { return *streams_[i]; }
  // The rows [tokens, features] of a value over samples [first, last).
  at::Tensor gather(size_t stream, const std::string& value, int64_t first,
                    int64_t last) const;

  const std::vector<Shard>& shards() const { return shards_; }
  at::Device device() const { return device_; }
  size_t done() const { return done_; }  // nodes that all samples have passed

  std::unique_ptr<SampleStream> fork(size_t stream) const {
    return streams_[stream]->fork();
  }
  // Puts `other`, whose samples stand at node `at`, in the place of a stream, and runs
  // them to where the others are.
  void replace(size_t stream, std::unique_ptr<SampleStream> other, size_t at);

  // Runs all samples up to node `to`.
  void advance(size_t to);
  // The same of the samples of each shard: round(first, last) behind each of its rounds,
  // shard_done behind the last.
  void advance(size_t to,
               const std::function<void(const Shard&, int64_t, int64_t)>& round,
               const std::function<void(const Shard&)>& shard_done);

 private:
  void run(size_t to, const std::function<void(const Shard&, int64_t, int64_t)>& round,
           const std::function<void(const Shard&)>& shard_done);

  const Artifact& model_;
  const Plan& plan_;
  const CalibrationData& data_;
  const at::Device device_;
  std::vector<Shard> shards_;
  std::unique_ptr<SpillFile> spill_;
  std::vector<std::unique_ptr<SampleStream>> streams_;
  size_t done_ = 0;
};

}  // namespace nibble
