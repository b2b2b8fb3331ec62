// What the smaller CUDA kernels must give, for whatever runs them: norms, rotations,
// codes of activations and of caches, weights made floats again, fake quantization. Each
// function returns what is wrong, or nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_linear_cases.h"
#include "kernels/ops/kv_attention/kv_rows.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/scheme/element_codec.h"

namespace nibble::cuda {

inline uint16_t to_16(Float16 type, float x) {
  return type == Float16::f16 ? f16_from_float(x) : bf16_from_float(x);
}
inline float from_16(Float16 type, uint16_t x) {
  return type == Float16::f16 ? float_from_f16(x) : float_from_bf16(x);
}
// x [rows, cols] rounded to the type, and as rows `stride` apart with NaN between them.
inline std::vector<uint16_t> spaced_16(Float16 type, std::vector<float>& x, int rows,
                                       int cols, int stride) {
  std::vector<uint16_t> out(static_cast<size_t>(rows * stride), 0x7fff);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      float& v = x[static_cast<size_t>(r * cols + c)];
      const uint16_t bits = to_16(type, v);
      v = from_16(type, bits);
      out[static_cast<size_t>(r * stride + c)] = bits;
    }
  }
  return out;
}

inline std::string check_rms_norm(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const int cols : {1, 31, 64, 513, 2048}) {
      const int rows = 3, stride = cols + cols % 2 + 2 * (cols % 3);
      std::vector<float> x = random_floats(rows * cols, 1);
      const std::vector<float> weight = random_floats(cols, 2);
      const std::vector<uint16_t> in = spaced_16(type, x, rows, cols, stride);
      std::vector<float> wanted(x.size()), y(x.size(), std::nanf(""));
      rms_norm_reference({x.data(), rows, cols}, weight.data(), 1e-5f,
                         {wanted.data(), rows, cols});
      runner.clear();
      float* const out = upload(runner, y);
      const Status status = runner.run(RmsNormCall{.input = type,
                                                   .output = Output::f32,
                                                   .x = upload(runner, in),
                                                   .x_stride = stride,
                                                   .weight = upload(runner, weight),
                                                   .epsilon = 1e-5f,
                                                   .y = out,
                                                   .y_stride = cols,
                                                   .rows = rows,
                                                   .cols = cols});
      if (!status.ok()) return status.message();
      download(runner, out, y);
      for (size_t i = 0; i < y.size(); ++i) {
        const double bound = (cols / 2.0 + 8) * 0x1p-24 * std::fabs(wanted[i]);
        if (!(std::fabs(y[i] - wanted[i]) <= bound))
          return cat("rms_norm of ", cols, ", ", i, ": ", y[i], " where ", wanted[i]);
      }
    }
  }
  return "";
}

// Of x + add, and of heads side by side.
inline std::string check_rms_norm_lines(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const bool adds : {false, true}) {
      const int lines = 2, parts = 3, cols = 70, width = parts * cols, stride = width + 6;
      std::vector<float> x = random_floats(lines * width, 1),
                         other = random_floats(lines * width, 2);
      const std::vector<float> weight = random_floats(cols, 3);
      const std::vector<uint16_t> in = spaced_16(type, x, lines, width, stride);
      const std::vector<uint16_t> more = spaced_16(type, other, lines, width, stride);
      for (size_t i = 0; adds && i < x.size(); ++i)
        x[i] = from_16(type, to_16(type, x[i] + other[i]));
      std::vector<float> wanted(x.size()),
          y(static_cast<size_t>(lines * stride), std::nanf(""));
      rms_norm_reference({x.data(), lines * parts, cols}, weight.data(), 1e-5f,
                         {wanted.data(), lines * parts, cols});
      runner.clear();
      uint16_t* const from = upload(runner, in);
      float* const out = upload(runner, y);
      RmsNormCall call = {.input = type,
                          .output = Output::f32,
                          .x = from,
                          .x_stride = stride,
                          .weight = upload(runner, weight),
                          .epsilon = 1e-5f,
                          .y = out,
                          .y_stride = stride,
                          .rows = lines * parts,
                          .cols = cols,
                          .parts = parts};
      if (adds) {
        call.add = upload(runner, more);
        call.add_stride = call.sum_stride = stride;
        call.sum = from;
      }
      const Status status = runner.run(call);
      if (!status.ok()) return status.message();
      download(runner, out, y);
      std::vector<uint16_t> sum = in;
      download(runner, from, sum);
      for (int l = 0; l < lines; ++l) {
        for (int c = 0; c < width; ++c) {
          const size_t at = static_cast<size_t>(l * stride + c),
                       place = static_cast<size_t>(l * width + c);
          if (from_16(type, sum[at]) != x[place])
            return cat("rms_norm, sum ", c, ": ", from_16(type, sum[at]), " where ",
                       x[place]);
          const double bound = (cols / 2.0 + 8) * 0x1p-24 * std::fabs(wanted[place]);
          if (!(std::fabs(y[at] - wanted[place]) <= bound))
            return cat("rms_norm of heads, ", c, ": ", y[at], " where ", wanted[place]);
        }
      }
    }
  }
  return "";
}

