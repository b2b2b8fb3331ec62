#include "kernels/program/shape.h"

#include <charconv>

#include "kernels/program/layers.h"
#include "kernels/program/rope_attributes.h"

namespace nibble {
namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kMostValues = int64_t{1} << 40;  // far beyond any value's; products stay small

bool same_size(int64_t a, int64_t b) {
  return a == b || a == kUnknownSize || b == kUnknownSize;
}

bool same_shape(const Shape& a, const Shape& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_size(a[i], b[i])) return false;
  }
  return true;
}

Shape shape_of(const ProgramValue& value) {
  Shape shape;
  for (const std::string& text : value.shape) {
    int64_t size = 0;
    const char* last = text.data() + text.size();
    const auto read = std::from_chars(text.data(), last, size);
    shape.push_back(
        read.ec == std::errc() && read.ptr == last && size >= 0 ? size : kUnknownSize);
  }
  return shape;
}

class Walk {
 public:
  // given: null to derive every parameter's shape from attributes.
  Walk(const Program& program, const Shapes* given) : program_(program), given_(given) {}

  Status run() {
    for (const ProgramValue& input : program_.inputs)
      values_[input.name] = shape_of(input);
    for (const Node& node : program_.nodes) {
      NIBBLE_ASSIGN_OR_RETURN(Shape output, output_shape(node));
      values_[node.outputs[0]] = std::move(output);
    }
    for (const ProgramValue& output : program_.outputs) {
      const Shape& found = values_[output.name];
      if (!same_shape(found, shape_of(output))) {
        return error(StatusCode::invalid_argument, "[program] output ", output.name,
                     ": the program declares shape ", shape_text(shape_of(output)),
                     "; its nodes make ", shape_text(found), "; -1 is a size left open");
      }
    }
    return ok_status();
  }
  Shapes& parameters() { return parameters_; }
  Shapes& values() { return values_; }

 private:
  const Shape& input(const Node& node, size_t i) { return values_[node.inputs[i]]; }

