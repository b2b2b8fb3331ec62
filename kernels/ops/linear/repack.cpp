#include "kernels/ops/linear/repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/ops/linear/row_levels.h"
#include "kernels/ops/panel/panel.h"

namespace nibble {
namespace {

PreparedLinear frame(const LinearKernel& kernel, const LinearWeight& weight,
                     const LinearInput& input) {
  PreparedLinear result;
  result.kernel = &kernel;
  result.input = input;
  result.rows = weight.rows;
  result.cols = weight.cols;
  result.group = result.padded_cols = weight.cols;
  result.groups = 1;
  if (kernel.panel != nullptr) {
    result.lanes = kernel.panel->lanes;
    const int64_t pair = 2 * result.lanes;
    result.panels = (weight.rows + pair - 1) / pair * 2;
  }
  return result;
}

// The smallest form that holds every value as it is.
LevelForm form_of(const std::vector<float>& values) {
  const auto all = [&](auto same) {
    return std::all_of(values.begin(), values.end(), same);
  };
  if (all([](float v) { return float_from_f16(f16_from_float(v)) == v; })) {
    return LevelForm::f16;
  }
  if (all([](float v) { return float_from_bf16(bf16_from_float(v)) == v; })) {
    return LevelForm::bf16;
  }
  return LevelForm::f32;
}

// [rows, groups] to [pairs][groups][2][lanes]; rows that do not exist hold 0.
PreparedLevels panel_levels(const PreparedLinear& w, const std::vector<float>& values) {
  PreparedLevels levels;
  levels.form = form_of(values);
  const int64_t size = levels.form == LevelForm::f32 ? 4 : 2;
  std::byte* data = nullptr;
  levels.bytes =
      Bytes::allocate(static_cast<size_t>(w.panels * w.groups * w.lanes * size), &data);
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t g = 0; g < w.groups; ++g) {
      const float value = values[static_cast<size_t>(r * w.groups + g)];
      const int64_t at =
          (r / (2 * w.lanes) * w.groups + g) * 2 * w.lanes + r % (2 * w.lanes);
      const uint16_t half =
          levels.form == LevelForm::f16 ? f16_from_float(value) : bf16_from_float(value);
      if (size == 4) {
        std::memcpy(data + at * size, &value, sizeof(value));
      } else {
        std::memcpy(data + at * size, &half, sizeof(half));
      }
    }
  }
  return levels;
}

// Every group is padded to 8 columns: one step of 4-bit codes, two of 8-bit codes. Returns
// a whole group's padded columns.
int64_t set_groups(PreparedLinear& w, const QuantScheme& scheme, const LinearInput& input,
                   int bits) {
  w.weight.scheme = scheme;  // tells the forms of as many bits apart
  w.bits = bits;
  w.group = group_columns(scheme, w.cols, input);
  w.groups = (w.cols + w.group - 1) / w.group;
  const int64_t padded_group = (w.group + 7) / 8 * 8;
  const int64_t last = w.cols - (w.groups - 1) * w.group;
  w.padded_cols = (w.groups - 1) * padded_group + (last + 7) / 8 * 8;
  w.panel_bytes = w.padded_cols * w.lanes * bits / 8;
  return padded_group;
}

// Of panel p: the pair's, or the one beside it.
uint8_t* first_unit(const PreparedLinear& w, std::byte* data, int64_t p) {
  return reinterpret_cast<uint8_t*>(data) + p / 2 * 2 * w.panel_bytes +
         p % 2 * 4 * w.lanes;
}

Result<PreparedLinear> repack_codes(const LinearKernel& kernel, const LinearWeight& weight,
                                    const LinearInput& input, int bits) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  PreparedLinear w = frame(kernel, weight, input);
  const int64_t padded_group = set_groups(w, weight.scheme, input, bits);
  const ElementInfo& element = element_info(weight.scheme.code);
  w.is_signed = element.kind == ElementKind::integer && element.lowest < 0;
  const RowLevels levels = row_levels(q, w.group);
  w.scales = panel_levels(w, levels.scales);
  if (!levels.zeros.empty()) w.zeros = panel_levels(w, levels.zeros);
  if (!levels.minima.empty()) w.minima = panel_levels(w, levels.minima);

  std::byte* data = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &data);
  const int bias = w.is_signed ? 1 << (bits - 1) : 0;
  for (int code = 0; bits == 4 && code < 16; ++code) {
    w.table[static_cast<size_t>(code)] =
        element.kind == ElementKind::integer
            ? static_cast<float>(code - bias)
            : value_of(weight.scheme.code,
                       static_cast<uint8_t>(code & ((1 << element.bits) - 1)));
  }
  const int64_t step_columns = 32 / bits;  // a dword of codes
  parallel_for(w.panels, [&](int64_t p) {
    uint8_t* panel = first_unit(w, data, p);
    for (int64_t lane = 0; lane < w.lanes; ++lane) {
      const int64_t r = p * w.lanes + lane;
      if (r >= w.rows) break;
      const uint8_t* row = q.codes.data() + r * w.cols;
      for (int64_t c = 0; c < w.cols; ++c) {
        const int64_t at = c / w.group * padded_group + c % w.group;
        uint8_t* dword = panel + (at / step_columns * 2 * w.lanes + lane) * 4;
        const uint8_t code = static_cast<uint8_t>(row[c] + bias);
        if (bits == 8) {
          dword[at % 4] = code;
        } else {
          const int64_t inside = at % 8;
          dword[inside % 4] |= static_cast<uint8_t>((code & 15) << (inside / 4 * 4));
        }
      }
    }
  });
  return w;
}

