// What values of the float model are on the calibration data: one pass of all samples,
// which stops behind the node that makes each value.
//
// The same on every rank, whatever their number: counts are integers. Throws
// nibble::Error.
#pragma once

#include <map>
#include <set>
#include <string>

#include "ptq/calibration/sharded_streams.h"
#include "ptq/observers/observer.h"
#include "ptq/progress.h"

namespace nibble {

// streams: one stream, of the float model, at its first node. values: made by nodes, or
// inputs of the program.
std::map<std::string, ValueStatistics> observe_values(ShardedStreams& streams,
                                                      const Program& program,
                                                      const std::set<std::string>& values,
                                                      const Progress& progress);

}  // namespace nibble
