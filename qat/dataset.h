// A person's own dataset as training data: anything that has get(i) and size(), as
// torch::data::Dataset has them.
//
//   dataset.get(i)  -> data, target: tensors of one shape for every i, the same at every
//                      call for the same i (a resumed run asks again)
//   dataset.size()  -> the number of examples
//
// batches_of shuffles by seed and epoch alone; a last batch that is not full is left out.
// invalid_argument: fewer examples than a batch has. Keeps the dataset; one thread at a
// time.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/base/splitmix64.h"
#include "qat/trainer.h"

namespace nibble {

template <class Dataset>
TrainingData batches_of(Dataset dataset, int64_t batch, uint64_t seed) {
  auto shared = std::make_shared<Dataset>(std::move(dataset));
  const auto count = static_cast<int64_t>(*shared->size());
  if (batch < 1 || count < batch) {
    throw Error(error(StatusCode::invalid_argument, "[dataset] batch: 1 to ", count,
                      " examples, as many as there are, were required; found ", batch,
                      "; change the batch or give more data"));
  }
  TrainingData data;
  data.batches_per_epoch = count / batch;
  data.batch = [shared, count, batch, seed](int64_t epoch, int64_t index) {
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    SplitMix64 random(mix64(seed) ^ mix64(static_cast<uint64_t>(epoch) + 1));
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[random.below(i)]);
    std::vector<torch::Tensor> inputs, targets;
    for (int64_t i = index * batch; i < (index + 1) * batch; ++i) {
      auto example = shared->get(static_cast<size_t>(order[static_cast<size_t>(i)]));
      inputs.push_back(std::move(example.data));
      targets.push_back(std::move(example.target));
    }
    return TrainingBatch{at::stack(inputs), at::stack(targets)};
  };
  return data;
}

}  // namespace nibble