inline std::string check_embedding(Runner& runner) {
  const int rows = 11, cols = 300, stride = cols + 4;
  const std::vector<int32_t> ids = {10, 0, 3, 3};
  std::vector<uint16_t> table(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint16_t>(i * 7);
  std::vector<uint16_t> y(ids.size() * stride, 0x7fff);
  runner.clear();
  uint16_t* const out = upload(runner, y);
  const Status status = runner.run(EmbeddingCall{.table = upload(runner, table),
                                                 .ids = upload(runner, ids),
                                                 .y = out,
                                                 .y_stride = stride,
                                                 .tokens = static_cast<int>(ids.size()),
                                                 .cols = cols});
  if (!status.ok()) return status.message();
  download(runner, out, y);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t c = 0; c < stride; ++c) {
      const uint16_t wanted =
          c < cols ? table[static_cast<size_t>(ids[t]) * cols + c] : 0x7fff;
      if (y[t * stride + c] != wanted) return cat("embedding, token ", t, ", ", c);
    }
  }
  return "";
}

// add and silu_mul.
inline std::string check_pairs(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    const int tokens = 3, cols = 300, stride = cols + 5;
    std::vector<float> a = random_floats(tokens * cols, 1),
                       b = random_floats(tokens * cols, 2);
    a[0] = -100, a[1] = 100, a[2] = 0, a[3] = -20, a[4] = 88;
    const std::vector<uint16_t> first = spaced_16(type, a, tokens, cols, stride),
                                second = spaced_16(type, b, tokens, cols, stride);
    runner.clear();
    const uint16_t *const x = upload(runner, first), *const z = upload(runner, second);
    std::vector<uint16_t> sum(first.size(), 0x7fff), product = sum;
    uint16_t *const sums = upload(runner, sum), *const products = upload(runner, product);
    Status status = runner.run(AddCall{.type = type,
                                       .a = x,
                                       .b = z,
                                       .a_stride = stride,
                                       .b_stride = stride,
                                       .y = sums,
                                       .y_stride = stride,
                                       .tokens = tokens,
                                       .cols = cols});
    if (!status.ok()) return status.message();
    status = runner.run(SiluMulCall{.type = type,
                                    .gate = x,
                                    .up = z,
                                    .gate_stride = stride,
                                    .up_stride = stride,
                                    .y = products,
                                    .y_stride = stride,
                                    .tokens = tokens,
                                    .cols = cols});
    if (!status.ok()) return status.message();
    download(runner, sums, sum);
    download(runner, products, product);
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < stride; ++c) {
        const size_t at = static_cast<size_t>(t * stride + c);
        if (c >= cols) {
          if (sum[at] != 0x7fff || product[at] != 0x7fff)
            return "add or silu_mul wrote between the rows";
          continue;
        }
        const size_t place = static_cast<size_t>(t * cols + c);
        if (sum[at] != to_16(type, a[place] + b[place])) return cat("add, ", c);
        const double gate = a[place], up = b[place],
                     wanted = gate / (1 + std::exp(-gate)) * up;
        const double half_unit = type == Float16::f16
                                     ? std::fabs(wanted) * 0x1p-11 + 0x1p-25
                                     : std::fabs(wanted) * 0x1p-8;
        const double bound = (16 + 2 * std::fabs(gate)) * 0x1p-24 * std::fabs(wanted) +
                             0x1p-120 * std::fabs(up) + half_unit;
        if (!(std::fabs(from_16(type, product[at]) - wanted) <= bound))
          return cat("silu_mul of ", gate, " and ", up, ": ", from_16(type, product[at]),
                     " where ", wanted);
      }
    }
  }
  return "";
}

