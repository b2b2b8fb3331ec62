#include "export/onnx/import.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "export/onnx/import_encoder.h"
#include "export/onnx/import_graph.h"
#include "export/onnx/import_tensor.h"
#include "kernels/program/shape.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

using Sizes = Import::Sizes;

}  // namespace

// [rows, cols] -> [cols, rows], whatever its elements are.
Tensor transposed(const Tensor& tensor) {
  const auto rows = static_cast<size_t>(tensor.shape[0]);
  const auto cols = static_cast<size_t>(tensor.shape[1]);
  const auto size = static_cast<size_t>(dtype_bytes(tensor.dtype));
  std::byte* to = nullptr;
  Tensor result{tensor.dtype, {tensor.shape[1], tensor.shape[0]},
                Bytes::allocate(tensor.bytes.size(), &to)};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      std::memcpy(to + (c * rows + r) * size, tensor.bytes.data() + (r * cols + c) * size, size);
    }
  }
  return result;
}

// --- what a node says

std::string Import::name_of(const NodeProto& node) {
  return !node.name().empty() ? node.name() : node.output_size() > 0 ? node.output(0) : "?";
}

std::string Import::at(const NodeProto& node) {
  return cat("[onnx] ", name_of(node), ": ", node.op_type(), " ");
}

const onnx::AttributeProto* Import::attribute(const NodeProto& node, const char* name) {
  for (const auto& item : node.attribute()) {
    if (item.name() == name) return &item;
  }
  return nullptr;
}

int64_t Import::integer(const NodeProto& node, const char* name, int64_t otherwise) {
  const auto* found = attribute(node, name);
  return found == nullptr ? otherwise : found->i();
}

float Import::number(const NodeProto& node, const char* name, float otherwise) {
  const auto* found = attribute(node, name);
  return found == nullptr ? otherwise : found->f();
}

Sizes Import::integers(const NodeProto& node, const char* name, Sizes otherwise) {
  const auto* found = attribute(node, name);
  return found == nullptr ? otherwise : Sizes(found->ints().begin(), found->ints().end());
}

bool Import::has_input(const NodeProto& node, int i) {
  return i < node.input_size() && !node.input(i).empty();
}

Sizes Import::integers_at(const NodeProto& node, const char* name, int i) const {
  const auto found = has_input(node, i) ? sizes_.find(node.input(i)) : sizes_.end();
  return found != sizes_.end() ? found->second : integers(node, name, {});
}

Result<Sizes> Import::padding(const NodeProto& node) const {
  const auto* automatic = attribute(node, "auto_pad");
  if (automatic != nullptr && automatic->s() != "NOTSET" && automatic->s() != "VALID") {
    return refuse(node, "needs explicit pads; found auto_pad ", automatic->s(),
                  "; write the pads out");
  }
  const Sizes pads = integers(node, "pads", {0, 0, 0, 0});
  if (pads.size() == 4 && pads[0] == pads[2] && pads[1] == pads[3]) {
    return Sizes{pads[0], pads[1]};
  }
  return refuse(node, "needs the same padding at both ends; found pads ", shape_text(pads),
                "; pad in a node of its own");
}

Status Import::check_ones(const NodeProto& node, const char* name) const {
  for (const int64_t size : integers(node, name, {})) {
    if (size != 1) return refuse(node, "needs ", name, " of 1; found ", size);
  }
  return ok_status();
}

// --- values

const Import::Value& Import::of(const NodeProto& node, int i) const {
  return values_.at(node.input(i));
}

const Tensor* Import::constant(const std::string& name) const {
  const auto found = constants_.find(name);
  return found == constants_.end() ? nullptr : &found->second;
}

Result<std::string> Import::value(const NodeProto& node, int i) const {
  const auto found = has_input(node, i) ? values_.find(node.input(i)) : values_.end();
  if (found != values_.end()) return found->second.name;
  return refuse(node, "reads a value of the network as input ", i, "; found ",
                !has_input(node, i)        ? std::string("none")
                : constant(node.input(i)) ? cat("the constant ", node.input(i))
                                          : cat("`", node.input(i), "`, which nothing makes"),
                "; simplify the graph");
}

Result<std::string> Import::image(const NodeProto& node) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string x, value(node, 0));
  if (of(node, 0).rank == 4 && !of(node, 0).squeezed) return x;
  return refuse(node, "reads an image [n, c, h, w]; found ",
                of(node, 0).squeezed ? std::string("a pooled [n, c, 1, 1]")
                                     : cat(of(node, 0).rank, " dimensions"),
                "; this graph cannot be imported");
}

