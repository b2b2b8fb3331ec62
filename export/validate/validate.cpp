#include "export/validate/validate.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "export/exporter.h"
#include "export/huggingface/quantized_directory.h"
#include "export/levels.h"
#include "export/validate/kernel_check.h"

namespace nibble {
namespace {

using Outcome = Check::Outcome;

// 7077888 -> "7,077,888"
std::string grouped(int64_t value) {
  std::string digits = std::to_string(value);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3) {
    digits.insert(static_cast<size_t>(i), 1, ',');
  }
  return digits;
}

Check failed(const char* name, const Status& status) {
  return {name, Outcome::failed, status.message()};
}

Check check_decode(const Artifact& artifact, const Decoded& decoded) {
  const Status status = check_decoded(artifact, decoded);
  if (!status.ok()) return failed("decode", status);
  int64_t codes = 0, floats = 0;
  for (const auto& [name, q] : decoded.coded) codes += q.rows * q.cols;
  for (const auto& [name, tensor] : decoded.floats) floats += tensor.numel();
  return {
      "decode", Outcome::passed,
      cat(decoded.coded.size(), " quantized tensors, ", grouped(codes),
          " codes and their "
          "scales equal; ",
          decoded.floats.size(), " float tensors, ", grouped(floats), " values equal")};
}

Status check_scales(const std::string& tensor, const CodedMatrix& q, bool imported,
                    int64_t* count) {
  const bool either_sign = has_signed_scales(q.scheme);
  for (int64_t r = 0; r < q.rows; ++r) {
    for (int64_t c = 0; c < q.cols; c = cell_end(q.scheme, q.cols, r, c)) {
      const float scale = scale_at(q, r, c), offset = offset_at(q, r, c);
      const bool good = scale > 0 || imported || (either_sign && scale != 0);
      if (!std::isfinite(scale) || !good || !std::isfinite(offset)) {
        return error(StatusCode::out_of_range, "[validate] ", tensor, ": row ", r,
                     ", column ", c, ": a scale must be finite and ",
                     either_sign ? "not 0" : "positive",
                     ", an offset finite; found scale ", scale, ", offset ", offset,
                     "; quantize the model again");
      }
      ++*count;
    }
  }
  return ok_status();
}

Status check_activation(const std::string& where, const ActivationScheme& activation) {
  if (activation.dynamic || (std::isfinite(activation.scale) && activation.scale > 0)) {
    return ok_status();
  }
  return error(StatusCode::out_of_range, "[validate] ", where,
               ": an activation's scale must be finite and positive; found ",
               activation.scale, "; calibrate the model again");
}

Check check_all_scales(const Artifact& artifact, const Decoded& decoded) {
  if (decoded.coded.empty())
    return {"scales", Outcome::skipped, "the model has no quantized tensor"};
  int64_t scales = 0, activations = 0, imported = 0;
  for (const auto& [name, q] : decoded.coded) {
    const LedgerEntry* entry = artifact.ledger.find(name);
    const bool is_imported = entry != nullptr && entry->method == kImported;
    imported += is_imported;
    const Status status = check_scales(name, q, is_imported, &scales);
    if (!status.ok()) return failed("scales", status);
  }
  for (const auto& [value, activation] : artifact.activations) {
    const Status status = check_activation(value, activation);
    if (!status.ok()) return failed("scales", status);
    ++activations;
  }
  for (const auto& [tensor, layer] : artifact.layers) {
    if (!layer.input) continue;
    const Status status = check_activation("the input of " + tensor, *layer.input);
    if (!status.ok()) return failed("scales", status);
    ++activations;
  }
  return {"scales", Outcome::passed,
          cat(grouped(scales), " weight scales and ", activations,
              " activation schemes finite",
              imported == 0 ? " and of the signs that they may have"
                            : cat("; positive but in ", imported,
                                  " tensors that another tool made"))};
}

Check check_whole_ledger(const Artifact& artifact) {
  // What the loader left out of a float checkpoint is no account of it.
  const bool accounts = std::any_of(
      artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
      [](const LedgerEntry& entry) { return entry.method != "ignored"; });
  if (!artifact.is_quantized() && !accounts) {
    return {"ledger", Outcome::skipped, "a float checkpoint has no ledger"};
  }
  const Status status = check_ledger(artifact.ledger, artifact.program);
  if (!status.ok()) return failed("ledger", status);
  for (const auto& [tensor, packed] : artifact.packed) {
    const LedgerEntry* entry = artifact.ledger.find(tensor);
    const std::string scheme = to_string(packed.scheme);
    if (entry != nullptr && entry->scheme != scheme) {
      return failed("ledger",
                    error(StatusCode::failed_precondition, "[validate] ", tensor,
                          ": the ledger must name the scheme that is stored, ", scheme,
                          "; found ", entry->scheme));
    }
  }
  return {
      "ledger", Outcome::passed,
      cat(artifact.ledger.entries.size(), " entries, ",
          grouped(artifact.ledger.parameters()), " parameters, none unaccounted for")};
}

Check check_kernels(const Artifact& artifact) {
  const Result<KernelCheck> result = check_layer_kernels(artifact);
  if (!result.ok()) return failed("kernels", result.status());
  if (result->rows.empty()) {
    return {"kernels", Outcome::skipped,
            "no kernel row but the reference serves this model's layers on this machine"};
  }
  std::string rows;
  for (const auto& [row, layers] : result->rows) {
    rows += cat(rows.empty() ? "" : ", ", row, " (", layers,
                layers == 1 ? " layer)" : " layers)");
  }
  return {"kernels", Outcome::passed, rows};
}

}  // namespace

