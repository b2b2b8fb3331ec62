#include "recipes/eval/attested_figures.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/sha256.h"
#include "recipes/data/sentences.h"
#include "recipes/eval/model_data.h"

namespace nibble {
namespace {

using Outcome = Check::Outcome;
using Figures = std::map<std::string, AttestedFigure>;

// exp and log of another machine's library may differ in the last bit.
constexpr double kRecomputed = 1e-9;

AttestedFigure with(double value, const Interval& interval) {
  return {value, std::array<double, 2>{interval.low, interval.high}};
}

void add(const char* name, const std::optional<double>& value, const Interval& interval,
         Figures& figures) {
  if (value) figures[name] = with(*value, interval);
}

AttestedFigure mean_of(const std::vector<double>& values,
                       const std::vector<double>& weights) {
  return with(weighted_mean(values, weights), bootstrap_ci95(values, weights));
}

AttestedFigure mapped(AttestedFigure figure, double (*map)(double)) {
  figure.value = map(figure.value);
  for (double& end : *figure.ci95) end = map(end);
  return figure;
}

double exp_of(double x) { return std::exp(x); }
double growth_of(double x) { return std::expm1(x); }

// The figures that follow from the values a sequence.
Figures recomputed(const AttestedMeasurement& measured) {
  Figures figures;
  const auto list = [&](const char* name) {
    const auto found = measured.values.find(name);
    return found == measured.values.end() ? std::vector<double>() : found->second;
  };
  const std::vector<double> nll = list("nll");
  std::vector<double> weights = list("predictions");
  if (!nll.empty() && weights.size() == nll.size()) {
    figures["perplexity"] = mapped(mean_of(nll, weights), exp_of);
    if (const auto kl = list("kl"); kl.size() == nll.size())
      figures["kl"] = mean_of(kl, weights);
    if (const auto agreement = list("top1_agreement"); agreement.size() == nll.size())
      figures["top1_agreement"] = mean_of(agreement, weights);
    if (auto growth = list("reference_nll"); growth.size() == nll.size()) {
      for (size_t i = 0; i < growth.size(); ++i) growth[i] = nll[i] - growth[i];
      figures["perplexity_increase"] = mapped(mean_of(growth, weights), growth_of);
    }
  }
  for (const auto& [values, figure] :
       {std::pair("right", "accuracy"), std::pair("agrees", "argmax_agreement"),
        std::pair("cosine", "cosine")}) {
    const std::vector<double> one = list(values);
    if (!one.empty())
      figures[figure] = mean_of(one, std::vector<double>(one.size(), 1.0));
  }
  return figures;
}

bool near(double a, double b, double allowed) {
  return std::abs(a - b) <= allowed;  // false of NaN
}

// The first figure that is not what was found; "" where all hold.
std::string first_difference(const Figures& stated, const Figures& found,
                             double (*allowed)(const AttestedFigure&), const char* why) {
  for (const auto& [name, figure] : found) {
    const auto at = stated.find(name);
    if (at == stated.end()) continue;
    const double most = allowed(at->second);
    if (!near(at->second.value, figure.value, most)) {
      return cat(name, ": stated as ", at->second.value, ", ", why, " ", figure.value,
                 " (allowed difference ", most, ")");
    }
    if (!at->second.ci95 || !figure.ci95) continue;
    for (size_t end = 0; end < 2; ++end) {
      if (near((*at->second.ci95)[end], (*figure.ci95)[end], most)) continue;
      return cat(name, ": the ", end == 0 ? "low" : "high",
                 " end of its interval is stated as ", (*at->second.ci95)[end], ", ", why,
                 " ", (*figure.ci95)[end], " (allowed difference ", most, ")");
    }
  }
  return "";
}

double recomputed_bound(const AttestedFigure& figure) {
  return kRecomputed * std::max(1.0, std::abs(figure.value));
}

double remeasured_bound(const AttestedFigure& figure) {
  const double width = figure.ci95 ? (*figure.ci95)[1] - (*figure.ci95)[0] : 0;
  return std::max(width / 20, std::abs(figure.value) / 1000) + 1e-7;
}

std::string names_of(const Figures& figures) {
  std::string names;
  for (const auto& [name, figure] : figures)
    names += cat(names.empty() ? "" : ", ", name);
  return names;
}

TextOptions options_of(const AttestedData& data) {
  TextOptions options;
  options.length = data.length;
  options.stride = data.stride;
  options.min_chars = data.min_chars;
  options.per_line = data.per_line;
  options.append_eos = data.append_eos;
  // What lies behind the last sequence need not be cut.
  options.limit = data.first + data.count;
  return options;
}

Check outcome(const AttestedMeasurement& measured, Outcome how, std::string detail) {
  return {cat("figures on ", measured.data.file), how, std::move(detail)};
}

Check compare(const AttestedMeasurement& stated, const AttestedMeasurement& found) {
  const std::string difference =
      first_difference(stated.figures, found.figures, remeasured_bound, "measured as");
  if (!difference.empty()) return outcome(stated, Outcome::failed, difference);
  Figures left = stated.figures;
  bool equal = true;
  for (const auto& [name, figure] : found.figures) {
    const auto at = left.find(name);
    if (at == left.end()) continue;
    equal = equal && at->second == figure;
    left.erase(at);
  }
  return outcome(
      stated, Outcome::passed,
      cat("measured again, ",
          equal ? "equal: " : "within the allowed difference: ", names_of(found.figures),
          left.empty() ? "" : "; needs the reference: " + names_of(left)));
}

Check other_data(const AttestedMeasurement& measured, const std::string& found) {
  return outcome(
      measured, Outcome::failed,
      cat("data: SHA-256 of what was measured on (", measured.data.description,
          ") must be ", measured.data.sha256, "; found ", found, "; give the same file"));
}

Result<Check> remeasure_text(const AttestedMeasurement& measured,
                             const Remeasure& given) {
  const AttestedData& data = measured.data;
  const Artifact& artifact = given.model->artifact();
  const bool sentences = data.kind == "sentences";
  NIBBLE_ASSIGN_OR_RETURN(TextData text,
                          sentences
                              ? load_sentences_for(artifact, given.text, options_of(data))
                              : load_text_for(artifact, given.text, options_of(data)));
  const auto size = static_cast<int64_t>(text.sequences.size());
  const int64_t first = std::clamp<int64_t>(data.first, 0, size);
  text.sequences.erase(text.sequences.begin(), text.sequences.begin() + first);
  if (!text.counted_from.empty())
    text.counted_from.erase(text.counted_from.begin(), text.counted_from.begin() + first);
  const std::string found = data_sha256(text.sequences, text.counted_from);
  if (found != data.sha256) return other_data(measured, found);
  if (!sentences) {
    NIBBLE_ASSIGN_OR_RETURN(const TextQuality quality,
                            evaluate_text(*given.model, given.reference, text.sequences,
                                          given.progress, text.counted_from));
    return compare(measured, attest_figures(quality));
  }
  if (given.reference == nullptr) {
    return outcome(measured, Outcome::skipped,
                   "embeddings are compared with the float model's; give --reference");
  }
  NIBBLE_ASSIGN_OR_RETURN(const EmbeddingQuality quality,
                          evaluate_embeddings(*given.model, *given.reference,
                                              text.sequences, given.progress));
  return compare(measured, attest_figures(quality));
}

Result<Check> remeasure_images(const AttestedMeasurement& measured,
                               const Remeasure& given) {
  NIBBLE_ASSIGN_OR_RETURN(const ImageSet images,
                          load_images_for(given.model->artifact(), given.dataset,
                                          Split::test, measured.data.count));
  const std::string found = data_sha256(images);
  if (found != measured.data.sha256) return other_data(measured, found);
  NIBBLE_ASSIGN_OR_RETURN(
      const ImageQuality quality,
      evaluate_images(*given.model, given.reference, images, given.progress));
  return compare(measured, attest_figures(quality));
}

}  // namespace

std::string data_sha256(const std::vector<std::vector<int32_t>>& sequences,
                        const std::vector<int64_t>& counted_from) {
  Sha256 hash;
  for (const std::vector<int32_t>& ids : sequences) {
    const auto length = static_cast<int64_t>(ids.size());
    hash.update(&length, sizeof(length));
    hash.update(ids.data(), ids.size() * sizeof(int32_t));
  }
  hash.update(counted_from.data(), counted_from.size() * sizeof(int64_t));
  return hash.hex();
}

std::string data_sha256(const ImageSet& images) {
  Sha256 hash;
  const int64_t size = images.channels * images.height * images.width;
  hash.update(images.pixels.data(), static_cast<size_t>(images.count * size));
  hash.update(images.labels.data(), static_cast<size_t>(images.count) * sizeof(int32_t));
  return hash.hex();
}

AttestedData attested_data(const std::filesystem::path& file, const TextOptions& options,
                           const std::string& description) {
  const std::filesystem::path normal = file.lexically_normal();
  AttestedData data;
  data.file = normal.filename().empty() ? normal.parent_path().filename().string()
                                        : normal.filename().string();
  data.description = description;
  data.length = options.length;
  data.stride = options.stride;
  data.min_chars = options.min_chars;
  data.per_line = options.per_line;
  data.append_eos = options.append_eos;
  return data;
}

AttestedMeasurement attest_figures(const TextQuality& quality) {
  AttestedMeasurement measured;
  measured.data.kind = "text";
  measured.data.count = quality.sequences;
  Figures& figures = measured.figures;
  figures["perplexity"] = with(quality.perplexity, quality.perplexity_ci95);
  add("kl", quality.kl, quality.kl_ci95, figures);
  add("kl_p90", quality.kl_p90, quality.kl_p90_ci95, figures);
  add("kl_p99", quality.kl_p99, quality.kl_p99_ci95, figures);
  add("top1_agreement", quality.top1_agreement, quality.top1_agreement_ci95, figures);
  add("perplexity_increase", quality.perplexity_increase,
      quality.perplexity_increase_ci95, figures);
  measured.values = {{"nll", quality.sequence_nll},
                     {"predictions", quality.sequence_weights}};
  if (!quality.kl) return measured;
  measured.values["kl"] = quality.sequence_kl;
  measured.values["reference_nll"] = quality.reference_nll;
  measured.values["top1_agreement"] = quality.sequence_agreement;
  return measured;
}

AttestedMeasurement attest_figures(const EmbeddingQuality& quality) {
  AttestedMeasurement measured;
  measured.data.kind = "sentences";
  measured.data.count = quality.sentences;
  // The interval's own mean, so that it follows from the values exactly.
  measured.values = {{"cosine", quality.cosines}};
  measured.figures = recomputed(measured);
  measured.figures["lowest_cosine"] = {quality.lowest_cosine, {}};
  return measured;
}

AttestedMeasurement attest_figures(const ImageQuality& quality) {
  AttestedMeasurement measured;
  measured.data.kind = "images";
  measured.data.count = quality.images;
  measured.figures["accuracy"] = with(quality.accuracy, quality.accuracy_ci95);
  add("argmax_agreement", quality.argmax_agreement, quality.argmax_agreement_ci95,
      measured.figures);
  measured.values = {{"right", quality.right}};
  if (quality.argmax_agreement) measured.values["agrees"] = quality.agrees;
  return measured;
}

Check recompute_figures(const std::vector<AttestedMeasurement>& measured) {
  const char* name = "attested figures";
  if (measured.empty()) return {name, Outcome::skipped, "no figure is attested"};
  std::string proven, open;
  for (const AttestedMeasurement& one : measured) {
    const Figures found = recomputed(one);
    const std::string difference = first_difference(one.figures, found, recomputed_bound,
                                                    "its values a sequence say");
    if (!difference.empty())
      return {name, Outcome::failed, cat("on ", one.data.file, ", ", difference)};
    Figures left = one.figures;
    for (const auto& [figure, value] : found) left.erase(figure);
    proven += cat(proven.empty() ? "" : "; ", names_of(found), " on ", one.data.file);
    if (!left.empty()) open += cat(open.empty() ? "" : ", ", names_of(left));
  }
  return {name, Outcome::passed,
          cat("follow from their values a sequence, intervals too: ", proven,
              open.empty() ? "" : "; without the data nothing is known of " + open)};
}

Result<std::vector<Check>> remeasure_figures(
    const std::vector<AttestedMeasurement>& measured, const Remeasure& given) {
  std::vector<Check> checks;
  for (const AttestedMeasurement& one : measured) {
    const bool images = one.data.kind == "images";
    const std::filesystem::path& path = images ? given.dataset : given.text;
    if (path.empty()) {
      checks.push_back(outcome(
          one, Outcome::skipped,
          cat("not measured again: give ", images ? "--dataset" : "--text", ", ",
              one.data.description,
              one.reference.empty() ? "" : ", and the float model as --reference")));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        Check check, images ? remeasure_images(one, given) : remeasure_text(one, given));
    checks.push_back(std::move(check));
  }
  return checks;
}

}  // namespace nibble
