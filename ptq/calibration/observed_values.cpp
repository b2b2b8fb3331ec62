#include "ptq/calibration/observed_values.h"

#include <ATen/ATen.h>

#include "ptq/calibration/samples.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// By station, the first node before which a value is there: the values that are new.
std::map<size_t, std::vector<std::string>> stations_of(
    const Program& program, const std::set<std::string>& values) {
  std::map<size_t, std::vector<std::string>> stations;
  std::set<std::string> made;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    const std::string& value = program.nodes[i].outputs.at(0);
    if (!values.count(value)) continue;
    stations[i + 1].push_back(value);
    made.insert(value);
  }
  for (const std::string& value : values) {
    if (!made.count(value)) stations[0].push_back(value);
  }
  return stations;
}

}  // namespace

std::map<std::string, ValueStatistics> observe_values(ShardedStreams& streams,
                                                      const Program& program,
                                                      const std::set<std::string>& values,
                                                      const Progress& progress) {
  Ranks& ranks = Ranks::instance();
  std::map<std::string, ValueStatistics> seen;
  for (const auto& [station, names] : stations_of(program, values)) {
    // By place in a round, so that samples are looked at side by side.
    std::vector<std::vector<ValueStatistics>> parts(
        static_cast<size_t>(kRound), std::vector<ValueStatistics>(names.size()));
    streams.advance(
        station,
        [&](const ShardedStreams::Shard&, int64_t first, int64_t last) {
          in_parallel(last - first, [&](int64_t i) {
            for (size_t v = 0; v < names.size(); ++v) {
              const at::Tensor x =
                  streams[0].value(first + i, names[v]).cpu().contiguous();
              parts[static_cast<size_t>(i)][v].add(
                  {x.const_data_ptr<float>(), static_cast<size_t>(x.numel())});
            }
          });
        },
        [](const ShardedStreams::Shard&) {});
    for (size_t v = 0; v < names.size(); ++v) {
      ValueStatistics mine;
      for (const std::vector<ValueStatistics>& part : parts) mine.add(part[v]);
      ValueStatistics& all = seen[names[v]];
      for (int rank = 0; rank < ranks.count(); ++rank) {
        const bool own = rank == ranks.rank();
        all.add(ValueStatistics::from(ranks.broadcast(own ? mine.bytes() : "", rank)));
      }
      if (progress) {
        progress("observe", names[v], static_cast<int64_t>(seen.size()),
                 static_cast<int64_t>(values.size()));
      }
    }
  }
  return seen;
}

}  // namespace nibble
