#include <algorithm>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/linear/row_levels.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble::cuda {
namespace {

bool form_of(const QuantScheme& s, bool int8_activations, LinearForm* form) {
  if (s.is_float() || s.offset == OffsetKind::minimum) return false;
  const ElementInfo& element = element_info(s.code);
  if (element.kind == ElementKind::integer) {
    if (int8_activations) {
      *form = LinearForm::int8_s8;
      return element.bits > 4 && element.lowest < 0 && s.offset == OffsetKind::none;
    }
    *form = element.bits <= 4 ? LinearForm::int4 : LinearForm::int8;
    return true;
  }
  if (int8_activations || s.offset != OffsetKind::none) return false;
  if (s.code == Element::e4m3 || s.code == Element::e5m2) {
    *form = s.code == Element::e4m3 ? LinearForm::e4m3 : LinearForm::e5m2;
    return true;
  }
  *form = LinearForm::table4;
  return element.bits <= 4;
}

// f16 or e8m0 where they hold every scale and the kernels read them, else f32.
LinearScale scale_type(LinearForm form, int64_t group, int64_t cols,
                       const std::vector<float>& scales) {
  if (!is_4_bit(form)) return LinearScale::f32;
  const auto all = [&](auto same) {
    return std::all_of(scales.begin(), scales.end(), same);
  };
  if (form == LinearForm::table4 && group == 32 && cols > 32 &&
      all([](float s) { return float_from_e8m0(e8m0_from_float(s)) == s; })) {
    return LinearScale::e8m0;
  }
  return all([](float s) { return float_from_f16(f16_from_float(s)) == s; })
             ? LinearScale::f16
             : LinearScale::f32;
}

// What the kernels compute stands for 2^-8 of an e4m3 value in f16 (cuda_kernel.h).
float code_unit(LinearForm form) { return form == LinearForm::e4m3 ? 256.0f : 1.0f; }

}  // namespace

int64_t LinearPacked::bytes() const {
  return static_cast<int64_t>(codes.size() + scales.size() + zeros.size());
}

bool can_pack_linear(const QuantScheme& scheme, int64_t cols, bool int8_activations) {
  LinearForm form;
  if (cols > kMostColumns || !form_of(scheme, int8_activations, &form)) return false;
  if (element_info(scheme.code).kind == ElementKind::integer &&
      !accepts_integer(scheme, cols)) {
    return false;
  }
  const int64_t group = group_columns(scheme, cols);
  if (form == LinearForm::int8_s8) return group == cols;
  return group == cols || (group > 0 && group % kSlab == 0);
}

Result<LinearPacked> linear_frame(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                  bool int8_activations) {
  if (!can_pack_linear(scheme, cols, int8_activations)) {
    return error(
        StatusCode::unsupported,
        "[linear] cuda: codes of at most 8 bits with scales in groups of a "
        "multiple of 32 columns and no minima are needed",
        int8_activations ? ", for int8 activations intN with one scale a row" : "",
        "; found ", to_string(scheme), " [", rows, ", ", cols,
        "]; choose another scheme or run it on the CPU");
  }
  LinearPacked w;
  form_of(scheme, int8_activations, &w.form);
  w.rows = static_cast<int>(rows);
  w.cols = static_cast<int>(cols);
  w.tiles = (w.rows + kTileRows - 1) / kTileRows;
  w.units = (w.cols + unit_columns(w.form) - 1) / unit_columns(w.form);
  w.group = static_cast<int>(group_columns(scheme, cols));
  w.groups = (w.cols + w.group - 1) / w.group;
  const ElementInfo& element = element_info(scheme.code);
  // Without zero points the kernels take the middle code for zero: unsigned codes need 0.
  w.has_zeros = element.kind == ElementKind::integer &&
                (element.lowest >= 0 || scheme.offset == OffsetKind::zero_point);
  for (int code = 0; w.form == LinearForm::table4 && code < 16; ++code) {
    const float value =
        value_of(scheme.code, static_cast<uint8_t>(code & ((1 << element.bits) - 1)));
    w.table[static_cast<size_t>(code)] = value;
    w.table_is_rounded |= float_from_f16(f16_from_float(value)) != value;
  }
  return w;
}

