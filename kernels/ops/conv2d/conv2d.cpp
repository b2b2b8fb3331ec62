#include "kernels/ops/conv2d/conv2d.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/ops/conv2d/lanes.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/requantize.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// Signed codes become unsigned by adding 128 (the dot product wants one unsigned
// operand); 128 times the sum of the weights is taken off the start of every sum.
constexpr int32_t kShift = 128;
constexpr int64_t kLongestPatch = int64_t{1} << 16;
constexpr int64_t kWidest = 32;  // pixels a block: two vectors of at most 16
constexpr int kTallest = 12;     // rows of the largest tile
// Dwords of an image that one thread puts in order before two would have begun.
constexpr int64_t kShortImage = 1 << 15;
// Pixels of a task whose vectors hold outputs, and the most outputs of one.
constexpr int64_t kPixels = 48;
constexpr int64_t kOutputs = 64;

Status check_shape(const Conv2dShape& s, int64_t rows, int64_t cols) {
  const bool positive = s.channels > 0 && s.height > 0 && s.width > 0 && s.outputs > 0 &&
                        s.kernel_h > 0 && s.kernel_w > 0 && s.stride_h > 0 &&
                        s.stride_w > 0 && s.pad_h >= 0 && s.pad_w >= 0 && s.groups > 0;
  if (!positive || s.channels % s.groups != 0 || s.outputs % s.groups != 0) {
    return error(StatusCode::invalid_argument,
                 "[conv2d] sizes must be positive and groups divide both channel counts; "
                 "found x [",
                 s.channels, ", ", s.height, ", ", s.width, "], ", s.outputs,
                 " outputs, kernel ", s.kernel_h, " x ", s.kernel_w, ", stride ",
                 s.stride_h, ", ", s.stride_w, ", groups ", s.groups);
  }
  if (s.height + 2 * s.pad_h < s.kernel_h || s.width + 2 * s.pad_w < s.kernel_w) {
    return error(StatusCode::invalid_argument, "[conv2d] a kernel of ", s.kernel_h, " x ",
                 s.kernel_w, " must fit the padded image; found ", s.height, " x ",
                 s.width, " with padding ", s.pad_h, ", ", s.pad_w);
  }
  if (rows != s.outputs || cols != s.patch()) {
    return error(StatusCode::invalid_argument, "[conv2d] the weight must be [", s.outputs,
                 ", ", s.patch(), "]; found [", rows, ", ", cols, "]");
  }
  return ok_status();
}

// A run of output pixels that lie in one output row: its place in a block of pixels.
struct Segment {
  int64_t row, column, length, at;
};

// The segments of pixels [first, first + count).
int64_t segments_of(const Conv2dShape& s, int64_t first, int64_t count, Segment* out) {
  int64_t n = 0;
  for (int64_t at = 0; at < count;) {
    const int64_t row = (first + at) / s.out_width();
    const int64_t column = (first + at) % s.out_width();
    const int64_t length = std::min(s.out_width() - column, count - at);
    out[n++] = {row, column, length, at};
    at += length;
  }
  return n;
}

// What a run of neighbouring outputs reads: out[(a, b, quad), j] for each tap and pixel
// j. `in` is the first pixel of the first tap. Lengths that are known become a few moves.
template <int64_t kLength>
void gather(const Conv2dShape& s, const uint32_t* in, int64_t wide, int64_t plane,
            int64_t quads, int64_t length, uint32_t* out, int64_t width) {
  for (int64_t a = 0; a < s.kernel_h; ++a) {
    for (int64_t b = 0; b < s.kernel_w; ++b) {
      const uint32_t* from = in + a * wide + b;
      for (int64_t c = 0; c < quads; ++c, from += plane, out += width) {
        if (kLength > 0) {
          std::memcpy(out, from, kLength * sizeof(uint32_t));
        } else if (s.stride_w == 1) {
          std::copy_n(from, length, out);
        } else {
          for (int64_t j = 0; j < length; ++j) out[j] = from[j * s.stride_w];
        }
      }
    }
  }
}
void gather_run(const Conv2dShape& s, const uint32_t* in, int64_t wide, int64_t plane,
                int64_t quads, int64_t length, uint32_t* out, int64_t width) {
  const int64_t known = s.stride_w == 1 ? length : 0;
  switch (known) {
    case 8:
      return gather<8>(s, in, wide, plane, quads, length, out, width);
    case 16:
      return gather<16>(s, in, wide, plane, quads, length, out, width);
    case 32:
      return gather<32>(s, in, wide, plane, quads, length, out, width);
    default:
      return gather<0>(s, in, wide, plane, quads, length, out, width);
  }
}

