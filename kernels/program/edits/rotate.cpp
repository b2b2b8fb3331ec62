#include "kernels/program/edits/rotate.h"

#include <algorithm>
#include <memory>
#include <set>

#include "kernels/base/parallel.h"
#include "kernels/program/edits/low_rank.h"
#include "kernels/program/edits/orthogonal.h"
#include "kernels/program/edits/untie.h"
#include "kernels/program/layers.h"

namespace nibble {
namespace {

constexpr int64_t kScratch = 512;
constexpr int64_t kColumns = 32;  // of a strip that is turned together

template <class... Parts>
Status refuse(StatusCode code, const Parts&... parts) {
  return error(code, "[rotate] ", parts...);
}

// W' = R^T (W diag(factor)) C, each part where there is one.
struct Edit {
  std::vector<double> factor;
  const Orthogonal* columns = nullptr;
  const Orthogonal* rows = nullptr;
};

Tensor applied(const Tensor& tensor, const std::vector<float>& before, const Edit& edit) {
  std::vector<double> values(before.begin(), before.end());
  const bool vector = tensor.shape.size() == 1;  // a bias: one column
  const int64_t rows = tensor.shape[0];
  const int64_t cols = vector ? 1 : static_cast<int64_t>(values.size()) / rows;
  if (edit.columns != nullptr || !edit.factor.empty()) {
    parallel_for(rows, [&](int64_t r) {
      double* row = values.data() + r * cols;
      std::vector<double> scratch(kScratch);
      for (size_t c = 0; c < edit.factor.size(); ++c) row[c] *= edit.factor[c];
      if (edit.columns != nullptr) edit.columns->apply(row, scratch.data());
    });
  }
  if (edit.rows != nullptr) {
    parallel_for((cols + kColumns - 1) / kColumns, [&](int64_t strip) {
      const int64_t first = strip * kColumns, count = std::min(kColumns, cols - first);
      std::vector<double> turned(static_cast<size_t>(count * rows)), scratch(kScratch);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < count; ++c)
          turned[static_cast<size_t>(c * rows + r)] =
              values[static_cast<size_t>(r * cols + first + c)];
      }
      for (int64_t c = 0; c < count; ++c)
        edit.rows->apply(turned.data() + c * rows, scratch.data());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < count; ++c)
          values[static_cast<size_t>(r * cols + first + c)] =
              turned[static_cast<size_t>(c * rows + r)];
      }
    });
  }
  return make_tensor(tensor.shape, std::vector<float>(values.begin(), values.end()));
}

class Rotator {
 public:
  Rotator(RotatedModel& model, const RotateOptions& options)
      : model_(model), program_(model.program), options_(options) {}

