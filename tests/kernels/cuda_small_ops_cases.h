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
      float* const out = runner.upload(y);
      const Status status = runner.run(RmsNormCall{.input = type,
                                                   .output = Output::f32,
                                                   .x = runner.upload(in),
                                                   .x_stride = stride,
                                                   .weight = runner.upload(weight),
                                                   .epsilon = 1e-5f,
                                                   .y = out,
                                                   .y_stride = cols,
                                                   .rows = rows,
                                                   .cols = cols});
      if (!status.ok()) return status.message();
      runner.download(out, y);
      for (size_t i = 0; i < y.size(); ++i) {
        const double bound = (cols / 2.0 + 8) * 0x1p-24 * std::fabs(wanted[i]);
        if (!(std::fabs(y[i] - wanted[i]) <= bound))
          return cat("rms_norm of ", cols, ", ", i, ": ", y[i], " where ", wanted[i]);
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
      uint16_t* const out = runner.upload(in);
      const std::vector<float> cosines(table.cosines(0),
                                       table.cosines(0) + 10 * head_dim / 2);
      const std::vector<float> sines(table.sines(0), table.sines(0) + 10 * head_dim / 2);
      const Status status = runner.run(RopeCall{.type = type,
                                                .x = out,
                                                .stride = stride,
                                                .positions = runner.upload(positions),
                                                .cosines = runner.upload(cosines),
                                                .sines = runner.upload(sines),
                                                .tokens = tokens,
                                                .heads = heads,
                                                .head_dim = head_dim,
                                                .interleaved = interleaved});
      if (!status.ok()) return status.message();
      runner.download(out, in);
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
      int8_t* const out = runner.upload(codes);
      float* const out_scales = runner.upload(scales);
      const Status status = runner.run(QuantizeRowsCall{.input = type,
                                                        .x = runner.upload(in),
                                                        .x_stride = stride,
                                                        .codes = out,
                                                        .stride = stride,
                                                        .scales = out_scales,
                                                        .tokens = tokens,
                                                        .cols = cols});
      if (!status.ok()) return status.message();
      runner.download(out, codes);
      runner.download(out_scales, scales);
      if (codes != wanted || scales != wanted_scales)
        return cat("quantize_rows of ", cols, " differs");
    }
  }
  return "";
}

inline std::string check_store_kv(Runner& runner) {
  for (const bool fp8 : {false, true}) {
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
        const Result<QuantScheme> scheme =
            parse_scheme(cat(fp8 ? "e4m3" : "int8n", "/g", head_dim, "@f16"));
        if (!scheme.ok()) return scheme.status().message();
        Result<KvRows> rows = KvRows::create(*scheme, tokens, width);
        if (!rows.ok()) return rows.status().message();
        const Status appended = rows->append({x.data(), tokens, width});
        if (!appended.ok()) return appended.message();
        std::vector<float> wanted(x.size());
        rows->read(nullptr, 0, 0, {wanted.data(), tokens, width});

        std::vector<int64_t> positions;
        for (int t = 0; t < tokens; ++t) positions.push_back(tokens - 1 - t);
        std::vector<uint8_t> codes(x.size(), 0xff);
        std::vector<uint16_t> scales(static_cast<size_t>(tokens * kv_heads), 0x7e00);
        runner.clear();
        uint8_t* const out = runner.upload(codes);
        uint16_t* const out_scales = runner.upload(scales);
        const Status status =
            runner.run(StoreKvCall{.input = type,
                                   .fp8 = fp8,
                                   .x = runner.upload(in),
                                   .x_stride = stride,
                                   .positions = runner.upload(positions),
                                   .codes = out,
                                   .scales = out_scales,
                                   .tokens = tokens,
                                   .kv_heads = kv_heads,
                                   .head_dim = head_dim});
        if (!status.ok()) return status.message();
        runner.download(out, codes);
        runner.download(out_scales, scales);
        for (int t = 0; t < tokens; ++t) {
          for (int i = 0; i < width; ++i) {
            const int64_t at = positions[static_cast<size_t>(t)];
            const float scale =
                float_from_f16(scales[static_cast<size_t>(at * kv_heads + i / head_dim)]);
            const uint8_t code = codes[static_cast<size_t>(at * width + i)];
            const float value = fp8 ? float_from_e4m3(code)
                                    : static_cast<float>(static_cast<int8_t>(code));
            if (!(scale * value == wanted[static_cast<size_t>(t * width + i)]))
              return cat("store_kv, token ", t, ", column ", i, ", head_dim ", head_dim,
                         ": ", scale * value, " where ",
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
        uint16_t* const out = runner.upload(w);
        LinearCall call = linear_call(*packed);
        call.input = type;
        call.codes = runner.upload(packed->codes);
        call.scales = runner.upload(packed->scales);
        call.zeros = packed->zeros.size() == 0 ? nullptr : runner.upload(packed->zeros);
        DequantizeCall dequantize = dequantize_call(call);
        dequantize.w = out;
        dequantize.stride = stride;
        const Status status = runner.run(dequantize);
        if (!status.ok()) return status.message();
        runner.download(out, w);
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
    float *const out = runner.upload(y), *const out_dx = runner.upload(dx),
                 *const out_ds = runner.upload(ds), *const out_dz = runner.upload(dz);
    const float lowest = static_cast<float>(code_lowest(*scheme)),
                highest = static_cast<float>(code_highest(*scheme));
    const FakeQuantizeCall call = {.x = runner.upload(x),
                                   .scales = runner.upload(scales),
                                   .zeros = c.has_zeros ? runner.upload(zeros) : nullptr,
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
                                                 .dy = runner.upload(dy),
                                                 .dx = out_dx,
                                                 .ds = out_ds,
                                                 .dz = out_dz});
    if (!status.ok()) return status.message();
    runner.download(out, y);
    runner.download(out_dx, dx);
    runner.download(out_ds, ds);
    runner.download(out_dz, dz);
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
