// nibble inspect: what is in a model or artifact, before anything is done with it.
#include <iostream>
#include <optional>

#include "export/onnx/onnx_ends.h"
#include "kernels/base/json.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/model_data.h"
#include "recipes/eval/weight_statistics.h"
#include "recipes/recipe/predict.h"
#include "recipes/recipe/recipe.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct LayerLine {
  std::string tensor, op, scheme, method, activation;
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  double bits = 0, error = 0, rtn_error = -1, output_error = -1, rtn_output_error = -1;
  std::optional<WeightStatistics> statistics;  // of a float layer
};

// What one built-in recipe would make of the model.
struct RecipeLine {
  std::string recipe;
  PlanSize size;
  std::string refusal;  // why it does not apply; else ""
};

std::string dtype_text(const Tensor& tensor) {
  std::string name = dtype_name(tensor.dtype);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

// Every parameter that the program names, in its order, a tied one once.
std::vector<LayerLine> parameter_lines(const Artifact& model) {
  std::vector<LayerLine> lines;
  std::map<std::string, bool> seen;
  for (const Node& node : model.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) {
      if (seen[tensor]) continue;
      seen[tensor] = true;
      LayerLine line;
      line.tensor = tensor;
      line.op = node.op;
      int64_t count = 0;
      if (const auto packed = model.packed.find(tensor); packed != model.packed.end()) {
        line.scheme = to_string(packed->second.scheme);
        line.shape = packed->second.shape;
        line.bytes = packed->second.bytes();
        count = packed->second.rows * packed->second.cols;
      } else if (const auto plain = model.tensors.find(tensor);
                 plain != model.tensors.end()) {
        line.scheme = dtype_text(plain->second);
        line.shape = plain->second.shape;
        line.bytes = static_cast<int64_t>(plain->second.bytes.size());
        count = plain->second.numel();
      }
      if (count > 0)
        line.bits = 8.0 * static_cast<double>(line.bytes) / static_cast<double>(count);
      if (const LedgerEntry* entry = model.ledger.find(tensor)) {
        line.method = entry->method;
        line.error = entry->error;
        line.rtn_error = entry->rtn_error;
        line.output_error = entry->output_error;
        line.rtn_output_error = entry->rtn_output_error;
      }
      const auto layer = model.layers.find(tensor);
      if (layer != model.layers.end() && layer->second.input) {
        line.activation = to_string(layer->second.input->scheme) +
                          (layer->second.input->dynamic ? " dynamic" : "");
      }
      lines.push_back(std::move(line));
    }
  }
  return lines;
}

Status add_statistics(const Artifact& model, std::vector<LayerLine>& lines) {
  for (LayerLine& line : lines) {
    const OpInfo* op = find_op(line.op);
    const auto tensor = model.tensors.find(line.tensor);
    const bool layer = op != nullptr && (op->is_layer || line.op == "moe" || line.op == "lstm");
    if (!layer || line.shape.size() < 2) continue;
    if (tensor == model.tensors.end() || !tensor->second.is_float()) continue;
    NIBBLE_ASSIGN_OR_RETURN(line.statistics, weight_statistics(tensor->second));
  }
  return ok_status();
}

Result<PlanSize> size_under(const std::string& name, const Artifact& model) {
  NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, load_recipe(name, {}));
  NIBBLE_ASSIGN_OR_RETURN(const Artifact planned, prepare_for_recipe(model, recipe));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, make_plan(recipe, planned.program));
  return predict_size(plan, planned);
}

