// Ranks over MPI, where CMake has found one (NIBBLE_WITH_MPI).
#include <mpi.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>

#include "ptq/distributed/ranks.h"
#include "ptq/error.h"

namespace nibble {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // bytes a message: counts are int

// body(data, count) over runs of a long array of bytes.
template <class Body>
void in_messages(void* data, int64_t count, const Body& body) {
  for (int64_t done = 0; done < count; done += kMost) {
    body(static_cast<char*>(data) + done,
         static_cast<int>(std::min(kMost, count - done)));
  }
}

int64_t bytes_of(const at::Tensor& x) {
  if (x.is_contiguous() && x.is_cpu()) return static_cast<int64_t>(x.nbytes());
  throw Error(
      error(StatusCode::internal,
            "[distributed] a contiguous tensor of the CPU is required; found another"));
}

}  // namespace

Ranks::Ranks() {
  if (ranks_asked_for() == 1) return;
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &count_);
  std::atexit([] { MPI_Finalize(); });
}

Ranks& Ranks::instance() {
  static Ranks ranks;
  return ranks;
}

void Ranks::check() const {
  if (count_ <= kShards) return;
  throw Error(error(StatusCode::invalid_argument, "[distributed] mpirun: 1 to ", kShards,
                    " processes are required; found ", count_,
                    "; the samples are cut into so many shards"));
}

void Ranks::send(const at::Tensor& tensor, int to) {
  in_messages(tensor.data_ptr(), bytes_of(tensor), [to](char* data, int count) {
    MPI_Send(data, count, MPI_BYTE, to, 0, MPI_COMM_WORLD);
  });
}

void Ranks::receive(at::Tensor& tensor, int from) {
  in_messages(tensor.data_ptr(), bytes_of(tensor), [from](char* data, int count) {
    MPI_Recv(data, count, MPI_BYTE, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  });
}

void Ranks::broadcast(at::Tensor& tensor, int from) {
  if (count_ == 1) return;
  in_messages(tensor.data_ptr(), bytes_of(tensor), [from](char* data, int count) {
    MPI_Bcast(data, count, MPI_BYTE, from, MPI_COMM_WORLD);
  });
}

Hessian Ranks::sum(std::vector<Hessian> parts, int64_t columns) {
  if (count_ == 1) {
    for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
    return std::move(parts[0]);
  }
  const auto receive_part = [this, columns](int from) {
    int64_t facts[2] = {0, 0};
    MPI_Recv(facts, 2, MPI_INT64_T, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    Hessian part(columns);
    part.set_tokens(facts[0]);
    at::Tensor sums = part.sums();
    receive(sums, from);
    if (facts[1] == 0) return part;
    at::Tensor drift = part.drift_sums(true);
    receive(drift, from);
    return part;
  };
  if (rank_ != 0) {
    for (Hessian& part : parts) {
      const int64_t facts[2] = {part.tokens(), part.has_drift() ? 1 : 0};
      MPI_Send(facts, 2, MPI_INT64_T, 0, 0, MPI_COMM_WORLD);
      send(part.sums(), 0);
      if (facts[1] != 0) send(part.drift(), 0);
    }
    // Room for the sum in place of what was sent.
    parts.clear();
    parts.emplace_back(columns);
  } else {
    for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
    parts.resize(1, Hessian(0));
    for (int shard = 0; shard < kShards; ++shard) {
      if (owner(shard) != 0) parts[0].add(receive_part(owner(shard)));
    }
  }
  Hessian& total = parts[0];
  int64_t facts[2] = {total.tokens(), total.has_drift() ? 1 : 0};
  MPI_Bcast(facts, 2, MPI_INT64_T, 0, MPI_COMM_WORLD);
  total.set_tokens(facts[0]);
  at::Tensor sums = total.sums();
  broadcast(sums, 0);
  if (facts[1] != 0) {
    at::Tensor drift = total.drift_sums(true);
    broadcast(drift, 0);
  }
  return std::move(total);
}

std::vector<int64_t> Ranks::sum(std::vector<int64_t> values) {
  if (count_ > 1) {
    MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()),
                  MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
  }
  return values;
}

std::string Ranks::broadcast(std::string text, int from) {
  if (count_ == 1) return text;
  int64_t size = static_cast<int64_t>(text.size());
  MPI_Bcast(&size, 1, MPI_INT64_T, from, MPI_COMM_WORLD);
  text.resize(static_cast<size_t>(size));
  in_messages(text.data(), size, [from](char* data, int count) {
    MPI_Bcast(data, count, MPI_CHAR, from, MPI_COMM_WORLD);
  });
  return text;
}

void Ranks::barrier() {
  if (count_ > 1) MPI_Barrier(MPI_COMM_WORLD);
}

void Ranks::abort(int code) {
  if (count_ > 1) MPI_Abort(MPI_COMM_WORLD, code);
  std::exit(code);
}

}  // namespace nibble
