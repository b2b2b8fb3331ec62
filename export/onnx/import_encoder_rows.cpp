// The network's operators: each ends a pattern with nodes of the Program, or is a step of
// one (EncoderItem::Form).
#include <algorithm>
#include <cmath>

#include "export/onnx/import_encoder_graph.h"
#include "onnx.pb.h"

namespace nibble {

using symbolic::Grid;
using symbolic::kBatch;
using symbolic::kSequence;
using symbolic::Size;
using symbolic::Sizes;

namespace {

constexpr double kClose = 5e-4;  // 2^-11: of a constant that was written in half

bool is_close(double a, double b) { return std::abs(a - b) <= kClose * std::abs(b); }

Size number_size(int64_t value) { return {value, 0, 0}; }

}  // namespace

// --- operands

Result<EncoderImport::Item> EncoderImport::value(const NodeProto& node, int i) {
  if (!has_input(node, i)) return refuse(node, "needs an input ", i, "; found none");
  const Item& item = in(node, i);
  if (item.form == Form::value) return item;
  if (item.form == Form::parts) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string sum, sum_of(node, item.parts));
    Item made;
    made.form = Form::value;
    made.dims = item.dims;
    made.x = sum;
    return items_[node.input(i)] = made;
  }
  const char* what = item.form == Form::constant ? "a constant"
                     : item.form == Form::grid
                         ? "sizes, places or a mask"
                         : "a step of a pattern that it does not go on";
  return refuse(node, "reads a value of the network as input ", i, "; found ", what,
                ", `", node.input(i), "`");
}

// The nodes of a sum of embeddings. A row that every token gets goes into the positions.
Result<std::string> EncoderImport::sum_of(const NodeProto& node,
                                          const std::vector<EmbeddingPart>& parts) {
  std::string ids;
  std::vector<std::string> picked;
  for (const EmbeddingPart& part : parts) {
    if (part.kind == EmbeddingPart::Kind::ids && ids.empty()) ids = part.input;
  }
  for (const EmbeddingPart& part : parts) {
    if (part.kind == EmbeddingPart::Kind::row) continue;
    const bool positions = part.kind == EmbeddingPart::Kind::positions;
    std::string table = parameter(part.table);
    const Tensor& weight = result_.tensors.at(table);
    const int64_t rows = weight.shape[0], features = weight.shape[1];
    if (ids.empty())
      return refuse(node, "needs an embedding of token ids; found positions alone");
    if (positions) {
      for (const EmbeddingPart& other : parts) {
        if (other.kind != EmbeddingPart::Kind::row) continue;
        NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, to_float(weight));
        NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> added,
                                to_float(constants_.at(other.table)));
        for (size_t k = 0; k < values.size(); ++k) {
          const auto column = static_cast<int64_t>(k) % features;
          values[k] += added[static_cast<size_t>(other.row * features + column)];
        }
        table = unique(table + ".with_token_type");
        result_.tensors[table] =
            make_tensor({rows, features}, std::span<const float>(values));
      }
      positions_ = rows;
    } else {
      int64_t& known = rows_[part.input];
      known = std::max(known, rows);
    }
    const std::string stem = tensor_stem(parameter(part.table), ".weight");
    NIBBLE_RETURN_IF_ERROR(
        emit(node, positions ? "position_embedding" : "embedding",
             stem.empty() ? parameter(part.table) + ".embedding" : stem,
             {positions ? ids : part.input}, {}, {{"weight", table}},
             {{"features", features}, {"rows", rows}}));
    picked.push_back(result_.program.nodes.back().outputs[0]);
  }
  const bool has_row = std::any_of(
      parts.begin(), parts.end(),
      [](const EmbeddingPart& part) { return part.kind == EmbeddingPart::Kind::row; });
  if (positions_ == 0) {
    return refuse(node,
                  "needs positions 0, 1, 2 .. among the embeddings before it; found ",
                  has_row ? "constant token types" : "none");
  }
  std::string sum = picked.front();
  for (size_t i = 1; i < picked.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(emit(node, "add", "embeddings.sum", {sum, picked[i]}, {}));
    sum = result_.program.nodes.back().outputs[0];
  }
  return sum;
}