inline std::string check_next_token(Runner& runner) {
  for (const int vocabulary : {1, 33, 5000}) {
    std::vector<float> logits = random_floats(vocabulary, 4);
    const int best = vocabulary / 3;
    logits[static_cast<size_t>(best)] = logits.back() = 50;
    logits[0] = vocabulary > 1 ? std::nanf("") : 50;
    std::vector<int32_t> state = {7, 12, 13, 0}, chosen = {-1, -1};
    runner.clear();
    int32_t *const words = upload(runner, state), *const out = upload(runner, chosen);
    const NextTokenCall call = {.logits = upload(runner, logits),
                                .vocabulary = vocabulary,
                                .id = words,
                                .position = words + 1,
                                .length = words + 2,
                                .chosen = out,
                                .count = words + 3,
                                .room = 1};
    for (int i = 0; i < 2; ++i) {
      const Status status = runner.run(call);
      if (!status.ok()) return status.message();
    }
    download(runner, words, state);
    download(runner, out, chosen);
    if (state != std::vector<int32_t>{best, 14, 15, 2} ||
        chosen != std::vector<int32_t>{best, -1})
      return cat("next_token of ", vocabulary, ": ", state[0], " where ", best);
  }
  return "";
}

inline std::string check_plain_linear(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const int cols : {8, 45, 1304}) {
      for (const int tokens : {1, 11}) {
        const int rows = 21, stride = cols + cols % 8;
        std::vector<float> w = random_floats(rows * cols, 1),
                           x = random_floats(tokens * cols, 2),
                           bias = random_floats(rows, 3);
        const std::vector<uint16_t> w16 = spaced_16(type, w, rows, cols, cols),
                                    x16 = spaced_16(type, x, tokens, cols, stride);
        std::vector<float> y(static_cast<size_t>(tokens * rows), std::nanf(""));
        runner.clear();
        float* const out = upload(runner, y);
        const Status status = runner.run(PlainLinearCall{.type = type,
                                                         .output = Output::f32,
                                                         .rows = rows,
                                                         .cols = cols,
                                                         .w = upload(runner, w16),
                                                         .x = upload(runner, x16),
                                                         .x_stride = stride,
                                                         .tokens = tokens,
                                                         .bias = upload(runner, bias),
                                                         .y = out,
                                                         .y_stride = rows});
        if (!status.ok()) return status.message();
        download(runner, out, y);
        for (int t = 0; t < tokens; ++t) {
          for (int r = 0; r < rows; ++r) {
            double wanted = bias[static_cast<size_t>(r)], size = std::fabs(wanted);
            for (int c = 0; c < cols; ++c) {
              const double product =
                  static_cast<double>(w[static_cast<size_t>(r * cols + c)]) *
                  x[static_cast<size_t>(t * cols + c)];
              wanted += product;
              size += std::fabs(product);
            }
            const double found = y[static_cast<size_t>(t * rows + r)];
            if (!(std::fabs(found - wanted) <= linear_tolerance(cols) * size))
              return cat("plain linear of ", cols, ", token ", t, ", row ", r, ": ",
                         found, " where ", wanted);
          }
        }
      }
    }
  }
  return "";
}

inline std::string check_rope(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const bool interleaved : {false, true}) {
      const int tokens = 3, heads = 5, head_dim = 64, width = heads * head_dim,
                stride = width + 7;
      const std::vector<int32_t> positions = {4, 0, 9};
      RopeTable table(head_dim, 10000.0);
      table.reserve(10);
      std::vector<float> x = random_floats(tokens * width, 1);
      std::vector<uint16_t> in = spaced_16(type, x, tokens, width, stride);
      for (int t = 0; t < tokens; ++t) {
        apply_rope({x.data() + t * width, 1, width}, table,
                   positions[static_cast<size_t>(t)], interleaved);
      }
      runner.clear();
      uint16_t* const out = upload(runner, in);
      const std::vector<float> cosines(table.cosines(0),
                                       table.cosines(0) + 10 * head_dim / 2);
      const std::vector<float> sines(table.sines(0), table.sines(0) + 10 * head_dim / 2);
      const Status status = runner.run(RopeCall{.type = type,
                                                .x = out,
                                                .stride = stride,
                                                .positions = upload(runner, positions),
                                                .cosines = upload(runner, cosines),
                                                .sines = upload(runner, sines),
                                                .tokens = tokens,
                                                .heads = heads,
                                                .head_dim = head_dim,
                                                .interleaved = interleaved});
      if (!status.ok()) return status.message();
      download(runner, out, in);
      for (int t = 0; t < tokens; ++t) {
        for (int c = 0; c < stride; ++c) {
          const uint16_t found = in[static_cast<size_t>(t * stride + c)];
          if (c >= width) {
            if (found != 0x7fff) return "rope wrote between the rows";
            continue;
          }
          const float wanted = x[static_cast<size_t>(t * width + c)];
          const double bound =
              (type == Float16::f16 ? 0x1p-11 : 0x1p-8) * std::fabs(wanted) +
              4 * 0x1p-24 * 8;  // |a| + |b| <= 8 or so
          if (!(std::fabs(from_16(type, found) - wanted) <= bound))
            return cat("rope, token ", t, ", column ", c, ": ", from_16(type, found),
                       " where ", wanted);
        }
      }
    }
  }
  return "";
}

