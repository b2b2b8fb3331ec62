// Timings that are kept from one run to the next: of one machine, one thread count, one
// build of nibble. Another CPU has a file of its own; another build begins anew.
//
// What cannot be read, or is no such file, counts as empty: a cache is never a reason to
// fail. save writes the whole file at once (temporary name, rename).
//
// Not for several threads at once. Two processes: the last to save wins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "kernels/base/status.h"

namespace nibble {

// $XDG_CACHE_HOME/nibble or ~/.cache/nibble; "" where neither is set.
std::filesystem::path cache_directory();

class TimingCache {
 public:
  // In `directory`, which save makes; "" keeps nothing.
  explicit TimingCache(const std::filesystem::path& directory);

  // What was put there, JSON text; null: nothing. Valid until the next put.
  const std::string* find(const std::string& key);
  void put(const std::string& key, std::string json);
  Status save() const;

  const std::filesystem::path& file() const { return file_; }
  int64_t found() const { return found_; }  // by find
  int64_t added() const { return added_; }  // by put

 private:
  std::filesystem::path file_;
  std::map<std::string, std::string> entries_;
  int64_t found_ = 0, added_ = 0;
};

}  // namespace nibble
