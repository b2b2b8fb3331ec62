// The writers of every row of exporters.inc.
#pragma once

#include "export/exporter.h"

namespace nibble {

#define NIBBLE_EXPORTER(name, description)                                              \
  Status can_express_##name(const Artifact& artifact, const ExportOptions& options);    \
  Status write_##name(const Artifact& artifact, const std::filesystem::path& directory, \
                      const ExportOptions& options);
#include "export/exporters.inc"
#undef NIBBLE_EXPORTER

}  // namespace nibble
