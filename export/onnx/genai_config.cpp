#include "export/onnx/genai_config.h"

#include <algorithm>

#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// A field of config.json, else of generation_config.json; null where neither has it.
Json token_id(const Artifact& artifact, const char* name) {
  const auto generation = artifact.tokenizer.find("generation_config.json");
  for (const std::string& text :
       {artifact.config_json, generation == artifact.tokenizer.end()
                                  ? std::string()
                                  : std::string(generation->second.text())}) {
    const Json config = parse_ordered_json(text);
    if (config.is_object() && config.contains(name) && !config[name].is_null()) {
      return config[name];
    }
  }
  return nullptr;
}

// LlamaForCausalLM -> llama. GenAI runs every name of its list of language models alike;
// what it does not know by name goes by the general one.
std::string model_type(const std::string& architecture) {
  std::string type = architecture.substr(0, architecture.find("For"));
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const char* known : {"llama", "mistral", "qwen2", "qwen3"}) {
    if (type == known) return type;
  }
  return "decoder";
}

}  // namespace

Result<std::string> genai_config(const Artifact& artifact) {
  const Program& program = artifact.program;
  if (!program.is_language_model() || program.is_encoder() || program.states.empty()) {
    return std::string();
  }
  const ProgramState& state = program.states.front();
  int64_t heads = state.kv_heads, hidden = 0;
  bool has_positions = false;
  for (const Node& node : program.nodes) {
    if (node.op == "attention") heads = node.integer("heads", heads);
    has_positions = has_positions || node.op == "rope";
    if (node.op != "embedding") continue;
    const auto packed = artifact.packed.find(node.parameter("weight"));
    const auto tensor = artifact.tensors.find(node.parameter("weight"));
    if (packed != artifact.packed.end()) hidden = packed->second.cols;
    if (tensor != artifact.tensors.end()) hidden = tensor->second.cols();
  }
  Json inputs = {{"input_ids", "input_ids"}, {"attention_mask", "attention_mask"}};
  if (has_positions) inputs["position_ids"] = "position_ids";
  inputs["past_key_names"] = "past_key_values.%d.key";
  inputs["past_value_names"] = "past_key_values.%d.value";

  Json model;
  const Json bos = token_id(artifact, "bos_token_id");
  const Json eos = token_id(artifact, "eos_token_id");
  Json pad = token_id(artifact, "pad_token_id");
  if (pad.is_null()) pad = eos.is_array() && !eos.empty() ? eos[0] : eos;
  if (!bos.is_null()) model["bos_token_id"] = bos;
  model["context_length"] = program.context_length;
  // Without the entry ONNX Runtime gives DequantizeLinear's products int8 activations.
  model["decoder"] = {{"session_options",
                       {{"log_id", "onnxruntime-genai"},
                        {"session.qdq_matmulnbits_accuracy_level", "1"},
                        {"provider_options", Json::array()}}},
                      {"filename", "model.onnx"},
                      {"head_size", state.head_dim},
                      {"hidden_size", hidden},
                      {"inputs", inputs},
                      {"outputs",
                       {{"logits", "logits"},
                        {"present_key_names", "present.%d.key"},
                        {"present_value_names", "present.%d.value"}}},
                      {"num_attention_heads", heads},
                      {"num_hidden_layers", program.states.size()},
                      {"num_key_value_heads", state.kv_heads}};
  if (!eos.is_null()) model["eos_token_id"] = eos;
  if (!pad.is_null()) model["pad_token_id"] = pad;
  model["type"] = model_type(program.architecture);
  model["vocab_size"] = program.vocabulary;
  const Json search = {{"diversity_penalty", 0.0},
                       {"do_sample", false},
                       {"early_stopping", true},
                       {"length_penalty", 1.0},
                       {"max_length", program.context_length},
                       {"min_length", 0},
                       {"no_repeat_ngram_size", 0},
                       {"num_beams", 1},
                       {"num_return_sequences", 1},
                       {"past_present_share_buffer", false},
                       {"repetition_penalty", 1.0},
                       {"temperature", 1.0},
                       {"top_k", 50},
                       {"top_p", 1.0}};
  const Json config = {{"model", model}, {"search", search}};
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
