// nibble list: what nibble knows, read from the tables that its parts are built from.
#include <array>
#include <iostream>

#include "export/exporter.h"
#include "export/ggml/ggml_type.h"
#include "kernels/base/cpu.h"
#include "kernels/base/json.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/gelu/gelu.h"
#include "kernels/ops/layer_norm/layer_norm.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/runtime/cuda_nodes.h"
#include "kernels/scheme/quant_scheme.h"
#include "ptq/plan.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/models/architecture.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/recipe/recipe.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// The first row is the header.
using Rows = std::vector<std::vector<std::string>>;

Result<Rows> recipes_list() {
  Rows rows = {{"recipe", "kind", "what it does"}};
  for (const std::string& name : builtin_recipes()) {
    NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, load_recipe(name, {}));
    rows.push_back({recipe.name, recipe.kind, recipe.description});
  }
  return rows;
}

// A scheme is a string and there is no end of them; these are the ones with names.
struct NamedScheme {
  const char* scheme;
  const char* name;
};
constexpr std::array kNamedSchemes = {
    NamedScheme{"int4/g128@f16", "symmetric 4 bits, a scale every 128 weights of a row"},
    NamedScheme{"uint4/g128@f16+z/g128@uint4", "with zero points: GPTQ, AWQ"},
    NamedScheme{"int8n/r@f32", "8 bits per channel (weights), per token (activations)"},
    NamedScheme{"e4m3/r@f32", "FP8 per channel or per token"},
    NamedScheme{"e4m3/b128x128@f32", "FP8 in blocks of 128 x 128"},
    NamedScheme{"nf4/f64@f32", "bitsandbytes NF4"},
    NamedScheme{"nf4/f64@dyn8+o/f16384@f32", "bitsandbytes NF4, double quantization"},
    NamedScheme{"fp4/f64@f32", "bitsandbytes FP4"},
    NamedScheme{"e2m1/g32@e8m0", "MXFP4"},
    NamedScheme{"e2m1/g16@e4m3/t@f32", "NVFP4"},
    NamedScheme{"ternary/r@f32", "scaled ternary weights"},
    NamedScheme{"binary/r@f32", "scaled sign"},
};

Result<Rows> schemes_list() {
  Rows rows = {{"scheme", "bits a weight", "what it is"}};
  for (const NamedScheme& named : kNamedSchemes) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(named.scheme));
    // Scales, zero points and minima counted, in a matrix of 4096 x 4096.
    rows.push_back(
        {named.scheme, number_text(bits_per_value(scheme, 4096, 4096), 4), named.name});
  }
  for (const GgmlType& type : all_ggml_types()) {
    if (type.is_float()) continue;
    const double bits = 8.0 * static_cast<double>(type.bytes) /
                        static_cast<double>(type.block);  // as GGUF packs it
    rows.push_back(
        {to_string(type.scheme), number_text(bits, 4), cat("ggml ", type.name)});
  }
  std::string elements;
  for (const Element element : all_elements()) {
    elements += (elements.empty() ? "" : " ") + std::string(element_info(element).text);
  }
  rows.push_back({"any other", "-", "code/block@element[...]: " + elements});
  return rows;
}

Result<Rows> methods_list() {
  Rows rows = {{"method", "data", "what it does"}};
#define NIBBLE_METHOD(name, needs_inputs, description) \
  rows.push_back({#name, needs_inputs ? "calibration" : "none", description});
#include "ptq/methods/methods.inc"
#undef NIBBLE_METHOD
  rows.push_back(
      {"float", "none", "leave the layer in its own type; say why in the recipe"});
  return rows;
}

Result<Rows> transforms_list() {
  Rows rows = {{"transform", "data", "what it does"}};
#define NIBBLE_TRANSFORM(name, kind, description) \
  rows.push_back({#name, "calibration", description});
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM
  return rows;
}

Result<Rows> formats_list() {
  Rows rows = {{"format", "what it is"}};
  for (const Exporter& exporter : all_exporters())
    rows.push_back({exporter.name, exporter.description});
  return rows;
}

Result<Rows> architectures_list() {
  Rows rows = {{"architecture", "model_type"}};
  for (const ModelArchitecture& architecture : all_architectures())
    rows.push_back({architecture.name, architecture.model_type});
  return rows;
}

template <typename Kernel>
void add_kernels(const char* op, const std::vector<Kernel>& kernels, Rows& rows) {
  for (const Kernel& kernel : kernels) {
    const bool usable = (kernel.flags & ~usable_cpu_flags()) == 0;
    rows.push_back({op, kernel.name, usable ? "yes" : "no"});
  }
}

Result<Rows> kernels_list() {
  Rows rows = {{"op", "kernel, the best first", "usable here"}};
  add_kernels("linear", linear_kernels(), rows);
  add_kernels("conv2d", conv2d_kernels(), rows);
  add_kernels("attention", attention_kernels(), rows);
  add_kernels("quantize_rows", quantize_rows_kernels(), rows);
  add_kernels("rms_norm", rms_norm_kernels(), rows);
  add_kernels("rope", rope_kernels(), rows);
  add_kernels("layer_norm", layer_norm_kernels(), rows);
  add_kernels("gelu", gelu_kernels(), rows);
  add_kernels("silu_mul", silu_mul_kernels(), rows);
  const char* const usable = cuda::device_info().ok() ? "yes" : "no";
  for (const cuda::CudaKernel& kernel : cuda::cuda_kernels())
    rows.push_back({kernel.op, kernel.name, usable});
  return rows;
}

struct Topic {
  const char* name;
  Result<Rows> (*rows)();
};
constexpr std::array kTopics = {
    Topic{"recipes", recipes_list}, Topic{"schemes", schemes_list},
    Topic{"methods", methods_list}, Topic{"transforms", transforms_list},
    Topic{"formats", formats_list}, Topic{"architectures", architectures_list},
    Topic{"kernels", kernels_list},
};

}  // namespace

std::vector<std::string> list_topics() {
  std::vector<std::string> names;
  for (const Topic& topic : kTopics) names.emplace_back(topic.name);
  return names;
}

Status run_list_verb(const std::vector<std::string>& arguments) {
  CommandLine line("list TOPIC",
                   "What nibble knows. Topics: " + joined(list_topics(), ", ") + ".");
  line.positional("TOPIC");
  line.json();
  line.example("nibble list kernels", "every kernel, and which of them this CPU can run");
  line.example("nibble list schemes --json", "the named schemes, for a script");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  const std::string name = line.text("TOPIC");
  for (const Topic& topic : kTopics) {
    if (name != topic.name) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Rows rows, topic.rows());
    if (!line.wants_json()) {
      std::cout << table_text(rows);
      return ok_status();
    }
    Json list = Json::array();
    for (size_t i = 1; i < rows.size(); ++i) {
      Json row;
      for (size_t c = 0; c < rows[i].size(); ++c) row[rows[0][c]] = rows[i][c];
      list.push_back(std::move(row));
    }
    std::cout << Json{{name, list}}.dump() << "\n";
    return ok_status();
  }
  return error(StatusCode::invalid_argument, "[list] TOPIC: one of ",
               joined(list_topics(), ", "), " is required; found '", name, "'",
               did_you_mean(name, list_topics()), "; nibble list recipes is a start");
}

}  // namespace nibble
