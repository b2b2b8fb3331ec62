#include "cuda_emulator.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

namespace nibble::cuda {
namespace {

[[noreturn]] void stop(const char* what) {
  std::fprintf(stderr, "[cuda emulator] %s\n", what);
  std::abort();
}

constexpr size_t kStackBytes = 128 << 10;
constexpr int kLanes = 32;

enum class Wait : uint8_t { none, block, warp, ended };
// Lanes of a warp must meet in the same function.
enum class WarpFunction : uint8_t { none, shuffle, shuffle_xor, f16, bf16, s8 };

struct Copy {
  uint8_t* to;
  uint8_t bytes[16];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<uint8_t[]> stack;
  Wait wait = Wait::none;
  std::vector<Copy> copies;  // on their way
};

struct Warp {
  WarpFunction function = WarpFunction::none;
  int arrived = 0;
  uint32_t in[kLanes][10];  // each lane's words
  uint32_t out[kLanes][4];
};

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int current = 0, threads = 0, at_barrier = 0, ended = 0;
  int x = 0, y = 0, z = 0;
  std::unique_ptr<GuardedBytes> shared;
  void (*run)(const void*) = nullptr;
  const void* params = nullptr;
};
Machine machine;

void fiber_main() {
  machine.run(machine.params);
  Fiber& self = machine.fibers[static_cast<size_t>(machine.current)];
  if (!self.copies.empty()) stop("a thread ended before its copies arrived");
  self.wait = Wait::ended;
  ++machine.ended;
  swapcontext(&self.context, &machine.scheduler);
}

void give_way(Wait wait) {
  Fiber& self = machine.fibers[static_cast<size_t>(machine.current)];
  self.wait = wait;
  swapcontext(&self.context, &machine.scheduler);
}

// d [16, 8] += a [16, K] b [K, 8], K = 16 or 32; element (row, k) of a and (k, column) of
// b by the tables of device.h. Sums in double: a GPU keeps fewer bits.
void multiply(Warp& warp, WarpFunction function) {
  const bool is_s8 = function == WarpFunction::s8;
  const int depth = is_s8 ? 32 : 16, per_word = is_s8 ? 4 : 2;
  const auto element = [&](uint32_t word, int i) -> double {
    if (is_s8) return static_cast<int8_t>(word >> (8 * i) & 255);
    const uint16_t half = static_cast<uint16_t>(word >> (16 * i));
    return function == WarpFunction::f16 ? float_from_f16(half) : float_from_bf16(half);
  };
  double a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < per_word; ++i) {
      for (int word = 0; word < 4; ++word) {
        a[g + word % 2 * 8][word / 2 * (depth / 2) + t * per_word + i] =
            element(warp.in[lane][word], i);
      }
      for (int word = 0; word < 2; ++word) {
        b[word * (depth / 2) + t * per_word + i][g] = element(warp.in[lane][4 + word], i);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i / 2 * 8, column = 2 * t + i % 2;
      double sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      const uint32_t start = warp.in[lane][6 + i];
      warp.out[lane][i] =
          is_s8 ? start + static_cast<uint32_t>(static_cast<int32_t>(sum))
                : word_of_float(static_cast<float>(float_of_word(start) + sum));
    }
  }
}

void complete(Warp& warp) {
  switch (warp.function) {
    case WarpFunction::shuffle:
      for (int lane = 0; lane < kLanes; ++lane) {
        warp.out[lane][0] = warp.in[warp.in[lane][1] % kLanes][0];
      }
      break;
    case WarpFunction::shuffle_xor:
      for (int lane = 0; lane < kLanes; ++lane) {
        warp.out[lane][0] =
            warp.in[(static_cast<uint32_t>(lane) ^ warp.in[lane][1]) % kLanes][0];
      }
      break;
    default:
      multiply(warp, warp.function);
  }
}

// Gives this lane's words to the warp, waits for the other lanes, and returns its
// results.
const uint32_t* warp_function(WarpFunction function, const uint32_t* words, int count) {
  const int lane = machine.current % kLanes;
  const int first = machine.current - lane;
  Warp& warp = machine.warps[static_cast<size_t>(machine.current / kLanes)];
  if (warp.arrived == 0) warp.function = function;
  if (warp.function != function) stop("lanes of a warp meet in different functions");
  std::memcpy(warp.in[lane], words, static_cast<size_t>(count) * sizeof(uint32_t));
  if (++warp.arrived == kLanes) {
    complete(warp);
    warp.arrived = 0;
    for (int i = first; i < first + kLanes; ++i) {
      machine.fibers[static_cast<size_t>(i)].wait = Wait::none;
    }
  } else {
    give_way(Wait::warp);
  }
  return warp.out[lane];
}

