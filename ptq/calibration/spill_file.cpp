#include "ptq/calibration/spill_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "ptq/error.h"

namespace nibble {
namespace {

Error failure(const std::filesystem::path& directory, const char* action) {
  return Error(error(StatusCode::io_error, "[calibrate] spilled activations in ",
                     directory.string(), ": cannot ", action, ": ", std::strerror(errno),
                     "; free some disk, or give more --memory"));
}

// All of it, whatever a signal or a full buffer cuts.
template <class Call>
bool whole(int64_t bytes, const Call& call) {
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = call(done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

}  // namespace

SpillFile::SpillFile(const std::filesystem::path& directory) : directory_(directory) {
  std::string name = (directory / "nibble-spill-XXXXXX").string();
  fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd_ < 0) throw failure(directory, "make a file");
  ::unlink(name.c_str());
}

SpillFile::~SpillFile() { ::close(fd_); }

int64_t SpillFile::write(const void* data, int64_t bytes) {
  int64_t place = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int64_t>& places = free_[bytes];
    if (places.empty()) {
      place = end_;
      end_ += bytes;
    } else {
      place = places.back();
      places.pop_back();
    }
  }
  const char* from = static_cast<const char*>(data);
  if (!whole(bytes, [&](int64_t done) {
        return ::pwrite(fd_, from + done, static_cast<size_t>(bytes - done), place + done);
      })) {
    throw failure(directory_, "write");
  }
  return place;
}

void SpillFile::read(void* data, int64_t bytes, int64_t place) const {
  char* to = static_cast<char*>(data);
  if (!whole(bytes, [&](int64_t done) {
        return ::pread(fd_, to + done, static_cast<size_t>(bytes - done), place + done);
      })) {
    throw failure(directory_, "read");
  }
}

void SpillFile::release(int64_t bytes, int64_t place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_[bytes].push_back(place);
}

}  // namespace nibble