// Tiles of one group's outputs: f(rows of the tile, first output, outputs in it).
template <class Function>
void for_tiles(const PanelIsa& isa, int64_t outputs, const Function& f) {
  for (int64_t first = 0; first < outputs;) {
    const int mr = isa.next_tile(outputs - first);
    f(mr, first, std::min<int64_t>(mr, outputs - first));
    first += mr;
  }
}

// Do vectors of outputs leave fewer lanes idle than vectors of pixels? They copy no
// patches, but one vector alone waits for its pixels' steps.
bool fits_lanes(const Conv2dShape& s, const ConvLanes& isa, const PanelIsa& panel) {
  const auto filled = [](int64_t n, int64_t vector) {
    return static_cast<double>(n) /
           static_cast<double>((n + vector - 1) / vector * vector);
  };
  const int64_t outputs = s.outputs / s.groups;
  return filled(outputs, isa.lanes) >=
         (outputs > isa.lanes ? 0.75 : 1.1) *
             filled(s.out_height() * s.out_width(), 2 * panel.lanes);
}

// Tiles of one group's outputs: f(vectors of the tile, its first vector).
template <class Function>
void for_lane_tiles(const ConvLanes& isa, int64_t outputs, const Function& f) {
  const int64_t vectors = (outputs + isa.lanes - 1) / isa.lanes;
  for (int64_t first = 0; first < vectors;) {
    const int64_t left = vectors - first;
    const int taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    f(taken, first);
    first += taken;
  }
}

// rows [outputs, 4 * steps] of codes as panels, each of its tile's outputs side by side.
void pack_lanes(const ConvLanes& isa, const int8_t* rows, int64_t outputs, int64_t steps,
                int32_t* packed) {
  for_lane_tiles(isa, outputs, [&](int vectors, int64_t first) {
    int32_t* to = packed + first * isa.lanes * steps;
    const int64_t width = vectors * isa.lanes;
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t j = 0; j < width; ++j, ++to) {
        const int64_t o = first * isa.lanes + j;
        *to = 0;
        if (o < outputs) std::memcpy(to, rows + (o * steps + step) * 4, 4);
      }
    }
  });
}

// Do the pixels of a vector lie in one row of the image, side by side? Then nothing is
// copied. Ends of rows leave lanes idle.
bool reads_image(const Conv2dShape& s, const PanelIsa& isa) {
  const int64_t whole = (s.out_width() + isa.lanes - 1) / isa.lanes * isa.lanes;
  return s.stride_w == 1 && 5 * s.out_width() >= 4 * whole;
}

// Where each step's dwords lie, in bytes from the first tap's: taps row by row, then 4
// channels each.
std::vector<int64_t> places_of(const Conv2dShape& s, int64_t quads) {
  const int64_t wide = s.width + 2 * s.pad_w, plane = (s.height + 2 * s.pad_h) * wide;
  std::vector<int64_t> at;
  for (int64_t a = 0; a < s.kernel_h; ++a) {
    for (int64_t b = 0; b < s.kernel_w; ++b) {
      for (int64_t c = 0; c < quads; ++c) at.push_back(4 * (c * plane + a * wide + b));
    }
  }
  return at;
}

// Channels of a group as the s8 rows store them: whole steps of 4 codes.
int64_t padded_channels(const Conv2dShape& s) {
  return (s.channels / s.groups + 3) / 4 * 4;
}

}  // namespace

const std::vector<Conv2dKernel>& conv2d_kernels() {
  static const std::vector<Conv2dKernel> kernels = {
#include "kernels/ops/conv2d/kernels.inc"
  };
  return kernels;
}

