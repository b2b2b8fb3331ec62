// What every CUDA linear kernel must give, for whatever runs it: the emulator or a GPU.
#pragma once

#include <cmath>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_memory.h"
#include "kernels/base/float_types.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "random_data.h"

namespace nibble::cuda {

struct LinearCase {
  const char* scheme;
  int rows, cols, tokens;
  Float16 input = Float16::f16;
  bool int8_activations = false;
  int multiprocessors = 132;  // decides how K is split
  bool aligned = true;        // x's address and stride
  Output output = Output::f32;
  bool scaled = false;  // float activations are codes' numbers, a scale a token
};
inline std::string text(const LinearCase& c) {
  return cat(c.scheme, " [", c.rows, ", ", c.cols, "], ", c.tokens, " tokens of ",
             c.int8_activations        ? "int8"
             : c.input == Float16::f16 ? "f16"
                                       : "bf16",
             c.aligned ? "" : ", unaligned", c.scaled ? ", scaled" : "", ", ",
             c.multiprocessors, " multiprocessors");
}

// The codes, levels, x and y of a case in host memory, NaN where nothing is set.
struct LinearData {
  LinearCase c;
  LinearPacked packed;
  LinearPlan plan;
  int64_t x_stride = 0, y_stride = 0, x_first = 0;  // elements
  std::vector<uint16_t> x16;
  std::vector<int8_t> x8;
  std::vector<float> x_scales, bias, expected;
  // tolerance_spec's bracket, and what it allows besides the sum's roundings.
  std::vector<double> magnitude, bound;
  std::vector<uint8_t> y;  // of the output's type
  int64_t y_bytes() const { return c.output == Output::f32 ? 4 : 2; }
};

inline float rounded(Float16 type, float x) {
  return type == Float16::f16 ? float_from_f16(f16_from_float(x))
                              : float_from_bf16(bf16_from_float(x));
}

inline Result<LinearData> make_linear_data(const LinearCase& c) {
  LinearData d;
  d.c = c;
  NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                          make_random_weight(c.scheme, c.rows, c.cols, 1));
  d.bias = random_floats(c.rows, 3);
  NIBBLE_ASSIGN_OR_RETURN(d.packed, pack_linear(weight, c.int8_activations));
  d.plan = plan_linear(d.packed.form, c.rows, c.cols, c.tokens, c.multiprocessors);
  const int per_16_bytes = c.int8_activations ? 16 : 8;
  d.x_stride =
      c.aligned ? (c.cols + per_16_bytes - 1) / per_16_bytes * per_16_bytes + per_16_bytes
                : c.cols + 3;
  d.x_first = c.aligned ? 0 : 1;
  d.y_stride = c.rows + 5;
  std::vector<float> x = random_floats(int64_t{c.tokens} * c.cols, 2);
  if (!c.int8_activations) {
    for (float& v : x) v = rounded(c.input, v);
    d.x16.assign(static_cast<size_t>(d.x_first + c.tokens * d.x_stride), 0x7fff);  // NaN
  } else {
    d.x8.assign(static_cast<size_t>(d.x_first + c.tokens * d.x_stride), 99);
    d.x_scales.resize(static_cast<size_t>(c.tokens));
    quantize_rows_reference(
        MatrixView<const float>(x.data(), c.tokens, c.cols),
        MatrixView<int8_t>(d.x8.data() + d.x_first, c.tokens, c.cols, d.x_stride),
        d.x_scales.data());
  }
  for (int t = 0; t < c.tokens && !c.int8_activations; ++t) {
    for (int k = 0; k < c.cols; ++k) {
      const float v = x[static_cast<size_t>(t * c.cols + k)];
      d.x16[static_cast<size_t>(d.x_first + t * d.x_stride + k)] =
          c.input == Float16::f16 ? f16_from_float(v) : bf16_from_float(v);
    }
  }
  if (c.scaled) {
    d.x_scales = random_floats(c.tokens, 4);
    for (int i = 0; i < c.tokens * c.cols; ++i)
      x[static_cast<size_t>(i)] *= d.x_scales[static_cast<size_t>(i / c.cols)];
  }
  const size_t count = static_cast<size_t>(c.tokens) * static_cast<size_t>(c.rows);
  d.expected.resize(count);
  d.magnitude.assign(count, 0);
  d.bound.assign(count, 0);
  const MatrixView<const float> in(x.data(), c.tokens, c.cols);
  const MatrixView<float> out(d.expected.data(), c.tokens, c.rows);
  NIBBLE_RETURN_IF_ERROR(linear_reference(
      weight, c.int8_activations ? LinearActivation::s8 : LinearActivation::f32, in,
      d.bias.data(), out));
  if (!c.int8_activations) {
    NIBBLE_RETURN_IF_ERROR(
        linear_magnitude(weight, in, d.bias.data(),
                         MatrixView<double>(d.magnitude.data(), c.tokens, c.rows)));
    if (d.packed.form == LinearForm::table4 &&
        (c.input == Float16::bf16 || d.packed.table_is_rounded)) {
      const double rounding = c.input == Float16::f16 ? 0x1p-11 : 0x1p-8;
      for (size_t i = 0; i < count; ++i) d.bound[i] = rounding * d.magnitude[i];
    }
  }
  const double last_place = c.output == Output::f32   ? 0x1p-24
                            : c.output == Output::f16 ? 0x1p-11
                                                      : 0x1p-8;
  for (size_t i = 0; i < count && !(c.int8_activations && c.output == Output::f32); ++i) {
    d.bound[i] += last_place * std::fabs(d.expected[i]) + 0x1p-25;
  }
  d.y.assign(static_cast<size_t>(c.tokens * d.y_stride * d.y_bytes()), 0xff);
  return d;
}

