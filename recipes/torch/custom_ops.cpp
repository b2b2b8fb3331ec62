// Quantized linear layers as torch operators, for Python and for torch.compile.
//
//   torch.ops.load_library("libnibble_torch_ops.so")
//   packed = torch.ops.nibble.pack_linear(codes, scales, zeros, scheme, int8_activations)
//   y = torch.ops.nibble.linear_w4a16(x, packed, scheme, out_features, bias)
//
//   codes    [N, K] int8 or uint8, one code an element, those of `scheme`
//   scales   [N, K / group] float; zeros  the same shape, or None
//   packed   uint8, what this machine's kernels read; on codes' device
//   x        [..., K] f16, bf16, or on the CPU f32; bias [N] f32 or None
//   y        [..., N] of x's type
//
// linear_w4a16 takes schemes of at most 4 bits a code, linear_w8a16 of more, linear_w8a8
// intN with one scale a row, whose activations it quantizes a token at a time (linear.h's
// definition). The schemes have one level of scales. Errors are RuntimeErrors with a
// Status's message. No gradients.
//
// This file has the CPU's operators and the shapes for torch.compile (Meta);
// custom_ops_cuda.cpp the GPU's.
#include "recipes/torch/custom_ops.h"

#include <torch/library.h>

#include <cstring>
#include <memory>

#include "kernels/base/cpu.h"

namespace nibble::torch_ops {

namespace {

Status check_codes(const at::Tensor& codes, const at::Tensor& scales,
                   const std::optional<at::Tensor>& zeros, const QuantScheme& scheme) {
  const auto refuse = [](const auto&... what) {
    return error(StatusCode::invalid_argument, "[torch] pack_linear: ", what...);
  };
  if (scheme.is_float() || scheme.scales.size() != 1 || scheme.offsets.size() > 1 ||
      scheme.scales[0].shifted || scheme.offset == OffsetKind::minimum) {
    return refuse("a scheme of one level of scales and no minima is needed; found ",
                  to_string(scheme));
  }
  if (codes.dim() != 2 ||
      (codes.scalar_type() != at::kByte && codes.scalar_type() != at::kChar)) {
    return refuse("codes must be a matrix of int8 or uint8");
  }
  const int64_t rows = codes.size(0), cols = codes.size(1);
  const LevelShape wanted = level_shape(scheme.scales[0].block, rows, cols);
  if (scales.numel() != wanted.rows * wanted.cols) {
    return refuse(wanted.rows, " x ", wanted.cols, " scales are needed for ",
                  to_string(scheme), " [", rows, ", ", cols, "]; found ", scales.numel());
  }
  const bool needs_zeros = scheme.offset == OffsetKind::zero_point;
  if (needs_zeros != zeros.has_value()) {
    return refuse(to_string(scheme), needs_zeros ? " needs zeros; found none"
                                                 : " has no zero points; found zeros");
  }
  if (needs_zeros) {
    const LevelShape shape = level_shape(scheme.offsets[0].block, rows, cols);
    if (zeros->numel() != shape.rows * shape.cols) {
      return refuse(shape.rows, " x ", shape.cols, " zeros are needed; found ",
                    zeros->numel());
    }
  }
  return ok_status();
}

}  // namespace

Result<LinearWeight> weight_of(const at::Tensor& codes, const at::Tensor& scales,
                               const std::optional<at::Tensor>& zeros,
                               const QuantScheme& scheme) {
  NIBBLE_RETURN_IF_ERROR(check_codes(codes, scales, zeros, scheme));
  CodedMatrix q;
  q.scheme = scheme;
  q.rows = codes.size(0);
  q.cols = codes.size(1);
  const at::Tensor bytes = codes.cpu().contiguous();
  const uint8_t* first = static_cast<const uint8_t*>(bytes.const_data_ptr());
  q.codes.assign(first, first + bytes.numel());
  const auto level = [&](const at::Tensor& values, const ScaleLevel& of) {
    const at::Tensor floats = values.cpu().to(at::kFloat).contiguous();
    const LevelShape shape = level_shape(of.block, q.rows, q.cols);
    const float* data = floats.const_data_ptr<float>();
    return CodedLevel{.rows = shape.rows,
                      .cols = shape.cols,
                      .values = std::vector<float>(data, data + floats.numel())};
  };
  q.scales.push_back(level(scales, scheme.scales[0]));
  if (zeros.has_value()) q.offsets.push_back(level(*zeros, scheme.offsets[0]));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {q.rows, q.cols}));
  return linear_weight(packed);
}

