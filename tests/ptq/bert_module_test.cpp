// The torch module of an encoder against transformers.
#include "ptq/module/program_module.h"

#include <ATen/ATen.h>

#include "recipes/models/load_model.h"
#include "tests/interop/bert_reference.h"

namespace nibble {
namespace {

using bert::Reference;

class BertModule : public bert::Encoders {
 protected:
  void compare(const Reference& reference) {
    const Artifact artifact = sample::take(load_model(reference.model, {}));
    ProgramModule module(artifact);
    module->eval();
    torch::NoGradGuard no_grad;
    std::vector<float> values;
    for (const std::vector<int32_t>& ids : reference.ids) {
      const torch::Tensor input =
          at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0);
      const torch::Tensor output = module->forward(input).contiguous();
      const float* data = output.const_data_ptr<float>();
      values.insert(values.end(), data, data + output.numel());
    }
    EXPECT_LT(bert::relative_difference(values, reference.values), 1e-4);
  }
};

TEST_F(BertModule, GivesWhatTransformersGives) {
  std::map<std::string, Reference> references;
  if (!tiny(references)) GTEST_SKIP() << skipped_;
  for (const auto& [kind, reference] : references) {
    SCOPED_TRACE(kind);
    compare(reference);
  }
}

TEST_F(BertModule, MiniLMGivesTheEmbeddingsThatTransformersGives) {
  Reference reference;
  if (!minilm(reference)) GTEST_SKIP() << skipped_;
  compare(reference);
}

}  // namespace
}  // namespace nibble
