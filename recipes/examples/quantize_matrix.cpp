// Quantizes one matrix, packs it, and multiplies with it: the arithmetic of every
// artifact.
//
//   quantize_matrix [SCHEME]      e.g. int4/g128@f16, nf4/f64@f32, e2m1/g16@e4m3/t@f32
#include <cmath>
#include <cstdio>

#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/coded_matrix.h"

using namespace nibble;

Status run(const char* text) {
  constexpr int64_t kRows = 512, kCols = 1024;
  SplitMix64 random(1);
  std::vector<float> weight(kRows * kCols), x(kCols);
  for (float& w : weight) w = static_cast<float>(random.uniform() - 0.5);
  for (float& v : x) v = static_cast<float>(random.uniform() - 0.5);
  const MatrixView<const float> matrix(weight.data(), kRows, kCols);

  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(text));
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix coded,
                          choose_scales(matrix, scheme, {.kind = ScaleRule::Kind::mse}));
  NIBBLE_RETURN_IF_ERROR(quantize(matrix, coded));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(coded, {kRows, kCols}));

  // The best kernel of this machine for the scheme, in the layout that it likes.
  NIBBLE_ASSIGN_OR_RETURN(const LinearWeight linear, linear_weight(packed));
  const LinearKernel* kernel = select_linear(scheme, kCols, LinearActivation::f32);
  NIBBLE_ASSIGN_OR_RETURN(const PreparedLinear prepared, prepare_linear(*kernel, linear));
  std::vector<float> y(kRows);
  run_linear(prepared, {x.data(), 1, kCols}, nullptr, {y.data(), 1, kRows});

  double signal = 0, noise = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    double exact = 0;
    for (int64_t c = 0; c < kCols; ++c) exact += double{matrix(r, c)} * x[c];
    signal += exact * exact;
    noise += (y[r] - exact) * (y[r] - exact);
  }
  std::printf("%s: %.3f bits a weight, kernel %s, y within %.2f %% of float\n", text,
              8.0 * static_cast<double>(packed.bytes()) / (kRows * kCols), kernel->name,
              100 * std::sqrt(noise / signal));
  return ok_status();
}

int main(int count, char** arguments) {
  const Status status = run(count > 1 ? arguments[1] : "int4/g128@f16");
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
