#include "export/onnx/symbolic.h"

#include <algorithm>

namespace nibble::symbolic {
namespace {

constexpr double kFar = 2147483647;  // beyond any array's end
constexpr size_t kExplicit = 64;     // elements that are written down one by one

Status no_form(const std::string& what) { return error(StatusCode::unsupported, what); }

// An array of places (position ids) or of one value says so.
FormulaPtr formula_of_values(const std::vector<double>& values, const Sizes& dims) {
  const auto cols = static_cast<size_t>(dims.back().factor);
  bool counts = true, constant = true;
  for (size_t i = 0; i < values.size(); ++i) {
    counts = counts && values[i] == static_cast<double>(i % cols);
    constant = constant && values[i] == values[0];
  }
  return constant ? number_formula(values[0])
         : counts ? place_formula(dims.size() - 1, dims.back())
                  : nullptr;
}

}  // namespace

Grid grid_of(Sizes dims, FormulaPtr formula, bool is_integer) {
  Grid grid;
  if (product(dims).is(1)) {
    grid.elements = {std::move(formula)};
  } else {
    grid.formula = std::move(formula);
  }
  grid.dims = std::move(dims);
  grid.is_integer = is_integer;
  return grid;
}

Grid constant_grid(const std::vector<int64_t>& dims, std::vector<double> values,
                   bool is_integer) {
  Grid grid;
  grid.is_integer = is_integer;
  for (const int64_t dim : dims) grid.dims.push_back({dim, 0, 0});
  if (values.size() <= kExplicit) {
    for (const double value : values) grid.elements.push_back(number_formula(value));
    return grid;
  }
  if (FormulaPtr simple = formula_of_values(values, grid.dims)) {
    grid.formula = std::move(simple);
    return grid;
  }
  grid.formula = table_formula(std::move(values), dims);
  return grid;
}

Grid shape_grid(const Sizes& sizes) {
  Grid grid;
  grid.dims = {{static_cast<int64_t>(sizes.size()), 0, 0}};
  for (const Size& size : sizes) grid.elements.push_back(size_formula(size));
  return grid;
}

std::optional<Sizes> sizes_in(const Grid& grid) {
  Sizes sizes;
  if (grid.elements.empty() && !product(grid.dims).is(0)) return {};
  for (const FormulaPtr& element : grid.elements) {
    const std::optional<Size> size = size_of(element);
    if (!size) return {};
    sizes.push_back(*size);
  }
  return sizes;
}

std::optional<double> number_in(const Grid& grid) {
  if (grid.elements.size() == 1 && is_number(grid.elements[0]))
    return grid.elements[0]->number;
  if (grid.elements.empty() && grid.formula && is_number(grid.formula))
    return grid.formula->number;
  return {};
}

Result<FormulaPtr> formula_of(const Grid& grid) {
  if (grid.elements.empty()) {
    if (grid.formula) return grid.formula;
    return no_form("an array with elements is required; found an empty one");
  }
  if (grid.elements.size() == 1) return grid.elements[0];
  std::vector<double> values;
  for (const FormulaPtr& element : grid.elements) {
    if (is_number(element)) values.push_back(element->number);
  }
  if (values.size() == grid.elements.size() && !grid.dims.empty()) {
    if (FormulaPtr simple = formula_of_values(values, grid.dims)) return simple;
  }
  // The place among all elements, row by row.
  FormulaPtr place = number_formula(0);
  for (size_t i = 0; i < grid.dims.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(FormulaPtr scaled,
                            call_formula("Mul", {place, size_formula(grid.dims[i])}));
    NIBBLE_ASSIGN_OR_RETURN(
        place, call_formula("Add", {scaled, place_formula(i, grid.dims[i])}));
  }
  return choice_formula(place, grid.elements);
}

Result<Sizes> broadcast(const Sizes& a, const Sizes& b) {
  const size_t rank = std::max(a.size(), b.size());
  Sizes result(rank);
  for (size_t i = 0; i < rank; ++i) {
    const Size one{1, 0, 0};
    const Size& x = i + a.size() < rank ? one : a[i + a.size() - rank];
    const Size& y = i + b.size() < rank ? one : b[i + b.size() - rank];
    if (!(x == y) && !x.is(1) && !y.is(1)) {
      return no_form(cat("sizes that fit together are required; found ", size_text(a),
                         " and ", size_text(b)));
    }
    result[i] = x.is(1) ? y : x;
  }
  return result;
}

Result<Grid> expand(const Grid& data, const Sizes& to) {
  NIBBLE_ASSIGN_OR_RETURN(Sizes dims, broadcast(data.dims, to));
  if (data.elements.size() > 1 && dims == data.dims) return data;
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  const size_t more = dims.size() - data.dims.size();
  std::vector<FormulaPtr> places;
  for (size_t i = 0; i < data.dims.size(); ++i) {
    places.push_back(place_formula(i + more, data.dims[i]));
  }
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr moved, placed(formula, places));
  return grid_of(std::move(dims), std::move(moved), data.is_integer);
}

