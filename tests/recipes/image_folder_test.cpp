// Folders of JPEG and PNG files as a data set.
#include "recipes/data/image_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
// libjpeg's header needs FILE before it.
#include <jpeglib.h>
#include <png.h>

#include "kernels/base/file.h"
#include "recipes/data/decode_image.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// color(y, x) -> {r, g, b}
template <class Color>
std::vector<uint8_t> painted(int64_t height, int64_t width, const Color& color) {
  std::vector<uint8_t> pixels;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (const int value : color(y, x)) pixels.push_back(static_cast<uint8_t>(value));
    }
  }
  return pixels;
}

std::array<int, 3> plain(int64_t, int64_t) { return {200, 30, 90}; }

void write_png(const fs::path& path, int64_t height, int64_t width,
               const std::vector<uint8_t>& pixels, unsigned format = PNG_FORMAT_RGB) {
  png_image info = {};
  info.version = PNG_IMAGE_VERSION;
  info.width = static_cast<png_uint_32>(width);
  info.height = static_cast<png_uint_32>(height);
  info.format = format;
  ASSERT_TRUE(
      png_image_write_to_file(&info, path.c_str(), 0, pixels.data(), 0, nullptr));
}

void write_jpeg(const fs::path& path, int64_t height, int64_t width,
                const std::vector<uint8_t>& pixels, int components = 3) {
  jpeg_error_mgr errors;
  jpeg_compress_struct info = {};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  jpeg_stdio_dest(&info, file);
  info.image_width = static_cast<JDIMENSION>(width);
  info.image_height = static_cast<JDIMENSION>(height);
  info.input_components = components;
  info.in_color_space = components == 3   ? JCS_RGB
                        : components == 1 ? JCS_GRAYSCALE
                                          : JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 95, TRUE);
  jpeg_start_compress(&info, TRUE);
  for (int64_t y = 0; y < height; ++y) {
    auto* row = const_cast<uint8_t*>(pixels.data()) + y * width * components;
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::fclose(file);
}

class ImageFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"train/cat", "train/dog", "val/cat"})
      fs::create_directories(root_ / name);
    const std::vector<uint8_t> one = painted(20, 30, plain);
    write_png(root_ / "train/cat/a.png", 20, 30, one);
    write_jpeg(root_ / "train/cat/b.JPG", 20, 30, one);
    write_png(root_ / "train/dog/a.png", 20, 30, one);
    write_png(root_ / "val/cat/z.png", 20, 30, one);
    std::ofstream(root_ / "train/cat/notes.txt") << "no image";
  }
  std::string refused(Split split, const ImageShape& shape = {3, 16, 16}) {
    const auto images = load_image_folder(root_, split, shape, 0);
    return images.ok() ? "nothing" : images.status().message();
  }
  TemporaryDirectory directory_;
  fs::path root_ = directory_.path();
};

TEST_F(ImageFolder, ClassesByNameImagesInTurns) {
  EXPECT_TRUE(is_image_folder(root_));
  EXPECT_FALSE(is_image_folder(root_ / "train/cat"));
  const auto train = load_image_folder(root_, Split::train, {3, 16, 16}, 0);
  ASSERT_TRUE(train.ok()) << train.status().message();
  EXPECT_THAT(train->labels, ElementsAre(0, 1, 0));
  EXPECT_THAT(train->description, HasSubstr("train: 3 images of 2 folders at 16 x 16"));
  const auto two = load_image_folder(root_, Split::train, {3, 16, 16}, 2);
  ASSERT_TRUE(two.ok());
  EXPECT_THAT(two->labels, ElementsAre(0, 1));
  const auto held = load_image_folder(root_, Split::test, {3, 16, 16}, 0);
  ASSERT_TRUE(held.ok());
  EXPECT_THAT(held->labels, ElementsAre(0));
  // A folder of classes without a split is both.
  const auto alone = load_image_folder(root_ / "train", Split::test, {3, 16, 16}, 0);
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(alone->count, 3);
  // An order of one's own.
  std::ofstream(root_ / "classes.txt") << "dog\nbird\r\ncat\n";
  EXPECT_THAT(load_image_folder(root_, Split::train, {3, 16, 16}, 0)->labels,
              ElementsAre(2, 0, 2));
  std::ofstream(root_ / "classes.txt") << "dog\n";
  EXPECT_THAT(refused(Split::train), HasSubstr("the class cat was required"));
}

