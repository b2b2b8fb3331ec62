#include "kernels/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

namespace nibble {
namespace {

namespace fs = std::filesystem;

Status os_error(const fs::path& path, const char* action, int number) {
  const StatusCode code = number == ENOENT ? StatusCode::not_found : StatusCode::io_error;
  return error(code, "[file] ", path.string(), ": cannot ", action, "; ",
               std::generic_category().message(number));
}

Status os_error(const fs::path& path, const char* action, const std::error_code& number) {
  return os_error(path, action, number.value());
}

// A descriptor that is closed on every way out.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int close() {  // some file systems report a full disk only here
    const int result = ::close(fd_);
    fd_ = -1;
    return result;
  }

 private:
  int fd_;
};

int open_retry(const fs::path& path, int flags, mode_t permissions = 0) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, permissions);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// Directories and regular files alike.
Status sync_path(const fs::path& path) {
  const Descriptor fd(open_retry(path, O_RDONLY));
  if (fd.get() < 0) return os_error(path, "open to sync", errno);
  // EINVAL: a file system that has no fsync for this object has nothing to sync.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) return os_error(path, "sync", errno);
  return ok_status();
}

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

Status write_and_sync(const fs::path& path, std::string_view contents) {
  Descriptor fd(open_retry(path, O_WRONLY | O_CREAT | O_TRUNC, 0644));
  if (fd.get() < 0) return os_error(path, "create", errno);
  size_t done = 0;
  while (done < contents.size()) {
    const ssize_t n = ::write(fd.get(), contents.data() + done, contents.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(path, "write", errno);
    done += static_cast<size_t>(n);
  }
  if (::fsync(fd.get()) != 0 && errno != EINVAL) return os_error(path, "sync", errno);
  if (fd.close() != 0) return os_error(path, "close", errno);
  return ok_status();
}

fs::path partial_name(const fs::path& path) {
  fs::path name = path;
  name += cat(".partial-", ::getpid());
  return name;
}

// "out/" and "out" are one directory; the partial name is made from the latter.
fs::path without_trailing_slash(const fs::path& path) {
  const fs::path normal = path.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

constexpr unsigned int kRenameExchange = 2;  // RENAME_EXCHANGE of linux/fs.h

// Puts staging in path's place; what stood there is then at staging.
Status exchange(const fs::path& staging, const fs::path& path) {
  if (::syscall(SYS_renameat2, AT_FDCWD, staging.c_str(), AT_FDCWD, path.c_str(),
                kRenameExchange) == 0) {
    return ok_status();
  }
  // A file system without the exchange: two renames, undone when the second fails.
  fs::path old = staging;
  old += ".replaced";
  if (::rename(path.c_str(), old.c_str()) != 0) return os_error(path, "replace", errno);
  if (::rename(staging.c_str(), path.c_str()) != 0) {
    const int number = errno;
    ::rename(old.c_str(), path.c_str());
    return os_error(path, "replace", number);
  }
  if (::rename(old.c_str(), staging.c_str()) != 0) return os_error(old, "rename", errno);
  return ok_status();
}

bool leaves(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return true;
  for (const fs::path& part : name) {
    if (part == "..") return true;
  }
  return false;
}

}  // namespace

Result<Bytes> map_file(const fs::path& path) {
  const Descriptor fd(open_retry(path, O_RDONLY));
  if (fd.get() < 0) return os_error(path, "open", errno);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return os_error(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) {
    return error(StatusCode::io_error, "[file] ", path.string(),
                 ": must be a regular file; found ",
                 S_ISDIR(info.st_mode) ? "a directory" : "another kind of file");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return Bytes();  // mmap refuses an empty mapping
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return os_error(path, "map", errno);
  std::shared_ptr<const void> owner(
      data, [size](const void* p) { ::munmap(const_cast<void*>(p), size); });
  return Bytes(std::move(owner), static_cast<const std::byte*>(data), size, true);
}

Result<std::string> read_text_file(const fs::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
  return std::string(bytes.text());
}

Status for_each_piece(const Bytes& bytes,
                      const std::function<Status(const Bytes&)>& body) {
  constexpr size_t kPiece = size_t{16} << 20;  // a multiple of every element's size
  for (size_t begin = 0; begin < bytes.size(); begin += kPiece) {
    const Bytes piece = bytes.slice(begin, std::min(kPiece, bytes.size() - begin));
    NIBBLE_RETURN_IF_ERROR(body(piece));
    piece.release_pages();
  }
  return ok_status();
}

std::string sha256_of(const Bytes& bytes) {
  Sha256 hash;
  (void)for_each_piece(bytes, [&hash](const Bytes& piece) {
    hash.update(piece.data(), piece.size());
    return ok_status();
  });
  return hash.hex();
}

Result<PlacedFile> PlacedFile::open(const fs::path& path) {
  PlacedFile file;
  file.path_ = path;
  file.descriptor_ = open_retry(path, O_RDWR | O_CREAT, 0644);
  if (file.descriptor_ < 0) return os_error(path, "open", errno);
  return file;
}

PlacedFile::PlacedFile(PlacedFile&& other) noexcept { *this = std::move(other); }

PlacedFile& PlacedFile::operator=(PlacedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

PlacedFile::~PlacedFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status PlacedFile::write(const Bytes& bytes, uint64_t at, Sha256* hash) const {
  constexpr size_t kChunk = size_t{1} << 20;  // fits the caches, and few calls
  return for_each_piece(bytes, [&](const Bytes& piece) -> Status {
    const uint64_t begin = at;
    for (size_t done = 0; done < piece.size();) {
      const size_t size = std::min(piece.size() - done, kChunk);
      if (hash != nullptr) hash->update(piece.data() + done, size);
      for (const size_t end = done + size; done < end;) {
        const ssize_t n = ::pwrite(descriptor_, piece.data() + done, end - done,
                                   static_cast<off_t>(at));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return os_error(path_, "write", errno);
        done += static_cast<size_t>(n);
        at += static_cast<uint64_t>(n);
      }
    }
    // A hint: sync() is what waits and reports.
    (void)::sync_file_range(descriptor_, static_cast<off_t>(begin),
                            static_cast<off_t>(at - begin), SYNC_FILE_RANGE_WRITE);
    return ok_status();
  });
}

Status PlacedFile::write(std::string_view text, uint64_t at) const {
  return write(
      Bytes(nullptr, reinterpret_cast<const std::byte*>(text.data()), text.size()), at);
}

Status PlacedFile::lock() const {
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return ok_status();
  return error(StatusCode::failed_precondition, "[artifact] ",
               path_.parent_path().string(),
               ": one process at a time may write there; found another at work; wait "
               "for it, or choose another output");
}

Result<bool> PlacedFile::holds(const Bytes& bytes, uint64_t at) const {
  constexpr size_t kChunk = size_t{64} << 10;  // stays in the nearest caches
  const std::unique_ptr<std::byte[]> found(new std::byte[kChunk]);
  bool same = true;
  NIBBLE_RETURN_IF_ERROR(for_each_piece(bytes, [&](const Bytes& piece) -> Status {
    for (size_t done = 0; same && done < piece.size();) {
      const size_t size = std::min(piece.size() - done, kChunk);
      const ssize_t n = ::pread(descriptor_, found.get(), size, static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return os_error(path_, "read back", errno);
      same = n > 0 &&
             std::memcmp(found.get(), piece.data() + done, static_cast<size_t>(n)) == 0;
      done += static_cast<size_t>(n);
      at += static_cast<uint64_t>(n);
    }
    return ok_status();
  }));
  return same;
}

Status PlacedFile::resize(uint64_t bytes) {
  return ::ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0
             ? ok_status()
             : os_error(path_, "write", errno);
}

Status PlacedFile::sync() {  // EINVAL: a file system that has nothing to sync
  return ::fdatasync(descriptor_) == 0 || errno == EINVAL
             ? ok_status()
             : os_error(path_, "sync", errno);
}

Status write_file_atomically(const fs::path& path, std::string_view contents) {
  const fs::path partial = partial_name(path);
  Status status = write_and_sync(partial, contents);
  if (status.ok() && ::rename(partial.c_str(), path.c_str()) != 0) {
    status = os_error(path, "rename into place", errno);
  }
  if (!status.ok()) {
    ::unlink(partial.c_str());
    return status;
  }
  return sync_path(parent_of(path));
}

Result<AtomicFile> AtomicFile::create(const fs::path& path, bool overwrite) {
  AtomicFile file;
  file.path_ = path;
  std::error_code number;
  const fs::file_status found = fs::symlink_status(path, number);
  if (fs::exists(found) && !(overwrite && fs::is_regular_file(found))) {
    return error(StatusCode::already_exists, "[file] ", path.string(),
                 overwrite ? ": only a file can be replaced; found another thing; remove "
                             "it first"
                           : ": must not exist; it does; choose another name, or "
                             "--overwrite");
  }
  fs::create_directories(parent_of(path), number);
  if (number) return os_error(parent_of(path), "create directory", number);
  const fs::path staging = partial_name(path);
  file.descriptor_ = open_retry(staging, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file.descriptor_ < 0) return os_error(staging, "create", errno);
  file.staging_ = staging;
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept { *this = std::move(other); }

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this == &other) return *this;
  discard();
  path_ = std::move(other.path_);
  staging_ = std::move(other.staging_);
  descriptor_ = other.descriptor_;
  other.staging_.clear();
  other.descriptor_ = -1;
  return *this;
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  if (!staging_.empty()) ::unlink(staging_.c_str());
  staging_.clear();
}

Status AtomicFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(staging_, "write", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return ok_status();
}

Status AtomicFile::sync() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL)
    return os_error(staging_, "sync", errno);
  return ok_status();
}

Status AtomicFile::commit() {
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) return os_error(staging_, "close", errno);
  if (::rename(staging_.c_str(), path_.c_str()) != 0)
    return os_error(path_, "rename into place", errno);
  staging_.clear();
  return sync_path(parent_of(path_));
}

