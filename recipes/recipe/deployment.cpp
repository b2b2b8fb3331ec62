#include "recipes/recipe/deployment.h"

#include <algorithm>

#include "kernels/program/layers.h"
#include "recipes/recipe/nearest_name.h"

namespace nibble {
namespace {

template <class... Parts>
Status refused(const DeploymentTarget& target, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", target.name, "] ", parts...);
}

std::string joined_numbers(const std::vector<int64_t>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    text += cat(i == 0                    ? ""
                : i + 1 == numbers.size() ? " or "
                                          : ", ",
                numbers[i] == 0 ? std::string("a row") : std::to_string(numbers[i]));
  }
  return text;
}

// 21.5; whole numbers without a point.
std::string quotient(int64_t a, int64_t b) {
  if (a % b == 0) return std::to_string(a / b);
  std::string text = std::to_string(static_cast<double>(a) / static_cast<double>(b));
  while (text.back() == '0') text.pop_back();
  return text;
}

class Check {
 public:
  Check(const DeploymentTarget& target, const Artifact& model, int64_t devices)
      : target_(target), model_(model), devices_(devices) {}

  Status heads() const {
    for (const Node& node : model_.program.nodes) {
      if (node.op != "attention") continue;
      const int64_t heads = node.integer("heads", 1),
                    kv = node.integer("kv_heads", heads);
      // Fewer key heads than devices are copied, if that comes out even.
      const bool shared = kv % devices_ == 0 || devices_ % kv == 0;
      if (heads % devices_ == 0 && shared) continue;
      return refused(target_, node.name, " has ", heads, " heads and ", kv,
                     " key heads; tensor-parallel ", devices_,
                     " does not divide them; use tensor-parallel ",
                     fewer_devices([&](int64_t n) {
                       return heads % n == 0 && (kv % n == 0 || n % kv == 0);
                     }));
    }
    return ok_status();
  }

  Status layer(const LayerPlan& plan, const Layer& layer) const {
    if (plan.method == "float") return ok_status();
    const QuantScheme& scheme = plan.scheme.weight;
    if (layer.node->op == "embedding") {
      return refused(target_, layer.name, " is an embedding, which must be float; found ",
                     to_string(scheme), "; use --set embedding=float");
    }
    const ElementKind kind = element_info(scheme.code).kind;
    if (scheme.code == Element::nf4 || scheme.code == Element::fp4) {
      return table(layer, scheme);
    }
    if (scheme.code == Element::e4m3 && target_.fp8) return fp8(layer, plan);
    if (kind != ElementKind::integer) return no_kernel(layer, scheme);
    return integer(layer, plan);
  }

 private:
  // Is the layer split along its columns?
  bool splits_columns(const Layer& layer) const {
    if (layer.node->op == "moe") return layer.name.ends_with("down_proj");
    const Node* from = model_.program.producer(layer.node->inputs[0]);
    return from != nullptr && (from->op == "attention" || from->op == "silu_mul" ||
                               from->op == "gelu" || from->op == "relu");
  }
  const Tensor& tensor(const Layer& layer) const {
    return model_.tensors.at(layer.tensor);
  }

  template <class Fits>
  int64_t fewer_devices(Fits fits) const {
    int64_t n = devices_ - 1;
    while (n > 1 && !fits(n)) --n;
    return std::max<int64_t>(n, 1);
  }

  Status no_kernel(const Layer& layer, const QuantScheme& scheme) const {
    std::string bits;
    for (size_t i = 0; i < target_.bits.size(); ++i) {
      bits += cat(i == 0                         ? ""
                  : i + 1 == target_.bits.size() ? " and "
                                                 : ", ",
                  target_.bits[i]);
    }
    return refused(target_, layer.name, " would be ", to_string(scheme), "; it serves ",
                   bits, "-bit integers with scales of f16 or bf16, groups of ",
                   joined_numbers(target_.groups),
                   target_.zero_points ? "" : ", symmetric", target_.fp8 ? ", FP8" : "",
                   target_.tables ? ", NF4 and FP4" : "", "; choose one of these");
  }

  Status table(const Layer& layer, const QuantScheme& scheme) const {
    if (!target_.tables) return no_kernel(layer, scheme);
    if (devices_ <= target_.table_devices) return ok_status();
    return refused(target_, layer.name, " would be ", to_string(scheme),
                   ", whose blocks run over the ends of rows; tensor-parallel ", devices_,
                   " cannot split it; use tensor-parallel 1 or an integer scheme");
  }

