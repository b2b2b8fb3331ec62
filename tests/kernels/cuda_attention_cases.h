// What the CUDA kernel of decode attention must give, for whatever runs it.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda_linear_cases.h"
#include "kernels/ops/attention/attention.h"

namespace nibble::cuda {

struct AttentionCase {
  KvForm form = KvForm::f16;
  Float16 input = Float16::f16;
  int heads = 4, kv_heads = 4, head_dim = 64;
  std::vector<int32_t> lengths = {64};
  int window = 0;
  int multiprocessors = 132;
  Output output = Output::f32;
};
inline std::string text(const AttentionCase& c) {
  std::string text =
      cat(c.form == KvForm::f16    ? "f16"
          : c.form == KvForm::int8 ? "int8"
                                   : "e4m3",
          " cache, ", c.input == Float16::f16 ? "f16" : "bf16", ", ", c.heads, " heads, ",
          c.kv_heads, " of keys, head_dim ", c.head_dim, ", window ", c.window, ", ",
          c.multiprocessors, " multiprocessors, lengths");
  for (const int32_t length : c.lengths) text += cat(" ", length);
  return text;
}

// A case's operands in host memory; rows beyond a length are codes that give NaN.
struct AttentionData {
  AttentionCase c;
  KvAttentionPlan plan;
  int capacity = 0;
  std::vector<uint16_t> q, k_scales, v_scales;
  std::vector<uint8_t> k, v, y;
  std::vector<int32_t> lengths;
  std::vector<float> expected;
  std::vector<double> bound;
};

inline AttentionShape shape_of(const AttentionCase& c) {
  return {.heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
          .window = c.window};
}

// x [rows, width] as the cache would store it: codes and scales appended, x replaced by
// what they stand for.
inline void store_rows(KvForm form, int head_dim, MatrixView<float> x,
                       std::vector<uint8_t>& codes, std::vector<uint16_t>& scales) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t head = 0; head < x.cols / head_dim; ++head) {
      float most = 0;
      for (int64_t d = 0; d < head_dim; ++d)
        most = std::max(most, std::fabs(x(r, head * head_dim + d)));
      const uint16_t scale =
          f16_from_float(most / (form == KvForm::int8 ? 127.0f : 448.0f));
      if (form != KvForm::f16) scales.push_back(scale);
      for (int64_t d = 0; d < head_dim; ++d) {
        float& value = x(r, head * head_dim + d);
        if (form == KvForm::f16) {
          const uint16_t half = f16_from_float(value);
          codes.push_back(static_cast<uint8_t>(half & 255));
          codes.push_back(static_cast<uint8_t>(half >> 8));
          value = float_from_f16(half);
          continue;
        }
        const float s = float_from_f16(scale);
        if (form == KvForm::int8) {
          const float code =
              std::fmin(std::fmax(std::nearbyint(value / s), -127.0f), 127.0f);
          codes.push_back(static_cast<uint8_t>(static_cast<int8_t>(code)));
          value = code * s;
        } else {
          codes.push_back(e4m3_from_float(value / s));
          value = float_from_e4m3(codes.back()) * s;
        }
      }
    }
  }
}