Status AtomicDirectory::check_target() const {
  std::error_code number;
  const fs::file_status found = fs::symlink_status(path_, number);
  if (!fs::exists(found)) return ok_status();
  if (!overwrite_) {
    return error(StatusCode::already_exists, "[file] ", path_.string(),
                 ": must not exist; it does; choose another name, or --overwrite");
  }
  if (!fs::is_directory(found)) {
    return error(StatusCode::already_exists, "[file] ", path_.string(),
                 ": only a directory can be replaced; found a file; remove it first");
  }
  return ok_status();
}

Result<AtomicDirectory> AtomicDirectory::adopt(const fs::path& staging,
                                               const fs::path& path, bool overwrite) {
  AtomicDirectory directory;
  directory.path_ = without_trailing_slash(path);
  directory.overwrite_ = overwrite;
  NIBBLE_RETURN_IF_ERROR(directory.check_target());
  directory.staging_ = staging;
  return directory;
}

Result<AtomicDirectory> AtomicDirectory::create(const fs::path& path, bool overwrite) {
  AtomicDirectory directory;
  directory.path_ = without_trailing_slash(path);
  directory.overwrite_ = overwrite;
  NIBBLE_RETURN_IF_ERROR(directory.check_target());
  std::error_code number;
  std::vector<fs::path> missing;  // innermost first
  for (fs::path parent = parent_of(directory.path_); !fs::exists(parent, number);) {
    missing.push_back(parent);
    if (parent == parent_of(parent)) break;
    parent = parent_of(parent);
  }
  const fs::path staging = partial_name(directory.path_);
  for (auto parent = missing.rbegin(); parent != missing.rend(); ++parent) {
    if (::mkdir(parent->c_str(), 0755) != 0 && errno != EEXIST) {
      const int failed = errno;
      directory.discard();
      return os_error(*parent, "create directory", failed);
    }
    directory.made_parents_.push_back(*parent);
  }
  fs::remove_all(staging, number);  // of an earlier process with this number
  if (::mkdir(staging.c_str(), 0755) != 0) {
    const int failed = errno;
    directory.discard();
    return os_error(staging, "create directory", failed);
  }
  directory.staging_ = staging;
  return directory;
}

