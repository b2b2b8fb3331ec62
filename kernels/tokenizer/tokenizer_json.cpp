#include "kernels/tokenizer/kinds.h"
#include "kernels/tokenizer/pipeline.h"

namespace nibble {
namespace {

Status read_added_tokens(JsonView list, Pipeline& out) {
  if (!list.exists()) return ok_status();
  if (!list.is_array())
    return damaged_json("added_tokens", "a list was required; found ", list.dump());
  const size_t most = out.model.vocabulary->pieces.size() + list.size() + 65536;
  for (const JsonView entry : list.elements()) {
    AddedToken token;
    token.id = entry["id"].id();
    token.content = token.written = entry["content"].text();
    if (token.id < 0 || static_cast<size_t>(token.id) >= most || token.content.empty())
      return damaged_json("added_tokens", "id and content were required; found ",
                          entry.dump());
    token.single_word = entry["single_word"].flag();
    token.lstrip = entry["lstrip"].flag();
    token.rstrip = entry["rstrip"].flag();
    token.normalized = entry["normalized"].flag();
    token.special = entry["special"].flag();
    if (token.normalized)  // what is looked for in normalized text is itself normalized
      NIBBLE_RETURN_IF_ERROR(out.normalizer.apply(token.content));
    out.added.push_back(std::move(token));
  }
  return ok_status();
}

}  // namespace

// The ids that end a sequence: generation_config.json, else config.json (an id or a
// list), else the token that tokenizer_config.json names.
Result<std::vector<int32_t>> read_eos(
    const std::map<std::string, Bytes>& files,
    const std::function<int32_t(std::string_view)>& id_of) {
  std::vector<int32_t> eos;
  for (const char* name :
       {"generation_config.json", "config.json", "tokenizer_config.json"}) {
    const auto file = files.find(name);
    if (file == files.end()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const JsonFile json,
                            JsonFile::parse(name, file->second.text()));
    if (const JsonView ids = json.root()["eos_token_id"]; ids.exists()) {
      for (const JsonView id :
           ids.is_array() ? ids.elements() : std::vector<JsonView>{ids}) {
        if (id.id() < 0)
          return error(StatusCode::data_loss, "[tokenizer] ", name,
                       ": eos_token_id, an id or a list of them, was required; found ",
                       ids.dump(), "; correct the file");
        eos.push_back(id.id());
      }
    } else if (const JsonView token = json.root()["eos_token"]; token.exists()) {
      const int32_t id =
          id_of(token.is_string() ? token.text() : token["content"].text());
      if (id >= 0) eos.push_back(id);
    }
    if (!eos.empty()) break;
  }
  return eos;
}

// truncation and padding concern batches and are left out, as transformers resets them
// too.
Result<std::unique_ptr<Tokenizer>> make_json_tokenizer(
    const std::map<std::string, Bytes>& files) {
  NIBBLE_ASSIGN_OR_RETURN(
      const JsonFile file,
      JsonFile::parse("tokenizer.json", files.at("tokenizer.json").text()));
  const JsonView root = file.root();
  Pipeline out;
  NIBBLE_ASSIGN_OR_RETURN(out.normalizer, read_normalizer(root["normalizer"]));
  NIBBLE_ASSIGN_OR_RETURN(out.pre_tokenizer, read_pre_tokenizer(root["pre_tokenizer"]));
  NIBBLE_ASSIGN_OR_RETURN(out.decoder, read_decoder(root["decoder"]));
  NIBBLE_ASSIGN_OR_RETURN(out.model, read_model(root["model"]));
  NIBBLE_RETURN_IF_ERROR(read_added_tokens(root["added_tokens"], out));
  int64_t ids = static_cast<int64_t>(out.model.vocabulary->pieces.size());
  for (const AddedToken& token : out.added) ids = std::max<int64_t>(ids, token.id + 1);
  NIBBLE_ASSIGN_OR_RETURN(out.post_processor,
                          read_post_processor(root["post_processor"], ids));
  NIBBLE_ASSIGN_OR_RETURN(out.eos, read_eos(files, [&](std::string_view token) {
                            for (const AddedToken& added : out.added)
                              if (added.written == token) return added.id;
                            return out.model.vocabulary->find(token);
                          }));
  return make_tokenizer(std::move(out));
}

}  // namespace nibble
