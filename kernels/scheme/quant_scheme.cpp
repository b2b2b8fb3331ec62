#include "kernels/scheme/quant_scheme.h"

namespace nibble {
namespace {

constexpr ElementInfo kElements[] = {
#define NIBBLE_ELEMENT(name, text, bits, kind, lowest, highest) \
  {text, bits, ElementKind::kind, lowest, highest},
#include "kernels/scheme/elements.inc"
#undef NIBBLE_ELEMENT
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The values of a level, each row of the level a dense bit stream (kernels/packing).
int64_t stored_level_bits(const ScaleLevel& level, int64_t rows, int64_t cols) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  const int64_t row_bytes = ceil_div(shape.cols * element_info(level.element).bits, 8);
  return 8 * shape.rows * row_bytes + (level.shifted ? 32 : 0);
}

Status invalid(const QuantScheme& scheme, const std::string& what) {
  return error(StatusCode::invalid_argument, "[scheme] \"", to_string(scheme),
               "\": ", what);
}

bool is_table_or_integer(Element element) {
  return element_info(element).kind != ElementKind::minifloat;
}

// Whether every block of `outer` is made of whole blocks of `inner`, whatever the matrix.
bool nests(const Block& inner, const Block& outer) {
  using Kind = Block::Kind;
  // Rows and columns that a block spans; 0 = all of them.
  const auto height = [](const Block& b) -> int64_t {
    return b.kind == Kind::grid                               ? b.rows
           : b.kind == Kind::column || b.kind == Kind::tensor ? 0
                                                              : 1;
  };
  const auto width = [](const Block& b) -> int64_t {
    return b.kind == Kind::grid || b.kind == Kind::group ? b.cols
           : b.kind == Kind::column                      ? 1
                                                         : 0;
  };
  const auto divides = [](int64_t part, int64_t whole) {
    return whole == 0 || (part != 0 && whole % part == 0);
  };
  if (outer.kind == Kind::tensor) return true;
  if (inner.kind == Kind::flat || outer.kind == Kind::flat) {
    return inner.kind == outer.kind && outer.cols % inner.cols == 0;
  }
  return divides(height(inner), height(outer)) && divides(width(inner), width(outer));
}

Status check_block(const QuantScheme& scheme, const Block& block) {
  constexpr int64_t kLargest = int64_t{1}
                               << 31;  // rows * cols of two such still fit in int64
  const bool sized = block.kind == Block::Kind::group ||
                     block.kind == Block::Kind::flat || block.kind == Block::Kind::grid;
  if (!sized && (block.rows != 1 || block.cols != 1)) {
    return invalid(scheme, "a block t, r or c has no size of its own");
  }
  if (block.rows < 1 || block.cols < 1 || block.rows > kLargest ||
      block.cols > kLargest) {
    return invalid(scheme,
                   cat("a block size must be between 1 and 2^31; found ",
                       block.kind == Block::Kind::grid ? cat(block.rows, "x", block.cols)
                                                       : cat(block.cols)));
  }
  return ok_status();
}

// What holds for the levels of scales and of a minimum alike.
Status check_levels(const QuantScheme& scheme, const std::vector<ScaleLevel>& levels,
                    const char* what) {
  for (size_t i = 0; i < levels.size(); ++i) {
    const ScaleLevel& level = levels[i];
    NIBBLE_RETURN_IF_ERROR(check_block(scheme, level.block));
    if (level.element == Element::ternary || level.element == Element::binary) {
      return invalid(scheme,
                     cat(element_info(level.element).text, " cannot hold a ", what,
                         "; use f16, f32, e8m0 or an integer under an outer level"));
    }
    if (level.shifted && i != 0) {
      return invalid(scheme, "only the innermost level may be shifted (+o)");
    }
    if (i > 0 && !nests(levels[i - 1].block, level.block)) {
      return invalid(scheme,
                     cat("level ", i, " must be made of whole blocks of level ", i - 1,
                         " (a multiple of its size, a row of groups, or t)"));
    }
  }
  const Element outermost = levels.back().element;
  if (is_table_or_integer(outermost) || outermost == Element::e2m1) {
    return invalid(
        scheme, cat("the outermost ", what, " level must be f32, f16, bf16, e4m3, e5m2",
                    " or e8m0; found ", element_info(outermost).text,
                    ", which has no range of its own: add a level such as /t@f32"));
  }
  return ok_status();
}

Status check_offset(const QuantScheme& scheme) {
  if (scheme.offset == OffsetKind::none) {
    if (scheme.offsets.empty()) return ok_status();
    return invalid(scheme, "offset levels without an offset");
  }
  const bool zero_point = scheme.offset == OffsetKind::zero_point;
  const char* what = zero_point ? "zero point" : "minimum";
  const ElementInfo& code = element_info(scheme.code);
  if (code.kind != ElementKind::integer) {
    return invalid(scheme, cat("a ", what, " needs integer codes; found ", code.text));
  }
  if (scheme.offsets.empty()) {
    return invalid(scheme, cat("a ", what, " needs a level such as /g128@",
                               zero_point ? code.text : "f16"));
  }
  if (!(scheme.offsets[0].block == scheme.scales[0].block)) {
    return invalid(scheme,
                   cat("the blocks of the ", what, " must be those of the scale"));
  }
  if (!zero_point) {
    NIBBLE_RETURN_IF_ERROR(check_levels(scheme, scheme.offsets, what));
    for (const ScaleLevel& level : scheme.offsets) {
      if (level.element == Element::e8m0) {
        return invalid(scheme, "e8m0 cannot hold a minimum: it has no sign");
      }
    }
    return ok_status();
  }
  const ScaleLevel& level = scheme.offsets[0];
  const ElementInfo& element = element_info(level.element);
  if (scheme.offsets.size() != 1 || level.shifted) {
    return invalid(scheme, "a zero point is one of the codes: one level, not shifted");
  }
  NIBBLE_RETURN_IF_ERROR(check_block(scheme, level.block));
  if (element.kind != ElementKind::integer ||
      element.lowest > static_cast<float>(code_lowest(scheme)) ||
      element.highest < static_cast<float>(code_highest(scheme))) {
    return invalid(scheme,
                   cat("a zero point is one of the codes, so its element must hold them ",
                       "all; found ", element.text, " for ", code.text));
  }
  return ok_status();
}

}  // namespace

const ElementInfo& element_info(Element element) {
  return kElements[static_cast<int>(element)];
}

const std::vector<Element>& all_elements() {
  static const std::vector<Element> elements = {
#define NIBBLE_ELEMENT(name, text, bits, kind, lowest, highest) Element::name,
#include "kernels/scheme/elements.inc"
#undef NIBBLE_ELEMENT
  };
  return elements;
}

Status validate_scheme(const QuantScheme& scheme) {
  const ElementInfo& code = element_info(scheme.code);
  const bool plain = scheme.code == Element::f32 || scheme.code == Element::f16 ||
                     scheme.code == Element::bf16;
  if (scheme.narrow && !(code.kind == ElementKind::integer && code.lowest < 0)) {
    return invalid(scheme, cat("n (narrow) is for signed integers; found ", code.text));
  }
  if (scheme.code == Element::e8m0) {
    return invalid(scheme, "e8m0 has no sign and no zero: it can only be a scale");
  }
  if (plain) {
    if (scheme.scales.empty() && scheme.offset == OffsetKind::none &&
        scheme.offsets.empty()) {
      return ok_status();
    }
    return invalid(scheme,
                   cat(code.text, " is stored as it is, without scale or offset"));
  }
  if (scheme.scales.empty()) {
    return invalid(scheme,
                   cat(code.text, " needs a scale, such as ", code.text, "/r@f32"));
  }
  NIBBLE_RETURN_IF_ERROR(check_levels(scheme, scheme.scales, "scale"));
  return check_offset(scheme);
}

LevelShape level_shape(const Block& block, int64_t rows, int64_t cols) {
  switch (block.kind) {
    case Block::Kind::tensor:
      return {1, 1};
    case Block::Kind::row:
      return {rows, 1};
    case Block::Kind::column:
      return {1, cols};
    case Block::Kind::group:
      return {rows, ceil_div(cols, block.cols)};
    case Block::Kind::flat:
      return {1, ceil_div(rows * cols, block.cols)};
    case Block::Kind::grid:
      return {ceil_div(rows, block.rows), ceil_div(cols, block.cols)};
  }
  return {};
}

int64_t level_index(const Block& block, int64_t /*rows*/, int64_t cols, int64_t r,
                    int64_t c) {
  switch (block.kind) {
    case Block::Kind::tensor:
      return 0;
    case Block::Kind::row:
      return r;
    case Block::Kind::column:
      return c;
    case Block::Kind::group:
      return r * ceil_div(cols, block.cols) + c / block.cols;
    case Block::Kind::flat:
      return (r * cols + c) / block.cols;
    case Block::Kind::grid:
      return r / block.rows * ceil_div(cols, block.cols) + c / block.cols;
  }
  return 0;
}

int code_lowest(const QuantScheme& scheme) {
  return static_cast<int>(element_info(scheme.code).lowest) + (scheme.narrow ? 1 : 0);
}

int code_highest(const QuantScheme& scheme) {
  return static_cast<int>(element_info(scheme.code).highest);
}

bool has_signed_scales(const QuantScheme& scheme) {
  const ElementInfo& code = element_info(scheme.code);
  if (code.kind != ElementKind::integer || code.bits > 4 ||
      -code_lowest(scheme) <= code_highest(scheme) || scheme.offset != OffsetKind::none ||
      scheme.scales.size() != 1 || scheme.scales[0].shifted) {
    return false;
  }
  const Element scale = scheme.scales[0].element;
  return scale == Element::f32 || scale == Element::f16 || scale == Element::bf16;
}

double bits_per_value(const QuantScheme& scheme, int64_t rows, int64_t cols) {
  int64_t bits = 8 * rows * ceil_div(cols * element_info(scheme.code).bits, 8);
  for (const ScaleLevel& level : scheme.scales)
    bits += stored_level_bits(level, rows, cols);
  for (const ScaleLevel& level : scheme.offsets)
    bits += stored_level_bits(level, rows, cols);
  return static_cast<double>(bits) / static_cast<double>(rows * cols);
}

}  // namespace nibble
