// What calibration has found before layers are solved, by step and what it is about: the
// factors of transforms by group, the scale of an activation, the losses of a layer's
// schemes. With a file, what was found before a kill need not be found again:
//
//   nibble-scales 1 <fingerprint>
//   <SHA-256 of the rest of the line>
//   {"transform":..,"value":..,"scale":[..],"notes":{..}}
//
// A line that a kill has torn, and what follows it, counts as not written; a file of
// another fingerprint begins anew. One thread at a time. Throws nibble::Error:
// failed_precondition where another process has the file open.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/file.h"

namespace nibble {

struct GroupScale {
  std::vector<double> scale;                 // [channels]
  std::map<std::string, std::string> notes;  // by tensor: what the ledger should say
};

// One line of the file, without its checksum, for other ranks too.
std::string print_group_scale(const std::string& transform, const std::string& value,
                              const GroupScale& found);
// Throws nlohmann's exceptions.
GroupScale parse_group_scale(const std::string& text, std::string* transform = nullptr,
                             std::string* value = nullptr);

class FoundScales {
 public:
  FoundScales() = default;  // in memory alone
  FoundScales(const std::filesystem::path& path, const std::string& fingerprint);

  const GroupScale* find(const std::string& transform, const std::string& value) const;
  void put(const std::string& transform, const std::string& value, GroupScale found);
  void end_block();  // what was put is on disk
  size_t resumed() const { return resumed_; }
  bool replaced() const { return replaced_; }  // a file of another fingerprint

 private:
  std::map<std::pair<std::string, std::string>, GroupScale> found_;
  PlacedFile file_;
  bool has_file_ = false;
  uint64_t bytes_ = 0;  // of the file that are sound
  size_t resumed_ = 0;
  bool replaced_ = false;
  std::string pending_;
};

// What the first rank has found of it, on every rank.
std::optional<GroupScale> known_everywhere(const FoundScales& found,
                                           const std::string& step,
                                           const std::string& value);

}  // namespace nibble
