// A file that has no name, for activations that memory has no room for.
//
// write puts a run of bytes where there is room and says where; release gives the place to
// later ones. The file is made in `directory` and is gone when the process ends, however it
// ends. io_error: the system refused (a full disk). Throws nibble::Error. Safe to call from
// any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <vector>

namespace nibble {

class SpillFile {
 public:
  explicit SpillFile(const std::filesystem::path& directory);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  int64_t write(const void* data, int64_t bytes);  // returns the place
  void read(void* data, int64_t bytes, int64_t place) const;
  void release(int64_t bytes, int64_t place);
  int64_t bytes() const { return end_; }  // the most that it has held

 private:
  std::filesystem::path directory_;
  int fd_ = -1;
  std::mutex mutex_;
  int64_t end_ = 0;
  std::map<int64_t, std::vector<int64_t>> free_;  // size -> places
};

}  // namespace nibble
