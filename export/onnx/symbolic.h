// Shape and mask sub-graphs of an imported graph as arrays whose elements are formulas
// (formula.h).
//
//   Grid   [dims] of elements; element = formula(place 0, place 1 ...), or, of a small
//   array
//          whose dims are numbers, one formula an element
//
// So Expand(Unsqueeze(1 - attention_mask) * -1e38) is a grid [batch, 1, sequence,
// sequence] with the element (1 - attention_mask[i0, i3]) * -1e38, whatever operators
// made it, and a mask is understood by what it is for a token and for padding
// (import_encoder.h).
//
// unsupported: an operand that has no such form; the caller adds the node's name.
// Allocates; safe from any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "export/onnx/formula.h"

namespace nibble::symbolic {

struct Grid {
  Sizes dims;
  FormulaPtr formula;                // of each element, or
  std::vector<FormulaPtr> elements;  // row-major
  bool is_integer = true;            // else boolean or float: division does not truncate
};
Grid grid_of(Sizes dims, FormulaPtr formula, bool is_integer);
// A constant array.
Grid constant_grid(const std::vector<int64_t>& dims, std::vector<double> values,
                   bool is_integer);
Grid shape_grid(const Sizes& sizes);
// Its elements as sizes; nothing where they are not.
std::optional<Sizes> sizes_in(const Grid& grid);
std::optional<double> number_in(const Grid& grid);  // of one element
// One formula for all elements: explicit ones become a choice.
Result<FormulaPtr> formula_of(const Grid& grid);

// --- operators; attributes and constant operands as numbers
Result<Grid> elementwise(const std::string& op, const std::vector<Grid>& inputs);
Result<Grid> gather(const Grid& data, const Grid& indices, int64_t axis);
Result<Grid> gather_elements(const Grid& data, const Grid& indices, int64_t axis);
Result<Grid> gather_nd(const Grid& data, const Grid& indices);
Result<Grid> slice(const Grid& data, int64_t axis, const FormulaPtr& start,
                   const FormulaPtr& end, int64_t step);
Result<Grid> concatenate(const std::vector<Grid>& inputs, int64_t axis);
// Another arrangement of the same elements; -1 and 0 as in ONNX.
Result<Sizes> reshaped_sizes(const Sizes& from, const Sizes& to, bool zero_copies);
Result<Grid> reshape(const Grid& data, const Sizes& to);
Result<Grid> transpose(const Grid& data, const std::vector<int64_t>& order);
Result<Grid> expand(const Grid& data, const Sizes& to);
Result<Grid> range(const Grid& start, const Grid& limit, const Grid& step);
Result<Sizes> broadcast(const Sizes& a, const Sizes& b);

}  // namespace nibble::symbolic
