// nibble quantize and nibble train: requests for the pipeline, and the table at its end.
#include <algorithm>
#include <iostream>
#include <map>
#include <set>

#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/recipe/deployment.h"
#include "recipes/recipe/predict.h"
#include "recipes/report/comparison.h"
#include "recipes/report/text_table.h"
#include "recipes/torch/pipeline.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

void common_options(CommandLine& line) {
  line.positional("MODEL");
  line.text("recipe", "NAME|FILE", "what to do (nibble recipes lists the built-in ones)",
            true);
  line.text("max-kl", "NATS",
            "reject the artifact unless the KL's 95 % interval ends below");
  line.text("max-perplexity-increase", "PERCENT",
            "the same for the perplexity's growth over the float model's");
  line.text("min-accuracy", "PERCENT",
            "reject unless the accuracy's 95 % interval begins above");
  line.list("set", "KEY=VALUE", "change a setting of the recipe (nibble recipes --keys)");
  line.text("output", "DIR", "the directory to make", true);
  line.text(
      "evaluation", "TEXT|DATASET",
      "held-out data for the report (default: what calibration or training leaves over)");
  line.list("compare", "ARTIFACT",
            "show an earlier artifact in the report's plot as well");
  line.flag("dry-run",
            "print the plan, its size and memory, and stop; nothing is written");
  line.waive("output", "dry-run");
  line.kv_option();
  line.model_options();
  line.json();
}

// "12%" and "12" alike.
std::string without_percent(std::string text) {
  if (!text.empty() && text.back() == '%') text.pop_back();
  return text;
}

// --set, and the options that are keys of a recipe under a name of their own.
std::vector<std::string> overrides_of(const CommandLine& line) {
  std::vector<std::string> overrides = line.list("set");
  for (const auto& [option, key] :
       {std::pair("max-kl", "gate.max_kl"),
        std::pair("max-perplexity-increase", "gate.max_perplexity_increase"),
        std::pair("min-accuracy", "gate.min_accuracy"), std::pair("kv", "kv")}) {
    if (line.has(option))
      overrides.push_back(cat(key, "=", without_percent(line.text(option))));
  }
  return overrides;
}

// more: further overrides, as --set takes them.
Result<PipelineRequest> make_request(const CommandLine& line, const char* data,
                                     const std::string& recipe,
                                     const std::vector<std::string>& more = {}) {
  PipelineRequest request;
  if (std::string_view(data) == "calibration" && line.has("memory")) {
    request.memory = parse_bytes(line.text("memory"));
    if (request.memory < 1) {
      return error(StatusCode::invalid_argument,
                   "[quantize] --memory: a size like 3GiB or 500MB is required; found \"",
                   line.text("memory"), "\"; write it so");
    }
  }
  if (line.has("device")) request.device = line.text("device");
  request.model = line.path("MODEL");
  request.load = line.load_options();
  std::vector<std::string> overrides = overrides_of(line);
  overrides.insert(overrides.end(), more.begin(), more.end());
  NIBBLE_ASSIGN_OR_RETURN(request.recipe, load_recipe(recipe, overrides));
  request.data = line.path(data);
  request.evaluation = line.path("evaluation");
  request.output = line.path("output");
  for (const std::string& path : line.list("compare")) request.compare.emplace_back(path);
  request.overwrite = line.has("overwrite");
  // Of several processes one speaks.
  if (is_first_rank()) {
    request.progress = make_progress();
    request.note = note;
  }
  return request;
}

// --target: can the program that will serve the model serve this plan? Before any work.
Status check_target(const CommandLine& line, const PipelineRequest& request) {
  if (!line.has("target")) {
    if (line.integer("tensor-parallel") == 1) return ok_status();
    return error(StatusCode::invalid_argument,
                 "[quantize] --tensor-parallel: needs --target, the program that splits the "
                 "model; found none; give it");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact model, load_model(request.model, request.load));
  NIBBLE_ASSIGN_OR_RETURN(const Artifact planned,
                          prepare_for_recipe(model, request.recipe));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, make_plan(request.recipe, planned.program));
  return check_deployment(plan, planned, line.text("target"),
                          line.integer("tensor-parallel"));
}

