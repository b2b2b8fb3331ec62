#include "export/onnx/import_encoder.h"

#include <algorithm>
#include <cstring>

#include "export/onnx/import_encoder_graph.h"
#include "export/onnx/import_tensor.h"
#include "kernels/program/shape.h"
#include "onnx.pb.h"

namespace nibble {

using symbolic::constant_grid;
using symbolic::Grid;
using symbolic::input_formula;
using symbolic::kBatch;
using symbolic::kSequence;
using symbolic::number_in;
using symbolic::Sizes;

namespace {

constexpr int64_t kMostIntegers = int64_t{1} << 20;  // of a constant that is folded

bool is_integer(int32_t type) {
  return type == onnx::TensorProto::INT64 || type == onnx::TensorProto::INT32;
}

// A checkpoint's name for what the exporter calls so: "/" begins the names of a graph's
// own constants, "@" those of second copies (export/formats/onnx_read.cpp).
std::string plain_name(std::string name) {
  name.erase(0, name.find_first_not_of('/'));
  std::replace(name.begin(), name.end(), '@', '_');
  return name;
}

}  // namespace

bool reads_tokens(const onnx::GraphProto& graph) {
  std::set<std::string> initializers;
  for (const auto& tensor : graph.initializer()) initializers.insert(tensor.name());
  int inputs = 0;
  for (const auto& input : graph.input()) {
    if (initializers.count(input.name())) continue;
    if (!is_integer(input.type().tensor_type().elem_type())) return false;
    ++inputs;
  }
  return inputs > 0;
}

std::string tensor_stem(const std::string& tensor, const std::string& ending) {
  if (tensor.size() <= ending.size() || tensor.find('.') == std::string::npos ||
      tensor.compare(tensor.size() - ending.size(), ending.size(), ending) != 0) {
    return "";
  }
  return tensor.substr(0, tensor.size() - ending.size());
}

// --- what a node says

std::string EncoderImport::name_of(const NodeProto& node) {
  return !node.name().empty()     ? node.name()
         : node.output_size() > 0 ? node.output(0)
                                  : "?";
}

std::string EncoderImport::at(const NodeProto& node) {
  return cat("[onnx] ", name_of(node), ": ", node.op_type(), " ");
}

const onnx::AttributeProto* EncoderImport::attribute(const NodeProto& node,
                                                     const char* name) {
  for (const auto& item : node.attribute()) {
    if (item.name() == name) return &item;
  }
  return nullptr;
}

int64_t EncoderImport::integer(const NodeProto& node, const char* name,
                               int64_t otherwise) {
  const auto* found = attribute(node, name);
  return found == nullptr ? otherwise : found->i();
}

double EncoderImport::number(const NodeProto& node, const char* name, double otherwise) {
  const auto* found = attribute(node, name);
  return found == nullptr ? otherwise : static_cast<double>(found->f());
}

bool EncoderImport::has_input(const NodeProto& node, int i) {
  return i < node.input_size() && !node.input(i).empty();
}

std::optional<std::vector<int64_t>> EncoderImport::integers_at(const NodeProto& node,
                                                               const char* name,
                                                               int i) const {
  std::vector<int64_t> result;
  if (has_input(node, i)) {
    const std::optional<Grid> grid = grid_in(node, i);
    const std::optional<Sizes> sizes = grid ? symbolic::sizes_in(*grid) : std::nullopt;
    if (!sizes) return {};
    for (const symbolic::Size& size : *sizes) {
      if (!size.is_number()) return {};
      result.push_back(size.factor);
    }
    return result;
  }
  const auto* found = attribute(node, name);
  if (found == nullptr) return {};
  return std::vector<int64_t>(found->ints().begin(), found->ints().end());
}

// --- items

const EncoderImport::Item& EncoderImport::in(const NodeProto& node, int i) const {
  return items_.at(node.input(i));
}

std::optional<double> EncoderImport::number_of(const Item& item) const {
  if (item.form == Form::grid) return number_in(item.grid);
  if (item.form != Form::constant) return {};
  const Tensor& tensor = constants_.at(item.weight);
  if (tensor.numel() != 1) return {};
  const Result<std::vector<float>> values = to_float(tensor);
  if (!values.ok()) return {};
  return static_cast<double>(values->front());
}

const Tensor* EncoderImport::vector_of(const Item& item, int64_t size) const {
  if (item.form != Form::constant || item.turned) return nullptr;
  const Tensor& tensor = constants_.at(item.weight);
  const bool fits =
      tensor.numel() == size && !tensor.shape.empty() && tensor.shape.back() == size;
  return fits ? &tensor : nullptr;
}

Status EncoderImport::set(const NodeProto& node, Item item) {
  items_[node.output(0)] = std::move(item);
  return ok_status();
}

// The next step of a pattern over the same x; the sizes stay.
Status EncoderImport::set(const NodeProto& node, Form form, const Item& like,
                          double factor) {
  Item item = like;
  item.form = form;
  item.factor = factor;
  return set(node, std::move(item));
}

std::string EncoderImport::unique(const std::string& name) {
  const std::string plain = plain_name(name);
  std::string result = plain;
  for (int i = 2; !names_.insert(result).second; ++i) result = cat(plain, ".", i);
  return result;
}

Status EncoderImport::emit(const NodeProto& node, const char* op, const std::string& name,
                           std::vector<std::string> inputs,
                           const std::optional<Sizes>& dims,
                           std::map<std::string, std::string> parameters,
                           std::map<std::string, Attribute> attributes) {
  const std::string own = unique(name);
  result_.program.nodes.push_back({op,
                                   own,
                                   0,
                                   std::move(inputs),
                                   {own},
                                   std::move(parameters),
                                   std::move(attributes)});
  Item item;
  item.form = Form::value;
  item.dims = dims;
  item.x = own;
  return set(node, std::move(item));
}

std::string EncoderImport::parameter(const std::string& constant,
                                     std::vector<int64_t> shape) {
  std::string& name = named_[constant];
  if (name.empty()) {
    const std::string plain = plain_name(constant);
    name = plain;
    for (int i = 2; result_.tensors.count(name); ++i) name = cat(plain, ".", i);
    Tensor tensor = constants_.at(constant);
    if (!shape.empty()) tensor.shape = std::move(shape);
    result_.tensors[name] = std::move(tensor);
  }
  return name;
}

// --- the walk

Status EncoderImport::add_constants(const onnx::GraphProto& graph) {
  for (const auto& proto : graph.initializer()) {
    NIBBLE_ASSIGN_OR_RETURN(Tensor tensor, tensor_of(proto, directory_));
    Item item;
    item.dims.emplace();
    for (const int64_t dim : tensor.shape) item.dims->push_back({dim, 0, 0});
    if (tensor.is_float()) {
      item.form = Form::constant;
      item.weight = proto.name();
      constants_[proto.name()] = std::move(tensor);
    } else if (tensor.numel() > kMostIntegers) {
      item.why = error(StatusCode::unsupported, "[onnx] ", proto.name(), ": at most ",
                       kMostIntegers, " integers were required; found ", tensor.numel());
    } else {
      std::vector<double> values;
      const int64_t bytes = dtype_bytes(tensor.dtype);
      for (int64_t i = 0; i < tensor.numel(); ++i) {
        const std::byte* from = tensor.bytes.data() + i * bytes;
        int64_t wide = 0;
        int32_t narrow = 0;
        if (bytes == 8) std::memcpy(&wide, from, 8);
        if (bytes == 4) std::memcpy(&narrow, from, 4);
        if (bytes == 1) narrow = static_cast<int32_t>(*from);
        values.push_back(static_cast<double>(wide) + narrow);
      }
      item.form = Form::grid;
      item.grid =
          constant_grid(tensor.shape, std::move(values), tensor.dtype != DType::u8);
    }
    items_[proto.name()] = std::move(item);
  }
  return ok_status();
}

Status EncoderImport::add_inputs(const onnx::GraphProto& graph) {
  for (const auto& input : graph.input()) {
    if (items_.count(input.name())) continue;  // older opsets list initializers too
    const auto& shape = input.type().tensor_type().shape();
    bool open = shape.dim_size() == 2;
    for (const auto& dim : shape.dim()) open = open && dim.dim_value() < 1;
    if (!open) {
      return error(StatusCode::unsupported, "[onnx] input ", input.name(),
                   ": open sizes [batch, sequence] were required; found ",
                   shape.dim_size(), " dimensions",
                   shape.dim_size() == 2 ? ", a fixed one" : "",
                   "; export with dynamic axes");
    }
    inputs_.insert(input.name());
    names_.insert(input.name());
    Item item;
    item.form = Form::grid;
    item.dims = Sizes{kBatch, kSequence};
    item.grid =
        symbolic::grid_of(*item.dims, input_formula(input.name(), *item.dims), true);
    items_[input.name()] = std::move(item);
  }
  return ok_status();
}

void EncoderImport::count_uses(const onnx::GraphProto& graph) {
  for (const auto& output : graph.output()) ++uses_[output.name()];
  for (const NodeProto& node : graph.node()) {
    for (const std::string& input : node.input()) ++uses_[input];
    for (const auto& item : node.attribute()) {
      if (item.has_g()) count_uses(item.g());
    }
  }
}

Status EncoderImport::branch(const NodeProto& node) {
  const std::optional<Grid> condition = grid_in(node, 0);
  const std::optional<double> taken = condition ? number_in(*condition) : std::nullopt;
  const auto* chosen =
      taken ? attribute(node, *taken != 0 ? "then_branch" : "else_branch") : nullptr;
  if (chosen == nullptr) {
    return refuse(node,
                  "is resolved on a condition that sizes and constants decide; found `",
                  node.input(0), "`; simplify the graph");
  }
  NIBBLE_RETURN_IF_ERROR(add_constants(chosen->g()));
  NIBBLE_RETURN_IF_ERROR(visit_all(chosen->g()));
  for (int i = 0; i < std::min(node.output_size(), chosen->g().output_size()); ++i) {
    const auto inner = items_.find(chosen->g().output(i).name());
    if (inner != items_.end()) items_[node.output(i)] = inner->second;
  }
  return ok_status();
}

// A node that is none of the patterns leaves a pending item, which matters when the
// output needs it.
Status EncoderImport::visit(const NodeProto& node) {
  for (const std::string& output : node.output()) {
    items_[output].why =
        refuse(node, "was read by its output ", output, ", which has no form");
  }
  const auto pending = [&](const Status& why) {
    if (why.code() != StatusCode::unsupported) return why;
    for (const std::string& output : node.output()) {
      items_[output] = {};
      items_[output].why = why;
    }
    return ok_status();
  };
  const bool standard = node.domain().empty() || node.domain() == "ai.onnx";
  if (node.output_size() < 1 || !standard) {
    return pending(
        refuse(node, standard ? "needs an output" : "is no standard operator; found ",
               node.domain()));
  }
  const std::string& op = node.op_type();
  if (op == "Constant") {
    onnx::GraphProto one;
    auto* tensor = one.add_initializer();
    const auto* value = attribute(node, "value");
    if (value != nullptr) *tensor = value->t();
    for (const auto& item : node.attribute()) {
      if (item.name() == "value" || item.name() == "value_string") continue;
      const bool floats = item.name().rfind("value_float", 0) == 0;
      const bool list = item.name().back() == 's';
      tensor->set_data_type(floats ? onnx::TensorProto::FLOAT : onnx::TensorProto::INT64);
      if (list) tensor->add_dims(floats ? item.floats_size() : item.ints_size());
      for (const float number : item.floats()) tensor->add_float_data(number);
      for (const int64_t number : item.ints()) tensor->add_int64_data(number);
      if (!list && floats) tensor->add_float_data(item.f());
      if (!list && !floats) tensor->add_int64_data(item.i());
    }
    tensor->set_name(node.output(0));
    return add_constants(one);
  }
  for (const std::string& input : node.input()) {
    if (input.empty()) continue;
    const auto found = items_.find(input);
    if (found == items_.end()) {
      return pending(refuse(node, "reads `", input, "`, which nothing makes"));
    }
    const bool shape = op == "Shape" && found->second.dims;
    if (found->second.form == Form::pending && !shape) return pending(found->second.why);
  }
  if (op == "If") {
    const Status status = branch(node);
    return status.ok() ? status : pending(status);
  }
  if (op == "Shape") {
    const Status status = fold_shape(node);
    return status.ok() ? status : pending(status);
  }
  Status status = row(node);
  return status.ok() ? status : pending(status);
}

Status EncoderImport::visit_all(const onnx::GraphProto& graph) {
  for (const NodeProto& node : graph.node()) NIBBLE_RETURN_IF_ERROR(visit(node));
  return ok_status();
}

// --- the end

// The program calls them as every encoder's are called.
Status EncoderImport::name_inputs() {
  Program& program = result_.program;
  std::string ids;
  for (const auto& [input, rows] : rows_) {
    const bool better = ids.empty() || rows > rows_.at(ids);
    if (input == "input_ids" || (better && ids != "input_ids")) ids = input;
  }
  std::string types;
  for (const auto& [input, rows] : rows_) {
    if (input != ids && types.empty()) types = input;
  }
  if (ids.empty() || rows_.size() > 2 || rows_.count(mask_) > 0) {
    return error(
        StatusCode::unsupported,
        "[onnx] inputs: token ids, and where there are token types and a mask, were "
        "required; found ",
        rows_.size(), " that pick from tables");
  }
  const std::map<std::string, std::string> called = {{ids, "input_ids"},
                                                     {types, "token_type_ids"}};
  for (Node& node : program.nodes) {
    for (std::string& input : node.inputs) {
      if (inputs_.count(input)) input = called.at(input);
    }
  }
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  if (!types.empty()) {
    program.inputs.push_back({"token_type_ids", DType::i64, {"batch", "sequence"}});
  }
  program.vocabulary = rows_.at(ids);
  program.context_length = positions_;
  return ok_status();
}

// A block begins with what makes queries, keys or values.
void EncoderImport::set_blocks() {
  std::vector<Node>& nodes = result_.program.nodes;
  std::set<size_t> starts;
  size_t last = nodes.size();
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].op == "mean_pool" || nodes[i].op == "first_token")
      last = std::min(last, i);
    if (nodes[i].op != "attention") continue;
    size_t start = i;
    for (size_t k = 0; k < i; ++k) {
      const auto& inputs = nodes[i].inputs;
      if (std::count(inputs.begin(), inputs.end(), nodes[k].outputs[0]))
        start = std::min(start, k);
    }
    starts.insert(start);
  }
  int block = kFirstBlock;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (starts.count(i)) ++block;
    nodes[i].block = i >= last ? kLastBlock : block;
  }
}

