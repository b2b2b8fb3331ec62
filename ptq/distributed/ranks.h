// The processes of one run (mpirun -n N): what calibration asks of them. MPI is in mpi.cpp
// alone; a build without it has no_mpi.cpp, and one rank.
//
// Every rank runs the same program on its share of the samples. Sums are made over a fixed
// number of shards of the samples and added in the order of the shards, so that the bytes
// do not depend on the number of ranks:
//
//   H = ((H_0 + H_1) + H_2) + H_3     shard s is made by rank owner(s)
//
// All calls are collective: every rank makes the same ones in the same order. A rank that
// cannot go on ends all of them (abort). One thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ptq/methods/hessian.h"

namespace nibble {

inline constexpr int kShards = 4;

class Ranks {
 public:
  // Starts MPI where this process was started by mpirun; else one rank alone.
  static Ranks& instance();
  // invalid_argument: more ranks than shards; unsupported: a build without MPI under mpirun.
  // Throws nibble::Error.
  void check() const;

  int rank() const { return rank_; }
  int count() const { return count_; }
  bool is_first() const { return rank_ == 0; }
  // Shards go to ranks in runs, as even as can be.
  int owner(int shard) const { return shard * count_ / kShards; }

  // parts: what this rank's shards gave, in their order (the first rank's may be added up
  // already); returns the sum of all, on every rank.
  Hessian sum(std::vector<Hessian> parts, int64_t columns);
  std::vector<int64_t> sum(std::vector<int64_t> values);
  // A contiguous CPU tensor's memory, from one rank to another; shapes and types are
  // agreed on.
  void send(const at::Tensor& tensor, int to);
  void receive(at::Tensor& tensor, int from);
  void broadcast(at::Tensor& tensor, int from);
  // What `from` says, on every rank.
  std::string broadcast(std::string text, int from);
  void barrier();
  [[noreturn]] void abort(int code);

 private:
  Ranks();
  int rank_ = 0, count_ = 1;
};

// The number of ranks that mpirun's environment speaks of; 1 outside of it.
int ranks_asked_for();

}  // namespace nibble
