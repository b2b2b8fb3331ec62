// Tokenizers whose parts lie in plain files: GPT-2's vocab.json with merges.txt, BERT's
// vocab.txt, SentencePiece's .model with the flags of tokenizer_config.json, and the
// vocabulary in the metadata of a GGUF. What the files leave unsaid is said here as the
// sections of a tokenizer.json.
#include "kernels/tokenizer/gguf_vocabulary.h"
#include "kernels/tokenizer/kinds.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/pipeline.h"
#include "kernels/tokenizer/sentence_piece.h"

namespace nibble {
namespace {

constexpr std::string_view kMeta = "\xe2\x96\x81";  // U+2581

Status damaged(const char* file, const std::string& what) {
  return error(StatusCode::data_loss, "[tokenizer] ", file, ": ", what,
               "; the file is damaged");
}

// The sections of a tokenizer.json.
Status read_sections(const std::string& json, Pipeline& out) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonFile file, JsonFile::parse("sections", json));
  NIBBLE_ASSIGN_OR_RETURN(out.normalizer, read_normalizer(file.root()["normalizer"]));
  NIBBLE_ASSIGN_OR_RETURN(out.pre_tokenizer,
                          read_pre_tokenizer(file.root()["pre_tokenizer"]));
  NIBBLE_ASSIGN_OR_RETURN(out.decoder, read_decoder(file.root()["decoder"]));
  return ok_status();
}

const char* json_bool(bool value) { return value ? "true" : "false"; }

Result<JsonFile> config_of(const std::map<std::string, Bytes>& files) {
  const auto file = files.find("tokenizer_config.json");
  return JsonFile::parse("tokenizer_config.json",
                         file == files.end() ? "{}" : file->second.text());
}

void add_special(Pipeline& pipeline, std::string_view token) {
  AddedToken added;
  added.id = pipeline.model.vocabulary->find(token);
  added.content = added.written = token;
  added.special = true;
  if (added.id >= 0) pipeline.added.push_back(added);
}

Result<std::vector<int32_t>> eos_of(const std::map<std::string, Bytes>& files,
                                    const Pipeline& pipeline) {
  return read_eos(files, [&](std::string_view token) {
    return pipeline.model.vocabulary->find(token);
  });
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

using MergeList = std::vector<std::pair<std::string_view, std::string_view>>;

void push_merge(std::string_view line, MergeList& merges) {
  const size_t space = line.find(' ');
  merges.emplace_back(line.substr(0, space), space == std::string_view::npos
                                                 ? std::string_view()
                                                 : line.substr(space + 1));
}

Status read_bert_sections(bool lower, bool chinese, Pipeline& out) {
  NIBBLE_RETURN_IF_ERROR(read_sections(
      cat(R"({"normalizer": {"type": "BertNormalizer", "lowercase": )", json_bool(lower),
          R"(, "handle_chinese_chars": )", json_bool(chinese),
          R"(}, "pre_tokenizer": {"type": "BertPreTokenizer"},)",
          R"( "decoder": {"type": "WordPiece"}})"),
      out));
  const int32_t cls = out.model.vocabulary->find("[CLS]"),
                sep = out.model.vocabulary->find("[SEP]");
  if (cls >= 0 && sep >= 0) {
    out.post_processor.single = {{-1, {cls}, 0}, {0, {}, 0}, {-1, {sep}, 0}};
    out.post_processor.pair = out.post_processor.single;
    out.post_processor.pair.insert(out.post_processor.pair.end(),
                                   {{1, {}, 1}, {-1, {sep}, 1}});
  }
  for (const char* token : {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"})
    add_special(out, token);
  return ok_status();
}

// The regular expression of a GGUF's tokenizer.ggml.pre.
Result<std::string> pre_tokenizer_of(std::string_view pre) {
  const auto split = [](SplitPattern pattern) {
    return cat(R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": )",
               R"("Isolated", "pattern": {"Regex": ")",
               json_escaped(split_regex(pattern)),
               R"("}}, {"type": "ByteLevel", "add_prefix_space": false, )",
               R"("use_regex": false}]})");
  };
  const std::string byte_level =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
  if (pre == "gpt-2" || pre == "default" || pre.empty()) return byte_level;
  if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3")
    return split(SplitPattern::llama3);
  if (pre == "qwen2") return split(SplitPattern::qwen2);
  if (pre == "smollm" || pre == "starcoder" || pre == "codeshell")
    return cat(R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", )",
               R"("individual_digits": true}, )", byte_level, "]}");
  return error(StatusCode::unsupported,
               "[tokenizer] gguf tokenizer.ggml.pre: default, gpt-2, llama-bpe, qwen2, "
               "smollm or starcoder was required; found ",
               pre, "; give the model's tokenizer.json with --tokenizer FILE");
}

