// tokenizer files -> GgufVocabulary
#include <cstring>
#include <functional>

#include "export/gguf/vocabulary.h"
#include "kernels/base/json.h"
#include "kernels/tokenizer/sentence_piece.h"
#include "kernels/tokenizer/tokenizer.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using Files = std::map<std::string, Bytes>;

constexpr std::string_view kMeta = "\xe2\x96\x81";  // U+2581
constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5,
                  kByte = 6;

template <class... Parts>
Status unsupported(const Parts&... parts) {
  return error(StatusCode::unsupported, "[gguf] tokenizer: ", parts...);
}

Json parse(const Files& files, const char* name) {
  const auto file = files.find(name);
  if (file == files.end()) return Json::object();
  return parse_json(file->second.text());
}

std::string string_of(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() && found->is_string()
             ? found->get<std::string>()
             : std::string();
}
bool flag_of(const Json& object, const char* key, bool otherwise) {
  if (!object.is_object()) return otherwise;
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : otherwise;
}
const Json& member(const Json& object, const char* key) {
  static const Json none;
  if (!object.is_object()) return none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

// --- tokenizer.json

// One text a step of a pre-tokenizer or normalizer, Sequences flattened, with what
// decides its result.
void flatten(const Json& component, std::vector<std::string>& steps) {
  if (!component.is_object()) return;
  for (const char* list : {"pretokenizers", "normalizers"}) {
    for (const Json& part : member(component, list)) flatten(part, steps);
  }
  const std::string type = string_of(component, "type");
  if (type == "Sequence") return;
  std::string text = type;
  if (type == "ByteLevel") {
    if (flag_of(component, "add_prefix_space", true)) text += " add_prefix_space";
    if (flag_of(component, "use_regex", true)) text += " use_regex";
  } else {
    Json rest = component;
    rest.erase("type");
    if (!flag_of(rest, "invert", false)) rest.erase("invert");
    if (!rest.empty()) {
      text += cat(" ", rest.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
  }
  steps.push_back(std::move(text));
}
std::vector<std::string> steps_of(const Json& component) {
  std::vector<std::string> steps;
  flatten(component, steps);
  return steps;
}
std::vector<std::string> steps_of(const std::string& json) {
  return steps_of(parse_json(json));
}

// Tokens by id with their types; holes are filled later.
void put_token(GgufVocabulary& out, size_t id, std::string text, int32_t type) {
  if (out.tokens.size() <= id) {
    out.tokens.resize(id + 1);
    out.types.resize(id + 1, kUnused);
  }
  out.tokens[id] = std::move(text);
  out.types[id] = type;
}

constexpr size_t kMostIds = size_t{1} << 24;

Status put_vocabulary(const Json& vocabulary, GgufVocabulary& out) {
  if (!vocabulary.is_object()) return unsupported("no vocabulary was found");
  for (const auto& [text, id] : vocabulary.items()) {
    if (!id.is_number_unsigned() || id.get<size_t>() >= kMostIds)
      return unsupported("\"", text, "\" has no id");
    put_token(out, id.get<size_t>(), text, kNormal);
  }
  return ok_status();
}

void put_added(const Json& json, GgufVocabulary& out) {
  for (const Json& added : member(json, "added_tokens")) {
    const Json& id = member(added, "id");
    if (!id.is_number_unsigned() || id.get<size_t>() >= kMostIds) continue;
    put_token(out, id.get<size_t>(), string_of(added, "content"),
              flag_of(added, "special", false) ? kControl : kUserDefined);
  }
}

std::vector<std::pair<std::string, std::string>> merges_of(const Json& model) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const Json& merge : member(model, "merges")) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
        merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else if (merge.is_string()) {
      const std::string text = merge.get<std::string>();
      const size_t space = text.find(' ');
      if (space != std::string::npos)
        merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
  }
  return merges;
}

// The `pre` whose sections are these.
Result<std::string> pre_name(const Json& normalizer, const Json& pre_tokenizer) {
  for (const char* pre : {"gpt-2", "llama-bpe", "qwen2", "smollm"}) {
    NIBBLE_ASSIGN_OR_RETURN(const GgufPreTokenizer known, gguf_pre_tokenizer(pre));
    if (steps_of(known.pre_tokenizer) == steps_of(pre_tokenizer) &&
        steps_of(known.normalizer) == steps_of(normalizer)) {
      return std::string(pre);
    }
  }
  std::string steps;
  for (const std::string& step : steps_of(normalizer)) steps += step + "; ";
  for (const std::string& step : steps_of(pre_tokenizer)) steps += step + "; ";
  return unsupported(
      "GGUF says by name how text is cut, and those that nibble knows (gpt-2, llama-bpe, "
      "qwen2, smollm) do otherwise than this tokenizer.json: ",
      steps, "give another tokenizer with --tokenizer FILE");
}

Result<GgufVocabulary> from_byte_level(const Json& json) {
  GgufVocabulary out;
  out.model = "gpt2";
  const Json& model = member(json, "model");
  NIBBLE_RETURN_IF_ERROR(put_vocabulary(member(model, "vocab"), out));
  put_added(json, out);
  for (const auto& [left, right] : merges_of(model))
    out.merges.push_back(left + " " + right);
  NIBBLE_ASSIGN_OR_RETURN(
      out.pre, pre_name(member(json, "normalizer"), member(json, "pre_tokenizer")));
  return out;
}

bool is_byte_token(std::string_view text) {
  return text.size() == 6 && text.substr(0, 3) == "<0x" && text[5] == '>';
}

// SentencePiece BPE by merges: the earlier a merge, the greater its token's score.
Result<GgufVocabulary> from_fallback(const Json& json) {
  GgufVocabulary out;
  out.model = "llama";
  const Json& model = member(json, "model");
  NIBBLE_RETURN_IF_ERROR(put_vocabulary(member(model, "vocab"), out));
  std::map<std::string, size_t, std::less<>> ids;
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    ids.emplace(out.tokens[i], i);
    if (is_byte_token(out.tokens[i])) out.types[i] = kByte;
  }
  const std::string unknown = string_of(model, "unk_token");
  put_added(json, out);
  if (const auto found = ids.find(unknown); found != ids.end()) {
    out.types[found->second] = kUnknown;
    out.unknown = static_cast<int32_t>(found->second);
  }
  if (out.unknown < 0)
    return unsupported("SentencePiece needs an unknown token; found none");
  constexpr float kNever = -1e9f;  // SentencePiece's own for what is not merged
  out.scores.assign(out.tokens.size(), kNever);
  float rank = 0;
  for (const auto& [left, right] : merges_of(model)) {
    const auto found = ids.find(left + right);
    if (found == ids.end()) continue;
    float& score = out.scores[found->second];
    if (score == kNever) score = rank;
    rank -= 1;
  }
  for (size_t i = 0; i < out.types.size(); ++i) {
    if (out.types[i] != kNormal) out.scores[i] = 0;
  }
  out.add_space_prefix = false;
  for (const char* part : {"normalizer", "pre_tokenizer"}) {
    for (const std::string& step : steps_of(member(json, part))) {
      const bool metaspace = step.rfind("Metaspace", 0) == 0 &&
                             step.find("\"never\"") == std::string::npos &&
                             step.find("\"add_prefix_space\":false") == std::string::npos;
      if (step.rfind("Prepend", 0) == 0 || metaspace) out.add_space_prefix = true;
    }
  }
  return out;
}

