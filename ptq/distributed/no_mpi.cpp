// Takes mpi.cpp's place in a build without MPI: one rank.
#include <cstdlib>

#include "ptq/distributed/ranks.h"
#include "ptq/error.h"

namespace nibble {

Ranks::Ranks() = default;
void Ranks::check() const {
  if (ranks_asked_for() == 1) return;
  throw Error(error(StatusCode::unsupported,
                    "[distributed] mpirun: a build with MPI is required; found one "
                    "without; install libopenmpi-dev and build again, or run one process"));
}
Ranks& Ranks::instance() {
  static Ranks ranks;
  return ranks;
}

Hessian Ranks::sum(std::vector<Hessian> parts, int64_t) {
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
  return std::move(parts[0]);
}
std::vector<int64_t> Ranks::sum(std::vector<int64_t> values) { return values; }
void Ranks::send(const at::Tensor&, int) {}
void Ranks::receive(at::Tensor&, int) {}
void Ranks::broadcast(at::Tensor&, int) {}
std::string Ranks::broadcast(std::string text, int) { return text; }
void Ranks::barrier() {}
void Ranks::abort(int code) { std::exit(code); }

}  // namespace nibble