  Status fail(const Node& node, const std::string& required, const std::string& found) {
    return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", required,
                 "; found ", found);
  }

  // An attribute that must be there and lie in [lowest, 2^31).
  Result<int64_t> size_attribute(const Node& node, const char* name, int64_t lowest) {
    const int64_t value = node.integer(name, lowest - 1);
    if (value < lowest || value >= (int64_t{1} << 31)) {
      return fail(node,
                  cat(node.op, " needs the integer attribute `", name, "` >= ", lowest),
                  node.attributes.count(name) ? cat("another value of it") : cat("none"));
    }
    return value;
  }

  Result<Shape> pair_attribute(const Node& node, const char* name, int64_t lowest,
                               const Shape& otherwise) {
    const Shape pair = node.integers(name, otherwise);
    const bool right_type =
        !node.attributes.count(name) ||
        std::holds_alternative<Shape>(node.attributes.find(name)->second);
    if (!right_type || pair.size() != 2 || pair[0] < lowest || pair[1] < lowest ||
        pair[0] >= (1 << 20) || pair[1] >= (1 << 20)) {
      return fail(node, cat("attribute `", name, "` must be two integers >= ", lowest),
                  right_type ? shape_text(pair) : cat("another type"));
    }
    return pair;
  }

  // The shape of a parameter, where `required` has kUnknownSize for what the tensor
  // decides.
  Result<Shape> parameter(const Node& node, const char* role, Shape required,
                          const char* size_attributes) {
    const std::string& tensor = node.parameter(role);
    if (given_ != nullptr) {
      const auto found = given_->find(tensor);
      if (found == given_->end()) {
        return error(StatusCode::not_found, "[program] ", tensor, ": node ", node.name,
                     " needs this tensor with shape ", shape_text(required),
                     "; the model has none of that name; is the checkpoint complete?");
      }
      if (!same_shape(found->second, required)) {
        return error(StatusCode::invalid_argument, "[program] ", tensor, ": node ",
                     node.name, " needs shape ", shape_text(required), "; found ",
                     shape_text(found->second),
                     "; do config.json and the weights belong together?");
      }
      required = found->second;
    }
    for (const int64_t size : required) {
      if (size == kUnknownSize) {
        return fail(
            node, cat("attributes ", size_attributes, " must say the shape of ", tensor),
            cat("not all of them"));
      }
    }
    const auto [entry, is_new] = parameters_.emplace(tensor, required);
    if (!is_new && entry->second != required) {
      return error(StatusCode::invalid_argument, "[program] ", tensor, ": node ",
                   node.name, " needs shape ", shape_text(required),
                   "; another node needs ", shape_text(entry->second), "; untie the two");
    }
    return required;
  }

  Result<Shape> embedding(const Node& node) {
    // Positions have a table of their own; so do token types, which say its rows.
    const int64_t vocabulary =
        program_.vocabulary > 0 && node.op == "embedding" ? program_.vocabulary : kUnknownSize;
    const int64_t rows = node.integer("rows", vocabulary);
    NIBBLE_ASSIGN_OR_RETURN(
        const Shape weight,
        parameter(node, "weight", {rows, node.integer("features", kUnknownSize)},
                  "features and rows"));
    Shape output = input(node, 0);
    output.push_back(weight[1]);
    return output;
  }

  Result<Shape> linear(const Node& node) {
    Shape output = input(node, 0);
    if (output.empty()) return fail(node, "linear reads [.., features]", "a scalar");
    NIBBLE_ASSIGN_OR_RETURN(
        const Shape weight,
        parameter(node, "weight",
                  {node.integer("out_features", kUnknownSize), output.back()},
                  "out_features"));
    if (!node.parameter("bias").empty()) {
      NIBBLE_RETURN_IF_ERROR(
          parameter(node, "bias", {weight[0]}, "out_features").status());
    }
    output.back() = weight[0];
    return output;
  }

  Result<Shape> conv2d(const Node& node) {
    const Shape x = input(node, 0);
    if (x.size() != 4) return fail(node, "conv2d reads [n, c, h, w]", shape_text(x));
    NIBBLE_ASSIGN_OR_RETURN(const Shape stride,
                            pair_attribute(node, "stride", 1, {1, 1}));
    NIBBLE_ASSIGN_OR_RETURN(const Shape padding,
                            pair_attribute(node, "padding", 0, {0, 0}));
    const int64_t groups = node.integer("groups", 1);
    if (groups < 1 || (x[1] != kUnknownSize && x[1] % groups != 0)) {
      return fail(node, cat("groups must divide the ", x[1], " input channels"),
                  cat(groups));
    }
    const Shape kernel = node.integers("kernel", {kUnknownSize, kUnknownSize});
    if (kernel.size() != 2) {
      return fail(node, "attribute `kernel` must be two integers", shape_text(kernel));
    }
    const int64_t group_channels = x[1] == kUnknownSize ? kUnknownSize : x[1] / groups;
    NIBBLE_ASSIGN_OR_RETURN(const Shape weight,
                            parameter(node, "weight",
                                      {node.integer("out_channels", kUnknownSize),
                                       group_channels, kernel[0], kernel[1]},
                                      "out_channels and kernel"));
    if (weight[0] % groups != 0) {
      return fail(node, cat("groups must divide the ", weight[0], " output channels"),
                  cat(groups));
    }
    if (!node.parameter("bias").empty()) {
      NIBBLE_RETURN_IF_ERROR(
          parameter(node, "bias", {weight[0]}, "out_channels").status());
    }
    Shape output = {x[0], weight[0], kUnknownSize, kUnknownSize};
    for (size_t i = 0; i < 2; ++i) {
      const int64_t size = x[2 + i];
      if (size == kUnknownSize) continue;
      const int64_t span = size + 2 * padding[i] - weight[2 + i];
      if (span < 0) {
        return fail(node,
                    cat("the kernel ", shape_text(weight), " must fit the padded input"),
                    shape_text(x));
      }
      output[2 + i] = span / stride[i] + 1;
    }
    return output;
  }

  Result<Shape> norm(const Node& node, size_t axis) {
    const Shape x = input(node, 0);
    if (x.empty() || (axis == 1 && x.size() < 2)) {
      return fail(node, cat(node.op, " reads a value with a channel axis"),
                  shape_text(x));
    }
    int64_t features = axis == 1 ? x[1] : x.back();
    if (node.attributes.count("head_dim")) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t head_dim,
                              size_attribute(node, "head_dim", 1));
      if (features != kUnknownSize && features % head_dim != 0) {
        return fail(node, cat(node.op, " reads [.., heads * ", head_dim, "]"),
                    shape_text(x));
      }
      features = head_dim;
    }
    for (const std::string& role : find_op(node.op)->required_parameters) {
      NIBBLE_RETURN_IF_ERROR(
          parameter(node, role.c_str(), {features}, "of the nodes before").status());
    }
    if (!(node.number("epsilon", -1) > 0)) {
      return fail(node, cat(node.op, " needs the attribute `epsilon` > 0"),
                  cat(node.number("epsilon", 0)));
    }
    return x;
  }

  Result<Shape> rope(const Node& node) {
    const Shape x = input(node, 0);
    NIBBLE_ASSIGN_OR_RETURN(const int64_t head_dim, size_attribute(node, "head_dim", 2));
    if (head_dim % 2 != 0 || x.empty() ||
        (x.back() != kUnknownSize && x.back() % head_dim)) {
      return fail(
          node,
          cat("rope reads [.., heads * head_dim] with an even head_dim, here ", head_dim),
          shape_text(x));
    }
    NIBBLE_RETURN_IF_ERROR(check_rope(node));
    return x;
  }

  Result<Shape> attention(const Node& node) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t heads, size_attribute(node, "heads", 1));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t kv_heads, size_attribute(node, "kv_heads", 1));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t head_dim, size_attribute(node, "head_dim", 1));
    if (node.attributes.count("window")) {
      NIBBLE_RETURN_IF_ERROR(size_attribute(node, "window", 1).status());
    }
    if (heads % kv_heads != 0) {
      return fail(node, cat("kv_heads must divide the ", heads, " heads"), cat(kv_heads));
    }
    for (size_t i = 0; i < 3; ++i) {
      const Shape x = input(node, i);
      const int64_t required = (i == 0 ? heads : kv_heads) * head_dim;
      if (x.empty() || !same_size(x.back(), required)) {
        return fail(node,
                    cat("input ", node.inputs[i], " must have ", required, " features"),
                    shape_text(x));
      }
    }
    for (const ProgramState& state : program_.states) {
      if (state.name == node.text("state", "") &&
          (state.kv_heads != kv_heads || state.head_dim != head_dim)) {
        return fail(node, cat("its state must have ", kv_heads, " heads of ", head_dim),
                    cat(state.kv_heads, " of ", state.head_dim));
      }
    }
    return input(node, 0);
  }

  // [.., T, D] -> [.., D]
  Result<Shape> pool(const Node& node) {
    Shape x = input(node, 0);
    if (x.size() < 2) {
      return fail(node, cat(node.op, " reads [.., tokens, features]"), shape_text(x));
    }
    x.erase(x.end() - 2);
    return x;
  }

  Result<Shape> moe(const Node& node) {
    const Shape x = input(node, 0), logits = input(node, 1);
    NIBBLE_ASSIGN_OR_RETURN(const int64_t experts, size_attribute(node, "experts", 1));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t chosen,
                            size_attribute(node, "experts_per_token", 1));
    if (chosen > experts) {
      return fail(node,
                  cat("experts_per_token must be at most the ", experts, " experts"),
                  cat(chosen));
    }
    if (x.empty() || logits.empty() || !same_size(logits.back(), experts)) {
      return fail(node, cat("moe reads x [.., D] and router logits [.., ", experts, "]"),
                  cat(shape_text(x), " and ", shape_text(logits)));
    }
    for (const Layer& layer : layers_of(node)) {
      const bool down = layer.role.ends_with(".down_proj");
      const int64_t width = node.integer("width", kUnknownSize);
      const Shape shape = down ? Shape{x.back(), width} : Shape{width, x.back()};
      NIBBLE_ASSIGN_OR_RETURN(const Shape found,
                              parameter(node, layer.role.c_str(), shape, "width"));
      if (found[down ? 1 : 0] == parameters_[node.parameter("0.gate_proj")][0]) continue;
      return fail(node, cat(layer.tensor, " must be as wide as the expert's gate_proj"),
                  shape_text(found));
    }
    return x;
  }

  Result<Shape> two_equal(const Node& node) {
    const Shape a = input(node, 0), b = input(node, 1);
    if (!same_shape(a, b)) {
      return fail(node, cat(node.op, " reads two values of equal shape"),
                  cat(node.inputs[0], " ", shape_text(a), " and ", node.inputs[1], " ",
                      shape_text(b)));
    }
    return a;
  }

  Result<Shape> shortcut_pad(const Node& node) {
    Shape x = input(node, 0);
    if (x.size() != 4)
      return fail(node, "shortcut_pad reads [n, c, h, w]", shape_text(x));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t stride, size_attribute(node, "stride", 1));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t before, size_attribute(node, "pad_before", 0));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t after, size_attribute(node, "pad_after", 0));
    if (x[1] != kUnknownSize) x[1] += before + after;
    for (size_t i = 2; i < 4; ++i) {
      if (x[i] != kUnknownSize) x[i] = (x[i] + stride - 1) / stride;
    }
    return x;
  }

  Result<Shape> max_pool(const Node& node) {
    Shape x = input(node, 0);
    if (x.size() != 4) return fail(node, "max_pool reads [n, c, h, w]", shape_text(x));
    NIBBLE_ASSIGN_OR_RETURN(const Shape kernel, pair_attribute(node, "kernel", 1, {0, 0}));
    NIBBLE_ASSIGN_OR_RETURN(const Shape stride, pair_attribute(node, "stride", 1, {1, 1}));
    NIBBLE_ASSIGN_OR_RETURN(const Shape padding, pair_attribute(node, "padding", 0, {0, 0}));
    for (size_t i = 0; i < 2; ++i) {
      if (padding[i] >= kernel[i]) {
        return fail(node, "the padding must be smaller than the kernel", shape_text(padding));
      }
      int64_t& size = x[2 + i];
      if (size == kUnknownSize) continue;
      const int64_t span = size + 2 * padding[i] - kernel[i];
      if (span < 0) {
        return fail(node, cat("the kernel ", shape_text(kernel), " must fit the padded input"),
                    shape_text(input(node, 0)));
      }
      size = span / stride[i] + 1;
    }
    return x;
  }

  // [n, c, ..] of every input, all sizes but c equal.
  Result<Shape> concat(const Node& node) {
    Shape joined = input(node, 0);
    for (size_t i = 1; i < node.inputs.size(); ++i) {
      const Shape x = input(node, i);
      bool fits = x.size() >= 2 && x.size() == joined.size();
      for (size_t d = 0; fits && d < x.size(); ++d) {
        fits = d == 1 || same_size(x[d], joined[d]);
      }
      if (!fits) {
        return fail(node, "concat reads values [n, c, ..] that differ in c alone",
                    cat(shape_text(joined), " and ", node.inputs[i], " ", shape_text(x)));
      }
      const bool known = joined[1] != kUnknownSize && x[1] != kUnknownSize;
      joined[1] = known ? joined[1] + x[1] : kUnknownSize;
    }
    return joined;
  }

  Result<Shape> reshape(const Node& node) {
    const Shape x = input(node, 0), to = node.integers("shape", {});
    Shape y = {x.empty() ? kUnknownSize : x[0]};
    int64_t before = 1, after = 1;
    for (size_t i = 1; i < x.size(); ++i) before = x[i] < 0 || before < 0 ? -2 : before * x[i];
    for (const int64_t size : to) {
      after = size < 1 || after < 0 || size > kMostValues / after ? -1 : after * size;
      y.push_back(size);
    }
    if (x.empty() || after < 0 || before != after) {
      return fail(node, "reshape reads [n, ..] and keeps its values; `shape` has the sizes after n",
                  cat(shape_text(to), " of ", shape_text(x)));
    }
    return y;
  }

  Result<Shape> transpose(const Node& node) {
    const Shape x = input(node, 0), perm = node.integers("perm", {});
    Shape y(x.size(), kUnknownSize);
    std::vector<bool> taken(x.size(), false);
    bool fits = perm.size() == x.size();
    for (size_t i = 0; fits && i < perm.size(); ++i) {
      fits = perm[i] >= 0 && perm[i] < static_cast<int64_t>(x.size()) &&
             !taken[static_cast<size_t>(perm[i])];
      if (!fits) break;
      taken[static_cast<size_t>(perm[i])] = true;
      y[i] = x[static_cast<size_t>(perm[i])];
    }
    if (fits) return y;
    return fail(node, cat("perm must order the ", x.size(), " axes"), shape_text(perm));
  }

  Result<Shape> slice(const Node& node) {
    Shape x = input(node, 0);
    NIBBLE_ASSIGN_OR_RETURN(const int64_t axis, size_attribute(node, "axis", 0));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t start, size_attribute(node, "start", 0));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t end, size_attribute(node, "end", 1));
    const int64_t step = node.integer("step", 1);
    const bool there = axis < static_cast<int64_t>(x.size());
    const int64_t size = there ? x[static_cast<size_t>(axis)] : kUnknownSize;
    if (size == kUnknownSize || step < 1 || start >= end || end > size) {
      return fail(node, "slice takes start to end, by step, of an axis of known size",
                  cat(start, " to ", end, " by ", step, " of axis ", axis, " of ", shape_text(x)));
    }
    x[static_cast<size_t>(axis)] = (end - start + step - 1) / step;
    return x;
  }

  Result<Shape> reflect_pad(const Node& node) {
    Shape x = input(node, 0);
    NIBBLE_ASSIGN_OR_RETURN(const int64_t before, size_attribute(node, "before", 0));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t after, size_attribute(node, "after", 0));
    if (x.empty() || x.back() == kUnknownSize || before >= x.back() || after >= x.back()) {
      return fail(node, "a padding by reflection must be shorter than the last axis",
                  cat(before, " and ", after, " of ", shape_text(x)));
    }
    x.back() += before + after;
    return x;
  }

  Result<Shape> hadamard(const Node& node) {
    const Shape x = input(node, 0);
    NIBBLE_ASSIGN_OR_RETURN(const int64_t block, size_attribute(node, "block", 1));
    if ((block & (block - 1)) != 0) {
      return fail(node, "attribute `block` must be a power of two", cat(block));
    }
    if (x.empty() || (x.back() != kUnknownSize && x.back() % block != 0)) {
      return fail(node, cat("hadamard reads rows of a multiple of ", block),
                  shape_text(x));
    }
    return x;
  }

  Result<Shape> lstm(const Node& node) {
    const Shape x = input(node, 0);
    if (x.size() != 3) return fail(node, "lstm reads [n, T, features]", shape_text(x));
    const int64_t hidden = node.integer("hidden_size", kUnknownSize);
    const int64_t gates = hidden == kUnknownSize ? hidden : 4 * hidden;
    NIBBLE_ASSIGN_OR_RETURN(const Shape over_h,
                            parameter(node, "weight_hh", {gates, hidden}, "hidden_size"));
    if (over_h[0] != 4 * over_h[1]) {
      return fail(node, "weight_hh must be [4 H, H]", shape_text(over_h));
    }
    NIBBLE_RETURN_IF_ERROR(
        parameter(node, "weight_ih", {over_h[0], x[2]}, "hidden_size").status());
    if (!node.parameter("bias").empty()) {
      NIBBLE_RETURN_IF_ERROR(parameter(node, "bias", {over_h[0]}, "hidden_size").status());
    }
    if (node.inputs.size() != 1 && node.inputs.size() != 3) {
      return fail(node, "lstm reads x, or x, h and c", cat(node.inputs.size(), " values"));
    }
    for (size_t i = 1; i < node.inputs.size(); ++i) {
      if (same_shape(input(node, i), {x[0], over_h[1]})) continue;
      return fail(node, cat("input ", node.inputs[i], " must be [n, ", over_h[1], "]"),
                  shape_text(input(node, i)));
    }
    return Shape{x[0], x[1] == kUnknownSize ? kUnknownSize : x[1] + 1, over_h[1]};
  }

  Result<Shape> output_shape(const Node& node) {
    if (node.op == "embedding" || node.op == "position_embedding") return embedding(node);
    if (node.op == "linear") return linear(node);
    if (node.op == "conv2d") return conv2d(node);
    if (node.op == "rms_norm" || node.op == "layer_norm") return norm(node, 0);
    if (node.op == "batch_norm") return norm(node, 1);
    if (node.op == "rope") return rope(node);
    if (node.op == "attention") return attention(node);
    if (node.op == "moe") return moe(node);
    if (node.op == "silu_mul" || node.op == "add" || node.op == "mul") return two_equal(node);
    if (node.op == "reshape") return reshape(node);
    if (node.op == "transpose") return transpose(node);
    if (node.op == "slice") return slice(node);
    if (node.op == "reflect_pad") return reflect_pad(node);
    if (node.op == "lstm") return lstm(node);
    if (node.op == "relu" || node.op == "leaky_relu" || node.op == "gelu" ||
        node.op == "l2_normalize" || node.op == "sqrt" || node.op == "sigmoid") {
      return input(node, 0);
    }
    if (node.op == "hadamard") return hadamard(node);
    if (node.op == "mean_pool" || node.op == "first_token") return pool(node);
    if (node.op == "shortcut_pad") return shortcut_pad(node);
    if (node.op == "max_pool") return max_pool(node);
    if (node.op == "concat") return concat(node);
    if (node.op == "softmax") {
      if (input(node, 0).empty()) return fail(node, "softmax reads [.., features]", "a scalar");
      return input(node, 0);
    }
    const Shape x = input(node, 0);
    if (node.op == "global_average_pool") {
      if (x.size() != 4) return fail(node, "it reads [n, c, h, w]", shape_text(x));
      return Shape{x[0], x[1]};
    }
    if (node.op == "flatten") {
      if (x.empty()) return fail(node, "flatten reads [n, ..]", "a scalar");
      int64_t product = 1;
      for (size_t i = 1; i < x.size(); ++i) {
        if (x[i] == kUnknownSize) {
          product = kUnknownSize;
          break;
        }
        product *= x[i];
      }
      return Shape{x[0], product};
    }
    return error(StatusCode::unsupported, "[program] ", node.name, ": op `", node.op,
                 "` has no shape rule; add one to program/shape.cpp");
  }

  const Program& program_;
  const Shapes* given_;
  Shapes parameters_, values_;
};

}  // namespace

Result<Shapes> parameter_shapes(const Program& program) {
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  Walk walk(program, nullptr);
  NIBBLE_RETURN_IF_ERROR(walk.run());
  return std::move(walk.parameters());
}

Status check_shapes(const Program& program, const Shapes& given, Shapes* values) {
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  Walk walk(program, &given);
  NIBBLE_RETURN_IF_ERROR(walk.run());
  if (values != nullptr) *values = std::move(walk.values());
  return ok_status();
}

}  // namespace nibble
