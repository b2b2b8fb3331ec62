#include "kernels/ops/conv2d/conv2d.h"

namespace nibble {
namespace {

// visit(o, output index, x index, w index) for every product inside the image.
template <class Start, class Product, class End>
void walk(const Conv2dShape& s, const Start& start, const Product& product,
          const End& end) {
  const int64_t in_group = s.channels / s.groups;
  const int64_t out_group = s.outputs / s.groups;
  for (int64_t o = 0; o < s.outputs; ++o) {
    const int64_t c0 = o / out_group * in_group;
    for (int64_t i = 0; i < s.out_height(); ++i) {
      for (int64_t j = 0; j < s.out_width(); ++j) {
        start(o);
        for (int64_t c = 0; c < in_group; ++c) {
          for (int64_t a = 0; a < s.kernel_h; ++a) {
            const int64_t row = i * s.stride_h + a - s.pad_h;
            if (row < 0 || row >= s.height) continue;
            for (int64_t b = 0; b < s.kernel_w; ++b) {
              const int64_t column = j * s.stride_w + b - s.pad_w;
              if (column < 0 || column >= s.width) continue;
              product(((c0 + c) * s.height + row) * s.width + column,
                      ((o * in_group + c) * s.kernel_h + a) * s.kernel_w + b);
            }
          }
        }
        end((o * s.out_height() + i) * s.out_width() + j);
      }
    }
  }
}

}  // namespace

void conv2d_reference(const Conv2dShape& shape, const float* x, const float* weight,
                      const float* bias, float* y) {
  double sum = 0;
  walk(
      shape, [&](int64_t o) { sum = bias ? bias[o] : 0.0; },
      [&](int64_t at, int64_t w) { sum += static_cast<double>(x[at]) * weight[w]; },
      [&](int64_t at) { y[at] = static_cast<float>(sum); });
}

void conv2d_s8_reference(const Conv2dShape& shape, const uint8_t* codes,
                         bool unsigned_input, const int8_t* weight, int32_t* acc) {
  int32_t sum = 0;
  walk(
      shape, [&](int64_t) { sum = 0; },
      [&](int64_t at, int64_t w) {
        const int32_t code = unsigned_input ? codes[at] : static_cast<int8_t>(codes[at]);
        sum += code * weight[w];
      },
      [&](int64_t at) { acc[at] = sum; });
}

}  // namespace nibble