Result<LinearPacked> pack_linear(const LinearWeight& weight, bool int8_activations) {
  NIBBLE_ASSIGN_OR_RETURN(LinearPacked w, linear_frame(weight.scheme, weight.rows,
                                                       weight.cols, int8_activations));
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  const ElementInfo& element = element_info(weight.scheme.code);
  const RowLevels levels = row_levels(q, w.group);
  w.scale = scale_type(w.form, w.group, w.cols, levels.scales);

  const bool is_integer = element.kind == ElementKind::integer;
  const int bits = is_4_bit(w.form) ? 4 : 8;
  const int bias = is_integer && element.lowest < 0 && w.form != LinearForm::int8_s8
                       ? 1 << (bits - 1)
                       : 0;

  const int64_t level_count = int64_t{w.tiles} * w.groups * kTileRows;
  const auto place = [&](int64_t row, int64_t group) {
    return (row / kTileRows * w.groups + group) * kTileRows +
           level_place(static_cast<int>(row % kTileRows));
  };
  std::byte* scales = nullptr;
  w.scales =
      Bytes::allocate(static_cast<size_t>(level_count * scale_bytes(w.scale)), &scales);
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t group = 0; group < w.groups; ++group) {
      const float s =
          levels.scales[static_cast<size_t>(row * w.groups + group)] * code_unit(w.form);
      std::byte* out = scales + place(row, group) * scale_bytes(w.scale);
      if (w.scale == LinearScale::f32) {
        std::memcpy(out, &s, sizeof(s));
      } else if (w.scale == LinearScale::f16) {
        const uint16_t half = f16_from_float(s);
        std::memcpy(out, &half, sizeof(half));
      } else {
        *out = static_cast<std::byte>(e8m0_from_float(s));
      }
    }
  }
  if (w.has_zeros) {
    std::byte* zeros = nullptr;
    w.zeros = Bytes::allocate(static_cast<size_t>(level_count), &zeros);
    for (int64_t row = 0; row < w.rows && !levels.zeros.empty(); ++row) {
      for (int64_t group = 0; group < w.groups; ++group) {
        const float z = levels.zeros[static_cast<size_t>(row * w.groups + group)];
        zeros[place(row, group)] = static_cast<std::byte>(static_cast<int>(z) + bias);
      }
    }
  }

  std::byte* codes = nullptr;
  const int64_t tile_bytes = int64_t{w.units} * 2 * 32 * 16;
  w.codes = Bytes::allocate(static_cast<size_t>(w.tiles * tile_bytes), &codes);
  parallel_for(w.tiles, [&](int64_t tile) {
    const int64_t end = std::min<int64_t>(w.rows, (tile + 1) * kTileRows);
    for (int64_t row = tile * kTileRows; row < end; ++row) {
      for (int64_t c = 0; c < w.cols; ++c) {
        const int code = q.codes[static_cast<size_t>(row * w.cols + c)] + bias;
        const CodePlace at = code_place(w.form, w.units, row, c);
        codes[at.byte] |= static_cast<std::byte>((code & ((1 << bits) - 1)) << at.shift);
      }
    }
  });
  return w;
}

bool can_stack(const LinearPacked& a, const LinearPacked& b) {
  return a.form == b.form && a.scale == b.scale && a.cols == b.cols &&
         a.group == b.group && a.table == b.table && a.has_zeros == b.has_zeros &&
         a.rows % kTileRows == 0 && a.rows <= INT32_MAX - b.rows;
}

LinearPacked stack(const LinearPacked& a, const LinearPacked& b) {
  // Tiles of rows lie one after the other in all three.
  const auto joined = [](const Bytes& first, const Bytes& second) {
    std::byte* to = nullptr;
    Bytes all = Bytes::allocate(first.size() + second.size(), &to);
    std::copy_n(first.data(), first.size(), to);
    std::copy_n(second.data(), second.size(), to + first.size());
    return all;
  };
  LinearPacked all = a;
  all.rows += b.rows;
  all.tiles += b.tiles;
  all.codes = joined(a.codes, b.codes);
  all.scales = joined(a.scales, b.scales);
  all.zeros = joined(a.zeros, b.zeros);
  return all;
}

std::vector<uint8_t> stored_codes(const LinearPacked& w) {
  std::vector<uint8_t> codes(static_cast<size_t>(w.rows) * static_cast<size_t>(w.cols));
  const int mask = is_4_bit(w.form) ? 15 : 255;
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t c = 0; c < w.cols; ++c) {
      const CodePlace at = code_place(w.form, w.units, row, c);
      codes[static_cast<size_t>(row * w.cols + c)] = static_cast<uint8_t>(
          std::to_integer<int>(w.codes.data()[at.byte]) >> at.shift & mask);
    }
  }
  return codes;
}

LinearPlan plan_linear(LinearForm form, int rows, int cols, int tokens,
                       int multiprocessors) {
  LinearPlan plan;
  while (plan.token_tiles * 8 < tokens) plan.token_tiles *= 2;
  constexpr int kBlockRows = 4 * kTileRows, kUnitsPerStage = 8;
  plan.row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int stage_columns = kUnitsPerStage * unit_columns(form);
  plan.stages = std::max(1, (cols + stage_columns - 1) / stage_columns);
  // Two blocks run on a multiprocessor at a time (cuda_kernel.h), so this fills it twice;
  // more parts of longer runs only add work at the end.
  const int wanted = 4 * multiprocessors;
  const int splits =
      std::clamp((wanted + plan.row_blocks - 1) / plan.row_blocks, 1, plan.stages);
  plan.stages_per_split = (plan.stages + splits - 1) / splits;
  plan.splits = (plan.stages + plan.stages_per_split - 1) / plan.stages_per_split;
  if (plan.splits > 1) {
    plan.partial_bytes =
        int64_t{plan.splits} * tokens * plan.row_blocks * kBlockRows * int64_t{4};
  }
  return plan;
}

LinearCall linear_call(const LinearPacked& w) {
  return {.form = w.form,
          .scale = w.scale,
          .rows = w.rows,
          .cols = w.cols,
          .tiles = w.tiles,
          .units = w.units,
          .group = w.group,
          .groups = w.groups,
          .table = w.table};
}

DequantizeCall dequantize_call(const LinearCall& call) {
  return {.form = call.form,
          .scale = call.scale,
          .type = call.input,
          .rows = call.rows,
          .cols = call.cols,
          .tiles = call.tiles,
          .units = call.units,
          .group = call.group,
          .groups = call.groups,
          .table = call.table,
          .codes = call.codes,
          .scales = call.scales,
          .zeros = call.zeros,
          .stride = call.cols};
}

}  // namespace nibble::cuda
