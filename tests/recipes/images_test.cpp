#include "recipes/data/images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/base/file.h"

namespace nibble {
namespace {

using testing::HasSubstr;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

class Images : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              cat("nibble_images_",
                  testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  std::string message(Split split, StatusCode code) {
    const auto images = load_images(folder_, split);
    EXPECT_EQ(images.status().code(), code);
    return images.status().message();
  }
  std::filesystem::path folder_;
};

std::string cifar_record(char label, char fill) {
  return std::string(1, label) + std::string(3072, fill);
}
std::string idx_images(int count) {
  std::string out = {0, 0, 8, 3, 0, 0, 0, static_cast<char>(count),
                     0, 0, 0, 2, 0, 0, 0, 3};
  for (int i = 0; i < 6 * count; ++i) out += static_cast<char>(i);
  return out;
}
std::string idx_labels(int count) {
  std::string out = {0, 0, 8, 1, 0, 0, 0, static_cast<char>(count)};
  for (int i = 0; i < count; ++i) out += static_cast<char>(i);
  return out;
}

TEST_F(Images, CifarFilesInOrderOfName) {
  write("data_batch_2.bin", cifar_record(3, 30));
  write("data_batch_1.bin", cifar_record(1, 10) + cifar_record(2, 20));
  write("test_batch.bin", cifar_record(9, 90));
  const auto train = load_images(folder_, Split::train);
  ASSERT_TRUE(train.ok()) << train.status().message();
  EXPECT_EQ(train->labels, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(train->pixels.size(), 3u * 3072);
  EXPECT_EQ(train->pixels[3072], 20);
  EXPECT_THAT(train->description, HasSubstr("3 images, sha256 "));
  EXPECT_EQ(load_images(folder_, Split::test)->labels, std::vector<int32_t>{9});

  const std::vector<float> mean = {0.5f, 0.25f, 0.125f}, std = {0.5f, 0.25f, 2.0f};
  std::vector<float> out(2 * 3072);
  preprocess(*train, 1, 2, mean, std, out.data());
  for (int c = 0; c < 3; ++c) {
    const size_t channel = static_cast<size_t>(c);
    EXPECT_EQ(out[channel * 1024 + 7], (20 / 255.0f - mean[channel]) / std[channel]);
    EXPECT_EQ(out[3072 + channel * 1024], (30 / 255.0f - mean[channel]) / std[channel]);
  }
}

TEST_F(Images, CifarDamage) {
  write("test_batch.bin", cifar_record(1, 1).substr(1));
  EXPECT_THAT(
      message(Split::test, StatusCode::data_loss),
      HasSubstr(
          "test_batch.bin: whole records of 3073 bytes were required; found 3072 bytes"));
  write("test_batch.bin", cifar_record(1, 1) + cifar_record(10, 1));
  EXPECT_THAT(
      message(Split::test, StatusCode::data_loss),
      HasSubstr("test_batch.bin image 1: a label below 10 was required; found 10"));
  EXPECT_THAT(
      message(Split::train, StatusCode::not_found),
      HasSubstr(
          "train*.bin, data_batch*.bin or train-images-idx3-ubyte[.gz] was required"));
}

TEST_F(Images, MnistPlainAndDamaged) {
  write("t10k-images-idx3-ubyte", idx_images(2));
  EXPECT_THAT(message(Split::test, StatusCode::not_found),
              HasSubstr("the labels are missing"));
  write("t10k-labels-idx1-ubyte", idx_labels(2));
  const auto test = load_images(folder_, Split::test);
  ASSERT_TRUE(test.ok()) << test.status().message();
  EXPECT_EQ(test->height, 2);
  EXPECT_EQ(test->width, 3);
  EXPECT_EQ(test->pixels[6], 6);
  EXPECT_EQ(test->labels, (std::vector<int32_t>{0, 1}));
  write("t10k-labels-idx1-ubyte", idx_labels(3));
  EXPECT_THAT(message(Split::test, StatusCode::data_loss),
              HasSubstr("2 labels, one an image, were required; found 3"));
  write("t10k-images-idx3-ubyte", idx_images(2).substr(0, 20));
  EXPECT_THAT(message(Split::test, StatusCode::data_loss),
              HasSubstr("t10k-images-idx3-ubyte: [2, 2, 3] bytes after the header were "
                        "required; found 4"));
  write("t10k-images-idx3-ubyte", "abc");
  EXPECT_THAT(message(Split::test, StatusCode::data_loss),
              HasSubstr("an IDX file of bytes in 3 dimensions"));
}

TEST_F(Images, RealMnist) {
  const auto mnist = kData / "mnist";
  if (!std::filesystem::exists(mnist))
    GTEST_SKIP() << "needs mnist of the shared data, which is absent";
  const auto test = load_images(mnist, Split::test);
  ASSERT_TRUE(test.ok()) << test.status().message();
  EXPECT_EQ(test->count, 10000);
  EXPECT_EQ(test->width, 28);
  EXPECT_EQ(test->labels[0], 7);  // the first digits of the test set
  EXPECT_EQ(test->labels[1], 2);
  // A gzip that breaks off.
  const auto whole = map_file(mnist / "t10k-labels-idx1-ubyte.gz");
  std::filesystem::create_symlink(
      std::filesystem::absolute(mnist / "t10k-images-idx3-ubyte.gz"),
      folder_ / "t10k-images-idx3-ubyte.gz");
  write("t10k-labels-idx1-ubyte.gz", std::string(whole->text().substr(0, 3000)));
  EXPECT_THAT(message(Split::test, StatusCode::data_loss),
              HasSubstr("t10k-labels-idx1-ubyte.gz: a whole gzip or plain file below 1 "
                        "GiB was required; found"));
}

TEST_F(Images, RealCifarMeanAndDeviation) {
  const auto cifar = kData / "cifar10";
  if (!std::filesystem::exists(cifar))
    GTEST_SKIP() << "needs cifar10 of the shared data, which is absent";
  const auto train = load_images(cifar, Split::train);
  ASSERT_TRUE(train.ok()) << train.status().message();
  EXPECT_EQ(train->count, 25000);
  const double expected[] = {0.4914, 0.4822, 0.4465};  // of the whole training set
  for (int c = 0; c < 3; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < train->count; ++i)
      for (int64_t p = 0; p < 1024; ++p)
        sum += train->pixels[static_cast<size_t>((i * 3 + c) * 1024 + p)];
    EXPECT_NEAR(sum / 255 / 1024 / static_cast<double>(train->count), expected[c], 2e-3);
  }
}

}  // namespace
}  // namespace nibble
