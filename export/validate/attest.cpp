#include "export/validate/attest.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/artifact/manifest.h"
#include "kernels/base/file.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/kv_cache.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Outcome = Check::Outcome;

constexpr int64_t kFixedIds = 16, kFixedValues = 32;
constexpr uint64_t kFixedSeed = 20260103;
constexpr double kFloatBound = 1e-4, kRoundedBound = 0.05, kIntegerBound = 1e-6;

Check failed(const char* name, std::string detail) {
  return {name, Outcome::failed, std::move(detail)};
}

std::string digest_of(const CodedLevel& level) {
  Sha256 hash;
  hash.update(level.values.data(), level.values.size() * sizeof(float));
  hash.update(&level.shift, sizeof(float));
  return hash.hex();
}

AttestedWeight attest(const CodedMatrix& q) {
  AttestedWeight weight;
  weight.scheme = to_string(q.scheme);
  weight.codes =
      sha256_hex({reinterpret_cast<const char*>(q.codes.data()), q.codes.size()});
  const auto add = [&weight](const char* name, const std::vector<CodedLevel>& levels) {
    for (size_t i = 0; i < levels.size(); ++i)
      weight.levels[i == 0 ? std::string(name) : cat(name, i)] = digest_of(levels[i]);
  };
  add("scale", q.scales);
  add(q.scheme.offset == OffsetKind::minimum ? "minimum" : "zero_point", q.offsets);
  return weight;
}

AttestedFloat attest(const Tensor& tensor) {
  return {dtype_name(tensor.dtype), sha256_of(tensor.bytes)};
}

// Files below a folder but the proof itself; a file alone is itself.
Result<std::vector<std::string>> names_below(const fs::path& path) {
  std::error_code failure;
  std::vector<std::string> names;
  if (!fs::is_directory(path, failure)) return std::vector{path.filename().string()};
  fs::recursive_directory_iterator entry(path, failure), end;
  while (!failure && entry != end) {
    const std::string name = fs::relative(entry->path(), path, failure).string();
    if (entry->is_regular_file() && name != kAttestationFile) names.push_back(name);
    entry.increment(failure);
  }
  if (failure) {
    return error(StatusCode::io_error, "[proof] ", path.string(),
                 ": the directory cannot be listed: ", failure.message());
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path file_at(const fs::path& path, const std::string& name) {
  std::error_code failure;
  return fs::is_directory(path, failure) ? path / name : path;
}

bool rounds_at_run_time(const Executor& model) {
  const Artifact& artifact = model.artifact();
  for (const auto& [name, layer] : artifact.layers) {
    if (layer.input) return true;
  }
  for (const KvScheme& scheme : model.kv_schemes()) {
    if (!scheme.is_f32()) return true;
  }
  return false;
}

double bound_of(const Executor& model) {
  if (rounds_at_run_time(model)) return kRoundedBound;
  return model.artifact().activations.empty() ? kFloatBound : kIntegerBound;
}

Result<std::vector<float>> outputs_of_ids(Executor& model,
                                          const std::vector<int32_t>& ids) {
  std::vector<float> outputs;
  if (model.embedding_features() > 0) {
    const int64_t lengths[] = {static_cast<int64_t>(ids.size())};
    const int64_t rows = model.embedding_rows(lengths);
    outputs.resize(static_cast<size_t>(rows * model.embedding_features()));
    NIBBLE_RETURN_IF_ERROR(model.encode(
        ids, lengths, {},
        MatrixView<float>(outputs.data(), rows, model.embedding_features())));
    outputs.resize(static_cast<size_t>(model.embedding_features()));
    return outputs;
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                          model.make_cache(static_cast<int64_t>(ids.size())));
  const int64_t vocabulary = model.artifact().program.vocabulary;
  outputs.resize(static_cast<size_t>(vocabulary));
  NIBBLE_RETURN_IF_ERROR(
      model.forward(ids, *cache, MatrixView<float>(outputs.data(), 1, vocabulary)));
  return outputs;
}

// Of one row of the batch: an image's logits, or the first output of any other net.
Result<std::vector<float>> outputs_of_net(Executor& model) {
  const Program& program = model.artifact().program;
  SplitMix64 random(kFixedSeed);
  std::vector<std::vector<float>> values(program.inputs.size());
  std::vector<NetInput> inputs;
  for (size_t i = 0; i < program.inputs.size(); ++i) {
    const ProgramValue& input = program.inputs[i];
    if (program.inputs.size() > 1 && program.consumers(input.name).empty()) continue;
    std::vector<int64_t> shape;
    int64_t count = 1;
    for (const std::string& size : input.shape) {
      shape.push_back(size == "batch" ? 1 : std::atoll(size.c_str()));
      count *= shape.back();
    }
    if (count < 1) {
      return error(StatusCode::unsupported, "[proof] ", program.architecture,
                   ": a net with fixed sizes behind the batch is required; found another for ",
                   input.name);
    }
    for (int64_t k = 0; k < count; ++k)
      values[i].push_back(static_cast<float>(4 * random.uniform() - 2));
    inputs.push_back({input.name, shape, values[i]});
  }
  if (inputs.size() != 1 || program.outputs.size() != 1) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<NetOutput> made, model.forward_values(inputs));
    return made[0].values;
  }
  const int64_t classes = program.outputs[0].shape.empty()
                              ? 0
                              : std::atoll(program.outputs[0].shape.back().c_str());
  if (classes < 1) {
    return error(StatusCode::unsupported, "[proof] ", program.architecture,
                 ": an image model with fixed sizes is required; found no classes");
  }
  std::vector<float> outputs(static_cast<size_t>(classes));
  NIBBLE_RETURN_IF_ERROR(model.forward_images(inputs[0].values, inputs[0].shape,
                                              MatrixView<float>(outputs.data(), 1, classes)));
  return outputs;
}

