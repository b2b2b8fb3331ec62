#include "recipes/eval/weight_statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/parallel.h"

namespace nibble {
namespace {

constexpr int64_t kPiece = 1 << 16;

template <typename Function>  // Function(value) -> double
double sum_of(const std::vector<float>& values, const Function& function) {
  const int64_t count = static_cast<int64_t>(values.size());
  const int64_t pieces = (count + kPiece - 1) / kPiece;
  std::vector<double> sums(static_cast<size_t>(pieces));
  parallel_for(pieces, [&](int64_t piece) {
    const int64_t end = std::min(count, (piece + 1) * kPiece);
    double sum = 0;
    for (int64_t i = piece * kPiece; i < end; ++i)
      sum += function(static_cast<double>(values[static_cast<size_t>(i)]));
    sums[static_cast<size_t>(piece)] = sum;
  });
  double sum = 0;
  for (const double piece : sums) sum += piece;
  return sum;
}

}  // namespace

Result<WeightStatistics> weight_statistics(const Tensor& weight) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(weight));
  WeightStatistics out;
  if (values.empty()) return out;
  const double count = static_cast<double>(values.size());
  out.rms = std::sqrt(sum_of(values, [](double w) { return w * w; }) / count);
  float largest = 0;
  for (const float w : values) largest = std::max(largest, std::abs(w));
  if (out.rms > 0) out.peak = largest / out.rms;
  // Two passes: the one-pass formula cancels where the mean is large.
  const double mean = sum_of(values, [](double w) { return w; }) / count;
  const double second =
      sum_of(values, [mean](double w) { return (w - mean) * (w - mean); }) / count;
  const double fourth = sum_of(values,
                               [mean](double w) {
                                 const double square = (w - mean) * (w - mean);
                                 return square * square;
                               }) /
                        count;
  if (second > 0) out.kurtosis = fourth / (second * second);
  return out;
}

}  // namespace nibble
