#include "ptq/calibration/found_scales.h"

#include <nlohmann/json.hpp>

#include "kernels/base/sha256.h"
#include "ptq/distributed/ranks.h"
#include "ptq/error.h"

namespace nibble {
namespace {

constexpr size_t kDigits = 64;  // of a SHA-256 in hex

}  // namespace

std::string print_group_scale(const std::string& transform, const std::string& value,
                              const GroupScale& found) {
  return nlohmann::json{{"transform", transform},
                        {"value", value},
                        {"scale", found.scale},
                        {"notes", found.notes}}
      .dump();
}

GroupScale parse_group_scale(const std::string& text, std::string* transform,
                             std::string* value) {
  const nlohmann::json json = nlohmann::json::parse(text);
  if (transform != nullptr) json.at("transform").get_to(*transform);
  if (value != nullptr) json.at("value").get_to(*value);
  return {json.at("scale").get<std::vector<double>>(),
          json.at("notes").get<std::map<std::string, std::string>>()};
}

FoundScales::FoundScales(const std::filesystem::path& path,
                         const std::string& fingerprint)
    : has_file_(true) {
  const std::string head = cat("nibble-scales 1 ", fingerprint, "\n");
  std::string text;
  std::error_code failed;
  if (std::filesystem::exists(path, failed)) text = value_or_throw(map_file(path)).text();
  file_ = value_or_throw(PlacedFile::open(path));
  throw_if_error(file_.lock());
  if (text.starts_with(head)) {
    bytes_ = head.size();
    while (bytes_ < text.size()) {
      const size_t end = text.find('\n', bytes_);
      if (end == std::string::npos || end < bytes_ + kDigits + 1) break;
      const std::string line =
          text.substr(bytes_ + kDigits + 1, end - bytes_ - kDigits - 1);
      if (sha256_hex(line) != text.substr(bytes_, kDigits)) break;
      try {
        std::string transform, value;
        GroupScale found = parse_group_scale(line, &transform, &value);
        found_[{transform, value}] = std::move(found);
      } catch (const nlohmann::json::exception&) {
        break;
      }
      bytes_ = end + 1;
    }
    resumed_ = found_.size();
  } else {
    replaced_ = !text.empty();
    throw_if_error(file_.resize(0));
    throw_if_error(file_.write(head, 0));
    bytes_ = head.size();
  }
  throw_if_error(file_.resize(bytes_));  // a torn line goes
}

const GroupScale* FoundScales::find(const std::string& transform,
                                    const std::string& value) const {
  const auto found = found_.find({transform, value});
  return found == found_.end() ? nullptr : &found->second;
}

void FoundScales::put(const std::string& transform, const std::string& value,
                      GroupScale found) {
  if (has_file_) {
    const std::string text = print_group_scale(transform, value, found);
    pending_ += cat(sha256_hex(text), " ", text, "\n");
  }
  found_[{transform, value}] = std::move(found);
}

void FoundScales::end_block() {
  if (pending_.empty()) return;
  throw_if_error(file_.write(pending_, bytes_));
  throw_if_error(file_.sync());
  bytes_ += pending_.size();
  pending_.clear();
}

std::optional<GroupScale> known_everywhere(const FoundScales& found,
                                           const std::string& step,
                                           const std::string& value) {
  Ranks& ranks = Ranks::instance();
  const GroupScale* known = found.find(step, value);
  if (ranks.count() == 1) return known != nullptr ? std::optional(*known) : std::nullopt;
  const bool mine = ranks.is_first() && known != nullptr;
  const std::string text =
      ranks.broadcast(mine ? print_group_scale(step, value, *known) : "", 0);
  return text.empty() ? std::nullopt : std::optional(parse_group_scale(text));
}

}  // namespace nibble
