// Operators of nets over signals as nodes of a Program: one-dimensional convolutions,
// LSTM, and what cuts, turns and reshapes values between them.
//
// A value of the Program is the ONNX graph's with the batch moved to the front, in any
// shape of as many values (views_): so Squeeze, Unsqueeze, Reshape and a Transpose that
// only moves the batch make no node, and a convolution over [n, c, l] is one over [n, c,
// 1, l].
#include <algorithm>
#include <numeric>
#include <optional>

#include "export/onnx/import_graph.h"
#include "export/onnx/import_shapes.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

using Sizes = Import::Sizes;

Sizes to_front(Sizes shape) {
  std::stable_partition(shape.begin(), shape.end(),
                        [](int64_t d) { return d == kBatchSize; });
  return shape;
}

// Where an axis of the ONNX graph's value lies once the batch is in front.
int64_t axis_behind(const Sizes& shape, int64_t axis) {
  const int64_t batch = std::find(shape.begin(), shape.end(), kBatchSize) - shape.begin();
  return axis == batch ? 0 : axis < batch ? axis + 1 : axis;
}

int64_t product(const Sizes& shape, int64_t first, int64_t last) {
  return std::accumulate(shape.begin() + first, shape.begin() + last, int64_t{1},
                         std::multiplies<>());
}

int64_t before_batch(const Sizes& shape) {
  return product(shape, 0,
                 std::find(shape.begin(), shape.end(), kBatchSize) - shape.begin());
}

// The axis of `view` that holds what axis k of `shape` does; -1: no single one.
int64_t same_axis(const Sizes& shape, int64_t k, const Sizes& view) {
  for (int64_t a = 1; a < static_cast<int64_t>(view.size()); ++a) {
    if (view[static_cast<size_t>(a)] == shape[static_cast<size_t>(k)] &&
        product(view, 1, a) == product(shape, 1, k)) {
      return a;
    }
  }
  return -1;
}

Sizes behind_batch(const Sizes& shape) { return Sizes(shape.begin() + 1, shape.end()); }

// Names that begin with a slash are an exported graph's own.
std::string parameter_name(const std::string& name) {
  const size_t first = name.find_first_not_of('/');
  return first == std::string::npos ? name : name.substr(first);
}

}  // namespace

std::string Import::unique(const std::string& name) {
  std::string free = name;
  for (int i = 2; !names_.insert(free).second; ++i) free = cat(name, ".", i);
  return free;
}

void Import::alias(const NodeProto& node, int output, const std::string& value) {
  const std::string& name = node.output(output);
  values_[name] = {value, static_cast<int64_t>(shapes_.at(name).size()), false};
}

void Import::make(const NodeProto& node, const char* op, std::vector<std::string> inputs,
                  Sizes shape, std::map<std::string, Attribute> attributes, int output) {
  const std::string& value = node.output(output);
  result_.program.nodes.push_back({op,
                                   unique(name_of(node)),
                                   0,
                                   std::move(inputs),
                                   {value},
                                   {},
                                   std::move(attributes)});
  views_[value] = std::move(shape);
  alias(node, output, value);
}

std::string Import::insert(const std::string& name, const char* op,
                           const std::string& input, const Sizes& shape,
                           std::map<std::string, Attribute> attributes) {
  result_.program.nodes.push_back(
      {op, unique(name), 0, {input}, {name}, {}, std::move(attributes)});
  views_[name] = shape;
  return name;
}

// The ONNX graph's sizes with the batch in front.
Result<Sizes> Import::batch_first(const NodeProto& node, const std::string& name) const {
  const auto found = shapes_.find(name);
  if (found != shapes_.end() &&
      std::count(found->second.begin(), found->second.end(), kBatchSize) == 1) {
    return to_front(found->second);
  }
  return refuse(node, "needs sizes that follow from the inputs', with one batch; found ",
                found == shapes_.end() ? "none" : "another batch", " for `", name,
                "`; give open sizes with --size NAME=N");
}

Sizes Import::sizes_in_program(const NodeProto& node, int i) const {
  const Value& found = of(node, i);
  const auto view = views_.find(found.name);
  if (view != views_.end()) return view->second;
  Sizes sizes = to_front(shapes_.at(node.input(i)));
  if (found.squeezed) sizes.resize(2);
  return sizes;
}