  // Rows or columns that each device gets.
  Status split(const Layer& layer, bool columns) const {
    const int64_t size = columns ? tensor(layer).cols() : tensor(layer).rows();
    if (size % devices_ == 0) return ok_status();
    return refused(target_, layer.name, " has ", size, columns ? " columns" : " rows",
                   "; tensor-parallel ", devices_, " leaves ", quotient(size, devices_),
                   "; use tensor-parallel ",
                   fewer_devices([&](int64_t n) { return size % n == 0; }));
  }

  Status fp8(const Layer& layer, const LayerPlan& plan) const {
    const QuantScheme& scheme = plan.scheme.weight;
    if (scheme.scales.size() != 1) return no_kernel(layer, scheme);
    const Block& block = scheme.scales[0].block;
    const bool columns = splits_columns(layer);
    NIBBLE_RETURN_IF_ERROR(split(layer, columns));
    if (block.kind == Block::Kind::tensor || block.kind == Block::Kind::row) {
      return ok_status();
    }
    if (block.kind != Block::Kind::grid || block.rows != 128 || block.cols != 128) {
      return refused(
          target_, layer.name, " would be ", to_string(scheme),
          "; its FP8 has a scale a tensor, a row or 128x128; choose one of these");
    }
    const int64_t size = columns ? tensor(layer).cols() : tensor(layer).rows();
    if (devices_ == 1 || size / devices_ % 128 == 0) return ok_status();
    return refused(target_, layer.name, " has ", size, columns ? " columns" : " rows",
                   "; tensor-parallel ", devices_, " leaves ", size / devices_, " = ",
                   quotient(size / devices_, 128),
                   " blocks of 128; use a scale a row or "
                   "tensor-parallel ",
                   fewer_devices([&](int64_t n) { return size % (128 * n) == 0; }));
  }

  Status integer(const Layer& layer, const LayerPlan& plan) const {
    const QuantScheme& scheme = plan.scheme.weight;
    const int bits = element_info(scheme.code).bits;
    const bool known =
        std::find(target_.bits.begin(), target_.bits.end(), bits) != target_.bits.end();
    const bool one_level = scheme.scales.size() == 1 &&
                           scheme.offset != OffsetKind::minimum &&
                           (scheme.offset == OffsetKind::none || target_.zero_points);
    if (!known || !one_level) return no_kernel(layer, scheme);
    const Block& block = scheme.scales[0].block;
    const bool group = block.kind == Block::Kind::group;
    if (!group && block.kind != Block::Kind::row && block.kind != Block::Kind::tensor) {
      return no_kernel(layer, scheme);
    }
    if (plan.scheme.input) {
      if (!target_.integer_inputs || bits != 8 || group) {
        return refused(
            target_, layer.name, " would have inputs of ",
            to_string(plan.scheme.input->scheme), " and ", to_string(scheme),
            target_.integer_inputs
                ? "; it multiplies 8-bit codes with a scale a row or a tensor; "
                  "choose these"
                : "; it reads float inputs; leave `input` out");
      }
      return split(layer, splits_columns(layer));
    }
    const int64_t size = group ? block.cols : 0;
    if (std::find(target_.groups.begin(), target_.groups.end(), size) ==
        target_.groups.end()) {
      return refused(target_, layer.name, " would have ",
                     size == 0 ? std::string("a scale a row") : cat("groups of ", size),
                     "; it has kernels for ", joined_numbers(target_.groups),
                     "; use --set group=", target_.groups.back());
    }
    return groups(layer, size);
  }

