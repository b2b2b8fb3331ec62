// The operators of shape and mask sub-graphs, folded.
#include "export/onnx/import_encoder_graph.h"
#include "onnx.pb.h"

namespace nibble {

using symbolic::FormulaPtr;
using symbolic::Grid;
using symbolic::Size;
using symbolic::Sizes;

namespace {

constexpr int64_t kFewElements = 64;  // of an array that is written down one by one

Status no_form(const std::string& what) { return error(StatusCode::unsupported, what); }

// The elements of the list that a node's input is.
Result<std::vector<FormulaPtr>> listed(const Grid& grid) {
  if (!grid.elements.empty() || symbolic::product(grid.dims).is(0)) return grid.elements;
  return no_form("a list of few elements is required; found an array");
}

Result<Grid> negated(Result<Grid> grid) {
  if (!grid.ok()) return grid;
  return symbolic::elementwise("Not", {*grid});
}

// Dimensions without those of 1 at these axes (all of them where none are given), or
// with.
Result<Sizes> squeezed(const Sizes& dims, std::optional<std::vector<int64_t>> axes) {
  Sizes result;
  const auto rank = static_cast<int64_t>(dims.size());
  for (int64_t i = 0; i < rank; ++i) {
    bool drop = !axes && dims[static_cast<size_t>(i)].is(1);
    for (const int64_t axis : axes.value_or(std::vector<int64_t>{})) {
      drop = drop || axis == i || axis == i - rank;
    }
    if (drop && !dims[static_cast<size_t>(i)].is(1)) {
      return no_form("sizes of 1 are required; found others");
    }
    if (!drop) result.push_back(dims[static_cast<size_t>(i)]);
  }
  return result;
}
Result<Sizes> unsqueezed(const Sizes& dims, const std::vector<int64_t>& axes) {
  const auto rank = static_cast<int64_t>(dims.size() + axes.size());
  std::vector<bool> fresh(static_cast<size_t>(rank));
  for (int64_t axis : axes) {
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return no_form("axes of the result are required");
    fresh[static_cast<size_t>(axis)] = true;
  }
  Sizes result;
  size_t next = 0;
  for (size_t i = 0; i < fresh.size(); ++i) {
    if (!fresh[i] && next == dims.size()) return no_form("different axes are required");
    result.push_back(fresh[i] ? Size{1, 0, 0} : dims[next++]);
  }
  return result;
}

}  // namespace

std::optional<Grid> EncoderImport::grid_in(const NodeProto& node, int i) const {
  if (!has_input(node, i)) return {};
  const Item& item = in(node, i);
  if (item.form == Form::grid) return item.grid;
  if (item.form != Form::constant || item.turned) return {};
  const Tensor& tensor = constants_.at(item.weight);
  if (tensor.numel() != 1) return {};
  const Result<std::vector<float>> values = to_float(tensor);
  if (!values.ok()) return {};
  return symbolic::constant_grid(
      tensor.shape, std::vector<double>(values->begin(), values->end()), false);
}

Status EncoderImport::fold_shape(const NodeProto& node) {
  if (!has_input(node, 0)) return refuse(node, "needs an input 0; found none");
  const Item& item = in(node, 0);
  if (!item.dims) return refuse(node, "needs a value of known sizes; found another");
  const auto rank = static_cast<int64_t>(item.dims->size());
  const auto within = [rank](int64_t at) {
    return std::min(rank, std::max<int64_t>(0, at < 0 ? at + rank : at));
  };
  const int64_t start = within(integer(node, "start", 0)),
                end = within(integer(node, "end", rank));
  Item result;
  result.form = Form::grid;
  result.grid = symbolic::shape_grid(
      start < end ? Sizes(item.dims->begin() + start, item.dims->begin() + end)
                  : Sizes{});
  result.dims = result.grid.dims;
  return set(node, std::move(result));
}

Result<Grid> EncoderImport::folded(const NodeProto& node,
                                   const std::vector<Grid>& inputs) {
  const std::string& op = node.op_type();
  const Grid& x = inputs[0];
  const auto second = [&](const char* what) -> Result<Grid> {
    if (inputs.size() > 1) return inputs[1];
    return no_form(cat(what, " is required; found none"));
  };
  static const std::map<std::string, size_t> kElementwise = {
      {"Not", 1}, {"Neg", 1}, {"Abs", 1}, {"Sqrt", 1}, {"Add", 2},  {"Sub", 2},
      {"Mul", 2}, {"Div", 2}, {"Pow", 2}, {"Max", 2},  {"Min", 2},  {"Equal", 2},
      {"And", 2}, {"Or", 2},  {"Xor", 2}, {"Less", 2}, {"Where", 3}};
  static const std::set<std::string> kTurned = {"Greater", "GreaterOrEqual",
                                                "LessOrEqual"};
  const auto row = kElementwise.find(op);
  const bool turned = kTurned.count(op) > 0;
  if (inputs.size() != (row != kElementwise.end() ? row->second
                        : turned                  ? 2
                                                  : inputs.size())) {
    return no_form(
        cat("as many inputs as the operator has are required; found ", inputs.size()));
  }
  if (row != kElementwise.end()) return symbolic::elementwise(op, inputs);
  if (op == "GreaterOrEqual") return negated(symbolic::elementwise("Less", inputs));
  if (turned) {
    const Result<Grid> less = symbolic::elementwise("Less", {inputs[1], x});
    return op == "Greater" ? less : negated(less);
  }
  if (op == "Identity") return x;
  if (op == "Cast") {
    const int64_t to = integer(node, "to", 0);
    if (to == onnx::TensorProto::BOOL) return symbolic::elementwise("Bool", {x});
    const bool whole = to == onnx::TensorProto::INT64 || to == onnx::TensorProto::INT32;
    NIBBLE_ASSIGN_OR_RETURN(Grid result, whole && !x.is_integer
                                             ? symbolic::elementwise("Truncate", {x})
                                             : Result<Grid>(x));
    result.is_integer = whole;
    return result;
  }
  if (op == "Gather") {
    NIBBLE_ASSIGN_OR_RETURN(const Grid indices, second("indices"));
    return symbolic::gather(x, indices, integer(node, "axis", 0));
  }
  if (op == "GatherElements") {
    NIBBLE_ASSIGN_OR_RETURN(const Grid indices, second("indices"));
    return symbolic::gather_elements(x, indices, integer(node, "axis", 0));
  }
  if (op == "GatherND" && integer(node, "batch_dims", 0) == 0) {
    NIBBLE_ASSIGN_OR_RETURN(const Grid indices, second("indices"));
    return symbolic::gather_nd(x, indices);
  }
  if (op == "Concat") return symbolic::concatenate(inputs, integer(node, "axis", 0));
  if (op == "Range" && inputs.size() == 3)
    return symbolic::range(x, inputs[1], inputs[2]);
  if (op == "Transpose") {
    std::vector<int64_t> order;
    const auto* perm = attribute(node, "perm");
    for (size_t i = 0; i < x.dims.size(); ++i) {
      order.push_back(perm != nullptr && static_cast<int>(i) < perm->ints_size()
                          ? perm->ints(static_cast<int>(i))
                          : static_cast<int64_t>(x.dims.size() - 1 - i));
    }
    return symbolic::transpose(x, order);
  }
  if (op == "Unsqueeze" || op == "Squeeze") {
    const auto axes = integers_at(node, "axes", 1);
    const bool given = has_input(node, 1) || attribute(node, "axes") != nullptr;
    if (given ? !axes : op == "Unsqueeze") return no_form("constant axes are required");
    NIBBLE_ASSIGN_OR_RETURN(
        Sizes dims, op == "Squeeze" ? squeezed(x.dims, axes) : unsqueezed(x.dims, *axes));
    return symbolic::reshape(x, dims);
  }
  if (op == "Reshape" || op == "Expand" || op == "ConstantOfShape") {
    const size_t at = op == "ConstantOfShape" ? 0 : 1;
    if (inputs.size() <= at) return no_form("a shape is required; found none");
    const std::optional<Sizes> to = symbolic::sizes_in(inputs[at]);
    if (!to) return no_form("a shape of sizes is required; found other elements");
    if (op == "Expand") return symbolic::expand(x, *to);
    if (op == "Reshape") {
      NIBBLE_ASSIGN_OR_RETURN(
          const Sizes dims,
          symbolic::reshaped_sizes(x.dims, *to, integer(node, "allowzero", 0) == 0));
      return symbolic::reshape(x, dims);
    }
    double value = 0;
    bool whole = false;
    if (const auto* fill = attribute(node, "value"); fill != nullptr) {
      onnx::GraphProto one;
      *one.add_initializer() = fill->t();
      one.mutable_initializer(0)->set_name("/fill/" + node.output(0));
      NIBBLE_RETURN_IF_ERROR(add_constants(one));
      const Item& item = items_.at("/fill/" + node.output(0));
      const std::optional<double> number = number_of(item);
      if (!number) return no_form("one value is required; found another number of them");
      value = *number;
      whole = item.form == Form::grid && item.grid.is_integer;
      constants_.erase("/fill/" + node.output(0));
      items_.erase("/fill/" + node.output(0));
    }
    const Size count = symbolic::product(*to);
    if (count.is_number() && count.factor >= 0 && count.factor <= kFewElements) {
      Grid result;
      result.dims = *to;
      result.is_integer = whole;
      result.elements.assign(static_cast<size_t>(count.factor),
                             symbolic::number_formula(value));
      return result;
    }
    return symbolic::grid_of(*to, symbolic::number_formula(value), whole);
  }
  if (op == "Flatten") {
    auto axis = integer(node, "axis", 1);
    if (axis < 0) axis += static_cast<int64_t>(x.dims.size());
    if (axis < 0 || axis > static_cast<int64_t>(x.dims.size())) {
      return no_form("an axis of the data is required");
    }
    const auto middle = x.dims.begin() + axis;
    return symbolic::reshape(x, {symbolic::product(Sizes(x.dims.begin(), middle)),
                                 symbolic::product(Sizes(middle, x.dims.end()))});
  }
  if (op == "Slice") {
    std::vector<std::vector<FormulaPtr>> given;
    static const char* kNames[] = {"starts", "ends", "axes", "steps"};
    for (size_t i = 0; i < 4; ++i) {
      given.emplace_back();
      if (i + 1 < inputs.size()) {
        NIBBLE_ASSIGN_OR_RETURN(given.back(), listed(inputs[i + 1]));
      } else if (const auto* item = attribute(node, kNames[i]); item != nullptr) {
        for (const int64_t number : item->ints()) {
          given.back().push_back(symbolic::number_formula(static_cast<double>(number)));
        }
      }
    }
    Grid result = x;
    for (size_t i = 0; i < given[0].size(); ++i) {
      const auto whole = [&](size_t which, int64_t otherwise) -> std::optional<int64_t> {
        if (given[which].empty()) return otherwise;
        const auto size =
            i < given[which].size() ? symbolic::size_of(given[which][i]) : std::nullopt;
        return size && size->is_number() ? std::optional<int64_t>(size->factor)
                                         : std::nullopt;
      };
      const auto axis = whole(2, static_cast<int64_t>(i)), step = whole(3, 1);
      if (i >= given[1].size() || !axis || !step)
        return no_form("constant axes are required");
      NIBBLE_ASSIGN_OR_RETURN(
          result, symbolic::slice(result, *axis, given[0][i], given[1][i], *step));
    }
    return result;
  }
  if (op == "ReduceProd") {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<FormulaPtr> elements, listed(x));
    FormulaPtr result = symbolic::number_formula(1);
    for (const FormulaPtr& element : elements) {
      NIBBLE_ASSIGN_OR_RETURN(result, symbolic::call_formula("Mul", {result, element}));
    }
    return symbolic::grid_of(
        integer(node, "keepdims", 1) != 0 ? Sizes{{1, 0, 0}} : Sizes{}, result,
        x.is_integer);
  }
  return no_form("is none of the operators that are folded");
}

std::optional<EncoderImport::TwoCases> EncoderImport::mask_cases(const Grid& grid,
                                                                 size_t batch_axis,
                                                                 size_t sequence_axis) {
  const Result<FormulaPtr> formula = symbolic::formula_of(grid);
  if (!formula.ok()) return {};
  const std::vector<FormulaPtr> place = {
      symbolic::place_formula(batch_axis, symbolic::kBatch),
      symbolic::place_formula(sequence_axis, symbolic::kSequence)};
  for (const std::string& input : inputs_) {
    const auto token = symbolic::value_with(*formula, input, place, 1);
    const auto padding = symbolic::value_with(*formula, input, place, 0);
    if (!token || !padding) continue;
    if (*token != *padding) {
      if (!mask_.empty() && mask_ != input) return {};
      mask_ = input;
    }
    return TwoCases{*token, *padding};
  }
  return {};
}

}  // namespace nibble
