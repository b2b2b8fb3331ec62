#include "kernels/tokenizer/stream_decoder.h"

#include <string_view>
#include <utility>

namespace nibble {
namespace {

// The length of text without what the next token may still change: an unfinished UTF-8
// character at its end, as bytes or as the replacement characters that decode puts for
// them.
size_t settled_length(std::string_view text) {
  constexpr std::string_view kReplacement = "\xef\xbf\xbd";
  while (text.size() >= 3 && text.substr(text.size() - 3) == kReplacement)
    text.remove_suffix(3);
  size_t back = 0;
  while (back < 4 && back < text.size()) {
    const unsigned char c = static_cast<unsigned char>(text[text.size() - 1 - back]);
    ++back;
    if ((c & 0xc0) == 0x80) continue;  // a continuation byte: look at what it continues
    const size_t needs = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
    return needs > back ? text.size() - back : text.size();
  }
  return text.size();
}

}  // namespace

std::string StreamDecoder::push(int32_t id) {
  window_.push_back(id);
  // A character has at most four bytes, so what is open after many tokens stays broken.
  constexpr size_t kLongestWait = 32;
  return give(window_.size() - settled_ > kLongestWait);
}

std::string StreamDecoder::finish() {
  std::string text = give(true);
  *this = StreamDecoder(*tokenizer_);
  return text;
}

std::string StreamDecoder::give(bool all) {
  const std::string text = tokenizer_->decode(window_);
  const size_t end = all ? text.size() : settled_length(text);
  std::string out;
  if (text.compare(0, shown_.size(), shown_) == 0) {
    if (end <= shown_.size()) return out;
    out = text.substr(shown_.size(), end - shown_.size());
  } else {  // what was given out has changed: byte tokens that spell no UTF-8 after all
    if (end < text.size()) return out;
    out = tokenizer_->decode(std::span<const int32_t>(window_).subspan(settled_));
  }
  shown_ = text.substr(0, end);
  if (end < text.size()) return out;
  // All is settled. The older ids can leave when the newer ones give text by themselves;
  // special ids, or a space that is dropped at the start, are no context.
  const std::vector<int32_t> newer(
      window_.begin() + static_cast<std::ptrdiff_t>(settled_), window_.end());
  if (std::string alone = tokenizer_->decode(newer); !alone.empty()) {
    window_ = newer;
    shown_ = std::move(alone);
  }
  settled_ = window_.size();
  return out;
}

}  // namespace nibble
