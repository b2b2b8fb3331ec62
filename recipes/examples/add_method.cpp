// A PTQ method of one's own, used through a recipe like any other: stochastic rounding,
// which is unbiased (Gupta et al., arXiv 1502.02551, sec. 3) and, for weights, worse than
// nearest.
//
//   add_method MODEL OUTPUT
#include <cstdio>

#include "kernels/base/splitmix64.h"
#include "ptq/calibrate.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "recipes/models/load_model.h"
#include "recipes/recipe/recipe.h"

using namespace nibble;

// weight [out, in] -> codes and scales. x + (u - 1/2) s rounds up with the chance that x
// is past the code below it.
SolvedLayer solve_stochastic(const LayerProblem& problem) {
  CodedMatrix coded =
      value_or_throw(choose_scales(problem.weight, problem.scheme, problem.rule));
  const std::vector<float> scale = expanded_scales(coded);
  std::vector<float> dithered(scale.size());
  SplitMix64 random(1);
  for (size_t i = 0; i < dithered.size(); ++i) {
    const float u = static_cast<float>(random.uniform()) - 0.5f;
    dithered[i] = problem.weight.data[i] + u * scale[i];
  }
  throw_if_error(
      quantize({dithered.data(), problem.weight.rows, problem.weight.cols}, coded));
  return {.coded = std::move(coded), .note = "rounded at random, seed 1"};
}

int main(int count, char** arguments) try {
  if (count != 3) return std::fprintf(stderr, "usage: add_method MODEL OUTPUT\n"), 2;
  throw_if_error(add_method(
      {.name = "stochastic", .needs_inputs = false, .solve = solve_stochastic}));

  const auto model =
      std::make_shared<const Artifact>(value_or_throw(load_model(arguments[1], {})));
  for (const char* method : {"rtn", "stochastic"}) {
    const Recipe recipe = value_or_throw(
        load_recipe("w4a16-rtn", {"group=32", std::string("method=") + method}));
    const Plan plan = value_or_throw(make_plan(recipe, model->program));
    const Artifact artifact = freeze(calibrate(model, plan, {}, {}), model->provenance);
    double error = 0;
    for (const LedgerEntry& entry : artifact.ledger.entries) error += entry.error;
    std::printf("%s: %.5f, relative squared error of the weights, over all layers\n",
                method, error);
    throw_if_error(
        write_artifact(artifact, std::string(arguments[2]) + "-" + method, true));
  }
  return 0;
} catch (const Error& problem) {
  return std::fprintf(stderr, "%s\n", problem.what()), 1;
}
