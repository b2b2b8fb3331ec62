#include "export/onnx/import_shapes.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "export/onnx/import_graph.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

using Sizes = Import::Sizes;
using Maybe = std::optional<Sizes>;
using onnx::NodeProto;

// An axis of `rank` dimensions from the front; -1: it has none such.
int64_t from_front(int64_t axis, size_t rank) {
  const auto n = static_cast<int64_t>(rank);
  axis += axis < 0 ? n : 0;
  return axis >= 0 && axis < n ? axis : -1;
}

Maybe axes_from_front(const Maybe& axes, size_t rank) {
  if (!axes || !is_known(*axes)) return {};
  Sizes out;
  for (const int64_t axis : *axes) {
    out.push_back(from_front(axis, rank));
    if (out.back() < 0) return {};
  }
  std::sort(out.begin(), out.end());
  return out;
}

Maybe unsqueezed(const NodeProto& node, const Sizes& x, const OnnxList& list) {
  const Maybe given = list(node, "axes", 1);
  const Maybe axes = given ? axes_from_front(given, x.size() + given->size()) : given;
  if (!axes) return {};
  Sizes out = x;
  for (const int64_t axis : *axes) out.insert(out.begin() + axis, 1);
  return out;
}

Maybe squeezed(const NodeProto& node, const Sizes& x, const OnnxList& list) {
  const bool all =
      !Import::has_input(node, 1) && Import::attribute(node, "axes") == nullptr;
  const Maybe axes = axes_from_front(list(node, "axes", 1), x.size());
  if (!all && !axes) return {};
  Sizes out;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool named =
        axes && std::count(axes->begin(), axes->end(), static_cast<int64_t>(i)) > 0;
    if (all && is_open(x[i])) return {};
    if (named && x[i] != 1) return {};
    if (!(named || (all && x[i] == 1))) out.push_back(x[i]);
  }
  return out;
}

// -1 takes what is left; of a value whose batch is open, the batch must stay a size of
// its own.
Maybe reshaped(const NodeProto& node, const Sizes& x, const OnnxList& list) {
  const Maybe to = list(node, "shape", 1);
  if (!to) return {};
  int64_t values = 1, taken = 1, batches = 0;
  for (const int64_t size : x) {
    if (size == kNoSize) return {};
    if (size == kBatchSize)
      ++batches;
    else
      values *= size;
  }
  Sizes out = *to;
  int64_t rest = -1;
  const bool zero_is_zero = Import::integer(node, "allowzero", 0) != 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] == 0 && !zero_is_zero) {
      if (i >= x.size()) return {};
      out[i] = x[i];
    }
    if (out[i] == kNoSize || (out[i] == -1 && rest >= 0)) return {};
    if (out[i] == kBatchSize)
      --batches;
    else if (out[i] == -1)
      rest = static_cast<int64_t>(i);
    else
      taken *= out[i];
  }
  if (taken == 0 || values % taken != 0) return {};
  const int64_t left = values / taken;
  if (rest < 0) return batches == 0 && left == 1 ? Maybe(out) : Maybe();
  if (batches == 1 && left == 1) {
    out[static_cast<size_t>(rest)] = kBatchSize;
  } else if (batches == 0) {
    out[static_cast<size_t>(rest)] = left;
  } else {
    return {};
  }
  return out;
}

Maybe permutation(const NodeProto& node, size_t rank) {
  Sizes perm(rank);
  std::iota(perm.rbegin(), perm.rend(), 0);
  perm = Import::integers(node, "perm", perm);
  Sizes sorted = perm;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) {
    if (sorted[i] != static_cast<int64_t>(i)) return {};
  }
  return perm.size() == rank ? Maybe(perm) : Maybe();
}

// Sizes behind `first` of Conv and MaxPool: (size + pads - dilation (k - 1) - 1) / stride
// + 1.
Maybe windows(const NodeProto& node, const Sizes& x, const Sizes& kernel,
              int64_t channels) {
  const auto* automatic = Import::attribute(node, "auto_pad");
  const size_t spatial = kernel.size();
  const auto ones = [&](const char* name) {
    return Import::integers(node, name, Sizes(spatial, 1));
  };
  const Sizes strides = ones("strides"), dilations = ones("dilations");
  const Sizes pads = Import::integers(node, "pads", Sizes(2 * spatial, 0));
  if (x.size() != spatial + 2 || strides.size() != spatial ||
      dilations.size() != spatial || pads.size() != 2 * spatial ||
      Import::integer(node, "ceil_mode", 0) != 0 ||
      (automatic != nullptr && automatic->s() != "NOTSET")) {
    return {};
  }
  Sizes out = {x[0], channels};
  for (size_t i = 0; i < spatial; ++i) {
    const int64_t span =
        x[2 + i] + pads[i] + pads[spatial + i] - dilations[i] * (kernel[i] - 1) - 1;
    if (is_open(x[2 + i]) || span < 0 || strides[i] < 1) return {};
    out.push_back(span / strides[i] + 1);
  }
  return out;
}