// The i-th input in a shape of the caller's choice, batch first.
Result<std::string> Import::shaped(const NodeProto& node, int i, const Sizes& wanted) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, i));
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.input(i)).status());
  if (sizes_in_program(node, i) == wanted) return x;
  std::string name = x + ".as";
  for (size_t d = 1; d < wanted.size(); ++d) name += cat(d == 1 ? "" : "x", wanted[d]);
  if (views_.count(name)) return name;
  return insert(name, "reshape", x, wanted, {{"shape", behind_batch(wanted)}});
}

Result<bool> Import::conv1d(const NodeProto& node) {
  const Tensor* weight = has_input(node, 1) ? constant(node.input(1)) : nullptr;
  if (weight == nullptr || weight->shape.size() != 3) return false;
  NIBBLE_RETURN_IF_ERROR(check_ones(node, "dilations"));
  const Sizes pads = integers(node, "pads", {0, 0}),
              strides = integers(node, "strides", {1});
  if (pads.size() != 2 || pads[0] != pads[1] || strides.size() != 1) {
    return refuse(node, "needs the same padding at both ends and one stride; found pads ",
                  shape_text(pads), "; pad in a node of its own");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Sizes in, batch_first(node, node.input(0)));
  NIBBLE_ASSIGN_OR_RETURN(const Sizes out, batch_first(node, node.output(0)));
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, 0, {in[0], in[1], 1, in[2]}));
  make(node, "conv2d", {x}, {out[0], out[1], 1, out[2]},
       {{"stride", Sizes{1, strides[0]}},
        {"padding", Sizes{0, pads[0]}},
        {"groups", integer(node, "group", 1)}});
  Node& made = result_.program.nodes.back();
  const std::string name = parameter_name(node.input(1));
  Tensor flat = *weight;
  flat.shape.insert(flat.shape.begin() + 2, 1);
  result_.tensors[name] = std::move(flat);
  made.parameters["weight"] = name;
  if (!has_input(node, 2)) return true;
  if (constant(node.input(2)) == nullptr) return refuse(node, "needs a constant bias");
  result_.tensors[parameter_name(node.input(2))] = *constant(node.input(2));
  made.parameters["bias"] = parameter_name(node.input(2));
  return true;
}

Result<bool> Import::elementwise(const NodeProto& node) {
  const std::string& op = node.op_type();
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.output(0)).status());
  const std::string x = of(node, 0).name;
  const Sizes shape = sizes_in_program(node, 0);
  if (op == "Add" || op == "Mul") {
    if (!has_input(node, 1) || !values_.count(node.input(1))) return false;
    NIBBLE_ASSIGN_OR_RETURN(const Sizes a, batch_first(node, node.input(0)));
    NIBBLE_ASSIGN_OR_RETURN(const Sizes b, batch_first(node, node.input(1)));
    if (a != b || shapes_.at(node.input(0)) != shapes_.at(node.input(1))) {
      return refuse(node, "needs two values of the same sizes; found ", a.size(), " and ",
                    b.size(), " dimensions, or other sizes");
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string y, shaped(node, 1, shape));
    make(node, op == "Add" ? "add" : "mul", {x, y}, shape, {});
    return true;
  }
  if (op == "Pow") {
    const Tensor* exponent = has_input(node, 1) ? constant(node.input(1)) : nullptr;
    if (exponent == nullptr || exponent->numel() != 1 || !exponent->is_float())
      return refuse(node, "needs one constant exponent");
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> power, to_float(*exponent));
    if (power[0] != 2 && power[0] != 0.5f)
      return refuse(node, "is a square or a square root; found the exponent ", power[0]);
    if (power[0] == 2) make(node, "mul", {x, x}, shape, {});
    if (power[0] != 2) make(node, "sqrt", {x}, shape, {});
    return true;
  }
  std::map<std::string, Attribute> attributes;
  if (op == "LeakyRelu")
    attributes["slope"] = static_cast<double>(number(node, "alpha", 0.01f));
  make(node,
       op == "Sqrt"      ? "sqrt"
       : op == "Sigmoid" ? "sigmoid"
       : op == "Relu"    ? "relu"
                         : "leaky_relu",
       {x}, shape, std::move(attributes));
  return true;
}

// Squeeze, Unsqueeze, Reshape, Flatten: the same values in the same order.
Result<bool> Import::view(const NodeProto& node) {
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.input(0)).status());
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.output(0)).status());
  const Sizes &from = shapes_.at(node.input(0)), &to = shapes_.at(node.output(0));
  if (before_batch(from) != before_batch(to))
    return refuse(node, "must leave the batch a size of its own; it does not");
  views_[of(node, 0).name] = sizes_in_program(node, 0);
  alias(node, 0, of(node, 0).name);
  return true;
}

