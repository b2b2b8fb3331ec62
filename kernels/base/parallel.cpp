#include "kernels/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {
namespace {

thread_local bool inside_parallel_for = false;

// Decoding a token is a few hundred short parallel_fors: a worker that polls this long
// before it sleeps (some tens of microseconds) is not woken through the kernel for each
// of them.
constexpr int kPolls = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Each thread has a run of neighbouring indices of its own, and helps with the others'
// when that is done: weights that lie one behind another are read as one stream, which is
// what prefetchers follow.
class Job {
 public:
  explicit Job(int threads)
      : threads_(static_cast<size_t>(threads)), ranges_(new Range[threads_]) {}

  void begin(int64_t n, const FunctionRef<void(int64_t)>& body) {
    body_ = &body;
    const int64_t threads = static_cast<int64_t>(threads_);
    for (int64_t t = 0; t < threads; ++t) {
      Range& range = ranges_[static_cast<size_t>(t)];
      range.next.store(n * t / threads, std::memory_order_relaxed);
      range.end = n * (t + 1) / threads;
    }
  }
  void work(size_t thread) {
    inside_parallel_for = true;
    for (size_t t = 0; t < threads_; ++t) {
      Range& range = ranges_[(thread + t) % threads_];
      for (int64_t i;
           (i = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) {
        (*body_)(i);
      }
    }
    inside_parallel_for = false;
  }

 private:
  struct alignas(64) Range {  // a cache line each
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  const FunctionRef<void(int64_t)>* body_ = nullptr;
  size_t threads_;
  std::unique_ptr<Range[]> ranges_;
};

class Pool {
 public:
  explicit Pool(int threads) : job_(threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, i] { loop(static_cast<size_t>(i)); });
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void run(int64_t n, const FunctionRef<void(int64_t)>& body) {
    job_.begin(n, body);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job_.work(0);
    {
      // Every index is taken: who comes now finds the door shut, and is not waited for. On
      // a machine with more to do than this, a sleeping worker may take long to come.
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    for (int i = 0; busy_.load(std::memory_order_acquire) != 0; ++i) {
      if (i < kPolls) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void loop(size_t thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kPolls && generation_.load(std::memory_order_acquire) == seen;
           ++i) {
        relax();
      }
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock,
                   [&] { return generation_.load(std::memory_order_acquire) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (stop_) return;
        if (!open_) continue;
        busy_.fetch_add(1, std::memory_order_relaxed);
      }
      job_.work(thread);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  Job job_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> busy_{0};  // workers at the open job; grows only under mutex_
  bool open_ = false;         // guarded by mutex_
  bool stop_ = false;         // guarded by mutex_
};

int default_thread_count() {
  if (const char* text = std::getenv("NIBBLE_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1) return n;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

struct State {
  std::mutex mutex;  // held by the one parallel_for that uses the pool
  std::atomic<int> threads{default_thread_count()};
  std::unique_ptr<Pool> pool;
};

// Never destroyed: worker threads may outlive static destructors.
State& state() {
  static State* const instance = new State;
  return *instance;
}

}  // namespace

int thread_count() { return state().threads.load(); }

void set_thread_count(int n) {
  State& s = state();
  std::lock_guard<std::mutex> lock(s.mutex);
  n = std::max(1, n);
  if (n == s.threads.load()) return;
  s.threads.store(n);
  s.pool.reset();
}

void parallel_for(int64_t n, FunctionRef<void(int64_t)> body) {
  if (n <= 0) return;
  State& s = state();
  // Nested, alone, or while another thread uses the pool: the same calls, here, in order.
  const bool here = inside_parallel_for || n == 1 || s.threads.load() == 1;
  if (!here && s.mutex.try_lock()) {
    std::lock_guard<std::mutex> lock(s.mutex, std::adopt_lock);
    if (s.threads.load() > 1) {
      if (!s.pool) s.pool = std::make_unique<Pool>(s.threads.load());
      s.pool->run(n, body);
      return;
    }
  }
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace nibble
