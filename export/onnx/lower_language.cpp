// Decoder ops in standard ONNX operators.
#include <cmath>

#include "export/onnx/lowering.h"
#include "kernels/ops/hadamard/hadamard.h"
#include "kernels/program/layers.h"

namespace nibble {
namespace {

const OnnxAttributes kLastAxis = {{"axis", int64_t{-1}}};

// [batch, sequence, heads * head_dim] -> [batch, heads, sequence, head_dim]
std::string split_heads(OnnxGraph& graph, const std::string& x, int64_t heads,
                        int64_t head_dim, const std::string& name) {
  graph.add("Reshape", {x, graph.integers({0, 0, heads, head_dim})}, name + "/heads");
  return graph.add("Transpose", {name + "/heads"}, name,
                   {{"perm", std::vector<int64_t>{0, 2, 1, 3}}});
}

// Each key/value head serves heads / kv_heads query heads in a row.
std::string repeat_heads(OnnxGraph& graph, const std::string& x, int64_t heads,
                         int64_t kv_heads, int64_t head_dim, const std::string& name) {
  if (heads == kv_heads) return x;
  graph.add("Unsqueeze", {x, graph.integers({2})}, name + "/grouped");
  graph.add("Expand", {name + "/grouped", graph.integers({1, 1, heads / kv_heads, 1, 1})},
            name + "/repeated");
  return graph.add("Reshape",
                   {name + "/repeated", graph.integers({0, heads, -1, head_dim})}, name);
}

}  // namespace

std::string OnnxLowering::hadamard_matrix(int64_t block) {
  const std::string name = cat("/hadamard_", block);
  if (!made_.insert(name).second) return name;
  std::vector<float> matrix(static_cast<size_t>(block * block), 0.0f);
  for (int64_t i = 0; i < block; ++i) {
    float* row = matrix.data() + i * block;
    row[i] = 1;
    hadamard(row, block, block, row);
  }
  graph_.add_initializer(name, {block, block}, matrix);
  return name;
}

Status lower_embedding(OnnxLowering& lowering, const Node& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                          lowering.weight(node, Orientation::rows_first));
  lowering.graph().add("Gather", {weight, lowering.input(node)}, lowering.output(node),
                       {{"axis", int64_t{0}}});
  return ok_status();
}

Status lower_linear(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  if (lowering.reads_dynamic(node)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string product, lowering.dynamic_product(node));
    if (node.parameter("bias").empty()) {
      graph.add("Identity", {product}, lowering.output(node));
      return ok_status();
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string bias,
                            lowering.float_parameter(node.parameter("bias")));
    graph.add("Add", {product, bias}, lowering.output(node));
    return ok_status();
  }
  const std::string x = lowering.input(node);
  const bool has_bias = !node.parameter("bias").empty();
  NIBBLE_ASSIGN_OR_RETURN(
      const std::string product,
      lowering.product(
          node, "weight", x, lowering.rows_of(node.inputs[0]),
          has_bias ? lowering.inner(node, "product") : lowering.output(node)));
  if (has_bias) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bias, lowering.bias(node));
    graph.add("Add", {product, bias}, lowering.output(node));
  }
  return ok_status();
}

// Rows of blocks times Sylvester's matrix.
Status lower_hadamard(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const int64_t block = node.integer("block", 1);
  graph.add("Reshape", {lowering.input(node), graph.integers({0, 0, -1, block})},
            lowering.inner(node, "blocks"));
  graph.add("MatMul", {lowering.inner(node, "blocks"), lowering.hadamard_matrix(block)},
            lowering.inner(node, "turned"));
  graph.add("Reshape", {lowering.inner(node, "turned"), graph.integers({0, 0, -1})},
            lowering.output(node));
  return ok_status();
}

// x / sqrt(mean(x^2) + epsilon) * weight, in the pattern that runtimes know as one
// operator.
Status lower_rms_norm(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                          lowering.float_parameter(node.parameter("weight")));
  std::string x = lowering.input(node);
  const int64_t head_dim = node.integer("head_dim", 0);
  if (head_dim > 0) {
    x = graph.add("Reshape", {x, graph.integers({0, 0, -1, head_dim})},
                  lowering.inner(node, "heads"));
  }
  const auto epsilon = static_cast<float>(node.number("epsilon", 1e-5));
  graph.add("Pow", {x, graph.number(2)}, lowering.inner(node, "square"));
  graph.add("ReduceMean", {lowering.inner(node, "square"), graph.integers({-1})},
            lowering.inner(node, "mean"), {{"keepdims", int64_t{1}}});
  graph.add("Add", {lowering.inner(node, "mean"), graph.number(epsilon)},
            lowering.inner(node, "shifted"));
  graph.add("Sqrt", {lowering.inner(node, "shifted")}, lowering.inner(node, "root"));
  graph.add("Div", {x, lowering.inner(node, "root")}, lowering.inner(node, "normalized"));
  graph.add("Mul", {lowering.inner(node, "normalized"), weight},
            head_dim > 0 ? lowering.inner(node, "scaled") : lowering.output(node));
  if (head_dim > 0) {
    graph.add("Reshape", {lowering.inner(node, "scaled"), graph.integers({0, 0, -1})},
              lowering.output(node));
  }
  return ok_status();
}