// The plan of a request, layer by layer, with its size; writes nothing. Needs no
// LibTorch.
Status dry_run(const PipelineRequest& request, bool as_json) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact model, load_model(request.model, request.load));
  if (model.is_quantized()) {
    return error(
        StatusCode::invalid_argument, "[nibble] ", request.model.string(),
        ": a float model is required; found an artifact, quantized already; start "
        "from its float checkpoint");
  }
  const Recipe& recipe = request.recipe;
  NIBBLE_ASSIGN_OR_RETURN(const Artifact planned, prepare_for_recipe(model, recipe));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, make_plan(recipe, planned.program));
  const PlanSize size = predict_size(plan, planned);
  MemoryRequest memory_request{.cap = request.memory, .threads = thread_count()};
  if (recipe.evaluation_exact_images > 0)
    memory_request.exact = recipe.evaluation_exact_images;
  NIBBLE_ASSIGN_OR_RETURN(const MemoryPlan needs,
                          plan_memory(plan, planned, memory_request));
  const std::vector<MemoryPart>& memory = needs.parts;
  const int64_t memory_bytes = needs.bytes();

  std::vector<std::vector<std::string>> rows = {
      {"layer", "shape", "method", "scheme", "input", "size"}};
  Json layers = Json::array();
  for (const LayerPlan& layer : plan.layers) {
    const Tensor& tensor = planned.tensors.at(layer.tensor);
    const bool quantized = layer.method != "float";
    const std::string scheme = quantized ? to_string(layer.scheme.weight) : layer.reason;
    const std::string input = layer.scheme.input
                                  ? to_string(layer.scheme.input->scheme) +
                                        (layer.scheme.input->dynamic ? " dynamic" : "")
                                  : "";
    const double bits =
        quantized ? bits_per_value(layer.scheme.weight, tensor.rows(), tensor.cols())
                  : 8.0 * static_cast<double>(dtype_bytes(tensor.dtype));
    const int64_t bytes =
        static_cast<int64_t>(bits * static_cast<double>(tensor.numel()) / 8 + 0.5);
    rows.push_back({layer.tensor, shape_text(tensor.shape), layer.method, scheme,
                    input.empty() ? "-" : input, bytes_text(bytes)});
    layers.push_back({{"tensor", layer.tensor},
                      {"shape", tensor.shape},
                      {"method", layer.method},
                      {quantized ? "scheme" : "reason", scheme},
                      {"bytes", bytes}});
    if (!input.empty()) layers.back()["input"] = input;
  }
  if (as_json) {
    Json parts = Json::object();
    for (const MemoryPart& part : memory) parts[part.what] = part.bytes;
    std::cout << Json{{"recipe", recipe.name},
                      {"layers", layers},
                      {"bytes", size.bytes},
                      {"bits_per_weight", size.bits_per_weight},
                      {"quantized_bits_per_weight", size.quantized_bits_per_weight},
                      {"memory_bytes", memory_bytes},
                      {"memory", parts},
                      {"settings", print_recipe(recipe)}}
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n";
    return ok_status();
  }
  std::cout << table_text(rows) << "\n"
            << recipe.name << " quantizes " << size.quantized_layers << " of "
            << size.layers << " layers: " << bytes_text(size.bytes) << ", "
            << number_text(size.bits_per_weight, 4) << " bits per weight ("
            << number_text(size.quantized_bits_per_weight, 4)
            << " in quantized layers)\nmemory  about " << bytes_text(memory_bytes)
            << (planned.program.is_language_model() ? "" : " beside the data") << ":";
  for (size_t i = 0; i < memory.size(); ++i)
    std::cout << (i ? ", " : " ") << memory[i].what << " " << bytes_text(memory[i].bytes);
  if (needs.spills) std::cout << "; activations wait on disk";
  if (!needs.evaluates)
    std::cout << "; no evaluation, which takes " << bytes_text(needs.evaluation);
  std::cout << "\nsettings\n"
            << print_recipe(recipe) << "nothing was written (--dry-run)\n";
  return ok_status();
}

