// Fine-tunes a language model with 2-bit weights in the loop on a Dataset of one's own,
// here the windows of 64 tokens of a text.
//
//   train_own_dataset MODEL TEXT OUTPUT
#include <torch/torch.h>

#include "qat/dataset.h"
#include "qat/prepare.h"
#include "recipes/data/text.h"
#include "recipes/models/load_model.h"
#include "recipes/recipe/recipe.h"

using namespace nibble;

class Windows : public torch::data::Dataset<Windows> {
 public:
  explicit Windows(torch::Tensor ids) : ids_(std::move(ids)) {}
  torch::data::Example<> get(size_t i) override {
    const torch::Tensor row = ids_[static_cast<int64_t>(i)];
    return {row.slice(0, 0, -1), row.slice(0, 1)};  // each token, the one that follows
  }
  std::optional<size_t> size() const override { return ids_.size(0); }

 private:
  torch::Tensor ids_;
};

int main(int count, char** arguments) try {
  if (count != 4)
    return std::fprintf(stderr, "usage: train_own_dataset MODEL TEXT OUTPUT\n"), 2;
  const auto model =
      std::make_shared<const Artifact>(value_or_throw(load_model(arguments[1], {})));
  const int64_t vocabulary = model->program.vocabulary;
  const auto tokenizer = value_or_throw(make_tokenizer(model->tokenizer, vocabulary));
  const TextData text = value_or_throw(
      load_text(arguments[2], tokenizer.get(), vocabulary, {.length = 64}));
  std::vector<torch::Tensor> rows;
  for (const std::vector<int32_t>& ids : text.sequences)
    if (ids.size() == 64) rows.push_back(torch::tensor(ids, torch::kLong));

  const Recipe recipe = value_or_throw(load_recipe("w4a16-rtn", {"weight=int2/g32@f16"}));
  const Plan plan = value_or_throw(make_plan(recipe, model->program));
  const Calibrated ready = calibrate(model, plan, {}, {});
  ProgramModule module = prepare(ready, {});
  const TrainResult result = train(
      module, batches_of(Windows(torch::stack(rows)), 16, /*seed=*/1),
      {.learning_rate = 5e-4, .scale_learning_rate = 1e-4, .steps = 60}, "", false, {});
  std::printf("loss %.3f at step %ld, %.3f at step %ld\n", result.history.front().loss,
              result.history.front().step, result.history.back().loss, result.steps);
  throw_if_error(write_artifact(freeze(finish(module, ready), model->provenance),
                                arguments[3], true));
  return 0;
} catch (const Error& problem) {
  return std::fprintf(stderr, "%s\n", problem.what()), 1;
}
