// Dense products: every row of the table against the definition, over shapes that fill
// and do not fill tiles, panels and pieces, each operand as it is and transposed.
#include "kernels/ops/gemm/gemm.h"
#include "op_test.h"

namespace nibble {
namespace {

struct Operands {
  Spaced a, b;
  GemmOperand left, right;
  Operands(int64_t m, int64_t n, int64_t k, bool ta, bool tb)
      : a(random_floats(m * k, 1), ta ? k : m, ta ? m : k),
        b(random_floats(n * k, 2), tb ? n : k, tb ? k : n),
        left{a.view(), ta},
        right{b.view(), tb} {}
};

TEST(Gemm, EveryRowIsWithinItsToleranceOfTheDefinition) {
  const int64_t sizes[][3] = {{1, 1, 1},    {3, 5, 7},     {12, 32, 512}, {13, 33, 513},
                              {241, 7, 40}, {25, 520, 30}, {240, 512, 4}, {7, 31, 1100}};
  for (const auto& [m, n, k] : sizes) {
    for (int which = 0; which < 4; ++which) {
      const Operands x(m, n, k, which & 1, which & 2);
      Spaced exact(m, n), bound(m, n);
      gemm(gemm_kernels().back(), x.left, x.right, exact.view());
      Spaced a = x.a, b = x.b;
      for (float& v : a.data) v = std::fabs(v);
      for (float& v : b.data) v = std::fabs(v);
      gemm(gemm_kernels().back(), {a.view(), x.left.transposed},
           {b.view(), x.right.transposed}, bound.view());
      for (const GemmKernel& kernel : gemm_kernels()) {
        if (!this_cpu_has(kernel.flags)) continue;
        SCOPED_TRACE(std::string(kernel.name) + " " + std::to_string(m) + " " +
                     std::to_string(n) + " " + std::to_string(k) + " " +
                     std::to_string(which));
        Spaced c(m, n);
        gemm(kernel, x.left, x.right, c.view());
        EXPECT_TRUE(c.gaps_untouched());
        const double share = 2.0 * static_cast<double>(k + 8) * 0x1.0p-24;
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            ASSERT_LE(std::fabs(c.view()(i, j) - exact.view()(i, j)),
                      share * bound.view()(i, j))
                << i << " " << j;
          }
        }
      }
    }
  }
}

TEST(Gemm, TheSameBitsAtAnyThreadCount) {
  const Operands x(500, 1030, 700, true, false);
  const int before = thread_count();
  for (const GemmKernel& kernel : gemm_kernels()) {
    if (!this_cpu_has(kernel.flags) || kernel.panel == nullptr) continue;
    Spaced one(500, 1030), two(500, 1030);
    set_thread_count(1);
    gemm(kernel, x.left, x.right, one.view());
    set_thread_count(3);
    gemm(kernel, x.left, x.right, two.view());
    for (int64_t i = 0; i < 500; ++i)
      EXPECT_EQ(std::memcmp(one.view().row(i), two.view().row(i), 1030 * sizeof(float)),
                0);
  }
  set_thread_count(before);
}

TEST(Gemm, NothingToSumIsZero) {
  const Operands x(3, 4, 0, false, false);
  for (const GemmKernel& kernel : gemm_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    Spaced c(3, 4);
    gemm(kernel, x.left, x.right, c.view());
    for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(c.view()(i / 4, i % 4), 0);
  }
}

}  // namespace
}  // namespace nibble