// The report, then what the gates say of it.
Status print(const RunReport& report, bool as_json) {
  if (!is_first_rank()) return ok_status();
  std::cout << (as_json ? report_json(report) + "\n" : print_report(report));
  return gate_status(report);
}

std::vector<std::string> split_names(const std::string& text) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

// --sweep KEY=A,B,C as the overrides KEY=A, KEY=B, KEY=C; one "" when there is none.
Result<std::vector<std::string>> sweep_of(const CommandLine& line) {
  const std::string text = line.text("sweep");
  if (text.empty()) return std::vector<std::string>{""};
  const size_t equals = text.find('=');
  const std::vector<std::string> values = equals == std::string::npos
                                              ? std::vector<std::string>()
                                              : split_names(text.substr(equals + 1));
  if (equals == 0 || values.empty()) {
    return error(StatusCode::invalid_argument,
                 "[quantize] --sweep: a key of the recipe and values with commas between "
                 "are required; found '",
                 text, "'; mixed.bits=3,4,5 is a sweep");
  }
  std::vector<std::string> overrides;
  for (const std::string& value : values)
    overrides.push_back(text.substr(0, equals + 1) + value);
  return overrides;
}

// Each recipe, with each value of the sweep, into a directory of its name below the
// output, then one table and one page.
Status run_several(const CommandLine& line, const std::vector<std::string>& recipes,
                   const std::vector<std::string>& sweep) {
  const std::filesystem::path output = line.path("output");
  if (line.has("save-calibration")) {
    return error(StatusCode::invalid_argument,
                 "[quantize] --save-calibration: one recipe is required, whose ids they "
                 "are; found ",
                 recipes.size(), "; run it alone");
  }
  std::vector<PipelineRequest> requests;
  std::set<std::string> names;
  std::vector<std::pair<std::string, std::string>> runs;
  for (const std::string& recipe : recipes) {
    // A budget is swept in the recipes that have one: the others are points beside the
    // curve.
    const bool budget = sweep[0].rfind("mixed.", 0) == 0;
    NIBBLE_ASSIGN_OR_RETURN(const PipelineRequest plain,
                            make_request(line, "calibration", recipe, {}));
    if (budget && recipes.size() > 1 && plain.recipe.mixed_schemes.empty()) {
      runs.emplace_back(recipe, "");
      continue;
    }
    for (const std::string& value : sweep) runs.emplace_back(recipe, value);
  }
  // Budgets of one recipe choose among the same schemes at the same foretold losses.
  std::map<std::string, std::shared_ptr<MixedLosses>> losses;
  std::vector<std::string> curves;  // of each request: the sweep it is a point of
  for (const auto& [recipe, value] : runs) {
    std::vector<std::string> more;
    if (!value.empty()) more.push_back(value);
    NIBBLE_ASSIGN_OR_RETURN(PipelineRequest request,
                            make_request(line, "calibration", recipe, more));
    std::string& name = request.recipe.name;
    curves.push_back(value.empty() ? ""
                                   : cat(name, " by ", value.substr(0, value.find('='))));
    if (!value.empty()) {
      std::string part = value;  // "mixed.bits=3" names a directory
      std::replace(part.begin(), part.end(), '/', '-');
      name += " " + part;
    }
    if (name.find('/') != std::string::npos || !names.insert(name).second) {
      return error(StatusCode::invalid_argument,
                   "[quantize] --recipe: recipes of "
                   "different names without '/' are required, each names a directory; "
                   "found '",
                   name, "'", names.count(name) > 0 ? " twice" : "",
                   "; change the name in the file");
    }
    if (value.rfind("mixed.", 0) == 0 && value.rfind("mixed.schemes", 0) != 0) {
      std::shared_ptr<MixedLosses>& shared = losses[recipe];
      if (shared == nullptr) shared = std::make_shared<MixedLosses>();
      request.mixed_losses = shared;
    }
    request.output = output / name;
    NIBBLE_RETURN_IF_ERROR(check_target(line, request));
    requests.push_back(std::move(request));
  }
  if (line.has("dry-run")) {
    for (const PipelineRequest& request : requests)
      NIBBLE_RETURN_IF_ERROR(dry_run(request, line.wants_json()));
    return ok_status();
  }
  std::error_code failed;
  if (!line.has("overwrite") && std::filesystem::exists(output, failed)) {
    return error(
        StatusCode::already_exists, "[quantize] ", output.string(),
        ": a new directory is required; found one; choose another or give --overwrite");
  }
  std::filesystem::create_directories(output, failed);
  if (failed) {
    return error(StatusCode::io_error, "[quantize] ", output.string(),
                 ": the directory could not be made: ", failed.message());
  }
  std::vector<RunReport> reports;
  for (PipelineRequest& request : requests) {
    note(cat("recipe ", reports.size() + 1, " of ", requests.size(), ": ",
             request.recipe.name));
    Result<RunReport> report = run_quantize(request);
    if (!report.ok()) {
      // Nothing was made: the directory goes again, unless something else is in it.
      if (reports.empty()) std::filesystem::remove(output, failed);
      return report.status();
    }
    report->after.curve = curves[reports.size()];
    reports.push_back(std::move(report).value());
    request.progress = nullptr;
  }
  reports = sorted_by_quality_per_byte(std::move(reports));
  NIBBLE_RETURN_IF_ERROR(write_file_atomically(output / "report.html",
                                               report_html(combined_report(reports))));
  if (line.wants_json()) {
    std::cout << comparison_json(reports, output.string()) << "\n";
  } else {
    std::cout << comparison_table(reports);
    if (!reports[0].evaluation.empty())
      std::cout << "measured on  " << reports[0].evaluation << "\n";
    std::cout << "sorted by quality per byte (loss x size, the smallest first)\noutput  "
              << output.string() << "\n";
  }
  for (const RunReport& report : reports) NIBBLE_RETURN_IF_ERROR(gate_status(report));
  return ok_status();
}

}  // namespace

