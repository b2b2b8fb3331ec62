#include "export/onnx/formula.h"

#include <cmath>
#include <limits>
#include <map>

namespace nibble::symbolic {

bool is_number(const FormulaPtr& f) { return f->kind == Formula::Kind::number; }

namespace {

constexpr double kMostElements = 1e15;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

FormulaPtr make(Formula formula) {
  formula.parts = 1;
  for (const FormulaPtr& argument : formula.arguments) formula.parts += argument->parts;
  return std::make_shared<const Formula>(std::move(formula));
}

bool is_number(const FormulaPtr& f, double value) {
  return is_number(f) && f->number == value;
}

Status no_form(const std::string& what) { return error(StatusCode::unsupported, what); }

std::optional<double> computed(const std::string& op, const std::vector<double>& a) {
  const auto truth = [](bool value) { return value ? 1.0 : 0.0; };
  if (a.size() == 1) {
    if (op == "Neg") return -a[0];
    if (op == "Abs") return std::abs(a[0]);
    if (op == "Sqrt") return std::sqrt(a[0]);
    if (op == "Not") return truth(a[0] == 0);
    if (op == "Bool") return truth(a[0] != 0);
    if (op == "Truncate") return std::trunc(a[0]);
    if (op == "IsNaN") return truth(std::isnan(a[0]));
  }
  if (a.size() == 2) {
    if (op == "Add") return a[0] + a[1];
    if (op == "Sub") return a[0] - a[1];
    if (op == "Mul") return a[0] * a[1];
    if (op == "Div") return a[0] / a[1];
    if (op == "IntDiv") {
      if (a[1] == 0) return {};
      return std::trunc(a[0] / a[1]);
    }
    if (op == "Mod") {
      if (!(a[0] >= 0 && a[1] > 0)) return {};
      return std::fmod(a[0], a[1]);
    }
    if (op == "Pow") return std::pow(a[0], a[1]);
    if (op == "Max") return std::max(a[0], a[1]);
    if (op == "Min") return std::min(a[0], a[1]);
    if (op == "Equal") return truth(a[0] == a[1]);
    if (op == "Less") return truth(a[0] < a[1]);
    if (op == "And") return truth(a[0] != 0 && a[1] != 0);
    if (op == "Or") return truth(a[0] != 0 || a[1] != 0);
    if (op == "Xor") return truth((a[0] != 0) != (a[1] != 0));
  }
  if (a.size() == 3 && op == "Where") return a[0] != 0 ? a[1] : a[2];
  return {};
}

// What a formula cannot be less than, or more than.
double lowest(const FormulaPtr& f) {
  if (is_number(f)) return f->number;
  if (f->kind == Formula::Kind::size) return 1;
  return f->kind == Formula::Kind::index ? 0 : -kInfinity;
}
double highest(const FormulaPtr& f) { return is_number(f) ? f->number : kInfinity; }

// Sums and products of sizes, where they are sizes again.
std::optional<FormulaPtr> of_sizes(const std::string& op, const FormulaPtr& a,
                                   const FormulaPtr& b) {
  const std::optional<Size> x = size_of(a), y = size_of(b);
  if (!x || !y) return {};
  const bool alike = x->batch == y->batch && x->sequence == y->sequence;
  const auto small = [](const Size& s) {
    return std::abs(s.factor) < (int64_t{1} << 31);
  };
  if (!small(*x) || !small(*y)) return {};
  if (op == "Add" && alike)
    return size_formula({x->factor + y->factor, x->batch, x->sequence});
  if (op == "Sub" && alike)
    return size_formula({x->factor - y->factor, x->batch, x->sequence});
  if (op == "Mul") return size_formula(product({*x, *y}));
  if (op == "Div" || op == "IntDiv") {
    const std::optional<Size> q = quotient(*x, *y);
    if (q) return size_formula(*q);
  }
  return {};
}

// A sum of places and sizes, each times a size; base null: a size alone.
struct Term {
  FormulaPtr base;
  Size coefficient;
};
void add_terms(const FormulaPtr& f, const Size& times, std::vector<Term>& terms) {
  if (const std::optional<Size> size = size_of(f)) {
    if (!size->is(0)) terms.push_back({nullptr, product({*size, times})});
    return;
  }
  if (f->kind == Formula::Kind::call && f->name == "Add") {
    for (const FormulaPtr& argument : f->arguments) add_terms(argument, times, terms);
    return;
  }
  if (f->kind == Formula::Kind::call && f->name == "Mul") {
    for (size_t i = 0; i < 2; ++i) {
      const std::optional<Size> size = size_of(f->arguments[i]);
      if (size) return add_terms(f->arguments[1 - i], product({*size, times}), terms);
    }
  }
  terms.push_back({f, times});
}

FormulaPtr sum_of(const std::vector<Term>& terms) {
  FormulaPtr sum = number_formula(0);
  for (const Term& term : terms) {
    const FormulaPtr size = size_formula(term.coefficient);
    const Result<FormulaPtr> one = term.base == nullptr
                                       ? Result<FormulaPtr>(size)
                                       : call_formula("Mul", {term.base, size});
    if (!one.ok()) return nullptr;
    const Result<FormulaPtr> all = call_formula("Add", {sum, *one});
    if (!all.ok()) return nullptr;
    sum = *all;
  }
  return sum;
}

// Places with coefficients as digits have them: their sum is below `limit`.
bool is_below(std::vector<Term> digits, const Size& limit) {
  Size bound{1, 0, 0};
  while (!digits.empty()) {
    size_t next = 0;
    while (next < digits.size() && !quotient(digits[next].coefficient, bound)) ++next;
    for (size_t i = 0; i < digits.size(); ++i) {
      if (digits[i].coefficient == bound) next = i;
    }
    if (next == digits.size()) return false;
    const Term digit = digits[next];
    if (digit.base == nullptr || digit.base->kind != Formula::Kind::index) return false;
    bound = product({digit.coefficient, digit.base->size});
    digits.erase(digits.begin() + static_cast<std::ptrdiff_t>(next));
  }
  return quotient(limit, bound).has_value();
}

// a / n or a mod n of a sum of places; null where it cannot be taken apart.
FormulaPtr divided(const FormulaPtr& a, const FormulaPtr& n, bool quotient_wanted) {
  const std::optional<Size> divisor = size_of(n);
  if (!divisor || divisor->factor < 1) return nullptr;
  std::vector<Term> terms, whole, rest;
  add_terms(a, {1, 0, 0}, terms);
  for (Term& term : terms) {
    if (term.coefficient.factor < 0) return nullptr;
    const std::optional<Size> part = quotient(term.coefficient, *divisor);
    if (part) {
      whole.push_back({term.base, *part});
    } else {
      rest.push_back(term);
    }
  }
  if (!is_below(rest, *divisor)) return nullptr;
  for (const Term& term : whole) {
    if (term.base != nullptr && term.base->kind != Formula::Kind::index) return nullptr;
  }
  return sum_of(quotient_wanted ? whole : rest);
}

// A formula that needs no operator; null where it does.
FormulaPtr simplified(const std::string& op, const std::vector<FormulaPtr>& a) {
  if (a.size() == 2 && (op == "Add" || op == "Sub") && is_number(a[1], 0)) return a[0];
  if (a.size() == 2 && op == "Add" && is_number(a[0], 0)) return a[1];
  if (a.size() == 2 && (op == "Mul" || op == "Div" || op == "IntDiv") &&
      is_number(a[1], 1)) {
    return a[0];
  }
  if (a.size() == 2 && op == "Mul" && is_number(a[0], 1)) return a[1];
  if (a.size() == 2) {
    if (const auto size = of_sizes(op, a[0], a[1])) return *size;
  }
  if (op == "IntDiv" || op == "Mod") {
    if (FormulaPtr part = divided(a[0], a[1], op == "IntDiv")) return part;
  }
  if (op == "Less") {
    if (lowest(a[0]) >= highest(a[1])) return number_formula(0);
    if (highest(a[0]) < lowest(a[1])) return number_formula(1);
  }
  if (op == "Equal") {
    if (highest(a[0]) < lowest(a[1]) || lowest(a[0]) > highest(a[1]))
      return number_formula(0);
    if (same(a[0], a[1])) return number_formula(1);
  }
  if (op == "And" || op == "Or") {
    const double neutral = op == "And" ? 1 : 0;
    for (int i = 0; i < 2; ++i) {
      if (!is_number(a[static_cast<size_t>(i)])) continue;
      const bool truth = a[static_cast<size_t>(i)]->number != 0;
      if ((truth ? 1.0 : 0.0) != neutral) return number_formula(1 - neutral);
      return simplified("Bool", {a[static_cast<size_t>(1 - i)]});
    }
    if (same(a[0], a[1])) return simplified("Bool", {a[0]});
  }
  if (op == "Where") {
    if (is_number(a[0])) return a[0]->number != 0 ? a[1] : a[2];
    if (same(a[1], a[2])) return a[1];
  }
  if (op == "Truncate" &&
      (a[0]->kind == Formula::Kind::size || a[0]->kind == Formula::Kind::index ||
       a[0]->kind == Formula::Kind::input)) {
    return a[0];
  }
  if (op == "Bool") {
    static const char* kTruths[] = {"Equal", "Less", "And", "Or",
                                    "Not",   "Bool", "Xor", "IsNaN"};
    for (const char* name : kTruths) {
      if (a[0]->kind == Formula::Kind::call && a[0]->name == name) return a[0];
    }
    Formula call;
    call.kind = Formula::Kind::call;
    call.name = op;
    call.arguments = a;
    return make(std::move(call));
  }
  return nullptr;
}

double table_value(const Formula& table, const std::vector<FormulaPtr>& place,
                   bool* inside) {
  int64_t at = 0;
  for (size_t i = 0; i < place.size(); ++i) {
    *inside = *inside && std::abs(place[i]->number) < kMostElements;
    if (!*inside) return 0;
    int64_t index = static_cast<int64_t>(place[i]->number);
    if (index < 0) index += table.table_dims[i];
    *inside = *inside && index >= 0 && index < table.table_dims[i];
    if (!*inside) return 0;
    at = at * table.table_dims[i] + index;
  }
  return (*table.values)[static_cast<size_t>(at)];
}

// The formula with every index(axis) being places[axis].
Result<FormulaPtr> placed(const FormulaPtr& f, const std::vector<FormulaPtr>& places,
                          std::map<const Formula*, FormulaPtr>& done) {
  if (f->kind == Formula::Kind::number || f->kind == Formula::Kind::size) return f;
  if (f->kind == Formula::Kind::index) return places.at(static_cast<size_t>(f->axis));
  const auto found = done.find(f.get());
  if (found != done.end()) return found->second;
  FormulaPtr result;
  if (f->kind == Formula::Kind::choice) {
    NIBBLE_ASSIGN_OR_RETURN(FormulaPtr which, placed(f->arguments[0], places, done));
    const auto count = static_cast<double>(f->arguments.size() - 1);
    if (is_number(which)) {
      const double value = which->number < 0 ? which->number + count : which->number;
      if (!(value >= 0 && value < count))
        return no_form("an index must lie inside; found another");
      NIBBLE_ASSIGN_OR_RETURN(
          result, placed(f->arguments[1 + static_cast<size_t>(value)], places, done));
      return done[f.get()] = result;
    }
    Formula copy = *f;
    copy.arguments[0] = which;
    for (size_t i = 1; i < copy.arguments.size(); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(copy.arguments[i], placed(f->arguments[i], places, done));
    }
    result = make(std::move(copy));
  } else {
    Formula copy = *f;
    bool known = true;
    for (FormulaPtr& argument : copy.arguments) {
      NIBBLE_ASSIGN_OR_RETURN(argument, placed(argument, places, done));
      known = known && is_number(argument);
    }
    if (f->kind == Formula::Kind::call) {
      NIBBLE_ASSIGN_OR_RETURN(result, call_formula(copy.name, copy.arguments));
    } else if (f->kind == Formula::Kind::table && known) {
      bool inside = true;
      const double value = table_value(copy, copy.arguments, &inside);
      if (!inside)
        return no_form("an index must lie inside a constant; found one outside");
      result = number_formula(value);
    } else {
      result = make(std::move(copy));
    }
  }
  if (result->parts > kFormulaParts)
    return no_form("a formula of bounded length is required");
  return done[f.get()] = result;
}
}  // namespace

Size product(const Sizes& sizes) {
  Size result{1, 0, 0};
  for (const Size& size : sizes) {
    // Larger than any array: it fits nothing, and does not overflow.
    if (__builtin_mul_overflow(result.factor, size.factor, &result.factor)) {
      result.factor = std::numeric_limits<int64_t>::max();
    }
    result.batch += size.batch;
    result.sequence += size.sequence;
  }
  return result;
}

std::optional<Size> quotient(const Size& a, const Size& b) {
  if (b.factor == 0 || a.factor % b.factor != 0 || a.batch < b.batch ||
      a.sequence < b.sequence) {
    return {};
  }
  return Size{a.factor / b.factor, a.batch - b.batch, a.sequence - b.sequence};
}

std::string size_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Size& s = sizes[i];
    std::string one = s.factor == 1 && !s.is_number() ? "" : std::to_string(s.factor);
    for (int k = 0; k < s.batch; ++k) one += one.empty() ? "batch" : " batch";
    for (int k = 0; k < s.sequence; ++k) one += one.empty() ? "sequence" : " sequence";
    text += cat(i == 0 ? "" : ", ", one);
  }
  return text + "]";
}

