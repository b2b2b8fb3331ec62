// Files: memory-mapped reading, and writing that leaves all or nothing.
//
// io_error: the operating system refused (the message has the path and errno's text).
// not_found: no such file. Safe to call from any thread on different paths.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/sha256.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace nibble {

// The whole file, mapped read-only; the mapping lives as long as any slice of the Bytes.
Result<Bytes> map_file(const std::filesystem::path& path);
Result<std::string> read_text_file(const std::filesystem::path& path);

// body(piece) for the bytes from first to last, some MiB at a time, each piece's pages
// released behind it: a mapped file larger than memory passes through little of it.
// Returns the first status that is not ok.
Status for_each_piece(const Bytes& bytes, const std::function<Status(const Bytes&)>& body);
// sha256_hex of the bytes, read so.
std::string sha256_of(const Bytes& bytes);

// A file that is written in places, by several threads at once where the places are their
// own. The disk begins with what was written while the rest is computed.
class PlacedFile {
 public:
  PlacedFile() = default;
  static Result<PlacedFile> open(const std::filesystem::path& path);
  PlacedFile(PlacedFile&& other) noexcept;
  PlacedFile& operator=(PlacedFile&& other) noexcept;
  ~PlacedFile();
  int descriptor() const { return descriptor_; }
  // hash: what was written goes there as well, while it is in the cache.
  Status write(const Bytes& bytes, uint64_t at, Sha256* hash = nullptr) const;
  Status write(std::string_view text, uint64_t at) const;
  // Reads as many bytes there: are they these?
  Result<bool> holds(const Bytes& bytes, uint64_t at) const;
  Status resize(uint64_t bytes);
  Status sync();
  // Until it is closed. failed_precondition: another process has it locked.
  Status lock() const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// Writes to `path + ".partial-<pid>"`, syncs and renames over path. On failure the
// temporary file is removed and path is as it was.
Status write_file_atomically(const std::filesystem::path& path,
                             std::string_view contents);

// A file that is written piece by piece and appears under its name only by commit(). The
// destructor removes what was not committed.
class AtomicFile {
 public:
  // already_exists: path exists and overwrite is false, or it is no file.
  static Result<AtomicFile> create(const std::filesystem::path& path, bool overwrite);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();
  Status append(std::string_view bytes);
  Status sync();  // all of it is on the disk then, under staging(), and may be read back
  const std::filesystem::path& staging() const { return staging_; }
  Status commit();  // after sync()

 private:
  AtomicFile() = default;
  void discard() noexcept;
  std::filesystem::path path_, staging_;
  int descriptor_ = -1;
};

// A directory that appears under its final name only by commit(): files are written into
// `<path>.partial-<pid>`, each synced. The destructor removes what was not committed.
class AtomicDirectory {
 public:
  // already_exists: path exists and overwrite is false, or it is not a directory. With
  // overwrite, commit() replaces it. Missing parent directories are made (and removed
  // again when nothing was committed).
  static Result<AtomicDirectory> create(const std::filesystem::path& path,
                                        bool overwrite);
  // A directory that others have filled, beside path: commit() puts it there, and it is
  // removed otherwise. Errors as create's.
  static Result<AtomicDirectory> adopt(const std::filesystem::path& staging,
                                       const std::filesystem::path& path, bool overwrite);
  AtomicDirectory(AtomicDirectory&&) noexcept;
  AtomicDirectory& operator=(AtomicDirectory&&) noexcept;
  ~AtomicDirectory();
  const std::filesystem::path& staging() const { return staging_; }
  // name may hold directories ("shards/a.bin") but may not leave the staging directory.
  Status write(const std::string& name, std::string_view contents);
  Status
  commit();  // sync, rename; old contents (overwrite) go only after the new are in place

 private:
  AtomicDirectory() = default;
  Status check_target() const;
  void discard() noexcept;
  std::filesystem::path path_, staging_;
  std::vector<std::filesystem::path> made_parents_;  // outermost first
  bool overwrite_ = false;
};

}  // namespace nibble