void Import::same(const NodeProto& node) { values_[node.output(0)] = of(node, 0); }

Node& Import::emit(const NodeProto& node, const char* op, std::vector<std::string> inputs,
                   int64_t rank, bool squeezed) {
  std::string name = name_of(node);
  for (int i = 2; !names_.insert(name).second; ++i) name = cat(name_of(node), ".", i);
  result_.program.nodes.push_back({op, name, 0, std::move(inputs), {node.output(0)}, {}, {}});
  values_[node.output(0)] = {node.output(0), rank, squeezed};
  return result_.program.nodes.back();
}

void Import::parameter(Node& node, const char* role, const std::string& name) {
  result_.tensors[name] = constants_.at(name);
  node.parameters[role] = name;
}

// --- the walk

Status Import::add_constants(const onnx::GraphProto& graph) {
  for (const auto& proto : graph.initializer()) {
    NIBBLE_ASSIGN_OR_RETURN(constants_[proto.name()], tensor_of(proto, directory_));
  }
  for (const auto& [name, tensor] : constants_) {
    if (sizes_.count(name) || (tensor.dtype != DType::i64 && tensor.dtype != DType::i32)) continue;
    Sizes& sizes = sizes_[name];
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      int64_t wide = 0;
      int32_t narrow = 0;
      const std::byte* from = tensor.bytes.data() + i * dtype_bytes(tensor.dtype);
      if (tensor.dtype == DType::i64) std::memcpy(&wide, from, sizeof(wide));
      if (tensor.dtype == DType::i32) std::memcpy(&narrow, from, sizeof(narrow));
      sizes.push_back(wide + narrow);
    }
  }
  return ok_status();
}

// The inputs that a node reads are floats; another, such as a sample rate that only chose
// branches, stays an input that nobody reads.
Status Import::add_inputs(const onnx::GraphProto& graph, const onnx::GraphProto& folded) {
  std::set<std::string> read;
  for (const NodeProto& node : folded.node()) read.insert(node.input().begin(), node.input().end());
  std::vector<const onnx::ValueInfoProto*> inputs;
  for (const auto& input : graph.input()) {
    // opset 7 and 8 list initializers too
    if (!constants_.count(input.name())) inputs.push_back(&input);
  }
  signals_ = true;
  for (const auto* input : inputs) {
    const auto& type = input->type().tensor_type();
    const bool is_float = type.elem_type() == onnx::TensorProto::FLOAT ||
                          type.elem_type() == onnx::TensorProto::FLOAT16;
    signals_ = signals_ && (is_float || !read.count(input->name()));
  }
  for (const auto* input : inputs) {
    const auto& type = input->type().tensor_type();
    const std::string& name = input->name();
    ProgramValue value{name, DType::f32, {}};
    const bool integers = type.elem_type() == onnx::TensorProto::INT64;
    if (integers && !read.count(name) && inputs.size() > 1) {
      value.dtype = DType::i64;
      for (const int64_t size : shapes_[name])
        value.shape.push_back(size == kBatchSize ? "batch" : std::to_string(size));
      result_.program.inputs.push_back(std::move(value));
      continue;
    }
    if (!signals_ || type.shape().dim_size() < 2) {
      return error(StatusCode::unsupported, "[onnx] input ", name,
                   ": floats [batch, ..] were required; found another type or shape"
                   "; language models are read from their own checkpoints");
    }
    const Sizes& shape = shapes_.at(name);
    for (int i = 0; i < type.shape().dim_size(); ++i) {
      if (shape[static_cast<size_t>(i)] != kNoSize) continue;
      const std::string& symbol = type.shape().dim(i).dim_param();
      return error(StatusCode::unsupported, "[onnx] input ", name,
                   ": sizes after the batch must be fixed; found `", symbol,
                   symbol.empty() ? "`; fix the input's shape"
                                  : cat("`; give it with --size ", symbol, "=N"));
    }
    if (std::count(shape.begin(), shape.end(), kBatchSize) != 1) {
      return error(StatusCode::unsupported, "[onnx] input ", name,
                   ": one size with the batch's name was required; found ", 
                   std::count(shape.begin(), shape.end(), kBatchSize),
                   "; name it in every input");
    }
    if (inputs.size() > 1 || shape.size() == 3) {
      NIBBLE_RETURN_IF_ERROR(add_signal(name, value));
    } else {
      value.shape = {"batch"};
      for (size_t i = 1; i < shape.size(); ++i) value.shape.push_back(std::to_string(shape[i]));
      values_[name] = {name, static_cast<int64_t>(shape.size()), false};
    }
    result_.program.inputs.push_back(std::move(value));
  }
  if (!result_.program.inputs.empty()) return ok_status();
  return error(StatusCode::unsupported, "[onnx] graph: one input was required; found none");
}

