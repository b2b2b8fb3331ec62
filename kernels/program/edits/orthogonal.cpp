#include "kernels/program/edits/orthogonal.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/splitmix64.h"
#include "kernels/ops/hadamard/hadamard.h"

namespace nibble {
namespace {

constexpr int64_t kLargestPaley = 512;

bool is_prime(int64_t q) {
  if (q < 2) return false;
  for (int64_t d = 2; d * d <= q; ++d) {
    if (q % d == 0) return false;
  }
  return true;
}

bool is_paley_1(int64_t m) { return m % 4 == 0 && is_prime(m - 1); }
bool is_paley_2(int64_t m) {
  return m % 4 == 0 && (m / 2 - 1) % 4 == 1 && is_prime(m / 2 - 1);
}

// chi(i): 1 for squares modulo q, -1 for others, 0 for 0.
std::vector<int> residues(int64_t q) {
  std::vector<int> chi(static_cast<size_t>(q), -1);
  chi[0] = 0;
  for (int64_t i = 1; i < q; ++i) chi[static_cast<size_t>(i * i % q)] = 1;
  return chi;
}

// Zeros on the diagonal, else +-1, and C C^T = q I: skew where `corner` is -1 (q = 3 mod
// 4), symmetric where it is 1 (q = 1 mod 4).
std::vector<double> conference(int64_t q, double corner) {
  const std::vector<int> chi = residues(q);
  const int64_t n = q + 1;
  std::vector<double> c(static_cast<size_t>(n * n), 0.0);
  for (int64_t i = 1; i < n; ++i) {
    c[static_cast<size_t>(i)] = 1;
    c[static_cast<size_t>(i * n)] = corner;
    for (int64_t j = 1; j < n; ++j)
      c[static_cast<size_t>(i * n + j)] = chi[static_cast<size_t>((i - j + q) % q)];
  }
  return c;
}

// Paley, "On Orthogonal Matrices", 1933: lemmas 2 and 3.
std::vector<double> paley(int64_t m) {
  if (m == 1) return {1.0};
  std::vector<double> h(static_cast<size_t>(m * m));
  if (is_paley_1(m)) {
    h = conference(m - 1, -1);
    for (int64_t i = 0; i < m; ++i) h[static_cast<size_t>(i * m + i)] += 1;
    return h;
  }
  const int64_t n = m / 2;
  const std::vector<double> c = conference(n - 1, 1);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double x = c[static_cast<size_t>(i * n + j)], one = i == j ? 1 : 0;
      double* at = h.data() + 2 * i * m + 2 * j;
      at[0] = x + one;
      at[1] = x - one;
      at[m] = x - one;
      at[m + 1] = -x - one;
    }
  }
  return h;
}

}  // namespace

int64_t power_of_two_in(int64_t n) { return n & -n; }

Orthogonal::Orthogonal(int64_t size, int64_t repeats, uint64_t seed)
    : size_(size), repeats_(repeats), power_(power_of_two_in(size)) {
  const int64_t odd = size / power_;
  for (int64_t m = odd * 4; odd > 1 && m <= std::min(kLargestPaley, size); m *= 2) {
    if (size % m != 0 || (!is_paley_1(m) && !is_paley_2(m))) continue;
    paley_ = m;
    power_ = size / m;
    break;
  }
  matrix_ = paley(paley_);
  if (seed == 0) return;
  SplitMix64 random(seed);
  for (int64_t i = 0; i < size; ++i) signs_.push_back(random.next() >> 63 ? -1.0 : 1.0);
}

Orthogonal Orthogonal::in_blocks(int64_t size, int64_t block) {
  return Orthogonal(block, size / block);
}

void Orthogonal::apply(double* row, double* scratch) const {
  const int64_t block = power_ * paley_;
  const double scale = 1 / std::sqrt(static_cast<double>(block));
  for (int64_t r = 0; r < repeats_; ++r) {
    double* part = row + r * size_;
    for (size_t i = 0; i < signs_.size(); ++i) part[i] *= signs_[i];
    for (double* x = part; x < part + size_; x += block) {
      hadamard_sums(x, power_, paley_);
      for (double* run = x; run < x + block; run += paley_) {
        std::fill_n(scratch, paley_, 0.0);
        for (int64_t i = 0; i < paley_; ++i) {
          const double* h = matrix_.data() + i * paley_;
          for (int64_t j = 0; j < paley_; ++j) scratch[j] += run[i] * h[j];
        }
        for (int64_t j = 0; j < paley_; ++j) run[j] = scratch[j] * scale;
      }
    }
  }
}

}  // namespace nibble
