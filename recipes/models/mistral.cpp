// MistralForCausalLM: a Llama whose layers see the last sliding_window positions (4096
// where config.json has no such field, all where it is null).
#include "recipes/models/architecture.h"
#include "recipes/models/decoder.h"

namespace nibble {

Result<Program> mistral_program(const std::string& config_json) {
  ConfigReader config(config_json);
  DecoderConfig c = read_decoder(config, {.vocabulary = 32000,
                                          .hidden = 4096,
                                          .intermediate = 14336,
                                          .layers = 32,
                                          .heads = 32,
                                          .kv_heads = 8,
                                          .head_dim = 0,
                                          .context = 4096 * 32,
                                          .epsilon = 1e-6});
  const int64_t otherwise = config.is_null("sliding_window") ? 0 : 4096;
  read_windows(config, config.integer("sliding_window", otherwise, 1, int64_t{1} << 30),
               0, c);
  return decoder_program("MistralForCausalLM", config, c);
}

// The names are Llama's: only config.json tells the two apart.
bool mistral_recognises(const std::map<std::string, Tensor>&) { return false; }

Result<std::string> mistral_config(const std::map<std::string, Tensor>&) {
  return decoder_config("MistralForCausalLM");
}

bool mistral_ignores(const std::string& tensor, const Program& program) {
  return decoder_ignores(tensor, program);
}

}  // namespace nibble