inline AttentionData make_attention_data(const AttentionCase& c, uint64_t seed) {
  AttentionData d;
  d.c = c;
  d.lengths = c.lengths;
  const int batch = static_cast<int>(c.lengths.size());
  const int longest = *std::max_element(c.lengths.begin(), c.lengths.end());
  const int width = c.kv_heads * c.head_dim, q_width = c.heads * c.head_dim;
  d.capacity = longest + 3;
  const AttentionShape shape = shape_of(c);
  d.plan = plan_kv_attention(shape, batch, longest, c.multiprocessors);
  d.expected.resize(static_cast<size_t>(batch * q_width));
  d.bound.resize(d.expected.size());
  for (int b = 0; b < batch; ++b) {
    const uint64_t s = seed * 100 + static_cast<uint64_t>(b) * 3;
    const int length = c.lengths[static_cast<size_t>(b)];
    std::vector<float> q = random_floats(q_width, s),
                       k = random_floats(length * width, s + 1),
                       v = random_floats(length * width, s + 2);
    for (int i = 0; i < q_width; ++i) {
      // Heads of very different sizes, one of them zero.
      const int head = i / c.head_dim;
      q[static_cast<size_t>(i)] *= head % 4 == 3 ? 0.0f : head % 4 == 1 ? 1e-6f : 3.0f;
      float& value = q[static_cast<size_t>(i)];
      d.q.push_back(c.input == Float16::f16 ? f16_from_float(value)
                                            : bf16_from_float(value));
      value = rounded(c.input, value);
    }
    // Positions whose values are tiny or large, so that their scales differ.
    for (int j = 0; j < length; ++j) {
      for (int i = 0; i < width; ++i) {
        v[static_cast<size_t>(j * width + i)] *= j % 5 == 0   ? 0.01f
                                                 : j % 7 == 0 ? 30.0f
                                                              : 1;
      }
    }
    store_rows(c.form, c.head_dim, {k.data(), length, width}, d.k, d.k_scales);
    store_rows(c.form, c.head_dim, {v.data(), length, width}, d.v, d.v_scales);
    const size_t bytes = c.form == KvForm::f16 ? 2 : 1;
    const size_t rows = static_cast<size_t>((b + 1) * d.capacity);
    d.k.resize(rows * static_cast<size_t>(width) * bytes, 0xff);
    d.v.resize(rows * static_cast<size_t>(width) * bytes, 0xff);
    if (c.form != KvForm::f16) {
      d.k_scales.resize(rows * static_cast<size_t>(c.kv_heads), 0x7e00);
      d.v_scales.resize(rows * static_cast<size_t>(c.kv_heads), 0x7e00);
    }
    const size_t first = static_cast<size_t>(b * q_width);
    attention_reference(shape, {q.data(), 1, q_width}, {k.data(), length, width},
                        {v.data(), length, width},
                        {d.expected.data() + first, 1, q_width});
    for (int h = 0; h < c.heads; ++h) {
      const int kv = h / (c.heads / c.kv_heads) * c.head_dim;
      double largest = 1, most_q = 0, keys = 0;
      const int from = static_cast<int>(shape.first_seen(length - 1));
      for (int i = 0; i < c.head_dim; ++i)
        most_q = std::max<double>(most_q,
                                  std::fabs(q[static_cast<size_t>(h * c.head_dim + i)]));
      for (int j = from; j < length; ++j) {
        double products = 0, sum = 0;
        for (int i = 0; i < c.head_dim; ++i) {
          const double key = std::fabs(k[static_cast<size_t>(j * width + kv + i)]);
          products += key * std::fabs(q[static_cast<size_t>(h * c.head_dim + i)]);
          sum += key;
        }
        largest = std::max(largest, products * shape.scale);
        keys = std::max(keys, sum);
      }
      for (int i = 0; i < c.head_dim; ++i) {
        double most = 0;
        for (int j = from; j < length; ++j)
          most = std::max<double>(most,
                                  std::fabs(v[static_cast<size_t>(j * width + kv + i)]));
        const size_t at = first + static_cast<size_t>(h * c.head_dim + i);
        const double last_place = c.output == Output::f32   ? 0x1p-24
                                  : c.output == Output::f16 ? 0x1p-11
                                                            : 0x1p-8;
        d.bound[at] =
            (16 * (c.head_dim + 8) * 0x1p-24 * largest + 0x1p-10 +
             0x1p-24 * keys * most_q * shape.scale + 4 * (length + 8) * 0x1p-24) *
                most +
            last_place * std::fabs(d.expected[at]) + 0x1p-25;
      }
    }
  }
  d.y.assign(static_cast<size_t>(batch * q_width) * (c.output == Output::f32 ? 4 : 2),
             0xff);
  return d;
}