inline float value_of_y(const LinearData& d, int64_t at) {
  if (d.c.output == Output::f32) {
    float v;
    std::memcpy(&v, d.y.data() + at * 4, 4);
    return v;
  }
  uint16_t half;
  std::memcpy(&half, d.y.data() + at * 2, 2);
  return d.c.output == Output::f16 ? float_from_f16(half) : float_from_bf16(half);
}

// Empty, or what is wrong with y.
inline std::string check_linear(const LinearData& d, bool adds_exactly) {
  // An mma that adds exactly rounds once in 16 columns; scales round once in 32.
  const double roundings = adds_exactly ? (d.c.cols / 16 + d.c.cols / 32 + 64) * 0x1p-24
                                        : 2 * linear_tolerance(d.c.cols);
  std::ostringstream found;
  for (int64_t t = 0; t < d.c.tokens; ++t) {
    for (int64_t n = 0; n < d.y_stride; ++n) {
      const float y = value_of_y(d, t * d.y_stride + n);
      if (n >= d.c.rows) {
        if (!std::isnan(y))
          found << "written between the rows: " << t << ", " << n << "\n";
        continue;
      }
      const size_t at = static_cast<size_t>(t * d.c.rows + n);
      const double bound = d.bound[at] + roundings * d.magnitude[at];
      if (!(std::fabs(y - d.expected[at]) <= bound)) {
        found << "token " << t << ", output " << n << ": " << y << " where "
              << d.expected[at] << " within " << bound << " was expected\n";
      }
      if (found.tellp() > 500) return found.str();
    }
  }
  return found.str();
}

