// CIFAR-10 and MNIST folders as they are distributed.
//
// A CIFAR folder holds train*.bin / data_batch*.bin and test_batch.bin (label byte + 3072
// bytes in R, G, B planes); an MNIST folder holds *-images-idx3-ubyte[.gz] and labels.
// not_found / data_loss name the file, what was required and what was found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

struct ImageSet {
  int64_t count = 0, channels = 0, height = 0, width = 0;
  std::vector<uint8_t> pixels;  // [count, channels, height, width]
  std::vector<int32_t> labels;
  std::string description;
};
enum class Split : uint8_t { train, test };
Result<ImageSet> load_images(const std::filesystem::path& directory, Split split);

// (pixel / 255 - mean[c]) / std[c], f32, an absent mean being 0 and std 1, of images
// [first, first + count), to out [count, channels, height, width].
void preprocess(const ImageSet& images, int64_t first, int64_t count,
                const std::vector<float>& mean, const std::vector<float>& std,
                float* out);

}  // namespace nibble