const Conv2dKernel& select_conv2d(LinearActivation activation, uint32_t cpu_flags) {
  const Conv2dKernel* found = nullptr;
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (found == nullptr && kernel.activation == activation &&
        (kernel.flags & ~cpu_flags) == 0) {
      found = &kernel;
    }
  }
  return *found;
}

Result<PreparedConv2d> prepare_conv2d(const Conv2dShape& shape,
                                      const LinearWeight& weight, uint32_t cpu_flags) {
  NIBBLE_RETURN_IF_ERROR(check_shape(shape, weight.rows, weight.cols));
  PreparedConv2d conv;
  conv.kernel = &select_conv2d(LinearActivation::f32, cpu_flags);
  conv.shape = shape;
  const int64_t k = shape.patch();
  std::vector<float> values(static_cast<size_t>(shape.outputs * k));
  NIBBLE_RETURN_IF_ERROR(
      weight_rows(weight, 0, MatrixView<float>(values.data(), shape.outputs, k)));
  if (conv.kernel->panel == nullptr) {
    conv.weight = std::move(values);
    return conv;
  }
  const PanelIsa& isa = *conv.kernel->panel;
  const int64_t outputs = shape.outputs / shape.groups;
  const int64_t padded = isa.padded_rows(outputs);
  conv.weight.resize(static_cast<size_t>(shape.groups * padded * k));
  for (int64_t g = 0; g < shape.groups; ++g) {
    for_tiles(isa, outputs, [&](int mr, int64_t first, int64_t count) {
      pack_rows(values.data() + (g * outputs + first) * k, k, count, k, mr,
                conv.weight.data() + (g * padded + first) * k);
    });
  }
  return conv;
}

Result<PreparedConv2dS8> prepare_conv2d_s8(const Conv2dShape& shape,
                                           std::span<const int8_t> weight,
                                           bool unsigned_input, uint32_t cpu_flags) {
  const int64_t size = static_cast<int64_t>(weight.size());
  NIBBLE_RETURN_IF_ERROR(check_shape(shape, shape.outputs, shape.patch()));
  const int64_t k = shape.patch();
  if (size != shape.outputs * k) {
    return error(StatusCode::invalid_argument, "[conv2d] the weight must be [",
                 shape.outputs, ", ", k, "]; found ", size, " values");
  }
  if (k > kLongestPatch) {
    return error(StatusCode::unsupported, "[conv2d] an integer output may sum ",
                 kLongestPatch, " products; found ", k, "; keep this layer float");
  }
  PreparedConv2dS8 conv;
  conv.kernel = &select_conv2d(LinearActivation::s8, cpu_flags);
  conv.shape = shape;
  conv.unsigned_input = unsigned_input;
  conv.sums.resize(static_cast<size_t>(shape.outputs));
  for (int64_t o = 0; o < shape.outputs; ++o) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += weight[static_cast<size_t>(o * k + i)];
    conv.sums[static_cast<size_t>(o)] = sum;
  }
  if (conv.kernel->panel == nullptr) {
    conv.weight.assign(weight.begin(), weight.end());
    return conv;
  }
  // Channels innermost, padded to 4: a step of the dot product is 4 channels of one
  // pixel.
  const PanelIsa& isa = *conv.kernel->panel;
  const int64_t channels = shape.channels / shape.groups;
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  const int64_t stored = padded_channels(shape);
  const int64_t row = stored * taps;
  std::vector<int8_t> turned(static_cast<size_t>(shape.outputs * row));
  for (int64_t o = 0; o < shape.outputs; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        turned[static_cast<size_t>(o * row + t * stored + c)] =
            weight[static_cast<size_t>((o * channels + c) * taps + t)];
      }
    }
  }
  const int64_t outputs = shape.outputs / shape.groups;
  const int64_t steps = row / 4;
  const ConvLanes* lanes = conv.kernel->lanes;
  conv.by_lanes = lanes != nullptr && fits_lanes(shape, *lanes, isa);
  if (conv.by_lanes) {
    const int64_t wide = (outputs + lanes->lanes - 1) / lanes->lanes * lanes->lanes;
    conv.packed.resize(static_cast<size_t>(shape.groups * wide * steps));
    for (int64_t g = 0; g < shape.groups; ++g) {
      pack_lanes(*lanes, turned.data() + g * outputs * row, outputs, steps,
                 conv.packed.data() + g * wide * steps);
    }
    return conv;
  }
  conv.by_image = reads_image(shape, isa);
  if (conv.by_image) {
    conv.at = places_of(shape, stored / 4);
  } else {
    for (int64_t i = 0; i < steps; ++i) conv.at.push_back(4 * i * 2 * isa.lanes);
  }
  const int64_t padded = isa.padded_rows(outputs);
  conv.packed.resize(static_cast<size_t>(shape.groups * padded * steps * isa.dwords));
  for (int64_t g = 0; g < shape.groups; ++g) {
    for_tiles(isa, outputs, [&](int mr, int64_t first, int64_t count) {
      pack_codes(isa, turned.data() + (g * outputs + first) * row, row, count, steps, mr,
                 conv.packed.data() + (g * padded + first) * steps * isa.dwords);
    });
  }
  return conv;
}

