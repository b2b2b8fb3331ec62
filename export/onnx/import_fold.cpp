#include "export/onnx/import_fold.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <set>

#include "export/onnx/import_graph.h"
#include "export/onnx/import_shapes.h"
#include "export/onnx/import_tensor.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

using Sizes = Import::Sizes;
using onnx::NodeProto;

constexpr int64_t kMostNumbers = 4096;            // integers of shape arithmetic: a few
constexpr int64_t kMostMoved = int64_t{1} << 24;  // elements of a constant that is moved

// Integers that may be open sizes.
struct Numbers {
  Sizes shape, values;
};

bool is_integer(DType dtype) {
  return dtype == DType::i64 || dtype == DType::i32 || dtype == DType::u8;
}

Sizes integers_of(const Tensor& tensor) {
  Sizes values;
  const int64_t size = dtype_bytes(tensor.dtype);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    const std::byte* from = tensor.bytes.data() + i * size;
    int64_t wide = 0;
    int32_t narrow = 0;
    if (size == 8) std::memcpy(&wide, from, sizeof(wide));
    if (size == 4) std::memcpy(&narrow, from, sizeof(narrow));
    if (size == 1) wide = static_cast<int64_t>(*from);
    values.push_back(wide + narrow);
  }
  return values;
}

class Folder {
 public:
  Folder(const std::filesystem::path& directory, std::map<std::string, Tensor>& constants,
         onnx::GraphProto& folded)
      : directory_(directory), constants_(constants), folded_(folded) {}

  Result<OnnxShapes> run(const onnx::GraphProto& graph,
                         const std::map<std::string, int64_t>& given) {
    for (const auto& [name, tensor] : constants_) note(name, tensor);
    NIBBLE_RETURN_IF_ERROR(add_inputs(graph, given));
    NIBBLE_RETURN_IF_ERROR(walk(graph));
    prune(graph);
    return std::move(shapes_);
  }

 private:
  void note(const std::string& name, const Tensor& tensor) {
    shapes_[name] = tensor.shape;
    if (is_integer(tensor.dtype) && tensor.numel() <= kMostNumbers)
      numbers_[name] = {tensor.shape, integers_of(tensor)};
  }

  void add_constant(const std::string& name, Tensor tensor) {
    note(name, tensor);
    constants_[name] = std::move(tensor);
  }

  // --- the graph's inputs

  Status add_inputs(const onnx::GraphProto& graph,
                    const std::map<std::string, int64_t>& given) {
    std::set<std::string> open;  // what can be given
    std::vector<const onnx::ValueInfoProto*> inputs;
    for (const auto& input : graph.input()) {
      if (!constants_.count(input.name())) inputs.push_back(&input);
    }
    std::string batch;
    for (const auto* input : inputs) {
      const auto& shape = input->type().tensor_type().shape();
      if (shape.dim_size() == 0) continue;
      batch = shape.dim(0).dim_param();
      break;
    }
    for (const auto* input : inputs) {
      const auto& type = input->type().tensor_type();
      if (!type.has_shape()) continue;
      Sizes shape;
      for (const auto& dim : type.shape().dim()) {
        const bool first = shape.empty() && inputs.size() == 1;  // left open though fixed
        const auto found = given.find(dim.dim_param());
        if (!dim.dim_param().empty() && dim.dim_param() != batch)
          open.insert(dim.dim_param());
        shape.push_back(first || (!batch.empty() && dim.dim_param() == batch) ? kBatchSize
                        : dim.dim_value() > 0  ? dim.dim_value()
                        : found != given.end() ? found->second
                                               : kNoSize);
      }
      shapes_[input->name()] = shape;
      const bool integers = type.elem_type() == onnx::TensorProto::INT64 ||
                            type.elem_type() == onnx::TensorProto::INT32;
      if (!integers || !shape.empty()) continue;
      open.insert(input->name());
      const auto found = given.find(input->name());
      numbers_[input->name()] = {{}, {found != given.end() ? found->second : kNoSize}};
    }
    for (const auto& [name, size] : given) {
      if (open.count(name)) continue;
      std::string names;
      for (const std::string& each : open) names += (names.empty() ? "" : ", ") + each;
      return error(
          StatusCode::invalid_argument, "[onnx] --size ", name,
          ": an open size of the inputs other than the batch, or an integer input, was "
          "required; found none of this name; there ",
          names.empty() ? "is none" : "are " + names);
    }
    return ok_status();
  }

