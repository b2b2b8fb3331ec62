// Linear layers and attention (import_encoder_rows.cpp has the other operators).
#include <algorithm>

#include "export/onnx/import_encoder_graph.h"
#include "export/onnx/import_graph.h"
#include "onnx.pb.h"

namespace nibble {

using symbolic::Grid;
using symbolic::kBatch;
using symbolic::kSequence;
using symbolic::Size;
using symbolic::Sizes;

namespace {

constexpr double kHidden = -1e4;  // exp of it is 0 in float, which hides a token

Size number_size(int64_t value) { return {value, 0, 0}; }

}  // namespace

// --- linear layers

Status EncoderImport::linear(const NodeProto& node, const Item& x, const Item& weight,
                             bool turned) {
  const Tensor& constant = constants_.at(weight.weight);
  if (constant.shape.size() != 2 || !x.dims || x.dims->empty() ||
      !x.dims->back().is(constant.shape[turned ? 1 : 0])) {
    return refuse(node, "needs a constant [", turned ? "N, K" : "K, N",
                  "] for a value's features; found ", shape_text(constant.shape), " and ",
                  x.dims ? symbolic::size_text(*x.dims) : std::string("other sizes"));
  }
  const std::string stem = tensor_stem(weight.weight, ".weight");
  Sizes dims = *x.dims;
  dims.back() = number_size(constant.shape[turned ? 0 : 1]);
  const int64_t outputs = dims.back().factor;
  NIBBLE_RETURN_IF_ERROR(emit(node, "linear", stem.empty() ? name_of(node) : stem, {x.x},
                              dims, {}, {{"out_features", outputs}}));
  Node& made = result_.program.nodes.back();
  if (turned) {
    made.parameters["weight"] = parameter(weight.weight);
    return ok_status();
  }
  std::string& known = named_[weight.weight + "^T"];
  if (known.empty()) {
    known = made.name + ".weight";
    for (int i = 2; result_.tensors.count(known); ++i)
      known = cat(made.name, ".weight.", i);
    result_.tensors[known] = transposed(constant);
  }
  made.parameters["weight"] = known;
  return ok_status();
}

Status EncoderImport::gemm(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const Item x, value(node, 0));
  const Item& weight = in(node, 1);
  const bool plain = number(node, "alpha", 1) == 1 && number(node, "beta", 1) == 1 &&
                     integer(node, "transA", 0) == 0;
  if (!plain || weight.form != Form::constant) {
    return refuse(node,
                  "needs a value times a constant matrix, alpha and beta 1, transA 0");
  }
  const bool turned = (integer(node, "transB", 0) != 0) != weight.turned;
  NIBBLE_RETURN_IF_ERROR(linear(node, x, weight, turned));
  if (!has_input(node, 2)) return ok_status();
  const Item made = items_.at(node.output(0));
  if (vector_of(in(node, 2), made.dims->back().factor) == nullptr) {
    return refuse(node, "needs a constant bias [", made.dims->back().factor, "]");
  }
  result_.program.nodes.back().parameters["bias"] =
      parameter(in(node, 2).weight, {made.dims->back().factor});
  return ok_status();
}

// --- attention

