#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/byte_level_tokenizer.h"
#include "kernels/tokenizer/kinds.h"

namespace nibble {
namespace {

using nlohmann::json;

// nlohmann's own accessors throw on a missing or wrongly typed field; these do not.
const json* member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}
bool flag(const json& object, const char* key, bool otherwise = false) {
  const json* value = member(object, key);
  return value && value->is_boolean() ? value->get<bool>() : otherwise;
}
std::string string_of(const json& object, const char* key) {
  const json* value = member(object, key);
  return value && value->is_string() ? value->get<std::string>() : "";
}
bool is_id(const json& value) {
  return value.is_number_integer() && value >= 0 && value <= INT32_MAX;
}
std::string found_text(const json* value) {
  return value ? value->dump().substr(0, 60) : "nothing";
}

template <class... Parts>
Status damaged(const char* where, const Parts&... parts) {
  return error(StatusCode::data_loss, "[tokenizer] tokenizer.json ", where, ": ",
               parts..., "; the file is damaged");
}
template <class... Parts>
Status unknown(const char* where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[tokenizer] tokenizer.json ", where, ": ",
               parts...,
               "; nibble reads byte-level BPE; evaluate with token ids from a "
               "safetensors file instead");
}

// The elements of a component: of a Sequence those in `list`, else the component itself.
Result<std::vector<const json*>> elements(const json& component, const char* where,
                                          const char* list) {
  if (!component.is_object())
    return damaged(where, "an object was required; found ", found_text(&component));
  if (string_of(component, "type") != "Sequence")
    return std::vector<const json*>{&component};
  const json* members = member(component, list);
  if (!members || !members->is_array())
    return damaged(where, "a list `", list, "` was required; found ",
                   found_text(members));
  std::vector<const json*> out;
  for (const json& element : *members) out.push_back(&element);
  return out;
}

Status read_model(const json& root, ByteLevelBpe& bpe) {
  const json* model = member(root, "model");
  if (!model || !model->is_object())
    return damaged("model", "an object was required; found ", found_text(model));
  const std::string type = string_of(*model, "type");
  if (type != "BPE" && !(type.empty() && member(*model, "merges")))
    return unknown("model", "type BPE was required; found ",
                   type.empty() ? "no type" : type);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!string_of(*model, key).empty())
      return unknown("model", key, " must be empty; found ",
                     found_text(member(*model, key)));
  if (flag(*model, "byte_fallback"))
    return unknown("model",
                   "byte_fallback must be false; found true (SentencePiece-style BPE)");
  if (const json* dropout = member(*model, "dropout"); dropout && *dropout != 0)
    return unknown("model", "dropout must be null; found ", found_text(dropout));
  bpe.ignore_merges = flag(*model, "ignore_merges");

  const json* vocabulary = member(*model, "vocab");
  if (!vocabulary || !vocabulary->is_object())
    return damaged("model.vocab", "an object was required; found ",
                   found_text(vocabulary));
  std::unordered_map<std::string, int32_t> spelled;  // the vocabulary's own strings
  const size_t most =
      2 * vocabulary->size() + 65536;  // ids so sparse are not a vocabulary
  for (const auto& [text, id] : vocabulary->items()) {
    if (!is_id(id) || id.get<size_t>() >= most)
      return damaged("model.vocab", "an id for \"", text, "\" was required; found ",
                     found_text(&id));
    const int32_t value = id.get<int32_t>();
    if (bpe.pieces.size() <= static_cast<size_t>(value))
      bpe.pieces.resize(static_cast<size_t>(value) + 1);
    spelled.emplace(text, value);
    // Outside the byte alphabet only special tokens occur; they stand for themselves.
    const auto bytes = unspell_bytes(text);
    bpe.pieces[static_cast<size_t>(value)] = bytes ? *bytes : text;
    if (bytes) bpe.vocabulary.emplace(*bytes, value);
  }
  if (const std::string token = string_of(*model, "unk_token"); !token.empty()) {
    const auto found = spelled.find(token);
    if (found != spelled.end()) bpe.unknown = found->second;
  }

  const json* merges = member(*model, "merges");
  if (!merges || !merges->is_array())
    return damaged("model.merges", "a list was required; found ", found_text(merges));
  int32_t rank = 0;
  for (const json& merge : *merges) {
    std::string left, right;
    if (merge.is_string()) {
      const std::string& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      left = text.substr(0, space);
      if (space != std::string::npos) right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    const auto a = spelled.find(left), b = spelled.find(right),
               c = spelled.find(left + right);
    if (left.empty() || right.empty() || a == spelled.end() || b == spelled.end() ||
        c == spelled.end())
      return damaged("model.merges", "merge ", rank,
                     " of two tokens into a third was required; found ",
                     found_text(&merge));
    bpe.merges.try_emplace(
        static_cast<uint64_t>(a->second) << 32 | static_cast<uint32_t>(b->second),
        Merge{rank, c->second});
    ++rank;
  }
  return ok_status();
}

