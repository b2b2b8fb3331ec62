#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "ptq/observers/observer.h"

namespace nibble {
namespace {

QuantScheme scheme(const char* text) { return parse_scheme(text).value(); }

std::vector<float> normal_numbers(int count, float deviation, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& x : values) x = normal(generator);
  return values;
}

double squared_error(const std::vector<float>& values, float scale,
                     const QuantScheme& scheme) {
  double error = 0;
  for (const float x : values) {
    const double q = std::clamp<double>(std::nearbyint(x / scale), code_lowest(scheme),
                                        code_highest(scheme));
    error += (x - q * scale) * (x - q * scale);
  }
  return error;
}

TEST(Observers, MinmaxMakesTheRangeJustRepresentable) {
  ValueStatistics statistics;
  const std::vector<float> values = {-1.0f, 0.5f, 2.54f};
  statistics.add(values);
  EXPECT_FLOAT_EQ(scale_minmax(statistics, scheme("int8/t@f32")), 2.54f / 127);
  EXPECT_FLOAT_EQ(scale_minmax(statistics, scheme("uint8/t@f32")), 2.54f / 255);
  ValueStatistics below;
  below.add(std::vector<float>{-4.0f, 1.0f});
  EXPECT_FLOAT_EQ(scale_minmax(below, scheme("int4/t@f32")), 0.5f);  // -4 is code -8
}

TEST(Observers, ZerosGetScaleOne) {
  ValueStatistics statistics;
  statistics.add(std::vector<float>(10, 0.0f));
  for (const Observer& observer : all_observers()) {
    EXPECT_EQ(observer.scale(statistics, scheme("int8/t@f32")), 1.0f) << observer.name;
  }
}

TEST(Observers, MseCutsOutliersAndComesCloseToTheBestScale) {
  std::vector<float> values = normal_numbers(20000, 1.0f, 7);
  values.push_back(40.0f);  // one outlier that minmax must keep
  ValueStatistics statistics;
  statistics.add(values);
  const QuantScheme int4 = scheme("int4/t@f32");
  const float found = scale_mse(statistics, int4), whole = scale_minmax(statistics, int4);
  EXPECT_LT(found, 0.5f * whole);
  EXPECT_LT(squared_error(values, found, int4), 0.5 * squared_error(values, whole, int4));
  double least = std::numeric_limits<double>::infinity();
  for (int i = 1; i <= 1000; ++i) {
    least = std::min(least, squared_error(values, whole * i / 1000.0f, int4));
  }
  EXPECT_LT(squared_error(values, found, int4), 1.03 * least);
}

TEST(Observers, PercentileLeavesOutOneInTenThousand) {
  std::vector<float> values;
  for (int i = 1; i <= 20000; ++i)
    values.push_back((i % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(i) / 20000);
  values.push_back(50.0f);
  values.push_back(60.0f);
  ValueStatistics statistics;
  statistics.add(values);
  // 2 of 20,002 may lie outside: the two outliers do. Bins are 1/64 wide.
  EXPECT_NEAR(scale_percentile(statistics, scheme("int8/t@f32")) * 127, 1.0, 1.0 / 60);
  EXPECT_FLOAT_EQ(scale_minmax(statistics, scheme("int8/t@f32")) * 127, 60.0f);
}

TEST(Observers, KlCutsOutliersAndKeepsWhatIsFull) {
  std::vector<float> values = normal_numbers(200000, 1.0f, 7);
  values.push_back(40.0f);
  ValueStatistics statistics;
  statistics.add(values);
  const QuantScheme int8 = scheme("int8/t@f32");
  const float found = scale_kl(statistics, int8) * 127;
  EXPECT_GT(found, 2.5f);  // a normal distribution's own tails stay
  EXPECT_LT(found, 10.0f);
  ValueStatistics flat;  // every bin full alike: nothing may be cut
  std::vector<float> even;
  for (int i = 0; i < 100000; ++i) even.push_back(static_cast<float>(i) / 100000);
  flat.add(even);
  EXPECT_GT(scale_kl(flat, scheme("uint8/t@f32")) * 255, 0.95f);
}

TEST(Observers, TheOrderOfTheDataChangesNothing) {
  const std::vector<float> small = normal_numbers(500, 0.01f, 1),
                           large = normal_numbers(500, 30.0f, 2);
  ValueStatistics up, down;
  up.add(small);
  up.add(large);
  down.add(large);
  down.add(small);
  EXPECT_EQ(up.positive(), down.positive());
  EXPECT_EQ(up.negative(), down.negative());
  EXPECT_EQ(up.bin_width(), down.bin_width());
  EXPECT_EQ(up.count(), 1000);
}

// Seen in parts, by others too, in any order: as if it had been seen at once.
TEST(Observers, PartsAddUpToTheWhole) {
  std::mt19937 random(5);
  std::vector<float> values;
  for (int i = 0; i < 6000; ++i) {
    const int exponent = static_cast<int>(random() % 24) - 12;
    values.push_back(std::ldexp(static_cast<float>(random() % 2001) / 1000 - 1, exponent));
  }
  values[3] = 8;  // a range's own end
  ValueStatistics whole;
  whole.add(values);
  for (const size_t step : {1u, 7u, 500u, 6000u}) {
    ValueStatistics forward, backward;
    std::vector<ValueStatistics> parts;
    for (size_t first = 0; first < values.size(); first += step) {
      ValueStatistics part;
      part.add({values.data() + first, std::min(step, values.size() - first)});
      parts.push_back(ValueStatistics::from(part.bytes()));
    }
    for (const ValueStatistics& part : parts) forward.add(part);
    for (size_t i = parts.size(); i-- > 0;) backward.add(parts[i]);
    for (const ValueStatistics* sum : {&forward, &backward}) {
      EXPECT_EQ(sum->bytes(), whole.bytes()) << step;
      EXPECT_EQ(sum->bin_width(), whole.bin_width()) << step;
    }
  }
  ValueStatistics zeros;
  zeros.add(std::vector<float>(5, 0.0f));
  ValueStatistics sum = whole;
  sum.add(zeros);
  EXPECT_EQ(sum.count(), whole.count() + 5);
  EXPECT_EQ(sum.positive(), whole.positive());
}

TEST(Observers, SaysWhenSomethingWasNotFinite) {
  ValueStatistics statistics;
  statistics.add(std::vector<float>{1.0f, std::nanf(""), 2.0f});
  EXPECT_FALSE(statistics.finite());
  EXPECT_EQ(statistics.largest(), 2.0f);
}

TEST(Observers, AreFoundByName) {
  ASSERT_NE(find_observer("mse"), nullptr);
  EXPECT_STREQ(find_observer("mse")->name, "mse");
  EXPECT_EQ(find_observer("median"), nullptr);
}

}  // namespace
}  // namespace nibble