Result<std::vector<float>> fixed_outputs(Executor& model,
                                         const std::vector<int32_t>& ids) {
  const Program& program = model.artifact().program;
  if (!program.is_language_model()) return outputs_of_net(model);
  const bool fits =
      !ids.empty() && static_cast<int64_t>(ids.size()) <= program.context_length &&
      std::all_of(ids.begin(), ids.end(),
                  [&](int32_t id) { return id >= 0 && id < program.vocabulary; });
  if (fits) return outputs_of_ids(model, ids);
  return error(StatusCode::data_loss,
               "[proof] outputs: ids of the model's vocabulary of ", program.vocabulary,
               ", at most ", program.context_length, ", are required; found others");
}

std::string rows_text(const std::map<std::string, int64_t>& rows) {
  std::string text;
  for (const auto& [row, layers] : rows)
    text += cat(text.empty() ? "" : ", ", row, " (", layers, ")");
  return text.empty() ? "no quantized layer" : text;
}

Check check_weights(const Attestation& attestation, const Decoded& decoded) {
  const char* name_of_check = "attested weights";
  int64_t levels = 0;
  for (const auto& [name, required] : attestation.weights) {
    const auto found = decoded.coded.find(name);
    if (found == decoded.coded.end()) {
      return failed(name_of_check, name + ": must be there; found no such weight");
    }
    const AttestedWeight weight = attest(found->second);
    if (weight.scheme != required.scheme) {
      return failed(name_of_check, cat(name, ": its scheme must be ", required.scheme,
                                       "; found ", weight.scheme));
    }
    if (weight.codes != required.codes) {
      return failed(name_of_check, cat(name, ": SHA-256 of its codes must be ",
                                       required.codes, "; found ", weight.codes));
    }
    for (const auto& [level, digest] : required.levels) {
      const auto at = weight.levels.find(level);
      const std::string here = at == weight.levels.end() ? "no such level" : at->second;
      if (here != digest) {
        return failed(name_of_check, cat(name, ": SHA-256 of its ", level,
                                         " values must be ", digest, "; found ", here));
      }
      ++levels;
    }
    if (weight.levels.size() != required.levels.size())
      return failed(name_of_check, name + ": has a level that is not attested");
  }
  for (const auto& [name, q] : decoded.coded) {
    if (!attestation.weights.count(name))
      return failed(name_of_check,
                    name + ": is quantized, and nothing is attested of it");
  }
  for (const auto& [name, required] : attestation.floats) {
    const auto found = decoded.floats.find(name);
    if (found == decoded.floats.end())
      return failed(name_of_check, name + ": must be there; found no such tensor");
    const AttestedFloat here = attest(found->second);
    if (here.dtype != required.dtype || here.sha256 != required.sha256) {
      return failed(name_of_check,
                    cat(name, ": must be ", required.dtype, " with SHA-256 ",
                        required.sha256, "; found ", here.dtype, ", ", here.sha256));
    }
  }
  for (const auto& [name, tensor] : decoded.floats) {
    if (!attestation.floats.count(name))
      return failed(name_of_check, name + ": is there, and nothing is attested of it");
  }
  return {name_of_check, Outcome::passed,
          cat(attestation.weights.size(), " weights' codes, ", levels,
              " levels of scales and offsets, ", attestation.floats.size(),
              " float tensors as attested, read by a second reader")};
}