Status run_quantize_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "quantize MODEL --recipe NAME|FILE --output DIR [--calibration TEXT|DATASET]",
      "Quantizes a trained model after the recipe, writes the artifact with "
      "report.html and proof.json, and says what it cost\nin quality. Every error of the request "
      "comes before anything heavy starts. Killed, the same\ncommand goes on from the last "
      "finished block. mpirun -n N (to 4) shares the work, with the same bytes.\n\nSeveral recipes, a,b,c, go to DIR/a, "
      "DIR/b, "
      "DIR/c, with one table sorted by quality per byte and one\nreport. An artifact "
      "that "
      "a gate rejects goes to DIR.rejected, and the exit code is 11.");
  common_options(line);
  line.text("calibration", "TEXT|DATASET",
            "what methods like gptq learn from; of a net over values a safetensors file "
            "with a tensor an input");
  line.text(
      "save-calibration", "FILE",
      "keep the token ids that were used (safetensors), to run another tool on them");
  line.text("memory", "SIZE",
            "keep resident memory below SIZE (3GiB, 500MB): activations wait on disk if "
            "they must");
  line.text(
      "device", "cpu|cuda[:N]",
      "where models run while layers calibrate, as LibTorch has it; layers are solved "
      "and results measured on the CPU");
  line.text(
      "sweep", "KEY=A,B,C",
      "run once for each value of one setting; one table and one report for all. Recipes "
      "without mixed.schemes run once beside a sweep of mixed.*");
  std::string targets;
  for (const DeploymentTarget& target : deployment_targets()) {
    targets += cat(targets.empty() ? "" : "|", target.name);
  }
  line.text("target", targets.c_str(),
            "refuse at once what this program could not serve: schemes, groups, sizes");
  line.integer("tensor-parallel", "with --target: devices that each layer is split over", 1,
               1);
  line.flag("overwrite", "replace DIR if it is there");
  line.example(
      "nibble quantize recipes/examples/stories --recipe w4a16-rtn --set group=32 "
      "--output build/w4",
      "four-bit weights by round to nearest; needs no data");
  line.example(
      "nibble quantize MODEL --recipe w4a16-gptq --calibration text.txt --evaluation "
      "heldout.txt --output build/gptq",
      "GPTQ on one text, its quality measured on another");
  line.example(
      "nibble quantize MODEL --recipe mixed-gptq --sweep mixed.bits=3,4,5,6 "
      "--calibration text.txt --evaluation heldout.txt --output build/sweep",
      "a scheme for each layer under four budgets: what quality costs");
  line.example(
      "nibble quantize MODEL --recipe w4a16-rtn --target vllm --tensor-parallel 2 --dry-run "
      "--output build/w4",
      "will two devices of vLLM divide it?");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  if (const std::vector<std::string> recipes = split_names(line.text("recipe"));
      recipes.size() > 1 || line.has("sweep")) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> sweep, sweep_of(line));
    return run_several(line, recipes, sweep);
  }
  NIBBLE_ASSIGN_OR_RETURN(PipelineRequest request,
                          make_request(line, "calibration", line.text("recipe")));
  NIBBLE_RETURN_IF_ERROR(check_target(line, request));
  if (line.has("dry-run")) return dry_run(request, line.wants_json());
  request.save_calibration = line.path("save-calibration");
  NIBBLE_ASSIGN_OR_RETURN(const RunReport report, run_quantize(request));
  request.progress = nullptr;  // ends its line before the table
  return print(report, line.wants_json());
}