Result<Grid> elementwise(const std::string& op, const std::vector<Grid>& inputs) {
  Sizes dims;
  size_t count = 1;
  bool is_explicit = true, is_integer = true;
  for (const Grid& input : inputs) {
    NIBBLE_ASSIGN_OR_RETURN(dims, broadcast(dims, input.dims));
    is_explicit = is_explicit && !input.elements.empty();
    count = std::max(count, input.elements.size());
    is_integer = is_integer && input.is_integer;
  }
  for (const Grid& input : inputs) {
    is_explicit =
        is_explicit && (input.elements.size() == count || input.elements.size() == 1);
  }
  const std::string name = op == "Div" && is_integer ? "IntDiv" : op;
  Grid result;
  result.dims = dims;
  result.is_integer = is_integer;
  if (op == "Where") result.is_integer = inputs[1].is_integer;
  if (is_explicit) {
    for (size_t i = 0; i < count; ++i) {
      std::vector<FormulaPtr> arguments;
      for (const Grid& input : inputs) {
        arguments.push_back(input.elements[input.elements.size() == 1 ? 0 : i]);
      }
      NIBBLE_ASSIGN_OR_RETURN(FormulaPtr element,
                              call_formula(name, std::move(arguments)));
      result.elements.push_back(std::move(element));
    }
    return result;
  }
  std::vector<FormulaPtr> arguments;
  for (const Grid& input : inputs) {
    NIBBLE_ASSIGN_OR_RETURN(const Grid wide, expand(input, dims));
    NIBBLE_ASSIGN_OR_RETURN(FormulaPtr argument, formula_of(wide));
    arguments.push_back(std::move(argument));
  }
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr formula, call_formula(name, std::move(arguments)));
  return grid_of(dims, std::move(formula), result.is_integer);
}

Result<Grid> transpose(const Grid& data, const std::vector<int64_t>& order) {
  const size_t rank = data.dims.size();
  Sizes dims;
  std::vector<FormulaPtr> places(rank);
  for (size_t i = 0; i < rank; ++i) {
    const auto from = i < order.size() ? static_cast<size_t>(order[i]) : rank;
    if (order.size() != rank || from >= rank || places[from]) {
      return no_form("an order of all dimensions is required; found another");
    }
    dims.push_back(data.dims[from]);
    places[from] = place_formula(i, data.dims[from]);
  }
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr moved, placed(formula, places));
  return grid_of(std::move(dims), std::move(moved), data.is_integer);
}

Result<Sizes> reshaped_sizes(const Sizes& from, const Sizes& to, bool zero_copies) {
  Sizes dims = to;
  int open = -1;
  Size known{1, 0, 0};
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i].is(0) && zero_copies && i < from.size()) dims[i] = from[i];
    if (dims[i].is(-1)) {
      if (open >= 0) return no_form("one open size at most is required; found two");
      open = static_cast<int>(i);
    } else {
      known = product({known, dims[i]});
    }
  }
  const Size all = product(from);
  if (open >= 0) {
    const std::optional<Size> rest = quotient(all, known);
    if (!rest) {
      return no_form(cat("a shape of as many elements is required; found ", size_text(to),
                         " of ", size_text(from)));
    }
    dims[static_cast<size_t>(open)] = *rest;
  } else if (!(known == all)) {
    return no_form(cat("a shape of as many elements is required; found ", size_text(to),
                       " of ", size_text(from)));
  }
  return dims;
}

Result<Grid> reshape(const Grid& data, const Sizes& to) {
  if (!data.elements.empty()) {
    Grid result = data;
    result.dims = to;
    return result;
  }
  if (!(product(data.dims) == product(to))) {
    return no_form(cat("as many elements are required; found ", size_text(data.dims),
                       " and ", size_text(to)));
  }
  // The place among all elements, and what it is along each of the old dimensions.
  FormulaPtr all = number_formula(0);
  Size stride{1, 0, 0};
  for (size_t i = to.size(); i-- > 0;) {
    NIBBLE_ASSIGN_OR_RETURN(
        const FormulaPtr one,
        call_formula("Mul", {place_formula(i, to[i]), size_formula(stride)}));
    NIBBLE_ASSIGN_OR_RETURN(all, call_formula("Add", {all, one}));
    stride = product({stride, to[i]});
  }
  std::vector<FormulaPtr> places(data.dims.size());
  stride = {1, 0, 0};
  for (size_t i = data.dims.size(); i-- > 0;) {
    places[i] = number_formula(0);
    if (data.dims[i].is(1)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr rows,
                            call_formula("IntDiv", {all, size_formula(stride)}));
    NIBBLE_ASSIGN_OR_RETURN(places[i],
                            call_formula("Mod", {rows, size_formula(data.dims[i])}));
    stride = product({stride, data.dims[i]});
  }
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr moved, placed(data.formula, places));
  return grid_of(to, std::move(moved), data.is_integer);
}