Status read_added_tokens(const json& root, ByteLevelBpe& bpe) {
  const json* list = member(root, "added_tokens");
  if (!list) return ok_status();
  if (!list->is_array())
    return damaged("added_tokens", "a list was required; found ", found_text(list));
  const size_t most = bpe.pieces.size() + list->size() + 65536;
  for (const json& entry : *list) {
    const json* id = member(entry, "id");
    AddedToken token;
    token.content = string_of(entry, "content");
    if (!id || !is_id(*id) || id->get<size_t>() >= most || token.content.empty())
      return damaged("added_tokens", "id and content were required; found ",
                     found_text(&entry));
    token.id = id->get<int32_t>();
    token.single_word = flag(entry, "single_word");
    token.lstrip = flag(entry, "lstrip");
    token.rstrip = flag(entry, "rstrip");
    token.normalized = flag(entry, "normalized");
    token.special = flag(entry, "special");
    const size_t index = static_cast<size_t>(token.id);
    if (bpe.pieces.size() <= index) bpe.pieces.resize(index + 1);
    const auto bytes = unspell_bytes(token.content);
    bpe.pieces[index] = bytes ? *bytes : token.content;
    if (token.normalized)  // what is looked for in normalized text is itself normalized
      for (NormalForm form : bpe.normalizers) {
        NIBBLE_ASSIGN_OR_RETURN(token.content, normalize(token.content, form));
      }
    bpe.added.push_back(std::move(token));
  }
  return ok_status();
}

Status read_normalizer(const json& root, ByteLevelBpe& bpe) {
  const json* component = member(root, "normalizer");
  if (!component) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const auto list,
                          elements(*component, "normalizer", "normalizers"));
  for (const json* element : list) {
    const std::string type = string_of(*element, "type");
    if (type == "NFC")
      bpe.normalizers.push_back(NormalForm::nfc);
    else if (type == "NFD")
      bpe.normalizers.push_back(NormalForm::nfd);
    else if (type == "NFKC")
      bpe.normalizers.push_back(NormalForm::nfkc);
    else if (type == "NFKD")
      bpe.normalizers.push_back(NormalForm::nfkd);
    else
      return unknown("normalizer", "NFC, NFD, NFKC, NFKD or null was required; found ",
                     type);
  }
  return ok_status();
}

Status read_pre_tokenizer(const json& root, ByteLevelBpe& bpe) {
  const json* component = member(root, "pre_tokenizer");
  if (!component) return unknown("pre_tokenizer", "ByteLevel was required; found null");
  NIBBLE_ASSIGN_OR_RETURN(const auto list,
                          elements(*component, "pre_tokenizer", "pretokenizers"));
  bool byte_level = false;
  for (const json* element : list) {
    const std::string type = string_of(*element, "type");
    if (byte_level)
      return unknown("pre_tokenizer", "ByteLevel was required to come last; found ", type,
                     " after it");
    if (type == "ByteLevel") {
      byte_level = true;
      if (flag(*element, "add_prefix_space", true)) bpe.stages.push_back({true, {}});
      if (flag(*element, "use_regex", true))
        bpe.stages.push_back({false, SplitPattern::gpt2});
    } else if (type == "Digits") {
      bpe.stages.push_back({false, flag(*element, "individual_digits")
                                       ? SplitPattern::digits
                                       : SplitPattern::digit_runs});
    } else if (type == "Split") {
      const json* pattern = member(*element, "pattern");
      const std::string regex = pattern ? string_of(*pattern, "Regex") : "";
      const size_t before = bpe.stages.size();
      for (SplitPattern known :
           {SplitPattern::gpt2, SplitPattern::llama3, SplitPattern::qwen2})
        if (regex == split_regex(known)) bpe.stages.push_back({false, known});
      if (bpe.stages.size() == before)
        return unknown("pre_tokenizer",
                       "Split with the regular expression of GPT-2, Llama-3 or Qwen2 was "
                       "required; found ",
                       found_text(pattern));
      if (string_of(*element, "behavior") != "Isolated" || flag(*element, "invert"))
        return unknown("pre_tokenizer",
                       "Split with behavior Isolated, not inverted, was required; found ",
                       found_text(member(*element, "behavior")),
                       flag(*element, "invert") ? " inverted" : "");
    } else {
      return unknown("pre_tokenizer", "ByteLevel, Split or Digits was required; found ",
                     type.empty() ? "no type" : type);
    }
  }
  if (!byte_level) return unknown("pre_tokenizer", "ByteLevel was required; found none");
  return ok_status();
}