// --- the table of operators

Status EncoderImport::row(const NodeProto& node) {
  const std::string& op = node.op_type();
  const Item* first = has_input(node, 0) ? &in(node, 0) : nullptr;
  const bool floats = integer(node, "to", 0) == onnx::TensorProto::FLOAT ||
                      integer(node, "to", 0) == onnx::TensorProto::FLOAT16 ||
                      integer(node, "to", 0) == onnx::TensorProto::BFLOAT16;
  if (first != nullptr && first->form != Form::grid &&
      (op == "Identity" || op == "Dropout" || (op == "Cast" && floats))) {
    return set(node, *first);
  }
  if (op == "Transpose" && first != nullptr && first->form == Form::constant) {
    return transpose(node);
  }
  Status why = refuse(node, "has no form in an encoder's program");
  std::vector<Grid> grids;
  bool all = node.input_size() > 0;
  for (int i = 0; i < node.input_size() && all; ++i) {
    std::optional<Grid> grid = grid_in(node, i);
    all = grid.has_value();
    if (all) grids.push_back(std::move(*grid));
  }
  if (all) {
    Result<Grid> grid = folded(node, grids);
    if (grid.ok()) {
      Item item;
      item.form = Form::grid;
      item.dims = grid->dims;
      item.grid = std::move(grid).value();
      return set(node, std::move(item));
    }
    why = refuse(node, "of sizes, places or a mask: ", grid.status().message());
  }
  struct Row {
    Status (EncoderImport::*make)(const NodeProto&);
    int inputs;  // that must be there
  };
  static const std::map<std::string, Row> rows = {
      {"Gather", {&EncoderImport::gather, 2}},
      {"Add", {&EncoderImport::add, 2}},
      {"Sub", {&EncoderImport::subtract, 2}},
      {"Mul", {&EncoderImport::multiply, 2}},
      {"Div", {&EncoderImport::divide, 2}},
      {"Pow", {&EncoderImport::power, 2}},
      {"Sqrt", {&EncoderImport::unary, 1}},
      {"Reciprocal", {&EncoderImport::unary, 1}},
      {"Erf", {&EncoderImport::unary, 1}},
      {"Tanh", {&EncoderImport::unary, 1}},
      {"Relu", {&EncoderImport::unary, 1}},
      {"IsNaN", {&EncoderImport::unary, 1}},
      {"Expand", {&EncoderImport::unary, 1}},
      {"ReduceMean", {&EncoderImport::reduce, 1}},
      {"ReduceSum", {&EncoderImport::reduce, 1}},
      {"ReduceL2", {&EncoderImport::reduce, 1}},
      {"Where", {&EncoderImport::where, 3}},
      {"Clip", {&EncoderImport::bound, 1}},
      {"Max", {&EncoderImport::bound, 2}},
      {"Reshape", {&EncoderImport::reshape, 2}},
      {"Transpose", {&EncoderImport::transpose, 1}},
      {"MatMul", {&EncoderImport::matmul, 2}},
      {"Gemm", {&EncoderImport::gemm, 2}},
      {"Softmax", {&EncoderImport::softmax, 1}},
      {"LayerNormalization", {&EncoderImport::layer_norm, 2}},
      {"Gelu", {&EncoderImport::gelu, 1}}};
  const auto found = rows.find(op);
  if (found == rows.end()) return why;
  for (int i = 0; i < found->second.inputs; ++i) {
    if (!has_input(node, i)) return refuse(node, "needs an input ", i, "; found none");
  }
  const Status status = (this->*found->second.make)(node);
  return status.ok() || !all ? status : why;
}