Status EncoderImport::reshape(const NodeProto& node) {
  if (in(node, 0).form == Form::parts) NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
  const Item& x = in(node, 0);
  const std::optional<Grid> shape = grid_in(node, 1);
  const std::optional<Sizes> to = shape ? symbolic::sizes_in(*shape) : std::nullopt;
  if (!to || !x.dims) return refuse(node, "needs a shape of sizes; found another value");
  const Result<Sizes> found =
      symbolic::reshaped_sizes(*x.dims, *to, integer(node, "allowzero", 0) == 0);
  if (!found.ok()) return refuse(node, found.status().message());
  const Sizes& dims = *found;
  Item item = x;
  item.dims = dims;
  if (dims == *x.dims) return set(node, std::move(item));
  const bool tokens = dims.size() >= 2 && dims[0] == kBatch && dims[1] == kSequence;
  const bool rows = dims.size() == 2 && dims[0] == symbolic::product({kBatch, kSequence});
  const bool values = (tokens && dims.size() == 3) || rows;
  if (x.form == Form::value && values && dims.back() == x.dims->back()) {
    return set(node, std::move(item));  // tokens in one row, or in rows again
  }
  if (x.form == Form::value && tokens && dims.size() == 4 && dims[2].is_number() &&
      dims[3].is_number() && x.dims->back().is(dims[2].factor * dims[3].factor)) {
    item.form = Form::heads;
    item.order = "bshd";
    item.factor = 1;
    item.heads = dims[2].factor;
    item.head_dim = dims[3].factor;
    return set(node, std::move(item));
  }
  // Batch and heads as one, "n", and apart again.
  if (x.form == Form::heads) {
    const Sizes rest(x.dims->begin() + (x.order[0] == 'n' ? 1 : 2), x.dims->end());
    const auto ends_so = [&](size_t first) {
      return dims.size() == first + rest.size() &&
             std::equal(rest.begin(), rest.end(),
                        dims.begin() + static_cast<long>(first));
    };
    if (x.order.rfind("bh", 0) == 0 && ends_so(1)) {
      item.order = "n" + x.order.substr(2);
      return set(node, std::move(item));
    }
    if (x.order[0] == 'n' && ends_so(2) && dims[0] == kBatch && dims[1].is(x.heads)) {
      item.order = "bh" + x.order.substr(1);
      return set(node, std::move(item));
    }
  }
  const bool whole = x.form == Form::heads && x.order == "bshd" && x.factor == 1 &&
                     !dims.empty() && dims.back().is(x.heads * x.head_dim);
  if (whole && values) {
    item.form = Form::value;
    return set(node, std::move(item));
  }
  return refuse(
      node,
      "splits features into heads, [batch, sequence, heads, head_dim], or joins "
      "them; found ",
      symbolic::size_text(*x.dims), " to ", symbolic::size_text(dims));
}

Status EncoderImport::transpose(const NodeProto& node) {
  const Item& x = in(node, 0);
  const auto* perm = attribute(node, "perm");
  Item item = x;
  if (x.form == Form::constant && x.dims->size() == 2) {
    if (perm == nullptr || (perm->ints_size() == 2 && perm->ints(0) == 1)) {
      item.turned = !x.turned;
      std::swap((*item.dims)[0], (*item.dims)[1]);
    }
    return set(node, std::move(item));
  }
  const size_t rank = x.form == Form::heads ? x.order.size() : 0;
  if (rank == 0 || perm == nullptr || static_cast<size_t>(perm->ints_size()) != rank) {
    return refuse(node,
                  "orders the heads of queries, keys or values; found another value");
  }
  std::vector<bool> seen(rank);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t from = perm->ints(static_cast<int>(i));
    if (from < 0 || from >= static_cast<int64_t>(rank) ||
        seen[static_cast<size_t>(from)]) {
      return refuse(node, "needs a perm of 0 to ", rank - 1, ", each once; found ", from);
    }
    seen[static_cast<size_t>(from)] = true;
    item.order[i] = x.order[static_cast<size_t>(from)];
    (*item.dims)[i] = (*x.dims)[static_cast<size_t>(from)];
  }
  return set(node, std::move(item));
}

Status EncoderImport::matmul(const NodeProto& node) {
  const Item a = in(node, 0), b = in(node, 1);
  if (b.form == Form::constant) {
    NIBBLE_ASSIGN_OR_RETURN(const Item x, value(node, 0));
    return linear(node, x, b, b.turned);
  }
  if (a.form == Form::heads && b.form == Form::heads && a.order == "bhsd" &&
      b.order == "bhds" && a.heads == b.heads && a.head_dim == b.head_dim) {
    Item item = a;
    item.form = Form::scores;
    item.keys = b.x;
    item.factor = a.factor * b.factor;
    item.dims = Sizes{kBatch, number_size(a.heads), kSequence, kSequence};
    return set(node, std::move(item));
  }
  if (a.form == Form::probabilities && b.form == Form::heads && b.order == "bhsd" &&
      b.factor == 1 && b.heads == a.heads) {
    return attention(node, a, b);
  }
  return refuse(
      node,
      "is a value times a constant, queries times keys [.., head_dim, sequence], "
      "or probabilities times values; found other operands");
}