Check check_outputs(const Attestation& attestation, Executor& model) {
  const char* name_of_check = "attested outputs";
  const AttestedOutputs& required = attestation.outputs;
  const Result<std::vector<float>> found = fixed_outputs(model, required.ids);
  if (!found.ok()) return failed(name_of_check, found.status().message());
  // The bound is this check's, not the file's: a file must not widen it.
  const double bound = bound_of(model);
  if (required.values.empty() || required.bound > bound) {
    return failed(name_of_check,
                  cat("outputs with a bound of at most ", bound, " are required; found ",
                      required.values.size(), " with ", required.bound));
  }
  double largest = 0, farthest = 0;
  for (const float value : *found)
    largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (const auto& [index, value] : required.values) {
    if (index < 0 || index >= static_cast<int64_t>(found->size()))
      return failed(name_of_check,
                    cat("output ", index, ": the model has no such output"));
    const float here = (*found)[static_cast<size_t>(index)];
    const double difference = std::abs(static_cast<double>(here) - value);
    if (!(difference <= bound * largest)) {
      return failed(name_of_check, cat("output ", index, ": must be ", value, " within ",
                                       bound * largest, "; found ", here));
    }
    farthest = std::max(farthest, difference);
  }
  std::map<std::string, int64_t> here;
  for (const auto& [layer, row] : model.kernels()) ++here[row];
  const std::string rows =
      here == required.kernels
          ? "by the same kernels: " + rows_text(here)
          : cat("by ", rows_text(here), "; attested by ", rows_text(required.kernels));
  return {name_of_check, Outcome::passed,
          cat(required.values.size(), " outputs on the fixed input ",
              farthest == 0 ? std::string("equal")
                            : cat("within ", farthest / largest,
                                  " of the largest (allowed ", bound, ")"),
              ", ", rows)};
}

}  // namespace

Result<std::map<std::string, AttestedFile>> attest_files(const fs::path& path) {
  std::map<std::string, AttestedFile> files;
  if (is_artifact_directory(path)) {
    const fs::path manifest_path = path / "manifest.json";
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(manifest_path));
    NIBBLE_ASSIGN_OR_RETURN(const Manifest manifest,
                            parse_manifest(text, manifest_path.string()));
    for (const auto& [name, file] : manifest.files)
      files[name] = {file.bytes, file.sha256};
    files["manifest.json"] = {static_cast<int64_t>(text.size()), sha256_hex(text)};
    return files;
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names, names_below(path));
  for (const std::string& name : names) {
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(file_at(path, name)));
    files[name] = {static_cast<int64_t>(bytes.size()), sha256_of(bytes)};
  }
  return files;
}

Status attest_tensors(const Artifact& artifact, Attestation& attestation) {
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed));
    attestation.weights[name] = attest(q);
    packed.release_pages();
  }
  for (const auto& [name, tensor] : artifact.tensors)
    attestation.floats[name] = attest(tensor);
  return ok_status();
}

void attest_tensors(const Decoded& decoded, Attestation& attestation) {
  for (const auto& [name, q] : decoded.coded) attestation.weights[name] = attest(q);
  for (const auto& [name, tensor] : decoded.floats)
    attestation.floats[name] = attest(tensor);
}