Result<GgufVocabulary> from_json(const Files& files) {
  const Json json = parse(files, "tokenizer.json");
  const Json& model = member(json, "model");
  const std::string type = string_of(model, "type");
  // Files of old have no type; those that carry merges are BPE.
  if (type != "BPE" && !(type.empty() && model.contains("merges")))
    return unsupported("a decoder's GGUF needs BPE; found ",
                       type.empty() ? "none" : type);
  return flag_of(model, "byte_fallback", false) ? from_fallback(json)
                                                : from_byte_level(json);
}

// --- the other files

Result<GgufVocabulary> from_sentence_piece(const Files& files) {
  NIBBLE_ASSIGN_OR_RETURN(const SentencePieceModel model,
                          read_sentence_piece(files.at("tokenizer.model").text()));
  if (!model.is_bpe || !model.byte_fallback || model.charsmap)
    return unsupported("tokenizer.model must be BPE with byte fallback and without a ",
                       "character map; found ", model.is_bpe ? "BPE" : "Unigram",
                       model.byte_fallback ? "" : ", no byte fallback",
                       model.charsmap ? ", a character map" : "");
  GgufVocabulary out;
  out.model = "llama";
  for (const SentencePiece& piece : model.pieces) {
    out.tokens.push_back(piece.text);
    out.scores.push_back(piece.score);
    out.types.push_back(static_cast<int32_t>(piece.type));
  }
  out.unknown = model.unknown;
  out.bos = model.bos;
  out.eos = model.eos;
  out.add_space_prefix = model.add_dummy_prefix;
  return out;
}

