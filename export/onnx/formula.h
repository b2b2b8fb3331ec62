// Sizes in terms of batch and sequence, and formulas of what an element of an array is,
// from its place and the graph's inputs (symbolic.h).
//
//   Size     factor * batch^b * sequence^s
//   Formula  of numbers, sizes, places, inputs' elements and operators
//
// Formulas are simplified as they are made: constants folded, comparisons decided where
// bounds decide them (a place is 0 or more, a size 1 or more), quotients of places taken
// apart ((i0 * sequence + i1) / sequence is i0). One of more than kFormulaParts parts is
// refused, so that no graph takes unbounded time.
//
// unsupported: too long a formula, a place outside an array. Allocates; safe from any
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble::symbolic {

inline constexpr int64_t kFormulaParts = 1024;

struct Size {
  int64_t factor = 1;
  int batch = 0, sequence = 0;  // exponents
  bool operator==(const Size&) const = default;
  bool is(int64_t number) const {
    return factor == number && batch == 0 && sequence == 0;
  }
  bool is_number() const { return batch == 0 && sequence == 0; }
};
using Sizes = std::vector<Size>;
inline constexpr Size kBatch{1, 1, 0}, kSequence{1, 0, 1};
Size product(const Sizes& sizes);
std::optional<Size> quotient(const Size& a, const Size& b);
std::string size_text(const Sizes& sizes);  // "[batch, sequence, 48]"

struct Formula;
using FormulaPtr = std::shared_ptr<const Formula>;
struct Formula {
  enum class Kind {
    number,
    size,
    index,   // the place along `axis`, below `size`
    input,   // of the graph's input `name` at arguments' place
    table,   // of a constant array at arguments' place
    choice,  // arguments[1 + value of arguments[0]]
    call,    // the operator `name` of its arguments
  } kind = Kind::number;
  double number = 0;
  Size size;
  int axis = 0;
  std::string name;
  std::shared_ptr<const std::vector<double>> values;  // of a table,
  std::vector<int64_t> table_dims;                    // row-major
  std::vector<FormulaPtr> arguments;
  int64_t parts = 1;
};
FormulaPtr number_formula(double value);
FormulaPtr size_formula(const Size& size);
// The place along an axis of that many; 0 where there is one.
FormulaPtr place_formula(size_t axis, const Size& extent);
FormulaPtr input_formula(const std::string& name, const Sizes& dims);
Result<FormulaPtr> call_formula(const std::string& op, std::vector<FormulaPtr> arguments);
std::optional<Size> size_of(const FormulaPtr& formula);  // of a number or size
bool same(const FormulaPtr& a, const FormulaPtr& b);
bool is_number(const FormulaPtr& formula);

// An element of a constant array at its own place.
FormulaPtr table_formula(std::vector<double> values, const std::vector<int64_t>& dims);
// parts[which].
Result<FormulaPtr> choice_formula(const FormulaPtr& which,
                                  const std::vector<FormulaPtr>& parts);
// The formula of an element that stands at `places` of the array it was made for.
Result<FormulaPtr> placed(const FormulaPtr& formula,
                          const std::vector<FormulaPtr>& places);
// Its own place in an array of these dimensions.
std::vector<FormulaPtr> places_of(const Sizes& dims);

// What a formula is with every input element, each at exactly this place, being `value`;
// nothing where it depends on anything else.
std::optional<double> value_with(const FormulaPtr& formula, const std::string& input,
                                 const std::vector<FormulaPtr>& place, double value);

}  // namespace nibble::symbolic