// s (q - z) = s q + (-s z): one kind of offset for the rows that read it as a product.
PreparedLevels minima_of(const PreparedLinear& w, const RowLevels& levels) {
  if (!levels.minima.empty()) return panel_levels(w, levels.minima);
  if (levels.zeros.empty()) return PreparedLevels();
  std::vector<float> minima(levels.zeros.size());
  for (size_t i = 0; i < minima.size(); ++i) {
    minima[i] = -levels.scales[i] * levels.zeros[i];
  }
  return panel_levels(w, minima);
}

}  // namespace

Result<PreparedLinear> repack_plain(const LinearKernel& kernel, const LinearWeight& weight,
                                    const LinearInput& input) {
  PreparedLinear w = frame(kernel, weight, input);
  w.weight.scheme = weight.scheme;  // tells bf16 from f16
  const int64_t bytes = dtype_bytes(weight.plain.dtype);
  w.bits = static_cast<int>(8 * bytes);
  w.panel_bytes = w.cols * w.lanes * bytes;
  std::byte* data = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &data);
  parallel_for(w.panels, [&](int64_t p) {
    for (int64_t lane = 0; lane < w.lanes; ++lane) {
      const int64_t r = p * w.lanes + lane;
      if (r >= w.rows) break;
      const std::byte* row = weight.plain.bytes.data() + r * w.cols * bytes;
      std::byte* out = data + p * w.panel_bytes + lane * bytes;
      for (int64_t c = 0; c < w.cols; ++c) {
        std::memcpy(out + c * w.lanes * bytes, row + c * bytes,
                    static_cast<size_t>(bytes));
      }
    }
  });
  return w;
}

Result<PreparedLinear> repack_int4(const LinearKernel& kernel, const LinearWeight& weight,
                                   const LinearInput& input) {
  return repack_codes(kernel, weight, input, 4);
}

Result<PreparedLinear> repack_int8(const LinearKernel& kernel, const LinearWeight& weight,
                                   const LinearInput& input) {
  return repack_codes(kernel, weight, input, 8);
}

Result<PreparedLinear> repack_table4(const LinearKernel& kernel, const LinearWeight& weight,
                                     const LinearInput& input) {
  return repack_codes(kernel, weight, input, 4);
}

// Bytes in units of 4 columns, each group padded to 8 columns. The rows read e4m3 codes as
// f16 bit patterns, which stand for 2^-8 of their value; the scales make up for it. (NaN
// would be a number so; check_packed has refused it.)
Result<PreparedLinear> repack_fp8(const LinearKernel& kernel, const LinearWeight& weight,
                                  const LinearInput& input) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  PreparedLinear w = frame(kernel, weight, input);
  const int64_t padded_group = set_groups(w, weight.scheme, input, 8);
  RowLevels levels = row_levels(q, w.group);
  if (weight.scheme.code == Element::e4m3) {
    for (float& scale : levels.scales) scale *= 256;
  }
  w.scales = panel_levels(w, levels.scales);
  std::byte* data = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &data);
  parallel_for(w.panels, [&](int64_t p) {
    uint8_t* panel = first_unit(w, data, p);
    for (int64_t lane = 0; lane < std::min(w.lanes, w.rows - p * w.lanes); ++lane) {
      const uint8_t* row = q.codes.data() + (p * w.lanes + lane) * w.cols;
      for (int64_t c = 0; c < w.cols; ++c) {
        const int64_t at = c / w.group * padded_group + c % w.group;
        panel[(at / 4 * 8 + at % 4) * w.lanes + lane] = row[c];
      }
    }
  });
  return w;
}

Result<PreparedLinear> repack_bf16_plain(const LinearKernel& kernel, const LinearWeight& weight,
                                         const LinearInput& input) {
  PreparedLinear w = frame(kernel, weight, input);
  w.weight.scheme = weight.scheme;
  w.bits = 16;
  w.padded_cols = (w.cols + 7) / 8 * 8;
  w.panel_bytes = w.padded_cols * w.lanes * 2;
  w.scales = panel_levels(w, std::vector<float>(static_cast<size_t>(w.rows), 1.0f));
  std::byte* data = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &data);
  uint16_t* const out = reinterpret_cast<uint16_t*>(data);
  std::vector<Status> read(static_cast<size_t>(w.panels));
  parallel_for(w.panels, [&](int64_t p) {
    std::vector<float> row(static_cast<size_t>(w.cols));
    for (int64_t lane = 0; lane < w.lanes; ++lane) {
      const int64_t r = p * w.lanes + lane;
      if (r >= w.rows) break;
      Status& status = read[static_cast<size_t>(p)];
      status = weight_rows(weight, r, MatrixView<float>(row.data(), 1, w.cols));
      if (!status.ok()) return;
      uint16_t* to = out + p / 2 * w.panel_bytes + (p % 2 * w.lanes + lane) * 2;
      for (int64_t at = 0; at < w.padded_cols; ++at) {
        const int64_t c = at / 8 * 8 + kBf16Order[at % 8];
        if (c >= w.cols) continue;
        to[at / 2 * 4 * w.lanes + at % 2] = bf16_from_float(row[static_cast<size_t>(c)]);
      }
    }
  });
  for (const Status& status : read) NIBBLE_RETURN_IF_ERROR(status);
  return w;
}