// Slice, and Gather of one index: a range of one axis after the other.
Result<bool> Import::take(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const Sizes shape, batch_first(node, node.input(0)));
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.output(0)).status());
  const Sizes& in = shapes_.at(node.input(0));
  std::vector<OnnxRange> ranges;
  if (node.op_type() == "Gather") {
    const auto picks = sizes_.find(has_input(node, 1) ? node.input(1) : "");
    int64_t axis = integer(node, "axis", 0);
    axis += axis < 0 ? static_cast<int64_t>(in.size()) : 0;
    if (picks == sizes_.end() || picks->second.size() != 1 || axis < 0 ||
        axis >= static_cast<int64_t>(in.size()) ||
        is_open(in[static_cast<size_t>(axis)])) {
      return refuse(node, "takes one constant index of an axis of known size");
    }
    for (const int64_t size : in) ranges.push_back({0, 1, size});
    const int64_t size = in[static_cast<size_t>(axis)], pick = picks->second[0];
    ranges[static_cast<size_t>(axis)] = {pick < 0 ? pick + size : pick, 1, 1};
  } else {
    const auto found = onnx_ranges(
        node, in,
        [this](const NodeProto& of, const char* name, int i) -> std::optional<Sizes> {
          const auto sizes = has_input(of, i) ? sizes_.find(of.input(i)) : sizes_.end();
          if (sizes != sizes_.end()) return sizes->second;
          if (has_input(of, i) || attribute(of, name) == nullptr) return {};
          return integers(of, name, {});
        });
    if (!found)
      return refuse(node, "needs constant starts and ends of axes of known size");
    ranges = *found;
  }
  std::string x = of(node, 0).name;
  Sizes now = shape, view = sizes_in_program(node, 0);
  std::vector<size_t> cut;  // axes
  for (size_t a = 0; a < in.size(); ++a) {
    const OnnxRange& r = ranges[a];
    if (in[a] == r.count && r.step == 1) continue;
    if (r.step < 1 || r.count < 1 || r.start < 0 ||
        r.start + (r.count - 1) * r.step >= in[a])
      return refuse(node, "takes at least one value, forwards, of each axis");
    cut.push_back(a);
  }
  if (cut.empty()) views_[x] = view;
  if (cut.empty()) alias(node, 0, x);
  for (const size_t a : cut) {
    const OnnxRange& r = ranges[a];
    const int64_t k = axis_behind(in, static_cast<int64_t>(a));
    int64_t axis = same_axis(now, k, view);
    if (axis < 0) {
      x = insert(cat(node.output(0), ".whole", a), "reshape", x, now,
                 {{"shape", behind_batch(now)}});
      view = now;
      axis = k;
    }
    now[static_cast<size_t>(k)] = view[static_cast<size_t>(axis)] = r.count;
    std::map<std::string, Attribute> attributes = {
        {"axis", axis},
        {"start", r.start},
        {"end", r.start + (r.count - 1) * r.step + 1}};
    if (r.step != 1) attributes["step"] = r.step;
    if (a == cut.back()) {
      make(node, "slice", {x}, view, std::move(attributes));
    } else {
      x = insert(cat(node.output(0), ".axis", a), "slice", x, view,
                 std::move(attributes));
    }
  }
  return true;
}

// Transpose: no node where the axes that hold more than one value keep their order.
Result<bool> Import::turn(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const Sizes from, batch_first(node, node.input(0)));
  NIBBLE_ASSIGN_OR_RETURN(const Sizes to, batch_first(node, node.output(0)));
  const Sizes& in = shapes_.at(node.input(0));
  Sizes perm(in.size());
  std::iota(perm.rbegin(), perm.rend(), 0);
  perm = integers(node, "perm", perm);
  Sizes order, places = {0};  // of axes that matter; of all, the batch in front
  for (const int64_t axis : perm) {
    const int64_t size = in[static_cast<size_t>(axis)];
    if (size == kBatchSize) continue;
    if (size != 1) order.push_back(axis);
    places.push_back(axis_behind(in, axis));
  }
  if (std::is_sorted(order.begin(), order.end())) {
    views_[of(node, 0).name] = sizes_in_program(node, 0);
    alias(node, 0, of(node, 0).name);
    return true;
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, 0, from));
  make(node, "transpose", {x}, to, {{"perm", places}});
  return true;
}