inline std::string check_quantize_rows(Runner& runner) {
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const int cols : {1, 40, 257, 1000}) {
      const int tokens = 4, stride = cols + 5;
      std::vector<float> x = random_floats(tokens * cols, 3);
      std::fill(x.begin() + cols, x.begin() + 2 * cols, 0.0f);
      const std::vector<uint16_t> in = spaced_16(type, x, tokens, cols, stride);
      std::vector<int8_t> wanted(static_cast<size_t>(tokens * stride), 77),
          codes = wanted;
      std::vector<float> wanted_scales(tokens), scales(tokens, std::nanf(""));
      quantize_rows_reference({x.data(), tokens, cols},
                              {wanted.data(), tokens, cols, stride},
                              wanted_scales.data());
      runner.clear();
      int8_t* const out = upload(runner, codes);
      float* const out_scales = upload(runner, scales);
      const Status status = runner.run(QuantizeRowsCall{.input = type,
                                                        .x = upload(runner, in),
                                                        .x_stride = stride,
                                                        .codes = out,
                                                        .stride = stride,
                                                        .scales = out_scales,
                                                        .tokens = tokens,
                                                        .cols = cols});
      if (!status.ok()) return status.message();
      download(runner, out, codes);
      download(runner, out_scales, scales);
      if (codes != wanted || scales != wanted_scales)
        return cat("quantize_rows of ", cols, " differs");
    }
  }
  return "";
}

inline std::string check_store_kv(Runner& runner) {
  for (const KvForm form : {KvForm::f16, KvForm::int8, KvForm::e4m3}) {
    for (const Float16 type : {Float16::f16, Float16::bf16}) {
      for (const int head_dim : {32, 64, 128}) {
        const int tokens = 9, kv_heads = 5, width = kv_heads * head_dim,
                  stride = width + 3;
        std::vector<float> x = random_floats(tokens * width, 3);
        for (int i = 0; i < head_dim; ++i) {
          x[static_cast<size_t>(width + i)] = 0;
          x[static_cast<size_t>(2 * width + i)] *= 1e-7f;
          x[static_cast<size_t>(3 * width + i)] *= 1000.0f;
        }
        const std::vector<uint16_t> in = spaced_16(type, x, tokens, width, stride);
        const Result<QuantScheme> scheme = parse_scheme(
            form == KvForm::f16
                ? "f16"
                : cat(form == KvForm::e4m3 ? "e4m3" : "int8n", "/g", head_dim, "@f16"));
        if (!scheme.ok()) return scheme.status().message();
        Result<KvRows> rows = KvRows::create(*scheme, tokens, width);
        if (!rows.ok()) return rows.status().message();
        const Status appended = rows->append({x.data(), tokens, width});
        if (!appended.ok()) return appended.message();
        std::vector<float> wanted(x.size());
        rows->read(nullptr, 0, 0, {wanted.data(), tokens, width});

        std::vector<int32_t> positions;
        for (int t = 0; t < tokens; ++t) positions.push_back(tokens - 1 - t);
        const size_t bytes = form == KvForm::f16 ? 2 : 1;
        std::vector<uint8_t> codes(x.size() * bytes, 0xff), value_codes = codes;
        std::vector<uint16_t> scales(static_cast<size_t>(tokens * kv_heads), 0x7e00);
        runner.clear();
        uint8_t* const out = upload(runner, codes);
        uint8_t* const out_values = upload(runner, codes);
        uint16_t* const out_scales = upload(runner, scales);
        uint16_t* const value_scales = upload(runner, scales);
        const uint16_t* const from = upload(runner, in);
        const Status status =
            runner.run(StoreKvCall{.input = type,
                                   .form = form,
                                   .keys = {from, stride, out, out_scales},
                                   .values = {from, stride, out_values, value_scales},
                                   .positions = upload(runner, positions),
                                   .tokens = tokens,
                                   .kv_heads = kv_heads,
                                   .head_dim = head_dim});
        if (!status.ok()) return status.message();
        download(runner, out, codes);
        download(runner, out_values, value_codes);
        if (value_codes != codes) return "store_kv: keys and values of one x differ";
        download(runner, out_scales, scales);
        for (int t = 0; t < tokens; ++t) {
          for (int i = 0; i < width; ++i) {
            const int64_t at = positions[static_cast<size_t>(t)];
            const float scale =
                float_from_f16(scales[static_cast<size_t>(at * kv_heads + i / head_dim)]);
            const size_t place = static_cast<size_t>(at * width + i);
            float value = 0;
            if (form == KvForm::f16) {
              value = float_from_f16(
                  static_cast<uint16_t>(codes[2 * place] | codes[2 * place + 1] << 8));
            } else {
              value =
                  scale * (form == KvForm::e4m3
                               ? float_from_e4m3(codes[place])
                               : static_cast<float>(static_cast<int8_t>(codes[place])));
            }
            if (!(value == wanted[static_cast<size_t>(t * width + i)]))
              return cat("store_kv, token ", t, ", column ", i, ", head_dim ", head_dim,
                         ": ", value, " where ",
                         wanted[static_cast<size_t>(t * width + i)]);
          }
        }
      }
    }
  }
  return "";
}