FormulaPtr number_formula(double value) {
  Formula f;
  f.number = value;
  return make(std::move(f));
}
FormulaPtr size_formula(const Size& size) {
  if (size.is_number() || size.factor == 0) {
    return number_formula(static_cast<double>(size.factor));
  }
  Formula f;
  f.kind = Formula::Kind::size;
  f.size = size;
  return make(std::move(f));
}
FormulaPtr place_formula(size_t axis, const Size& extent) {
  if (extent.is(1)) return number_formula(0);
  Formula f;
  f.kind = Formula::Kind::index;
  f.axis = static_cast<int>(axis);
  f.size = extent;
  return make(std::move(f));
}
FormulaPtr input_formula(const std::string& name, const Sizes& dims) {
  Formula f;
  f.kind = Formula::Kind::input;
  f.name = name;
  f.arguments = places_of(dims);
  return make(std::move(f));
}

Result<FormulaPtr> call_formula(const std::string& op,
                                std::vector<FormulaPtr> arguments) {
  std::vector<double> numbers;
  for (const FormulaPtr& argument : arguments) {
    if (is_number(argument)) numbers.push_back(argument->number);
  }
  if (numbers.size() == arguments.size()) {
    const std::optional<double> value = computed(op, numbers);
    if (value) return number_formula(*value);
  }
  if (FormulaPtr simple = simplified(op, arguments)) return simple;
  Formula f;
  f.kind = Formula::Kind::call;
  f.name = op;
  f.arguments = std::move(arguments);
  FormulaPtr result = make(std::move(f));
  if (result->parts > kFormulaParts)
    return no_form("a formula of bounded length is required");
  return result;
}

