// nibble embed: the embeddings of a text's sentences, as safetensors.
#include <cmath>
#include <iostream>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/model_data.h"

namespace nibble {

Status run_embed_verb(const std::vector<std::string>& arguments) {
  using Json = nlohmann::json;
  CommandLine line(
      "embed MODEL --text FILE --output FILE.safetensors",
      "Sentence embeddings of an encoder: F32 `embeddings` [sentences, width], a row a "
      "sentence of the text\n(cut after . ! ? and at line ends; --per-line: a row a "
      "line). Of a BERT without pooling: the mean over tokens.");
  line.positional("MODEL");
  line.text("text", "FILE", "UTF-8 text, or safetensors with input_ids", true);
  line.text("output", "FILE", "the safetensors file to write", true);
  line.flag("overwrite", "replace FILE if it is there");
  line.flag("per-line", "take each line of the text whole");
  line.integer("min-chars", "leave shorter sentences out", 0, 0);
  line.integer("limit", "at most so many sentences; 0: all", 0, 0);
  line.text("compute", kComputeNames,
            "activations of weight-only layers (default: float)");
  line.model_options();
  line.json();
  line.example("nibble embed build/minilm-w8a8 --text notes.txt --output notes.safetensors",
               "a row a sentence, to search or to cluster");
  line.example(
      "nibble embed minilm --text titles.txt --per-line --threads 2 --output "
      "titles.safetensors --json",
      "a row a line, by the float model; what was done as JSON");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const Compute compute, compute_option(line));
  std::error_code ignored;
  if (!line.has("overwrite") && std::filesystem::exists(line.path("output"), ignored)) {
    return error(StatusCode::already_exists, "[embed] ", line.text("output"),
                 ": a new file is required; found one; choose another or give "
                 "--overwrite");
  }
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded,
                          load_model(line.path("MODEL"), line.load_options()));
  if (!loaded.program.is_encoder()) {
    return error(StatusCode::invalid_argument, "[embed] ", line.text("MODEL"),
                 ": an encoder is required; found ", loaded.program.architecture,
                 ", which makes no embeddings; give a BERT");
  }
  const std::string loaded_name = line.path("MODEL").lexically_normal().filename().string();
  TextOptions options;
  options.length = 0;  // the context
  options.per_line = line.has("per-line");
  options.min_chars = line.integer("min-chars");
  options.limit = line.integer("limit");
  NIBBLE_ASSIGN_OR_RETURN(const TextData data,
                          load_sentences_for(loaded, line.path("text"), options));
  NIBBLE_ASSIGN_OR_RETURN(
      Executor model,
      Executor::create(std::make_shared<const Artifact>(std::move(loaded)),
                       ExecutorOptions{.compute = compute}));
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<float> embeddings,
      embed_sentences(model, data.sequences, make_counter("embed", "sentences")));
  const auto count = static_cast<int64_t>(data.sequences.size());
  NIBBLE_RETURN_IF_ERROR(write_safetensors_atomically(
      line.path("output"),
      {{"embeddings", make_tensor({count, model.embedding_features()}, embeddings)}},
      {{"model", loaded_name}, {"text", data.description}}));
  if (line.wants_json()) {
    const Json json = {{"model", line.text("MODEL")},
                       {"output", line.text("output")},
                       {"sentences", count},
                       {"width", model.embedding_features()},
                       {"data", data.description}};
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << count << " embeddings of " << model.embedding_features() << " numbers in "
              << line.text("output") << "\nof  " << data.description << "\n";
  }
  return ok_status();
}

}  // namespace nibble
