#include "kernels/tokenizer/tokenizer.h"

#include "kernels/tokenizer/kinds.h"

namespace nibble {

Result<TypedIds> Tokenizer::encode_pair(std::string_view, std::string_view) const {
  return error(StatusCode::unsupported,
               "[tokenizer] pair: a tokenizer.json with a post_processor was required; "
               "this kind encodes single texts only; join the two texts yourself");
}

Result<std::unique_ptr<Tokenizer>> make_tokenizer(
    const std::map<std::string, Bytes>& files, int64_t vocabulary) {
  const char* name = files.count("tokenizer.json")  ? "tokenizer.json"
                     : files.count("tokenizer.bin") ? "tokenizer.bin"
                                                    : nullptr;
  if (!name)
    return error(StatusCode::not_found,
                 "[tokenizer] model: tokenizer.json or tokenizer.bin was required; the "
                 "model carries "
                 "neither; give one with --tokenizer FILE");
  auto tokenizer = std::string_view(name) == "tokenizer.json"
                       ? make_json_tokenizer(files)
                       : make_llama2c_tokenizer(files.at(name));
  if (!tokenizer.ok()) return tokenizer.status();
  if ((*tokenizer)->vocabulary() > vocabulary)
    return error(StatusCode::out_of_range, "[tokenizer] ", name, ": ids below ",
                 vocabulary, " (the model's vocabulary) were required; its ids reach ",
                 (*tokenizer)->vocabulary() - 1,
                 "; this is the wrong tokenizer for this model, give its own with "
                 "--tokenizer FILE");
  return tokenizer;
}

}  // namespace nibble
