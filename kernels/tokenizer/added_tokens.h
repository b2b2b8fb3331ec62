// Finds the added tokens of a tokenizer.json in a text: the longest that begins at each
// place.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct AddedToken {
  int32_t id = 0;
  std::string content;                  // what is looked for, and decode writes
  std::string written;                  // how the file writes it
  bool single_word = false;             // not inside a word
  bool lstrip = false, rstrip = false;  // swallow the spaces beside it
  bool normalized = false;              // looked for after the normalizer
  bool special = false;                 // decode leaves it out
};

struct Segment {
  std::string_view text;
  int32_t id = -1;  // -1: text still to be encoded
};

class AddedTokenMatcher {
 public:
  void add(const AddedToken& token);
  void split(std::string_view text, std::vector<Segment>& segments) const;

 private:
  std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
};

}  // namespace nibble
