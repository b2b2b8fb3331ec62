// Writes an Artifact in another tool's format, and says beforehand what cannot be
// expressed.
//
// One row of exporters.inc a format. can_express names the first thing that the format
// cannot hold ("[onnx] model.layers.3.mlp.down_proj.weight: ..."). write makes a
// directory (gguf: a file, where the name ends so), all or nothing. read may not reach
// kernels/packing (a test checks its includes), so what it returns proves what was
// written; check_decoded compares that with the artifact.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/status.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

struct ExportOptions {
  bool overwrite = false;
  int64_t opset = 0;  // onnx: 21, 23 or 24; 0: 21, or 23 where a weight is e2m1
  // onnx: a model of more bytes keeps its tensors in model.onnx.data beside the graph.
  int64_t external_data_bytes = 100'000'000;
  // onnx, encoders: float operations between codes in float64 (lower_float64.cpp).
  bool float64 = false;
  // onnx: quantized matrices as "qdq" (DequantizeLinear, the standard's) or "matmulnbits"
  // (com.microsoft's MatMulNBits); "qoperator": nets with static integer activations in
  // operators on codes.
  std::string quant_format = "qdq";
  // onnx, MatMulNBits: 0 the runtime chooses, 1 f32, 2 f16, 3 bf16, 4 int8 activations.
  // 1: the layers then compute what was evaluated; 4 is faster and rounds activations.
  int64_t accuracy_level = 1;
  // onnx: "onnxruntime" or "tensorrt", whose INT8 is signed, symmetric and has float
  // biases.
  std::string target = "onnxruntime";
  // hf: of every tensor, gguf: of what is float; f32, bf16 or f16. "": f32 in hf, as it
  // is stored in gguf.
  std::string dtype = "";
  // hf and the formats of quantized Hugging Face directories: weights beyond it go to
  // several files.
  int64_t shard_bytes = kShardBytes;
  // gguf: "TYPE" for what no block type holds exactly and for the float layers of blocks;
  // "PATTERN=TYPE" for the layers whose names match, whatever they are (the last wins).
  std::vector<std::string> requantize = {};
  // Quantized Hugging Face directories: quantized embeddings become the floats they stand
  // for.
  bool float_embeddings = false;
  int64_t gptq_version = 0;  // gptq: 1 or 2; 0: 1 where it can hold the zero points
};

struct Exporter {
  const char* name;
  const char* description;
  Status (*can_express)(const Artifact& artifact, const ExportOptions& options);
  Status (*write)(const Artifact& artifact, const std::filesystem::path& directory,
                  const ExportOptions& options);
  Result<Decoded> (*read)(const std::filesystem::path& directory);
};
const std::vector<Exporter>& all_exporters();
// not_found: the message lists the names.
Result<const Exporter*> find_exporter(std::string_view name);

// The format's own can_express, after what no format of fixed architectures holds:
// adapters beside the weights (unsupported; nibble and onnx have graphs and hold them).
Status can_express(const Exporter& exporter, const Artifact& artifact,
                   const ExportOptions& options);

// Every quantized weight: each code, scale and offset of what was read equals the
// artifact's; every float parameter: the same floats. data_loss names tensor, row,
// column.
// What was checked before is left out.
Status check_decoded(const Artifact& artifact, const Decoded& decoded,
                     const std::set<std::string>& checked = {});
// The same of one quantized weight; q: memory to use.
Status check_decoded_weight(const Artifact& artifact, const std::string& weight,
                            const Decoded& decoded, CodedMatrix& q);

}  // namespace nibble
