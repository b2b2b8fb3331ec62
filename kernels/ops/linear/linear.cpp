#include "kernels/ops/linear/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/linear/row_levels.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

constexpr uint32_t kVnniFlags = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;
// Columns decoded at a time: two panels of them stay in the L2 cache.
constexpr int64_t kDecodedColumns = 2048;
constexpr int64_t kStep = 8;  // columns of one step of the 4-bit layout

bool is_any(const QuantScheme&) { return true; }
bool is_f32(const QuantScheme& s) { return s.is_float() && s.code == Element::f32; }
bool is_bf16(const QuantScheme& s) { return s.is_float() && s.code == Element::bf16; }
bool is_f16(const QuantScheme& s) { return s.is_float() && s.code == Element::f16; }
bool is_int4(const QuantScheme& s) {
  return accepts_integer(s) && element_info(s.code).bits <= 4;
}
bool is_int8(const QuantScheme& s) {
  return accepts_integer(s) && element_info(s.code).bits > 4;
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

PanelForm form_of(const PreparedLinear& w) {
  if (w.bits == 4) return PanelForm::int4;
  if (w.bits == 8) return PanelForm::int8;
  if (w.bits == 32) return PanelForm::f32;
  return w.weight.scheme.code == Element::bf16 ? PanelForm::bf16 : PanelForm::f16;
}

PanelCodes panel_codes(const PreparedLinear& w) {
  const auto floats = [](const Bytes& bytes) {
    return bytes.size() == 0 ? nullptr : reinterpret_cast<const float*>(bytes.data());
  };
  return {.cols = w.cols,
          .group = w.group,
          .groups = w.groups,
          .padded_cols = w.padded_cols,
          .panel_bytes = w.panel_bytes,
          .is_signed = w.is_signed,
          .codes = reinterpret_cast<const uint8_t*>(w.codes.data()),
          .scales = floats(w.scales),
          .zeros = floats(w.zeros),
          .minima = floats(w.minima)};
}

// --- repacking

PreparedLinear prepared(const LinearKernel& kernel, const LinearWeight& weight) {
  PreparedLinear w;
  w.kernel = &kernel;
  w.weight = weight;
  w.rows = weight.rows;
  w.cols = weight.cols;
  w.group = weight.cols;
  w.groups = 1;
  w.padded_cols = weight.cols;
  if (kernel.panel != nullptr) {
    w.lanes = kernel.panel->lanes;
    w.panels = round_up((weight.rows + w.lanes - 1) / w.lanes, 2);
  }
  return w;
}

Result<PreparedLinear> repack_nothing(const LinearKernel& kernel, const LinearWeight& weight) {
  return prepared(kernel, weight);
}

Result<PreparedLinear> repack_plain(const LinearKernel& kernel, const LinearWeight& weight) {
  PreparedLinear w = prepared(kernel, weight);
  w.bits = element_info(weight.scheme.code).bits;
  const int64_t size = w.bits / 8;
  w.panel_bytes = w.cols * w.lanes * size;
  std::byte* out = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &out);
  const std::byte* in = weight.plain.bytes.data();
  parallel_for(w.panels, [&](int64_t p) {
    for (int64_t lane = 0; lane < w.lanes; ++lane) {
      const int64_t row = p * w.lanes + lane;
      if (row >= w.rows) break;  // allocate() zeroed the rest
      for (int64_t k = 0; k < w.cols; ++k) {
        std::memcpy(out + p * w.panel_bytes + (k * w.lanes + lane) * size,
                    in + (row * w.cols + k) * size, static_cast<size_t>(size));
      }
    }
  });
  return w;
}

// Levels [rows, groups] to [panels, groups, lanes]; rows beyond the last get 0.
Bytes level_panels(const PreparedLinear& w, const std::vector<float>& values) {
  if (values.empty()) return {};
  std::byte* bytes = nullptr;
  const Bytes result = Bytes::allocate(
      static_cast<size_t>(w.panels * w.groups * w.lanes) * sizeof(float), &bytes);
  float* out = reinterpret_cast<float*>(bytes);
  for (int64_t row = 0; row < w.rows; ++row) {
    const int64_t p = row / w.lanes, lane = row % w.lanes;
    for (int64_t g = 0; g < w.groups; ++g) {
      out[(p * w.groups + g) * w.lanes + lane] =
          values[static_cast<size_t>(row * w.groups + g)];
    }
  }
  return result;
}

