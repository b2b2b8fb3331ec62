// Reports: the same numbers in the table, the JSON and the page; the page stands alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/base/json.h"
#include "recipes/report/embedded_files.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

RunReport sample_report() {
  RunReport report;
  report.verb = "quantize";
  report.model = "tiny <model>";
  report.output = "out/here";
  report.recipe_name = "w4a16-gptq";
  report.recipe = "name: w4a16-gptq\ngroup: 32\n";
  report.evaluation = "held-out text";
  report.calibration = "calibration text";
  report.notes = {"a note with </script> in it"};
  Measurement before;
  before.name = "before, float";
  before.bytes = 1040128;
  before.bits_per_weight = 32;
  before.text.emplace();
  before.text->perplexity = 15.18665;
  before.text->perplexity_ci95 = {14.5, 16.25};
  Measurement after = before;
  after.name = "w4a16-gptq";
  after.bytes = 261728;
  after.bits_per_weight = 8.052;
  after.quantized_bits_per_weight = 4.514;
  after.text->kl = 0.00093;
  after.text->kl_ci95 = {0.00087, 0.00099};
  after.text->top1_agreement = 0.979;
  after.speed.emplace();
  after.speed->decode = {1234.5, 1200, 1300, 5};
  after.speed->cpu = "some CPU";
  report.before = before;
  report.after = after;
  report.ledger.entries = {{.tensor = "model.layers.0.q_proj.weight",
                            .scheme = "int4/g32@f16",
                            .method = "gptq",
                            .reason = "",
                            .kernel = "linear",
                            .parameters = 4096,
                            .bits = 18432,
                            .tokens = 100,
                            .error = 0.0123,
                            .output_error = 0.0045,
                            .rtn_error = 0.0101,
                            .rtn_output_error = 0.0209,
                            .note = "damping 0.01"}};
  report.loss = {{1, 6.5, 0.001}, {2, 5.25, 0.0005}};
  return report;
}

