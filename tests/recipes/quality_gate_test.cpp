// Gates look at the unfavourable end of the interval; several recipes are sorted by what
// a byte buys.
#include "recipes/eval/quality_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/json.h"
#include "recipes/report/comparison.h"

namespace nibble {
namespace {

using testing::HasSubstr;

TextQuality quality(double kl, double low, double high) {
  TextQuality text;
  text.kl = kl;
  text.kl_ci95 = {low, high};
  text.kl_p99 = 10 * kl;
  text.perplexity = 15;
  text.perplexity_increase = 0.02;
  text.perplexity_increase_ci95 = {0.01, 0.03};
  return text;
}

TEST(QualityGate, TheIntervalDecides) {
  const auto met = [](const QualityGate& gate) {
    const auto results = check_gate(gate, quality(0.01, 0.008, 0.012), std::nullopt);
    EXPECT_EQ(results.size(), 1u);
    return results[0];
  };
  EXPECT_TRUE(met({.max_kl = 0.012}).met());
  const GateResult close = met({.max_kl = 0.011});
  EXPECT_FALSE(close.met());
  EXPECT_TRUE(close.estimate_meets());
  EXPECT_EQ(
      gate_text(close),
      "max_kl at most 0.01100: not met, 0.01000 [0.008000, 0.01200]; the estimate is "
      "inside but its interval is not: more evaluation data may decide");
  EXPECT_FALSE(met({.max_kl = 0.009}).estimate_meets());
  EXPECT_TRUE(met({.max_perplexity_increase = 3}).met());
  EXPECT_FALSE(met({.max_perplexity_increase = 2.5}).met());
  EXPECT_TRUE(check_gate({}, quality(9, 9, 9), std::nullopt).empty());

  ImageQuality images;
  images.accuracy = 0.91;
  images.accuracy_ci95 = {0.90, 0.92};
  EXPECT_TRUE(check_gate({.min_accuracy = 90}, std::nullopt, images)[0].met());
  EXPECT_FALSE(check_gate({.min_accuracy = 90.5}, std::nullopt, images)[0].met());
  EXPECT_TRUE(
      check_gate({.min_accuracy = 90.5}, std::nullopt, images)[0].estimate_meets());
}

TEST(QualityGate, FitsTheKindOfModel) {
  EXPECT_TRUE(check_gate_kind({.max_kl = 1, .max_perplexity_increase = 1}, true).ok());
  EXPECT_TRUE(check_gate_kind({.min_accuracy = 1}, false).ok());
  EXPECT_EQ(check_gate_kind({.min_accuracy = 1}, true).message(),
            "[gate] min_accuracy: a classifier of images is required; found a language "
            "model; leave the gate out");
  EXPECT_EQ(check_gate_kind({.max_kl = 1}, false).code(), StatusCode::invalid_argument);
}

RunReport report(const char* name, int64_t bytes, double kl) {
  RunReport out;
  out.verb = "quantize";
  out.model = "m";
  out.recipe_name = out.after.name = name;
  out.recipe = std::string("name: ") + name;
  out.after.bytes = bytes;
  out.after.bits_per_weight = 4;
  out.after.text = quality(kl, kl * 0.9, kl * 1.1);
  return out;
}

TEST(Comparison, SortsByQualityPerByte) {
  // KL x MB: a 0.02, b 0.03, c 0.008; b is neither smaller nor better than c.
  const std::vector<RunReport> sorted = sorted_by_quality_per_byte(
      {report("a", 1'000'000, 0.02), report("b", 3'000'000, 0.01),
       report("c", 2'000'000, 0.004)});
  ASSERT_EQ(sorted.size(), 3u);
  EXPECT_EQ(sorted[0].recipe_name, "c");
  EXPECT_EQ(sorted[1].recipe_name, "a");
  EXPECT_EQ(sorted[2].recipe_name, "b");
  const std::string table = comparison_table(sorted);
  EXPECT_THAT(table, HasSubstr("KL x MB"));
  EXPECT_EQ(table.find("best of its size", table.find("best of its size") + 1),
            table.rfind("best of its size"));  // c and a, not b
  EXPECT_LT(table.rfind("best of its size"), table.find("\nb "));
  const auto json = parse_json_or_throw(comparison_json(sorted, "out"));
  EXPECT_EQ(json["recipes"][0]["recipe"], "c");
  EXPECT_NEAR(json["recipes"][0]["loss_times_megabytes"].get<double>(), 0.008, 1e-12);
  EXPECT_FALSE(json["recipes"][2]["best_of_its_size"].get<bool>());
  const std::string page = report_html(combined_report(sorted));
  EXPECT_TRUE(page.find("c, a, b") != std::string::npos);
  EXPECT_TRUE(page.find("id=\"quality\"") != std::string::npos);
}

TEST(Comparison, ARejectedArtifactSaysWhy) {
  RunReport one = report("a", 1, 0.02);
  EXPECT_TRUE(gate_status(one).ok());
  one.gates = check_gate({.max_kl = 0.01}, one.after.text, std::nullopt);
  one.rejected = true;
  one.output = "dir.rejected";
  EXPECT_EQ(gate_status(one).code(), StatusCode::rejected);
  EXPECT_EQ(
      gate_status(one).message(),
      "[quantize] gate: max_kl at most 0.01000: not met, 0.02000 [0.01800, 0.02200]; "
      "the artifact is at dir.rejected; choose a better recipe or another gate");
}

}  // namespace
}  // namespace nibble