Status run_train_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "train MODEL --recipe NAME|FILE --data TEXT|DATASET --output DIR",
      "Trains in float (recipe float; a directory without weights is initialised from "
      "--set seed=N) or with\nquantization in the loop (qat recipes). Checkpoints lie "
      "in DIR.training until the end; --resume goes on\nfrom the last one.");
  common_options(line);
  line.text("data", "TEXT|DATASET",
            "what to train on; of a net over values a safetensors file with a tensor an "
            "input",
            true);
  line.waive("data", "dry-run");
  line.flag("resume", "continue an interrupted run of the same command");
  line.text(
      "device", "cpu|cuda[:N]",
      "where the model trains, as LibTorch has it; results are measured on the CPU");
  line.flag("overwrite", "replace DIR if it is there");
  line.example(
      "nibble train recipes/examples/stories --recipe w4a16-qat --set group=32 --set "
      "data.per_line=true --data build/train.txt --output build/qat",
      "fine-tune with four-bit weights in the loop; lines of the text are stories");
  line.example(
      "nibble train resnet20.safetensors --recipe w4a4-qat --data cifar10 --output "
      "build/resnet --resume",
      "go on with an interrupted fine-tuning of a convolutional net");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(PipelineRequest request,
                          make_request(line, "data", line.text("recipe")));
  request.resume = line.has("resume");
  if (line.has("dry-run")) {
    if (request.recipe.kind != "float") return dry_run(request, line.wants_json());
    return error(StatusCode::invalid_argument,
                 "[train] --dry-run: a recipe that quantizes is required; found ",
                 request.recipe.name,
                 ", kind float, which has no plan; leave --dry-run out");
  }
  NIBBLE_ASSIGN_OR_RETURN(const RunReport report, run_train(request));
  request.progress = nullptr;
  return print(report, line.wants_json());
}

}  // namespace nibble