  // --- the walk

  Status walk(const onnx::GraphProto& graph) {
    for (const NodeProto& node : graph.node()) NIBBLE_RETURN_IF_ERROR(step(node));
    return ok_status();
  }

  Status step(const NodeProto& node) {
    const bool standard = node.domain().empty() || node.domain() == "ai.onnx";
    if (!standard || node.output_size() < 1) return keep(node);
    if (node.op_type() == "If") return branch(node);
    if (node.op_type() == "Constant") {
      const auto* tensor = Import::attribute(node, "value");
      if (tensor == nullptr) return keep(node);
      onnx::TensorProto proto = tensor->t();
      proto.set_name(node.output(0));
      NIBBLE_ASSIGN_OR_RETURN(Tensor value, tensor_of(proto, directory_));
      add_constant(node.output(0), std::move(value));
      return ok_status();
    }
    if (node.input_size() < 1) return keep(node);
    if (std::optional<Numbers> numbers = compute(node)) {
      const bool known = is_known(numbers->values);
      if (!to_float(node)) numbers_[node.output(0)] = *numbers;
      shapes_[node.output(0)] = numbers->shape;
      if (!known) return keep(node);
      add_integers(node, *numbers);
      return ok_status();
    }
    if (move_constants(node)) return ok_status();
    if (changes_nothing(node)) {
      NodeProto same;
      same.set_op_type("Identity");
      same.set_name(node.name());
      same.add_input(node.input(zeros_at(node, 0) ? 1 : 0));
      same.add_output(node.output(0));
      return keep(same);
    }
    return keep(node);
  }

  Status keep(const NodeProto& node) {
    infer_onnx_shapes(node, lists(), shapes_);
    *folded_.add_node() = node;
    return ok_status();
  }

  Status branch(const NodeProto& node) {
    const auto condition = numbers_.find(node.input_size() > 0 ? node.input(0) : "");
    const auto *then_branch = Import::attribute(node, "then_branch"),
               *else_branch = Import::attribute(node, "else_branch");
    if (condition == numbers_.end() || condition->second.values.size() != 1 ||
        !is_known(condition->second.values) || then_branch == nullptr ||
        else_branch == nullptr) {
      return keep(node);
    }
    const bool taken = condition->second.values[0] != 0;
    const onnx::GraphProto& graph = (taken ? then_branch : else_branch)->g();
    for (const auto& proto : graph.initializer()) {
      NIBBLE_ASSIGN_OR_RETURN(Tensor value, tensor_of(proto, directory_));
      add_constant(proto.name(), std::move(value));
    }
    NIBBLE_RETURN_IF_ERROR(walk(graph));
    for (int i = 0; i < std::min(node.output_size(), graph.output_size()); ++i) {
      NodeProto same;
      same.set_op_type("Identity");
      same.set_name(cat(node.name(), ".", i));
      same.add_input(graph.output(i).name());
      same.add_output(node.output(i));
      NIBBLE_RETURN_IF_ERROR(step(same));
    }
    return ok_status();
  }

  // --- integers

  const Numbers* numbers(const NodeProto& node, int i) const {
    const auto found =
        Import::has_input(node, i) ? numbers_.find(node.input(i)) : numbers_.end();
    return found == numbers_.end() ? nullptr : &found->second;
  }

  // An attribute of older opsets that became the i-th input; nothing where the node has
  // neither or the input does not follow.
  std::optional<Sizes> list(const NodeProto& node, const char* name, int i) const {
    if (const Numbers* found = numbers(node, i)) return found->values;
    if (Import::has_input(node, i) || Import::attribute(node, name) == nullptr) return {};
    return Import::integers(node, name, {});
  }

