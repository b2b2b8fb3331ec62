// GgufVocabulary -> tokenizer files
#include <cstring>
#include <set>

#include "export/gguf/vocabulary.h"
#include "kernels/base/json.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMeta = "\xe2\x96\x81";  // U+2581

bool is_padding(const GgufVocabulary& v, size_t i) {
  return i < v.types.size() && v.types[i] == 5 && v.tokens[i] == cat("[PAD", i, "]");
}
int32_t type_of(const GgufVocabulary& v, size_t i) {
  return i < v.types.size() ? v.types[i] : 1;
}
const std::string& token_of(const GgufVocabulary& v, int32_t id) {
  return v.tokens[static_cast<size_t>(id)];
}

Json special_item(const GgufVocabulary& v, int32_t id) {
  return {{"SpecialToken", {{"id", token_of(v, id)}, {"type_id", 0}}}};
}

Json post_processor(const GgufVocabulary& v) {
  Json single = Json::array(), specials = Json::object();
  const auto add = [&](bool wanted, int32_t id) {
    if (!wanted || id < 0) return;
    single.push_back(special_item(v, id));
    const std::string& text = token_of(v, id);
    specials[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  add(v.add_bos, v.bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add(v.add_eos, v.eos);
  if (specials.empty()) {
    return {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", false},
            {"use_regex", false}};
  }
  Json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", specials}};
}

Result<std::string> tokenizer_json(const GgufVocabulary& v) {
  NIBBLE_ASSIGN_OR_RETURN(const GgufPreTokenizer pre, gguf_pre_tokenizer(v.pre));
  Json added = Json::array(), vocabulary = Json::object(), merges = Json::array();
  // Appended to as to a vector: an ordered object looks for each key among all before it.
  std::vector<std::pair<const std::string, Json>>& entries =
      *vocabulary.get_ptr<Json::object_t*>();
  std::set<std::string_view> seen;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (is_padding(v, i)) continue;
    const int32_t type = type_of(v, i);
    if (type == 3 || type == 4) {
      added.push_back({{"id", i},
                       {"content", v.tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", type == 3}});
    }
    if (seen.insert(v.tokens[i]).second) entries.emplace_back(v.tokens[i], i);
  }
  for (const std::string& merge : v.merges) merges.push_back(merge);
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added},
                     {"normalizer", parse_ordered_json(pre.normalizer)},
                     {"pre_tokenizer", parse_ordered_json(pre.pre_tokenizer)},
                     {"post_processor", post_processor(v)},
                     {"decoder",
                      {{"type", "ByteLevel"},
                       {"add_prefix_space", false},
                       {"trim_offsets", true},
                       {"use_regex", true}}},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", pre.ignore_merges},
                       {"vocab", vocabulary},
                       {"merges", merges}}}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// --- SentencePiece's protobuf, the fields that its reader needs

class ProtoWriter {
 public:
  void varint(int field, int64_t value) {
    put(static_cast<uint64_t>(field) << 3);
    put(static_cast<uint64_t>(value));
  }
  void number(int field, float value) {
    put(static_cast<uint64_t>(field) << 3 | 5);
    char bytes[4];
    std::memcpy(bytes, &value, 4);
    text_.append(bytes, 4);
  }
  void bytes(int field, std::string_view value) {
    put(static_cast<uint64_t>(field) << 3 | 2);
    put(value.size());
    text_ += value;
  }
  const std::string& text() const { return text_; }

 private:
  void put(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>((value & 0x7f) | 0x80);
    text_ += static_cast<char>(value);
  }
  std::string text_;
};

std::string sentence_piece_model(const GgufVocabulary& v) {
  ProtoWriter model, trainer, normalizer;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    ProtoWriter piece;
    piece.bytes(1, v.tokens[i]);
    piece.number(2, i < v.scores.size() ? v.scores[i] : 0.0f);
    piece.varint(3, type_of(v, i));
    model.bytes(1, piece.text());
  }
  trainer.varint(3, 2);  // BPE
  trainer.varint(4, static_cast<int64_t>(v.tokens.size()));
  trainer.varint(35, 1);  // byte fallback
  trainer.varint(40, v.unknown);
  trainer.varint(41, v.bos);
  trainer.varint(42, v.eos);
  trainer.varint(43, -1);
  normalizer.bytes(1, "identity");
  normalizer.varint(3, v.add_space_prefix);
  normalizer.varint(4, 0);  // extra spaces stay
  normalizer.varint(5, 1);  // spaces as U+2581
  model.bytes(2, trainer.text());
  model.bytes(3, normalizer.text());
  return model.text();
}

// Words begin with U+2581 there, and go on with ## here.
std::string bert_vocabulary(const GgufVocabulary& v) {
  std::string lines;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    std::string_view token = v.tokens[i];
    const bool initial = token.substr(0, kMeta.size()) == kMeta;
    if (initial) token.remove_prefix(kMeta.size());
    const bool special = type_of(v, i) == 2 || type_of(v, i) == 3;
    const bool padding = type_of(v, i) == 5;
    lines += cat(special || initial || padding ? "" : "##", token, "\n");
  }
  return lines;
}

std::string settings(const GgufVocabulary& v, const std::string& chat_template) {
  Json json = Json::object();
  json["tokenizer_class"] = "PreTrainedTokenizerFast";
  if (v.model == "llama") {
    json["tokenizer_class"] = "LlamaTokenizer";
    json["add_bos_token"] = v.add_bos;
    json["add_eos_token"] = v.add_eos;
  }
  if (v.model == "bert") json["tokenizer_class"] = "BertTokenizer";
  if (v.bos >= 0) json["bos_token"] = token_of(v, v.bos);
  if (v.eos >= 0) json["eos_token"] = token_of(v, v.eos);
  if (v.unknown >= 0) json["unk_token"] = token_of(v, v.unknown);
  if (!chat_template.empty()) json["chat_template"] = chat_template;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

Result<std::map<std::string, Bytes>> tokenizer_files(const GgufVocabulary& v,
                                                     const std::string& chat_template) {
  // Its checks, and that nibble knows the kind, before anything is made of it.
  NIBBLE_RETURN_IF_ERROR(make_gguf_tokenizer(v).status());
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (first_invalid_utf8(v.tokens[i]) < 0 && !v.tokens[i].empty()) continue;
    return error(StatusCode::data_loss, "[gguf] tokenizer.ggml.tokens: token ", i,
                 ": UTF-8 of a byte or more was required; found other bytes or none; the "
                 "file is damaged");
  }
  std::map<std::string, Bytes> files;
  const auto put = [&](const char* name, const std::string& text) {
    files[name] = Bytes::copy_of(text.data(), text.size());
  };
  if (v.model == "gpt2") {
    NIBBLE_ASSIGN_OR_RETURN(const std::string json, tokenizer_json(v));
    put("tokenizer.json", json);
  } else if (v.model == "llama") {
    put("tokenizer.model", sentence_piece_model(v));
  } else {
    put("vocab.txt", bert_vocabulary(v));
  }
  put("tokenizer_config.json", settings(v, chat_template));
  Json ends = Json::object();
  if (v.bos >= 0) ends["bos_token_id"] = v.bos;
  if (v.eos >= 0 && v.eot >= 0) {
    ends["eos_token_id"] = {v.eos, v.eot};
  } else if (v.eos >= 0) {
    ends["eos_token_id"] = v.eos;
  }
  put("generation_config.json", ends.dump(2) + "\n");
  return files;
}

}  // namespace nibble