bool ValidationReport::passed() const {
  for (const Check& check : checks) {
    if (check.outcome == Outcome::failed) return false;
  }
  return !checks.empty();
}

ValidationReport validate_decoded(const Artifact& artifact, const Decoded& decoded) {
  return {{check_decode(artifact, decoded), check_all_scales(artifact, decoded),
           check_whole_ledger(artifact), check_kernels(artifact)}};
}

namespace {

Check check_against(const Artifact* reference, const Decoded& decoded,
                    const std::string& format) {
  if (reference == nullptr || !reference->is_quantized()) {
    return {"codes", Outcome::skipped,
            "give the quantized artifact as --reference to hold every code against it"};
  }
  // As export wrote it, embeddings as floats if they are found so.
  ExportOptions options;
  for (const auto& [name, tensor] : decoded.floats) {
    options.float_embeddings = options.float_embeddings || reference->packed.count(name) > 0;
  }
  const Result<Artifact> ordered =
      prepared_for_transformers(*reference, options, format.c_str());
  if (!ordered.ok()) return failed("codes", ordered.status());
  Check check = check_decode(*ordered, decoded);
  check.name = "codes";
  return check;
}

}  // namespace

ValidationReport validate_checkpoint(const Artifact& artifact, const Decoded& decoded,
                                     const std::string& format,
                                     const Artifact* reference) {
  ValidationReport report;
  report.checks.push_back(
      {"files", Outcome::skipped,
       cat(format, " keeps no checksums: sizes, shapes and types hold, a flipped bit of a "
                   "code would not show")});
  report.checks.push_back(check_decode(artifact, decoded));
  report.checks.push_back(check_against(reference, decoded, format));
  report.checks.push_back(check_all_scales(artifact, decoded));
  Check ledger = check_whole_ledger(artifact);
  if (ledger.outcome == Outcome::passed) ledger.detail += " (made while reading)";
  report.checks.push_back(std::move(ledger));
  report.checks.push_back(check_kernels(artifact));
  report.checks.push_back({"runtime", Outcome::skipped,
                           "no program but nibble was run; the one that " + format +
                               " is for may refuse what it holds"});
  return report;
}

ValidationReport validate_artifact(const std::filesystem::path& directory) {
  const Result<Artifact> artifact = read_artifact(directory);
  const Result<const Exporter*> nibble = find_exporter("nibble");
  const Result<Decoded> decoded =
      !artifact.ok()  ? Result<Decoded>(artifact.status())
      : !nibble.ok() ? Result<Decoded>(nibble.status())
                      : (*nibble)->read(directory);
  return validate_read(artifact, decoded, "every checksum of the manifest holds");
}

ValidationReport validate_read(const Result<Artifact>& artifact,
                               const Result<Decoded>& decoded, const std::string& files) {
  ValidationReport report;
  const auto skip = [&](std::initializer_list<const char*> names, const char* why) {
    for (const char* name : names) report.checks.push_back({name, Outcome::skipped, why});
  };
  if (!artifact.ok()) {
    report.checks.push_back(failed("files", artifact.status()));
    skip({"decode", "scales", "ledger", "kernels"}, "the artifact cannot be read");
    return report;
  }
  report.checks.push_back(
      {"files", Outcome::passed,
       cat(files, "; ", grouped(artifact->weight_bytes()), " bytes of weights")});
  if (!decoded.ok()) {
    report.checks.push_back(failed("decode", decoded.status()));
    skip({"scales", "ledger", "kernels"}, "the second reader cannot decode the artifact");
    return report;
  }
  for (Check& check : validate_decoded(*artifact, *decoded).checks) {
    report.checks.push_back(std::move(check));
  }
  return report;
}

}  // namespace nibble
