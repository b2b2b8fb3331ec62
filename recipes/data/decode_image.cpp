#include "recipes/data/decode_image.h"

#include <csetjmp>
#include <cstdio>
#include <cstring>
// libjpeg's header needs FILE before it.
#include <jpeglib.h>
#include <png.h>

namespace nibble {
namespace {

constexpr int64_t kMostPixels = 100'000'000;

template <class... Parts>
Status refuse(StatusCode code, const std::string& name, const Parts&... parts) {
  return error(code, "[images] ", name, ": ", parts...);
}

Status check_size(const std::string& name, int64_t height, int64_t width) {
  if (height > 0 && width > 0 && height <= kMostPixels / width) return ok_status();
  return refuse(StatusCode::unsupported, name, "an image of 1 to ", kMostPixels,
                " pixels was required; found ", width, " x ", height,
                "; make it smaller or leave it out");
}

// libjpeg says what is wrong by a callback that must not return.
struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf leave;
  char message[JMSG_LENGTH_MAX] = "";
};

void stop(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  (*info->err->format_message)(info, errors->message);
  std::longjmp(errors->leave, 1);
}

// A warning is a file cut short or damaged, whose pixels libjpeg makes up.
void warn(j_common_ptr info, int level) {
  if (level < 0) stop(info);
}

// What lives across longjmp is the caller's: `image` and `errors`.
bool read_jpeg(std::span<const std::byte> bytes, JpegErrors& errors,
               jpeg_decompress_struct& info, RgbImage& image) {
  if (setjmp(errors.leave) != 0) return false;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()),
               static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  image.height = info.image_height;
  image.width = info.image_width;
  if (info.num_components == 4 || image.height > kMostPixels / image.width) return true;
  info.out_color_space = JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&info);
  image.pixels.resize(static_cast<size_t>(image.height * image.width * 3));
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = image.pixels.data() +
                   static_cast<int64_t>(info.output_scanline) * image.width * 3;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return true;
}

Result<RgbImage> decode_jpeg(std::span<const std::byte> bytes, const std::string& name) {
  JpegErrors errors;
  jpeg_decompress_struct info = {};
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = stop;
  errors.manager.emit_message = warn;
  RgbImage image;
  const bool whole = read_jpeg(bytes, errors, info, image);
  const int components = info.num_components;
  jpeg_destroy_decompress(&info);
  if (!whole) {
    return refuse(StatusCode::data_loss, name, "a whole JPEG was required; found: ",
                  errors.message, "; the file is damaged or cut short");
  }
  NIBBLE_RETURN_IF_ERROR(check_size(name, image.height, image.width));
  if (components == 4) {
    return refuse(StatusCode::unsupported, name,
                  "a JPEG of gray or RGB was required; found four components (CMYK); "
                  "convert it");
  }
  return image;
}

Result<RgbImage> decode_png(std::span<const std::byte> bytes, const std::string& name) {
  png_image info = {};
  info.version = PNG_IMAGE_VERSION;
  RgbImage image;
  const auto damaged = [&] {
    const std::string message = info.message;
    png_image_free(&info);
    return refuse(StatusCode::data_loss, name, "a whole PNG was required; found: ",
                  message, "; the file is damaged or cut short");
  };
  if (!png_image_begin_read_from_memory(&info, bytes.data(), bytes.size()))
    return damaged();
  image.height = info.height;
  image.width = info.width;
  if (const Status status = check_size(name, image.height, image.width); !status.ok()) {
    png_image_free(&info);
    return status;
  }
  info.format = PNG_FORMAT_RGB;
  image.pixels.resize(PNG_IMAGE_SIZE(info));
  const png_color black = {0, 0, 0};
  if (!png_image_finish_read(&info, &black, image.pixels.data(), 0, nullptr))
    return damaged();
  return image;
}

bool begins_with(std::span<const std::byte> bytes, std::string_view magic) {
  return bytes.size() >= magic.size() &&
         std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}
bool is_jpeg(std::span<const std::byte> bytes) {
  return begins_with(bytes, "\xff\xd8\xff");
}
bool is_png(std::span<const std::byte> bytes) {
  return begins_with(bytes, "\x89PNG\r\n\x1a\n");
}

}  // namespace

bool is_image_file(std::span<const std::byte> bytes) {
  return is_jpeg(bytes) || is_png(bytes);
}

Result<RgbImage> decode_image(std::span<const std::byte> bytes, const std::string& name) {
  if (is_jpeg(bytes)) return decode_jpeg(bytes, name);
  if (is_png(bytes)) return decode_png(bytes, name);
  return refuse(StatusCode::unsupported, name,
                "a JPEG or PNG was required; found another content; convert it or leave "
                "it out");
}

}  // namespace nibble
