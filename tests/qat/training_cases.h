// What the tests of qat share: random tensors and tokens, a module's bytes, a call's
// status.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "qat/trainer.h"

namespace nibble::testing {

template <class Call>
Status status_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.status();
  }
  return ok_status();
}

inline torch::Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kFloat);
}

// Seven batches an epoch of `rows` sequences of 8 tokens, of a vocabulary of 23.
inline TrainingData token_data(int64_t rows = 4) {
  TrainingData data;
  data.batches_per_epoch = 7;
  data.batch = [rows](int64_t epoch, int64_t batch) {
    at::Generator generator =
        at::detail::createCPUGenerator(static_cast<uint64_t>(epoch * 1000 + batch));
    const torch::Tensor ids = at::randint(0, 23, {rows, 9}, generator, at::kLong);
    return TrainingBatch{ids.slice(1, 0, 8), ids.slice(1, 1, 9).contiguous()};
  };
  return data;
}

// Every parameter and buffer.
inline std::string bytes_of(const ProgramModule& module) {
  std::string bytes;
  for (const auto& item : module->named_parameters()) {
    const torch::Tensor t = item.value().detach().contiguous();
    bytes.append(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
  }
  for (const auto& item : module->named_buffers()) {
    const torch::Tensor t = item.value().contiguous();
    bytes.append(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
  }
  return bytes;
}

}  // namespace nibble::testing
