// A method turns one layer's float weight into codes and scales. The rows are in
// methods.inc.
//
//   weight [out, in]   a convolution's is [out, in/groups * kh * kw]
//   inputs             what the layer's inputs were on the calibration data (hessian.h);
//   null
//                      when the plan needs no data
//
// solve throws nibble::Error naming the node. Safe to call for different layers at once.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/matrix_view.h"
#include "kernels/scheme/coded_matrix.h"
#include "ptq/methods/hessian.h"
#include "ptq/methods/row_sample.h"
#include "ptq/plan.h"

namespace nibble {

struct LayerProblem {
  std::string node;
  MatrixView<const float> weight;
  QuantScheme scheme;
  ScaleRule rule;
  GptqOptions gptq;
  AutoRoundOptions autoround;
  const Hessian* inputs = nullptr;
  AdaRoundOptions adaround = {};
  // Of a layer whose outputs a ReLU alone reads, for a method that minds it (wants_rows):
  // some of the inputs themselves, and the bias, f32 [out], undefined where it has none.
  const RowSample* rows = nullptr;
  at::Tensor bias = {};
};

struct SolvedLayer {
  CodedMatrix coded;
  std::string
      note;  // what the ledger should say: "damping 0.01 -> 0.1", "3 dead columns"
};

struct Method {
  const char* name;
  bool needs_inputs;
  SolvedLayer (*solve)(const LayerProblem& problem);
  // solve works on its rows in parallel: layers are given to it one after another, which
  // takes the memory of one. Others are solved side by side, each on one thread.
  bool rows_in_parallel = false;
  // It asks for LayerProblem::rows.
  bool wants_rows = false;
};
const std::vector<Method>& all_methods();
// A method of the caller's own, from then on known to plans and recipes by its name,
// which must live as long as the program. Before other threads run. invalid_argument: the
// name is taken.
Status add_method(const Method& method);
const Method* find_method(const std::string& name);

#define NIBBLE_METHOD(name, needs_inputs, description) \
  SolvedLayer solve_##name(const LayerProblem& problem);
#include "ptq/methods/methods.inc"
#undef NIBBLE_METHOD

// |W - Q|^2 / |W|^2, sums in double; 0 for a weight of zeros.
double weight_error(MatrixView<const float> weight, const CodedMatrix& coded);
// trace(dW H dW^T) / trace(W H W^T), dW = W - Q: the relative squared error of the
// outputs, of a layer with more than 1,024 rows over rows evenly apart, at most so many.
double output_error(MatrixView<const float> weight, const CodedMatrix& coded,
                    const Hessian& inputs);

// The same two of several matrices Q [out, in] that should stand for one weight; `output`
// is -1 without inputs.
struct LayerError {
  double weight = 0, output = -1;
};
std::vector<LayerError> layer_errors(
    MatrixView<const float> weight,
    const std::vector<MatrixView<const float>>& approximations, const Hessian* inputs);
std::vector<float> dequantized(const CodedMatrix& coded);  // [rows * cols]

}  // namespace nibble