// llama2.c keeps spaces as they are, and ids 0 to 258 for unknown, BOS, EOS and bytes.
// make_tokenizer has read the file before, so that its records are sound.
Result<GgufVocabulary> from_llama2c(const Files& files) {
  const std::string_view text = files.at("tokenizer.bin").text();
  GgufVocabulary out;
  out.model = "llama";
  for (size_t at = 4; at + 8 <= text.size();) {
    float score = 0;
    uint32_t length = 0;
    std::memcpy(&score, text.data() + at, 4);
    std::memcpy(&length, text.data() + at + 4, 4);
    std::string piece;
    for (const char c : text.substr(at + 8, length)) {
      piece += c == ' ' ? std::string(kMeta) : std::string(1, c);
    }
    const size_t id = out.tokens.size();
    int32_t type = kNormal;
    if (id < 3) {
      constexpr const char* kNames[] = {"<unk>", "<s>", "</s>"};
      piece = kNames[id];
      type = id == 0 ? kUnknown : kControl;
    } else if (id < 3 + 256) {
      constexpr char kDigits[] = "0123456789ABCDEF";
      piece = cat("<0x", kDigits[(id - 3) / 16], kDigits[(id - 3) % 16], ">");
      type = kByte;
    }
    out.tokens.push_back(std::move(piece));
    out.scores.push_back(score);
    out.types.push_back(type);
    at += 8 + length;
  }
  out.unknown = 0;
  out.bos = 1;
  out.eos = 2;
  return out;
}

Result<GgufVocabulary> from_gpt2(const Files& files) {
  GgufVocabulary out;
  out.model = "gpt2";
  out.pre = "gpt-2";
  NIBBLE_RETURN_IF_ERROR(put_vocabulary(parse(files, "vocab.json"), out));
  std::string_view text = files.at("merges.txt").text();
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const bool comment = out.merges.empty() && line.substr(0, 8) == "#version";
    if (!line.empty() && !comment) out.merges.emplace_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    if (out.tokens[i] == "<|endoftext|>") out.types[i] = kControl;
  }
  return out;
}

// --- what surrounds a text, and the proof

Status set_specials(const Tokenizer& tokenizer, const Files& files,
                    const std::string& config_json, GgufVocabulary& out) {
  const Json config = parse_json(config_json);
  const auto of_config = [&](const char* key) -> int32_t {
    const Json* id = &member(config, key);
    if (id->is_array() && !id->empty()) id = &(*id)[0];
    return id->is_number_unsigned() && id->get<size_t>() < out.tokens.size()
               ? id->get<int32_t>()
               : -1;
  };
  const auto named = [&](const char* key) -> int32_t {
    const Json settings = parse(files, "tokenizer_config.json");
    const Json& token = member(settings, key);
    const std::string text =
        token.is_string() ? token.get<std::string>() : string_of(token, "content");
    for (size_t i = 0; !text.empty() && i < out.tokens.size(); ++i) {
      if (out.tokens[i] == text) return static_cast<int32_t>(i);
    }
    return -1;
  };
  if (tokenizer.bos() >= 0) out.bos = tokenizer.bos();
  if (out.bos < 0) out.bos = named("bos_token");
  if (out.bos < 0) out.bos = of_config("bos_token_id");
  const std::vector<int32_t> eos = tokenizer.eos();
  if (!eos.empty()) out.eos = eos[0];
  if (eos.size() > 1) out.eot = eos[1];
  if (out.eos < 0) out.eos = of_config("eos_token_id");

  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.encode("a"));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> plain,
                          tokenizer.encode_without_special("a"));
  out.add_bos =
      !ids.empty() && out.bos >= 0 && ids.front() == out.bos && ids.size() > plain.size();
  if (out.add_bos) ids.erase(ids.begin());
  out.add_eos = ids.size() > plain.size() && out.eos >= 0 && ids.back() == out.eos;
  if (out.add_eos) ids.pop_back();
  if (ids != plain)
    return unsupported("GGUF puts one BOS before a text and one EOS behind it; this ",
                       "tokenizer puts other tokens around it");
  return ok_status();
}