Result<PreparedLinear> repack_bf16_table4(const LinearKernel& kernel, const LinearWeight& weight,
                                          const LinearInput& input) {
  NIBBLE_ASSIGN_OR_RETURN(PreparedLinear w, repack_codes(kernel, weight, input, 4));
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  w.minima = minima_of(w, row_levels(q, w.group));
  w.zeros = PreparedLevels();
  uint16_t values[32];
  for (size_t i = 0; i < 32; ++i) values[i] = bf16_from_float(w.table[i % 16]);
  w.values = Bytes::copy_of(values, sizeof(values));
  return w;
}

Result<PreparedLinear> repack_bf16_table8(const LinearKernel& kernel, const LinearWeight& weight,
                                          const LinearInput& input) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  PreparedLinear w = frame(kernel, weight, input);
  const int64_t padded_group = set_groups(w, weight.scheme, input, 8);
  const RowLevels levels = row_levels(q, w.group);
  w.scales = panel_levels(w, levels.scales);
  w.minima = minima_of(w, levels);
  uint8_t values[2][256];
  for (int code = 0; code < 256; ++code) {
    const float value = value_of(weight.scheme.code, static_cast<uint8_t>(code));
    // Codes that stand for no number do not occur (check_packed), and integers of fewer
    // bits than a byte leave some out.
    const uint16_t bits = bf16_from_float(std::isfinite(value) ? value : 0.0f);
    values[0][code] = static_cast<uint8_t>(bits);
    values[1][code] = static_cast<uint8_t>(bits >> 8);
  }
  w.values = Bytes::copy_of(values, sizeof(values));
  std::byte* data = nullptr;
  w.codes = Bytes::allocate(static_cast<size_t>(w.panels * w.panel_bytes), &data);
  // Padding stands for code 0, whatever that is: its activations are 0.
  parallel_for(w.panels, [&](int64_t p) {
    uint8_t* panel = first_unit(w, data, p);
    for (int64_t lane = 0; lane < std::min(w.lanes, w.rows - p * w.lanes); ++lane) {
      const uint8_t* row = q.codes.data() + (p * w.lanes + lane) * w.cols;
      uint8_t* to = panel + lane / 4 * 16 + lane % 4 * 2;
      for (int64_t i = 0; i < w.padded_cols; ++i) {
        const int64_t at = i / 8 * 8 + kBf16Order[i % 8];  // where i-th in order lies
        const int64_t g = at / padded_group, inside = at - g * padded_group;
        const int64_t c = g * w.group + inside;
        if (inside >= w.group || c >= w.cols) continue;
        to[i / 4 * 8 * w.lanes + i % 4 / 2 * 8 + i % 2] = row[c];
      }
    }
  });
  return w;
}

Result<PreparedLinear> repack_nothing(const LinearKernel& kernel, const LinearWeight& weight,
                                      const LinearInput& input) {
  PreparedLinear w = frame(kernel, weight, input);
  w.weight = weight;
  return w;
}

PanelForm panel_form(const PreparedLinear& weight) {
  switch (weight.bits) {
    case 4:
      return element_info(weight.weight.scheme.code).kind == ElementKind::integer
                 ? PanelForm::int4
                 : PanelForm::table4;
    case 8:
      if (weight.weight.scheme.code == Element::e4m3) return PanelForm::e4m3;
      if (weight.weight.scheme.code == Element::e5m2) return PanelForm::e5m2;
      return PanelForm::int8;
    case 16:
      return weight.weight.scheme.code == Element::bf16 ? PanelForm::bf16
                                                        : PanelForm::f16;
    default:
      return PanelForm::f32;
  }
}

PanelCodes panel_codes(const PreparedLinear& w) {
  const auto levels = [](const PreparedLevels& prepared) {
    const Bytes& bytes = prepared.bytes;
    return PanelLevels{
        bytes.size() == 0 ? nullptr : reinterpret_cast<const uint8_t*>(bytes.data()),
        prepared.form};
  };
  return {.cols = w.cols,
          .group = w.group,
          .groups = w.groups,
          .padded_cols = w.padded_cols,
          .panel_bytes = w.panel_bytes,
          .is_signed = w.is_signed,
          .table = w.table.data(),
          .values = reinterpret_cast<const uint8_t*>(w.values.data()),
          .codes = reinterpret_cast<const uint8_t*>(w.codes.data()),
          .scales = levels(w.scales),
          .zeros = levels(w.zeros),
          .minima = levels(w.minima)};
}

}  // namespace nibble