  OnnxList lists() const {
    return [this](const NodeProto& node, const char* name, int i) {
      return list(node, name, i);
    };
  }

  static int64_t combine(const std::string& op, int64_t a, int64_t b) {
    const bool open = is_open(a) || is_open(b);
    if (op == "Mul" && (a == 0 || b == 0)) return 0;
    if (op == "Mul" && (a == 1 || b == 1)) return a == 1 ? b : a;
    if (op == "Add" && (a == 0 || b == 0)) return a == 0 ? b : a;
    if ((op == "Sub" && b == 0) || (op == "Div" && b == 1)) return a;
    if (op == "Div" && b == 0) return kNoSize;
    if (open) return kNoSize;
    if (op == "Add") return a + b;
    if (op == "Sub") return a - b;
    if (op == "Mul") return a * b;
    if (op == "Div") return a / b;
    if (op == "Equal") return a == b;
    if (op == "Less") return a < b;
    if (op == "Greater") return a > b;
    if (op == "And") return a != 0 && b != 0;
    return a != 0 || b != 0;  // Or
  }

  std::optional<Numbers> compute(const NodeProto& node) const {
    static const std::set<std::string> pairs = {"Add",  "Sub",     "Mul", "Div", "Equal",
                                                "Less", "Greater", "And", "Or"};
    const std::string& op = node.op_type();
    const auto shape = shapes_.find(node.input(0));
    if (op == "Shape" && shape != shapes_.end()) {
      const auto rank = static_cast<int64_t>(shape->second.size());
      const auto end = [&](const char* name, int64_t otherwise) {
        const int64_t at = Import::integer(node, name, otherwise);
        return std::clamp<int64_t>(at < 0 ? at + rank : at, 0, rank);
      };
      const int64_t first = end("start", 0), last = std::max(first, end("end", rank));
      const Sizes values(shape->second.begin() + first, shape->second.begin() + last);
      return Numbers{{last - first}, values};
    }
    if (op == "Size" && shape != shapes_.end()) {
      int64_t size = 1;
      for (const int64_t dim : shape->second) size = combine("Mul", size, dim);
      return Numbers{{}, {size}};
    }
    const Numbers* x = numbers(node, 0);
    if (x == nullptr) return {};
    if (pairs.count(op)) {
      const Numbers* y = numbers(node, 1);
      if (y == nullptr) return {};
      const Numbers& longer = x->values.size() < y->values.size() ? *y : *x;
      const size_t size = longer.values.size();
      const auto fits = [&](const Numbers& of) {
        return of.values.size() == 1 || of.shape == longer.shape;
      };
      if (!fits(*x) || !fits(*y)) return {};
      Numbers out{longer.shape.size() < y->shape.size() ? y->shape : longer.shape, {}};
      for (size_t i = 0; i < size; ++i) {
        out.values.push_back(combine(op, x->values[x->values.size() == 1 ? 0 : i],
                                     y->values[y->values.size() == 1 ? 0 : i]));
      }
      return out;
    }
    if (op == "Not" || op == "Cast") {
      const int64_t to = Import::integer(node, "to", 0);
      if (op == "Cast" && to != onnx::TensorProto::INT64 &&
          to != onnx::TensorProto::INT32 && to != onnx::TensorProto::BOOL &&
          to != onnx::TensorProto::FLOAT) {
        return {};
      }
      const bool logical = op == "Not" || to == onnx::TensorProto::BOOL;
      Numbers out = *x;
      if (to_float(node) && !is_known(out.values)) return {};
      for (int64_t& value : out.values) {
        if (logical) value = is_open(value) ? kNoSize : (value != 0) != (op == "Not");
      }
      return out;
    }
    if (op == "ConstantOfShape" && is_known(x->values)) {
      const auto* fill = Import::attribute(node, "value");
      int64_t count = 1;
      for (const int64_t dim : x->values)
        count = dim < 0 ? kMostNumbers + 1 : count * dim;
      if (fill == nullptr || fill->t().data_type() != onnx::TensorProto::INT64 ||
          count > kMostNumbers) {
        return {};
      }
      const Result<Tensor> one = tensor_of(fill->t(), directory_);
      if (!one.ok() || one->numel() != 1) return {};
      return Numbers{x->values, Sizes(static_cast<size_t>(count), integers_of(*one)[0])};
    }
    if (op == "Concat") {
      Numbers out{{0}, {}};
      for (int i = 0; i < node.input_size(); ++i) {
        const Numbers* part = numbers(node, i);
        if (part == nullptr || part->shape.size() != 1) return {};
        out.values.insert(out.values.end(), part->values.begin(), part->values.end());
      }
      out.shape = {static_cast<int64_t>(out.values.size())};
      return out;
    }
    const std::optional<MovedValues> moved = moved_of(node, x->shape);
    if (!moved) return {};
    Numbers out{moved->shape, {}};
    for (const int64_t from : moved->from)
      out.values.push_back(x->values[static_cast<size_t>(from)]);
    return out;
  }

