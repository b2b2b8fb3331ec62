// One JPEG or PNG file as RGB bytes, by libjpeg and libpng.
//
// data_loss: damaged or cut short (what the library says). unsupported: neither, CMYK, over
// 100 million pixels. `name` begins the message.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

struct RgbImage {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};
bool is_image_file(std::span<const std::byte> bytes);
Result<RgbImage> decode_image(std::span<const std::byte> bytes, const std::string& name);

}  // namespace nibble
