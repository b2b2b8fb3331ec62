// An ONNX directory: model.onnx, model.onnx.data (big models), config.json, tokenizer
// files.
//
// Before the directory gets its name, onnx_read.cpp reads it back and every code, scale
// and float is compared with the artifact.
#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/onnx/lowering.h"
#include "kernels/base/file.h"

namespace nibble {

Status can_express_onnx(const Artifact& artifact, const ExportOptions& options) {
  if (options.opset != kOnnxOpset) {
    return error(StatusCode::unsupported, "[onnx] opset: this exporter writes ",
                 kOnnxOpset, "; found ", options.opset, "; leave the option out");
  }
  if (options.float64) NIBBLE_RETURN_IF_ERROR(check_float64(artifact));
  return can_lower(artifact);
}

Status write_onnx(const Artifact& artifact, const std::filesystem::path& directory,
                  const ExportOptions& options) {
  NIBBLE_RETURN_IF_ERROR(can_express_onnx(artifact, options));
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory files,
                          AtomicDirectory::create(directory, options.overwrite));
  constexpr const char* kData = "model.onnx.data";
  std::string model, data;
  {
    OnnxGraph graph(artifact.program.architecture);
    NIBBLE_RETURN_IF_ERROR(OnnxLowering(artifact, graph, options.float64).run());
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
    const bool external = graph.initializer_bytes() > options.external_data_bytes;
    NIBBLE_ASSIGN_OR_RETURN(model, graph.serialize(kData, external ? &data : nullptr));
  }
  NIBBLE_RETURN_IF_ERROR(files.write("model.onnx", model));
  if (!data.empty()) NIBBLE_RETURN_IF_ERROR(files.write(kData, data));
  NIBBLE_RETURN_IF_ERROR(files.write("config.json", artifact.config_json));
  for (const auto& [name, contents] : artifact.tokenizer) {
    NIBBLE_RETURN_IF_ERROR(files.write(name, contents.text()));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Decoded decoded, read_onnx(files.staging()));
  NIBBLE_RETURN_IF_ERROR(check_decoded(artifact, decoded));
  return files.commit();
}

}  // namespace nibble