Status Import::identity(const NodeProto& node) {
  const std::string& from = node.input(0);
  if (constants_.count(from)) constants_[node.output(0)] = constants_.at(from);
  if (sizes_.count(from)) sizes_[node.output(0)] = sizes_.at(from);
  if (constants_.count(from) || sizes_.count(from)) return ok_status();
  NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
  same(node);
  return ok_status();
}

Status Import::transpose(const NodeProto& node) {
  const Tensor* tensor = constant(node.input(0));
  if (tensor == nullptr || tensor->shape.size() != 2 ||
      integers(node, "perm", {1, 0}) != Sizes{1, 0}) {
    return refuse(node, "is folded of a constant matrix alone; found another");
  }
  constants_[node.output(0)] = transposed(*tensor);
  return ok_status();
}

Status Import::cast(const NodeProto& node) {
  if (const Tensor* tensor = constant(node.input(0)); tensor != nullptr) {
    constants_[node.output(0)] = *tensor;  // read as what it is
    if (sizes_.count(node.input(0))) sizes_[node.output(0)] = sizes_.at(node.input(0));
    return ok_status();
  }
  if (sizes_.count(node.input(0))) return fold_shape(node);
  NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
  const int64_t to = integer(node, "to", 0);
  if (to != onnx::TensorProto::FLOAT && to != onnx::TensorProto::FLOAT16) {
    return refuse(node, "of values is between floats; found data type ", to);
  }
  same(node);
  return ok_status();
}

// Shapes as numbers, the batch as a symbol.
Status Import::fold_shape(const NodeProto& node) {
  const std::string& op = node.op_type();
  Sizes out;
  if (op == "Shape") {
    NIBBLE_RETURN_IF_ERROR(value(node, 0).status());
    out.assign(static_cast<size_t>(of(node, 0).rank), kNoSize);
    out[0] = kBatchSize;
  } else if (op == "Concat") {
    for (const std::string& input : node.input()) {
      out.insert(out.end(), sizes_.at(input).begin(), sizes_.at(input).end());
    }
  } else {
    const auto from = sizes_.find(node.input(0));
    if (from == sizes_.end()) return refuse(node, "is folded of shapes alone; found a value");
    out = from->second;
    if (op == "Gather") {
      const auto picks = sizes_.find(node.input(1));
      if (picks == sizes_.end()) return refuse(node, "needs constant indices");
      out.clear();
      for (int64_t i : picks->second) {
        i += i < 0 ? static_cast<int64_t>(from->second.size()) : 0;
        if (i < 0 || i >= static_cast<int64_t>(from->second.size())) {
          return refuse(node, "needs indices inside the shape; found ", i);
        }
        out.push_back(from->second[static_cast<size_t>(i)]);
      }
    }
  }
  sizes_[node.output(0)] = std::move(out);
  return ok_status();
}

// What import_fold.h could not resolve.
Status Import::branch(const NodeProto& node) {
  return refuse(node, "is resolved on a constant condition; found `",
                node.input_size() > 0 ? node.input(0) : "",
                "`; give open sizes with --size NAME=N, or simplify the graph");
}

Status Import::run_node(const NodeProto& node) {
  static const std::map<std::string, Status (Import::*)(const NodeProto&)> rows = {
      {"Conv", &Import::conv},           {"BatchNormalization", &Import::batch_norm},
      {"MaxPool", &Import::pool},        {"ReduceMean", &Import::reduce_mean},
      {"Concat", &Import::concat},       {"Add", &Import::add},
      {"Gemm", &Import::gemm},           {"MatMul", &Import::matmul},
      {"Flatten", &Import::flatten},     {"Reshape", &Import::flatten},
      {"Squeeze", &Import::flatten},     {"Softmax", &Import::softmax},
      {"Dropout", &Import::dropout},     {"Slice", &Import::slice},
      {"Pad", &Import::pad},             {"Transpose", &Import::transpose},
      {"Cast", &Import::cast},           {"Shape", &Import::fold_shape},
      {"Gather", &Import::fold_shape},   {"Unsqueeze", &Import::fold_shape},
      {"If", &Import::branch},           {"Relu", &Import::rectifier},
      {"LeakyRelu", &Import::rectifier}, {"Identity", &Import::identity}};
  const std::string& op = node.op_type();
  const bool standard = node.domain().empty() || node.domain() == "ai.onnx";
  if (node.output_size() < 1 || (node.input_size() < 1 && op != "Constant") || !standard) {
    return refuse(node, standard ? "needs inputs and outputs" : "is no standard operator; found ",
                  node.domain());
  }
  if (op == "Constant") {
    const auto* tensor = attribute(node, "value");
    if (tensor == nullptr) return refuse(node, "needs the attribute value");
    onnx::GraphProto one;
    *one.add_initializer() = tensor->t();
    one.mutable_initializer(0)->set_name(node.output(0));
    return add_constants(one);
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool done, signal(node));
  if (done) return ok_status();
  if (op == "GlobalAveragePool") return average(node, true);
  const auto row = rows.find(op);
  if (row != rows.end()) return (this->*row->second)(node);
  return refuse(node, "has no form in a program; nibble imports convolutional and linear nets");
}