inline std::string check_dequantize(Runner& runner) {
  for (const char* scheme : {"int4/g128@f16", "int4/g32@f32", "uint4/g32@f16+z/g32@uint4",
                             "nf4/g64@f32", "e2m1/g32@e8m0", "int8/r@f32",
                             "uint8/r@f32+z/r@uint8", "e4m3/g32@f16", "e5m2/g128@f32"}) {
    for (const Float16 type : {Float16::f16, Float16::bf16}) {
      for (const int cols : {40, 172, 320}) {
        const int rows = 45, stride = cols + (cols % 8 == 0 ? 8 : 3);
        if (!can_pack_linear(*parse_scheme(scheme), cols, false)) continue;
        const Result<LinearWeight> weight = make_random_weight(scheme, rows, cols, 1);
        if (!weight.ok()) return weight.status().message();
        const Result<LinearPacked> packed = pack_linear(*weight, false);
        if (!packed.ok()) return packed.status().message();
        std::vector<float> wanted(static_cast<size_t>(rows * cols));
        const Status read = weight_rows(*weight, 0, {wanted.data(), rows, cols});
        if (!read.ok()) return read.message();
        runner.clear();
        std::vector<uint16_t> w(static_cast<size_t>(rows * stride), 0x7fff);
        uint16_t* const out = upload(runner, w);
        LinearCall call = linear_call(*packed);
        call.input = type;
        call.codes = upload(runner, packed->codes);
        call.scales = upload(runner, packed->scales);
        call.zeros = packed->zeros.size() == 0 ? nullptr : upload(runner, packed->zeros);
        DequantizeCall dequantize = dequantize_call(call);
        dequantize.w = out;
        dequantize.stride = stride;
        const Status status = runner.run(dequantize);
        if (!status.ok()) return status.message();
        download(runner, out, w);
        for (int r = 0; r < rows; ++r) {
          for (int c = 0; c < stride; ++c) {
            const uint16_t found = w[static_cast<size_t>(r * stride + c)];
            if (c >= cols
                    ? found != 0x7fff
                    : found != to_16(type, wanted[static_cast<size_t>(r * cols + c)]))
              return cat("dequantize ", scheme, " [", rows, ", ", cols, "], row ", r,
                         ", column ", c, ": ", from_16(type, found));
          }
        }
      }
    }
  }
  return "";
}