std::vector<int32_t> eos_of(const GgufVocabulary& gguf) {
  std::vector<int32_t> eos;
  for (const int32_t id : {gguf.eos, gguf.eot})
    if (id >= 0) eos.push_back(id);
  return eos;
}

void add_gguf_specials(const GgufVocabulary& gguf, Pipeline& out) {
  for (size_t i = 0; i < gguf.types.size(); ++i)
    if (const int32_t type = gguf.types[i]; type == 3 || type == 4) {  // control, user's
      AddedToken token;
      token.id = static_cast<int32_t>(i);
      token.content = token.written = gguf.tokens[i];
      token.special = type == 3;
      if (!token.content.empty()) out.added.push_back(token);
    }
  if (gguf.add_bos && gguf.bos >= 0)
    out.post_processor.single.insert(out.post_processor.single.begin(),
                                     {-1, {gguf.bos}, 0});
  if (gguf.add_eos && gguf.eos >= 0)
    out.post_processor.single.push_back({-1, {gguf.eos}, 0});
  out.eos = eos_of(gguf);
}

Result<std::unique_ptr<Tokenizer>> make_gguf_bpe(const GgufVocabulary& gguf) {
  Pipeline out;
  NIBBLE_ASSIGN_OR_RETURN(const GgufPreTokenizer pre, gguf_pre_tokenizer(gguf.pre));
  NIBBLE_RETURN_IF_ERROR(read_sections(
      cat(R"({"normalizer": )", pre.normalizer, R"(, "pre_tokenizer": )",
          pre.pre_tokenizer, R"(, "decoder": {"type": "ByteLevel"}})"),
      out));
  Vocabulary vocabulary;
  for (size_t i = 0; i < gguf.tokens.size(); ++i)
    vocabulary.put(gguf.tokens[i], static_cast<int32_t>(i));
  MergeList merges;
  for (const std::string& merge : gguf.merges) push_merge(merge, merges);
  BpeOptions options;
  options.ignore_merges = pre.ignore_merges;
  NIBBLE_ASSIGN_OR_RETURN(out.model, make_bpe(std::move(vocabulary), merges, options,
                                              "gguf tokenizer.ggml.merges"));
  add_gguf_specials(gguf, out);
  return make_tokenizer(std::move(out));
}

// The tokens are re-spelled: "x" at the start of a word is U+2581 x, "##x" is x.
Result<std::unique_ptr<Tokenizer>> make_gguf_bert(const GgufVocabulary& gguf) {
  Vocabulary vocabulary;
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    std::string_view token = gguf.tokens[i];
    const int32_t type = i < gguf.types.size() ? gguf.types[i] : 1;
    const bool special = type == 2 || type == 3;
    const bool initial = token.substr(0, kMeta.size()) == kMeta;
    if (initial) token.remove_prefix(kMeta.size());
    vocabulary.put((special || initial ? "" : "##") + std::string(token),
                   static_cast<int32_t>(i));
  }
  Pipeline out;
  out.model = make_word_piece(std::move(vocabulary), "[UNK]", "##", 100);
  NIBBLE_RETURN_IF_ERROR(read_bert_sections(true, true, out));
  return make_tokenizer(std::move(out));
}

Result<std::unique_ptr<Tokenizer>> make_gguf_sentence_piece(const GgufVocabulary& gguf) {
  SentencePieceModel model;
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    const int32_t type = i < gguf.types.size() ? gguf.types[i] : 1;
    if (type < 1 || type > 6)
      return damaged("gguf tokenizer.ggml.token_type",
                     cat("types from 1 to 6 were required; found ", type));
    model.pieces.push_back({gguf.tokens[i], i < gguf.scores.size() ? gguf.scores[i] : 0.f,
                            static_cast<PieceType>(type)});
  }
  model.byte_fallback = true;
  model.unknown = gguf.unknown;
  model.bos = gguf.bos;
  model.eos = gguf.eos;
  model.add_dummy_prefix = gguf.add_space_prefix;
  model.remove_extra_whitespaces = false;
  SpecialTokens special;
  special.add_bos = gguf.add_bos && gguf.bos >= 0;
  special.add_eos = gguf.add_eos && gguf.eos >= 0;
  special.eos = eos_of(gguf);
  return make_tokenizer(std::move(model), std::move(special));
}

}  // namespace

Result<GgufPreTokenizer> gguf_pre_tokenizer(std::string_view pre) {
  GgufPreTokenizer out;
  NIBBLE_ASSIGN_OR_RETURN(out.pre_tokenizer, pre_tokenizer_of(pre));
  out.normalizer = pre == "qwen2" ? R"({"type": "NFC"})" : "null";
  out.ignore_merges = pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3";
  return out;
}