// (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin), x0 and x1 being the halves of a head,
// or its even and odd elements (interleaved).
Status lower_rope(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const int64_t head_dim = node.integer("head_dim", 0);
  const bool interleaved = node.integer("interleaved", 0) != 0;
  const OnnxLowering::Rotation table = lowering.rotation(node);
  // [batch, sequence, half] beside [batch, sequence, heads, half] or [.., half, 1]
  const std::string axes = interleaved ? graph.integers({2, 4}) : graph.integers({2});
  const auto part = [&](const char* name) { return OnnxLowering::inner(node, name); };
  graph.add("Unsqueeze", {table.cos, axes}, part("cos"));
  graph.add("Unsqueeze", {table.sin, axes}, part("sin"));
  const std::string pairs = interleaved ? graph.integers({0, 0, -1, head_dim / 2, 2})
                                        : graph.integers({0, 0, -1, head_dim});
  graph.add("Reshape", {lowering.input(node), pairs}, part("pairs"));
  graph.add("Split", {part("pairs")}, {part("x0"), part("x1")},
            {{"axis", int64_t{-1}}, {"num_outputs", int64_t{2}}});
  graph.add("Mul", {part("x0"), part("cos")}, part("x0_cos"));
  graph.add("Mul", {part("x1"), part("sin")}, part("x1_sin"));
  graph.add("Mul", {part("x1"), part("cos")}, part("x1_cos"));
  graph.add("Mul", {part("x0"), part("sin")}, part("x0_sin"));
  graph.add("Sub", {part("x0_cos"), part("x1_sin")}, part("y0"));
  graph.add("Add", {part("x1_cos"), part("x0_sin")}, part("y1"));
  graph.add("Concat", {part("y0"), part("y1")}, part("rotated"), kLastAxis);
  graph.add("Reshape", {part("rotated"), graph.integers({0, 0, -1})},
            lowering.output(node));
  return ok_status();
}

Status lower_attention(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const int64_t heads = node.integer("heads", 0),
                kv_heads = node.integer("kv_heads", heads);
  const int64_t head_dim = node.integer("head_dim", 0);
  const double scale =
      node.number("scale", 1.0 / std::sqrt(static_cast<double>(head_dim)));
  const auto part = [&](const char* name) { return OnnxLowering::inner(node, name); };

  const std::string q =
      split_heads(graph, lowering.input(node, 0), heads, head_dim, part("q"));
  std::string k =
      split_heads(graph, lowering.input(node, 1), kv_heads, head_dim, part("k"));
  std::string v =
      split_heads(graph, lowering.input(node, 2), kv_heads, head_dim, part("v"));
  const OnnxLowering::Past past = lowering.past(node.text("state", ""));
  if (!past.key.empty()) {
    k = graph.add("Concat", {past.key, k}, past.present_key, {{"axis", int64_t{2}}});
    v = graph.add("Concat", {past.value, v}, past.present_value, {{"axis", int64_t{2}}});
  }
  k = repeat_heads(graph, k, heads, kv_heads, head_dim, part("keys"));
  v = repeat_heads(graph, v, heads, kv_heads, head_dim, part("values"));

  graph.add("Transpose", {k}, part("keys_transposed"),
            {{"perm", std::vector<int64_t>{0, 1, 3, 2}}});
  graph.add("MatMul", {lowering.widened(q), lowering.widened(part("keys_transposed"))},
            part("products"));
  graph.add("Mul",
            {part("products"), lowering.wide_number(static_cast<float>(scale))},
            part("scores"));
  graph.add("Add",
            {part("scores"), lowering.widened(node.integer("causal", 1) != 0
                                                  ? lowering.causal_mask(
                                                        node.integer("window", 0))
                                                  : lowering.padding_mask())},
            part("masked"));
  graph.add("Softmax", {part("masked")}, part("probabilities"), kLastAxis);
  graph.add("MatMul", {part("probabilities"), lowering.widened(v)},
            lowering.wide(part("mixed")));
  lowering.narrow(part("mixed"));
  graph.add("Transpose", {part("mixed")}, part("mixed_transposed"),
            {{"perm", std::vector<int64_t>{0, 2, 1, 3}}});
  graph.add("Reshape", {part("mixed_transposed"), graph.integers({0, 0, -1})},
            lowering.output(node));
  return ok_status();
}

