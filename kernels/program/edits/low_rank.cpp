#include "kernels/program/edits/low_rank.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/float_types.h"
#include "kernels/base/glob.h"
#include "kernels/base/splitmix64.h"

namespace nibble {
namespace {

constexpr const char* kA = ".lora_A";
constexpr const char* kB = ".lora_B";
constexpr const char* kSum = ".lora";

Node linear_node(const Node& beside, const std::string& name, const std::string& input) {
  Node node;
  node.op = "linear";
  node.name = name;
  node.block = beside.block;
  node.inputs = {input};
  node.outputs = {name};
  node.parameters = {{"weight", name + ".weight"}};
  return node;
}

// In the dtype of `like`, rounded once.
Tensor in_dtype(const std::vector<int64_t>& shape, const std::vector<float>& values,
                DType dtype) {
  if (dtype != DType::bf16 && dtype != DType::f16)
    return make_tensor(shape, std::span<const float>(values));
  std::byte* bytes = nullptr;
  Tensor result{dtype, shape, Bytes::allocate(values.size() * 2, &bytes)};
  uint16_t* halves = reinterpret_cast<uint16_t*>(bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    halves[i] =
        dtype == DType::bf16 ? bf16_from_float(values[i]) : f16_from_float(values[i]);
  }
  return result;
}

Result<std::vector<float>> floats_of(const std::map<std::string, Tensor>& tensors,
                                     const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    return error(StatusCode::not_found, "[low rank] ", name,
                 ": this tensor was required; the model has none by this name");
  }
  return to_float(found->second);
}

Status without_adapters(const Program& program) {
  if (!has_low_rank(program)) return ok_status();
  return error(StatusCode::invalid_argument,
               "[low rank] a model without adapters was required; found some; merge "
               "them first");
}

}  // namespace

std::string low_rank_a(const std::string& node) { return node + kA + ".weight"; }
std::string low_rank_b(const std::string& node) { return node + kB + ".weight"; }

bool has_low_rank(const Program& program) {
  return std::any_of(program.nodes.begin(), program.nodes.end(), [](const Node& node) {
    return node.op == "linear" && node.name.ends_with(kA);
  });
}

std::set<std::string> low_rank_tensors(const Program& program) {
  std::set<std::string> names;
  for (const Node& node : program.nodes) {
    if (node.op == "linear" && (node.name.ends_with(kA) || node.name.ends_with(kB)))
      names.insert(node.parameter("weight"));
  }
  return names;
}

bool takes_low_rank(const Node& node) {
  return node.op == "linear" && node.block >= 0 && node.block != kLastBlock;
}

Result<std::vector<std::string>> insert_low_rank(
    Program& program, std::map<std::string, Tensor>& tensors,
    const std::map<std::string, LowRankFactors>& factors) {
  NIBBLE_RETURN_IF_ERROR(without_adapters(program));
  for (const auto& [name, factor] : factors) {
    const Node* node = program.find(name);
    if (node != nullptr && takes_low_rank(*node)) continue;
    return error(StatusCode::invalid_argument, "[low rank] ", name,
                 ": a linear layer inside a block was required; found ",
                 node == nullptr ? "no node" : node->op);
  }
  std::vector<Node> nodes;
  std::vector<std::string> added;
  for (Node node : program.nodes) {
    const auto factor = factors.find(node.name);
    if (factor == factors.end()) {
      nodes.push_back(std::move(node));
      continue;
    }
    const std::string name = node.name, input = node.inputs[0], output = node.outputs[0];
    const Node first = linear_node(node, name + kA, input),
               second = linear_node(node, name + kB, name + kA);
    for (const auto& [adapter, values] :
         {std::pair{&first, &factor->second.a}, std::pair{&second, &factor->second.b}}) {
      added.push_back(adapter->parameter("weight"));
      tensors[added.back()] = *values;
    }
    node.outputs[0] = name + ".base_output";
    Node sum;
    sum.op = "add";
    sum.name = name + kSum;
    sum.block = node.block;
    sum.inputs = {node.outputs[0], name + kB};
    sum.outputs = {output};
    nodes.push_back(std::move(node));
    nodes.push_back(first);
    nodes.push_back(second);
    nodes.push_back(std::move(sum));
  }
  program.nodes = std::move(nodes);
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return added;
}