Maybe padded(const NodeProto& node, const Sizes& x, const OnnxList& list) {
  const Maybe pads = list(node, "pads", 1);
  if (!pads || pads->size() != 2 * x.size() || Import::has_input(node, 3)) return {};
  Sizes out = x;
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t both = (*pads)[i] + (*pads)[x.size() + i];
    if (is_open((*pads)[i]) || is_open((*pads)[x.size() + i])) return {};
    if (both != 0 && is_open(out[i])) return {};
    if (both != 0) out[i] += both;
  }
  return out;
}

Maybe broadcast(const Sizes& a, const Sizes& b) {
  const Sizes& longer = a.size() < b.size() ? b : a;
  const Sizes& shorter = a.size() < b.size() ? a : b;
  Sizes out = longer;
  for (size_t i = 1; i <= shorter.size(); ++i) {
    int64_t& size = out[out.size() - i];
    const int64_t other = shorter[shorter.size() - i];
    if (size == 1)
      size = other;
    else if (other != 1 && other != size)
      return {};
  }
  return out;
}

Maybe reduced(const NodeProto& node, const Sizes& x, const OnnxList& list) {
  const Maybe axes = axes_from_front(list(node, "axes", 1), x.size());
  if (!axes) return {};
  Sizes out;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool gone = std::count(axes->begin(), axes->end(), static_cast<int64_t>(i)) > 0;
    if (!gone) out.push_back(x[i]);
    if (gone && Import::integer(node, "keepdims", 1) != 0) out.push_back(1);
  }
  return out;
}

Maybe joined(const NodeProto& node, const OnnxShapes& shapes) {
  Sizes out;
  for (int i = 0; i < node.input_size(); ++i) {
    const auto found = shapes.find(node.input(i));
    if (found == shapes.end()) return {};
    const int64_t axis =
        from_front(Import::integer(node, "axis", 0), found->second.size());
    if (axis < 0 || (i > 0 && found->second.size() != out.size())) return {};
    if (i == 0) {
      out = found->second;
      continue;
    }
    int64_t& size = out[static_cast<size_t>(axis)];
    const int64_t more = found->second[static_cast<size_t>(axis)];
    size = is_open(size) || is_open(more) ? kNoSize : size + more;
  }
  return out;
}

// [.., m, k] times a matrix [k, n].
Maybe multiplied(const Sizes& x, const Sizes& w, bool turned) {
  if (x.empty() || w.size() != 2) return {};
  Sizes out = x;
  out.back() = w[turned ? 0 : 1];
  return out;
}

void infer_lstm(const NodeProto& node, const Sizes& x, OnnxShapes& shapes) {
  const auto w = shapes.find(Import::has_input(node, 2) ? node.input(2) : "");
  if (x.size() != 3 || w == shapes.end() || w->second.size() != 3 ||
      Import::integer(node, "layout", 0) != 0) {
    return;
  }
  const int64_t directions = w->second[0], hidden = w->second[2];
  const Sizes every = {x[0], directions, x[1], hidden}, last = {directions, x[1], hidden};
  for (int i = 0; i < std::min(node.output_size(), 3); ++i) {
    if (!node.output(i).empty()) shapes[node.output(i)] = i == 0 ? every : last;
  }
}

Maybe gathered(const NodeProto& node, const Sizes& x, const OnnxShapes& shapes) {
  const int64_t axis = from_front(Import::integer(node, "axis", 0), x.size());
  const auto indices = shapes.find(Import::has_input(node, 1) ? node.input(1) : "");
  if (axis < 0 || indices == shapes.end()) return {};
  Sizes out(x.begin(), x.begin() + axis);
  out.insert(out.end(), indices->second.begin(), indices->second.end());
  out.insert(out.end(), x.begin() + axis + 1, x.end());
  return out;
}