Result<PreparedLinear> repack_codes(const LinearKernel& kernel, const LinearWeight& weight) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  PreparedLinear w = prepared(kernel, weight);
  const ElementInfo& element = element_info(weight.scheme.code);
  w.bits = element.bits <= 4 ? 4 : 8;
  w.is_signed = element.lowest < 0;
  w.group = group_columns(weight.scheme, w.cols);
  w.groups = (w.cols + w.group - 1) / w.group;
  w.padded_cols = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    w.padded_cols += round_up(std::min(w.group, w.cols - g * w.group), kStep);
  }
  const RowLevels levels = row_levels(q, w.group);
  w.scales = level_panels(w, levels.scales);
  w.zeros = level_panels(w, levels.zeros);
  w.minima = level_panels(w, levels.minima);

  w.panel_bytes = w.padded_cols * w.lanes * w.bits / 8;
  std::byte* bytes = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &bytes);
  uint8_t* out = reinterpret_cast<uint8_t*>(bytes);
  const uint8_t bias = w.is_signed ? (w.bits == 4 ? 8 : 128) : 0;
  const int64_t padded_group = round_up(w.group, kStep);
  parallel_for(w.panels, [&](int64_t p) {
    uint8_t* panel = out + p * w.panel_bytes;
    for (int64_t lane = 0; lane < w.lanes; ++lane) {
      const int64_t row = p * w.lanes + lane;
      for (int64_t k = 0; k < w.padded_cols; ++k) {
        const int64_t g = k / padded_group, inside = k - g * padded_group;
        const int64_t column = g * w.group + inside;
        const bool real = row < w.rows && inside < w.group && column < w.cols;
        const uint8_t code =
            real ? static_cast<uint8_t>(q.codes[static_cast<size_t>(row * w.cols + column)] +
                                        bias)
                 : bias;
        if (w.bits == 8) {
          panel[(k / 4 * w.lanes + lane) * 4 + k % 4] = code;
        } else {
          uint8_t& byte = panel[(k / 8 * w.lanes + lane) * 4 + k % 4];
          byte = static_cast<uint8_t>(k % 8 < 4 ? (byte & 0xf0) | (code & 15)
                                                : (byte & 0x0f) | (code << 4));
        }
      }
    }
  });
  return w;
}

// --- running

void store_tile(const PreparedLinear& w, int64_t pair, const float* acc, int64_t first,
                int64_t count, const float* bias, MatrixView<float> y) {
  const int64_t column = 2 * pair * w.lanes;
  const int64_t width = std::min(2 * w.lanes, w.rows - column);
  for (int64_t m = 0; m < count; ++m) {
    const float* from = acc + m * 2 * w.lanes;
    float* to = y.row(first + m) + column;
    if (bias != nullptr) {
      for (int64_t j = 0; j < width; ++j) to[j] = from[j] + bias[column + j];
    } else {
      for (int64_t j = 0; j < width; ++j) to[j] = from[j];
    }
  }
}

// Every row of x in full tiles: tile i starts at row starts[i] of the padded rows.
struct Tiles {
  std::vector<int64_t> first;
  std::vector<int> mr;
  int64_t padded_rows = 0;
};
Tiles cut(const PanelIsa& isa, int64_t rows) {
  Tiles tiles;
  for (int64_t row = 0; row < rows;) {
    const int mr = isa.next_tile(rows - row);
    tiles.first.push_back(row);
    tiles.mr.push_back(mr);
    row += mr;
    tiles.padded_rows = row;
  }
  return tiles;
}

thread_local Scratch<float> decoded_scratch, acc_scratch, packed_scratch, sums_scratch;
thread_local Scratch<int32_t> packed_codes_scratch, code_sums_scratch;
thread_local Scratch<int8_t> codes_scratch;
thread_local Scratch<uint8_t> unpacked_scratch;
thread_local Scratch<float> row_scale_scratch;

