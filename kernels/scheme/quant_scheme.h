// Which real number a code stands for, as a small value that parses and prints back
// identically: "int4/g128@f16", "uint4/g128@f16+z/g128@uint4", "nf4/f64@dyn8+o/f256@f32".
//
//   value = s * q            no offset
//   value = s * (q - z)      zero_point
//   value = s * q + m        minimum
//
// s (and m) is the product of its levels, innermost first: s = (v0 * v1) * v2 ... +
// shift, a level's values v being the decoded numbers of its element and `shift` one f32,
// of the innermost level, where that is marked "+o". Every tensor is read as a matrix
// [rows, cols], cols being what a matmul reduces over.
//
//   code ["n"] {"/" block "@" element ["+o"]} ["+" ("z"|"m") {"/" block "@" element
//   ["+o"]}] block = t | r | c | gN | fN | bRxC
//
// Every block counts elements of the tensor, those of outer levels too, and an outer
// block is made of whole inner blocks: 256 scales of 64 elements each, as bitsandbytes
// nests them, are "nf4/f64@dyn8+o/f16384@f32".
//
// parse_scheme: invalid_argument (quotes the text, the position, what was expected, what
// was found). validate_scheme: invalid_argument (the combination that has no meaning, and
// why).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

enum class Element : uint8_t {
#define NIBBLE_ELEMENT(name, text, bits, kind, lowest, highest) name,
#include "kernels/scheme/elements.inc"
#undef NIBBLE_ELEMENT
};

enum class ElementKind : uint8_t {
  integer,    // the code is the number; lowest..highest
  minifloat,  // e2m1 e4m3 e5m2 e8m0 bf16 f16 f32: the code is the bit pattern
  table,      // nf4 fp4 dyn8 (values in [-1, 1]), iq4nl (ggml's integers), ternary, binary
};

struct ElementInfo {
  const char* text;
  int bits;  // stored bits a code
  ElementKind kind;
  float lowest;  // smallest and largest value a code can stand for
  float highest;
};
const ElementInfo& element_info(Element element);
const std::vector<Element>& all_elements();

// Blocks. rows/cols are used by group (cols = N), flat (cols = N) and grid only.
struct Block {
  enum class Kind : uint8_t { tensor, row, column, group, flat, grid };
  Kind kind = Kind::tensor;
  int64_t rows = 1;
  int64_t cols = 1;
  bool operator==(const Block&) const = default;
};

struct ScaleLevel {
  Block block;
  Element element;
  bool shifted = false;  // "+o"
  bool operator==(const ScaleLevel&) const = default;
};

enum class OffsetKind : uint8_t { none, zero_point, minimum };

struct QuantScheme {
  Element code = Element::f32;
  bool narrow = false;             // "n": the most negative code is not used
  std::vector<ScaleLevel> scales;  // innermost first; empty for a plain float scheme
  OffsetKind offset = OffsetKind::none;
  std::vector<ScaleLevel> offsets;  // innermost first
  bool operator==(const QuantScheme&) const = default;

  bool is_float() const { return scales.empty(); }  // f32, bf16, f16: stored as they are
};

Result<QuantScheme> parse_scheme(std::string_view text);  // parses and validates
std::string to_string(const QuantScheme& scheme);
Status validate_scheme(const QuantScheme& scheme);

// How many values a level holds for a [rows, cols] matrix, as a small matrix of its own.
// group gN: [rows, ceil(cols/N)]; flat fN: [1, ceil(rows*cols/N)]; grid: [ceil, ceil];
// tensor [1,1]; row [rows,1]; column [1,cols].
struct LevelShape {
  int64_t rows = 0;
  int64_t cols = 0;
  bool operator==(const LevelShape&) const = default;
};
LevelShape level_shape(const Block& block, int64_t rows, int64_t cols);
// The value of that level which governs element (r, c): index into its row-major values.
int64_t level_index(const Block& block, int64_t rows, int64_t cols, int64_t r, int64_t c);

// Smallest and largest code of an integer scheme (narrow considered), e.g. -8..7.
int code_lowest(const QuantScheme& scheme);
int code_highest(const QuantScheme& scheme);
// May its scales be negative (never 0)? Integer codes of at most 4 bits that reach
// further below zero than above (int4: -8..7), without offsets, under one level of f32,
// f16 or bf16: a negative scale gives the longer side to the positive weights.
bool has_signed_scales(const QuantScheme& scheme);

// Stored bits for the whole matrix (codes, every scale and offset level, shifts) /
// (rows*cols).
double bits_per_value(const QuantScheme& scheme, int64_t rows, int64_t cols);

}  // namespace nibble