Status EncoderImport::gather(const NodeProto& node) {
  const Item& data = in(node, 0);
  const std::optional<Grid> indices = grid_in(node, 1);
  const int64_t axis = integer(node, "axis", 0);
  if (!indices)
    return refuse(node, "needs indices of ids or places; found another value");
  if (data.form == Form::value && data.dims && data.dims->size() == 3) {
    if (axis != 1 || symbolic::number_in(*indices) != 0.0 || !indices->dims.empty()) {
      return refuse(node, "of hidden states takes the first token; found another");
    }
    return emit(node, "first_token", "first_token", {data.x},
                Sizes{data.dims->front(), data.dims->back()});
  }
  if (data.form != Form::constant || data.turned || axis != 0 ||
      constants_.at(data.weight).shape.size() != 2) {
    return refuse(node, "picks rows of a constant table [rows, features]; found another");
  }
  const Tensor& table = constants_.at(data.weight);
  NIBBLE_ASSIGN_OR_RETURN(const symbolic::FormulaPtr formula,
                          symbolic::formula_of(*indices));
  EmbeddingPart part;
  part.table = data.weight;
  const size_t rank = indices->dims.size();
  const bool of_sequence = rank > 0 && indices->dims.back() == kSequence;
  if (of_sequence && formula->kind == symbolic::Formula::Kind::index &&
      formula->axis == static_cast<int>(rank) - 1) {
    part.kind = EmbeddingPart::Kind::positions;
  } else if (rank == 2 && formula->kind == symbolic::Formula::Kind::input &&
             symbolic::same(formula,
                            symbolic::input_formula(formula->name, indices->dims))) {
    part.input = formula->name;
  } else if (formula->kind == symbolic::Formula::Kind::number && formula->number >= 0 &&
             formula->number < static_cast<double>(table.shape[0])) {
    part.kind = EmbeddingPart::Kind::row;
    part.row = static_cast<int64_t>(formula->number);
  } else {
    return refuse(node,
                  "picks by an input's ids, by the places 0, 1, 2 .. or one row; found "
                  "other indices, `",
                  node.input(1), "`");
  }
  Item item;
  item.form = Form::parts;
  item.parts = {part};
  item.dims = indices->dims;
  item.dims->push_back(number_size(table.shape[1]));
  return set(node, std::move(item));
}

// --- sums and differences

Status EncoderImport::add(const NodeProto& node) {
  for (int i = 0; i < 2; ++i) {
    const Item &a = in(node, i), &b = in(node, 1 - i);
    const std::optional<double> c = number_of(b);
    if (a.form == Form::scores && grid_in(node, 1 - i)) return masked_scores(node, a, b);
    if (a.form == Form::variance && c) {
      Item item = a;
      item.form = Form::shifted;
      item.epsilon = *c;
      return set(node, std::move(item));
    }
    if (a.form == Form::curve && c && *c == 1) return set(node, Form::gate, a);
    if (a.form == Form::cube && b.form == Form::value && a.x == b.x &&
        is_close(a.factor, 0.044715)) {
      return set(node, Form::bent, a);
    }
    if (a.form == Form::weighted && b.form == Form::constant) {
      if (vector_of(b, constants_.at(a.weight).numel()) == nullptr) {
        return refuse(node, "of a norm needs a bias of as many values as its weight");
      }
      return add_norm(node, a, a.weight, b.weight);
    }
    if (a.form == Form::value && b.form == Form::constant) return add_bias(node, a, b);
  }
  if (in(node, 0).form == Form::parts && in(node, 1).form == Form::parts) {
    Item sum = in(node, 0);
    const Item& other = in(node, 1);
    Result<Sizes> dims = symbolic::broadcast(*sum.dims, *other.dims);
    if (!dims.ok()) return refuse(node, "of embeddings: ", dims.status().message());
    sum.dims = std::move(dims).value();
    sum.parts.insert(sum.parts.end(), other.parts.begin(), other.parts.end());
    return set(node, std::move(sum));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Item a, value(node, 0));
  NIBBLE_ASSIGN_OR_RETURN(const Item b, value(node, 1));
  if (!a.dims || a.dims != b.dims) {
    return refuse(node, "needs two values of the same sizes; found others");
  }
  return emit(node, "add", name_of(node), {a.x, b.x}, a.dims);
}