Result<std::unique_ptr<Tokenizer>> make_gpt2_tokenizer(
    const std::map<std::string, Bytes>& files) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonFile json,
                          JsonFile::parse("vocab.json", files.at("vocab.json").text()));
  NIBBLE_ASSIGN_OR_RETURN(const JsonFile config, config_of(files));
  Pipeline out;
  NIBBLE_RETURN_IF_ERROR(
      read_sections(cat(R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": )",
                        json_bool(config.root()["add_prefix_space"].flag()),
                        R"(}, "decoder": {"type": "ByteLevel"}})"),
                    out));
  Vocabulary vocabulary;
  const size_t most = 2 * json.root().size() + 65536;
  NIBBLE_RETURN_IF_ERROR(
      json.root().for_each_member([&](const std::string& piece, JsonView id) -> Status {
        if (id.id() < 0 || static_cast<size_t>(id.id()) >= most)
          return damaged("vocab.json", cat("an id for \"", piece,
                                           "\" was required; found ", id.dump()));
        vocabulary.put(piece, id.id());
        return ok_status();
      }));
  MergeList merges;
  for (std::string_view line : lines_of(files.at("merges.txt").text()))
    if (!line.empty() && (line.substr(0, 8) != "#version" || !merges.empty()))
      push_merge(line, merges);
  NIBBLE_ASSIGN_OR_RETURN(
      out.model, make_bpe(std::move(vocabulary), merges, BpeOptions(), "merges.txt"));
  add_special(out, "<|endoftext|>");
  NIBBLE_ASSIGN_OR_RETURN(out.eos, eos_of(files, out));
  if (out.eos.empty() && !out.added.empty()) out.eos = {out.added[0].id};
  return make_tokenizer(std::move(out));
}

Result<std::unique_ptr<Tokenizer>> make_bert_tokenizer(
    const std::map<std::string, Bytes>& files) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonFile config, config_of(files));
  Vocabulary vocabulary;
  int32_t id = 0;
  for (std::string_view line : lines_of(files.at("vocab.txt").text()))
    vocabulary.put(std::string(line), id++);
  if (vocabulary.find("[UNK]") < 0)
    return damaged("vocab.txt",
                   cat("a token a line, [UNK] among them, was required; found ", id,
                       " lines without it"));
  Pipeline out;
  out.model = make_word_piece(std::move(vocabulary), "[UNK]", "##", 100);
  NIBBLE_RETURN_IF_ERROR(
      read_bert_sections(config.root()["do_lower_case"].flag(true),
                         config.root()["tokenize_chinese_chars"].flag(true), out));
  return make_tokenizer(std::move(out));
}

Result<std::unique_ptr<Tokenizer>> make_sentence_piece_tokenizer(
    const std::map<std::string, Bytes>& files) {
  NIBBLE_ASSIGN_OR_RETURN(SentencePieceModel model,
                          read_sentence_piece(files.at("tokenizer.model").text()));
  NIBBLE_ASSIGN_OR_RETURN(const JsonFile config, config_of(files));
  SpecialTokens special;
  special.add_bos = config.root()["add_bos_token"].flag(true) && model.bos >= 0;
  special.add_eos = config.root()["add_eos_token"].flag(false) && model.eos >= 0;
  NIBBLE_ASSIGN_OR_RETURN(special.eos, read_eos(files, [&](std::string_view token) {
                            for (size_t i = 0; i < model.pieces.size(); ++i)
                              if (model.pieces[i].text == token)
                                return static_cast<int32_t>(i);
                            return -1;
                          }));
  if (special.eos.empty() && model.eos >= 0) special.eos = {model.eos};
  return make_tokenizer(std::move(model), std::move(special));
}

Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufVocabulary& gguf) {
  if (gguf.tokens.empty() ||
      (!gguf.types.empty() && gguf.types.size() != gguf.tokens.size()) ||
      (!gguf.scores.empty() && gguf.scores.size() != gguf.tokens.size()))
    return damaged(
        "gguf tokenizer.ggml.tokens",
        cat("tokens with a score and a type each were required; found ",
            gguf.tokens.size(), ", ", gguf.scores.size(), " and ", gguf.types.size()));
  for (int32_t id : {gguf.bos, gguf.eos, gguf.eot, gguf.unknown})
    if (id >= static_cast<int32_t>(gguf.tokens.size()))
      return damaged(
          "gguf tokenizer.ggml",
          cat("special tokens below ", gguf.tokens.size(), " were required; found ", id));
  if (gguf.model == "gpt2") return make_gguf_bpe(gguf);
  if (gguf.model == "bert") return make_gguf_bert(gguf);
  if (gguf.model == "llama" && gguf.unknown >= 0) return make_gguf_sentence_piece(gguf);
  return error(StatusCode::unsupported,
               "[tokenizer] gguf tokenizer.ggml.model: llama (with an unknown token), "
               "gpt2 or bert was required; found ",
               gguf.model, "; give the model's tokenizer.json with --tokenizer FILE");
}

}  // namespace nibble