constexpr const char* kProbes[] = {
    "a",
    " ",
    "\n",
    "Hello, world! It's 2024: don't we've YOU'LL I'M",
    "  leading and   inner  spaces  ",
    "one\ntwo\n\n\n  indented\r\n\ttabs\t\t end \n",
    "1 12 123 1234567 3.14159 10,000 0xff",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026 \u20ac5",
    "e\u0301 \u00c5 A\u030a \ufb01 \u00bd",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 "
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001F642\U0001F44D\U0001F3FD emoji",
    "x=1;y+=2//c++ if(a&&b){return;} __init__ a_b.c[0]",
    "\u00a0nbsp\u2003em \u017f",
};

// The same ids for the probes and for every token's own text.
Status check_same(const Tokenizer& files, const Tokenizer& made,
                  const GgufVocabulary& vocabulary) {
  const auto same = [&](const std::string& text) -> Status {
    const auto required = files.encode(text), found = made.encode(text);
    if (!required.ok() && !found.ok()) return ok_status();
    if (required.ok() && found.ok() && *required == *found) return ok_status();
    return unsupported(
        "the vocabulary of a GGUF cuts text otherwise than this tokenizer does: \"",
        text.substr(0, 60), "\" would get other ids");
  };
  for (const char* text : kProbes) NIBBLE_RETURN_IF_ERROR(same(text));
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.types[i] != kNormal) continue;
    const int32_t id = static_cast<int32_t>(i);
    const std::string text = files.decode(std::span<const int32_t>(&id, 1));
    if (!text.empty()) NIBBLE_RETURN_IF_ERROR(same(text));
  }
  return ok_status();
}

}  // namespace

std::string chat_template_of(const Files& files) {
  const auto file = files.find("chat_template.jinja");
  if (file != files.end()) return std::string(file->second.text());
  const Json config = parse(files, "tokenizer_config.json");
  const Json& field = member(config, "chat_template");
  if (field.is_string()) return field.get<std::string>();
  for (const Json& one : field) {
    if (string_of(one, "name") == "default") return string_of(one, "template");
  }
  return {};
}

Result<GgufVocabulary> vocabulary_of(const Files& files, const std::string& config_json,
                                     int64_t rows) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          make_tokenizer(files, rows));
  const auto read = [&]() -> Result<GgufVocabulary> {
    if (files.count("tokenizer.json")) return from_json(files);
    if (files.count("tokenizer.model")) return from_sentence_piece(files);
    if (files.count("tokenizer.bin")) return from_llama2c(files);
    if (files.count("vocab.json")) return from_gpt2(files);
    return unsupported("a decoder's GGUF needs BPE; found BERT's vocab.txt");
  };
  NIBBLE_ASSIGN_OR_RETURN(GgufVocabulary out, read());
  NIBBLE_RETURN_IF_ERROR(set_specials(*tokenizer, files, config_json, out));
  out.tokens.resize(static_cast<size_t>(rows));
  out.types.resize(static_cast<size_t>(rows), kUnused);
  if (out.model == "llama") out.scores.resize(static_cast<size_t>(rows), 0.0f);
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    if (out.types[i] == kUnused && out.tokens[i].empty()) {
      out.tokens[i] = cat("[PAD", i, "]");
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> made,
                          make_gguf_tokenizer(out));
  NIBBLE_RETURN_IF_ERROR(check_same(*tokenizer, *made, out));
  return out;
}

}  // namespace nibble
