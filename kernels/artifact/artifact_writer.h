// Writes an artifact piece by piece: a layer goes to disk when it is solved, so that the
// whole model is never in memory, and a run that was killed goes on where it was.
//
//   begin(outline)   the weight files in their full size; write_artifact's bytes in the
//   end add, add_float   a layer or parameter to its place, in any order, each once
//   end_block        what was added is on disk, and an entry of the journal says so
//   finish           every byte read back and compared; config, tokenizer, manifest,
//   extras
//
// resume() keeps a journal in `work` beside `work`/artifact: one line a layer, with its
// own checksum, and one at a block's end. A later resume() of the same fingerprint has
// those layers already; a block that a kill has torn, and what follows it, counts as not
// written.
//
// invalid_argument: a name that the outline has not, has twice, or has with another
// shape. out_of_range: a value that is not finite, a scale that is not positive.
// io_error: the system refused, or the disk gives back other bytes. failed_precondition:
// another process is writing to `work`. One thread at a time.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "kernels/artifact/artifact.h"
#include "kernels/artifact/safetensors.h"

namespace nibble {

class ArtifactWriter {
 public:
  struct WeightShape {
    QuantScheme scheme;
    std::vector<int64_t> shape;
  };
  // What will be stored, known before anything is.
  struct Outline {
    std::map<std::string, StoredShape> floats;
    std::map<std::string, WeightShape> packed;
  };

  static Outline outline_of(const Artifact& artifact);
  // directory is there and empty.
  static Result<ArtifactWriter> begin(const std::filesystem::path& directory,
                                      const Outline& outline,
                                      int64_t shard_bytes = kShardBytes);
  // fingerprint: of everything that decides the bytes. An unfinished run of another one is
  // removed, and note() says so.
  static Result<ArtifactWriter> resume(const std::filesystem::path& work,
                                       const std::string& fingerprint,
                                       const Outline& outline,
                                       int64_t shard_bytes = kShardBytes);
  ArtifactWriter(ArtifactWriter&&) noexcept;
  ArtifactWriter& operator=(ArtifactWriter&&) noexcept;
  ~ArtifactWriter();

  // beside: floats of the outline that belong to the layer and are on disk with it.
  Status add(const LayerScheme& scheme, const LedgerEntry& entry,
             const PackedTensor& packed,
             const std::map<std::string, Tensor>& beside = {});
  Status add_float(const std::string& name, const Tensor& tensor);
  // Everything of an artifact whose bytes stay in memory until finish, several layers at a time.
  Status add_all(const Artifact& artifact);
  Status end_block();

  // A layer that was added, now or before a kill; its codes as a view of the file.
  bool has(const std::string& weight) const;
  const LedgerEntry& entry(const std::string& weight) const;
  Result<PackedTensor> packed(const std::string& weight) const;
  bool has_float(const std::string& name) const;
  Result<Tensor> stored_float(const std::string& name) const;  // a view of the file
  // Views of everything: tensors, packed, layers. failed_precondition: something is
  // missing.
  Status open(Artifact& artifact) const;

  // artifact: what open() has filled and the rest, as write_artifact takes it.
  Status finish(const Artifact& artifact,
                const std::map<std::string, std::string>& extra_files);

  const std::filesystem::path& directory() const;  // of the files
  const std::string& note() const;                 // what resume found; "" nothing

 private:
  ArtifactWriter();
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