Maybe shape_of_one(const NodeProto& node, const Sizes& x, const OnnxList& list,
                   const OnnxShapes& shapes) {
  static const std::set<std::string> same = {"Relu",
                                             "LeakyRelu",
                                             "Sqrt",
                                             "Sigmoid",
                                             "Tanh",
                                             "Exp",
                                             "Erf",
                                             "Neg",
                                             "Abs",
                                             "Not",
                                             "Cast",
                                             "Identity",
                                             "Dropout",
                                             "Softmax",
                                             "Clip",
                                             "BatchNormalization",
                                             "LayerNormalization"};
  static const std::set<std::string> pairs = {"Add",   "Sub",  "Mul",     "Div", "Pow",
                                              "Equal", "Less", "Greater", "And", "Or"};
  const std::string& op = node.op_type();
  const auto second = shapes.find(Import::has_input(node, 1) ? node.input(1) : "");
  const bool two = second != shapes.end();
  if (same.count(op)) return x;
  if (pairs.count(op)) return two ? broadcast(x, second->second) : Maybe();
  if (op == "Conv" && two && second->second.size() > 2) {
    const Sizes& w = second->second;
    return windows(node, x, Sizes(w.begin() + 2, w.end()), w[0]);
  }
  if (op == "MaxPool" && x.size() > 2)
    return windows(node, x, Import::integers(node, "kernel_shape", {}), x[1]);
  if (op == "GlobalAveragePool" && x.size() > 2) {
    Sizes out(x.size(), 1);
    std::copy_n(x.begin(), 2, out.begin());
    return out;
  }
  if (op == "Pad") return padded(node, x, list);
  if (op == "ReduceMean") return reduced(node, x, list);
  if (op == "Unsqueeze") return unsqueezed(node, x, list);
  if (op == "Squeeze") return squeezed(node, x, list);
  if (op == "Reshape") return reshaped(node, x, list);
  if (op == "Concat") return joined(node, shapes);
  if (op == "Gather") return gathered(node, x, shapes);
  if (op == "Slice") return sliced_onnx_shape(node, x, list);
  if (op == "MatMul" && two) return multiplied(x, second->second, false);
  if (op == "Gemm" && two)
    return multiplied(x, second->second, Import::integer(node, "transB", 0) != 0);
  if (op == "Transpose") {
    const Maybe perm = permutation(node, x.size());
    if (!perm) return {};
    Sizes out;
    for (const int64_t axis : *perm) out.push_back(x[static_cast<size_t>(axis)]);
    return out;
  }
  if (op == "Flatten" && Import::integer(node, "axis", 1) == 1 && !x.empty()) {
    int64_t size = 1;
    for (size_t i = 1; i < x.size(); ++i)
      size = is_open(x[i]) || size < 0 ? -1 : size * x[i];
    return size < 0 ? Maybe() : Maybe(Sizes{x[0], size});
  }
  return {};
}

}  // namespace

bool is_open(int64_t size) { return size == kBatchSize || size == kNoSize; }

bool is_known(const Sizes& sizes) {
  return std::none_of(sizes.begin(), sizes.end(), is_open);
}

std::optional<std::vector<OnnxRange>> onnx_ranges(const NodeProto& slice,
                                                  const Sizes& shape,
                                                  const OnnxList& list) {
  std::vector<OnnxRange> ranges;
  for (const int64_t size : shape) ranges.push_back({0, 1, size});
  const Maybe starts = list(slice, "starts", 1), ends = list(slice, "ends", 2);
  if (!starts || !ends || starts->size() != ends->size()) return {};
  Sizes all(starts->size());
  std::iota(all.begin(), all.end(), 0);
  const bool has_axes = Import::has_input(slice, 3) || Import::attribute(slice, "axes");
  const Maybe axes = has_axes ? list(slice, "axes", 3) : Maybe(all);
  const Maybe steps = Import::has_input(slice, 4) ? list(slice, "steps", 4)
                                                  : Maybe(Sizes(starts->size(), 1));
  if (!axes || !steps || axes->size() != starts->size() ||
      steps->size() != starts->size())
    return {};
  for (size_t i = 0; i < axes->size(); ++i) {
    const int64_t axis = from_front((*axes)[i], shape.size());
    const int64_t step = (*steps)[i];
    int64_t start = (*starts)[i], end = (*ends)[i];
    // A backward slice to the beginning ends at a number that else says an open size.
    if (axis < 0 || is_open(start) || is_open(step) || step == 0 ||
        (step > 0 && is_open(end)))
      return {};
    const int64_t size = shape[static_cast<size_t>(axis)];
    if (is_open(size)) {
      if (start == 0 && step == 1 && end >= INT32_MAX) continue;
      return {};
    }
    start = std::clamp<int64_t>(start < 0 ? start + size : start, 0,
                                step > 0 ? size : size - 1);
    end = end < 0 ? std::max<int64_t>(end, -size - 1) + size : end;
    end = std::clamp<int64_t>(end, step > 0 ? 0 : -1, size);
    const int64_t span = step > 0 ? end - start + step - 1 : start - end - step - 1;
    ranges[static_cast<size_t>(axis)] = {start, step,
                                         std::max<int64_t>(0, span / std::abs(step))};
  }
  return ranges;
}

