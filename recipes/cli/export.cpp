// nibble export: an artifact in another tool's format, or the first thing that it cannot
// hold.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "export/exporter.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"

namespace nibble {

Status run_export_verb(const std::vector<std::string>& arguments) {
  std::string formats;
  for (const Exporter& exporter : all_exporters()) {
    formats += cat("\n  ", exporter.name, ": ", exporter.description);
  }
  CommandLine line(
      "export ARTIFACT --to FORMAT --output DIR",
      "Writes another tool's format into a new directory. What the format cannot hold "
      "is said before anything\nis written.\n\nFormats" +
          formats);
  line.positional("ARTIFACT");
  line.text("to", "FORMAT", "the format", true);
  line.text("output", "DIR", "the directory to make", true);
  line.flag("overwrite", "replace DIR if it is there");
  line.integer("opset", "onnx: operator set version", 21, 13);
  line.flag("float64", "onnx, encoders: float operations in float64, so that rounding does "
                       "not decide codes (slow; for proofs)");
  line.text("dtype", "f32|bf16|f16", "hf: what the tensors are rounded to (default f32)");
  line.integer("shard-bytes", "hf: weights beyond this go to several files with an index",
               kShardBytes, 1);
  line.model_options();
  line.json();
  line.example(
      "nibble export build/w4 --to onnx --output build/w4-onnx",
      "blocked INT4 in ONNX, opset 21, for ONNX Runtime");
  line.example(
      "nibble export recipes/examples/stories --to onnx --output build/float-onnx --overwrite",
      "the float model");
  line.example(
      "nibble export build/w4 --to hf --dtype bf16 --output build/w4-hf",
      "floats again, dequantized, as transformers loads them");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();

  NIBBLE_ASSIGN_OR_RETURN(const Exporter* exporter, find_exporter(line.text("to")));
  const ExportOptions options{.overwrite = line.has("overwrite"),
                              .opset = line.integer("opset"),
                              .float64 = line.has("float64"),
                              .dtype = line.has("dtype") ? line.text("dtype") : "f32",
                              .shard_bytes = line.integer("shard-bytes")};
  const std::filesystem::path output = line.path("output");
  std::error_code ignored;
  if (!options.overwrite && std::filesystem::exists(output, ignored)) {
    return error(
        StatusCode::already_exists, "[export] ", output.string(),
        ": a new directory is required; found one; choose another or give --overwrite");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact artifact,
                          load_model(line.path("ARTIFACT"), line.load_options()));
  NIBBLE_RETURN_IF_ERROR(exporter->can_express(artifact, options));
  NIBBLE_RETURN_IF_ERROR(exporter->write(artifact, output, options));
  // Their caches are their own; what the artifact says of its cache goes no further.
  const std::vector<ProgramState>& states = artifact.program.states;
  if (!states.empty() && !states[0].scheme.is_f32() &&
      std::string_view(exporter->name) != "nibble") {
    note(cat("the artifact's KV cache is ", to_string(states[0].scheme), "; ",
             exporter->name, " does not hold that, its user decides"));
  }
  int64_t bytes = 0;
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(output, ignored)) {
    if (!entry.is_regular_file()) continue;
    bytes += static_cast<int64_t>(entry.file_size());
    files.push_back(entry.path().filename().string());
  }
  std::sort(files.begin(), files.end());
  if (line.wants_json()) {
    const nlohmann::json json = {{"format", exporter->name},
                                 {"output", output.string()},
                                 {"bytes", bytes},
                                 {"files", files}};
    std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
              << "\n";
    return ok_status();
  }
  std::cout << output.string() << ":";
  for (const std::string& file : files) std::cout << " " << file;
  std::cout << "\n";
  return ok_status();
}

}  // namespace nibble