// y = x W^T by the f32 panel product. decode(p, first, count, out) gives columns of panel p.
template <class Decode>
void panel_linear(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                  MatrixView<float> y, const Decode& decode) {
  const PanelIsa& isa = *w.kernel->panel;
  const Tiles tiles = cut(isa, x.rows);
  const int64_t count = static_cast<int64_t>(tiles.first.size());
  float* packed = packed_scratch.get(static_cast<size_t>(tiles.padded_rows * w.cols));
  parallel_for(count, [&](int64_t i) {
    const int64_t first = tiles.first[static_cast<size_t>(i)];
    pack_rows(x.row(first), x.stride, x.rows - first, w.cols,
              tiles.mr[static_cast<size_t>(i)], packed + first * w.cols);
  });
  // Whole groups a chunk: decoders read group by group.
  int64_t chunk = std::max(kDecodedColumns / w.group * w.group, w.group);
  if (w.group > kDecodedColumns) chunk = w.groups == 1 ? kDecodedColumns : w.group;
  chunk = std::min(chunk, w.cols);
  const int64_t wide = 2 * w.lanes;
  parallel_for(w.panels / 2, [&](int64_t pair) {
    float* panels = decoded_scratch.get(static_cast<size_t>(chunk * wide));
    float* acc = acc_scratch.get(static_cast<size_t>(tiles.padded_rows * wide));
    for (int64_t k = 0; k < w.cols; k += chunk) {
      const int64_t columns = std::min(chunk, w.cols - k);
      decode(2 * pair, k, columns, panels);
      decode(2 * pair + 1, k, columns, panels + columns * w.lanes);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = tiles.first[static_cast<size_t>(i)];
        const int mr = tiles.mr[static_cast<size_t>(i)];
        isa.product_f32(mr, packed + first * w.cols + k * mr, panels,
                        panels + columns * w.lanes, w.lanes, columns, k > 0,
                        acc + first * wide);
      }
    }
    store_tile(w, pair, acc, 0, x.rows, bias, y);
  });
}

// A few tokens straight from the stored form.
void direct_linear(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                   MatrixView<float> y) {
  const PanelCodes codes = panel_codes(w);
  const auto run = w.kernel->isa->direct_f32[static_cast<size_t>(form_of(w))];
  const bool has_offsets = codes.zeros != nullptr || codes.minima != nullptr;
  float* packed = packed_scratch.get(static_cast<size_t>(x.rows * w.padded_cols));
  float* sums = sums_scratch.get(static_cast<size_t>(x.rows * w.groups));
  for (int64_t t = 0; t < x.rows; ++t) {
    float* row = packed + t * w.padded_cols;
    int64_t at = 0;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t first = g * w.group, count = std::min(w.group, w.cols - first);
      const int64_t padded = w.bits <= 8 ? round_up(count, kStep) : count;
      std::copy_n(x.row(t) + first, count, row + at);
      std::fill(row + at + count, row + at + padded, 0.0f);
      at += padded;
      if (!has_offsets) continue;
      float sum = 0;
      for (int64_t k = 0; k < count; ++k) sum += x(t, first + k);
      sums[t * w.groups + g] = sum;
    }
  }
  parallel_for(w.panels / 2, [&](int64_t pair) {
    float* acc = acc_scratch.get(static_cast<size_t>(x.rows * 2 * w.lanes));
    run(codes, 2 * pair, static_cast<int>(x.rows), packed, sums, acc);
    store_tile(w, pair, acc, 0, x.rows, bias, y);
  });
}

void run_decoded(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                 MatrixView<float> y) {
  if (x.rows <= w.kernel->isa->direct_tokens) return direct_linear(w, x, bias, y);
  const PanelCodes codes = panel_codes(w);
  const auto decode = w.kernel->isa->decode[static_cast<size_t>(form_of(w))];
  panel_linear(w, x, bias, y,
               [&](int64_t p, int64_t first, int64_t count, float* out) {
                 decode(codes, p, first, count, out);
               });
}
void run_plain(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
               MatrixView<float> y) {
  run_decoded(w, x, bias, y);
}
void run_codes(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
               MatrixView<float> y) {
  run_decoded(w, x, bias, y);
}

// Any scheme: rows dequantized by the packing's own code, then transposed into panels.
void run_any(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
             MatrixView<float> y) {
  panel_linear(
      w, x, bias, y, [&](int64_t p, int64_t first, int64_t count, float* out) {
        thread_local Scratch<float> rows_scratch;
        float* row = rows_scratch.get(static_cast<size_t>(w.cols));
        for (int64_t lane = 0; lane < w.lanes; ++lane) {
          const int64_t r = p * w.lanes + lane;
          const bool real =
              r < w.rows && weight_rows(w.weight, r, MatrixView<float>(row, 1, w.cols)).ok();
          for (int64_t k = 0; k < count; ++k) {
            out[k * w.lanes + lane] = real ? row[first + k] : 0.0f;
          }
        }
      });
}