Result<bool> Import::join(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const Sizes out, batch_first(node, node.output(0)));
  const Sizes& whole = shapes_.at(node.output(0));
  int64_t axis = integer(node, "axis", 0);
  axis = axis_behind(whole, axis < 0 ? axis + static_cast<int64_t>(whole.size()) : axis);
  if (axis == 0 || product(out, 1, axis) != 1)
    return refuse(
        node, "joins values along the first axis behind the batch that holds several");
  std::vector<std::string> inputs;
  for (int i = 0; i < node.input_size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(value(node, i).status());
    NIBBLE_ASSIGN_OR_RETURN(Sizes part, batch_first(node, node.input(i)));
    part.erase(part.begin() + 1, part.begin() + axis);
    NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, i, part));
    inputs.push_back(x);
  }
  Sizes shape = out;
  shape.erase(shape.begin() + 1, shape.begin() + axis);
  if (inputs.size() == 1) alias(node, 0, inputs[0]);
  if (inputs.size() > 1) make(node, "concat", std::move(inputs), shape, {});
  return true;
}

// ReduceMean over axes of one value, which changes nothing, or over the last ones.
Result<bool> Import::mean(const NodeProto& node) {
  NIBBLE_ASSIGN_OR_RETURN(const Sizes from, batch_first(node, node.input(0)));
  NIBBLE_RETURN_IF_ERROR(batch_first(node, node.output(0)).status());
  const Sizes& in = shapes_.at(node.input(0));
  int64_t first = static_cast<int64_t>(from.size());  // of the axes that are averaged
  Sizes gone;
  for (int64_t axis : integers_at(node, "axes", 1)) {
    axis += axis < 0 ? static_cast<int64_t>(in.size()) : 0;
    if (axis < 0 || axis >= static_cast<int64_t>(in.size()))
      return refuse(node, "needs axes of its input");
    if (in[static_cast<size_t>(axis)] != 1) gone.push_back(axis_behind(in, axis));
  }
  std::sort(gone.rbegin(), gone.rend());
  for (const int64_t axis : gone) {
    while (first - 1 > axis && from[static_cast<size_t>(first - 1)] == 1) --first;
    if (axis != first - 1) return refuse(node, "is over the last axes; found another");
    --first;
  }
  if (gone.empty()) {
    views_[of(node, 0).name] = sizes_in_program(node, 0);
    alias(node, 0, of(node, 0).name);
    return true;
  }
  const int64_t rows = product(from, 1, first);
  const int64_t size = product(from, first, static_cast<int64_t>(from.size()));
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, 0, {from[0], rows, 1, size}));
  make(node, "global_average_pool", {x}, {from[0], rows}, {});
  return true;
}

// Pad by reflection along the last axis.
Result<bool> Import::mirror(const NodeProto& node) {
  const auto* how = attribute(node, "mode");
  if (how == nullptr || how->s() != "reflect") return false;
  NIBBLE_ASSIGN_OR_RETURN(const Sizes from, batch_first(node, node.input(0)));
  const Sizes pads = integers_at(node, "pads", 1);
  const size_t rank = shapes_.at(node.input(0)).size();
  bool last = pads.size() == 2 * rank && shapes_.at(node.input(0)).back() != kBatchSize;
  for (size_t i = 0; last && i < 2 * rank; ++i) {
    last = pads[i] >= 0 && (pads[i] == 0 || i % rank == rank - 1);
  }
  if (!last)
    return refuse(node, "reflects along the last axis; found pads ", shape_text(pads));
  std::string x = of(node, 0).name;
  Sizes shape = sizes_in_program(node, 0);
  if (shape.back() != from.back()) {
    NIBBLE_ASSIGN_OR_RETURN(x, shaped(node, 0, from));
    shape = from;
  }
  shape.back() += pads[rank - 1] + pads[2 * rank - 1];
  make(node, "reflect_pad", {x}, shape,
       {{"before", pads[rank - 1]}, {"after", pads[2 * rank - 1]}});
  return true;
}

