#include "kernels/hardware/pin.h"

#include <vector>

namespace nibble {
namespace {

std::vector<int> usable_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

void pin_this_thread(int index) {
  // Asked once, before anything is pinned: threads inherit what their maker was bound to.
  static const std::vector<int> cpus = usable_cpus();
  if (cpus.empty()) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpus[static_cast<size_t>(index) % cpus.size()], &one);
  (void)sched_setaffinity(0, sizeof(one), &one);
}

Pinned::Pinned(int index) {
  pinned_ = sched_getaffinity(0, sizeof(before_), &before_) == 0;
  if (pinned_) pin_this_thread(index);
}

Pinned::~Pinned() {
  if (pinned_) (void)sched_setaffinity(0, sizeof(before_), &before_);
}

}  // namespace nibble