namespace {

// A PreparedLinear in one tensor: this header, then codes, scales and zeros, each from a
// multiple of 64 bytes. It is for the machine that made it: `row` is an index into
// linear_kernels().
struct Header {
  char mark[8];
  int64_t row, rows, cols, lanes, panels, group, groups, padded_cols, panel_bytes;
  int64_t is_signed, bits, codes, scales, zeros, scale_form, zero_form;
  float table[16];
};
constexpr char kMark[8] = "nibble2";
constexpr int64_t kAlign = 64;
int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

at::Tensor pack_cpu(const at::Tensor& codes, const at::Tensor& scales,
                    const std::optional<at::Tensor>& zeros, std::string_view scheme_text,
                    bool int8_activations) {
  const QuantScheme scheme = value_or_throw(parse_scheme(scheme_text));
  const LinearWeight weight = value_or_throw(weight_of(codes, scales, zeros, scheme));
  const LinearActivation activation =
      int8_activations ? LinearActivation::s8 : LinearActivation::f32;
  // Of the rows that keep no source: their panels are all there is to keep.
  const LinearKernel* kernel = nullptr;
  for (const LinearKernel& row : linear_kernels()) {
    if ((row.flags & ~usable_cpu_flags()) == 0 && row.isa != nullptr &&
        row.can_run(scheme, weight.cols, activation)) {
      kernel = &row;
      break;
    }
  }
  if (kernel == nullptr) {
    throw Error(error(StatusCode::unsupported,
                      "[torch] pack_linear: no kernel of this CPU runs ",
                      to_string(scheme), " [", weight.rows, ", ", weight.cols, "]",
                      int8_activations ? " with int8 activations" : ""));
  }
  const PreparedLinear w = value_or_throw(prepare_linear(*kernel, weight));
  Header header = {};
  std::memcpy(header.mark, kMark, sizeof(kMark));
  header.row = kernel - linear_kernels().data();
  header.rows = w.rows, header.cols = w.cols, header.lanes = w.lanes;
  header.panels = w.panels, header.group = w.group, header.groups = w.groups;
  header.padded_cols = w.padded_cols, header.panel_bytes = w.panel_bytes;
  header.is_signed = w.is_signed, header.bits = w.bits;
  header.codes = static_cast<int64_t>(w.codes.size());
  header.scales = static_cast<int64_t>(w.scales.bytes.size());
  header.zeros = static_cast<int64_t>(w.zeros.bytes.size());
  header.scale_form = static_cast<int64_t>(w.scales.form);
  header.zero_form = static_cast<int64_t>(w.zeros.form);
  for (size_t i = 0; i < 16; ++i) header.table[i] = w.table[i];
  const int64_t total = padded(sizeof(Header)) + padded(header.codes) +
                        padded(header.scales) + padded(header.zeros);
  at::Tensor packed = at::zeros({total}, at::kByte);
  uint8_t* to = packed.mutable_data_ptr<uint8_t>();
  std::memcpy(to, &header, sizeof(header));
  to += padded(sizeof(Header));
  for (const Bytes* part : {&w.codes, &w.scales.bytes, &w.zeros.bytes}) {
    if (part->size() > 0) std::memcpy(to, part->data(), part->size());
    to += padded(static_cast<int64_t>(part->size()));
  }
  return packed;
}

// The PreparedLinear that `packed` holds, over its memory.
PreparedLinear prepared_of(const at::Tensor& packed, const QuantScheme& scheme,
                           int64_t out_features, LinearActivation activation) {
  const auto refuse = [](const char* what) {
    throw Error(error(StatusCode::invalid_argument, "[torch] linear: ", what,
                      "; pack the weight with pack_linear on this machine"));
  };
  Header header;
  if (packed.scalar_type() != at::kByte || !packed.is_contiguous() ||
      packed.numel() < static_cast<int64_t>(sizeof(header))) {
    refuse("packed must be what pack_linear returned");
  }
  const auto* bytes = static_cast<const std::byte*>(packed.const_data_ptr());
  std::memcpy(&header, bytes, sizeof(header));
  if (std::memcmp(header.mark, kMark, sizeof(kMark)) != 0 || header.row < 0 ||
      header.row >= static_cast<int64_t>(linear_kernels().size()) ||
      padded(sizeof(Header)) + padded(header.codes) + padded(header.scales) +
              padded(header.zeros) !=
          packed.numel()) {
    refuse("packed must be what pack_linear returned");
  }
  const LinearKernel& kernel = linear_kernels()[static_cast<size_t>(header.row)];
  if (header.rows != out_features || !kernel.can_run(scheme, header.cols, activation) ||
      (kernel.flags & ~usable_cpu_flags()) != 0) {
    refuse("the weight was packed with another scheme, out_features or CPU");
  }
  const auto owner = std::make_shared<at::Tensor>(packed);
  PreparedLinear w;
  w.kernel = &kernel;
  w.rows = header.rows, w.cols = header.cols, w.lanes = header.lanes;
  w.panels = header.panels, w.group = header.group, w.groups = header.groups;
  w.padded_cols = header.padded_cols, w.panel_bytes = header.panel_bytes;
  w.is_signed = header.is_signed != 0, w.bits = static_cast<int>(header.bits);
  for (size_t i = 0; i < 16; ++i) w.table[i] = header.table[i];
  w.weight.scheme = scheme;
  bytes += padded(sizeof(Header));
  const auto part = [&](int64_t size) {
    Bytes view(owner, bytes, static_cast<size_t>(size));
    bytes += padded(size);
    return view;
  };
  w.codes = part(header.codes);
  w.scales = {part(header.scales), static_cast<LevelForm>(header.scale_form)};
  w.zeros = {part(header.zeros), static_cast<LevelForm>(header.zero_form)};
  return w;
}

at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& packed,
                      std::string_view scheme_text, int64_t out_features,
                      const std::optional<at::Tensor>& bias,
                      LinearActivation activation) {
  const QuantScheme scheme = value_or_throw(parse_scheme(scheme_text));
  const PreparedLinear w = prepared_of(packed, scheme, out_features, activation);
  check_linear(x, w.cols, out_features, bias);
  const at::Tensor rows = x.reshape({-1, w.cols}).to(at::kFloat).contiguous();
  const at::Tensor added =
      bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
  at::Tensor y = at::empty({rows.size(0), out_features}, rows.options());
  run_linear(w, {rows.const_data_ptr<float>(), rows.size(0), w.cols},
             added.defined() ? added.const_data_ptr<float>() : nullptr,
             {y.mutable_data_ptr<float>(), rows.size(0), out_features});
  return y.to(x.scalar_type()).reshape(output_shape(x, out_features));
}

