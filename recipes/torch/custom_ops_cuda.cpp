// The GPU's rows of the operators in custom_ops.cpp.
//
// Up to 64 tokens run nibble's kernels; more, which tensor cores and not memory bound,
// make the weight f16 or bf16, or of int8 inputs rows of codes, again and multiply by
// torch's cuBLAS; int32 sums then meet nibble's epilogue. Work goes to the current
// stream; nothing waits for the device, so CUDA graphs can record it.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/cuda/memory.h"
#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/linear/cuda_prefill.h"
#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"
#include "recipes/torch/custom_ops.h"

namespace nibble::torch_ops {
namespace {

int multiprocessors() {
  static const int count = value_or_throw(cuda::device_info()).multiprocessors;
  return count;
}

// Words that are 0 between calls, one array a stream, since a stream's calls come one by
// one.
at::Tensor counters(const at::Tensor& x, int64_t words) {
  static std::mutex mutex;
  static std::map<std::pair<int, int64_t>, at::Tensor> arrays;
  const std::lock_guard<std::mutex> lock(mutex);
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(x.get_device());
  at::Tensor& array = arrays[{x.get_device(), stream.id()}];
  if (!array.defined() || array.numel() < words) {
    array = at::zeros({std::max<int64_t>(words, 4096)}, x.options().dtype(at::kInt));
  }
  return array;
}

at::Tensor pack_cuda(const at::Tensor& codes, const at::Tensor& scales,
                     const std::optional<at::Tensor>& zeros, std::string_view scheme_text,
                     bool int8_activations) {
  const QuantScheme scheme = value_or_throw(parse_scheme(scheme_text));
  const LinearWeight weight = value_or_throw(weight_of(codes, scales, zeros, scheme));
  const cuda::LinearPacked packed =
      value_or_throw(cuda::pack_linear(weight, int8_activations));
  at::Tensor bytes = at::empty({packed.bytes()}, at::kByte);
  uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
  for (const Bytes* part : {&packed.codes, &packed.scales, &packed.zeros}) {
    if (part->size() > 0) std::memcpy(to, part->data(), part->size());
    to += part->size();
  }
  return bytes.to(codes.device());
}

// The call on a weight that pack_cuda made: codes, scales and zeros one after the other,
// each a multiple of 32 bytes. What is left beside the codes tells the scales' type.
cuda::LinearCall call_of(const at::Tensor& packed, const QuantScheme& scheme,
                         int64_t rows, int64_t cols, bool int8_activations) {
  const cuda::LinearPacked frame =
      value_or_throw(cuda::linear_frame(scheme, rows, cols, int8_activations));
  cuda::LinearCall call = cuda::linear_call(frame);
  const int64_t code_bytes = int64_t{frame.tiles} * frame.units * 1024;
  const int64_t levels = int64_t{frame.tiles} * frame.groups * cuda::kTileRows;
  const int64_t left = packed.numel() - code_bytes - (frame.has_zeros ? levels : 0);
  bool found = false;
  for (const auto scale :
       {cuda::LinearScale::f32, cuda::LinearScale::f16, cuda::LinearScale::e8m0}) {
    if (left != levels * cuda::scale_bytes(scale)) continue;
    call.scale = scale;
    found = true;
  }
  if (!found || packed.scalar_type() != at::kByte || !packed.is_contiguous()) {
    throw Error(error(StatusCode::invalid_argument,
                      "[torch] linear: packed must be what pack_linear returned for ",
                      to_string(scheme), " [", rows, ", ", cols, "]; found ",
                      packed.numel(), " bytes"));
  }
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  call.codes = bytes;
  call.scales = bytes + code_bytes;
  call.zeros = frame.has_zeros ? bytes + code_bytes + left : nullptr;
  return call;
}

at::Tensor linear_cuda(const at::Tensor& x, const at::Tensor& packed,
                       std::string_view scheme_text, int64_t out_features,
                       const std::optional<at::Tensor>& bias, bool int8_activations) {
  const QuantScheme scheme = value_or_throw(parse_scheme(scheme_text));
  const int64_t cols = x.dim() >= 1 ? x.size(-1) : 0;
  check_linear(x, cols, out_features, bias);
  if (packed.device() != x.device()) {
    throw Error(error(StatusCode::invalid_argument,
                      "[torch] linear: x and packed must be on one device"));
  }
  const c10::cuda::CUDAGuard guard(x.device());
  void* const stream = c10::cuda::getCurrentCUDAStream().stream();
  cuda::LinearCall call = call_of(packed, scheme, out_features, cols, int8_activations);
  call.input = x.scalar_type() == at::kHalf ? cuda::Float16::f16 : cuda::Float16::bf16;
  call.output = x.scalar_type() == at::kHalf ? cuda::Output::f16 : cuda::Output::bf16;
  const at::Tensor rows = x.reshape({-1, cols}).contiguous();
  const int64_t tokens = rows.size(0);
  const std::vector<int64_t> shape = output_shape(x, out_features);
  if (tokens > cuda::kMostTokens && !int8_activations) {
    at::Tensor w = at::empty({out_features, cols}, x.options());
    cuda::DequantizeCall dequantize = cuda::dequantize_call(call);
    dequantize.w = w.mutable_data_ptr();
    throw_if_error(cuda::run_dequantize(dequantize, stream));
    const std::optional<at::Tensor> added =
        bias.has_value() ? std::optional(bias->to(x.scalar_type())) : std::nullopt;
    return at::linear(rows, w, added).reshape(shape);
  }
  at::Tensor y = at::empty({tokens, out_features}, x.options());
  if (tokens == 0) return y.reshape(shape);
  at::Tensor floats, codes, code_scales;
  if (bias.has_value()) {
    floats = bias->to(at::kFloat).contiguous();
    call.bias = floats.const_data_ptr<float>();
  }
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  int64_t x_bytes = 2;
  call.x_stride = cols;
  if (int8_activations) {
    call.x_stride = (cols + 15) / 16 * 16;
    codes = at::empty({tokens, call.x_stride}, x.options().dtype(at::kChar));
    code_scales = at::empty({tokens}, x.options().dtype(at::kFloat));
    throw_if_error(
        cuda::run_quantize_rows({.input = call.input,
                                 .x = from,
                                 .x_stride = cols,
                                 .codes = codes.mutable_data_ptr<int8_t>(),
                                 .stride = call.x_stride,
                                 .scales = code_scales.mutable_data_ptr<float>(),
                                 .tokens = static_cast<int>(tokens),
                                 .cols = static_cast<int>(cols)},
                                stream));
    from = static_cast<const char*>(codes.const_data_ptr());
    x_bytes = 1;
  }
  call.y_stride = out_features;
  if (int8_activations && tokens > cuda::kMostTokens && out_features % 8 == 0) {
    at::Tensor w = at::empty({out_features, call.x_stride}, codes.options());
    throw_if_error(cuda::run_unpack_codes({.form = call.form,
                                           .rows = call.rows,
                                           .cols = call.cols,
                                           .tiles = call.tiles,
                                           .units = call.units,
                                           .codes = call.codes,
                                           .w = w.mutable_data_ptr(),
                                           .stride = call.x_stride},
                                          stream));
    const at::Tensor sums = at::_int_mm(codes, w.t());
    throw_if_error(cuda::run_epilogue({.int_sums = true,
                                       .sums = sums.const_data_ptr(),
                                       .sums_stride = out_features,
                                       .w_scales = static_cast<const float*>(call.scales),
                                       .x_scales = code_scales.const_data_ptr<float>(),
                                       .bias = call.bias,
                                       .output = call.output,
                                       .y = y.mutable_data_ptr(),
                                       .y_stride = out_features,
                                       .rows = call.rows,
                                       .tokens = static_cast<int>(tokens)},
                                      stream));
    return y.reshape(shape);
  }
  for (int64_t first = 0; first < tokens; first += cuda::kMostTokens) {
    call.tokens = static_cast<int>(std::min<int64_t>(cuda::kMostTokens, tokens - first));
    call.x = from + first * call.x_stride * x_bytes;
    call.y = static_cast<char*>(y.mutable_data_ptr()) + first * out_features * 2;
    if (int8_activations) call.x_scales = code_scales.const_data_ptr<float>() + first;
    const cuda::LinearPlan plan = cuda::plan_linear(call.form, call.rows, call.cols,
                                                    call.tokens, multiprocessors());
    at::Tensor partial;
    if (plan.splits > 1) {
      partial = at::empty({plan.partial_bytes}, x.options().dtype(at::kByte));
      call.partial = partial.mutable_data_ptr();
      call.counters = reinterpret_cast<uint32_t*>(
          counters(x, plan.row_blocks).mutable_data_ptr<int32_t>());
    }
    throw_if_error(cuda::run_linear(call, plan, stream));
  }
  return y.reshape(shape);
}

at::Tensor linear_w4a16(const at::Tensor& x, const at::Tensor& packed,
                        std::string_view scheme, int64_t out_features,
                        const std::optional<at::Tensor>& bias) {
  check_bits(scheme, true);
  return linear_cuda(x, packed, scheme, out_features, bias, false);
}
at::Tensor linear_w8a16(const at::Tensor& x, const at::Tensor& packed,
                        std::string_view scheme, int64_t out_features,
                        const std::optional<at::Tensor>& bias) {
  check_bits(scheme, false);
  return linear_cuda(x, packed, scheme, out_features, bias, false);
}
at::Tensor linear_w8a8(const at::Tensor& x, const at::Tensor& packed,
                       std::string_view scheme, int64_t out_features,
                       const std::optional<at::Tensor>& bias) {
  return linear_cuda(x, packed, scheme, out_features, bias, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(nibble, CUDA, m) {
  m.impl("pack_linear", pack_cuda);
  m.impl("linear_w4a16", linear_w4a16);
  m.impl("linear_w8a16", linear_w8a16);
  m.impl("linear_w8a8", linear_w8a8);
}

}  // namespace nibble::torch_ops