std::string conv2d_kernel_name(const PreparedConv2d& conv) { return conv.kernel->name; }
const char* conv2d_s8_kernel_name(const PreparedConv2dS8& conv) {
  return conv.kernel->name;
}

void run_conv2d(const PreparedConv2d& conv, const float* x, const float* bias, float* y) {
  const Conv2dShape& s = conv.shape;
  if (conv.kernel->panel == nullptr) {
    return conv2d_reference(s, x, conv.weight.data(), bias, y);
  }
  const PanelIsa& isa = *conv.kernel->panel;
  const int64_t width = 2 * isa.lanes;
  const int64_t k = s.patch();
  const int64_t channels = s.channels / s.groups;
  const int64_t outputs = s.outputs / s.groups;
  const int64_t padded_outputs = isa.padded_rows(outputs);
  const int64_t pixels = s.out_height() * s.out_width();
  const int64_t high = s.height + 2 * s.pad_h;
  const int64_t wide = s.width + 2 * s.pad_w;

  // The image with its border of zeros, so that no tap needs a bounds check.
  static thread_local Scratch<float> image_scratch;
  float* image = image_scratch.get(static_cast<size_t>(s.channels * high * wide));
  std::memset(image, 0, static_cast<size_t>(s.channels * high * wide) * sizeof(float));
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t i = 0; i < s.height; ++i) {
      std::memcpy(image + (c * high + i + s.pad_h) * wide + s.pad_w,
                  x + (c * s.height + i) * s.width,
                  static_cast<size_t>(s.width) * sizeof(float));
    }
  }
  const int64_t blocks = (pixels + width - 1) / width;
  parallel_for(s.groups * blocks, [&](int64_t task) {
    const int64_t g = task / blocks;
    const int64_t first = task % blocks * width;
    const int64_t count = std::min(width, pixels - first);
    static thread_local Scratch<float> panel_scratch;
    float* panel = panel_scratch.get(static_cast<size_t>(k * width));  // [patch, width]
    Segment segments[kWidest];
    const int64_t n = segments_of(s, first, count, segments);
    float* out = panel;
    for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
      for (int64_t a = 0; a < s.kernel_h; ++a) {
        for (int64_t b = 0; b < s.kernel_w; ++b, out += width) {
          for (int64_t i = 0; i < n; ++i) {
            const Segment& segment = segments[i];
            const float* in = image + (c * high + segment.row * s.stride_h + a) * wide +
                              segment.column * s.stride_w + b;
            float* to = out + segment.at;
            for (int64_t j = 0; j < segment.length; ++j) to[j] = in[j * s.stride_w];
          }
          for (int64_t j = count; j < width; ++j) out[j] = 0;
        }
      }
    }
    alignas(64) float acc[kTallest * kWidest];
    for_tiles(isa, outputs, [&](int mr, int64_t o, int64_t rows) {
      isa.product_f32(mr, conv.weight.data() + (g * padded_outputs + o) * k, panel,
                      panel + isa.lanes, width, k, false, acc);
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t at = g * outputs + o + m;
        const float offset = bias ? bias[at] : 0.0f;
        float* to = y + at * pixels + first;
        for (int64_t j = 0; j < count; ++j) to[j] = acc[m * width + j] + offset;
      }
    });
  });
}

