// An ONNX directory: model.onnx, model.onnx.data (big models), config.json, tokenizer
// files, and of a decoder genai_config.json, with which ONNX Runtime GenAI loads it.
//
// Before the directory gets its name, onnx_read.cpp reads it back and every code, scale
// and float is compared with the artifact.
#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/onnx/description.h"
#include "export/onnx/genai_config.h"
#include "export/onnx/lowering.h"
#include "kernels/base/file.h"

namespace nibble {
namespace {

// The lowest that holds the model, where none was asked for.
Result<int64_t> opset_of(const Artifact& artifact, const ExportOptions& options) {
  const std::string* fp4 = nullptr;
  for (const auto& [name, packed] : artifact.packed) {
    if (fp4 == nullptr && packed.scheme.code == Element::e2m1) fp4 = &name;
  }
  const int64_t lowest = fp4 == nullptr ? kOnnxOpset : kOnnxFp4Opset;
  if (options.opset == 0) return lowest;
  if (options.opset != kOnnxOpset && options.opset != kOnnxFp4Opset &&
      options.opset != kOnnxE8m0Opset) {
    return error(StatusCode::unsupported, "[onnx] opset: this exporter writes ",
                 kOnnxOpset, ", ", kOnnxFp4Opset, " and ", kOnnxE8m0Opset, "; found ",
                 options.opset, "; leave the option out");
  }
  if (options.opset >= lowest) return options.opset;
  return error(StatusCode::unsupported, "[onnx] ", *fp4, ": FLOAT4E2M1 needs opset ",
               kOnnxFp4Opset, "; found --opset ", options.opset,
               "; leave the option out");
}

Result<LoweringOptions> lowering_options(const Artifact& artifact,
                                         const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t opset, opset_of(artifact, options));
  if (options.quant_format != "qdq" && options.quant_format != "matmulnbits" &&
      options.quant_format != "qoperator") {
    return error(
        StatusCode::invalid_argument,
        "[onnx] --quant-format: qdq, matmulnbits or qoperator was required; found ",
        options.quant_format, "; name one of them");
  }
  if (options.accuracy_level < 0 || options.accuracy_level > 4) {
    return error(StatusCode::invalid_argument,
                 "[onnx] --accuracy-level: 0 to 4 was required; found ",
                 options.accuracy_level, "; 1 computes in f32, 4 with int8 activations");
  }
  if (options.target != "onnxruntime" && options.target != "tensorrt") {
    return error(StatusCode::invalid_argument,
                 "[onnx] --target: onnxruntime or tensorrt was required; found ",
                 options.target, "; name one of the two");
  }
  return LoweringOptions{.opset = opset,
                         .float64 = options.float64,
                         .tensorrt = options.target == "tensorrt",
                         .matmul_nbits = options.quant_format == "matmulnbits",
                         .qoperator = options.quant_format == "qoperator",
                         .accuracy_level = options.accuracy_level};
}

}  // namespace

Status can_express_onnx(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const LoweringOptions lowering,
                          lowering_options(artifact, options));
  if (options.float64) NIBBLE_RETURN_IF_ERROR(check_float64(artifact));
  return can_lower(artifact, lowering);
}

Status write_onnx(const Artifact& artifact, const std::filesystem::path& directory,
                  const ExportOptions& options) {
  NIBBLE_RETURN_IF_ERROR(can_express_onnx(artifact, options));
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory files,
                          AtomicDirectory::create(directory, options.overwrite));
  constexpr const char* kData = "model.onnx.data";
  std::string model, data;
  {
    NIBBLE_ASSIGN_OR_RETURN(const LoweringOptions lowering,
                            lowering_options(artifact, options));
    OnnxGraph graph(artifact.program.architecture, lowering.opset);
    NIBBLE_RETURN_IF_ERROR(OnnxLowering(artifact, graph, lowering).run());
    const auto numbers = [](const std::vector<float>& values) {
      std::string text;
      for (float value : values) text += cat(text.empty() ? "" : " ", value);
      return text;
    };
    if (!artifact.image_mean.empty()) {
      // What a caller does to pixels first: (x / 255 - mean) / std, per channel.
      graph.add_metadata("image_mean", numbers(artifact.image_mean));
      graph.add_metadata("image_std", numbers(artifact.image_std));
    }
    NIBBLE_RETURN_IF_ERROR(describe_graph(artifact, graph));
    const bool external = graph.initializer_bytes() > options.external_data_bytes;
    NIBBLE_ASSIGN_OR_RETURN(model, graph.serialize(kData, external ? &data : nullptr));
  }
  NIBBLE_RETURN_IF_ERROR(files.write("model.onnx", model));
  if (!data.empty()) NIBBLE_RETURN_IF_ERROR(files.write(kData, data));
  NIBBLE_RETURN_IF_ERROR(files.write("config.json", artifact.config_json));
  for (const auto& [name, contents] : artifact.tokenizer) {
    NIBBLE_RETURN_IF_ERROR(files.write(name, contents.text()));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string genai, genai_config(artifact));
  if (!genai.empty()) NIBBLE_RETURN_IF_ERROR(files.write("genai_config.json", genai));
  NIBBLE_ASSIGN_OR_RETURN(const Decoded decoded, read_onnx(files.staging()));
  NIBBLE_RETURN_IF_ERROR(check_decoded(artifact, decoded));
  return files.commit();
}

}  // namespace nibble