Result<Grid> gather(const Grid& data, const Grid& indices_grid, int64_t axis) {
  if (axis < 0) axis += static_cast<int64_t>(data.dims.size());
  if (axis < 0 || axis >= static_cast<int64_t>(data.dims.size())) {
    return no_form("an axis of the data is required; found another");
  }
  const auto at = static_cast<size_t>(axis);
  const size_t more = indices_grid.dims.size();
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr index, formula_of(indices_grid));
  std::vector<FormulaPtr> own, places;
  for (size_t i = 0; i < more; ++i) {
    own.push_back(place_formula(at + i, indices_grid.dims[i]));
  }
  NIBBLE_ASSIGN_OR_RETURN(index, placed(index, own));
  if (is_number(index) && index->number < 0) {
    NIBBLE_ASSIGN_OR_RETURN(index,
                            call_formula("Add", {index, size_formula(data.dims[at])}));
  }
  Sizes dims;
  for (size_t i = 0; i < data.dims.size(); ++i) {
    if (i == at) {
      dims.insert(dims.end(), indices_grid.dims.begin(), indices_grid.dims.end());
      places.push_back(index);
    } else {
      dims.push_back(data.dims[i]);
      places.push_back(place_formula(i < at ? i : i - 1 + more, data.dims[i]));
    }
  }
  if (data.elements.size() > 1 && data.dims.size() == 1 &&
      !indices_grid.elements.empty()) {
    Grid result;  // some of some sizes stay elements
    result.dims = dims;
    result.is_integer = data.is_integer;
    for (const FormulaPtr& element : indices_grid.elements) {
      NIBBLE_ASSIGN_OR_RETURN(FormulaPtr picked, placed(formula, {element}));
      result.elements.push_back(std::move(picked));
    }
    return result;
  }
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr picked, placed(formula, places));
  return grid_of(std::move(dims), std::move(picked), data.is_integer);
}

Result<Grid> gather_elements(const Grid& data, const Grid& indices_grid, int64_t axis) {
  if (axis < 0) axis += static_cast<int64_t>(data.dims.size());
  if (axis < 0 || axis >= static_cast<int64_t>(data.dims.size()) ||
      indices_grid.dims.size() != data.dims.size()) {
    return no_form("indices of the data's dimensions are required; found others");
  }
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr index, formula_of(indices_grid));
  std::vector<FormulaPtr> places = places_of(indices_grid.dims);
  for (size_t i = 0; i < places.size(); ++i) {
    if (data.dims[i].is(1)) places[i] = number_formula(0);
  }
  places[static_cast<size_t>(axis)] = index;
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr picked, placed(formula, places));
  return grid_of(indices_grid.dims, std::move(picked), data.is_integer);
}

Result<Grid> gather_nd(const Grid& data, const Grid& indices_grid) {
  const size_t rank = indices_grid.dims.size();
  if (rank == 0 || !indices_grid.dims.back().is_number() ||
      indices_grid.dims.back().factor > static_cast<int64_t>(data.dims.size())) {
    return no_form("places of a known rank are required; found others");
  }
  const auto count = static_cast<size_t>(indices_grid.dims.back().factor);
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr index, formula_of(indices_grid));
  Sizes dims(indices_grid.dims.begin(), indices_grid.dims.end() - 1);
  std::vector<FormulaPtr> places;
  for (size_t i = 0; i < data.dims.size(); ++i) {
    if (i >= count) {
      places.push_back(place_formula(rank - 1 + i - count, data.dims[i]));
      dims.push_back(data.dims[i]);
      continue;
    }
    std::vector<FormulaPtr> at = places_of(indices_grid.dims);
    at.back() = number_formula(static_cast<double>(i));
    NIBBLE_ASSIGN_OR_RETURN(FormulaPtr place, placed(index, at));
    places.push_back(std::move(place));
  }
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr picked, placed(formula, places));
  return grid_of(std::move(dims), std::move(picked), data.is_integer);
}

