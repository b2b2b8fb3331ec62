#include "kernels/tokenizer/models.h"

#include "kernels/tokenizer/trie.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

Status no_unknown_token(std::string_view piece, std::string_view token) {
  return error(StatusCode::invalid_argument, "[tokenizer] text: \"", piece,
               "\" has no token, and the unknown token \"", token,
               "\" is not in the vocabulary; use a tokenizer that covers this text");
}

// Longest match first: https://arxiv.org/abs/1609.08144 section 4.1, as BERT runs it.
class WordPiece final : public TokenModel {
 public:
  WordPiece(std::shared_ptr<const Vocabulary> vocabulary, std::string unknown,
            std::string_view prefix, size_t longest_word)
      : unknown_(std::move(unknown)),
        unknown_id_(vocabulary->find(unknown_)),
        longest_word_(longest_word) {
    for (const auto& [piece, id] : vocabulary->ids) {
      if (piece.empty()) continue;
      initial_.add(piece, id);
      if (piece.size() > prefix.size() &&
          std::string_view(piece).substr(0, prefix.size()) == prefix)
        continuing_.add(std::string_view(piece).substr(prefix.size()), id);
    }
  }

  Status tokenize(std::string_view piece, std::vector<int32_t>& ids) const override {
    const size_t before = ids.size();
    if (count_characters(piece) <= longest_word_) {
      size_t at = 0;
      while (at < piece.size()) {
        const Trie::Match match = (at == 0 ? initial_ : continuing_).longest(piece, at);
        if (match.length == 0) break;
        ids.push_back(match.value);
        at += match.length;
      }
      if (at == piece.size()) return ok_status();
    }
    if (unknown_id_ < 0) return no_unknown_token(piece, unknown_);
    ids.resize(before);
    ids.push_back(unknown_id_);
    return ok_status();
  }

 private:
  Trie initial_, continuing_;
  std::string unknown_;
  int32_t unknown_id_;
  size_t longest_word_;
};

class WordLevel final : public TokenModel {
 public:
  WordLevel(std::shared_ptr<const Vocabulary> vocabulary, std::string unknown)
      : vocabulary_(std::move(vocabulary)), unknown_(std::move(unknown)) {}

  Status tokenize(std::string_view piece, std::vector<int32_t>& ids) const override {
    int32_t id = vocabulary_->find(piece);
    if (id < 0) id = vocabulary_->find(unknown_);
    if (id < 0) return no_unknown_token(piece, unknown_);
    ids.push_back(id);
    return ok_status();
  }

 private:
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::string unknown_;
};

std::string text_or(JsonView value, const char* otherwise) {
  return value.is_string() ? std::string(value.text()) : otherwise;
}

Result<ModelParts> read_word_piece(JsonView model) {
  NIBBLE_ASSIGN_OR_RETURN(Vocabulary read,
                          read_vocabulary(model["vocab"], "model.vocab"));
  const JsonView most = model["max_input_chars_per_word"];
  if (most.exists() && most.id() < 0)
    return damaged_json("model.max_input_chars_per_word", "a number was required; found ",
                        most.dump());
  return make_word_piece(
      std::move(read), text_or(model["unk_token"], "[UNK]"),
      text_or(model["continuing_subword_prefix"], "##"),
      most.exists() ? static_cast<size_t>(most.id()) : 100);  // BERT's own limit
}

Result<ModelParts> read_word_level(JsonView model) {
  NIBBLE_ASSIGN_OR_RETURN(Vocabulary read,
                          read_vocabulary(model["vocab"], "model.vocab"));
  auto vocabulary = std::make_shared<const Vocabulary>(std::move(read));
  return ModelParts{vocabulary, std::make_unique<WordLevel>(
                                    vocabulary, text_or(model["unk_token"], "<unk>"))};
}

struct Row {
  const char* type;
  Result<ModelParts> (*read)(JsonView model);
};
constexpr Row kModels[] = {{"BPE", read_bpe},
                           {"Unigram", read_unigram},
                           {"WordLevel", read_word_level},
                           {"WordPiece", read_word_piece}};

}  // namespace

void Vocabulary::put(std::string piece, int32_t id) {
  if (pieces.size() <= static_cast<size_t>(id))
    pieces.resize(static_cast<size_t>(id) + 1);
  pieces[static_cast<size_t>(id)] = piece;
  ids.insert_or_assign(std::move(piece), id);
}

std::vector<int32_t> byte_tokens(const Vocabulary& vocabulary) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::vector<int32_t> ids(256);
  for (size_t byte = 0; byte < ids.size(); ++byte)
    ids[byte] = vocabulary.find(std::string("<0x") + kDigits[byte >> 4] +
                                kDigits[byte & 15] + ">");
  return ids;
}

ModelParts make_word_piece(Vocabulary vocabulary, std::string unknown,
                           std::string_view prefix, size_t longest_word) {
  auto shared = std::make_shared<const Vocabulary>(std::move(vocabulary));
  auto model =
      std::make_unique<WordPiece>(shared, std::move(unknown), prefix, longest_word);
  return {std::move(shared), std::move(model)};
}

Result<Vocabulary> read_vocabulary(JsonView json, const char* where) {
  if (!json.is_object())
    return damaged_json(where, "an object was required; found ", json.dump());
  Vocabulary vocabulary;
  const size_t most = 2 * json.size() + 65536;  // ids so sparse are not a vocabulary
  NIBBLE_RETURN_IF_ERROR(
      json.for_each_member([&](const std::string& piece, JsonView id) -> Status {
        if (id.id() < 0 || static_cast<size_t>(id.id()) >= most)
          return damaged_json(where, "an id for \"", piece, "\" was required; found ",
                              id.dump());
        vocabulary.put(piece, id.id());
        return ok_status();
      }));
  return vocabulary;
}

Result<ModelParts> read_model(JsonView model) {
  if (!model.is_object())
    return damaged_json("model", "an object was required; found ", model.dump());
  std::string type(model["type"].text());
  if (type.empty())  // files of before 2020 say only by their fields what they are
    type = model["merges"].exists()                      ? "BPE"
           : model["vocab"].is_array()                   ? "Unigram"
           : model["continuing_subword_prefix"].exists() ? "WordPiece"
                                                         : "";
  for (const Row& row : kModels)
    if (type == row.type) return row.read(model);
  std::string names;
  for (const Row& row : kModels) names += cat(names.empty() ? "" : ", ", row.type);
  return unknown_json("model", "one of ", names, " was required; found ",
                      type.empty() ? "no type" : type);
}

}  // namespace nibble