// Codes row by row, and a product of them through the epilogue, against the packed
// weight's values.
inline std::string check_prefill(Runner& runner) {
  for (const bool fp8 : {false, true}) {
    const int rows = 77, cols = 90, tokens = 5, stride = 96;
    const Result<LinearWeight> weight =
        make_random_weight(fp8 ? "e4m3/r@f32" : "int8/r@f32", rows, cols, 1);
    if (!weight.ok()) return weight.status().message();
    const Result<LinearPacked> packed = pack_linear(*weight, !fp8);
    if (!packed.ok()) return packed.status().message();
    std::vector<float> values(static_cast<size_t>(rows * cols));
    const Status read = weight_rows(*weight, 0, {values.data(), rows, cols});
    if (!read.ok()) return read.message();
    std::vector<float> x = random_floats(tokens * cols, 2);
    const std::vector<uint16_t> in = spaced_16(Float16::f16, x, tokens, cols, cols);
    const std::vector<float> bias = random_floats(rows, 3);

    runner.clear();
    std::vector<uint8_t> w(static_cast<size_t>(rows * stride), 0xff),
        codes(static_cast<size_t>(tokens * stride), 0);
    std::vector<float> scales(tokens),
        y(static_cast<size_t>(tokens * rows), std::nanf(""));
    uint8_t *const out_w = upload(runner, w), *const out_codes = upload(runner, codes);
    float *const out_scales = upload(runner, scales), *const out = upload(runner, y);
    uint16_t* const out_numbers =
        upload(runner, std::vector<uint16_t>(codes.size(), 0x7fff));
    const float* const w_scales = static_cast<float*>(upload(runner, packed->scales));
    Status status = runner.run(UnpackCodesCall{.form = packed->form,
                                               .rows = rows,
                                               .cols = cols,
                                               .tiles = packed->tiles,
                                               .units = packed->units,
                                               .codes = upload(runner, packed->codes),
                                               .w = out_w,
                                               .stride = stride});
    if (!status.ok()) return status.message();
    status = runner.run(QuantizeRowsCall{.input = Float16::f16,
                                         .x = upload(runner, in),
                                         .x_stride = cols,
                                         .fp8 = fp8,
                                         .codes = out_codes,
                                         .stride = stride,
                                         .scales = out_scales,
                                         .numbers = fp8 ? out_numbers : nullptr,
                                         .numbers_stride = stride,
                                         .tokens = tokens,
                                         .cols = cols});
    if (!status.ok()) return status.message();
    download(runner, out_w, w);
    download(runner, out_codes, codes);
    download(runner, out_scales, scales);
    const auto number = [&](uint8_t code) {
      return fp8 ? float_from_e4m3(code) : static_cast<float>(static_cast<int8_t>(code));
    };
    if (fp8) {
      std::vector<uint16_t> numbers(codes.size());
      download(runner, out_numbers, numbers);
      for (size_t i = 0; i < codes.size(); ++i) {
        const bool is_x = static_cast<int>(i) % stride < cols;
        if (is_x ? from_16(Float16::f16, numbers[i]) != number(codes[i])
                 : numbers[i] != 0x7fff)
          return cat("number of code ", static_cast<int>(codes[i]), " is ",
                     from_16(Float16::f16, numbers[i]));
      }
    }
    // The product that cuBLASLt is asked for; whole numbers below 2^24.
    std::vector<float> sums(y.size());
    std::vector<int32_t> whole(y.size());
    for (int t = 0; t < tokens; ++t) {
      for (int r = 0; r < rows; ++r) {
        double sum = 0;
        for (int c = 0; c < stride; ++c) {
          sum += static_cast<double>(number(w[static_cast<size_t>(r * stride + c)])) *
                 number(codes[static_cast<size_t>(t * stride + c)]);
        }
        sums[static_cast<size_t>(t * rows + r)] = static_cast<float>(sum);
        whole[static_cast<size_t>(t * rows + r)] = static_cast<int32_t>(sum);
      }
    }
    const void* const from =
        fp8 ? static_cast<const void*>(upload(runner, sums)) : upload(runner, whole);
    status = runner.run(EpilogueCall{.int_sums = !fp8,
                                     .sums = from,
                                     .sums_stride = rows,
                                     .w_scales = w_scales,
                                     .w_unit = fp8 ? 0x1p-8f : 1.0f,
                                     .x_scales = out_scales,
                                     .bias = upload(runner, bias),
                                     .output = Output::f32,
                                     .y = out,
                                     .y_stride = rows,
                                     .rows = rows,
                                     .tokens = tokens});
    if (!status.ok()) return status.message();
    download(runner, out, y);
    for (int t = 0; t < tokens; ++t) {
      for (int r = 0; r < rows; ++r) {
        double wanted = bias[static_cast<size_t>(r)], size = std::fabs(wanted);
        for (int c = 0; c < cols; ++c) {
          const double product =
              static_cast<double>(values[static_cast<size_t>(r * cols + c)]) *
              number(codes[static_cast<size_t>(t * stride + c)]) *
              scales[static_cast<size_t>(t)];
          wanted += product;
          size += std::fabs(product);
        }
        const double found = y[static_cast<size_t>(t * rows + r)];
        if (!(std::fabs(found - wanted) <= 8 * 0x1p-24 * size))
          return cat(fp8 ? "fp8" : "int8", " prefill, token ", t, ", row ", r, ": ",
                     found, " where ", wanted);
      }
    }
    // And the codes are x's: to half a step.
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < cols; ++c) {
        const float scale = scales[static_cast<size_t>(t)];
        const float value = scale * number(codes[static_cast<size_t>(t * stride + c)]);
        const float wanted = x[static_cast<size_t>(t * cols + c)];
        const double step =
            fp8 ? std::max(std::fabs(wanted) / 16.0, scale * 0x1p-10) : scale * 0.5;
        if (!(std::fabs(value - wanted) <= 1.001 * step))
          return cat("code of ", wanted, " is ", value);
      }
    }
  }
  return "";
}