namespace {

// [groups, high, wide, stored] bytes, shifted to unsigned, the border holding code 0.
void turn_image(const PreparedConv2dS8& conv, const uint8_t* codes, uint8_t* image) {
  const Conv2dShape& s = conv.shape;
  const ConvLanes& isa = *conv.kernel->lanes;
  const int64_t channels = s.channels / s.groups, stored = padded_channels(s);
  const int64_t high = s.height + 2 * s.pad_h, wide = s.width + 2 * s.pad_w;
  const int64_t pixels = s.height * s.width, whole = channels / 16 * 16;
  const uint8_t flip = conv.unsigned_input ? 0 : kShift;
  const auto place = [&](int64_t pixel) {
    const int64_t row = pixel / s.width + s.pad_h, column = pixel % s.width + s.pad_w;
    return (row * wide + column) * stored;
  };
  std::memset(image, flip, static_cast<size_t>(s.groups * high * wide * stored));
  // Runs of 16 pixels; behind the last, the last 16 again.
  const int64_t runs = pixels / 16;
  const auto turn_run = [&](int64_t g, int64_t first) {
    uint8_t* out[16];
    uint8_t* at = image + g * high * wide * stored + place(first);
    int64_t left = s.width - first % s.width;  // of the row
    for (uint8_t*& to : out) {
      to = at;
      at += stored;
      if (--left > 0) continue;
      at += 2 * s.pad_w * stored;
      left = s.width;
    }
    for (int64_t c = 0; c < whole; c += 16) {
      isa.turn(codes + (g * channels + c) * pixels + first, pixels, flip, out);
      for (uint8_t*& to : out) to += 16;
    }
  };
  parallel_for(s.groups * runs, [&](int64_t task) {
    const int64_t g = task / runs, run = task % runs;
    turn_run(g, run * 16);
    if (run == runs - 1 && pixels % 16 != 0) turn_run(g, pixels - 16);
  });
  for (int64_t g = 0; g < s.groups; ++g) {
    uint8_t* own = image + g * high * wide * stored;
    for (int64_t c = runs > 0 ? whole : 0; c < channels; ++c) {
      const uint8_t* in = codes + (g * channels + c) * pixels;
      for (int64_t row = 0; row < s.height; ++row) {
        uint8_t* to = own + place(row * s.width) + c;
        for (int64_t j = 0; j < s.width; ++j) to[j * stored] = *in++ ^ flip;
      }
    }
  }
}

// store(o, outputs, vectors, first, count, sums): `count` pixels from `first` on of
// `outputs` outputs from o on; sums is [kPixels, vectors * lanes], what is behind `count`
// or `outputs` undefined. bias: null, or [outputs].
template <class Store>
void run_lanes_s8(const PreparedConv2dS8& conv, const uint8_t* codes, const int32_t* bias,
                  const Store& store) {
  const Conv2dShape& s = conv.shape;
  const ConvLanes& isa = *conv.kernel->lanes;
  const int64_t stored = padded_channels(s);
  const int64_t high = s.height + 2 * s.pad_h, wide = s.width + 2 * s.pad_w;
  const int64_t outputs = s.outputs / s.groups;
  const int64_t lanes = (outputs + isa.lanes - 1) / isa.lanes * isa.lanes;
  const int64_t out_width = s.out_width(), pixels = s.out_height() * out_width;
  const int64_t run = s.kernel_w * stored / 4, steps = run * s.kernel_h;
  const int64_t next_column = s.stride_w * stored;
  const int64_t next_row = s.stride_h * wide * stored - out_width * next_column;
  const int32_t zero = conv.unsigned_input ? 0 : kShift;
  static thread_local Scratch<uint8_t> image_scratch;
  uint8_t* image =
      image_scratch.get(static_cast<size_t>(s.groups * high * wide * stored));
  turn_image(conv, codes, image);
  struct Part {
    int vectors;
    int64_t first;
  };
  constexpr int64_t kParts = 3;  // narrower than 4 vectors, at the end
  Part last[kParts];
  int64_t wide_tiles = 0, tiles = 0;
  for_lane_tiles(isa, outputs, [&](int vectors, int64_t first) {
    if (vectors == 4) {
      ++wide_tiles;
    } else {
      last[tiles - wide_tiles] = {vectors, first};
    }
    ++tiles;
  });
  const int64_t blocks = (pixels + kPixels - 1) / kPixels;
  // One panel after another, so that it stays near while all pixels pass.
  parallel_for(s.groups * tiles * blocks, [&](int64_t task) {
    const int64_t g = task / (tiles * blocks), tile = task / blocks % tiles;
    const int64_t first = task % blocks * kPixels;
    const int64_t count = std::min(kPixels, pixels - first);
    const Part part = tile < wide_tiles ? Part{4, 4 * tile} : last[tile - wide_tiles];
    const int64_t o = part.first * isa.lanes, width = part.vectors * isa.lanes;
    alignas(64) int32_t start[kOutputs];
    for (int64_t j = 0; j < width; ++j) {
      const int64_t at = g * outputs + o + j;
      // Sums may pass 2^31 on their way and come back: unsigned, and vectors, wrap.
      const auto sum = o + j < outputs ? static_cast<uint32_t>(conv.sums[at]) : 0u;
      const auto own =
          bias != nullptr && o + j < outputs ? static_cast<uint32_t>(bias[at]) : 0u;
      start[j] = static_cast<int32_t>(own - static_cast<uint32_t>(zero) * sum);
    }
    const uint8_t* from[kPixels];
    const int64_t row = first / out_width;
    int64_t column = first % out_width;
    const uint8_t* at =
        image + ((g * high + row * s.stride_h) * wide + column * s.stride_w) * stored;
    for (int64_t p = 0; p < count; ++p) {
      from[p] = at;
      at += next_column;
      if (++column < out_width) continue;
      column = 0;
      at += next_row;
    }
    alignas(64) int32_t sums[kPixels * kOutputs];
    const int64_t most = isa.most_pixels(part.vectors);
    const int64_t parts = (count + most - 1) / most;  // as even as can be
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t begin = count * i / parts, end = count * (i + 1) / parts;
      isa.product({.from = from + begin,
                   .pixels = static_cast<int>(end - begin),
                   .vectors = part.vectors,
                   .row_bytes = wide * stored,
                   .rows = s.kernel_h,
                   .run = run,
                   .panel = conv.packed.data() + (g * lanes + o) * steps,
                   .start = start},
                  sums + begin * width);
    }
    store(g * outputs + o, std::min(outputs - o, width), part.vectors, first, count,
          sums);
  });
}