TEST(Report, TheTableHasEveryFigure) {
  const std::string text = print_report(sample_report());
  for (const char* part :
       {"before, float", "w4a16-gptq", "1.04 MB", "261.7 kB", "32.00", "8.052", "4.514",
        "15.1867 [14.50, 16.25]", "0.000930 [0.000870, 0.000990]", "97.90 %",
        "1234 tokens/s", "group: 32", "held-out text", "calibration text", "some CPU",
        "out/here"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text,
              Not(HasSubstr("accuracy")));  // lines that apply to neither are left out
}

TEST(Report, JsonIsOneObject) {
  const std::string text = report_json(sample_report());
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const Json json = parse_json_or_throw(text);
  EXPECT_EQ(json["after"]["kl"], 0.00093);
  EXPECT_EQ(json["after"]["decode_tokens_per_second"]["median"], 1234.5);
  EXPECT_EQ(json["before"]["perplexity"], 15.18665);
  EXPECT_EQ(json["layers"][0]["output_error"], 0.0045);
  EXPECT_EQ(json["layers"][0]["rtn_error"], 0.0101);
  EXPECT_EQ(json["layers"][0]["rtn_output_error"], 0.0209);
  EXPECT_EQ(json["loss"][1]["loss"], 5.25);
}

// A page is long: failures must not print it.
bool holds(const std::string& page, const std::string& part) {
  return page.find(part) != std::string::npos;
}

TEST(Report, ThePageStandsAloneAndRepeatsItself) {
  RunReport report = sample_report();
  const std::string page = report_html(report);
  // Nothing is fetched: no source, no stylesheet, no font from elsewhere.
  for (const char* outside : {"src=", "<link", "@import", "url("}) {
    EXPECT_FALSE(holds(page, outside)) << outside;
  }
  EXPECT_TRUE(holds(page, "tiny &lt;model&gt;"));
  EXPECT_TRUE(holds(page, "a note with &lt;/script&gt; in it"));
  EXPECT_TRUE(holds(page, "Chart.js v"));
  for (const char* canvas : {"id=\"errors\"", "id=\"loss\"", "id=\"quality\""}) {
    EXPECT_TRUE(holds(page, canvas));
  }
  EXPECT_TRUE(holds(page, "<td>15.1867 [14.50, 16.25]</td>"));
  for (const char* figure : {"by nearest", "0.0123", "0.0101", "0.00450", "0.0209"}) {
    EXPECT_TRUE(holds(page, figure)) << figure;
  }
  // Speed is another machine's: it must not change the page's bytes.
  report.after.speed->decode.median = 7;
  report.output = "elsewhere";
  EXPECT_TRUE(report_html(report) == page);
}

TEST(Report, PlotsWithoutDataAreLeftOut) {
  RunReport report = sample_report();
  report.loss.clear();
  report.ledger.entries.clear();
  report.before.reset();
  const std::string page = report_html(report);
  for (const char* canvas :
       {"id=\"errors\"", "id=\"loss\"", "id=\"quality\"", "Chart.js v"}) {
    EXPECT_FALSE(holds(page, canvas)) << canvas;
  }
}

TEST(Report, MeasurementsReadBack) {
  const Measurement after = sample_report().after;
  const Result<Measurement> again = parse_measurement(print_measurement(after), "x");
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(again->name, after.name);
  EXPECT_EQ(again->bytes, after.bytes);
  EXPECT_EQ(again->text->perplexity, after.text->perplexity);
  EXPECT_EQ(*again->text->kl, *after.text->kl);
  // Beside the figures of now, an earlier artifact's stand with their intervals.
  EXPECT_EQ(again->text->perplexity_ci95.low, after.text->perplexity_ci95.low);
  EXPECT_EQ(again->text->perplexity_ci95.high, after.text->perplexity_ci95.high);
  EXPECT_EQ(again->text->kl_ci95.high, after.text->kl_ci95.high);
  EXPECT_EQ(*again->text->top1_agreement, *after.text->top1_agreement);
  EXPECT_EQ(print_measurement(after).find("tokens_per_second"), std::string::npos);
  const Status broken = parse_measurement("{}", "old/measurements.json").status();
  EXPECT_EQ(broken.code(), StatusCode::data_loss);
  EXPECT_EQ(broken.message(),
            "[report] old/measurements.json: measurements.json as quantize writes it is "
            "required; found "
            "no name; leave this artifact out of --compare");
}

TEST(TextTable, NumbersAreSetRight) {
  EXPECT_EQ(table_text({{"name", "size"}, {"a", "9"}, {"bcdef", "10"}}),
            "name   size\na         9\nbcdef    10\n");
  EXPECT_EQ(bytes_text(85), "85 B");
  EXPECT_EQ(bytes_text(123400), "123.4 kB");
  EXPECT_EQ(bytes_text(28324608), "28.32 MB");
  EXPECT_EQ(number_text(15.186654, 5), "15.187");
  EXPECT_EQ(number_text(0.00093, 3), "0.000930");
  EXPECT_EQ(number_text(0), "0");
  EXPECT_EQ(number_text(1.5e-9, 2), "1.5e-09");
}

TEST(EmbeddedFiles, AreTheFilesOfTheTree) {
  const std::string_view embedded = embedded_file("w8a16.yaml");
  std::ifstream file(NIBBLE_SOURCE_DIR "/recipes/configs/w8a16.yaml", std::ios::binary);
  const std::string contents{std::istreambuf_iterator<char>(file), {}};
  ASSERT_FALSE(contents.empty());
  EXPECT_EQ(embedded, contents);
  EXPECT_EQ(embedded_file("nothing.yaml").data(), nullptr);
  size_t files = 1;  // Chart.js
  for (const auto& recipe :
       std::filesystem::directory_iterator(NIBBLE_SOURCE_DIR "/recipes/configs")) {
    files += recipe.is_regular_file();
  }
  EXPECT_EQ(embedded_file_names().size(), files);
}

}  // namespace
}  // namespace nibble