// Products of many tokens, by cuBLASLt on a GPU.
inline std::string check_products(Runner& runner) {
  if (!runner.has_products()) return "";
  const int rows = 72, cols = 80, tokens = 70, w_stride = 96, x_stride = 112,
            d_stride = 76;
  for (const ProductType type :
       {ProductType::f16, ProductType::bf16, ProductType::s8, ProductType::e4m3}) {
    const bool is_16 = type == ProductType::f16 || type == ProductType::bf16;
    const auto code = [&](float x) {
      return type == ProductType::s8
                 ? static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(20 * x)))
                 : e4m3_from_float(x);
    };
    const auto number = [&](uint8_t c) {
      return type == ProductType::s8 ? static_cast<float>(static_cast<int8_t>(c))
                                     : float_from_e4m3(c);
    };
    for (const bool sums : {false, true}) {
      if (!is_16 && !sums) continue;
      std::vector<float> w = random_floats(rows * cols, 1),
                         x = random_floats(tokens * cols, 2);
      const auto bytes = [&](std::vector<float>& values, int lines, int stride) {
        std::vector<uint8_t> out(static_cast<size_t>(lines * stride), 0x7f);
        for (int r = 0; r < lines; ++r) {
          for (int c = 0; c < cols; ++c) {
            float& v = values[static_cast<size_t>(r * cols + c)];
            const uint8_t bits = code(v);
            v = number(bits);
            out[static_cast<size_t>(r * stride + c)] = bits;
          }
        }
        return out;
      };
      const Float16 halves = type == ProductType::f16 ? Float16::f16 : Float16::bf16;
      runner.clear();
      const void *w_at = nullptr, *x_at = nullptr;
      if (is_16) {
        w_at = upload(runner, spaced_16(halves, w, rows, cols, w_stride));
        x_at = upload(runner, spaced_16(halves, x, tokens, cols, x_stride));
      } else {
        w_at = upload(runner, bytes(w, rows, w_stride));
        x_at = upload(runner, bytes(x, tokens, x_stride));
      }
      const size_t each = sums ? 4 : 2, count = static_cast<size_t>(tokens * d_stride);
      std::vector<uint8_t> d(count * each, 0xff);
      uint8_t* const out = upload(runner, d);
      const Status status = runner.run(ProductCall{.type = type,
                                                   .sums = sums,
                                                   .rows = rows,
                                                   .cols = cols,
                                                   .tokens = tokens,
                                                   .w = w_at,
                                                   .w_stride = w_stride,
                                                   .x = x_at,
                                                   .x_stride = x_stride,
                                                   .d = out,
                                                   .d_stride = d_stride});
      // FP8 is compute capability 8.9's.
      if (type == ProductType::e4m3 && status.code() == StatusCode::unsupported) continue;
      if (!status.ok()) return status.message();
      download(runner, out, d);
      for (int t = 0; t < tokens; ++t) {
        for (int r = 0; r < rows; ++r) {
          double wanted = 0, size = 0;
          for (int c = 0; c < cols; ++c) {
            const double product =
                static_cast<double>(w[static_cast<size_t>(r * cols + c)]) *
                x[static_cast<size_t>(t * cols + c)];
            wanted += product;
            size += std::fabs(product);
          }
          const uint8_t* const at =
              d.data() + static_cast<size_t>(t * d_stride + r) * each;
          double found = 0;
          if (type == ProductType::s8) {
            int32_t whole = 0;
            std::memcpy(&whole, at, 4);
            found = whole;
          } else if (sums) {
            float single = 0;
            std::memcpy(&single, at, 4);
            found = single;
          } else {
            uint16_t half = 0;
            std::memcpy(&half, at, 2);
            found = from_16(halves, half);
          }
          // The tensor cores keep fewer bits of a sum of FP8 products than f32 has.
          const double bound =
              type == ProductType::s8 ? 0
              : type == ProductType::e4m3
                  ? 0x1p-10 * size
                  : 2 * linear_tolerance(cols) * size +
                        (sums ? 0
                              : std::fabs(wanted) *
                                    (halves == Float16::f16 ? 0x1p-10 : 0x1p-7));
          if (!(std::fabs(found - wanted) <= bound))
            return cat("product of type ", static_cast<int>(type), ", token ", t,
                       ", row ", r, ": ", found, " where ", wanted);
        }
      }
    }
  }
  return "";
}