  Status run() {
    if (options_.residual) NIBBLE_RETURN_IF_ERROR(turn_residual());
    if (options_.heads) NIBBLE_RETURN_IF_ERROR(turn_heads());
    if (options_.down) NIBBLE_RETURN_IF_ERROR(turn_down());
    if (options_.cache) NIBBLE_RETURN_IF_ERROR(turn_cache());
    for (const Node& node : program_.nodes) {
      for (const auto& [role, name] : node.parameters) {
        if (!edits_.count(name) || owner_.emplace(name, node.name).second) continue;
        return refuse(StatusCode::unsupported, node.name, ": ", name, " is ",
                      owner_.at(name), "'s too; a tensor of its own is required");
      }
    }
    std::map<std::string, Tensor> changed;
    for (const auto& [name, edit] : edits_) {
      const auto found = model_.tensors.find(name);
      if (found == model_.tensors.end()) {
        return refuse(StatusCode::not_found, name, ": a float tensor is required; found none");
      }
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(found->second));
      found->second.bytes.release_pages();
      changed[name] = applied(found->second, values, edit);
    }
    for (auto& [name, tensor] : changed) model_.tensors[name] = std::move(tensor);
    return insert_nodes();
  }

 private:
  Result<int64_t> columns_of(const std::string& weight) const {
    const auto found = model_.tensors.find(weight);
    if (found != model_.tensors.end()) return found->second.cols();
    return refuse(StatusCode::not_found, weight,
                  ": a float tensor is required; found none");
  }

  const Orthogonal* keep(Orthogonal matrix) {
    matrices_.push_back(std::make_unique<Orthogonal>(std::move(matrix)));
    return matrices_.back().get();
  }

  bool is_output(const std::string& value) const {
    return std::any_of(program_.outputs.begin(), program_.outputs.end(),
                       [&](const ProgramValue& out) { return out.name == value; });
  }

  // A linear layer or mixture adds rows of W (and its bias) to the stream.
  Status turn_maker(const Node* node, const std::string& value, const Orthogonal* q) {
    const bool makes = node != nullptr && (node->op == "linear" || node->op == "moe") &&
                       program_.consumers(value).size() == 1 && !is_output(value);
    if (!makes) {
      return refuse(StatusCode::unsupported, value,
                    ": what is added to the residual stream must be made by a linear layer "
                    "or a mixture that nothing else reads; found ",
                    node == nullptr ? "an input" : node->op);
    }
    for (const Layer& layer : layers_of(*node)) {
      if (node->op == "moe" && !layer.role.ends_with(".down_proj")) continue;
      edits_[layer.tensor].rows = q;
    }
    if (!node->parameter("bias").empty()) edits_[node->parameter("bias")].rows = q;
    return ok_status();
  }

  // The layers behind a norm read norm(x) diag(g) = norm(x Q) Q^T diag(g).
  Status turn_readers(const Node& norm, const Orthogonal* q) {
    const auto weight = model_.tensors.find(norm.parameter("weight"));
    if (weight == model_.tensors.end()) {
      return refuse(StatusCode::not_found, norm.name, ": a weight is required; found none");
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> g, to_float(weight->second));
    for (const Node* reader : program_.consumers(norm.outputs.at(0))) {
      if (reader->op != "linear" && reader->op != "moe") {
        return refuse(StatusCode::unsupported, reader->name,
                      ": behind a norm a linear layer or mixture is required; found ",
                      reader->op);
      }
      for (const Layer& layer : layers_of(*reader)) {
        if (reader->op == "moe" && layer.role.ends_with(".down_proj")) continue;
        Edit& edit = edits_[layer.tensor];
        edit.factor.assign(g.begin(), g.end());
        edit.columns = q;
      }
    }
    ones_.push_back(norm.parameter("weight"));
    return ok_status();
  }

  Status turn_residual() {
    std::set<std::string> stream;
    const Orthogonal* q = nullptr;
    for (const Node& node : program_.nodes) {
      const bool reads =
          std::any_of(node.inputs.begin(), node.inputs.end(),
                      [&](const std::string& name) { return stream.count(name) > 0; });
      if (node.op == "embedding") {
        NIBBLE_ASSIGN_OR_RETURN(const int64_t width, columns_of(node.parameter("weight")));
        if (q == nullptr) q = keep(Orthogonal(width, 1, options_.seed));
        edits_[node.parameter("weight")].columns = q;
        stream.insert(node.outputs.at(0));
      } else if (node.op == "add" && reads) {
        for (const std::string& name : node.inputs) {
          if (!stream.count(name))
            NIBBLE_RETURN_IF_ERROR(turn_maker(program_.producer(name), name, q));
        }
        stream.insert(node.outputs.at(0));
      } else if (node.op == "rms_norm" && reads && !node.attributes.count("head_dim")) {
        NIBBLE_RETURN_IF_ERROR(turn_readers(node, q));
      } else if (reads) {
        return refuse(StatusCode::unsupported, node.name, ": op ", node.op,
                      " reads the residual stream; only RMS norms and adds may");
      }
    }
    if (ones_.empty()) {
      return refuse(StatusCode::invalid_argument,
                    "residual: a decoder whose blocks begin with RMS norms is required; "
                    "found none in ",
                    program_.architecture);
    }
    for (const std::string& value : stream) {
      if (is_output(value)) {
        return refuse(StatusCode::unsupported, value,
                      ": the residual stream is an output of the model");
      }
    }
    for (const std::string& name : ones_) {
      Tensor& weight = model_.tensors.at(name);
      const std::vector<float> ones(static_cast<size_t>(weight.numel()), 1.0f);
      weight = make_tensor(weight.shape, ones);
    }
    return ok_status();
  }

  Status turn_heads() {
    bool found = false;
    for (const Node& node : program_.nodes) {
      if (node.op != "attention") continue;
      const Node* maker = program_.producer(node.inputs.at(2));
      const std::vector<const Node*> readers = program_.consumers(node.outputs.at(0));
      if (maker == nullptr || maker->op != "linear" || readers.size() != 1 ||
          readers[0]->op != "linear" ||
          program_.consumers(node.inputs.at(2)).size() != 1) {
        return refuse(StatusCode::unsupported, node.name,
                      ": value heads that one linear layer makes and one reads behind "
                      "attention are required");
      }
      const int64_t heads = node.integer("heads", 0), size = node.integer("head_dim", 0);
      const Orthogonal* made = keep(Orthogonal(size, node.integer("kv_heads", heads)));
      edits_[maker->parameter("weight")].rows = made;
      if (!maker->parameter("bias").empty())
        edits_[maker->parameter("bias")].rows = made;
      edits_[readers[0]->parameter("weight")].columns = keep(Orthogonal(size, heads));
      found = true;
    }
    if (found) return ok_status();
    return refuse(StatusCode::invalid_argument,
                  "heads: a model with attention is required; found none in ",
                  program_.architecture);
  }

  static Node online(const std::string& name, const Node& beside, const std::string& input,
                     int64_t block) {
    Node node;
    node.op = "hadamard";
    node.name = name;
    node.block = beside.block;
    node.inputs = {input};
    node.outputs = {name};
    node.attributes["block"] = block;
    return node;
  }

  Status turn_down() {
    for (const Node& node : program_.nodes) {
      if (node.op == "moe") {
        return refuse(StatusCode::unsupported, node.name,
                      ": down: a mixture makes what its down_proj reads inside; leave "
                      "`down` out");
      }
      if (node.op != "silu_mul") continue;
      const std::vector<const Node*> readers = program_.consumers(node.outputs.at(0));
      if (readers.size() != 1 || readers[0]->op != "linear") {
        return refuse(StatusCode::unsupported, node.name,
                      ": down: one linear layer behind silu_mul is required");
      }
      const std::string& weight = readers[0]->parameter("weight");
      NIBBLE_ASSIGN_OR_RETURN(const int64_t width, columns_of(weight));
      const int64_t block = power_of_two_in(width);
      edits_[weight].columns = keep(Orthogonal::in_blocks(width, block));
      before_[readers[0]->name].push_back(
          {0, online(readers[0]->name + ".rotation", *readers[0], node.outputs.at(0), block)});
    }
    if (!before_.empty()) return ok_status();
    return refuse(StatusCode::invalid_argument,
                  "down: a decoder with gated MLPs is required; found none in ",
                  program_.architecture);
  }

  Status turn_cache() {
    bool found = false;
    for (const Node& node : program_.nodes) {
      if (node.op != "attention") continue;
      found = true;
      const int64_t block = power_of_two_in(node.integer("head_dim", 1));
      before_[node.name].push_back(
          {0, online(node.name + ".query_rotation", node, node.inputs.at(0), block)});
      before_[node.name].push_back(
          {1, online(node.name + ".key_rotation", node, node.inputs.at(1), block)});
    }
    if (found) return ok_status();
    return refuse(StatusCode::invalid_argument,
                  "cache: a model with attention is required; found none in ",
                  program_.architecture);
  }

  Status insert_nodes() {
    std::vector<Node> nodes;
    for (Node& node : program_.nodes) {
      for (auto& [input, extra] : before_[node.name]) {
        node.inputs[input] = extra.outputs.at(0);
        nodes.push_back(extra);
      }
      nodes.push_back(std::move(node));
    }
    program_.nodes = std::move(nodes);
    return check_program(program_);
  }

  RotatedModel& model_;
  Program& program_;
  const RotateOptions& options_;
  std::vector<std::unique_ptr<Orthogonal>> matrices_;
  std::map<std::string, Edit> edits_;  // by tensor
  std::map<std::string, std::string> owner_;  // of an edited tensor: the node
  std::vector<std::string> ones_;      // norms whose weights went into their readers
  // Nodes to insert before a node, each for one of its inputs.
  std::map<std::string, std::vector<std::pair<size_t, Node>>> before_;
};

}  // namespace

Result<RotatedModel> rotate(const Program& program,
                            const std::map<std::string, Tensor>& tensors,
                            const RotateOptions& options) {
  if (has_low_rank(program) || has_online_rotation(program)) {
    return refuse(StatusCode::unsupported,
                  "a model without adapters and rotations is required; found some; merge "
                  "adapters first");
  }
  RotatedModel model{program, tensors, false};
  if (options.residual) {
    NIBBLE_ASSIGN_OR_RETURN(UntiedModel untied, untie(program, tensors));
    model.untied = !untied.added.empty();
    model.program = std::move(untied.program);
    model.tensors = std::move(untied.tensors);
  }
  NIBBLE_RETURN_IF_ERROR(Rotator(model, options).run());
  return model;
}

bool has_online_rotation(const Program& program) {
  return std::any_of(program.nodes.begin(), program.nodes.end(),
                     [](const Node& node) { return node.op == "hadamard"; });
}

}  // namespace nibble
