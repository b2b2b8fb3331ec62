// The readers of every row of exporters.inc: they may not reach kernels/packing, so that
// what they decode proves what it wrote.
#pragma once

#include <filesystem>

#include "kernels/base/status.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

#define NIBBLE_EXPORTER(name, description) \
  Result<Decoded> read_##name(const std::filesystem::path& directory);
#include "export/exporters.inc"
#undef NIBBLE_EXPORTER

}  // namespace nibble