// A vector of neighbouring pixels: those that exist, and where the first one's first tap
// lies.
struct PixelRun {
  int64_t first, count;
  const uint8_t* from;
};

// store(o, rows, run, sums): outputs [o, o + rows) of a run's pixels; sums [rows, 2
// lanes], what is behind the run's pixels undefined. bias: null, or [outputs].
template <class Store>
void run_tiles_s8(const PreparedConv2dS8& conv, const uint8_t* codes, const int32_t* bias,
                  const Store& store) {
  const Conv2dShape& s = conv.shape;
  const PanelIsa& isa = *conv.kernel->panel;
  const int64_t width = 2 * isa.lanes;
  const int64_t channels = s.channels / s.groups;
  const int64_t stored = padded_channels(s);
  const int64_t steps = stored / 4 * s.kernel_h * s.kernel_w;
  const int64_t outputs = s.outputs / s.groups;
  const int64_t padded_outputs = isa.padded_rows(outputs);
  const int64_t pixels = s.out_height() * s.out_width();
  const int64_t high = s.height + 2 * s.pad_h;
  const int64_t wide = s.width + 2 * s.pad_w;
  const uint8_t zero = conv.unsigned_input ? 0 : kShift;

  // [groups, quads, high, wide] dwords of 4 channels, shifted to unsigned, the border
  // holding code 0: what a step reads of neighbouring pixels lies together. A vector may
  // read beyond the last.
  const int64_t quads = stored / 4, plane = high * wide;
  const int64_t dwords = s.groups * quads * plane;
  static thread_local Scratch<uint32_t> image_scratch;
  uint32_t* image = image_scratch.get(static_cast<size_t>(dwords + isa.lanes));
  const auto interleave = [&](int64_t i) {
    const int64_t first = i / quads * channels + i % quads * 4;
    const int64_t count = std::min<int64_t>(4, channels - i % quads * 4);
    uint32_t* to = image + i * plane;
    std::memset(to, zero, static_cast<size_t>(plane) * sizeof(uint32_t));
    for (int64_t row = 0; row < s.height; ++row) {
      const uint8_t* in = codes + (first * s.height + row) * s.width;
      const int64_t apart = s.height * s.width;
      uint32_t* out = to + (row + s.pad_h) * wide + s.pad_w;
      // A channel that is not there repeats the last; its weights are 0.
      isa.interleave(in, in + std::min<int64_t>(1, count - 1) * apart,
                     in + std::min<int64_t>(2, count - 1) * apart,
                     in + std::min<int64_t>(3, count - 1) * apart, s.width, zero,
                     reinterpret_cast<uint8_t*>(out));
    }
  };
  if (dwords < kShortImage) {
    for (int64_t i = 0; i < s.groups * quads; ++i) interleave(i);
  } else {
    parallel_for(s.groups * quads, interleave);
  }
  const int64_t in_row = (s.out_width() + isa.lanes - 1) / isa.lanes;
  const int64_t runs = s.out_height() * in_row;
  const int64_t blocks = conv.by_image ? (runs + 1) / 2 : (pixels + width - 1) / width;
  const auto run_at = [&](int64_t g, int64_t i) -> PixelRun {
    const int64_t row = i / in_row, column = i % in_row * isa.lanes;
    const uint32_t* from = image + g * quads * plane + row * s.stride_h * wide + column;
    return {row * s.out_width() + column,
            std::min<int64_t>(isa.lanes, s.out_width() - column),
            reinterpret_cast<const uint8_t*>(from)};
  };
  // What the pixels [first, first + count) read, one step after another.
  const auto gathered = [&](int64_t g, int64_t first, int64_t count) {
    static thread_local Scratch<uint32_t> panel_scratch;
    uint32_t* panel = panel_scratch.get(static_cast<size_t>(steps * width));
    Segment segments[kWidest];
    const int64_t n = segments_of(s, first, count, segments);
    for (int64_t i = 0; i < n; ++i) {
      const Segment& segment = segments[i];
      const uint32_t* in = image + g * quads * plane + segment.row * s.stride_h * wide +
                           segment.column * s.stride_w;
      gather_run(s, in, wide, plane, quads, segment.length, panel + segment.at, width);
    }
    for (int64_t k = 0; count < width && k < steps; ++k) {
      std::fill_n(panel + k * width + count, width - count, 0u);
    }
    return reinterpret_cast<const uint8_t*>(panel);
  };
  parallel_for(s.groups * blocks, [&](int64_t task) {
    const int64_t g = task / blocks, block = task % blocks;
    PixelRun run[2];
    if (conv.by_image) {
      run[0] = run_at(g, 2 * block);
      run[1] = run_at(g, std::min(2 * block + 1, runs - 1));
      if (2 * block + 1 == runs) run[1].count = 0;
    } else {
      const int64_t first = block * width, count = std::min(width, pixels - first);
      const uint8_t* panel = gathered(g, first, count);
      run[0] = {first, std::min<int64_t>(count, isa.lanes), panel};
      run[1] = {first + isa.lanes, count - run[0].count, panel + 4 * isa.lanes};
    }
    // Sums may pass 2^31 on their way and come back: unsigned, and vectors, wrap, so the
    // end is exact.
    alignas(64) int32_t sums[kTallest * kWidest];
    int32_t start[kTallest];
    for_tiles(isa, outputs, [&](int mr, int64_t o, int64_t rows) {
      const int64_t at = g * outputs + o;
      for (int64_t m = 0; m < mr; ++m) {
        const auto sum = m < rows ? static_cast<uint32_t>(conv.sums[at + m]) : 0u;
        const auto own =
            bias != nullptr && m < rows ? static_cast<uint32_t>(bias[at + m]) : 0u;
        start[m] = static_cast<int32_t>(own - zero * sum);
      }
      isa.product_s32(mr,
                      conv.packed.data() + (g * padded_outputs + o) * steps * isa.dwords,
                      run[0].from, run[1].from, conv.at.data(), steps, start, sums);
      for (int i = 0; i < 2 && run[i].count > 0; ++i)
        store(at, rows, run[i], sums + i * isa.lanes);
    });
  });
}

}  // namespace

