#include "kernels/tokenizer/tokenizer.h"

#include "kernels/tokenizer/kinds.h"

namespace nibble {
namespace {

// The first whose files are there is taken.
struct Kind {
  const char* file;
  const char* second;  // another file that it needs, or nullptr
  Result<std::unique_ptr<Tokenizer>> (*make)(const std::map<std::string, Bytes>& files);
};
constexpr Kind kKinds[] = {{"tokenizer.json", nullptr, make_json_tokenizer},
                           {"tokenizer.model", nullptr, make_sentence_piece_tokenizer},
                           {"tokenizer.bin", nullptr, make_llama2c_tokenizer},
                           {"vocab.json", "merges.txt", make_gpt2_tokenizer},
                           {"vocab.txt", nullptr, make_bert_tokenizer}};

}  // namespace

Result<TypedIds> Tokenizer::encode_pair(std::string_view, std::string_view) const {
  return error(StatusCode::unsupported,
               "[tokenizer] pair: a tokenizer.json with a post_processor was required; "
               "this kind encodes single texts only; join the two texts yourself");
}

Result<std::unique_ptr<Tokenizer>> make_tokenizer(
    const std::map<std::string, Bytes>& files, int64_t vocabulary) {
  const Kind* kind = nullptr;
  for (const Kind& row : kKinds)
    if (!kind && files.count(row.file) && (!row.second || files.count(row.second)))
      kind = &row;
  if (!kind)
    return error(StatusCode::not_found,
                 "[tokenizer] model: tokenizer.json, tokenizer.model, tokenizer.bin, "
                 "vocab.json with merges.txt, or vocab.txt was required; the model "
                 "carries none; give one with --tokenizer FILE");
  auto tokenizer = kind->make(files);
  if (!tokenizer.ok()) return tokenizer.status();
  if ((*tokenizer)->vocabulary() > vocabulary)
    return error(StatusCode::out_of_range, "[tokenizer] ", kind->file, ": ids below ",
                 vocabulary, " (the model's vocabulary) were required; its ids reach ",
                 (*tokenizer)->vocabulary() - 1,
                 "; this is the wrong tokenizer for this model, give its own with "
                 "--tokenizer FILE");
  return tokenizer;
}

}  // namespace nibble