// A constant after a product is its bias.
Status EncoderImport::add_bias(const NodeProto& node, const Item& x, const Item& bias) {
  Node* made = nullptr;
  auto& nodes = result_.program.nodes;
  for (auto other = nodes.rbegin(); other != nodes.rend() && made == nullptr; ++other) {
    if (other->outputs[0] == x.x) made = &*other;  // among the last, as a rule
  }
  const int64_t size = x.dims && !x.dims->empty() ? x.dims->back().factor : 0;
  const std::string& product =
      node.input(0) == bias.weight ? node.input(1) : node.input(0);
  if (made == nullptr || made->op != "linear" || !made->parameter("bias").empty() ||
      vector_of(bias, size) == nullptr || uses_[product] != 1) {
    return refuse(node, "of a constant is the bias [", size,
                  "] of a product just before it, which nothing else reads; found ",
                  bias.weight);
  }
  made->parameters["bias"] = parameter(bias.weight, {size});
  // The bias often keeps the checkpoint's name where the weight, transposed, lost it.
  const std::string stem = tensor_stem(made->parameter("bias"), ".bias");
  const std::string own = made->name + ".weight", called = stem + ".weight";
  if (!stem.empty() && made->parameter("weight") == own && !names_.count(stem) &&
      !result_.tensors.count(called)) {
    for (auto& [constant, name] : named_) {
      if (name == own) name = called;
    }
    result_.tensors[called] = std::move(result_.tensors.at(own));
    result_.tensors.erase(own);
    made->parameters["weight"] = called;
    made->name = unique(stem);
    made->outputs[0] = made->name;
  }
  Item item = x;
  item.x = made->outputs[0];
  return set(node, std::move(item));
}

Status EncoderImport::subtract(const NodeProto& node) {
  const Item &a = in(node, 0), &b = in(node, 1);
  if (b.form == Form::mean && a.form == Form::value && a.x == b.x) {
    Item item = a;
    item.form = Form::centred;
    return set(node, std::move(item));
  }
  return refuse(
      node, "takes the mean of a value from it (layer_norm); found another difference");
}

// --- products and quotients

Status EncoderImport::scaled(const NodeProto& node, const Item& item, double factor) {
  switch (item.form) {
    case Form::value:
      return set(node, Form::scaled, item, factor);
    case Form::gated: {
      Item next = item;
      next.factor *= factor;
      return gated(node, std::move(next));
    }
    case Form::bent:
      if (!is_close(factor, std::sqrt(2 / std::acos(-1.0)))) break;
      return set(node, Form::angle, item, factor);
    case Form::heads:
    case Form::scores:
    case Form::scaled:
    case Form::gate:
    case Form::cube:
      return set(node, item.form, item, item.factor * factor);
    default:
      break;
  }
  return refuse(node, "by ", factor,
                " is the scale of attention or of a gelu; found another");
}

Status EncoderImport::gated(const NodeProto& node, Item item) {
  if (!is_close(item.factor, 0.5)) {
    item.form = Form::gated;
    return set(node, std::move(item));
  }
  std::map<std::string, Attribute> attributes;
  if (item.tanh) attributes["tanh"] = int64_t{1};
  return emit(node, "gelu", name_of(node), {item.x}, item.dims, {},
              std::move(attributes));
}

Status EncoderImport::multiply(const NodeProto& node) {
  for (int i = 0; i < 2; ++i) {
    const Item &a = in(node, i), &b = in(node, 1 - i);
    if (const std::optional<double> c = number_of(b)) {
      if (a.form != Form::parts) return scaled(node, Item(a), *c);
    }
    const bool alike = a.x == b.x && !a.x.empty();
    if (a.form == Form::normalized && b.form == Form::constant && a.dims &&
        vector_of(b, a.dims->back().factor) != nullptr) {
      Item item = a;
      item.form = Form::weighted;
      item.weight = b.weight;
      return set(node, std::move(item));
    }
    if (alike && a.form == Form::centred && b.form == Form::centred) {
      return set(node, Form::square, a);
    }
    if (alike && a.form == Form::centred && b.form == Form::inverse) {
      Item item = a;
      item.form = Form::normalized;
      item.epsilon = b.epsilon;
      return set(node, std::move(item));
    }
    if (alike && a.form == Form::value && b.form == Form::value)
      return set(node, Form::power2, a);
    if (alike && a.form == Form::power2 && b.form == Form::value)
      return set(node, Form::cube, a);
    if (alike && a.form == Form::gate &&
        (b.form == Form::value || b.form == Form::scaled)) {
      Item item = b;
      item.tanh = a.tanh;
      item.factor = a.factor * (b.form == Form::scaled ? b.factor : 1);
      return gated(node, std::move(item));
    }
    if (a.form == Form::value && b.form == Form::grid && a.dims && a.dims->size() == 3) {
      const std::optional<TwoCases> cases =
          b.grid.dims.size() == 3 ? mask_cases(b.grid, 0, 1) : std::nullopt;
      if (cases && cases->token == 1 && cases->padding == 0)
        return set(node, Form::masked, a);
    }
  }
  return refuse(
      node,
      "is a step of a norm, a gelu, an attention or a pooling by the mask; found "
      "another product");
}