Status Import::run_nodes(const onnx::GraphProto& graph) {
  for (const NodeProto& node : graph.node()) NIBBLE_RETURN_IF_ERROR(run_node(node));
  return ok_status();
}

// Drops what the output does not need, and declares the output's shape.
Status Import::finish(const onnx::GraphProto& graph) {
  Program& program = result_.program;
  std::set<std::string> needed;
  std::vector<std::string> outputs;
  for (const auto& output : graph.output()) {
    if (!values_.count(output.name())) {
      return error(StatusCode::unsupported, "[onnx] graph: outputs that the network makes were "
                   "required; found the constant ", output.name());
    }
    if (signals_) NIBBLE_RETURN_IF_ERROR(finish_signal(output.name()));
  }
  for (const auto& output : graph.output()) {
    outputs.push_back(values_.at(output.name()).name);
    needed.insert(outputs.back());
  }
  std::vector<Node> kept;
  for (auto node = program.nodes.rbegin(); node != program.nodes.rend(); ++node) {
    if (!needed.count(node->outputs[0])) continue;
    needed.insert(node->inputs.begin(), node->inputs.end());
    kept.push_back(std::move(*node));
  }
  program.nodes.assign(std::make_move_iterator(kept.rbegin()),
                       std::make_move_iterator(kept.rend()));
  if (program.nodes.empty()) {
    return error(StatusCode::unsupported, "[onnx] graph: at least one node was required");
  }
  std::map<std::string, Tensor> used;
  Shapes given, values;
  for (const Node& node : program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      used[name] = result_.tensors.at(name);
      given[name] = used[name].shape;
    }
  }
  result_.tensors = std::move(used);
  NIBBLE_RETURN_IF_ERROR(check_shapes(program, given, &values));
  for (const std::string& output : outputs) {
    ProgramValue declared{output, DType::f32, {}};
    for (const int64_t size : values.at(output))
      declared.shape.push_back(size == kUnknownSize ? "batch" : std::to_string(size));
    program.outputs.push_back(std::move(declared));
  }
  return check_program(program);
}

Result<ImportedGraph> Import::run(const onnx::ModelProto& model) {
  for (const auto& set : model.opset_import()) {
    if (set.domain().empty() || set.domain() == "ai.onnx") opset_ = set.version();
  }
  if (opset_ < 7 || opset_ > 21) {
    return error(StatusCode::unsupported, "[onnx] opset: 7 to 21 was required; found ", opset_,
                 "; convert the model's opset first");
  }
  const onnx::GraphProto& graph = model.graph();
  result_.program.architecture = "ONNX";
  NIBBLE_RETURN_IF_ERROR(add_constants(graph));
  onnx::GraphProto folded;
  NIBBLE_ASSIGN_OR_RETURN(shapes_, fold_graph(graph, directory_, given_, constants_, folded));
  NIBBLE_RETURN_IF_ERROR(add_constants(folded));
  NIBBLE_RETURN_IF_ERROR(add_inputs(graph, folded));
  NIBBLE_RETURN_IF_ERROR(run_nodes(folded));
  NIBBLE_RETURN_IF_ERROR(finish(graph));
  for (const auto& entry : model.metadata_props()) {
    result_.metadata[entry.key()] = entry.value();
  }
  return std::move(result_);
}

Result<ImportedGraph> import_onnx(const std::filesystem::path& path,
                                  const std::map<std::string, int64_t>& sizes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return error(StatusCode::not_found, "[onnx] ", path.string(), ": the file must exist");
  }
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  onnx::ModelProto model;
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      !model.has_graph()) {
    return error(StatusCode::data_loss, "[onnx] ", path.string(), ": must be an ONNX model; ",
                 bytes.size(), " bytes do not parse as one");
  }
  if (reads_tokens(model.graph())) return import_encoder(model, path.parent_path());
  return Import(path.parent_path(), sizes).run(model);
}

}  // namespace nibble