void run_s8(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
            MatrixView<float> y) {
  const PanelIsa& isa = *w.kernel->panel;
  const LinearIsa& kernels = *w.kernel->isa;
  const PanelCodes codes = panel_codes(w);
  const bool int4 = w.bits == 4;
  const int code_bias = w.is_signed ? (int4 ? 8 : 128) : 0;
  const int64_t padded = w.padded_cols, n = x.rows;

  int8_t* quantized = codes_scratch.get(static_cast<size_t>(n * padded));
  float* scales = row_scale_scratch.get(static_cast<size_t>(n));
  int32_t* row_sums = code_sums_scratch.get(static_cast<size_t>(n * w.groups));
  const QuantizeRowsFunction quantize_row = select_quantize_rows(isa.flags).run;
  parallel_for(n, [&](int64_t t) {
    int8_t* row = quantized + t * padded;
    quantize_row(MatrixView<const float>(x.row(t), 1, x.cols, x.stride),
                 MatrixView<int8_t>(row, 1, w.cols, padded), scales + t);
    // Groups from the last to the first, so that none is moved over one still to be read.
    int64_t at = padded;
    for (int64_t g = w.groups - 1; g >= 0; --g) {
      const int64_t first = g * w.group, count = std::min(w.group, w.cols - first);
      const int64_t wide = round_up(count, kStep);
      at -= wide;
      std::memmove(row + at, row + first, static_cast<size_t>(count));
      std::memset(row + at + count, 0, static_cast<size_t>(wide - count));
      int32_t sum = 0;
      for (int64_t k = 0; k < count; ++k) sum += row[at + k];
      row_sums[t * w.groups + g] = sum;
    }
  });

  const bool direct = n == 1;
  Tiles tiles;
  if (direct) {
    tiles = {{0}, {1}, 1};
  } else {
    tiles = cut(isa, n);
  }
  const int64_t count = static_cast<int64_t>(tiles.first.size());
  const int64_t steps = padded / 4;
  int32_t* packed =
      packed_codes_scratch.get(static_cast<size_t>(tiles.padded_rows * (steps * isa.dwords + w.groups)));
  int32_t* tile_sums = packed + tiles.padded_rows * steps * isa.dwords;
  parallel_for(count, [&](int64_t i) {
    const int64_t first = tiles.first[static_cast<size_t>(i)];
    const int mr = tiles.mr[static_cast<size_t>(i)];
    pack_codes(isa, quantized + first * padded, padded, n - first, steps, mr,
               packed + first * steps * isa.dwords);
    for (int64_t g = 0; g < w.groups; ++g) {
      for (int m = 0; m < mr; ++m) {
        tile_sums[first * w.groups + g * mr + m] =
            first + m < n ? row_sums[(first + m) * w.groups + g] : 0;
      }
    }
  });
  const int64_t wide = 2 * w.lanes;
  parallel_for(w.panels / 2, [&](int64_t pair) {
    float* acc = acc_scratch.get(static_cast<size_t>(tiles.padded_rows * wide));
    if (direct) {
      (int4 ? kernels.direct_s8_int4 : kernels.direct_s8_int8)(codes, 2 * pair, packed,
                                                              tile_sums, acc);
    } else {
      const uint8_t* u0 = codes.codes + 2 * pair * w.panel_bytes;
      const uint8_t* u1 = u0 + w.panel_bytes;
      if (int4) {
        uint8_t* bytes = unpacked_scratch.get(static_cast<size_t>(padded * wide));
        kernels.unpack_int4(codes, 2 * pair, bytes);
        kernels.unpack_int4(codes, 2 * pair + 1, bytes + padded * w.lanes);
        u0 = bytes;
        u1 = bytes + padded * w.lanes;
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = tiles.first[static_cast<size_t>(i)];
        const int mr = tiles.mr[static_cast<size_t>(i)];
        (mr == isa.tile ? kernels.tile_s8 : kernels.small_s8)(
            codes, 2 * pair, packed + first * steps * isa.dwords,
            tile_sums + first * w.groups, u0, u1, code_bias, acc + first * wide);
      }
    }
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t j = 0; j < wide; ++j) acc[t * wide + j] = acc[t * wide + j] * scales[t];
    }
    store_tile(w, pair, acc, 0, n, bias, y);
  });
}