AtomicDirectory::AtomicDirectory(AtomicDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      staging_(std::move(other.staging_)),
      made_parents_(std::move(other.made_parents_)),
      overwrite_(other.overwrite_) {
  other.staging_.clear();
  other.made_parents_.clear();
}

AtomicDirectory& AtomicDirectory::operator=(AtomicDirectory&& other) noexcept {
  if (this == &other) return *this;
  discard();
  path_ = std::move(other.path_);
  staging_ = std::move(other.staging_);
  made_parents_ = std::move(other.made_parents_);
  overwrite_ = other.overwrite_;
  other.staging_.clear();
  other.made_parents_.clear();
  return *this;
}

AtomicDirectory::~AtomicDirectory() { discard(); }

void AtomicDirectory::discard() noexcept {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
  staging_.clear();
  // rmdir leaves a parent in which somebody else has put something.
  for (auto parent = made_parents_.rbegin(); parent != made_parents_.rend(); ++parent) {
    ::rmdir(parent->c_str());
  }
  made_parents_.clear();
}

Status AtomicDirectory::write(const std::string& name, std::string_view contents) {
  if (staging_.empty()) {
    return error(StatusCode::failed_precondition, "[file] ", path_.string(),
                 ": cannot write \"", name, "\"; the directory is committed already");
  }
  if (leaves(name)) {
    return error(StatusCode::invalid_argument, "[file] ", path_.string(),
                 ": a file name must lie inside the directory; found \"", name, "\"");
  }
  const fs::path file = staging_ / name;
  std::error_code number;
  fs::create_directories(file.parent_path(), number);
  if (number) return os_error(file.parent_path(), "create directory", number);
  return write_and_sync(file, contents);
}

Status AtomicDirectory::commit() {
  if (staging_.empty()) {
    return error(StatusCode::failed_precondition, "[file] ", path_.string(),
                 ": commit must be called once; it was called before");
  }
  // Files that others wrote into the staging area (safetensors shards) are synced here
  // too.
  std::error_code number;
  fs::recursive_directory_iterator entry(staging_, number), end;
  while (!number && entry != end) {
    if (entry->is_regular_file() || entry->is_directory()) {
      NIBBLE_RETURN_IF_ERROR(sync_path(entry->path()));
    }
    entry.increment(number);
  }
  if (number) return os_error(staging_, "list", number);
  NIBBLE_RETURN_IF_ERROR(sync_path(staging_));

  if (overwrite_ && fs::exists(path_, number)) {
    NIBBLE_RETURN_IF_ERROR(exchange(staging_, path_));
    fs::remove_all(staging_, number);  // what stood there before
  } else if (::rename(staging_.c_str(), path_.c_str()) != 0) {
    const int failed = errno;
    // Without overwrite an empty directory that appeared meanwhile is replaced, a full
    // one not.
    if (failed == ENOTEMPTY || failed == EEXIST) {
      return error(StatusCode::already_exists, "[file] ", path_.string(),
                   ": must not exist; it appeared meanwhile; choose another name");
    }
    return os_error(path_, "rename into place", failed);
  }
  staging_.clear();
  made_parents_.clear();
  return sync_path(parent_of(path_));
}

}  // namespace nibble
