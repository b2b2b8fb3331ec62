#include "kernels/base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace nibble {
namespace {

class ParallelTest : public ::testing::Test {
 protected:
  ~ParallelTest() override { set_thread_count(before_); }
  const int before_ = thread_count();
};

TEST_F(ParallelTest, CallsEveryIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    set_thread_count(threads);
    EXPECT_EQ(thread_count(), threads);
    for (int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(n));
      parallel_for(n, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
    }
  }
}

struct AddsTo {
  std::atomic<int64_t>* sum;
  int64_t operator()(int64_t i) const { return *sum += i; }
};

TEST_F(ParallelTest, TakesWhateverCanBeCalled) {
  for (int threads : {1, 2}) {
    set_thread_count(threads);
    std::atomic<int64_t> sum{0};
    const AddsTo constant{&sum};
    AddsTo changeable{&sum};
    const std::function<void(int64_t)> function = constant;
    parallel_for(10, constant);
    parallel_for(10, changeable);
    parallel_for(10, AddsTo{&sum});  // what it returns is dropped
    parallel_for(10, function);
    parallel_for(10, [&sum](int i) mutable { sum += i; });
    EXPECT_EQ(sum.load(), 5 * 45);
  }
}

TEST(FunctionRef, PassesValuesOn) {
  int calls = 0;
  auto join = [&calls](std::string a, const std::string& b) {
    ++calls;
    return a + b;
  };
  const FunctionRef<std::string(std::string, const std::string&)> reference = join;
  const auto copy = reference;
  EXPECT_EQ(copy("a", "b"), "ab");
  EXPECT_EQ(reference("c", "d"), "cd");
  EXPECT_EQ(calls, 2);
}

TEST_F(ParallelTest, ManyShortLoopsInARow) {
  set_thread_count(3);
  std::vector<int64_t> sums(64, 0);
  for (int loop = 0; loop < 2000; ++loop) {
    parallel_for(64, [&](int64_t i) { sums[static_cast<size_t>(i)] += i; });
  }
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(sums[static_cast<size_t>(i)], 2000 * i);
}

TEST_F(ParallelTest, NestedCallsRunInline) {
  set_thread_count(4);
  std::atomic<int> calls{0};
  std::atomic<bool> same_thread{true};
  parallel_for(8, [&](int64_t) {
    const std::thread::id outer = std::this_thread::get_id();
    parallel_for(16, [&](int64_t) {
      ++calls;
      if (std::this_thread::get_id() != outer) same_thread = false;
    });
  });
  EXPECT_EQ(calls.load(), 128);
  EXPECT_TRUE(same_thread.load());
}

TEST_F(ParallelTest, CallersOnSeveralThreadsDoNotMeet) {
  set_thread_count(2);
  std::vector<int64_t> totals(4, 0);
  std::vector<std::thread> callers;
  for (size_t t = 0; t < totals.size(); ++t) {
    callers.emplace_back([&totals, t] {
      for (int loop = 0; loop < 200; ++loop) {
        std::vector<int64_t> part(50, 0);
        parallel_for(50, [&](int64_t i) { part[static_cast<size_t>(i)] = i; });
        for (int64_t p : part) totals[t] += p;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int64_t total : totals) EXPECT_EQ(total, 200 * 49 * 50 / 2);
}

}  // namespace
}  // namespace nibble
