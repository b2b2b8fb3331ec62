// The report as a person sees it: opened in headless Chromium, without a network, in
// light and dark. Every plot must hold data and have drawn something, and the picture
// must not be blank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>

#include "kernels/base/json.h"
#include "recipes/report/run_report.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

Measurement measured(const std::string& name, int64_t bytes, double perplexity,
                     double kl) {
  Measurement out;
  out.name = name;
  out.bytes = bytes;
  out.bits_per_weight = static_cast<double>(bytes) / 1e5;
  out.text.emplace();
  out.text->perplexity = perplexity;
  out.text->perplexity_ci95 = {perplexity - 0.1, perplexity + 0.1};
  if (kl > 0) out.text->kl = kl;
  return out;
}

RunReport full_report() {
  RunReport report;
  report.verb = "train";
  report.model = "stories";
  report.output = "w4";
  report.recipe_name = "w4a16-qat";
  report.recipe = "name: w4a16-qat\n";
  report.evaluation = "held-out text";
  report.before = measured("float", 5'000'000, 5.0, 0);
  report.after = measured("w4a16-qat", 1'600'000, 5.3, 0.05);
  report.others = {measured("w8a16", 2'700'000, 5.01, 0.0005)};
  for (int i = 0; i < 12; ++i) {
    LedgerEntry entry;
    entry.tensor = "model.layers." + std::to_string(i) + ".mlp.down_proj.weight";
    entry.scheme = "int4/g32@f16";
    entry.method = "gptq";
    entry.parameters = 1000;
    entry.bits = 4.5;
    entry.error = 0.004 + 0.0003 * i;
    entry.output_error = 0.002;
    report.ledger.entries.push_back(entry);
    report.loss.push_back({10 * (i + 1), 2.0 * std::exp(-0.1 * i), 0.001});
  }
  return report;
}

// Appended to a copy of the page: once everything is drawn, says for every canvas how
// many points its chart holds and how many of its pixels are not transparent.
constexpr const char* kProbe = R"(
<script>addEventListener("load",()=>setTimeout(()=>{
  const found=[...document.querySelectorAll("canvas")].map(canvas=>{
    const chart=Chart.getChart(canvas);
    const points=chart?chart.data.datasets.reduce((n,set)=>n+set.data.filter(p=>
      Number.isFinite(typeof p==="object"&&p?p.y:p)).length,0):0;
    const image=canvas.getContext("2d").getImageData(0,0,canvas.width,canvas.height).data;
    let drawn=0;for(let i=3;i<image.length;i+=4)if(image[i])++drawn;
    return{id:canvas.id,points,drawn};
  });
  const at=document.createElement("pre");at.id="probe";
  at.textContent="PROBE"+JSON.stringify(found)+"END";document.body.append(at);
},1200));</script>)";

std::string shell(const std::string& command) {
  std::string out;
  FILE* pipe = popen((command + " 2> /dev/null").c_str(), "r");
  if (pipe == nullptr) return out;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  pclose(pipe);
  return out;
}

std::string chromium(const std::filesystem::path& profile, bool dark) {
  return "timeout 100 chromium --headless --no-sandbox --disable-gpu --disable-quic "
         "--no-first-run --disable-background-networking --disable-component-update "
         "--disable-sync --hide-scrollbars --window-size=1000,2400 "
         "--virtual-time-budget=4000 --host-resolver-rules='MAP * ~NOTFOUND' "
         "--user-data-dir=" +
         profile.string() + (dark ? " --blink-settings=preferredColorScheme=0 " : " ");
}

class ReportInABrowser : public testing::Test {
 protected:
  void SetUp() override {
    if (shell("command -v chromium").empty())
      GTEST_SKIP() << "needs chromium, which is not installed";
  }
  std::string write(const RunReport& report) {
    const auto page = directory_.path() / "report.html";
    std::ofstream(page) << report_html(report) << kProbe;
    return "file://" + page.string();
  }
  TemporaryDirectory directory_;
};

