// HQQ: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models"
// (2023). No data: the offset of each block is moved so that the weights' rounding errors
// become sparse.
//
//   argmin_z  phi(W - Q^-1(Q(W))),  phi = |.|_p^p, p = 0.7                      eq. 1
//   W_e = shrink(W - W_r),  shrink(x) = sign(x) max(|x| - p |x|^(p-1) / beta, 0)   eq. 4,
//   5 z   = mean over the block of (W_q - (W - W_e) / s)                          eq. 6
//   beta grows by kappa = 1.01 from 10, at most 20 rounds, ended when the mean |W - W_r|
//   no longer falls (the authors' settings)
//
// z is real: it ships as the minimum m = -s * z, rounded to its element at the end (an
// integer zero point would round HQQ's moves away).
//
// HQQ leaves scales alone. Here each block's s and m are then fitted to its codes under
// the same norm (least squares, each weight counted |W - W_r|^(p-2) times, with rounding
// again in turns) for as long as phi falls. Plain least squares loses at 2 bits: it
// shrinks.
#include <algorithm>
#include <cmath>

#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr double kNorm = 0.7, kBeta = 10, kKappa = 1.01;
constexpr int kRounds = 20, kFits = 20;
constexpr double kLeast = 0.02;  // of a scale: an error that counts no more when smaller

Error failure(const LayerProblem& problem, StatusCode code, const std::string& message) {
  return Error(Status(code, cat("[hqq] ", problem.node, ": ", message)));
}

double shrink(double x, double beta) {
  const double magnitude = std::abs(x);
  if (magnitude == 0) return 0;
  const double less = magnitude - kNorm * std::pow(magnitude, kNorm - 1) / beta;
  return less > 0 ? std::copysign(less, x) : 0;
}

// One block: w [n], its scale, its real zero point (before and after).
double solve_block(const float* w, int64_t n, double scale, double zero, double lowest,
                   double highest) {
  const auto code = [&](double x) {
    return std::clamp(std::nearbyint(x / scale + zero), lowest, highest);
  };
  double best = zero, best_error = -1, beta = kBeta;
  for (int round = 0; round < kRounds; ++round, beta *= kKappa) {
    double error = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double q = code(w[i]);
      const double difference = w[i] - scale * (q - zero);
      error += std::abs(difference);
      sum += q - (w[i] - shrink(difference, beta)) / scale;
    }
    if (best_error >= 0 && error >= best_error) break;
    best = zero;
    best_error = error;
    zero = sum / static_cast<double>(n);
  }
  return best;
}

struct Line {
  float scale, minimum;
};

// The line through codes that has the smallest phi on one block, from `line` on.
Line fit_block(const float* w, int64_t n, Line line, double lowest, double highest,
               const Element& scale_element, const Element& minimum_element) {
  Line best = line;
  double best_error = -1;
  for (int round = 0; round < kFits; ++round) {
    const double s = line.scale, m = line.minimum;
    double error = 0, q1 = 0, q2 = 0, w1 = 0, wq = 0, count = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double q = std::clamp(std::nearbyint((w[i] - m) / s), lowest, highest);
      const double difference = w[i] - (s * q + m);
      const double magnitude = std::abs(difference);
      const double c = std::pow(std::max(magnitude, kLeast * s), kNorm - 2);
      error += std::pow(magnitude, kNorm);
      count += c;
      q1 += c * q;
      q2 += c * q * q;
      w1 += c * w[i];
      wq += c * w[i] * q;
    }
    if (best_error >= 0 && error >= best_error) break;
    best = line;
    best_error = error;
    const double spread = count * q2 - q1 * q1;
    if (spread <= 0) break;  // one code alone
    const double scale = (count * wq - q1 * w1) / spread;
    line.scale = round_to_element(scale_element, static_cast<float>(scale));
    line.minimum =
        round_to_element(minimum_element, static_cast<float>((w1 - scale * q1) / count));
    if (!(line.scale > 0) || !std::isfinite(line.scale) || !std::isfinite(line.minimum))
      break;
  }
  return best;
}

}  // namespace

SolvedLayer solve_hqq(const LayerProblem& problem) {
  const QuantScheme& scheme = problem.scheme;
  const bool integer = element_info(scheme.code).kind == ElementKind::integer;
  const bool blocks = scheme.scales.size() == 1 && scheme.offsets.size() == 1 &&
                      scheme.scales[0].block == scheme.offsets[0].block &&
                      (scheme.scales[0].block.kind == Block::Kind::group ||
                       scheme.scales[0].block.kind == Block::Kind::row);
  const bool real =
      blocks && scheme.offset == OffsetKind::minimum &&
      element_info(scheme.offsets[0].element).kind == ElementKind::minifloat;
  if (!integer || !real) {
    throw failure(problem, StatusCode::invalid_argument,
                  cat("integer codes with one scale and one float minimum a group or row "
                      "are required; found ",
                      to_string(scheme), "; use uint4/g64@f16+m/g64@f16 or the like"));
  }
  const MatrixView<const float>& w = problem.weight;
  Result<CodedMatrix> chosen = choose_scales(w, scheme, problem.rule);
  if (!chosen.ok())
    throw failure(problem, chosen.status().code(), chosen.status().message());
  CodedMatrix coded = std::move(chosen).value();
  const Block& block = scheme.scales[0].block;
  const int64_t size = block.kind == Block::Kind::group ? block.cols : w.cols;
  const double lowest = code_lowest(scheme), highest = code_highest(scheme);
  CodedLevel& offsets = coded.offsets[0];
  CodedLevel& scales = coded.scales[0];
  const Element element = scheme.offsets[0].element;
  const Element scale_element = scheme.scales[0].element;
  in_parallel(w.rows, [&](int64_t r) {
    for (int64_t g = 0; g < offsets.cols; ++g) {
      const int64_t at = r * offsets.cols + g;
      const double scale = scales.values[at];
      const double zero = -offsets.values[at] / scale;
      const float* const block = w.row(r) + g * size;
      const int64_t count = std::min(size, w.cols - g * size);
      const double solved = solve_block(block, count, scale, zero, lowest, highest);
      const Line line =
          fit_block(block, count,
                    {scales.values[at],
                     round_to_element(element, static_cast<float>(-scale * solved))},
                    lowest, highest, scale_element, element);
      scales.values[at] = line.scale;
      offsets.values[at] = line.minimum;
    }
  });
  const Status status = quantize(w, coded);
  if (!status.ok()) throw failure(problem, status.code(), status.message());
  return {.coded = std::move(coded), .note = ""};
}

}  // namespace nibble