// Parameters that nothing of the program reads.
void EncoderImport::account() {
  std::set<std::string> known;
  for (const auto& [constant, name] : named_) {
    const bool turned =
        constant.size() > 2 && constant.compare(constant.size() - 2, 2, "^T") == 0;
    if (result_.tensors.count(name)) {
      known.insert(turned ? constant.substr(0, constant.size() - 2) : constant);
    }
  }
  for (const auto& [name, tensor] : constants_) {
    // Smaller ones are the factors and epsilons of patterns.
    if (known.count(name) || tensor.shape.empty() || tensor.numel() < 2) continue;
    LedgerEntry entry;
    entry.tensor = plain_name(name);
    entry.scheme = "none";
    entry.method = "ignored";
    entry.reason = cat("the graph's first output does not read it; ", tensor.numel(),
                       " values left out");
    result_.ledger.entries.push_back(std::move(entry));
  }
  std::sort(
      result_.ledger.entries.begin(), result_.ledger.entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
}

Status EncoderImport::finish(const onnx::GraphProto& graph) {
  Program& program = result_.program;
  const std::string name = graph.output_size() > 0 ? graph.output(0).name() : "";
  const auto found = items_.find(name);
  if (found == items_.end()) {
    return error(StatusCode::unsupported,
                 "[onnx] graph: an output that the network makes was required; found `",
                 name, "`");
  }
  const Item& item = found->second;
  if (item.form == Form::pending) return item.why;
  const size_t rank = item.dims ? item.dims->size() : 0;
  if (item.form != Form::value || rank < 2 || rank > 3 ||
      !(item.dims->front() == kBatch) || (rank == 3 && !((*item.dims)[1] == kSequence)) ||
      !item.dims->back().is_number()) {
    return error(
        StatusCode::unsupported, "[onnx] output ", name,
        ": hidden states [batch, sequence, features] or an embedding [batch, features] "
        "were required; found ",
        item.dims ? symbolic::size_text(*item.dims) : std::string("another value"));
  }
  ProgramValue declared{plain_name(name), DType::f32, {"batch"}};
  if (item.dims->size() == 3) declared.shape.push_back("sequence");
  declared.shape.push_back(std::to_string(item.dims->back().factor));

  std::set<std::string> needed = {item.x};
  std::vector<Node> kept;
  for (auto node = program.nodes.rbegin(); node != program.nodes.rend(); ++node) {
    if (!needed.count(node->outputs[0])) continue;
    needed.insert(node->inputs.begin(), node->inputs.end());
    kept.push_back(std::move(*node));
  }
  program.nodes.assign(std::make_move_iterator(kept.rbegin()),
                       std::make_move_iterator(kept.rend()));
  for (Node& node : program.nodes) {
    if (node.outputs[0] == item.x) node.outputs[0] = declared.name;
    for (std::string& input : node.inputs) {
      if (input == item.x) input = declared.name;
    }
  }
  program.outputs = {std::move(declared)};
  std::map<std::string, Tensor> used;
  Shapes given, values;
  for (const Node& node : program.nodes) {
    for (const auto& [role, tensor] : node.parameters) {
      used[tensor] = result_.tensors.at(tensor);
      given[tensor] = used[tensor].shape;
    }
  }
  result_.tensors = std::move(used);
  NIBBLE_RETURN_IF_ERROR(name_inputs());
  set_blocks();
  account();
  if (!program.is_encoder()) {
    return error(
        StatusCode::unsupported,
        "[onnx] graph: an encoder has attention; found none; nibble imports encoders "
        "of token ids, convolutional and linear nets");
  }
  NIBBLE_RETURN_IF_ERROR(check_shapes(program, given, &values));
  return check_program(program);
}

Result<ImportedGraph> EncoderImport::run(const onnx::ModelProto& model) {
  for (const auto& set : model.opset_import()) {
    if (set.domain().empty() || set.domain() == "ai.onnx") opset_ = set.version();
  }
  if (opset_ < 7 || opset_ > 21) {
    return error(StatusCode::unsupported, "[onnx] opset: 7 to 21 was required; found ",
                 opset_, "; convert the model's opset first");
  }
  const onnx::GraphProto& graph = model.graph();
  result_.program.architecture = "ONNX";
  names_ = {"input_ids", "token_type_ids"};  // which the program's inputs will be
  count_uses(graph);
  NIBBLE_RETURN_IF_ERROR(add_constants(graph));
  NIBBLE_RETURN_IF_ERROR(add_inputs(graph));
  NIBBLE_RETURN_IF_ERROR(visit_all(graph));
  NIBBLE_RETURN_IF_ERROR(finish(graph));
  return std::move(result_);
}

Result<ImportedGraph> import_encoder(const onnx::ModelProto& model,
                                     const std::filesystem::path& directory) {
  return EncoderImport(directory).run(model);
}

}  // namespace nibble