// Runs a case, y NaN before, and says what is wrong with it. Leaves y in d.
inline std::string run_linear_case(Runner& runner, LinearData& d) {
  runner.clear();
  LinearCall call = linear_call(d.packed);
  call.input = d.c.input;
  call.output = d.c.output;
  call.codes = upload(runner, d.packed.codes);
  call.scales = upload(runner, d.packed.scales);
  call.zeros = d.packed.zeros.size() == 0 ? nullptr : upload(runner, d.packed.zeros);
  call.x = d.c.int8_activations
               ? static_cast<const void*>(upload(runner, d.x8) + d.x_first)
               : upload(runner, d.x16) + d.x_first;
  call.x_stride = d.x_stride;
  call.x_scales = d.x_scales.empty() ? nullptr : upload(runner, d.x_scales);
  call.tokens = d.c.tokens;
  call.bias = upload(runner, d.bias);
  std::fill(d.y.begin(), d.y.end(), 0xff);
  uint8_t* const y = upload(runner, d.y);
  call.y = y;
  call.y_stride = d.y_stride;
  call.partial = upload(
      runner, std::vector<uint8_t>(static_cast<size_t>(d.plan.partial_bytes), 0xff));
  std::vector<uint32_t> counters(static_cast<size_t>(d.plan.row_blocks), 0);
  call.counters = upload(runner, counters);
  const Status status = runner.run(call, d.plan);
  if (!status.ok()) return status.message();
  download(runner, y, d.y);
  download(runner, call.counters, counters);
  std::string wrong = check_linear(d, runner.adds_exactly());
  for (const uint32_t counter : counters) {
    if (counter != 0) wrong += "a counter is not 0 afterwards\n";
  }
  return wrong;
}

// Every form, scales of each type, groups of 32 and more, remainders of rows, columns and
// groups, 1 to 8 tokens and each count of token tiles, one part of K and many.
inline std::vector<LinearCase> linear_cases() {
  std::vector<LinearCase> cases;
  const char* const schemes[] = {"int4/g128@f16",
                                 "int4/g64@f16",
                                 "int4/g32@f16",
                                 "int4/g96@f32",
                                 "int4/r@f32",
                                 "int4/r@f16",
                                 "int4n/g128@bf16",
                                 "int3/g64@f16",
                                 "uint4/g128@f16+z/g128@uint4",
                                 "uint4/g32@f16+z/g32@uint4",
                                 "uint4/r@f32+z/r@uint4",
                                 "uint2/g64@f16+z/g64@uint2",
                                 "uint4/g32@f16",
                                 "uint8/g64@f16",
                                 "nf4/g64@f32",
                                 "nf4/f64@dyn8+o/f16384@f32",
                                 "fp4/g128@f16",
                                 "e2m1/g32@e8m0",
                                 "iq4nl/g32@f16",
                                 "int8/r@f32",
                                 "int8/g128@f16",
                                 "int8/g32@f32",
                                 "uint8/r@f32+z/r@uint8",
                                 "int6/g64@f16",
                                 "e4m3/r@f32",
                                 "e4m3/b128x128@f32",
                                 "e4m3/g32@f16",
                                 "e5m2/g128@f32"};
  int i = 0;
  for (const char* scheme : schemes) {
    for (const Float16 input : {Float16::f16, Float16::bf16}) {
      // Shapes by turns, so that each scheme meets small, odd and split ones.
      const bool flat = std::string(scheme).find("/f") != std::string::npos;
      const int columns[] = {flat ? 192 : 172, 256, flat ? 640 : 1000, 1088};
      for (int k = 0; k < 2; ++k, ++i) {
        cases.push_back({scheme, std::vector<int>{33, 1, 130, 64, 15}[i % 5],
                         columns[i % 4], 1 + i % 8, input, false, i % 3 == 0 ? 1 : 132,
                         i % 7 != 3, static_cast<Output>(i % 3), i % 5 == 2});
      }
    }
    cases.push_back({scheme, 40, 640, std::vector<int>{9, 17, 33, 64}[i % 4],
                     i % 2 == 0 ? Float16::f16 : Float16::bf16});
  }
  for (int tokens = 1; tokens <= 8; ++tokens) {
    cases.push_back({"int4/g128@f16", 160, 2200, tokens, Float16::f16, false,
                     tokens % 2 == 0 ? 1 : 132});
    cases.push_back({"int8/r@f32", 35, 31 + 100 * tokens, tokens, Float16::f16, true,
                     tokens % 2 == 0 ? 1 : 132, tokens != 3});
  }
  cases.push_back({"int4/g128@f16", 5, 40, 1});
  cases.push_back({"int8n/r@f32", 33, 700, 20, Float16::f16, true});
  cases.push_back(
      {"int8/t@f32", 130, 700, 40, Float16::f16, true, 132, true, Output::bf16});
  return cases;
}

}  // namespace nibble::cuda
