// An encoder's float operations in float64, each result rounded to float32.
//
// Where activations are dynamic codes, two runtimes that sum a norm or a softmax in
// another order round now and then to neighbouring codes, and each such code moves others:
// embeddings of the same artifact then differ by a part of what the codes lose. With every
// sum and exponential in float64 on both sides (here; in this runtime the reference rows,
// NIBBLE_CPU=reference) the float32 results are the same, and so is every code. Such a
// graph proves an export; the usual one is faster.
#include <cmath>

#include "export/onnx/lowering.h"

namespace nibble {
namespace {

constexpr auto kFloat32 = static_cast<int64_t>(OnnxType::float32);
constexpr auto kFloat64 = static_cast<int64_t>(OnnxType::float64);

// erf(4.2) = 1 - 2.9e-9: a float32 x/2 (1 + erf) cannot tell it from 1.
constexpr double kErfEnd = 4.2;
// The series' terms at its end grow to 5e6 and fall below 1e-12 by the last.
constexpr int kErfTerms = 72;

}  // namespace

std::string OnnxLowering::wide(const std::string& name) const {
  return options_.float64 ? name + ".f64" : name;
}

std::string OnnxLowering::widened(const std::string& x) {
  const std::string name = wide(x);
  if (options_.float64 && made_.insert(name).second) {
    graph_.add("Cast", {x}, name, {{"to", kFloat64}});
  }
  return name;
}

std::string OnnxLowering::wide_number(double value) {
  return options_.float64 ? graph_.number64(value)
                          : graph_.number(static_cast<float>(value));
}

std::string OnnxLowering::narrow(const std::string& name) {
  if (options_.float64) graph_.add("Cast", {wide(name)}, name, {{"to", kFloat32}});
  return name;
}

// erf(z) = 2/sqrt(pi) sum_k (-1)^k z^(2k+1) / (k! (2k+1)) (Abramowitz and Stegun, 7.1.5),
// by Horner's rule in t = -z^2 / 4.2^2, |t| <= 1: of coefficients below float32's least,
// ONNX Runtime's optimizer takes several for one.
std::string add_gelu_float64(OnnxGraph& graph, const std::string& x,
                             const std::string& output) {
  const auto part = [&](const std::string& name) { return output + "/" + name; };
  graph.add("Mul", {x, graph.number64(std::sqrt(0.5))}, part("z_all"));
  graph.add("Clip", {part("z_all"), graph.number64(-kErfEnd), graph.number64(kErfEnd)},
            part("z"));
  graph.add("Mul", {part("z"), part("z")}, part("square"));
  graph.add("Mul", {part("square"), graph.number64(-1 / (kErfEnd * kErfEnd))}, part("t"));
  const auto coefficient = [](int k) {
    double value = 1.0 / (2 * k + 1);
    for (int i = 1; i <= k; ++i) value *= kErfEnd * kErfEnd / i;
    return value;
  };
  std::string sum = graph.number64(coefficient(kErfTerms));
  for (int k = kErfTerms - 1; k >= 0; --k) {
    graph.add("Mul", {sum, part("t")}, part(cat("product", k)));
    sum = graph.add("Add", {part(cat("product", k)), graph.number64(coefficient(k))},
                    part(cat("sum", k)));
  }
  graph.add("Mul", {sum, part("z")}, part("series"));
  graph.add("Mul", {part("series"), graph.number64(2 / std::sqrt(std::acos(-1.0)))},
            part("erf"));
  graph.add("Add", {part("erf"), graph.number64(1)}, part("gate"));
  graph.add("Mul", {x, graph.number64(0.5)}, part("half"));
  return graph.add("Mul", {part("half"), part("gate")}, output);
}

Status check_float64(const Artifact& artifact) {
  if (artifact.program.is_encoder()) return ok_status();
  return error(StatusCode::unsupported, "[onnx] float64: an encoder was required; found ",
               artifact.program.architecture, "; leave the option out");
}

}  // namespace nibble
