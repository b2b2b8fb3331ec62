#include "ptq/calibration/model_weights.h"

#include <ATen/ATen.h>

#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {

const Tensor& ModelWeights::stored(const std::string& name) const {
  const auto tensor = model_.tensors.find(name);
  if (tensor != model_.tensors.end()) return tensor->second;
  throw Error(error(StatusCode::not_found, "[calibrate] ", name,
                    ": the program names it; the model has it not"));
}

at::Tensor ModelWeights::value(const std::string& name) const {
  const Tensor& own = stored(name);
  if (!own.is_float()) return to_torch(own);
  at::Tensor values = at::empty(own.shape, at::kFloat);
  read(name, values.mutable_data_ptr<float>());
  return values;
}

at::Tensor ModelWeights::matrix(const std::string& name) const {
  const Tensor& own = stored(name);
  at::Tensor values = at::empty({own.rows(), own.cols()}, at::kFloat);
  read(name, values.mutable_data_ptr<float>());
  return values;
}

void ModelWeights::read(const std::string& name, float* values) const {
  constexpr int64_t kPiece = 4 << 20;
  const Tensor& own = stored(name);
  const int64_t size = dtype_bytes(own.dtype), count = own.numel();
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t n = std::min(kPiece, count - first);
    throw_if_error(read_floats(own, first, {values + first, static_cast<size_t>(n)}));
    own.bytes.slice(static_cast<size_t>(first * size), static_cast<size_t>(n * size))
        .release_pages();
  }
  const auto factors = factors_.find(name);
  if (factors == factors_.end()) return;
  for (const Factor& factor : factors->second) {
    const std::span<float> all(values, static_cast<size_t>(count));
    if (factor.divides_rows) {
      divide_rows(all, *factor.scaling);
    } else {
      multiply_columns(all, *factor.scaling);
    }
  }
}

at::Tensor ModelWeights::rows(
    const std::string& name, const at::Tensor& ids,
    const std::function<void(int64_t row, float* values)>& read_row) const {
  const Tensor& own = stored(name);
  const int64_t cols = own.cols();
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(cols);
  at::Tensor rows = at::empty(shape, at::kFloat);
  float* out = rows.mutable_data_ptr<float>();
  const at::Tensor flat = ids.contiguous();
  const int64_t* id = flat.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < flat.numel(); ++i, out += cols) {
    if (read_row) {
      read_row(id[i], out);
    } else {
      throw_if_error(read_floats(own, id[i] * cols, {out, static_cast<size_t>(cols)}));
    }
  }
  own.bytes.release_pages();
  return rows;
}

void ModelWeights::scale(ChannelScaling scaling) {
  const auto shared = std::make_shared<const ChannelScaling>(std::move(scaling));
  throw_if_error(check_scaling(*shared, model_.tensors));
  for (const std::string& name : shared->makers) factors_[name].push_back({true, shared});
  for (const std::string& name : shared->readers)
    factors_[name].push_back({false, shared});
}

Tensor ModelWeights::in_memory(const std::string& name) const {
  const Tensor& own = stored(name);
  std::byte* data = nullptr;
  const Bytes bytes =
      Bytes::allocate(static_cast<size_t>(own.numel()) * sizeof(float), &data);
  read(name, reinterpret_cast<float*>(data));
  return {DType::f32, own.shape, bytes};
}

}  // namespace nibble
