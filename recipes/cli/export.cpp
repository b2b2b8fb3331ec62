// nibble export: an artifact in another tool's format, or the first thing that it cannot
// hold.
#include <algorithm>
#include <iostream>

#include "export/exporter.h"
#include "export/gguf/gguf_model.h"
#include "export/huggingface/static_caches.h"
#include "kernels/base/json.h"
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
      "Writes another tool's format into a new directory (gguf: or into the file that the "
      "output names), from an\nartifact or from a model in one of the formats that can be read. "
      "What the format cannot hold is said\nbefore anything is written.\n\nFormats" +
          formats);
  line.positional("ARTIFACT");
  line.text("to", "FORMAT", "the format", true);
  line.text("output", "DIR", "the directory to make; gguf: or X.gguf, the file", true);
  line.flag("overwrite", "replace DIR if it is there");
  line.integer(
      "opset",
      "onnx: operator set version, 21, 23 or 24 (default 0: 21, or 23 for weights "
      "of 4-bit floats, whose e8m0 scales stay bytes in 24)",
      0, 0);
  line.flag("float64",
            "onnx, encoders: float operations in float64, so that rounding does "
            "not decide codes (slow; for proofs)");
  line.text("target", "onnxruntime|tensorrt",
            "onnx: whose rules of quantized types hold (default: onnxruntime; tensorrt: "
            "symmetric INT8 and FP8 alone, biases float)");
  line.text("quant-format", "qdq|matmulnbits|qoperator",
            "onnx: quantized matrices as DequantizeLinear (the default), or as ONNX "
            "Runtime's MatMulNBits (2, 4, 8 bits); qoperator: nets of static integer "
            "activations in QLinearConv, QGemm ...");
  line.integer(
      "accuracy-level",
      "onnx, matmulnbits: 0 the runtime chooses, 1 f32 (what was evaluated), 2 f16, "
      "3 bf16, 4 int8 activations (faster, rounds them)",
      1, 0);
  line.text("dtype", "f32|bf16|f16",
            "hf, gguf: what float tensors are rounded to (default: f32 in hf, in gguf as "
            "they are stored)");
  line.list(
      "requantize", "[PATTERN=]TYPE",
      "gguf: quantize by ggml's rule to Q4_0, Q8_0, Q4_K, Q6_K ... what no block type "
      "holds exactly and the float layers of blocks; with a pattern, the layers it "
      "matches (may be repeated)");
  line.integer(
      "shard-bytes",
      "hf, compressed-tensors, gptq, awq, bitsandbytes, fp8, modelopt: weights beyond "
      "this go to several files with an index",
      kShardBytes, 1);
  line.flag("float-embeddings",
            "the same formats but hf: quantized embeddings become the floats they stand for");
  line.integer("gptq-version",
               "gptq: 1 or 2 (default 0: 1, or 2 where a zero point is 0)", 0, 0);
  line.model_options();
  line.json();
  line.example("nibble export build/w4 --to onnx --output build/w4-onnx",
               "blocked INT4 in ONNX, opset 21, for ONNX Runtime");
  line.example(
      "nibble export build/w4 --to onnx --quant-format matmulnbits --output "
      "build/w4-genai",
      "MatMulNBits and genai_config.json, for ONNX Runtime GenAI");
  line.example(
      "nibble export recipes/examples/stories --to onnx --output build/float-onnx "
      "--overwrite",
      "the float model");
  line.example(
      "nibble export build/w4 --to compressed-tensors --output build/w4-ct",
      "packed INT4 for vLLM and transformers");
  line.example(
      "nibble export build/w4-ct --to gptq --output build/w4-gptq",
      "from one format to another: lossless, or refused with the reason");
  line.example(
      "nibble export build/w4 --to hf --dtype bf16 --output build/w4-hf",
      "floats again, dequantized, as transformers loads them");
  line.example("nibble export build/w4 --to gguf --output build/w4.gguf",
               "the same codes and scales in ggml's blocks, for llama.cpp");
  line.example(
      "nibble export recipes/examples/stories --to gguf --requantize Q4_K --requantize "
      "*embed_tokens=Q6_K --output build/q4_k.gguf",
      "a float model, quantized by ggml's own rules");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();

  NIBBLE_ASSIGN_OR_RETURN(const Exporter* exporter, find_exporter(line.text("to")));
  const ExportOptions options{
      .overwrite = line.has("overwrite"),
      .opset = line.integer("opset"),
      .float64 = line.has("float64"),
      .quant_format = line.has("quant-format") ? line.text("quant-format") : "qdq",
      .accuracy_level = line.integer("accuracy-level"),
      .target = line.has("target") ? line.text("target") : "onnxruntime",
      .dtype = line.text("dtype"),
      .shard_bytes = line.integer("shard-bytes"),
      .requantize = line.list("requantize"),
      .float_embeddings = line.has("float-embeddings"),
      .gptq_version = line.integer("gptq-version")};
  const bool to_gguf = std::string_view(exporter->name) == "gguf";
  if (!options.requantize.empty() && !to_gguf) {
    return error(StatusCode::invalid_argument,
                 "[export] --requantize: is for gguf; found --to ", exporter->name,
                 "; leave it out");
  }
  const std::string to = exporter->name;
  for (const char* option : {"quant-format", "accuracy-level", "target"}) {
    const bool fits = to == "onnx" && (option != std::string_view("accuracy-level") ||
                                       options.quant_format == "matmulnbits");
    if (!line.has(option) || fits) continue;
    return error(StatusCode::invalid_argument, "[export] --", option, ": is for onnx",
                 option == std::string_view("accuracy-level")
                     ? " with --quant-format matmulnbits"
                     : "",
                 "; found --to ", to, "; leave it out");
  }
  const std::filesystem::path output = line.path("output");
  std::error_code ignored;
  if (!options.overwrite && std::filesystem::exists(output, ignored)) {
    return error(
        StatusCode::already_exists, "[export] ", output.string(),
        ": a new directory is required; found one; choose another or give --overwrite");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact artifact,
                          load_model(line.path("ARTIFACT"), line.load_options()));
  NIBBLE_RETURN_IF_ERROR(can_express(*exporter, artifact, options));
  NIBBLE_RETURN_IF_ERROR(exporter->write(artifact, output, options));
  // The caches of most are their user's choice; what the artifact says of its goes no
  // further than to the two that know calibrated scales.
  const std::vector<ProgramState>& states = artifact.program.states;
  const StaticCaches caches = static_caches(artifact.program);
  const bool held =
      to == "nibble" || (to == "compressed-tensors" && !caches.empty()) ||
      (to == "modelopt" && !caches.empty() && static_cache_code(caches) == Element::e4m3);
  if (!states.empty() && !states[0].scheme.is_f32() && !held) {
    note(cat("the artifact's KV cache is ", to_string(states[0].scheme), "; ",
             exporter->name, " does not hold that, its user decides"));
  }
  const bool has_fp4 = std::any_of(
      artifact.packed.begin(), artifact.packed.end(),
      [](const auto& weight) { return weight.second.scheme.code == Element::e2m1; });
  if (to == "onnx" && has_fp4) {
    note(
        "weights of FLOAT4E2M1: no kernel of ONNX Runtime's CPU provider (1.31) reads "
        "them; "
        "every code and scale was read back, the graph was not run");
  }
  for (const Node& node : artifact.program.nodes) {
    if (!to_gguf || artifact.program.architecture != "MistralForCausalLM" ||
        node.integer("window", 0) == 0) {
      continue;
    }
    note(cat("the model sees ", node.integer("window", 0),
             " positions; the file says so, but llama.cpp reads no window of a llama: "
             "within so many positions it gives the same"));
    break;
  }
  int64_t bytes = 0;
  std::vector<std::string> files;
  const auto count = [&](const std::filesystem::directory_entry& entry) {
    if (!entry.is_regular_file()) return;
    bytes += static_cast<int64_t>(entry.file_size());
    files.push_back(entry.path().filename().string());
  };
  const bool one_file = std::filesystem::is_regular_file(output, ignored);
  if (one_file) count(std::filesystem::directory_entry(output, ignored));
  for (const auto& entry : std::filesystem::directory_iterator(output, ignored))
    count(entry);
  std::sort(files.begin(), files.end());
  std::string types;  // of a GGUF: what became of the tensors
  if (to_gguf) {
    NIBBLE_ASSIGN_OR_RETURN(const GgufFile file,
                            open_gguf(one_file ? output : output / "model.gguf"));
    types = gguf_type_counts(file);
  }
  if (line.wants_json()) {
    nlohmann::json json = {{"format", exporter->name},
                           {"output", output.string()},
                           {"bytes", bytes},
                           {"files", files}};
    if (!types.empty()) json["types"] = types;
    std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
              << "\n";
    return ok_status();
  }
  std::cout << output.string() << ":";
  for (const std::string& file : files) {
    if (!one_file) std::cout << " " << file;
  }
  std::cout << (types.empty() ? "" : " " + types) << "\n";
  return ok_status();
}

}  // namespace nibble