Result<bool> Import::lstm(const NodeProto& node) {
  const auto* direction = attribute(node, "direction");
  const bool plain =
      (direction == nullptr || direction->s() == "forward") &&
      integer(node, "layout", 0) == 0 && integer(node, "input_forget", 0) == 0 &&
      attribute(node, "activations") == nullptr && attribute(node, "clip") == nullptr;
  if (!plain || has_input(node, 4) || has_input(node, 7)) {
    return refuse(node,
                  "runs forward with its usual activations, whole sequences and no "
                  "peepholes; found another");
  }
  const Tensor* matrices[2] = {};
  for (int i = 0; i < 2; ++i) {
    matrices[i] = has_input(node, i + 1) ? constant(node.input(i + 1)) : nullptr;
    if (matrices[i] == nullptr || matrices[i]->shape.size() != 3 ||
        matrices[i]->shape[0] != 1)
      return refuse(node, "needs constant weights [1, 4 H, ..]");
  }
  const int64_t hidden = matrices[1]->shape[2];
  NIBBLE_ASSIGN_OR_RETURN(const Sizes in, batch_first(node, node.input(0)));
  if (in.size() != 3 || shapes_.at(node.input(0))[1] != kBatchSize)
    return refuse(node, "reads [time, batch, features]");
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, 0, in));
  std::vector<std::string> inputs = {x};
  if (has_input(node, 5) != has_input(node, 6))
    return refuse(node, "begins with both h and c, or with neither");
  for (int i = 5; i < 7 && has_input(node, i); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string state, shaped(node, i, {in[0], hidden}));
    inputs.push_back(state);
  }
  const std::string base = parameter_name(name_of(node));
  const std::string states = base + ".states";
  insert(states, "lstm", x, {in[0], in[1] + 1, hidden}, {{"hidden_size", hidden}});
  Node& made = result_.program.nodes.back();
  made.inputs = std::move(inputs);
  made.name = unique(base);
  for (const auto& [role, matrix] :
       {std::pair("weight_ih", matrices[0]), std::pair("weight_hh", matrices[1])}) {
    Tensor flat = *matrix;
    flat.shape.erase(flat.shape.begin());
    made.parameters[role] = cat(base, ".", role);
    result_.tensors[made.parameters[role]] = std::move(flat);
  }
  if (has_input(node, 3)) {
    const Tensor* both = constant(node.input(3));
    if (both == nullptr || both->numel() != 8 * hidden)
      return refuse(node, "needs constant biases [1, ", 8 * hidden, "]");
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> halves, to_float(*both));
    std::vector<float> sum;
    for (size_t k = 0; k < halves.size() / 2; ++k)
      sum.push_back(halves[k] + halves[k + halves.size() / 2]);
    made.parameters["bias"] = base + ".bias";
    result_.tensors[base + ".bias"] = make_tensor({4 * hidden}, sum);
  }
  const Sizes starts = {0, in[1] - 1, in[1]}, ends = {in[1], in[1], in[1] + 1};
  for (int i = 0; i < std::min(node.output_size(), 3); ++i) {
    if (node.output(i).empty()) continue;
    const auto at = static_cast<size_t>(i);
    insert(node.output(i), "slice", states, {in[0], ends[at] - starts[at], hidden},
           {{"axis", int64_t{1}}, {"start", starts[at]}, {"end", ends[at]}});
    alias(node, i, node.output(i));
  }
  return true;
}