// (x - mean) over its deviation.
Status EncoderImport::norm_step(const NodeProto& node, const Item& x,
                                const Item& divisor) {
  Item item = x;
  item.form = Form::normalized;
  item.epsilon = divisor.epsilon;
  return set(node, std::move(item));
}

Status EncoderImport::divide(const NodeProto& node) {
  const Item &a = in(node, 0), &b = in(node, 1);
  if (const std::optional<double> c = number_of(b)) return scaled(node, Item(a), 1 / *c);
  const bool alike = a.x == b.x && !a.x.empty();
  if (alike && a.form == Form::centred && b.form == Form::deviation)
    return norm_step(node, a, b);
  if (number_of(a) == 1.0 && b.form == Form::deviation)
    return set(node, Form::inverse, b);
  if (a.form == Form::token_sum && b.form == Form::token_count) {
    return emit(node, "mean_pool", "pooling", {a.x}, a.dims);
  }
  if (alike && a.form == Form::value && b.form == Form::length) {
    return emit(node, "l2_normalize", "normalize", {a.x}, a.dims);
  }
  return refuse(node,
                "is a step of a norm, a gelu, an attention or a pooling; found another "
                "quotient");
}

Status EncoderImport::power(const NodeProto& node) {
  const Item& x = in(node, 0);
  const std::optional<double> exponent = number_of(in(node, 1));
  if (exponent == 2.0 && x.form == Form::centred) return set(node, Form::square, x);
  if (exponent == 2.0 && x.form == Form::value) return set(node, Form::power2, x);
  if (exponent == 3.0 && x.form == Form::value) return set(node, Form::cube, x);
  if (exponent == 0.5 && x.form == Form::shifted) return set(node, Form::deviation, x);
  if (exponent == -0.5 && x.form == Form::shifted) return set(node, Form::inverse, x);
  return refuse(node, "is a step of a norm or a gelu; found another power");
}

Status EncoderImport::unary(const NodeProto& node) {
  const Item& x = in(node, 0);
  const std::string& op = node.op_type();
  if (op == "Sqrt" && x.form == Form::shifted) return set(node, Form::deviation, x);
  if (op == "Reciprocal" && x.form == Form::deviation) return set(node, Form::inverse, x);
  if (op == "Expand" && x.form == Form::length) return set(node, x);
  if (op == "IsNaN" && x.form == Form::probabilities) return set(node, Form::is_nan, x);
  if (op == "Erf" && x.form == Form::scaled && is_close(x.factor, std::sqrt(0.5))) {
    return set(node, Form::curve, x);
  }
  if (op == "Tanh" && x.form == Form::angle) {
    Item item = x;
    item.form = Form::curve;
    item.factor = 1;
    item.tanh = true;
    return set(node, std::move(item));
  }
  if (op == "Relu") {
    NIBBLE_ASSIGN_OR_RETURN(const Item value_in, value(node, 0));
    return emit(node, "relu", name_of(node), {value_in.x}, value_in.dims);
  }
  return refuse(node,
                op == "Erf" || op == "Tanh" ? "is a step of a gelu; found another "
                                            : "is a step of a pattern; found another ",
                op);
}

Status EncoderImport::gelu(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(Item x, value(node, 0));
  const auto* kind = attribute(node, "approximate");
  x.tanh = kind != nullptr && kind->s() == "tanh";
  x.factor = 0.5;
  return gated(node, std::move(x));
}

// --- norms and pooling

