#include "recipes/eval/timed_case.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <thread>

#include "kernels/base/cancel.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds of a round that can be judged at least: the system counts in ticks of 10 ms.
constexpr double kLeastJudged = 0.1;

// How many cores other processes kept busy since it was made; negative: unknown.
class OthersLoad {
 public:
  double seconds() const {
    return std::chrono::duration<double>(Clock::now() - start_).count();
  }
  double cores() const {
    const double busy = busy_seconds(), own = own_seconds();
    if (busy < 0 || own < 0 || busy_ < 0 || own_ < 0) return -1;
    return std::max(0.0, (busy - busy_ - (own - own_)) / seconds());
  }

 private:
  const Clock::time_point start_ = Clock::now();
  const double busy_ = busy_seconds(), own_ = own_seconds();
};

// Seconds of a call, calls following each other until `seconds` have passed.
double time_calls(const std::function<void()>& call, double seconds) {
  const int threads = thread_count();
  const double start = work_seconds(threads);
  int64_t calls = 0;
  double taken = 0;
  do {
    call();
    ++calls;
    taken = work_seconds(threads) - start;
  } while (taken < seconds);
  return taken / static_cast<double>(calls);
}

struct Samples {
  std::vector<double> seconds, bytes, operations, read, write, peak, of_read, of_peak;
};

}  // namespace

WriteBuffer::WriteBuffer(int64_t bytes) {
  bytes_ = Bytes::allocate(static_cast<size_t>(std::max<int64_t>(bytes, 1)), &data_);
}

double WriteBuffer::bandwidth(int threads, double seconds) {
  use_threads(threads);
  const int64_t size = static_cast<int64_t>(bytes_.size());
  const double fill = time_calls(
      [&] {
        value_ = (value_ + 1) & 0xff;
        parallel_for(threads, [&](int64_t i) {
          const int64_t first = size * i / threads, end = size * (i + 1) / threads;
          std::memset(data_ + first, value_, static_cast<size_t>(end - first));
        });
      },
      seconds);
  return static_cast<double>(size) / fill;
}

int64_t Bench::operands(double bytes) const {
  return std::max<int64_t>(
      1, static_cast<int64_t>(std::ceil(static_cast<double>(working_set) / bytes)));
}

void use_threads(int threads) {
  set_thread_count(threads);
  std::atomic<int> arrived{0};
  const Clock::time_point start = Clock::now();
  parallel_for(threads, [&](int64_t) {
    // Nobody leaves before all are here, so that each takes one part; not for ever, as
    // the pool may be in other hands.
    arrived.fetch_add(1);
    while (arrived.load() < threads && Clock::now() - start < std::chrono::seconds(1)) {
      std::this_thread::yield();
    }
  });
}

Status measure_cases(Bench& bench, const std::vector<TimedCase>& cases,
                     std::vector<KernelSpeed>* result) {
  const KernelSpeedOptions& options = bench.options;
  bool reads = false, writes = false;
  std::vector<const PeakRow*> rows;
  for (const TimedCase& c : cases) {
    reads = reads || c.by_memory;
    writes = writes || (c.by_memory && c.speed.written_bytes > 0);
    if (c.peak != nullptr && std::find(rows.begin(), rows.end(), c.peak) == rows.end()) {
      rows.push_back(c.peak);
    }
  }
  std::vector<Samples> samples(cases.size() * bench.threads.size());
  double disturbed = 0;
  for (int64_t repeat = 0, again = 0; repeat <= options.repeats;) {  // the first warms up
    const std::vector<Samples> before = samples;
    const OthersLoad others;
    for (size_t t = 0; t < bench.threads.size(); ++t) {
      const int threads = bench.threads[t];
      NIBBLE_RETURN_IF_ERROR(check_cancelled("bench"));
      double read = 0, write = 0;
      if (reads) {
        NIBBLE_ASSIGN_OR_RETURN(
            read,
            read_bandwidth(*bench.read, threads, bench.working_set, bench.limit_seconds));
      }
      if (writes) write = bench.write->bandwidth(threads, bench.limit_seconds);
      std::map<const PeakRow*, double> peaks;
      for (const PeakRow* row : rows) {
        NIBBLE_ASSIGN_OR_RETURN(peaks[row], peak(*row, threads, bench.limit_seconds));
      }
      use_threads(threads);
      for (size_t i = 0; i < cases.size(); ++i) {
        const TimedCase& c = cases[i];
        if (c.begin) c.begin();
        const double seconds = time_calls(c.call, options.seconds);
        if (repeat == 0) continue;
        Samples& s = samples[i * bench.threads.size() + t];
        s.seconds.push_back(seconds);
        s.bytes.push_back((c.speed.weight_bytes + c.speed.written_bytes) / seconds);
        s.operations.push_back(c.operations / seconds);
        if (c.by_memory) {
          double least = c.speed.weight_bytes / read;
          s.read.push_back(read);
          if (c.speed.written_bytes > 0) {
            least += c.speed.written_bytes / write;
            s.write.push_back(write);
          }
          s.of_read.push_back(least / seconds);
        }
        if (c.peak != nullptr) {
          s.peak.push_back(peaks[c.peak]);
          s.of_peak.push_back(c.peak_operations / seconds / peaks[c.peak]);
        }
      }
    }
    // Another process had a core meanwhile: once more, but not for ever.
    const double load = others.seconds() < kLeastJudged ? 0 : others.cores();
    if (load > kDisturbed && again < options.repeats) {
      samples = before;
      ++again;
      continue;
    }
    if (repeat > 0)
      disturbed += std::max(load, 0.0) / static_cast<double>(options.repeats);
    ++repeat;
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    const TimedCase& c = cases[i / bench.threads.size()];
    Samples& s = samples[i];
    KernelSpeed speed = c.speed;
    speed.threads = bench.threads[i % bench.threads.size()];
    speed.instruction = c.peak != nullptr ? c.peak->name : "";
    speed.instruction_operations = c.peak != nullptr ? c.peak_operations : 0;
    speed.others = disturbed;
    speed.seconds = rate_of(std::move(s.seconds));
    speed.bytes = rate_of(std::move(s.bytes));
    if (c.operations > 0) speed.operations = rate_of(std::move(s.operations));
    speed.read = rate_of(std::move(s.read));
    speed.write = rate_of(std::move(s.write));
    speed.peak = rate_of(std::move(s.peak));
    speed.of_read = rate_of(std::move(s.of_read));
    speed.of_peak = rate_of(std::move(s.of_peak));
    result->push_back(std::move(speed));
  }
  return ok_status();
}

}  // namespace nibble