void run_conv2d_s8(const PreparedConv2dS8& conv, const uint8_t* codes, int32_t* acc) {
  const Conv2dShape& s = conv.shape;
  if (conv.kernel->panel == nullptr) {
    return conv2d_s8_reference(s, codes, conv.unsigned_input, conv.weight.data(), acc);
  }
  const int64_t pixels = s.out_height() * s.out_width();
  if (conv.by_lanes) {
    const int64_t lanes = conv.kernel->lanes->lanes;
    return run_lanes_s8(conv, codes, nullptr,
                        [&](int64_t o, int64_t outputs, int vectors, int64_t first,
                            int64_t count, const int32_t* sums) {
                          for (int64_t j = 0; j < outputs; ++j) {
                            int32_t* to = acc + (o + j) * pixels + first;
                            for (int64_t p = 0; p < count; ++p)
                              to[p] = sums[p * vectors * lanes + j];
                          }
                        });
  }
  const int64_t width = 2 * conv.kernel->panel->lanes;
  run_tiles_s8(conv, codes, nullptr,
               [&](int64_t o, int64_t rows, const PixelRun& run, const int32_t* sums) {
                 for (int64_t m = 0; m < rows; ++m) {
                   std::memcpy(acc + (o + m) * pixels + run.first, sums + m * width,
                               static_cast<size_t>(run.count) * sizeof(int32_t));
                 }
               });
}