Status EncoderImport::reduce(const NodeProto& node) {
  const std::string& op = node.op_type();
  if (in(node, 0).form == Form::parts) NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
  const Item& x = in(node, 0);
  const auto axes = integers_at(node, "axes", 1);
  const auto rank = x.dims ? static_cast<int64_t>(x.dims->size()) : 0;
  const int64_t axis =
      axes && axes->size() == 1 ? (*axes)[0] + ((*axes)[0] < 0 ? rank : 0) : -1;
  const bool keeps = integer(node, "keepdims", 1) != 0;
  const bool last = axis == rank - 1 && rank > 1;
  Item item = x;
  if (last && keeps) item.dims->back() = number_size(1);
  if (op == "ReduceMean" && last && keeps &&
      (x.form == Form::value || x.form == Form::square)) {
    item.form = x.form == Form::value ? Form::mean : Form::variance;
    return set(node, std::move(item));
  }
  if (op == "ReduceL2" && last && keeps && x.form == Form::value) {
    item.form = Form::length;
    return set(node, std::move(item));
  }
  if (op == "ReduceSum" && axis == 1 && !keeps && rank >= 2) {
    item.dims->erase(item.dims->begin() + 1);
    const std::optional<TwoCases> cases =
        x.form == Form::grid ? mask_cases(x.grid, 0, 1) : std::nullopt;
    if (x.form == Form::masked || (cases && cases->token == 1 && cases->padding == 0)) {
      item.form = x.form == Form::masked ? Form::token_sum : Form::token_count;
      return set(node, std::move(item));
    }
  }
  return refuse(node, "is a step of a norm or of a mean over tokens; found another");
}

// A count of tokens that is 1 at least, a length that is not 0.
Status EncoderImport::bound(const NodeProto& node) {
  const Item& x = in(node, 0);
  std::optional<double> low;
  if (has_input(node, 1)) low = number_of(in(node, 1));
  if (node.op_type() == "Clip" && attribute(node, "min") != nullptr) {
    low = number(node, "min", 0);
  }
  const bool open = node.op_type() == "Max" || !has_input(node, 2);
  const double highest = x.form == Form::token_count ? 1 : 1e-6;
  if ((x.form == Form::token_count || x.form == Form::length) && low && open &&
      *low >= 0 && *low <= highest) {
    return set(node, x);
  }
  return refuse(node,
                "keeps a count of tokens or a length from being 0; found another bound");
}

Status EncoderImport::add_norm(const NodeProto& node, const Item& x,
                               const std::string& weight, const std::string& bias) {
  const int64_t size = constants_.at(weight).numel();
  const std::string stem = tensor_stem(parameter(weight, {size}), ".weight");
  NIBBLE_RETURN_IF_ERROR(emit(node, "layer_norm", stem.empty() ? name_of(node) : stem,
                              {x.x}, x.dims, {{"weight", parameter(weight)}},
                              {{"epsilon", x.epsilon}}));
  Node& made = result_.program.nodes.back();
  if (!bias.empty()) {
    made.parameters["bias"] = parameter(bias, {size});
    return ok_status();
  }
  const std::vector<float> zeros(static_cast<size_t>(size));
  made.parameters["bias"] = made.name + ".bias";
  result_.tensors[made.name + ".bias"] =
      make_tensor({size}, std::span<const float>(zeros));
  return ok_status();
}

Status EncoderImport::layer_norm(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(Item x, value(node, 0));
  const auto rank = x.dims ? static_cast<int64_t>(x.dims->size()) : 0;
  const int64_t axis = integer(node, "axis", -1);
  const int64_t size = rank > 0 ? x.dims->back().factor : 0;
  const Item* weight = has_input(node, 1) ? &in(node, 1) : nullptr;
  const Item* bias = has_input(node, 2) ? &in(node, 2) : nullptr;
  if ((axis != -1 && axis != rank - 1) || weight == nullptr ||
      vector_of(*weight, size) == nullptr ||
      (bias != nullptr && vector_of(*bias, size) == nullptr)) {
    return refuse(node, "goes over the features with a constant weight and bias [", size,
                  "]; found another axis or other operands");
  }
  x.epsilon = number(node, "epsilon", 1e-5);
  return add_norm(node, x, weight->weight, bias == nullptr ? "" : bias->weight);
}

}  // namespace nibble
