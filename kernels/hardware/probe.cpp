#include "kernels/hardware/probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "kernels/base/parallel.h"
#include "kernels/hardware/pin.h"
#include "kernels/hardware/probe_isa.h"

namespace nibble {

// 64-bit words, eight sums as the vector rows have.
uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes) {
  uint64_t sums[8] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < n; i += 8) {
      for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    __asm__ volatile("" ::: "memory");  // the next pass reads again
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum += s;
  return sum;
}

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPage = 4096;
constexpr int64_t kHugePage = int64_t{2} << 20;
// Parts above this are handed out in pieces: a thread that another process delays then
// does not hold up the rest, as in parallel_for. Smaller parts stay with their thread,
// whose cache holds them.
constexpr int64_t kSplitBytes = int64_t{32} << 20;
constexpr int64_t kPieceBytes = int64_t{1} << 20;

Status check_threads(const char* who, int threads) {
  if (threads >= 1) return ok_status();
  return error(StatusCode::invalid_argument, "[probe] ", who,
               ": at least one thread is required; found ", threads);
}

// Of one thread its CPU's seconds; of several, from when all are ready until the last has
// done its body(thread).
double timed_on(int threads, const std::function<void(int)>& body) {
  if (threads == 1) {
    const double start = work_seconds(1);
    body(0);
    return std::max(work_seconds(1) - start, 1e-9);
  }
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<Clock::time_point> ends(static_cast<size_t>(threads));
  std::vector<std::thread> crew;
  const Pinned here(0);  // one thread alone is better off where the system puts it
  for (int t = 1; t < threads; ++t) {
    crew.emplace_back([&, t] {
      pin_this_thread(t);
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      body(t);
      ends[static_cast<size_t>(t)] = Clock::now();
    });
  }
  while (ready.load() != threads - 1) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  go.store(true, std::memory_order_release);
  body(0);
  ends[0] = Clock::now();
  for (std::thread& thread : crew) thread.join();
  const Clock::time_point end = *std::max_element(ends.begin(), ends.end());
  return std::max(std::chrono::duration<double>(end - start).count(), 1e-9);
}

// Seconds that one repetition takes, of a run of about `seconds`: times(n) is what n of
// them took. A short run that something interrupts looks long enough; runs before and
// after it tell.
template <class Times>
double seconds_of_one(double seconds, const Times& times) {
  double smallest = 0;  // of one, in any run
  int64_t n = 1;
  for (int run = 0;; ++run) {
    const double taken = times(n), one = taken / static_cast<double>(n);
    smallest = run == 0 ? one : std::min(smallest, one);
    const bool long_enough = taken >= 0.5 * seconds;
    const bool plausible = static_cast<double>(n) * smallest >= 0.25 * seconds &&
                           (run > 0 || taken >= 4 * seconds);
    if (long_enough && plausible) return one;
    // At most 64 times as many: the first runs are short, and so not to be trusted.
    const double count = static_cast<double>(n);
    n = static_cast<int64_t>(std::clamp(seconds / std::max(smallest, 1e-12),
                                        long_enough ? count : 2 * count, 64 * count));
  }
}

using Reader = uint64_t (*)(const uint64_t*, int64_t, int64_t);
Reader best_reader() {
  const uint32_t flags = cpu_info().flags;
  if ((flags & kCpuAvx512) != 0 && (flags & kCpuAvx512Vnni) != 0) {
    return avx512vnni::read_words;
  }
  return (flags & kCpuAvx2) != 0 ? avx2::read_words : read_words;
}

// Of `bytes` rounded down to whole 512-byte steps a thread (64 words: every reader's
// step), at least one each.
int64_t part_bytes(int64_t bytes, int threads) {
  return std::max<int64_t>(bytes / threads / 512 * 512, 512);
}

struct Read {
  double seconds = 0;
  uint64_t sum = 0;
  int64_t bytes = 0;  // of one pass
};

Read read_once(const ReadBuffer& buffer, int threads, int64_t bytes, int64_t passes) {
  const Reader reader = best_reader();
  const int64_t part = part_bytes(bytes, threads) / 8;  // words
  std::vector<uint64_t> sums(static_cast<size_t>(threads), 0);
  Read read{.bytes = part * 8 * threads};
  if (part * 8 <= kSplitBytes) {
    read.seconds = timed_on(threads, [&](int t) {
      sums[static_cast<size_t>(t)] = reader(buffer.words() + t * part, part, passes);
    });
  } else {
    const int64_t all = part * threads, piece = kPieceBytes / 8;
    const int64_t pieces = (all + piece - 1) / piece;
    std::atomic<int64_t> next{0};
    read.seconds = timed_on(threads, [&](int t) {
      uint64_t sum = 0;
      for (int64_t i; (i = next.fetch_add(1)) < pieces * passes;) {
        const int64_t first = i % pieces * piece;
        sum += reader(buffer.words() + first, std::min(piece, all - first), 1);
      }
      sums[static_cast<size_t>(t)] = sum;
    });
  }
  for (const uint64_t sum : sums) read.sum += sum;
  return read;
}

