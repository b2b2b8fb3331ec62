// An integer convolution whose vectors hold outputs, not pixels: no patch is copied, and
// a last pixel alone costs what a pixel costs.
//
//   image  [high, wide, stored] bytes, the border and codes shifted to unsigned; `stored`
//          a multiple of 4 channels. What the taps of one kernel row read of it lies
//          together.
//   panel  [steps, 16 vectors] dwords: 4 signed codes of one output each, a step being 4
//          channels of a tap, taps in the order of the image
//   acc[p, j] = start[j] + sum over kernel rows a, dwords i:  dot4(image at p, panel)
//
// Plain data and function pointers, so that ISA files need nothing of std. Nothing here
// allocates; safe from any thread.
#pragma once

#include <cstdint>

namespace nibble {

struct ConvTile {
  const uint8_t* const* from;  // of each pixel: its first tap
  int pixels;
  int vectors;        // 1, 2 or 4, of `lanes` outputs
  int64_t row_bytes;  // of the image
  int64_t rows;       // of the kernel
  int64_t run;        // dwords that one kernel row reads
  const int32_t* panel;
  const int32_t* start;  // [vectors * lanes]
};

// Codes of a block of 16 pixels and one vector of outputs, as ops/requantize.h rounds.
struct ConvRounding {
  const float* multiplier;  // [lanes]
  float scale, low, high;   // low and high are whole
  int outputs, pixels;      // that exist
  uint8_t* out;             // [outputs, pixels], `stride` bytes from one output to the next
  int64_t stride;
};

struct ConvLanes {
  int lanes;
  // Pixels of the largest tile.
  int most_pixels(int vectors) const { return vectors == 4 ? 6 : 12; }
  // acc: [pixels, vectors * lanes].
  void (*product)(const ConvTile& tile, int32_t* acc);
  // acc: 16 vectors, `stride` int32 apart; those of pixels that do not exist are read too.
  void (*round)(const int32_t* acc, int64_t stride, const ConvRounding& target);
  // 16 channels of 16 neighbouring pixels: codes [16, apart] -> out [16, stored].
  void (*turn)(const uint8_t* codes, int64_t apart, uint8_t flip, uint8_t* const* out);
};

namespace avx512vnni {
extern const ConvLanes conv_lanes;
}

}  // namespace nibble
