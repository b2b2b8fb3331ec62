// Binds threads to CPUs, so that no two of a benchmark's threads share one while another
// CPU is idle: a timing of milliseconds is over before the system moves them apart.
//
// CPUs are numbered 0, 1, ... among those that the process might use when it first asked;
// an index beyond them starts over. Where the system refuses, a thread stays as it was.
// Safe to call from any thread; each call is about the calling one.
#pragma once

#include <sched.h>

namespace nibble {

void pin_this_thread(int index);

// The same until the end of the scope.
class Pinned {
 public:
  explicit Pinned(int index);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
  bool pinned_ = false;
};

}  // namespace nibble
