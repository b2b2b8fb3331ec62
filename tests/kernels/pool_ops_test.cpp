// max_pool, concat and softmax: the formulas, their shapes, and the same nodes on the
// integer path.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops/pool/max_pool.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/integer_node.h"
#include "tests/kernels/joined_net.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::HasSubstr;

TEST(MaxPool, IsTheLargestOfEachWindowInside) {
  for (const MaxPoolShape& s :
       {MaxPoolShape{2, 5, 7, 3, 3, 2, 2, 0, 0}, MaxPoolShape{1, 6, 6, 3, 3, 2, 2, 1, 1},
        MaxPoolShape{3, 4, 5, 2, 3, 1, 2, 0, 1}, MaxPoolShape{1, 3, 3, 3, 3, 1, 1, 0, 0}}) {
    SplitMix64 random(7);
    std::vector<float> x;
    for (int64_t i = 0; i < s.channels * s.height * s.width; ++i) {
      x.push_back(static_cast<float>(random.uniform() - 2));  // all below 0, as padding is not
    }
    std::vector<float> y(static_cast<size_t>(s.channels * s.out_height() * s.out_width()));
    max_pool(s, x.data(), y.data());
    size_t at = 0;
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t i = 0; i < s.out_height(); ++i) {
        for (int64_t j = 0; j < s.out_width(); ++j) {
          float largest = -std::numeric_limits<float>::infinity();
          for (int64_t a = 0; a < s.kernel_h; ++a) {
            for (int64_t b = 0; b < s.kernel_w; ++b) {
              const int64_t r = i * s.stride_h - s.pad_h + a, k = j * s.stride_w - s.pad_w + b;
              if (r < 0 || r >= s.height || k < 0 || k >= s.width) continue;
              largest = std::max(largest,
                                 x[static_cast<size_t>((c * s.height + r) * s.width + k)]);
            }
          }
          EXPECT_EQ(y[at++], largest);
        }
      }
    }
  }
}

TEST(Softmax, SumsToOneAndBearsLargeNumbers) {
  const std::vector<float> x = {1000, 1001, 999};
  std::vector<float> y(3);
  softmax(x.data(), 3, y.data());
  EXPECT_NEAR(y[1] / y[0], std::exp(1.0), 1e-6);
  EXPECT_NEAR(y[0] + y[1] + y[2], 1, 1e-6);
}

struct Seen {
  std::map<std::string, std::vector<float>> floats;
  std::map<std::string, std::vector<int32_t>> codes;
  std::vector<float> y;
};
Seen run(const Artifact& artifact) {
  Executor executor =
      take(Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  Seen seen;
  executor.set_tap([&](const TapValue& value) {
    seen.floats[value.name].assign(value.floats.begin(), value.floats.end());
    seen.codes[value.name].assign(value.codes.begin(), value.codes.end());
  });
  std::vector<float> images;
  SplitMix64 random(3);
  for (int i = 0; i < 3 * 2 * 36; ++i) images.push_back(static_cast<float>(random.uniform() - 0.4));
  seen.y.resize(15);
  const std::vector<int64_t> shape = {3, 2, 6, 6};
  const Status status =
      executor.forward_images(images, shape, MatrixView<float>(seen.y.data(), 3, 5));
  EXPECT_TRUE(status.ok()) << status.message();
  return seen;
}

TEST(Concat, PutsTheChannelsOfEachImageOneAfterAnother) {
  const Seen seen = run(sample::joined_net(1));
  const auto &a = seen.floats.at("a.relu"), &b = seen.floats.at("b.relu"),
             &join = seen.floats.at("join");
  for (size_t i = 0; i < 3; ++i) {
    for (size_t k = 0; k < 5 * 36; ++k) {
      EXPECT_EQ(join[i * 180 + k], k < 72 ? a[i * 72 + k] : b[i * 108 + k - 72]);
    }
  }
}

TEST(IntegerPath, JoinsRequantizesPoolsCodesAndEndsInASoftmaxOfFloats) {
  const Artifact floats = sample::joined_net(2);
  Artifact artifact = sample::quantized_joined_net(2);
  const Seen seen = run(artifact);
  const auto &a = seen.codes.at("a.relu"), &b = seen.codes.at("b.relu"),
             &join = seen.codes.at("join"), &pool = seen.codes.at("pool");
  const MaxPoolShape shape{5, 6, 6, 3, 3, 2, 2, 1, 1};
  for (size_t i = 0; i < 3; ++i) {
    for (size_t k = 0; k < 180; ++k) {
      const float real = k < 72 ? static_cast<float>(a[i * 72 + k]) * 0.003f
                                : static_cast<float>(b[i * 108 + k - 72]) * 0.007f;
      EXPECT_EQ(join[i * 180 + k], quantize_real(real, 0.008f, 0, 255));
    }
    std::vector<int32_t> largest(45);
    max_pool(shape, join.data() + i * 180, largest.data());
    EXPECT_TRUE(std::equal(largest.begin(), largest.end(), pool.begin() + static_cast<int64_t>(i * 45)));
    std::vector<float> mean(5);
    for (size_t c = 0; c < 5; ++c) {
      int32_t sum = 0;
      for (size_t k = 0; k < 9; ++k) sum += pool[i * 45 + c * 9 + k];
      mean[c] = static_cast<float>(sum) * 0.008f / 9;
    }
    softmax(mean.data(), 5, mean.data());
    for (size_t c = 0; c < 5; ++c) EXPECT_EQ(seen.y[i * 5 + c], mean[c]);
  }
  // Near the float net, so that the codes mean something.
  const Seen float_seen = run(floats);
  for (size_t i = 0; i < 15; ++i) EXPECT_NEAR(seen.y[i], float_seen.y[i], 0.01);

  artifact.activations.at("pool").scale = 0.009f;
  EXPECT_THAT(Executor::create(std::make_shared<const Artifact>(artifact), {}).status().message(),
              HasSubstr("pool: the scheme of its input"));
}

TEST(PoolShapes, WhatDoesNotFitIsNamed) {
  const auto refused = [](const std::function<void(Program&)>& change) {
    Artifact artifact = sample::joined_net(3);
    change(artifact.program);
    Shapes given;
    for (const auto& [name, tensor] : artifact.tensors) given[name] = tensor.shape;
    return check_shapes(artifact.program, given).message();
  };
  EXPECT_EQ(refused([](Program&) {}), "");
  EXPECT_THAT(refused([](Program& p) { p.nodes[4].inputs = {"a.relu"}; }),
              HasSubstr("join: concat reads 2 values or more; found 1"));
  EXPECT_THAT(refused([](Program& p) {
                p.nodes[2].attributes["padding"] = std::vector<int64_t>{0, 0};
              }),
              HasSubstr("join: concat reads values [n, c, ..] that differ in c alone"));
  EXPECT_THAT(refused([](Program& p) { p.nodes[5].attributes.erase("kernel"); }),
              HasSubstr("pool: attribute `kernel` must be two integers >= 1"));
  EXPECT_THAT(refused([](Program& p) {
                p.nodes[5].attributes["padding"] = std::vector<int64_t>{3, 0};
              }),
              HasSubstr("pool: the padding must be smaller than the kernel"));
}

}  // namespace
}  // namespace nibble