Status EncoderImport::masked_scores(const NodeProto& node, const Item& scores,
                                    const Item& shown) {
  const Item like = scores;
  const bool mask_first = node.input(0) != "" && &in(node, 0) == &shown;
  const Grid grid = *grid_in(node, mask_first ? 0 : 1);
  const std::optional<TwoCases> cases =
      grid.dims.size() == 4 ? mask_cases(grid, 0, 3) : mask_cases(grid, 0, 0);
  const bool none = cases && cases->token == 0 && cases->padding == 0;
  const bool hides = cases && grid.dims.size() == 4 && cases->token == 0 &&
                     !(cases->padding > kHidden) && grid.dims[3] == kSequence;
  if (!none && !hides) {
    return refuse(
        node,
        "of scores must hide padding from every token, and nothing else (0 where "
        "attention_mask is 1, ",
        kHidden,
        " or less where it is 0); found another mask, "
        "`",
        node.input(mask_first ? 0 : 1), "`");
  }
  Item item = like;
  item.is_masked = item.is_masked || hides;
  return set(node, std::move(item));
}

// A choice between scores and a number that hides; or of probabilities where they are
// NaN.
Status EncoderImport::where(const NodeProto& node) {
  if (node.input_size() != 3) return refuse(node, "needs three inputs");
  const Item condition = in(node, 0), yes = in(node, 1), no = in(node, 2);
  if (condition.form == Form::is_nan && no.form == Form::probabilities &&
      no.x == condition.x && number_of(yes) == 0.0) {
    return set(node, no);
  }
  const bool shown = yes.form == Form::scores;
  const Item& scores = shown ? yes : no;
  const std::optional<double> other = number_of(shown ? no : yes);
  if (condition.form == Form::grid && scores.form == Form::scores && other &&
      !(*other > kHidden) && condition.grid.dims.size() == 4 &&
      condition.grid.dims[3] == kSequence) {
    const std::optional<TwoCases> cases = mask_cases(condition.grid, 0, 3);
    if (cases && (cases->token != 0) == shown && (cases->padding != 0) != shown) {
      Item item = scores;
      item.is_masked = true;
      return set(node, std::move(item));
    }
  }
  return refuse(node,
                "of scores must hide padding from every token, and nothing else; found "
                "another choice");
}

Status EncoderImport::softmax(const NodeProto& node) {
  const Item x = in(node, 0);
  const int64_t axis = integer(node, "axis", opset_ < 13 ? 1 : -1);
  if (x.form != Form::scores || (axis != -1 && axis != 3)) {
    return refuse(
        node,
        "is of an attention's scores [batch, heads, sequence, sequence], over the "
        "last axis; found another");
  }
  return set(node, Form::probabilities, x, x.factor);
}

Status EncoderImport::attention(const NodeProto& node, const Item& probabilities,
                                const Item& values) {
  const bool has_mask = inputs_.count("attention_mask") > 0 || !mask_.empty();
  if (has_mask && !probabilities.is_masked) {
    return refuse(node,
                  "of probabilities that saw padding: scores must be masked by "
                  "attention_mask before Softmax; found none");
  }
  const std::string& query = probabilities.x;
  const size_t dot = query.rfind('.');
  const std::string name =
      dot == std::string::npos ? name_of(node) : query.substr(0, dot) + ".attention";
  const Item made_of = values;
  NIBBLE_RETURN_IF_ERROR(emit(node, "attention", name,
                              {query, probabilities.keys, values.x}, {}, {},
                              {{"heads", values.heads},
                               {"kv_heads", values.heads},
                               {"head_dim", values.head_dim},
                               {"scale", probabilities.factor},
                               {"causal", int64_t{0}}}));
  Item item = made_of;  // in the order of the values' heads
  item.x = result_.program.nodes.back().outputs[0];
  return set(node, std::move(item));
}

}  // namespace nibble
