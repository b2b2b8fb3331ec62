#include "recipes/eval/timing_cache.h"

#include <sys/stat.h>

#include <cstdlib>

#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/sha256.h"
#include "recipes/eval/speed.h"

namespace nibble {
namespace {

// Changes with every build: size and time of the running file.
std::string build_text() {
  struct stat info = {};
  if (::stat("/proc/self/exe", &info) != 0) return "";
  return cat(info.st_size, " ", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
}

}  // namespace

std::filesystem::path cache_directory() {
  if (const char* base = std::getenv("XDG_CACHE_HOME"); base != nullptr && base[0] == '/') {
    return std::filesystem::path(base) / "nibble";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/') {
    return std::filesystem::path(home) / ".cache" / "nibble";
  }
  return {};
}

TimingCache::TimingCache(const std::filesystem::path& directory) {
  if (directory.empty()) return;
  file_ = directory / cat("timings-", sha256_hex(cpu_text()).substr(0, 16), ".json");
  const Result<std::string> text = read_text_file(file_);
  if (!text.ok()) return;
  nlohmann::json read = parse_json(*text);
  if (!read.is_object() || read.value("build", nlohmann::json()) != build_text()) return;
  const auto entries = read.find("timings");
  if (entries == read.end() || !entries->is_object()) return;
  for (const auto& [key, value] : entries->items()) entries_[key] = value.dump();
}

const std::string* TimingCache::find(const std::string& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return nullptr;
  ++found_;
  return &entry->second;
}

void TimingCache::put(const std::string& key, std::string json) {
  entries_[key] = std::move(json);
  ++added_;
}

Status TimingCache::save() const {
  if (file_.empty() || added_ == 0) return ok_status();
  std::error_code failed;
  std::filesystem::create_directories(file_.parent_path(), failed);
  if (failed) {
    return error(StatusCode::io_error, "[advise] ", file_.parent_path().string(),
                 ": a directory for timings was required; found ", failed.message(),
                 "; set XDG_CACHE_HOME, or give --fresh");
  }
  nlohmann::json whole = {{"cpu", cpu_text()},
                          {"build", build_text()},
                          {"timings", nlohmann::json::object()}};
  for (const auto& [key, text] : entries_) whole["timings"][key] = parse_json(text);
  return write_file_atomically(
      file_,
      whole.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace nibble