inline std::string check_fake_quantize(Runner& runner) {
  struct Case {
    const char* scheme;
    int rows, cols, group;
    bool has_zeros;
  };
  for (const Case& c :
       {Case{"int4/g32@f32", 7, 160, 32, false}, Case{"int8/r@f32", 5, 333, 333, false},
        Case{"uint4/g64@f32+z/g64@uint4", 9, 192, 64, true},
        Case{"int4n/g20@f32", 3, 50, 20, false}}) {
    const int groups = (c.cols + c.group - 1) / c.group;
    std::vector<float> x = random_floats(c.rows * c.cols, 1);
    const Result<QuantScheme> scheme = parse_scheme(c.scheme);
    if (!scheme.ok()) return scheme.status().message();
    Result<CodedMatrix> q =
        choose_scales({x.data(), c.rows, c.cols}, *scheme, ScaleRule{});
    if (!q.ok()) return q.status().message();
    // Scales that leave some numbers outside the range.
    for (float& s : q->scales[0].values) s *= 0.5f;
    const Status coded = quantize({x.data(), c.rows, c.cols}, *q);
    if (!coded.ok()) return coded.message();
    std::vector<float> wanted(x.size());
    const Status decoded = dequantize(*q, {wanted.data(), c.rows, c.cols});
    if (!decoded.ok()) return decoded.message();
    const std::vector<float> dy = random_floats(c.rows * c.cols, 2);
    const std::vector<float> scales = q->scales[0].values;
    const std::vector<float> zeros =
        c.has_zeros ? q->offsets[0].values : std::vector<float>(scales.size(), 0.0f);

    runner.clear();
    std::vector<float> y(x.size(), std::nanf("")),
        dx = y, ds(static_cast<size_t>(c.rows * groups), std::nanf("")), dz = ds;
    float *const out = upload(runner, y), *const out_dx = upload(runner, dx),
                 *const out_ds = upload(runner, ds), *const out_dz = upload(runner, dz);
    const float lowest = static_cast<float>(code_lowest(*scheme)),
                highest = static_cast<float>(code_highest(*scheme));
    const FakeQuantizeCall call = {.x = upload(runner, x),
                                   .scales = upload(runner, scales),
                                   .zeros = c.has_zeros ? upload(runner, zeros) : nullptr,
                                   .row_step = groups,
                                   .group_step = 1,
                                   .y = out,
                                   .rows = c.rows,
                                   .cols = c.cols,
                                   .group = c.group,
                                   .lowest = lowest,
                                   .highest = highest};
    Status status = runner.run(call);
    if (!status.ok()) return status.message();
    status = runner.run(FakeQuantizeGradientCall{.forward = call,
                                                 .dy = upload(runner, dy),
                                                 .dx = out_dx,
                                                 .ds = out_ds,
                                                 .dz = out_dz});
    if (!status.ok()) return status.message();
    download(runner, out, y);
    download(runner, out_dx, dx);
    download(runner, out_ds, ds);
    download(runner, out_dz, dz);
    int outside_count = 0;
    for (int r = 0; r < c.rows; ++r) {
      for (int j = 0; j < groups; ++j) {
        const size_t cell = static_cast<size_t>(r * groups + j);
        const float s = scales[cell], low = lowest - zeros[cell],
                    high = highest - zeros[cell];
        double wanted_ds = 0, wanted_dz = 0, ds_size = 0, dz_size = 0;
        for (int k = j * c.group; k < std::min(c.cols, (j + 1) * c.group); ++k) {
          const size_t i = static_cast<size_t>(r * c.cols + k);
          const float u = x[i] / s;
          const bool inside = low <= u && u <= high;
          const double v = wanted[i] / s, term = dy[i] * (inside ? v - u : v);
          outside_count += !inside;
          wanted_ds += term;
          ds_size += std::fabs(term) + std::fabs(dy[i]) * std::fabs(v) * 0x1p-20;
          if (!inside) wanted_dz -= s * dy[i], dz_size += std::fabs(s * dy[i]);
          if (y[i] != wanted[i])
            return cat("fake_quantize ", c.scheme, " ", i, ": ", y[i], " where ",
                       wanted[i]);
          if (dx[i] != (inside ? dy[i] : 0.0f)) return cat("dx of ", c.scheme, " ", i);
        }
        const double bound = (c.group + 8) * 0x1p-24;
        if (!(std::fabs(ds[cell] - wanted_ds) <= bound * ds_size) ||
            !(std::fabs(dz[cell] - wanted_dz) <= bound * dz_size))
          return cat("gradients of ", c.scheme, " ", cell, ": ", ds[cell], ", ", dz[cell],
                     " where ", wanted_ds, ", ", wanted_dz);
      }
    }
    if (outside_count == 0) return "no number outside the range: the test shows nothing";
  }
  return "";
}

}  // namespace nibble::cuda