// Six budgets of a sweep, joined, and two points beside them.
RunReport sweep_report() {
  RunReport report = full_report();
  report.loss.clear();
  report.ledger.entries.clear();
  report.others.clear();
  for (int i = 0; i < 6; ++i) {
    Measurement point = measured("mixed mixed.bits=" + std::to_string(i + 3),
                                 1'000'000 + 200'000 * i, 5.5, 0.1 * std::exp(-i));
    point.curve = "mixed";
    report.others.push_back(point);
  }
  report.others.push_back(measured("int4", 1'200'000, 5.6, 0.2));
  return report;
}

RunReport speed_report() {
  RunReport report;
  report.verb = "bench";
  report.model = "w4";
  report.recipe_name = "speed on some CPU";
  for (auto* model : {&report.after, &report.before.emplace()}) {
    model->name = "a model";
    model->bytes = 1'000'000;
    model->speed.emplace();
    model->speed->decode = {300, 290, 310, 5};
    model->speed->prefill = {2000, 1900, 2100, 5};
  }
  for (const int64_t rows : {384, 512, 1024}) {
    report.layers.push_back({"linear_f32_int4g__avx2", "int4/g32@f16", rows, 384, 8,
                             {4e9, 3e9, 5e9, 5}, {8e10, 7e10, 9e10, 5}});
  }
  return report;
}

RunReport kernel_report() {
  RunReport report;
  report.verb = "bench";
  report.model = "kernels";
  report.recipe_name = "some CPU";
  report.kernels.limits.machine.levels = {"avx2"};
  for (const int threads : {1, 2}) {
    for (const int64_t tokens : {1, 8, 512}) {
      KernelSpeed speed{.scheme = "int4/g32@f16",
                        .activation = "s8",
                        .tokens = tokens,
                        .threads = threads};
      const Rate rate{20e9, 19e9, 21e9, 5}, part{0.8, 0.7, 0.9, 5};
      speed.bytes = speed.operations = speed.read = speed.peak = rate;
      speed.of_peak = part;
      if (tokens <= kDecodeTokens) speed.of_read = part;
      report.kernels.cases.push_back(speed);
    }
  }
  return report;
}

struct Page {
  const char* name;
  RunReport (*report)();
  size_t plots;  // at least
  int points;    // of each, at least
};
void PrintTo(const Page& page, std::ostream* out) { *out << page.name; }
class EveryPlot : public ReportInABrowser, public testing::WithParamInterface<Page> {};
// Error per layer, loss, size against quality; two speeds and two of the layers; decode
// and prefill at two thread counts, each value beside its limit.
INSTANTIATE_TEST_SUITE_P(Pages, EveryPlot,
                         testing::Values(Page{"train", full_report, 3, 3},
                                         Page{"sweep", sweep_report, 1, 8 + 6},
                                         Page{"bench", speed_report, 4, 2},
                                         Page{"kernels", kernel_report, 4, 2}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(EveryPlot, HasData) {
  const std::string page = write(GetParam().report());
  const std::string dom =
      shell(chromium(directory_.path() / "profile", false) + "--dump-dom " + page);
  const size_t begin = dom.rfind("PROBE[");
  ASSERT_NE(begin, std::string::npos) << dom.substr(0, 500);
  const std::string found = dom.substr(begin + 5, dom.find("END", begin) - begin - 5);
  const Json plots = parse_json(found);
  ASSERT_TRUE(plots.is_array()) << found;
  EXPECT_GE(plots.size(), GetParam().plots) << found;
  for (const Json& plot : plots) {
    EXPECT_GE(plot["points"].get<int>(), GetParam().points) << plot;
    EXPECT_GE(plot["drawn"].get<int>(), 500) << plot;
  }
}

TEST_F(ReportInABrowser, ItsPictureIsNotBlank) {
  const std::string page = write(full_report());
  uintmax_t sizes[2] = {0, 0};
  for (const bool dark : {false, true}) {
    const auto picture = directory_.path() / (dark ? "dark.png" : "light.png");
    shell(chromium(directory_.path() / "profile", dark) +
          "--screenshot=" + picture.string() + " " + page);
    ASSERT_TRUE(std::filesystem::exists(picture));
    sizes[dark] = std::filesystem::file_size(picture);
    // 1000 x 2400 pixels of one colour are 10 kB as PNG; a page of text and plots is
    // more.
    EXPECT_GT(sizes[dark], 40'000u);
  }
  EXPECT_NE(sizes[0], sizes[1]) << "dark and light look the same";
}

}  // namespace
}  // namespace nibble
