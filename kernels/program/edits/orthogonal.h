// Orthogonal matrices of any size that need no storing and mix all their channels, where
// Hadamard matrices of that size are known.
//
//   Q = diag(s) (H_a x H_m) / sqrt(a m)     n = a m, a a power of two, s random signs
//
// H_a is Sylvester's, H_m one of Paley's (of order q + 1 for a prime q = 3 mod 4, or
// 2 (q + 1) for a prime q = 1 mod 4); m is the smallest that serves, 1 where n is a power
// of two. Of other n Q is block diagonal, of blocks of the largest power of two in n.
//
// Construction allocates at most 512 x 512 numbers; apply nothing but its scratch. Safe to
// apply from many threads.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

class Orthogonal {
 public:
  // Of n = repeats * size channels: `repeats` times the same matrix (of attention heads).
  // seed 0: no signs, s = 1.
  explicit Orthogonal(int64_t size, int64_t repeats = 1, uint64_t seed = 0);
  // The largest power of two that divides size: Sylvester's matrix, no signs, in blocks.
  static Orthogonal in_blocks(int64_t size, int64_t block);

  int64_t channels() const { return size_ * repeats_; }
  int64_t mixed() const { return power_ * paley_; }  // channels that meet in one
  // row [channels] becomes row Q; scratch [at least 512].
  void apply(double* row, double* scratch) const;

 private:
  int64_t size_ = 1, repeats_ = 1;
  int64_t power_ = 1, paley_ = 1;  // a and m of a block; size_ / (a m) blocks
  std::vector<double> matrix_;     // H_m, [m, m]
  std::vector<double> signs_;      // [size], or empty
};

// The largest power of two that divides n.
int64_t power_of_two_in(int64_t n);

}  // namespace nibble