Status read_template(const json& processor, ByteLevelBpe& bpe) {
  const json* single = member(processor, "single");
  const json* special = member(processor, "special_tokens");
  if (!single || !single->is_array())
    return damaged("post_processor", "a list `single` was required; found ",
                   found_text(single));
  bool after = false;
  for (const json& item : *single) {
    if (const json* sequence = member(item, "Sequence")) {
      if (after || string_of(*sequence, "id") != "A")
        return unknown("post_processor",
                       "a template with the sequence A once was required; found ",
                       found_text(single));
      after = true;
      continue;
    }
    const json* token = member(item, "SpecialToken");
    const std::string name = token ? string_of(*token, "id") : "";
    const json* entry = special ? member(*special, name.c_str()) : nullptr;
    const json* ids = entry ? member(*entry, "ids") : nullptr;
    if (!ids || !ids->is_array())
      return damaged("post_processor", "the ids of special token \"", name,
                     "\" were required; found ", found_text(ids));
    for (const json& id : *ids) {
      if (!is_id(id) || id.get<size_t>() >= bpe.pieces.size())
        return damaged("post_processor", "an id of the vocabulary was required; found ",
                       found_text(&id));
      (after ? bpe.suffix : bpe.prefix).push_back(id.get<int32_t>());
    }
  }
  if (!after)
    return damaged("post_processor", "the sequence A was required; found ",
                   found_text(single));
  return ok_status();
}

Status read_post_processor(const json& root, ByteLevelBpe& bpe) {
  const json* component = member(root, "post_processor");
  if (!component) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const auto list,
                          elements(*component, "post_processor", "processors"));
  bool templated = false;
  for (const json* element : list) {
    const std::string type = string_of(*element, "type");
    if (type == "ByteLevel") continue;  // only offsets, which nibble does not report
    if (type != "TemplateProcessing" || templated)
      return unknown("post_processor",
                     "ByteLevel or one TemplateProcessing was required; found ", type);
    NIBBLE_RETURN_IF_ERROR(read_template(*element, bpe));
    templated = true;
  }
  return ok_status();
}

Status read_decoder(const json& root) {
  const json* component = member(root, "decoder");
  if (!component) return unknown("decoder", "ByteLevel was required; found null");
  NIBBLE_ASSIGN_OR_RETURN(const auto list, elements(*component, "decoder", "decoders"));
  for (const json* element : list)
    if (string_of(*element, "type") != "ByteLevel")
      return unknown("decoder", "ByteLevel was required; found ",
                     string_of(*element, "type"));
  return ok_status();
}

// The ids that end a sequence: generation_config.json, else config.json (an id or a
// list), else the token that tokenizer_config.json names.
Status read_eos(const std::map<std::string, Bytes>& files, ByteLevelBpe& bpe) {
  for (const char* name :
       {"generation_config.json", "config.json", "tokenizer_config.json"}) {
    const auto file = files.find(name);
    if (file == files.end()) continue;
    const json root = json::parse(file->second.text(), nullptr, false);
    if (root.is_discarded())
      return error(StatusCode::data_loss, "[tokenizer] ", name,
                   ": JSON was required; it does not parse; the file is damaged");
    if (const json* ids = member(root, "eos_token_id")) {
      const json list = ids->is_array() ? *ids : json::array({*ids});
      for (const json& id : list) {
        if (!is_id(id))
          return error(StatusCode::data_loss, "[tokenizer] ", name,
                       ": eos_token_id, an id or a list of them, was required; found ",
                       found_text(ids), "; correct the file");
        bpe.eos.push_back(id.get<int32_t>());
      }
    } else if (const json* token = member(root, "eos_token")) {
      const std::string text =
          token->is_string() ? token->get<std::string>() : string_of(*token, "content");
      for (const AddedToken& added : bpe.added)
        if (added.content == text) bpe.eos.push_back(added.id);
      if (bpe.eos.empty())
        if (const auto found = bpe.vocabulary.find(text); found != bpe.vocabulary.end())
          bpe.eos.push_back(found->second);
    }
    if (!bpe.eos.empty()) break;
  }
  return ok_status();
}

}  // namespace

// truncation and padding concern batches and are left out, as transformers resets them
// too.
Result<std::unique_ptr<Tokenizer>> make_byte_level_tokenizer(
    const std::map<std::string, Bytes>& files) {
  const json root = json::parse(files.at("tokenizer.json").text(), nullptr, false);
  if (!root.is_object())
    return error(StatusCode::data_loss,
                 "[tokenizer] tokenizer.json: a JSON object was required; it does not "
                 "parse as one; the "
                 "file is damaged");
  ByteLevelBpe bpe;
  // The pipeline first: a SentencePiece file should be told by its normalizer or
  // pre-tokenizer.
  NIBBLE_RETURN_IF_ERROR(read_normalizer(root, bpe));
  NIBBLE_RETURN_IF_ERROR(read_pre_tokenizer(root, bpe));
  NIBBLE_RETURN_IF_ERROR(read_decoder(root));
  NIBBLE_RETURN_IF_ERROR(read_model(root, bpe));
  NIBBLE_RETURN_IF_ERROR(read_added_tokens(root, bpe));
  NIBBLE_RETURN_IF_ERROR(read_post_processor(root, bpe));
  NIBBLE_RETURN_IF_ERROR(read_eos(files, bpe));
  return make_tokenizer(std::move(bpe));
}

}  // namespace nibble