std::optional<Sizes> sliced_onnx_shape(const NodeProto& slice, const Sizes& shape,
                                       const OnnxList& list) {
  const auto ranges = onnx_ranges(slice, shape, list);
  if (!ranges) return {};
  Sizes out;
  for (const OnnxRange& range : *ranges) out.push_back(range.count);
  return out;
}

std::optional<MovedValues> move_onnx_values(const NodeProto& node, const Sizes& shape,
                                            const OnnxList& list) {
  const std::string& op = node.op_type();
  if (!is_known(shape)) return {};
  int64_t count =
      std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  const bool stays =
      op == "Unsqueeze" || op == "Squeeze" || op == "Reshape" || op == "Identity";
  if (stays) {
    const Maybe to = op == "Unsqueeze" ? unsqueezed(node, shape, list)
                     : op == "Squeeze" ? squeezed(node, shape, list)
                     : op == "Reshape" ? reshaped(node, shape, list)
                                       : Maybe(shape);
    if (!to) return {};
    MovedValues moved{*to, Sizes(static_cast<size_t>(count))};
    std::iota(moved.from.begin(), moved.from.end(), 0);
    return moved;
  }
  // For each axis of the result: where its indices lie along an axis of the source.
  Sizes strides(shape.size(), 1);
  for (size_t a = shape.size(); a-- > 1;) strides[a - 1] = strides[a] * shape[a];
  std::vector<Sizes> offsets;  // of each axis of the result
  Sizes to;
  if (op == "Transpose") {
    const Maybe perm = permutation(node, shape.size());
    if (!perm) return {};
    for (const int64_t axis : *perm) {
      Sizes& at = offsets.emplace_back();
      for (int64_t i = 0; i < shape[static_cast<size_t>(axis)]; ++i)
        at.push_back(i * strides[static_cast<size_t>(axis)]);
      to.push_back(shape[static_cast<size_t>(axis)]);
    }
  } else if (op == "Slice") {
    const auto ranges = onnx_ranges(node, shape, list);
    if (!ranges) return {};
    for (size_t a = 0; a < shape.size(); ++a) {
      const OnnxRange& range = (*ranges)[a];
      Sizes& at = offsets.emplace_back();
      for (int64_t i = 0; i < range.count; ++i)
        at.push_back((range.start + i * range.step) * strides[a]);
      to.push_back(range.count);
    }
  } else if (op == "Gather") {
    const int64_t axis = from_front(Import::integer(node, "axis", 0), shape.size());
    const Maybe indices = list(node, "", 1);
    if (axis < 0 || !indices || !is_known(*indices)) return {};
    for (size_t a = 0; a < shape.size(); ++a) {
      Sizes& at = offsets.emplace_back();
      const bool picked = static_cast<int64_t>(a) == axis;
      const int64_t size = picked ? static_cast<int64_t>(indices->size()) : shape[a];
      for (int64_t i = 0; i < size; ++i) {
        const int64_t index = picked ? from_front((*indices)[static_cast<size_t>(i)],
                                                  static_cast<size_t>(shape[a]))
                                     : i;
        if (index < 0) return {};
        at.push_back(index * strides[a]);
      }
      to.push_back(size);
    }
  } else {
    return {};
  }
  MovedValues moved{to, {0}};
  for (const Sizes& at : offsets) {
    Sizes next;
    for (const int64_t base : moved.from) {
      for (const int64_t offset : at) next.push_back(base + offset);
    }
    moved.from = std::move(next);
  }
  return moved;
}

void infer_onnx_shapes(const NodeProto& node, const OnnxList& list, OnnxShapes& shapes) {
  const auto x = shapes.find(node.input_size() > 0 ? node.input(0) : "");
  if (x == shapes.end() || node.output_size() < 1) return;
  const Sizes first = x->second;
  if (node.op_type() == "LSTM") return infer_lstm(node, first, shapes);
  if (const Maybe found = shape_of_one(node, first, list, shapes)) {
    if (std::count(found->begin(), found->end(), kNoSize) == 0)
      shapes[node.output(0)] = *found;
  }
}

}  // namespace nibble
