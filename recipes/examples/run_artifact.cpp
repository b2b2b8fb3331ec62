// Runs a model or artifact without LibTorch: text in, text out.
//
//   run_artifact MODEL [PROMPT]
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/sampler.h"
#include "kernels/tokenizer/tokenizer.h"
#include "recipes/models/load_model.h"

using namespace nibble;

Status run(const std::string& path, const std::string& prompt) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_model(path, {}));
  const auto artifact = std::make_shared<const Artifact>(std::move(loaded));
  const int64_t vocabulary = artifact->program.vocabulary;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          make_tokenizer(artifact->tokenizer, vocabulary));
  NIBBLE_ASSIGN_OR_RETURN(Executor model, Executor::create(artifact, {}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer->encode(prompt));

  constexpr int64_t kMost = 200;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache, model.make_cache(kMost));
  Sampler sampler(/*seed=*/1, /*temperature=*/0.8f, /*top_p=*/0.95f);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  const std::vector<int32_t> ends = tokenizer->eos();
  for (size_t done = 0; static_cast<int64_t>(ids.size()) < kMost;) {
    const auto fresh = std::span<const int32_t>(ids).subspan(done);
    NIBBLE_RETURN_IF_ERROR(model.forward(fresh, *cache, {logits.data(), 1, vocabulary}));
    done = ids.size();
    const int32_t next = sampler.next(logits);
    if (std::find(ends.begin(), ends.end(), next) != ends.end()) break;
    ids.push_back(next);
  }
  std::cout << tokenizer->decode(ids) << "\n";
  return ok_status();
}

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: run_artifact MODEL [PROMPT]\n");
    return 2;
  }
  const Status status = run(arguments[1], count > 2 ? arguments[2] : "");
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
