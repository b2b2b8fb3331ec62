// A TensorProto as a Tensor: raw bytes, typed fields, or a file beside the model.
#pragma once

#include <filesystem>
#include <string>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace onnx {
class TensorProto;
}

namespace nibble {

// f32, f16, bf16, f64, i64, i32 and bool (as u8). unsupported: another type; data_loss: data
// that is not there or of another size. The message names the tensor.
Result<Tensor> tensor_of(const onnx::TensorProto& proto,
                         const std::filesystem::path& directory);

// What external_data says: a range of a file beside the model, by a relative name without "..".
Result<std::string> external_bytes(const onnx::TensorProto& proto,
                                   const std::filesystem::path& directory);

}  // namespace nibble