template <class T>
void warp_multiply(WarpFunction function, T (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                   uint32_t b1) {
  uint32_t words[10] = {a[0], a[1], a[2], a[3], b0, b1};
  std::memcpy(words + 6, d, sizeof(d));
  std::memcpy(d, warp_function(function, words, 10), sizeof(d));
}

// The i-th of n things in an order. mixed: steps by a number prime to n, from the middle.
int place(Order order, int i, int n) {
  if (order == Order::forward) return i;
  if (order == Order::backward) return n - 1 - i;
  int step = n / 2 + 1;
  const auto common = [](int a, int b) {
    while (b != 0) {
      const int rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  while (common(step, n) != 1) ++step;
  return static_cast<int>((n / 2 + static_cast<int64_t>(i) * step) % n);
}

void begin(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  fiber.wait = Wait::none;
  // The last fiber of this stack never returned from its first frames.
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes);
  makecontext(&fiber.context, fiber_main, 0);
}

void run_block(Order order) {
  Machine& m = machine;
  m.at_barrier = m.ended = 0;
  for (Warp& warp : m.warps) warp.arrived = 0;
  for (int i = 0; i < m.threads; ++i) begin(m.fibers[static_cast<size_t>(i)]);
  while (m.ended < m.threads) {
    bool moved = false;
    for (int i = 0; i < m.threads; ++i) {
      const int thread = place(order, i, m.threads);
      if (m.fibers[static_cast<size_t>(thread)].wait != Wait::none) continue;
      moved = true;
      m.current = thread;
      swapcontext(&m.scheduler, &m.fibers[static_cast<size_t>(thread)].context);
    }
    if (moved) continue;
    if (m.at_barrier != m.threads) stop("a barrier or a warp waits for a thread in vain");
    m.at_barrier = 0;
    for (Fiber& fiber : m.fibers) fiber.wait = Wait::none;
  }
}

}  // namespace

int thread_index() { return machine.current; }
int block_x() { return machine.x; }
int block_y() { return machine.y; }
int block_z() { return machine.z; }
uint8_t* shared_memory() { return machine.shared->data(); }
void sync_threads() {
  ++machine.at_barrier;
  give_way(Wait::block);
}
uint32_t shuffle(uint32_t x, int lane) {
  const uint32_t words[2] = {x, static_cast<uint32_t>(lane)};
  return warp_function(WarpFunction::shuffle, words, 2)[0];
}
uint32_t shuffle_xor_word(uint32_t x, int mask) {
  const uint32_t words[2] = {x, static_cast<uint32_t>(mask)};
  return warp_function(WarpFunction::shuffle_xor, words, 2)[0];
}
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  warp_multiply(WarpFunction::f16, d, a, b0, b1);
}
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  warp_multiply(WarpFunction::bf16, d, a, b0, b1);
}
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  warp_multiply(WarpFunction::s8, d, a, b0, b1);
}

void copy_async16(void* shared, const void* global, int bytes) {
  must_be_aligned(shared, 16);
  must_be_aligned(global, 16);
  Copy copy = {static_cast<uint8_t*>(shared), {}};
  std::memcpy(copy.bytes, global, static_cast<size_t>(bytes));
  std::memset(shared, 0xff, 16);
  machine.fibers[static_cast<size_t>(machine.current)].copies.push_back(copy);
}
void copies_arrived() {
  auto& copies = machine.fibers[static_cast<size_t>(machine.current)].copies;
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.bytes, 16);
  copies.clear();
}
void must_be_aligned(const void* p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) != 0) {
    stop("an access is not aligned to its size");
  }
}

void emulate_blocks(Grid grid, int threads, int64_t shared_bytes, Order order,
                    void (*run)(const void*), const void* params) {
  if (threads % kLanes != 0) stop("a block is whole warps");
  if (grid.y > 65535 || grid.z > 65535) stop("a grid's y and z are at most 65535");
  Machine& m = machine;
  m.threads = threads;
  m.run = run;
  m.params = params;
  if (m.fibers.size() != static_cast<size_t>(threads)) {
    m.fibers = std::vector<Fiber>(static_cast<size_t>(threads));
    for (Fiber& fiber : m.fibers) fiber.stack.reset(new uint8_t[kStackBytes]);
  }
  m.warps.resize(static_cast<size_t>(threads / kLanes));
  const int blocks = grid.x * grid.y * grid.z;
  for (int i = 0; i < blocks; ++i) {
    const int block = place(order, i, blocks);
    m.x = block % grid.x;
    m.y = block / grid.x % grid.y;
    m.z = block / grid.x / grid.y;
    m.shared = std::make_unique<GuardedBytes>(shared_bytes);
    run_block(order);
  }
}

GuardedBytes::GuardedBytes(int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t rounded = (bytes + 15) / 16 * 16;
  const int64_t body = (rounded + page - 1) / page * page;
  size_ = body + page;
  void* memory = mmap(nullptr, static_cast<size_t>(size_), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) stop("no memory");
  pages_ = static_cast<uint8_t*>(memory);
  data_ = pages_ + body - rounded;
  std::memset(pages_, 0xff, static_cast<size_t>(body));
  mprotect(pages_ + body, static_cast<size_t>(page), PROT_NONE);
}
GuardedBytes::~GuardedBytes() { munmap(pages_, static_cast<size_t>(size_)); }

}  // namespace nibble::cuda