TEST_F(ImageFolder, OneColorStaysItAtAnySize) {
  for (const int64_t side : {8, 16, 40, 64}) {
    const auto images = load_image_folder(root_, Split::train, {3, side, side}, 0);
    ASSERT_TRUE(images.ok());
    const auto plane = static_cast<size_t>(side * side);
    for (size_t i = 0; i < images->pixels.size(); ++i) {
      const size_t image = i / (3 * plane), channel = i / plane % 3;
      const int slack = image == 2 ? 2 : 0;  // the JPEG
      EXPECT_NEAR(images->pixels[i], plain(0, 0)[channel], slack) << side;
    }
  }
  const auto gray = load_image_folder(root_, Split::test, {1, 8, 8}, 0);
  ASSERT_TRUE(gray.ok());
  EXPECT_EQ(gray->pixels[0], 88);  // 0.299 * 200 + 0.587 * 30 + 0.114 * 90 = 87.67
}

// Half the size: weights 1/8, 3/8, 3/8, 1/8 of four neighbours, which keep a slope.
TEST_F(ImageFolder, ASlopeStaysAndTheMiddleIsTaken) {
  const auto slope = [](int64_t y, int64_t x) {
    return std::array<int, 3>{static_cast<int>(4 * x), static_cast<int>(6 * y), 7};
  };
  fs::create_directories(root_ / "only/one");
  write_png(root_ / "only/one/a.png", 32, 48, painted(32, 48, slope));
  const auto images = load_image_folder(root_ / "only", Split::test, {3, 16, 16}, 0);
  ASSERT_TRUE(images.ok()) << images.status().message();
  // 32 x 48 becomes 16 x 24, of which columns 4 to 19 stay: x' -> 2 (x' + 4) + 0.5.
  for (int64_t y = 1; y < 15; ++y) {
    for (int64_t x = 0; x < 16; ++x) {
      const auto at = static_cast<size_t>(y * 16 + x);
      EXPECT_NEAR(images->pixels[at], 4 * (2 * (static_cast<double>(x) + 4) + 0.5), 0.51);
      EXPECT_NEAR(images->pixels[256 + at], 6 * (2 * static_cast<double>(y) + 0.5), 0.51);
    }
  }
  // Of 64 pixels and more the shorter side is 8/7 of the shape's: a rim is cut off. Here
  // 32 x 48 becomes 73 x 110.
  const auto large = load_image_folder(root_ / "only", Split::test, {3, 64, 64}, 0);
  ASSERT_TRUE(large.ok());
  EXPECT_GT(large->pixels[64 * 64 + 32], 6);  // the first row is no longer the top
}

TEST_F(ImageFolder, GrayAndTransparencyBecomeRgb) {
  const auto gray = painted(4, 4, [](int64_t, int64_t) { return std::array<int, 1>{77}; });
  write_jpeg(root_ / "gray.jpg", 4, 4, gray, 1);
  const auto from = [&](const char* name) {
    return decode_image(map_file(root_ / name)->span(), name);
  };
  const auto image = from("gray.jpg");
  ASSERT_TRUE(image.ok()) << image.status().message();
  EXPECT_EQ(image->pixels.size(), 48u);
  for (const uint8_t value : image->pixels) EXPECT_NEAR(value, 77, 1);
  const auto clear =
      painted(2, 2, [](int64_t, int64_t) { return std::array<int, 4>{255, 255, 255, 0}; });
  write_png(root_ / "clear.png", 2, 2, clear, PNG_FORMAT_RGBA);
  EXPECT_THAT(from("clear.png")->pixels, ::testing::Each(0));
}

TEST_F(ImageFolder, ErrorsNameTheFile) {
  fs::create_directories(root_ / "empty");
  EXPECT_THAT(load_image_folder(root_ / "empty", Split::train, {3, 8, 8}, 0)
                  .status()
                  .message(),
              HasSubstr("empty: folders of JPEG or PNG files, one a class, were required"));
  EXPECT_THAT(refused(Split::train, {4, 8, 8}), HasSubstr("found 4 x 8 x 8"));
  EXPECT_THAT(refused(Split::train, {3, 100000, 100000}), HasSubstr("fit 2 GiB; found 3"));

  const fs::path photo = root_ / "train/cat/b.JPG";
  const std::string whole = *read_text_file(photo);
  std::ofstream(photo, std::ios::binary) << whole.substr(0, whole.size() / 2);
  EXPECT_THAT(refused(Split::train), HasSubstr("b.JPG: a whole JPEG was required; found: "));
  std::ofstream(photo, std::ios::binary) << "GIF89a";
  EXPECT_THAT(refused(Split::train),
              HasSubstr("b.JPG: a JPEG or PNG was required; found another content"));
  write_jpeg(photo, 4, 4, std::vector<uint8_t>(64, 9), 4);
  EXPECT_THAT(refused(Split::train), HasSubstr("found four components (CMYK)"));
  fs::remove(photo);
  const fs::path png = root_ / "train/dog/a.png";
  const std::string bytes = *read_text_file(png);
  std::ofstream(png, std::ios::binary) << bytes.substr(0, bytes.size() - 20);
  EXPECT_THAT(refused(Split::train), HasSubstr("a.png: a whole PNG was required; found: "));
}

}  // namespace
}  // namespace nibble
