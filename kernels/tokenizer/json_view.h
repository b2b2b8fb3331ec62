// One value of a parsed JSON file: lookups that never throw, and the errors that name its
// place.
//
// A view is valid as long as its JsonFile. What is absent, null or of another type reads
// as nothing; damaged_json and unknown_json make the errors of whoever needed it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

class JsonView {
 public:
  JsonView() = default;
  explicit JsonView(const void* value) : value_(value) {}  // a nlohmann::json

  bool exists() const { return value_ != nullptr; }  // present and not null
  bool is_object() const;
  bool is_array() const;
  bool is_string() const;
  bool is_boolean() const;
  bool is_number() const;

  JsonView operator[](const char* key) const;  // nothing when absent
  JsonView at(size_t index) const;             // of an array
  size_t size() const;                         // of an array or object
  std::vector<JsonView> elements() const;      // of an array

  std::string_view text() const;  // "" unless a string
  bool flag(bool otherwise = false) const;
  double number(double otherwise = 0) const;
  int32_t id() const;        // -1 unless an integer from 0 to 2^31 - 1
  std::string dump() const;  // at most 60 bytes, "nothing" for nothing

  // Calls for each member of an object, in the order of the keys; stops at an error.
  Status for_each_member(
      const std::function<Status(const std::string& key, JsonView value)>& call) const;

 private:
  const void* value_ = nullptr;
};

class JsonFile {
 public:
  // data_loss: text is not JSON with an object at its top (the message names the file).
  static Result<JsonFile> parse(std::string name, std::string_view text);
  JsonView root() const { return JsonView(value_.get()); }

 private:
  std::shared_ptr<const void> value_;
};

// As the inside of a JSON string.
std::string json_escaped(std::string_view text);

// "[tokenizer] tokenizer.json WHERE: ...; the file is damaged", data_loss.
template <class... Parts>
Status damaged_json(std::string_view where, const Parts&... parts) {
  return error(StatusCode::data_loss, "[tokenizer] tokenizer.json ", where, ": ",
               parts..., "; the file is damaged");
}
// "[tokenizer] tokenizer.json WHERE: ...", unsupported.
template <class... Parts>
Status unknown_json(std::string_view where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[tokenizer] tokenizer.json ", where, ": ",
               parts..., "; evaluate with token ids from a safetensors file instead");
}

}  // namespace nibble