Result<AttestedOutputs> attest_outputs(Executor& model) {
  const Program& program = model.artifact().program;
  AttestedOutputs outputs;
  if (program.is_language_model()) {
    SplitMix64 random(kFixedSeed);
    for (int64_t i = 0; i < std::min(kFixedIds, program.context_length); ++i) {
      outputs.ids.push_back(
          static_cast<int32_t>(random.below(static_cast<uint64_t>(program.vocabulary))));
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> found,
                          fixed_outputs(model, outputs.ids));
  for (const float value : found)
    outputs.largest = std::max(outputs.largest, std::abs(static_cast<double>(value)));
  const auto count = static_cast<int64_t>(found.size());
  const int64_t taken = std::min(kFixedValues, count);
  for (int64_t i = 0; i < taken; ++i) {
    const int64_t index = i * count / taken;
    outputs.values[index] = found[static_cast<size_t>(index)];
  }
  outputs.bound = bound_of(model);
  for (const auto& [layer, row] : model.kernels()) ++outputs.kernels[row];
  return outputs;
}

Status write_attestation(const fs::path& path, const std::string& format,
                         const Artifact& artifact, const Decoded* decoded,
                         Attestation attestation) {
  attestation.tool_version = kToolVersion;
  attestation.format = format;
  // Of another tool's directory the sources would be its own files.
  if (is_artifact_directory(path)) attestation.sources = artifact.provenance.sources;
  attestation.recipe = artifact.provenance.recipe;
  attestation.calibration = artifact.provenance.calibration;
  NIBBLE_ASSIGN_OR_RETURN(attestation.files, attest_files(path));
  attestation.weights.clear();
  attestation.floats.clear();
  if (decoded != nullptr) {
    attest_tensors(*decoded, attestation);
  } else {
    NIBBLE_RETURN_IF_ERROR(attest_tensors(artifact, attestation));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, print_attestation(attestation));
  return write_file_atomically(attestation_path(path), text);
}

fs::path attestation_path(const fs::path& artifact) {
  std::error_code ignored;
  if (fs::is_directory(artifact, ignored)) return artifact / kAttestationFile;
  fs::path path = artifact;
  return path += cat(".", kAttestationFile);
}

Check check_attested_files(const Attestation& attestation, const fs::path& path) {
  const char* name_of_check = "attested files";
  int64_t bytes = 0;
  std::error_code ignored;
  for (const auto& [name, required] : attestation.files) {
    const fs::path file = file_at(path, name);
    const fs::path plain(name);
    const bool inside = !plain.is_absolute() && !name.empty() &&
                        std::find(plain.begin(), plain.end(), "..") == plain.end();
    if (!inside || !fs::is_regular_file(file, ignored))
      return failed(name_of_check, name + ": must be there; found no such file");
    const Result<Bytes> mapped = map_file(file);
    if (!mapped.ok()) return failed(name_of_check, mapped.status().message());
    if (static_cast<int64_t>(mapped->size()) != required.bytes) {
      return failed(name_of_check, cat(name, ": must have ", required.bytes,
                                       " bytes; found ", mapped->size()));
    }
    const std::string found = sha256_of(*mapped);
    if (found != required.sha256) {
      return failed(name_of_check,
                    cat(name, ": SHA-256 must be ", required.sha256, "; found ", found));
    }
    bytes += required.bytes;
  }
  return {name_of_check, Outcome::passed,
          cat(attestation.files.size(), " files, ", bytes, " bytes as attested")};
}

Check check_attested_seal(const Attestation& attestation) {
  const std::string by = cat("written by ", attestation.tool_version, " of ",
                             attestation.format.empty() ? "?" : attestation.format);
  if (attestation.sealed) return {"attested seal", Outcome::passed, by};
  return failed("attested seal", cat(kAttestationFile,
                                     ": must have its own SHA-256; found another: it was "
                                     "changed after it was written"));
}

std::vector<Check> check_attested_artifact(const Attestation& attestation,
                                           const fs::path& path, const Decoded& decoded,
                                           Executor& model) {
  return {check_weights(attestation, decoded), check_attested_files(attestation, path),
          check_outputs(attestation, model)};
}

}  // namespace nibble