std::vector<RecipeLine> recipe_lines(const Artifact& model) {
  std::vector<RecipeLine> lines;
  for (const std::string& name : builtin_recipes()) {
    const Result<Recipe> recipe = load_recipe(name, {});
    if (!recipe.ok() || recipe->kind == "float") continue;
    RecipeLine line{name, {}, ""};
    const Result<PlanSize> size = size_under(name, model);
    if (size.ok()) {
      line.size = *size;
    } else {
      line.refusal = size.status().message();
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string shape_of(const std::vector<std::string>& sizes) {
  std::string text = "[";
  for (const std::string& size : sizes) text += (text.size() > 1 ? ", " : "") + size;
  return text + "]";
}

// "input F32 [batch, 576], sr I64 []"
template <class Ends, class Type>
std::string ends_text(const Ends& ends, const Type& type) {
  std::string text;
  for (const auto& end : ends)
    text +=
        cat(text.empty() ? "" : ", ", end.name, " ", type(end), " ", shape_of(end.shape));
  return text;
}

template <class Ends, class Type>
Json ends_json(const Ends& ends, const Type& type) {
  Json json = Json::array();
  for (const auto& end : ends)
    json.push_back({{"name", end.name}, {"dtype", type(end)}, {"shape", end.shape}});
  return json;
}

std::string type_of(const ProgramValue& value) { return dtype_name(value.dtype); }

Json to_json(const Artifact& model, const Measurement& size,
             const std::vector<LayerLine>& lines,
             const std::vector<RecipeLine>& recipes) {
  Json predicted = Json::array();
  for (const RecipeLine& line : recipes) {
    if (!line.refusal.empty()) {
      predicted.push_back({{"recipe", line.recipe}, {"refusal", line.refusal}});
      continue;
    }
    predicted.push_back(
        {{"recipe", line.recipe},
         {"layers", line.size.layers},
         {"quantized_layers", line.size.quantized_layers},
         {"bytes", line.size.bytes},
         {"bits_per_weight", line.size.bits_per_weight},
         {"quantized_bits_per_weight", line.size.quantized_bits_per_weight}});
  }
  Json parameters = Json::array();
  for (const LayerLine& line : lines) {
    Json entry = {{"tensor", line.tensor}, {"op", line.op},
                  {"scheme", line.scheme}, {"shape", line.shape},
                  {"bytes", line.bytes},   {"bits_per_weight", line.bits}};
    if (!line.method.empty()) entry["method"] = line.method;
    if (line.error > 0) entry["error"] = line.error;
    if (line.statistics) {
      entry["rms"] = line.statistics->rms;
      entry["peak"] = line.statistics->peak;
      entry["kurtosis"] = line.statistics->kurtosis;
    }
    if (!line.activation.empty()) entry["input"] = line.activation;
    parameters.push_back(std::move(entry));
  }
  Json activations = Json::object();
  for (const auto& [value, scheme] : model.activations) {
    activations[value] = {{"scheme", to_string(scheme.scheme)}, {"scale", scheme.scale}};
  }
  Json ledger = Json::array();
  for (const LedgerEntry& entry : model.ledger.entries) {
    ledger.push_back({{"tensor", entry.tensor},
                      {"scheme", entry.scheme},
                      {"method", entry.method},
                      {"reason", entry.reason},
                      {"kernel", entry.kernel},
                      {"parameters", entry.parameters},
                      {"bits", entry.bits},
                      {"tokens", entry.tokens},
                      {"error", entry.error},
                      {"output_error", entry.output_error},
                      {"rtn_error", entry.rtn_error},
                      {"rtn_output_error", entry.rtn_output_error},
                      {"note", entry.note}});
  }
  Json files = Json::array();
  for (const auto& [name, bytes] : model.tokenizer) files.push_back(name);
  return {{"architecture", model.program.architecture},
          {"quantized", model.is_quantized()},
          {"bytes", size.bytes},
          {"bits_per_weight", size.bits_per_weight},
          {"quantized_bits_per_weight", size.quantized_bits_per_weight},
          {"blocks", model.program.block_count()},
          {"context_length", model.program.context_length},
          {"kv_cache",
           model.program.states.empty() ? "" : to_string(model.program.states[0].scheme)},
          {"vocabulary", model.program.vocabulary},
          {"inputs", ends_json(model.program.inputs, type_of)},
          {"outputs", ends_json(model.program.outputs, type_of)},
          {"tokenizer", files},
          {"parameters", parameters},
          {"recipes", predicted},
          {"activations", activations},
          {"ledger", ledger},
          {"provenance",
           {{"sources", model.provenance.sources},
            {"recipe", model.provenance.recipe},
            {"calibration", model.provenance.calibration},
            {"tool_version", model.provenance.tool_version}}}};
}

// What an ONNX file says where its sizes are not known yet.
Status inspect_open_graph(const OnnxEnds& ends, const Status& why, bool as_json) {
  const auto type = [](const OnnxEnd& end) { return end.type; };
  if (as_json) {
    std::cout << Json{{"architecture", "ONNX"},
                      {"opset", ends.opset},
                      {"inputs", ends_json(ends.inputs, type)},
                      {"outputs", ends_json(ends.outputs, type)},
                      {"open_sizes", ends.open_sizes()},
                      {"weights", ends.weights},
                      {"operators", ends.operators},
                      {"not_read", why.message()}}
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n";
    return ok_status();
  }
  std::string operators;
  for (const auto& [op, count] : ends.operators)
    operators += cat(operators.empty() ? "" : ", ", count, " ", op);
  std::cout << "ONNX, opset " << ends.opset << ", " << ends.weights
            << " weights of the graph itself\nreads  " << ends_text(ends.inputs, type)
            << "\ngives  " << ends_text(ends.outputs, type) << "\noperators  "
            << operators << "\nnot read further  " << why.message() << "\n";
  return ok_status();
}

std::string recipes_text(const std::vector<RecipeLine>& recipes) {
  std::vector<std::vector<std::string>> rows = {
      {"recipe", "quantizes", "size", "bits per weight", "in quantized layers"}};
  std::string refused;
  for (const RecipeLine& line : recipes) {
    if (!line.refusal.empty()) {
      refused += (refused.empty() ? "not for this model: " : ", ") + line.recipe;
      continue;
    }
    rows.push_back({line.recipe,
                    cat(line.size.quantized_layers, " of ", line.size.layers, " layers"),
                    bytes_text(line.size.bytes),
                    number_text(line.size.bits_per_weight, 4),
                    number_text(line.size.quantized_bits_per_weight, 4)});
  }
  if (!refused.empty()) refused += " (quantize says why)\n";
  return "\nWhat the built-in recipes would make of it\n" + table_text(rows) + refused;
}

// "0.0121 -> 0.00412": by rounding to nearest, and as it is; one figure where the first
// is not known.
std::string before_and_after(double before, double after) {
  return (before >= 0 ? number_text(before, 3) + " -> " : std::string()) +
         number_text(after, 3);
}

std::string to_text(const Artifact& model, const Measurement& size,
                    const std::vector<LayerLine>& lines,
                    const std::vector<RecipeLine>& recipes) {
  int64_t count = 0;
  // A float model has outliers to look at, a quantized one methods and errors.
  const bool quantized = model.is_quantized();
  std::vector<std::vector<std::string>> rows = {
      {"tensor", "op", "shape", "scheme", "bits", "size",
       quantized ? "method" : "peak/rms", quantized ? "rtn -> error" : "kurtosis"}};
  if (quantized) rows[0].push_back("of outputs");
  for (const LayerLine& line : lines) {
    int64_t numel = 1;
    for (const int64_t n : line.shape) numel *= n;
    count += numel;
    const std::string scheme =
        line.scheme + (line.activation.empty() ? "" : ", input " + line.activation);
    rows.push_back({line.tensor, line.op, shape_text(line.shape), scheme,
                    number_text(line.bits, 4), bytes_text(line.bytes)});
    if (quantized) {
      rows.back().push_back(line.method.empty() ? "-" : line.method);
      rows.back().push_back(line.error > 0 ? before_and_after(line.rtn_error, line.error)
                                           : "-");
      rows.back().push_back(
          line.output_error >= 0
              ? before_and_after(line.rtn_output_error, line.output_error)
              : "-");
    } else {
      rows.back().push_back(line.statistics ? number_text(line.statistics->peak, 3)
                                            : "-");
      rows.back().push_back(line.statistics ? number_text(line.statistics->kurtosis, 3)
                                            : "-");
    }
  }
  std::string text = table_text(rows);
  text += cat("\n", model.program.architecture, ", ", count, " parameters, ",
              bytes_text(size.bytes), ", ", number_text(size.bits_per_weight, 4),
              " bits per weight");
  if (size.quantized_bits_per_weight > 0) {
    text += cat(" (", number_text(size.quantized_bits_per_weight, 4),
                " in quantized layers)");
  }
  text += "\n";
  if (model.program.is_language_model()) {
    text += cat("context ", model.program.context_length, " tokens, vocabulary ",
                model.program.vocabulary, ", tokenizer ");
    std::string files;
    for (const auto& [name, bytes] : model.tokenizer)
      files += (files.empty() ? "" : ", ") + name;
    text += (files.empty() ? "none (give --tokenizer)" : files) + "\n";
    const std::vector<ProgramState>& states = model.program.states;
    if (!states.empty() && !states[0].scheme.is_f32())
      text += cat("KV cache ", to_string(states[0].scheme), "\n");
  }
  if (!model.program.is_language_model()) {
    text += cat("reads  ", ends_text(model.program.inputs, type_of), "\ngives  ",
                ends_text(model.program.outputs, type_of), "\n");
  }
  if (!model.activations.empty()) {
    text += cat(model.activations.size(), " values with static integer activations\n");
  }
  const Provenance& from = model.provenance;
  for (const auto& [file, hash] : from.sources)
    text += "source  " + file + "  sha256 " + hash + "\n";
  if (!from.calibration.empty()) text += "calibrated on  " + from.calibration + "\n";
  if (model.is_quantized()) {
    text += "made by  " + from.tool_version + "\n";
    std::string recipe = "  " + from.recipe;
    for (size_t at = 0;
         (at = recipe.find('\n', at)) != std::string::npos && at + 1 < recipe.size();) {
      recipe.insert(++at, "  ");
    }
    text += "recipe\n" + recipe;
  }
  if (!recipes.empty()) text += recipes_text(recipes);
  return text;
}

}  // namespace

Status run_inspect_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "inspect MODEL",
      "Parameters, schemes, sizes, true bits per weight (scales and zero points "
      "counted), tokenizer, ledger\nand where it all came from. Of a float model also "
      "how "
      "far its weights are from normal\n(peak/rms = max |w| / rms; kurtosis, 3 for a "
      "normal "
      "distribution) and what each recipe would make of it.");
  line.positional("MODEL");
  line.flag("program", "print the model's graph instead");
  line.model_options();
  line.json();
  line.example(
      "nibble inspect recipes/examples/stories",
      "the model that ships: tensors, outliers, and the size each recipe would give");
  line.example("nibble inspect build/w4 --json | jq .bits_per_weight",
               "one number of an artifact");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  Result<Artifact> loaded = load_model(line.path("MODEL"), line.load_options());
  if (!loaded.ok() && line.path("MODEL").extension() == ".onnx" &&
      loaded.status().code() == StatusCode::unsupported) {
    // A graph whose sizes are open still says what it reads and gives.
    const Result<OnnxEnds> ends = read_onnx_ends(line.path("MODEL"));
    if (ends.ok() && !line.has("program") && !ends->open_sizes().empty())
      return inspect_open_graph(*ends, loaded.status(), line.wants_json());
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact model, std::move(loaded));
  if (line.has("program")) {
    std::cout << print_program(model.program);
    return ok_status();
  }
  const Measurement size = measure_size(model, line.path("MODEL").filename().string());
  std::vector<LayerLine> lines = parameter_lines(model);
  std::vector<RecipeLine> recipes;
  if (!model.is_quantized()) {
    NIBBLE_RETURN_IF_ERROR(add_statistics(model, lines));
    recipes = recipe_lines(model);
  }
  if (line.wants_json()) {
    std::cout << to_json(model, size, lines, recipes)
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n";
  } else {
    std::cout << to_text(model, size, lines, recipes);
  }
  return ok_status();
}

}  // namespace nibble