  static bool to_float(const NodeProto& node) {
    return node.op_type() == "Cast" &&
           Import::integer(node, "to", 0) == onnx::TensorProto::FLOAT;
  }

  // As the constant that Import reads.
  void add_integers(const NodeProto& node, const Numbers& numbers) {
    Tensor tensor{DType::i64, numbers.shape, {}};
    if (to_float(node)) {
      const std::vector<float> floats(numbers.values.begin(), numbers.values.end());
      tensor.dtype = DType::f32;
      tensor.bytes = Bytes::copy_of(floats.data(), floats.size() * sizeof(float));
    } else {
      tensor.bytes =
          Bytes::copy_of(numbers.values.data(), numbers.values.size() * sizeof(int64_t));
    }
    add_constant(node.output(0), std::move(tensor));
  }

  // --- constants that are moved

  std::optional<MovedValues> moved_of(const NodeProto& node, const Sizes& shape) const {
    std::optional<MovedValues> moved = move_onnx_values(node, shape, lists());
    if (!moved || node.op_type() != "Gather") return moved;
    // The indices' own shape stands in the axis' place; a single one's has no axis.
    int64_t axis = Import::integer(node, "axis", 0);
    axis += axis < 0 ? static_cast<int64_t>(shape.size()) : 0;
    const Sizes& indices = shapes_.at(node.input(1));
    const auto at = moved->shape.erase(moved->shape.begin() + axis);
    moved->shape.insert(at, indices.begin(), indices.end());
    return moved;
  }

  bool move_constants(const NodeProto& node) {
    const auto source = constants_.find(node.input(0));
    if (source == constants_.end() || source->second.numel() > kMostMoved) return false;
    const auto size = static_cast<size_t>(dtype_bytes(source->second.dtype));
    if (node.op_type() == "Concat") return join_constants(node);
    const std::optional<MovedValues> moved = moved_of(node, source->second.shape);
    if (!moved) return false;
    std::byte* to = nullptr;
    Tensor result{source->second.dtype, moved->shape,
                  Bytes::allocate(moved->from.size() * size, &to)};
    for (size_t i = 0; i < moved->from.size(); ++i) {
      std::memcpy(
          to + i * size,
          source->second.bytes.data() + static_cast<size_t>(moved->from[i]) * size, size);
    }
    add_constant(node.output(0), std::move(result));
    return true;
  }