  Status groups(const Layer& layer, int64_t group) const {
    const bool columns = splits_columns(layer);
    const int64_t cols = tensor(layer).cols();
    const auto fits = [&](int64_t size, int64_t devices) {
      return cols % devices == 0 && (size == 0 || cols / devices % size == 0);
    };
    const int64_t devices = columns ? devices_ : 1;
    if (fits(group, devices)) return columns ? ok_status() : split(layer, false);
    if (cols % devices != 0) return split(layer, true);
    // A smaller group, or fewer devices.
    int64_t smaller = -1;
    for (const int64_t size : target_.groups) {
      if (size > 0 && size < group && fits(size, devices))
        smaller = std::max(smaller, size);
    }
    const int64_t fewer =
        devices > 1 ? fewer_devices([&](int64_t n) { return fits(group, n); }) : 1;
    const bool one_device = devices > 1 && fits(group, fewer);
    std::string advice = smaller > 0 ? cat("use group ", smaller) : "";
    if (one_device) {
      advice += cat(advice.empty() ? "use " : " or ", "tensor-parallel ", fewer);
    }
    if (advice.empty()) advice = "use group 0, a scale a row, or leave the layer float";
    const std::string name = layer.name.substr(layer.name.rfind('.') + 1);
    return refused(
        target_, layer.name, ": ", name, " has ", cols, " columns; ",
        devices > 1 ? cat("tensor-parallel ", devices, " leaves ", cols / devices, " = ")
                    : std::string("that is "),
        quotient(cols / devices, group), " groups of ", group, "; ", advice);
  }

  const DeploymentTarget& target_;
  const Artifact& model_;
  int64_t devices_;
};

}  // namespace

const std::vector<DeploymentTarget>& deployment_targets() {
  // vllm: its Marlin kernels' sizes; NF4 and FP4 are not split over devices.
  // tensorrt-llm: its group-wise weight-only kernels.
  // onnxruntime: MatMulNBits; block sizes are powers of two from 16 on.
  // llama.cpp: Q4_0 and Q8_0 blocks of 32, whose scale may repeat; it splits by layers.
  static const std::vector<DeploymentTarget> targets = {
      {.name = "vllm",
       .format = "compressed-tensors",
       .bits = {4, 8},
       .groups = {0, 32, 64, 128},
       .zero_points = true,
       .fp8 = true,
       .tables = true,
       .integer_inputs = true,
       .splits = true,
       .table_devices = 1},
      {.name = "tensorrt-llm",
       .format = "gptq",
       .bits = {4},
       .groups = {64, 128},
       .zero_points = true,
       .fp8 = true,
       .tables = false,
       .integer_inputs = false,
       .splits = true,
       .table_devices = 0},
      {.name = "onnxruntime",
       .format = "onnx",
       .bits = {4, 8},
       .groups = {0, 16, 32, 64, 128, 256},
       .zero_points = true,
       .fp8 = false,
       .tables = false,
       .integer_inputs = true,
       .splits = false,
       .table_devices = 0},
      {.name = "llama.cpp",
       .format = "gguf",
       .bits = {4, 8},
       .groups = {32, 64, 128, 256},
       .zero_points = false,
       .fp8 = false,
       .tables = false,
       .integer_inputs = false,
       .splits = false,
       .table_devices = 0},
  };
  return targets;
}

Status check_deployment(const Plan& plan, const Artifact& model, const std::string& name,
                        int64_t tensor_parallel) {
  const DeploymentTarget* target = nullptr;
  std::vector<std::string> names;
  for (const DeploymentTarget& row : deployment_targets()) {
    names.emplace_back(row.name);
    if (name == row.name) target = &row;
  }
  if (target == nullptr) {
    std::string known;
    for (const std::string& each : names) known += cat(known.empty() ? "" : ", ", each);
    return error(StatusCode::not_found, "[recipe] --target: must be one of ", known,
                 "; found `", name, "`", did_you_mean(name, names));
  }
  if (tensor_parallel < 1) {
    return error(StatusCode::invalid_argument,
                 "[recipe] --tensor-parallel: must be at least 1; found ",
                 tensor_parallel);
  }
  if (tensor_parallel > 1 && !target->splits) {
    return refused(*target,
                   "it does not split a layer over devices; found tensor-parallel ",
                   tensor_parallel, "; leave it out");
  }
  if (plan.has_low_rank() && std::string_view(target->format) != "onnx") {
    return refused(
        *target, "its layers have no factors beside them; found low_rank; leave it out");
  }
  const Check check(*target, model, tensor_parallel);
  NIBBLE_RETURN_IF_ERROR(check.heads());
  for (const Layer& layer : layers_of(model.program)) {
    const LayerPlan* row = plan.find(layer.tensor);
    if (row != nullptr) NIBBLE_RETURN_IF_ERROR(check.layer(*row, layer));
  }
  return ok_status();
}

}  // namespace nibble
