// What our ONNX files say of the model that they were lowered from, and reading them by
// it.
//
// metadata_props of the graph:
//   nibble.manifest      artifact/manifest.h's text: the program, every layer's and
//   value's
//                        scheme, the ledger, and type, shape and SHA-256 of each tensor
//   nibble.config        config.json
//   nibble.graph_sha256  SHA-256 of opsets, inputs, outputs and nodes, of each
//                        initializer's name, type and shape, and of the contents of those
//                        whose names begin with "/", which are the graph's and not
//                        weights
//
// A graph with another digest was changed since: its description no longer holds, and it
// is read as any other graph. Weights are read from the graph, not from the description:
// codes, scales and zero points as DequantizeLinear, MatMulNBits or MatMulInteger have
// them, in the layer's own scheme. A weight whose stored parts have another checksum than
// the manifest's (someone changed its values, or its levels were multiplied out) keeps
// what the graph holds, is `imported` in the ledger, and a note says so. int32 biases of
// integer layers become floats of the same codes.
//
// describe_graph: invalid_argument, out_of_range of print_manifest.
// read_described: nothing where the file does not describe itself or was changed.
// data_loss: the description or the data cannot be read. Allocates; safe from any thread.
#pragma once

#include <filesystem>
#include <optional>

#include "export/onnx/onnx_graph.h"
#include "kernels/artifact/artifact.h"

namespace nibble {

// To be called when the graph is whole, before it is serialized.
Status describe_graph(const Artifact& artifact, OnnxGraph& graph);

struct DescribedOnnx {
  std::optional<Artifact> artifact;
  bool changed = false;  // the graph is not the one that was described
};
Result<DescribedOnnx> read_described(const std::filesystem::path& file);

// The graph's digest; directory: where its external data lies.
Result<std::string> graph_digest(const onnx::ModelProto& model,
                                 const std::filesystem::path& directory);

inline constexpr const char* kManifestKey = "nibble.manifest";
inline constexpr const char* kConfigKey = "nibble.config";
inline constexpr const char* kDigestKey = "nibble.graph_sha256";

}  // namespace nibble