  // Along the first axis that they have: one after the other.
  bool join_constants(const NodeProto& node) {
    std::vector<const Tensor*> parts;
    size_t bytes = 0;
    for (const std::string& input : node.input()) {
      const auto part = constants_.find(input);
      if (part == constants_.end() || part->second.shape.empty()) return false;
      parts.push_back(&part->second);
      bytes += part->second.bytes.size();
    }
    const int64_t axis = Import::integer(node, "axis", 0);
    Sizes shape = parts[0]->shape;
    if (axis != 0 && axis != -static_cast<int64_t>(shape.size())) return false;
    shape[0] = 0;
    std::byte* to = nullptr;
    Tensor result{parts[0]->dtype, {}, Bytes::allocate(bytes, &to)};
    for (const Tensor* part : parts) {
      if (part->dtype != result.dtype || part->shape.size() != shape.size() ||
          !std::equal(shape.begin() + 1, shape.end(), part->shape.begin() + 1)) {
        return false;
      }
      shape[0] += part->shape[0];
      std::memcpy(to, part->bytes.data(), part->bytes.size());
      to += part->bytes.size();
    }
    result.shape = shape;
    add_constant(node.output(0), std::move(result));
    return true;
  }

  // --- what changes nothing

  bool zeros_at(const NodeProto& node, int i) const {
    const auto found =
        Import::has_input(node, i) ? constants_.find(node.input(i)) : constants_.end();
    if (found == constants_.end() || node.op_type() != "Add") return false;
    const Bytes& bytes = found->second.bytes;
    return std::all_of(bytes.data(), bytes.data() + bytes.size(),
                       [](std::byte byte) { return byte == std::byte{0}; });
  }

  bool changes_nothing(const NodeProto& node) const {
    const auto x = shapes_.find(node.input(0));
    if (x == shapes_.end()) return false;
    if (node.op_type() == "Add" && node.input_size() == 2) {
      const int zeros = zeros_at(node, 0) ? 0 : 1;
      const auto value = shapes_.find(node.input(1 - zeros)),
                 zero = shapes_.find(node.input(zeros));
      return zeros_at(node, zeros) && value != shapes_.end() &&
             zero->second.size() <= value->second.size() &&
             std::all_of(zero->second.begin(), zero->second.end(),
                         [](int64_t dim) { return dim == 1; });
    }
    if (node.op_type() != "Slice") return false;
    const auto out = sliced_onnx_shape(node, x->second, lists());
    return out && *out == x->second && is_forward_slice(node);
  }

  bool is_forward_slice(const NodeProto& node) const {
    const std::optional<Sizes> steps = list(node, "steps", 4);
    return !steps ||
           std::all_of(steps->begin(), steps->end(), [](int64_t s) { return s == 1; });
  }

  // --- what no output needs

  void prune(const onnx::GraphProto& graph) {
    // What is left of a branch reads values that are not among its node's inputs.
    for (const NodeProto& node : folded_.node()) {
      if (node.op_type() == "If" || node.op_type() == "Loop" || node.op_type() == "Scan")
        return;
    }
    std::set<std::string> needed;
    for (const auto& output : graph.output()) needed.insert(output.name());
    std::vector<NodeProto> kept;  // the last first
    for (int i = folded_.node_size() - 1; i >= 0; --i) {
      NodeProto& node = *folded_.mutable_node(i);
      if (std::none_of(node.output().begin(), node.output().end(),
                       [&](const std::string& name) { return needed.count(name) > 0; })) {
        continue;
      }
      needed.insert(node.input().begin(), node.input().end());
      kept.emplace_back().Swap(&node);
    }
    folded_.clear_node();
    for (auto node = kept.rbegin(); node != kept.rend(); ++node)
      folded_.add_node()->Swap(&*node);
  }

  const std::filesystem::path& directory_;
  std::map<std::string, Tensor>& constants_;
  onnx::GraphProto& folded_;
  OnnxShapes shapes_;
  std::map<std::string, Numbers> numbers_;
};

}  // namespace

Result<OnnxShapes> fold_graph(const onnx::GraphProto& graph,
                              const std::filesystem::path& directory,
                              const std::map<std::string, int64_t>& given,
                              std::map<std::string, Tensor>& constants,
                              onnx::GraphProto& folded) {
  return Folder(directory, constants, folded).run(graph, given);
}

}  // namespace nibble
