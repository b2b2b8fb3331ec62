// The text form of a scheme: one recursive descent over the grammar of quant_scheme.h.
#include "kernels/scheme/quant_scheme.h"

namespace nibble {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<QuantScheme> scheme() {
    QuantScheme scheme;
    NIBBLE_ASSIGN_OR_RETURN(scheme.code, element());
    scheme.narrow = take('n');
    NIBBLE_ASSIGN_OR_RETURN(scheme.scales, levels());
    if (take('+')) {
      if (take('z')) {
        scheme.offset = OffsetKind::zero_point;
      } else if (take('m')) {
        scheme.offset = OffsetKind::minimum;
      } else {
        return expected("z (zero point) or m (minimum)");
      }
      NIBBLE_ASSIGN_OR_RETURN(scheme.offsets, levels());
    }
    if (at_ != text_.size())
      return expected("/ and a block, + and an offset, or the end");
    return scheme;
  }

 private:
  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  Status expected(const char* what) const {
    const std::string_view rest = text_.substr(at_);
    return error(StatusCode::invalid_argument, "[scheme] \"", text_, "\" at ", at_,
                 ": expected ", what, "; found ",
                 rest.empty() ? std::string("the end") : cat("\"", rest, "\""));
  }

  Result<Element> element() {
    // The longest name that fits: no name is another's beginning, but e2m1 and int2 may
    // follow.
    const Element* best = nullptr;
    size_t length = 0;
    for (const Element& candidate : all_elements()) {
      const std::string_view name = element_info(candidate).text;
      if (name.size() > length && text_.substr(at_, name.size()) == name) {
        best = &candidate;
        length = name.size();
      }
    }
    if (best == nullptr) {
      std::string names = "an element: one of";
      for (Element known : all_elements()) names += cat(" ", element_info(known).text);
      return expected(names.c_str());
    }
    at_ += length;
    return *best;
  }

  // Digits without a leading zero, so that text and number determine each other.
  Result<int64_t> size() {
    constexpr size_t kDigits = 10;  // enough for 2^31, the largest block
    const size_t begin = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' &&
           at_ - begin < kDigits) {
      value = 10 * value + (text_[at_++] - '0');
    }
    if (at_ == begin || text_[begin] == '0') {
      at_ = begin;
      return expected("a block size of 1 or more, without leading zeros");
    }
    return value;
  }

  Result<Block> block() {
    Block block;
    if (take('t')) {
      block.kind = Block::Kind::tensor;
    } else if (take('r')) {
      block.kind = Block::Kind::row;
    } else if (take('c')) {
      block.kind = Block::Kind::column;
    } else if (take('g')) {
      block.kind = Block::Kind::group;
      NIBBLE_ASSIGN_OR_RETURN(block.cols, size());
    } else if (take('f')) {
      block.kind = Block::Kind::flat;
      NIBBLE_ASSIGN_OR_RETURN(block.cols, size());
    } else if (take('b')) {
      block.kind = Block::Kind::grid;
      NIBBLE_ASSIGN_OR_RETURN(block.rows, size());
      if (!take('x')) return expected("x between the rows and columns of a block");
      NIBBLE_ASSIGN_OR_RETURN(block.cols, size());
    } else {
      return expected("a block: t, r, c, gN, fN or bRxC");
    }
    return block;
  }

  Result<std::vector<ScaleLevel>> levels() {
    std::vector<ScaleLevel> levels;
    while (take('/')) {
      ScaleLevel level;
      NIBBLE_ASSIGN_OR_RETURN(level.block, block());
      if (!take('@')) return expected("@ and the element of the scale");
      NIBBLE_ASSIGN_OR_RETURN(level.element, element());
      if (text_.substr(at_, 2) == "+o") {
        level.shifted = true;
        at_ += 2;
      }
      levels.push_back(level);
    }
    return levels;
  }

  std::string_view text_;
  size_t at_ = 0;
};

std::string block_text(const Block& block) {
  switch (block.kind) {
    case Block::Kind::tensor:
      return "t";
    case Block::Kind::row:
      return "r";
    case Block::Kind::column:
      return "c";
    case Block::Kind::group:
      return cat("g", block.cols);
    case Block::Kind::flat:
      return cat("f", block.cols);
    case Block::Kind::grid:
      return cat("b", block.rows, "x", block.cols);
  }
  return "";
}

std::string levels_text(const std::vector<ScaleLevel>& levels) {
  std::string text;
  for (const ScaleLevel& level : levels) {
    text += cat("/", block_text(level.block), "@", element_info(level.element).text,
                level.shifted ? "+o" : "");
  }
  return text;
}

}  // namespace

Result<QuantScheme> parse_scheme(std::string_view text) {
  NIBBLE_ASSIGN_OR_RETURN(QuantScheme scheme, Parser(text).scheme());
  NIBBLE_RETURN_IF_ERROR(validate_scheme(scheme));
  return scheme;
}

std::string to_string(const QuantScheme& scheme) {
  std::string text = cat(element_info(scheme.code).text, scheme.narrow ? "n" : "",
                         levels_text(scheme.scales));
  if (scheme.offset != OffsetKind::none) {
    text += scheme.offset == OffsetKind::zero_point ? "+z" : "+m";
    text += levels_text(scheme.offsets);
  }
  return text;
}

}  // namespace nibble