Result<Grid> slice(const Grid& data, int64_t axis, const FormulaPtr& start,
                   const FormulaPtr& end, int64_t step) {
  if (axis < 0) axis += static_cast<int64_t>(data.dims.size());
  // Exporters write the ends of int64 for the ends of an array.
  const bool from_begin = is_number(start) && start->number < -kFar;
  const std::optional<Size> from = from_begin ? Size{0, 0, 0} : size_of(start);
  if (axis < 0 || axis >= static_cast<int64_t>(data.dims.size()) || step != 1 || !from ||
      !from->is_number()) {
    return no_form("a slice of step 1 from a known place is required; found another");
  }
  const Size& size = data.dims[static_cast<size_t>(axis)];
  int64_t first = from->factor;
  if (first < 0 && size.is_number()) first = std::max<int64_t>(0, first + size.factor);
  const bool to_end = is_number(end) && end->number >= kFar;
  Size last = size;
  if (!to_end) {
    const std::optional<Size> stop = size_of(end);
    if (!stop) return no_form("a slice's end must be a size; found another formula");
    last = *stop;
    if (last.is_number() && last.factor < 0 && size.is_number())
      last.factor += size.factor;
    if (last.is_number() && size.is_number())
      last.factor = std::min(last.factor, size.factor);
  }
  const bool alike = first == 0 || last.is_number();
  if (first < 0 || !alike || last.factor < first) {
    return no_form("a slice between known places is required; found another");
  }
  if (first > 0) last.factor -= first;
  Grid result = data;
  result.dims[static_cast<size_t>(axis)] = last;
  if (data.elements.size() > 0 && data.dims.size() == 1 && last.is_number()) {
    result.elements.assign(data.elements.begin() + first,
                           data.elements.begin() + first + last.factor);
    return result;
  }
  NIBBLE_ASSIGN_OR_RETURN(const FormulaPtr formula, formula_of(data));
  std::vector<FormulaPtr> places = places_of(result.dims);
  NIBBLE_ASSIGN_OR_RETURN(
      places[static_cast<size_t>(axis)],
      call_formula("Add", {places[static_cast<size_t>(axis)],
                           number_formula(static_cast<double>(first))}));
  NIBBLE_ASSIGN_OR_RETURN(FormulaPtr moved, placed(formula, places));
  return grid_of(result.dims, std::move(moved), data.is_integer);
}

Result<Grid> concatenate(const std::vector<Grid>& inputs, int64_t axis) {
  const size_t rank = inputs[0].dims.size();
  if (axis < 0) axis += static_cast<int64_t>(rank);
  bool flat = rank == 1, ones = true;
  for (const Grid& input : inputs) {
    flat = flat && input.dims.size() == 1 &&
           (!input.elements.empty() || product(input.dims).is(0));
    ones = ones && input.dims.size() == rank && axis >= 0 &&
           axis < static_cast<int64_t>(rank) &&
           input.dims[static_cast<size_t>(axis)].is(1);
  }
  Grid result;
  result.is_integer = inputs[0].is_integer;
  if (flat) {
    for (const Grid& input : inputs) {
      result.elements.insert(result.elements.end(), input.elements.begin(),
                             input.elements.end());
    }
    if (result.elements.size() > static_cast<size_t>(kFormulaParts)) {
      return no_form("a shape of few sizes is required; found many");
    }
    result.dims = {{static_cast<int64_t>(result.elements.size()), 0, 0}};
    return result;
  }
  if (!ones) return no_form("parts of size 1 along the axis are required; found others");
  std::vector<FormulaPtr> parts;
  for (const Grid& input : inputs) {
    NIBBLE_ASSIGN_OR_RETURN(FormulaPtr part, formula_of(input));
    parts.push_back(std::move(part));
  }
  const Size count{static_cast<int64_t>(inputs.size()), 0, 0};
  Sizes dims = inputs[0].dims;
  dims[static_cast<size_t>(axis)] = count;
  NIBBLE_ASSIGN_OR_RETURN(
      FormulaPtr choice,
      choice_formula(place_formula(static_cast<size_t>(axis), count), parts));
  return grid_of(std::move(dims), std::move(choice), result.is_integer);
}

Result<Grid> range(const Grid& start, const Grid& limit, const Grid& step) {
  const std::optional<double> by = number_in(step), from = number_in(start);
  const std::optional<Sizes> to = sizes_in(limit);
  if (!by || *by != 1 || !from || *from != 0 || !to || to->size() != 1) {
    return no_form("a range from 0 by 1 to a size is required; found another");
  }
  return grid_of({(*to)[0]}, place_formula(0, to->front()), true);
}

}  // namespace nibble::symbolic
