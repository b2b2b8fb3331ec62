#include "recipes/report/comparison.h"

#include <algorithm>

#include "kernels/base/json.h"
#include "recipes/report/quality_json.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// What is lost: KL, or the share of wrong classes. Nothing measured: nothing.
std::optional<double> loss_of(const RunReport& report) {
  if (report.after.text && report.after.text->kl) return *report.after.text->kl;
  if (report.after.images) return 1 - report.after.images->accuracy;
  return std::nullopt;
}

double megabytes(const RunReport& report) {
  return static_cast<double>(report.after.bytes) / 1e6;
}

double rank_of(const RunReport& report) {
  return loss_of(report).value_or(1) * megabytes(report);
}

bool is_best(const RunReport& report, const std::vector<RunReport>& reports) {
  const std::optional<double> loss = loss_of(report);
  return loss &&
         std::none_of(reports.begin(), reports.end(), [&](const RunReport& other) {
           const std::optional<double> its = loss_of(other);
           return its && other.after.bytes <= report.after.bytes && *its <= *loss &&
                  (other.after.bytes < report.after.bytes || *its < *loss);
         });
}

std::string interval_text(double value, const Interval& interval, int digits) {
  return cat(number_text(value, digits), " [", number_text(interval.low, digits), ", ",
             number_text(interval.high, digits), "]");
}

}  // namespace

std::vector<RunReport> sorted_by_quality_per_byte(std::vector<RunReport> reports) {
  std::sort(reports.begin(), reports.end(), [](const RunReport& a, const RunReport& b) {
    const double x = rank_of(a), y = rank_of(b);
    return x != y ? x < y : a.recipe_name < b.recipe_name;
  });
  return reports;
}

std::string comparison_table(const std::vector<RunReport>& reports) {
  const bool text = reports[0].after.text.has_value();
  const bool images = reports[0].after.images.has_value();
  std::vector<std::vector<std::string>> rows = {{"recipe", "size", "bits per weight"}};
  if (text) {
    for (const char* title :
         {"KL, nats a token", "99th percentile", "perplexity", "KL x MB"})
      rows[0].push_back(title);
  }
  if (images) {
    for (const char* title : {"accuracy, %", "wrong x MB"}) rows[0].push_back(title);
  }
  rows[0].push_back("");
  for (const RunReport& report : reports) {
    const Measurement& m = report.after;
    std::vector<std::string> row = {report.recipe_name, bytes_text(m.bytes),
                                    number_text(m.bits_per_weight, 4)};
    if (text && m.text && m.text->kl) {
      row.push_back(interval_text(*m.text->kl, m.text->kl_ci95, 3));
      row.push_back(number_text(*m.text->kl_p99, 3));
      row.push_back(number_text(m.text->perplexity, 6));
      row.push_back(number_text(rank_of(report), 3));
    }
    if (images && m.images) {
      row.push_back(interval_text(
          m.images->accuracy * 100,
          {m.images->accuracy_ci95.low * 100, m.images->accuracy_ci95.high * 100}, 4));
      row.push_back(number_text(rank_of(report), 3));
    }
    row.resize(rows[0].size() - 1, "-");
    row.push_back(cat(is_best(report, reports) ? "best of its size" : "",
                      report.rejected ? "  rejected by its gates" : ""));
    rows.push_back(std::move(row));
  }
  return table_text(rows);
}

std::string comparison_json(const std::vector<RunReport>& reports,
                            const std::string& output) {
  Json list = Json::array();
  for (const RunReport& report : reports) {
    Json entry = parse_json_or_throw(report_json(report));
    if (loss_of(report)) entry["loss_times_megabytes"] = rank_of(report);
    entry["best_of_its_size"] = is_best(report, reports);
    list.push_back(std::move(entry));
  }
  return Json{{"verb", "quantize"},
              {"output", output},
              {"sorted_by", "loss_times_megabytes"},
              {"recipes", list}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

RunReport combined_report(const std::vector<RunReport>& reports) {
  RunReport all = reports[0];
  all.ledger = {};
  all.parts.clear();
  all.gates.clear();
  all.notes = {
      "Sorted by quality per byte: loss (KL, or the share of wrong classes) times "
      "size, the smallest first"};
  all.recipe.clear();
  all.recipe_name.clear();
  for (const RunReport& report : reports) {
    all.recipe_name += (all.recipe_name.empty() ? "" : ", ") + report.recipe_name;
    all.recipe += "# " + report.recipe_name + "\n" + report.recipe + "\n";
    for (const GateResult& gate : report.gates)
      all.notes.push_back(report.recipe_name + ": gate " + gate_text(gate));
    for (const std::string& note : report.notes)
      all.notes.push_back(report.recipe_name + ": " + note);
    if (&report != &reports[0]) all.others.push_back(report.after);
  }
  constexpr size_t kNamed = 4;  // as many as a title holds
  if (reports.size() > kNamed)
    all.recipe_name = cat(reports.size(), " recipes side by side");
  return all;
}

}  // namespace nibble