at::Tensor linear_meta(const at::Tensor& x, const at::Tensor&, std::string_view,
                       int64_t out_features, const std::optional<at::Tensor>&) {
  auto shape = x.sym_sizes().vec();
  shape.back() = out_features;
  return at::empty_symint(shape, x.options());
}

at::Tensor linear_w4a16(const at::Tensor& x, const at::Tensor& packed,
                        std::string_view scheme, int64_t out_features,
                        const std::optional<at::Tensor>& bias) {
  check_bits(scheme, true);
  return linear_cpu(x, packed, scheme, out_features, bias, LinearActivation::f32);
}
at::Tensor linear_w8a16(const at::Tensor& x, const at::Tensor& packed,
                        std::string_view scheme, int64_t out_features,
                        const std::optional<at::Tensor>& bias) {
  check_bits(scheme, false);
  return linear_cpu(x, packed, scheme, out_features, bias, LinearActivation::f32);
}
at::Tensor linear_w8a8(const at::Tensor& x, const at::Tensor& packed,
                       std::string_view scheme, int64_t out_features,
                       const std::optional<at::Tensor>& bias) {
  return linear_cpu(x, packed, scheme, out_features, bias, LinearActivation::s8);
}

}  // namespace

void check_bits(std::string_view scheme_text, bool four) {
  const QuantScheme scheme = value_or_throw(parse_scheme(scheme_text));
  const bool is_four = element_info(scheme.code).bits <= 4;
  if (is_four == four) return;
  throw Error(error(
      StatusCode::invalid_argument, "[torch] ", four ? "linear_w4a16" : "linear_w8a16",
      ": codes of ", four ? "at most 4" : "5 to 8", " bits are needed; found ",
      to_string(scheme), "; call ", four ? "linear_w8a16" : "linear_w4a16"));
}

void check_linear(const at::Tensor& x, int64_t cols, int64_t out_features,
                  const std::optional<at::Tensor>& bias) {
  const bool has_type = x.scalar_type() == at::kHalf ||
                        x.scalar_type() == at::kBFloat16 ||
                        (x.is_cpu() && x.scalar_type() == at::kFloat);
  if (x.dim() >= 1 && x.size(-1) == cols && has_type &&
      (!bias.has_value() || bias->numel() == out_features)) {
    return;
  }
  throw Error(error(StatusCode::invalid_argument, "[torch] linear: x [..., ", cols,
                    "] of f16 or bf16 and a bias of ", out_features,
                    " numbers are needed; found x of ", c10::toString(x.scalar_type()),
                    " with a last size of ", x.dim() >= 1 ? x.size(-1) : 0,
                    bias.has_value() ? cat(", bias ", bias->numel()) : ""));
}

std::vector<int64_t> output_shape(const at::Tensor& x, int64_t out_features) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_features;
  return shape;
}

TORCH_LIBRARY(nibble, m) {
  m.def(
      "pack_linear(Tensor codes, Tensor scales, Tensor? zeros, str scheme, "
      "bool int8_activations=False) -> Tensor");
  for (const char* name : {"linear_w4a16", "linear_w8a16", "linear_w8a8"}) {
    const std::string schema = std::string(name) +
                               "(Tensor x, Tensor packed, str scheme, int out_features, "
                               "Tensor? bias=None) -> Tensor";
    m.def(schema.c_str());
  }
}
TORCH_LIBRARY_IMPL(nibble, CPU, m) {
  m.impl("pack_linear", pack_cpu);
  m.impl("linear_w4a16", linear_w4a16);
  m.impl("linear_w8a16", linear_w8a16);
  m.impl("linear_w8a8", linear_w8a8);
}
TORCH_LIBRARY_IMPL(nibble, Meta, m) {
  m.impl("linear_w4a16", linear_meta);
  m.impl("linear_w8a16", linear_meta);
  m.impl("linear_w8a8", linear_meta);
}

}  // namespace nibble::torch_ops