uint64_t sum_below(uint64_t n) {  // 0 + 1 + ... + (n - 1) modulo 2^64
  return n % 2 == 0 ? n / 2 * (n - 1) : (n - 1) / 2 * n;
}

Result<int64_t> checked_bytes(const ReadBuffer& buffer, int threads, int64_t bytes) {
  NIBBLE_RETURN_IF_ERROR(check_threads("read", threads));
  if (bytes == 0) bytes = buffer.bytes();
  if (bytes < 0 || part_bytes(bytes, threads) * threads > buffer.bytes()) {
    return error(StatusCode::invalid_argument, "[probe] read: at most the buffer's ",
                 buffer.bytes(), " bytes, and 512 a thread, are required; found ", bytes,
                 " bytes and ", threads, " threads");
  }
  return bytes;
}

}  // namespace

Result<ReadBuffer> ReadBuffer::create(int64_t bytes) {
  if (bytes < 1) {
    return error(StatusCode::invalid_argument,
                 "[probe] read buffer: at least one byte is required; found ", bytes);
  }
  ReadBuffer buffer;
  // Whole huge pages where there is at least one: a tail of small pages would be slower.
  const int64_t page = bytes >= kHugePage ? kHugePage : kPage;
  buffer.bytes_ = (bytes + page - 1) / page * page;
  void* const memory = mmap(nullptr, static_cast<size_t>(buffer.bytes_),
                            PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return error(StatusCode::resource_exhausted, "[probe] read buffer: ", buffer.bytes_,
                 " bytes are required; the system has not got them; ask for a smaller "
                 "working set");
  }
  // Refused where huge pages are off: the figure is then that of small pages, which is
  // what kernels get too.
  (void)madvise(memory, static_cast<size_t>(buffer.bytes_), MADV_HUGEPAGE);
  buffer.words_ = static_cast<uint64_t*>(memory);
  const int64_t words = buffer.bytes_ / 8, piece = kHugePage / 8;
  parallel_for((words + piece - 1) / piece, [&](int64_t i) {
    const int64_t last = std::min(words, (i + 1) * piece);
    for (int64_t w = i * piece; w < last; ++w) {
      buffer.words_[w] = static_cast<uint64_t>(w);
    }
  });
  return buffer;
}