void run_conv2d_s8(const PreparedConv2dS8& conv, const uint8_t* codes,
                   const Conv2dCodes& target, uint8_t* y) {
  const Conv2dShape& s = conv.shape;
  const int64_t pixels = s.out_height() * s.out_width();
  if (conv.kernel->panel == nullptr) {
    static thread_local Scratch<int32_t> scratch;
    int32_t* acc = scratch.get(static_cast<size_t>(s.outputs * pixels));
    run_conv2d_s8(conv, codes, acc);
    for (int64_t o = 0; o < s.outputs; ++o) {
      for (int64_t i = o * pixels; i < (o + 1) * pixels; ++i) {
        const float real =
            static_cast<float>(acc[i] + target.bias[o]) * target.multiplier[o];
        y[i] = static_cast<uint8_t>(
            quantize_real(real, target.scale, target.lowest, target.highest));
      }
    }
    return;
  }
  if (conv.by_lanes) {
    const ConvLanes& isa = *conv.kernel->lanes;
    const int64_t lanes = isa.lanes;
    return run_lanes_s8(
        conv, codes, target.bias,
        [&](int64_t o, int64_t outputs, int vectors, int64_t first, int64_t count,
            const int32_t* sums) {
          for (int64_t v = 0; v * lanes < outputs; ++v) {
            const int64_t at = o + v * lanes;
            const int64_t here = std::min(lanes, outputs - v * lanes);
            alignas(64) float multiplier[16] = {};
            std::copy_n(target.multiplier + at, here, multiplier);
            for (int64_t p = 0; p < count; p += 16) {
              isa.round(sums + (p * vectors + v) * lanes, vectors * lanes,
                        {.multiplier = multiplier,
                         .scale = target.scale,
                         .low = static_cast<float>(target.lowest),
                         .high = static_cast<float>(target.highest),
                         .outputs = static_cast<int>(here),
                         .pixels = static_cast<int>(std::min<int64_t>(16, count - p)),
                         .out = y + at * pixels + first + p,
                         .stride = pixels});
            }
          }
        });
  }
  run_tiles_s8(conv, codes, target.bias,
               [&](int64_t o, int64_t rows, const PixelRun& run, const int32_t* sums) {
                 conv.kernel->panel->requantize(
                     sums, {.rows = rows,
                            .count = run.count,
                            .multiplier = target.multiplier + o,
                            .scale = target.scale,
                            .low = static_cast<float>(target.lowest),
                            .high = static_cast<float>(target.highest),
                            .out = y + o * pixels + run.first,
                            .stride = pixels});
               });
}

}  // namespace nibble