std::optional<Size> size_of(const FormulaPtr& f) {
  if (f->kind == Formula::Kind::size) return f->size;
  if (is_number(f) && std::abs(f->number) < 9e15 && f->number == std::trunc(f->number)) {
    return Size{static_cast<int64_t>(f->number), 0, 0};
  }
  return {};
}

bool same(const FormulaPtr& a, const FormulaPtr& b) {
  if (a == b) return true;
  if (a->kind != b->kind || a->parts != b->parts || a->name != b->name ||
      a->axis != b->axis || a->number != b->number || !(a->size == b->size) ||
      a->values != b->values || a->arguments.size() != b->arguments.size()) {
    return false;
  }
  for (size_t i = 0; i < a->arguments.size(); ++i) {
    if (!same(a->arguments[i], b->arguments[i])) return false;
  }
  return true;
}

Result<FormulaPtr> placed(const FormulaPtr& f, const std::vector<FormulaPtr>& places) {
  std::map<const Formula*, FormulaPtr> done;
  return placed(f, places, done);
}

std::vector<FormulaPtr> places_of(const Sizes& dims) {
  std::vector<FormulaPtr> result;
  for (size_t i = 0; i < dims.size(); ++i) result.push_back(place_formula(i, dims[i]));
  return result;
}

FormulaPtr table_formula(std::vector<double> values, const std::vector<int64_t>& dims) {
  Formula table;
  table.kind = Formula::Kind::table;
  table.values = std::make_shared<const std::vector<double>>(std::move(values));
  table.table_dims = dims;
  for (size_t i = 0; i < dims.size(); ++i) {
    table.arguments.push_back(place_formula(i, {dims[i], 0, 0}));
  }
  return make(std::move(table));
}

Result<FormulaPtr> choice_formula(const FormulaPtr& which,
                                  const std::vector<FormulaPtr>& parts) {
  Formula choice;
  choice.kind = Formula::Kind::choice;
  choice.arguments = {which};
  choice.arguments.insert(choice.arguments.end(), parts.begin(), parts.end());
  FormulaPtr result = make(std::move(choice));
  if (result->parts > kFormulaParts)
    return no_form("a formula of bounded length is required");
  return result;
}

std::optional<double> value_with(const FormulaPtr& f, const std::string& input,
                                 const std::vector<FormulaPtr>& place, double value) {
  if (is_number(f)) return f->number;
  if (f->kind == Formula::Kind::input) {
    if (f->name != input || f->arguments.size() != place.size()) return {};
    for (size_t i = 0; i < place.size(); ++i) {
      if (!same(f->arguments[i], place[i])) return {};
    }
    return value;
  }
  if (f->kind != Formula::Kind::call) return {};
  std::vector<double> arguments;
  for (const FormulaPtr& argument : f->arguments) {
    const std::optional<double> item = value_with(argument, input, place, value);
    if (!item) return {};
    arguments.push_back(*item);
  }
  return computed(f->name, arguments);
}

}  // namespace nibble::symbolic
