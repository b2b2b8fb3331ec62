// nibble quantize and nibble train: requests for the pipeline, and the table at its end.
#include <iostream>

#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/torch/pipeline.h"

namespace nibble {
namespace {

void common_options(CommandLine& line) {
  line.positional("MODEL");
  line.text("recipe", "NAME|FILE", "what to do (nibble recipes lists the built-in ones)",
            true);
  line.list("set", "KEY=VALUE", "change a setting of the recipe (nibble recipes --keys)");
  line.text("output", "DIR", "the directory to make", true);
  line.text(
      "evaluation", "TEXT|DATASET",
      "held-out data for the report (default: what calibration or training leaves over)");
  line.list("compare", "ARTIFACT",
            "show an earlier artifact in the report's plot as well");
  line.model_options();
  line.json();
}

Result<PipelineRequest> make_request(const CommandLine& line, const char* data) {
  PipelineRequest request;
  request.model = line.path("MODEL");
  request.load = line.load_options();
  NIBBLE_ASSIGN_OR_RETURN(request.recipe,
                          load_recipe(line.text("recipe"), line.list("set")));
  request.data = line.path(data);
  request.evaluation = line.path("evaluation");
  request.output = line.path("output");
  for (const std::string& path : line.list("compare")) request.compare.emplace_back(path);
  request.overwrite = line.has("overwrite");
  request.progress = make_progress();
  request.note = note;
  return request;
}

void print(const RunReport& report, bool as_json) {
  std::cout << (as_json ? report_json(report) + "\n" : print_report(report));
}

}  // namespace

Status run_quantize_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "quantize MODEL --recipe NAME|FILE --output DIR [--calibration TEXT|DATASET]",
      "Quantizes a trained model after the recipe, writes the artifact with "
      "report.html, and says what it cost\nin quality. Every error of the request "
      "comes before anything heavy starts.");
  common_options(line);
  line.text("calibration", "TEXT|DATASET", "what methods like gptq learn from");
  line.flag("overwrite", "replace DIR if it is there");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(PipelineRequest request, make_request(line, "calibration"));
  NIBBLE_ASSIGN_OR_RETURN(const RunReport report, run_quantize(request));
  request.progress = nullptr;  // ends its line before the table
  print(report, line.wants_json());
  return ok_status();
}

Status run_train_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "train MODEL --recipe NAME|FILE --data TEXT|DATASET --output DIR",
      "Trains in float (recipe float; a directory without weights is initialised from "
      "--set seed=N) or with\nquantization in the loop (qat recipes). Checkpoints lie "
      "in DIR.training until the end; --resume goes on\nfrom the last one.");
  common_options(line);
  line.text("data", "TEXT|DATASET", "what to train on", true);
  line.flag("resume", "continue an interrupted run of the same command");
  line.flag("overwrite", "replace DIR if it is there");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(PipelineRequest request, make_request(line, "data"));
  request.resume = line.has("resume");
  NIBBLE_ASSIGN_OR_RETURN(const RunReport report, run_train(request));
  request.progress = nullptr;
  print(report, line.wants_json());
  return ok_status();
}

}  // namespace nibble