// Empty, or what is wrong with y.
inline std::string check_attention(const AttentionData& d) {
  std::ostringstream found;
  for (size_t i = 0; i < d.expected.size() && found.tellp() < 500; ++i) {
    float y;
    if (d.c.output == Output::f32) {
      std::memcpy(&y, d.y.data() + i * 4, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, d.y.data() + i * 2, 2);
      y = d.c.output == Output::f16 ? float_from_f16(half) : float_from_bf16(half);
    }
    if (!(std::fabs(y - d.expected[i]) <= d.bound[i])) {
      found << "output " << i << ": " << y << " where " << d.expected[i] << " within "
            << d.bound[i] << " was expected\n";
    }
  }
  return found.str();
}

// Runs a case, y NaN before, and says what is wrong with it. Leaves y in d.
inline std::string run_attention_case(Runner& runner, AttentionData& d) {
  runner.clear();
  KvAttentionCall call;
  call.shape = shape_of(d.c);
  call.input = d.c.input;
  call.output = d.c.output;
  call.form = d.c.form;
  call.batch = static_cast<int>(d.lengths.size());
  call.capacity = d.capacity;
  call.q = upload(runner, d.q);
  call.k = upload(runner, d.k);
  call.v = upload(runner, d.v);
  call.k_scales = upload(runner, d.k_scales);
  call.v_scales = upload(runner, d.v_scales);
  call.lengths = upload(runner, d.lengths);
  std::fill(d.y.begin(), d.y.end(), 0xff);
  uint8_t* const y = upload(runner, d.y);
  call.y = y;
  call.partial = reinterpret_cast<float*>(upload(
      runner, std::vector<uint8_t>(static_cast<size_t>(d.plan.partial_bytes), 0xff)));
  std::vector<uint32_t> counters(static_cast<size_t>(d.plan.counters), 0);
  call.counters = upload(runner, counters);
  const Status status = runner.run(call, d.plan);
  if (!status.ok()) return status.message();
  download(runner, y, d.y);
  download(runner, call.counters, counters);
  std::string wrong = check_attention(d);
  for (const uint32_t counter : counters) {
    if (counter != 0) wrong += "a counter is not 0 afterwards\n";
  }
  return wrong;
}

// Every form, dimension and type; groups of heads that fill a block and more; one part of
// the context and many; windows; contexts of one position to several tiles.
inline std::vector<AttentionCase> attention_cases() {
  std::vector<AttentionCase> cases;
  int i = 0;
  for (const KvForm form : {KvForm::f16, KvForm::int8, KvForm::e4m3}) {
    for (const int head_dim : {64, 128, 256}) {
      for (const Float16 input : {Float16::f16, Float16::bf16}) {
        const int heads = std::vector<int>{4, 8, 7, 40}[static_cast<size_t>(i % 4)];
        const int kv_heads = std::vector<int>{4, 2, 1, 2}[static_cast<size_t>(i % 4)];
        const int32_t length =
            std::vector<int32_t>{1, 17, 64, 130, 200}[static_cast<size_t>(i % 5)];
        cases.push_back({form,
                         input,
                         heads,
                         kv_heads,
                         head_dim,
                         {length},
                         i % 3 == 2 ? 50 : 0,
                         i % 2 == 0 ? 132 : 1,
                         static_cast<Output>(i % 3)});
        ++i;
      }
    }
    if (form == KvForm::f16) {
      cases.push_back({form, Float16::f16, 6, 3, 32, {77}});
      cases.push_back({form, Float16::bf16, 4, 1, 32, {130, 5}, 40, 132, Output::bf16});
    }
    cases.push_back({form, Float16::f16, 4, 2, 64, {1, 150, 63}});
    cases.push_back({form, Float16::bf16, 4, 2, 128, {1000}});
  }
  return cases;
}

}  // namespace nibble::cuda