void run_reference(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                   MatrixView<float> y) {
  // Shapes and scheme were checked when the weight was prepared.
  const Status status = linear_reference(w.weight, w.kernel->activation, x, bias, y);
  static_cast<void>(status);
}

Result<PreparedLinear> (*repack_of(bool (*accepts)(const QuantScheme&),
                                   const PanelIsa* panel))(const LinearKernel&,
                                                           const LinearWeight&) {
  if (panel == nullptr || accepts == is_any) return repack_nothing;
  return accepts == is_int4 || accepts == is_int8 ? repack_codes : repack_plain;
}

}  // namespace

Result<LinearWeight> linear_weight(const Tensor& tensor) {
  LinearWeight weight;
  weight.rows = tensor.rows();
  weight.cols = tensor.cols();
  weight.plain = tensor;
  switch (tensor.dtype) {
    case DType::f32: weight.scheme.code = Element::f32; break;
    case DType::bf16: weight.scheme.code = Element::bf16; break;
    case DType::f16: weight.scheme.code = Element::f16; break;
    case DType::f64: {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
      weight.plain = make_tensor(tensor.shape, values);
      weight.scheme.code = Element::f32;
      break;
    }
    default:
      return error(StatusCode::invalid_argument,
                   "[linear] a weight must be F32, F16, BF16 or F64; found ",
                   dtype_name(tensor.dtype));
  }
  return weight;
}

Result<LinearWeight> linear_weight(const PackedTensor& packed) {
  NIBBLE_RETURN_IF_ERROR(check_packed(packed));
  LinearWeight weight;
  weight.scheme = packed.scheme;
  weight.rows = packed.rows;
  weight.cols = packed.cols;
  weight.packed = packed;
  return weight;
}

Status weight_rows(const LinearWeight& weight, int64_t first, MatrixView<float> x) {
  if (x.cols != weight.cols || first < 0 || first + x.rows > weight.rows) {
    return error(StatusCode::invalid_argument, "[linear] rows ", first, " to ",
                 first + x.rows, " of ", x.cols, " columns were asked of a weight [",
                 weight.rows, ", ", weight.cols, "]");
  }
  if (!weight.is_plain()) return dequantize_rows(weight.packed, first, x);
  const std::byte* data = weight.plain.bytes.data();
  for (int64_t r = 0; r < x.rows; ++r) {
    const int64_t begin = (first + r) * weight.cols;
    if (weight.scheme.code == Element::f32) {
      std::memcpy(x.row(r), data + begin * 4, static_cast<size_t>(weight.cols) * 4);
      continue;
    }
    const bool bf16 = weight.scheme.code == Element::bf16;
    for (int64_t c = 0; c < weight.cols; ++c) {
      uint16_t bits;
      std::memcpy(&bits, data + (begin + c) * 2, 2);
      x(r, c) = bf16 ? float_from_bf16(bits) : float_from_f16(bits);
    }
  }
  return ok_status();
}

const std::vector<LinearKernel>& linear_kernels() {
  static const std::vector<LinearKernel> kernels = {
#define NIBBLE_LINEAR(name_, flags_, activation_, accepts_, run_, panel_, isa_) \
  {.name = name_,                                                               \
   .flags = flags_,                                                             \
   .activation = LinearActivation::activation_,                                 \
   .accepts = accepts_,                                                         \
   .repack = repack_of(accepts_, panel_),                                       \
   .run = run_,                                                                 \
   .panel = panel_,                                                             \
   .isa = isa_},
#include "kernels/ops/linear/kernels.inc"
#undef NIBBLE_LINEAR
  };
  return kernels;
}

const LinearKernel* select_linear(const QuantScheme& scheme, LinearActivation activation,
                                  uint32_t cpu_flags) {
  for (const LinearKernel& kernel : linear_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0 && kernel.can_run(scheme, activation)) {
      return &kernel;
    }
  }
  return nullptr;
}

Result<PreparedLinear> prepare_linear(const LinearKernel& kernel, const LinearWeight& weight) {
  if (!kernel.can_run(weight.scheme, kernel.activation)) {
    return error(StatusCode::unsupported, "[linear] ", kernel.name, " cannot run ",
                 to_string(weight.scheme));
  }
  return kernel.repack(kernel, weight);
}

void run_linear(const PreparedLinear& weight, MatrixView<const float> x, const float* bias,
                MatrixView<float> y) {
  if (x.rows > 0) weight.kernel->run(weight, x, bias, y);
}

}  // namespace nibble
