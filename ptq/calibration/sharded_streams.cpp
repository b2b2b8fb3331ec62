#include "ptq/calibration/sharded_streams.h"

#include <ATen/ATen.h>

#include "kernels/base/cancel.h"
#include "ptq/calibration/samples.h"
#include "ptq/error.h"

namespace nibble {

ShardedStreams::ShardedStreams(const Artifact& model, const Plan& plan,
                               const CalibrationData& data,
                               const std::filesystem::path& spill,
                               const std::string& device)
    : model_(model), plan_(plan), data_(data), device_(device) {
  const Ranks& ranks = Ranks::instance();
  const int64_t samples = sample_count(model, plan);
  for (int shard = 0; shard < kShards; ++shard) {
    if (ranks.owner(shard) == ranks.rank())
      shards_.push_back(
          {shard, samples * shard / kShards, samples * (shard + 1) / kShards});
  }
  if (!spill.empty()) spill_ = std::make_unique<SpillFile>(spill);
}

void ShardedStreams::add(const SampleStream::Load& load, const SampleStream::Rows& rows,
                         InputRounding rounding) {
  std::vector<StreamValues> samples =
      make_samples(model_, plan_, data_, shards_.front().first, shards_.back().last);
  for (StreamValues& sample : samples) {
    for (auto& [name, value] : sample) value = value.to(device_);
  }
  const at::Device device = device_;
  streams_.push_back(std::make_unique<SampleStream>(
      model_.program, std::move(samples),
      [load, device](const std::string& name) { return load(name).to(device); },
      [rows, device](const std::string& name, const at::Tensor& ids) {
        return rows(name, ids.cpu()).to(device);
      },
      spill_.get(), rounding_on(device, std::move(rounding))));
}

at::Tensor ShardedStreams::gather(size_t stream, const std::string& value, int64_t first,
                                  int64_t last) const {
  std::vector<at::Tensor> rows;
  for (int64_t sample = first; sample < last; ++sample) {
    const at::Tensor x = streams_[stream]->value(sample, value);
    rows.push_back(x.reshape({-1, x.size(-1)}));
  }
  return at::cat(rows);
}

void ShardedStreams::replace(size_t stream, std::unique_ptr<SampleStream> other,
                             size_t at) {
  streams_[stream]->drop();
  streams_[stream] = std::move(other);
  for (const Shard& shard : shards_) {
    for (int64_t first = shard.first; first < shard.last; first += kRound) {
      throw_if_error(check_cancelled("calibrate"));
      const int64_t last = std::min(shard.last, first + kRound);
      streams_[stream]->run(at, done_, first, last);
      streams_[stream]->park(first, last);
    }
  }
  streams_[stream]->forget_parameters();
}

void ShardedStreams::advance(size_t to) {
  if (to != done_)
    advance(to, [](const Shard&, int64_t, int64_t) {}, [](const Shard&) {});
}

void ShardedStreams::advance(
    size_t to, const std::function<void(const Shard&, int64_t, int64_t)>& round,
    const std::function<void(const Shard&)>& shard_done) {
  const std::vector<Node>& nodes = model_.program.nodes;
  const auto nothing = [](const Shard&, int64_t, int64_t) {};
  for (size_t i = done_ + 1; i <= to && i < nodes.size(); ++i) {
    if (nodes[i].block != nodes[done_].block) run(i, nothing, [](const Shard&) {});
  }
  run(to, round, shard_done);
}

void ShardedStreams::run(size_t to,
                         const std::function<void(const Shard&, int64_t, int64_t)>& round,
                         const std::function<void(const Shard&)>& shard_done) {
  for (const Shard& shard : shards_) {
    for (int64_t first = shard.first; first < shard.last; first += kRound) {
      throw_if_error(check_cancelled("calibrate"));
      const int64_t last = std::min(shard.last, first + kRound);
      for (const auto& stream : streams_) stream->run(done_, to, first, last);
      round(shard, first, last);
      for (const auto& stream : streams_) stream->park(first, last);
    }
    shard_done(shard);
  }
  done_ = to;
  for (const auto& stream : streams_) stream->forget_parameters();
}

}  // namespace nibble
