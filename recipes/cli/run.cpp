// nibble run: any net over tensors of its own, and how far another model's outputs are.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/json.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/net_run.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, Tensor>;

Result<Tensors> run_model(const CommandLine& line, const char* model,
                          const Tensors& inputs, const std::vector<Carry>& carries) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded,
                          load_model(line.path(model), line.load_options()));
  if (loaded.program.is_language_model()) {
    return error(StatusCode::invalid_argument, "[run] ", line.text(model),
                 ": a net over values was required; found ", loaded.program.architecture,
                 ", which reads tokens; use generate, evaluate or embed");
  }
  NIBBLE_ASSIGN_OR_RETURN(
      Executor net,
      Executor::create(std::make_shared<const Artifact>(std::move(loaded)), {}));
  return run_net(net, inputs, carries);
}

struct Statistics {
  double low = 0, mean = 0, high = 0;
};
Statistics statistics(const std::vector<float>& values) {
  if (values.empty()) return {};
  Statistics found{values[0], 0, values[0]};
  for (const float value : values) {
    found.low = std::min<double>(found.low, value);
    found.high = std::max<double>(found.high, value);
    found.mean += value / static_cast<double>(values.size());
  }
  return found;
}

}  // namespace

Status run_run_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "run MODEL --inputs FILE.safetensors [--output FILE.safetensors]",
      "Runs a net that reads no tokens over F32 tensors named as its inputs, and writes "
      "its outputs by name.\nWith --carry, tensors have steps in front, [steps, ..], and "
      "what the output gives in one step the input\nreads in the next (it begins as its "
      "tensor, or as zeros): a recurrent net on a stream. With --reference\nthe same "
      "goes "
      "through another model, and the outputs' differences are told.");
  line.positional("MODEL");
  line.text("inputs", "FILE", "safetensors with a tensor an input", true);
  line.text("output", "FILE", "the safetensors file to write (default: none)");
  line.flag("overwrite", "replace FILE if it is there");
  line.carry_option();
  line.text("reference", "MODEL", "compare with the outputs of this model");
  line.model_options();
  line.json();
  line.example(
      "nibble run detector.onnx --size sequence=576 --inputs chunks.safetensors "
      "--carry stateN=state --output speech.safetensors",
      "a voice detector over chunks of 576 samples, its state carried");
  line.example(
      "nibble run build/w8 --reference detector.onnx --size sequence=576 --inputs "
      "chunks.safetensors --carry stateN=state --json",
      "how far its int8 weights move what it gives");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Carry> carries, carry_option(line, "run"));
  std::error_code ignored;
  if (line.has("output") && !line.has("overwrite") &&
      std::filesystem::exists(line.path("output"), ignored)) {
    return error(
        StatusCode::already_exists, "[run] ", line.text("output"),
        ": a new file is required; found one; choose another or give --overwrite");
  }
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile inputs,
                          read_safetensors(line.path("inputs")));
  NIBBLE_ASSIGN_OR_RETURN(const Tensors outputs,
                          run_model(line, "MODEL", inputs.tensors, carries));
  Tensors references;
  if (line.has("reference")) {
    NIBBLE_ASSIGN_OR_RETURN(references,
                            run_model(line, "reference", inputs.tensors, carries));
  }
  if (line.has("output")) {
    NIBBLE_RETURN_IF_ERROR(write_safetensors_atomically(
        line.path("output"), outputs,
        {{"model", line.path("MODEL").lexically_normal().filename().string()}}));
  }
  Json json = {{"model", line.text("MODEL")}, {"outputs", Json::object()}};
  std::vector<std::vector<std::string>> rows = {
      {"output", "shape", "lowest", "mean", "highest"}};
  if (line.has("reference")) {
    rows[0].push_back("largest difference");
    rows[0].push_back("mean difference");
  }
  for (const auto& [name, tensor] : outputs) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
    const Statistics of = statistics(values);
    Json& entry = json["outputs"][name];
    entry = {{"shape", tensor.shape},
             {"lowest", of.low},
             {"mean", of.mean},
             {"highest", of.high}};
    rows.push_back({name, shape_text(tensor.shape), number_text(of.low),
                    number_text(of.mean), number_text(of.high)});
    if (!line.has("reference")) continue;
    const auto other = references.find(name);
    if (other == references.end() || other->second.shape != tensor.shape) {
      return error(StatusCode::invalid_argument, "[run] ", line.text("reference"),
                   ": an output ", name, " ", shape_text(tensor.shape),
                   " was required; found another");
    }
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> apart, to_float(other->second));
    for (size_t i = 0; i < apart.size(); ++i) apart[i] = std::abs(apart[i] - values[i]);
    const Statistics difference = statistics(apart);
    entry["largest_difference"] = difference.high;
    entry["mean_difference"] = difference.mean;
    rows.back().push_back(number_text(difference.high));
    rows.back().push_back(number_text(difference.mean));
  }
  if (line.wants_json()) {
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << table_text(rows);
  }
  return ok_status();
}

}  // namespace nibble
