// Files: memory-mapped reading, and writing that leaves all or nothing.
//
// io_error: the operating system refused (the message has the path and errno's text).
// not_found: no such file. Safe to call from any thread on different paths.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace nibble {

// The whole file, mapped read-only; the mapping lives as long as any slice of the Bytes.
Result<Bytes> map_file(const std::filesystem::path& path);
Result<std::string> read_text_file(const std::filesystem::path& path);

// Writes to `path + ".partial-<pid>"`, syncs and renames over path. On failure the temporary
// file is removed and path is as it was.
Status write_file_atomically(const std::filesystem::path& path, std::string_view contents);

// A directory that appears under its final name only by commit(): files are written into
// `<path>.partial-<pid>`, each synced. The destructor removes what was not committed.
class AtomicDirectory {
 public:
  // already_exists: path exists and overwrite is false. With overwrite, commit() replaces it.
  static Result<AtomicDirectory> create(const std::filesystem::path& path, bool overwrite);
  AtomicDirectory(AtomicDirectory&&) noexcept;
  AtomicDirectory& operator=(AtomicDirectory&&) noexcept;
  ~AtomicDirectory();
  const std::filesystem::path& staging() const { return staging_; }
  Status write(const std::string& name, std::string_view contents);
  Status commit();  // sync, rename; old contents (overwrite) go only after the new are in place

 private:
  AtomicDirectory() = default;
  std::filesystem::path path_, staging_;
  bool overwrite_ = false;
};

// Removes staging directories and files of this process that are still open: for the Ctrl-C
// handler's orderly exit (cancelled is checked by long loops, see base/cancel.h).
std::string sha256_hex(std::string_view bytes);
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t size);
  std::string hex();  // ends the computation

 private:
  void* context_;
};

}  // namespace nibble