ReadBuffer::ReadBuffer(ReadBuffer&& other) noexcept
    : words_(std::exchange(other.words_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

ReadBuffer& ReadBuffer::operator=(ReadBuffer&& other) noexcept {
  std::swap(words_, other.words_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ReadBuffer::~ReadBuffer() {
  if (words_ != nullptr) munmap(words_, static_cast<size_t>(bytes_));
}

uint64_t ReadBuffer::expected_sum() const {
  return sum_below(static_cast<uint64_t>(bytes_ / 8));
}

Result<uint64_t> read_sum(const ReadBuffer& buffer, int threads, int64_t bytes,
                          int64_t passes) {
  NIBBLE_ASSIGN_OR_RETURN(bytes, checked_bytes(buffer, threads, bytes));
  return read_once(buffer, threads, bytes, passes).sum;
}

Result<double> read_bandwidth(const ReadBuffer& buffer, int threads, int64_t bytes,
                              double seconds) {
  NIBBLE_ASSIGN_OR_RETURN(bytes, checked_bytes(buffer, threads, bytes));
  int64_t read_bytes = 0;
  bool right = true;
  const double one = seconds_of_one(seconds, [&](int64_t passes) {
    const Read read = read_once(buffer, threads, bytes, passes);
    read_bytes = read.bytes;
    right = right && read.sum == static_cast<uint64_t>(passes) *
                                     sum_below(static_cast<uint64_t>(read.bytes / 8));
    return read.seconds;
  });
  if (!right) {
    return error(StatusCode::internal, "[probe] read: the sum of ", read_bytes,
                 " bytes is wrong; the memory or its reader is broken");
  }
  return static_cast<double>(read_bytes) / one;
}

const char* numbers_name(Numbers numbers) {
  switch (numbers) {
    case Numbers::int8:
      return "int8";
    case Numbers::bf16:
      return "bf16";
    case Numbers::f32:
      return "f32";
    case Numbers::lookup:
      return "lookup";
  }
  return "";
}

const std::vector<PeakRow>& peak_rows() {
  static const std::vector<PeakRow> rows = {
#include "kernels/hardware/peaks.inc"
  };
  return rows;
}

const PeakRow* best_peak(Numbers numbers, uint32_t cpu_flags) {
  for (const PeakRow& row : peak_rows()) {
    if (row.numbers == numbers && (row.flags & ~cpu_flags) == 0) return &row;
  }
  return nullptr;
}

Status can_run(const PeakRow& row, uint32_t cpu_flags) {
  const uint32_t missing = row.flags & ~cpu_flags;
  if (missing == 0) return ok_status();
  return error(StatusCode::unsupported, "[probe] ", row.name, ": ",
               cpu_flag_names(row.flags), " is required; this CPU (", cpu_info().model,
               ") lacks ", cpu_flag_names(missing));
}

Result<double> peak(const PeakRow& row, int threads, double seconds) {
  NIBBLE_RETURN_IF_ERROR(check_threads(row.name, threads));
  NIBBLE_RETURN_IF_ERROR(can_run(row));
  constexpr int64_t kRounds = 64;  // a call: some hundreds of cycles
  std::vector<int64_t> sums(static_cast<size_t>(threads));
  const double one = seconds_of_one(seconds, [&](int64_t n) {
    return timed_on(threads,
                    [&](int t) { sums[static_cast<size_t>(t)] = row.run(n * kRounds); });
  });
  return static_cast<double>(row.operations) * kRounds * threads / one;
}

int64_t memory_working_set(const Machine& machine, std::string* note) {
  const int64_t wanted = std::max<int64_t>(4 * machine.largest_cache(), int64_t{1} << 30);
  // A third: the kernels' weights, their packed source and this buffer live together.
  const int64_t allowed = machine.available / 3;
  if (machine.available == 0 || wanted <= allowed) return wanted;
  if (note != nullptr) {
    *note =
        cat("the memory's working set is ", allowed >> 20, " MiB in place of ",
            wanted >> 20, ": ", machine.available >> 20, " MiB are available; caches of ",
            machine.largest_cache() >> 20, " MiB may serve a part of it");
  }
  return std::max<int64_t>(allowed, kHugePage);
}

Result<Probe> probe(const ProbeOptions& options) {
  Probe result;
  result.machine = this_machine();
  const Machine& machine = result.machine;
  std::vector<int> counts = options.threads;
  if (counts.empty()) counts = {1, thread_count()};
  if (counts.size() == 2 && counts[0] == counts[1]) counts.pop_back();
  for (const int threads : counts) {
    NIBBLE_RETURN_IF_ERROR(check_threads("threads", threads));
  }
  const int64_t memory = options.memory_bytes > 0
                             ? options.memory_bytes
                             : memory_working_set(machine, &result.note);
  for (const int threads : counts) {
    // Half of a private cache: the rest is for what else the thread touches. The last
    // level: several times the private ones before it, and not more than half of it.
    int64_t before = 0;
    for (const Cache& cache : machine.caches) {
      const int64_t half = cache.bytes / 2;
      const bool shared = cache.shared_by > 1 && cache.level > 1;
      const int64_t set = shared ? std::min(half, 4 * before * threads) : half * threads;
      result.bandwidths.push_back({.level = cat("L", cache.level),
                                   .bytes = set > 0 ? set : half,
                                   .threads = threads});
      before = cache.bytes;
    }
    result.bandwidths.push_back({.level = "memory", .bytes = memory, .threads = threads});
    for (const PeakRow& row : peak_rows()) {
      const Status runs = can_run(row);
      result.peaks.push_back(
          {.row = &row, .threads = threads, .refused = runs.ok() ? "" : runs.message()});
    }
  }
  int64_t largest = 0;
  for (const BandwidthLimit& limit : result.bandwidths) {
    largest = std::max(largest, limit.bytes);
  }
  NIBBLE_ASSIGN_OR_RETURN(const ReadBuffer buffer, ReadBuffer::create(largest));
  std::vector<std::vector<double>> read(result.bandwidths.size()),
      done(result.peaks.size());
  for (int64_t repeat = 0; repeat < options.repeats; ++repeat) {
    for (size_t i = 0; i < read.size(); ++i) {
      const BandwidthLimit& limit = result.bandwidths[i];
      NIBBLE_ASSIGN_OR_RETURN(
          const double rate,
          read_bandwidth(buffer, limit.threads, limit.bytes, options.seconds));
      read[i].push_back(rate);
    }
    for (size_t i = 0; i < done.size(); ++i) {
      const PeakLimit& limit = result.peaks[i];
      if (!limit.refused.empty()) continue;
      NIBBLE_ASSIGN_OR_RETURN(const double rate,
                              peak(*limit.row, limit.threads, options.seconds));
      done[i].push_back(rate);
    }
  }
  for (size_t i = 0; i < read.size(); ++i) {
    result.bandwidths[i].rate = rate_of(std::move(read[i]));
  }
  for (size_t i = 0; i < done.size(); ++i) {
    result.peaks[i].rate = rate_of(std::move(done[i]));
  }
  return result;
}

}  // namespace nibble