Result<std::vector<std::string>> add_low_rank(Program& program,
                                              std::map<std::string, Tensor>& tensors,
                                              const WeightShapes& shapes,
                                              const LowRankOptions& options) {
  if (options.rank < 1) {
    return error(StatusCode::invalid_argument,
                 "[low rank] rank: 1 or more was required; found ", options.rank,
                 "; 8 to 64 are usual");
  }
  NIBBLE_RETURN_IF_ERROR(without_adapters(program));
  std::map<std::string, LowRankFactors> factors;
  SplitMix64 random(mix64(options.seed));
  for (const Node& node : program.nodes) {
    if (!takes_low_rank(node) || !glob_matches(options.pattern, node.name)) continue;
    const auto shape = shapes.find(node.parameter("weight"));
    if (shape == shapes.end() || shape->second.size() != 2) {
      return error(StatusCode::not_found, "[low rank] ", node.name,
                   ": a weight [out, in] was required; the model has none");
    }
    const int64_t out = shape->second[0], in = shape->second[1];
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    std::vector<float> a(static_cast<size_t>(options.rank * in));
    for (float& value : a) value = static_cast<float>((2 * random.uniform() - 1) * bound);
    const std::vector<float> b(static_cast<size_t>(out * options.rank), 0.0f);
    factors[node.name] = {make_tensor({options.rank, in}, std::span<const float>(a)),
                          make_tensor({out, options.rank}, std::span<const float>(b))};
  }
  if (factors.empty()) {
    return error(StatusCode::invalid_argument, "[low rank] pattern \"", options.pattern,
                 "\": a linear layer inside a block was required to match; found none; "
                 "`nibble inspect` lists the layers");
  }
  return insert_low_rank(program, tensors, factors);
}

Status merge_low_rank(Program& program, std::map<std::string, Tensor>& tensors) {
  if (!has_low_rank(program)) {
    return error(
        StatusCode::invalid_argument,
        "[low rank] a model with adapters was required; found none; it is merged "
        "already");
  }
  std::vector<Node> nodes;
  for (Node node : program.nodes) {
    if (node.name.ends_with(kA) || node.name.ends_with(kB)) continue;
    if (node.op == "add" && node.name.ends_with(kSum)) {
      // Its layer, two nodes back, makes the value again.
      for (Node& base : nodes) {
        if (base.outputs[0] == node.inputs[0]) base.outputs[0] = node.outputs[0];
      }
      continue;
    }
    const Node* down = program.find(node.name + kA);
    if (down == nullptr) {
      nodes.push_back(std::move(node));
      continue;
    }
    const std::string weight = node.parameter("weight");
    const std::string up = node.name + kB + ".weight";
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> w, floats_of(tensors, weight));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> a,
                            floats_of(tensors, down->parameter("weight")));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> b, floats_of(tensors, up));
    const Tensor& before = tensors.at(weight);
    const int64_t out = before.shape[0], in = before.shape[1];
    const int64_t rank = static_cast<int64_t>(a.size()) / in;
    std::vector<float> merged(w.size());
    std::vector<double> row(static_cast<size_t>(in));
    for (int64_t o = 0; o < out; ++o) {
      std::copy(w.begin() + o * in, w.begin() + (o + 1) * in, row.begin());
      for (int64_t r = 0; r < rank; ++r) {
        const double factor = b[static_cast<size_t>(o * rank + r)];
        const float* from = a.data() + r * in;
        for (int64_t i = 0; i < in; ++i) row[static_cast<size_t>(i)] += factor * from[i];
      }
      std::copy(row.begin(), row.end(), merged.begin() + o * in);
    }
    tensors[weight] = in_dtype(before.shape, merged, before.dtype);
    tensors.erase(down->parameter("weight"));
    tensors.erase(up);
    nodes.push_back(std::move(node));
  }
  program.nodes = std::move(nodes);
  return check_program(program);
}

}  // namespace nibble
