// The artifact directory itself: everything can be expressed.
#include "export/formats/writers.h"

namespace nibble {

Status can_express_nibble(const Artifact& artifact, const ExportOptions&) {
  return check_artifact(artifact);
}

Status write_nibble(const Artifact& artifact, const std::filesystem::path& directory,
                    const ExportOptions& options) {
  return write_artifact(artifact, directory, options.overwrite);
}

}  // namespace nibble
