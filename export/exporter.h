// Writes an Artifact in another tool's format, and says beforehand what cannot be
// expressed.
//
// One row of exporters.inc a format. can_express names the first thing that the format
// cannot hold ("onnx: layer 3 down_proj uses int4/g48@f16 ..."). write makes a directory,
// all or nothing. read is independent of kernels/packing (a test checks its includes): it
// returns every weight as codes and levels, or floats, so that validate can compare.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/status.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

struct ExportOptions {
  bool overwrite = false;
  int64_t opset = 21;  // onnx
  // onnx: a model with more bytes of tensors keeps them in model.onnx.data beside the
  // graph.
  int64_t external_data_bytes = 100'000'000;
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
Result<const Exporter*> find_exporter(
    std::string_view name);  // not_found lists the names

// Every quantized weight: each code, scale and offset of what was read equals the
// artifact's; every float parameter that the format keeps: the same floats. data_loss
// names tensor, row, column.
Status check_decoded(const Artifact& artifact, const Decoded& decoded);

}  // namespace nibble