Result<bool> Import::signal(const NodeProto& node) {
  struct Row {
    Result<bool> (Import::*run)(const NodeProto&);
    bool always;  // else of values that are held in another shape
  };
  static const std::map<std::string, Row> rows = {
      {"Conv", {&Import::conv1d, true}},
      {"LSTM", {&Import::lstm, true}},
      {"Pad", {&Import::mirror, true}},
      {"Unsqueeze", {&Import::view, true}},
      {"Sqrt", {&Import::elementwise, true}},
      {"Sigmoid", {&Import::elementwise, true}},
      {"Pow", {&Import::elementwise, true}},
      {"Mul", {&Import::elementwise, true}},
      {"Relu", {&Import::elementwise, false}},
      {"LeakyRelu", {&Import::elementwise, false}},
      {"Add", {&Import::elementwise, false}},
      {"Squeeze", {&Import::view, false}},
      {"Reshape", {&Import::view, false}},
      {"Flatten", {&Import::view, false}},
      {"Slice", {&Import::take, false}},
      {"Gather", {&Import::take, false}},
      {"Transpose", {&Import::turn, true}},
      {"Concat", {&Import::join, false}},
      {"ReduceMean", {&Import::mean, false}}};
  if (!signals_ || !has_input(node, 0) || !values_.count(node.input(0))) return false;
  if (all_viewed_ && node.op_type() == "Shape" && shapes_.count(node.input(0)) &&
      attribute(node, "start") == nullptr && attribute(node, "end") == nullptr) {
    sizes_[node.output(0)] = shapes_.at(node.input(0));
    return true;
  }
  bool viewed = all_viewed_;
  for (const std::string& input : node.input()) {
    const auto found = values_.find(input);
    viewed = viewed || (found != values_.end() && views_.count(found->second.name));
  }
  const std::string& op = node.op_type();
  const auto row = rows.find(op);
  if (row != rows.end() && (row->second.always || viewed)) {
    NIBBLE_ASSIGN_OR_RETURN(const bool done, (this->*row->second.run)(node));
    if (done) return true;
  }
  if (!viewed || op == "Identity" || op == "Cast" || op == "Dropout") return false;
  // Other rows read values as the ONNX graph has them.
  for (int i = 0; i < node.input_size(); ++i) {
    if (!has_input(node, i) || !values_.count(node.input(i))) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Sizes wanted, batch_first(node, node.input(i)));
    if (wanted != shapes_.at(node.input(i)))
      return refuse(node, "needs the batch first; found it behind other sizes");
    NIBBLE_ASSIGN_OR_RETURN(const std::string x, shaped(node, i, wanted));
    values_[node.input(i)] = {x, static_cast<int64_t>(wanted.size()), false};
  }
  return false;
}

// A program's value with its batch behind other sizes is turned once, where it enters.
Status Import::add_signal(const std::string& input, ProgramValue& declared) {
  const Sizes& shape = shapes_.at(input);
  declared.shape.clear();
  for (const int64_t size : shape)
    declared.shape.push_back(size == kBatchSize ? "batch" : std::to_string(size));
  const int64_t batch = std::find(shape.begin(), shape.end(), kBatchSize) - shape.begin();
  std::string name = input;
  views_[input] = shape;
  all_viewed_ = true;
  if (batch > 0) {
    Sizes perm = {batch};
    for (int64_t a = 0; a < static_cast<int64_t>(shape.size()); ++a) {
      if (a != batch) perm.push_back(a);
    }
    name = insert(input + ".batch_first", "transpose", input, to_front(shape),
                  {{"perm", perm}});
  }
  values_[input] = {name, static_cast<int64_t>(shape.size()), false};
  return ok_status();
}

// The graph's output under its own name and in its own shape.
Status Import::finish_signal(const std::string& output) {
  const std::string made = values_.at(output).name;
  const auto view = views_.find(made);
  if (view == views_.end()) return ok_status();
  const auto found = shapes_.find(output);
  if (found == shapes_.end() ||
      std::count(found->second.begin(), found->second.end(), kBatchSize) != 1) {
    return error(
        StatusCode::unsupported, "[onnx] output ", output,
        ": sizes that follow from the inputs', with one batch, were required; found "
        "others; give open sizes with --size NAME=N");
  }
  const Sizes wanted = found->second, front = to_front(wanted);
  if (made == output && view->second == wanted) return ok_status();
  std::string x = made;
  if (x == output) {  // the name is the output's
    x = output + ".values";
    for (Node& node : result_.program.nodes) {
      std::replace(node.outputs.begin(), node.outputs.end(), output, x);
      std::replace(node.inputs.begin(), node.inputs.end(), output, x);
    }
    for (auto& [name, value] : values_) {
      if (value.name == output) value.name = x;
    }
    views_[x] = view->second;
  }
  if (front == wanted) {
    insert(output, "reshape", x, wanted, {{"shape", behind_batch(wanted)}});
  } else {
    if (views_.at(x) != front) {
      x = insert(output + ".batch_first", "reshape", x, front,
                 {{"shape", behind_batch(front)}});
    }
    const int64_t batch =
        std::find(wanted.begin(), wanted.end(), kBatchSize) - wanted.begin();
    Sizes perm;
    for (int64_t a = 0; a < static_cast<int64_t>(wanted.size()); ++a)
      perm.push_back(a == batch ? 0 : a < batch ? a + 1 : a);
    insert(output, "transpose", x, wanted, {{"perm", perm}});
  }
  values_[output] = {output, static_cast<int64_t>(wanted.size()), false};
  return ok_status();
}

}  // namespace nibble