// Each expert gathers the tokens that it got, runs, and puts what it adds back in place.
Status lower_moe(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const auto part = [&](const std::string& name) { return node.name + "/" + name; };
  const auto add = [&](const char* op, const std::vector<std::string>& inputs,
                       const std::string& name, const OnnxAttributes& attributes = {}) {
    return graph.add(op, inputs, part(name), attributes);
  };
  const int64_t experts = node.integer("experts", 0);
  const std::string x = lowering.input(node, 0), logits = lowering.input(node, 1);
  add("Shape", {x}, "shape");
  add("Shape", {x}, "features", {{"start", int64_t{-1}}});
  add("Concat", {graph.integers({-1}), part("features")}, "flat", {{"axis", int64_t{0}}});
  add("Reshape", {x, part("flat")}, "x");
  add("Reshape", {logits, graph.integers({-1, experts})}, "logits");
  // TopK: of equal values the lower index first.
  graph.add("TopK",
            {part("logits"), graph.integers({node.integer("experts_per_token", 1)})},
            {part("best"), part("chosen")}, kLastAxis);
  add("Softmax", {part("logits")}, "probabilities", kLastAxis);
  std::string weights =
      add("GatherElements", {part("probabilities"), part("chosen")}, "taken", kLastAxis);
  if (node.integer("normalize", 0) != 0) {
    add("ReduceSum", {weights, graph.integers({-1})}, "sum", {{"keepdims", int64_t{1}}});
    weights = add("Div", {weights, part("sum")}, "normalized");
  }
  std::string y = add("Mul", {part("x"), graph.number(0)}, "none");
  const std::vector<Layer> layers = layers_of(node);  // gate, up, down of each expert
  for (size_t i = 0; i < layers.size(); i += 3) {
    const auto e = static_cast<int64_t>(i / 3);
    const std::string mine = cat(e, "/");
    const auto product = [&](size_t j, const std::string& input,
                             const std::string& name) {
      return lowering
          .product(node, layers[i + j].role, part(mine + input), {part(mine + "count")},
                   part(mine + name))
          .status();
    };
    add("Equal", {part("chosen"), graph.integer(e)}, mine + "is_chosen");
    add("Where", {part(mine + "is_chosen"), weights, graph.number(0)}, mine + "weights");
    add("ReduceSum", {part(mine + "weights"), graph.integers({1})}, mine + "weight",
        {{"keepdims", int64_t{0}}});
    add("NonZero", {part(mine + "weight")}, mine + "rows");  // [1, n]
    add("Transpose", {part(mine + "rows")}, mine + "places",
        {{"perm", std::vector<int64_t>{1, 0}}});
    add("Squeeze", {part(mine + "rows"), graph.integers({0})}, mine + "tokens");
    add("Gather", {part("x"), part(mine + "tokens")}, mine + "x", {{"axis", int64_t{0}}});
    NIBBLE_RETURN_IF_ERROR(product(0, "x", "gate"));
    NIBBLE_RETURN_IF_ERROR(product(1, "x", "up"));
    add("Sigmoid", {part(mine + "gate")}, mine + "sigmoid");
    add("Mul", {part(mine + "gate"), part(mine + "sigmoid")}, mine + "silu");
    add("Mul", {part(mine + "silu"), part(mine + "up")}, mine + "hidden");
    NIBBLE_RETURN_IF_ERROR(product(2, "hidden", "down"));
    add("Gather", {part(mine + "weight"), part(mine + "tokens")}, mine + "counts",
        {{"axis", int64_t{0}}});
    add("Unsqueeze", {part(mine + "counts"), graph.integers({1})}, mine + "column");
    add("Mul", {part(mine + "down"), part(mine + "column")}, mine + "adds");
    add("Gather", {y, part(mine + "tokens")}, mine + "before", {{"axis", int64_t{0}}});
    add("Add", {part(mine + "before"), part(mine + "adds")}, mine + "after");
    y = add("ScatterND", {y, part(mine + "places"), part(mine + "after")}, mine + "y");
  }
  graph.add("Reshape", {y, part("shape")}, lowering.output(node));
  return ok_status();
}

Status lower_silu_mul(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const std::string gate = lowering.input(node, 0), up = lowering.input(node, 1);
  graph.add("Sigmoid", {gate}, lowering.inner(node, "sigmoid"));
  graph.add("Mul", {gate, lowering.inner(node, "sigmoid")}, lowering.inner(node, "silu"));
  graph.add("Mul", {lowering.inner(node, "silu"), up}, lowering.output(node));
  return ok_status();
}

Status lower_add(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Add", {lowering.input(node, 0), lowering.input(node, 1)},
                       lowering.output(node));
  return ok_status();
}

}  // namespace nibble
