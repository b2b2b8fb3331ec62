#include "recipes/data/bpe_trainer.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "kernels/base/json.h"
#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/pre_tokenize.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

constexpr const char* kBos = "<|bos|>";
constexpr const char* kEos = "<|eos|>";
constexpr int32_t kFirstByte = 2;
constexpr int64_t kSmallest = kFirstByte + 256;

using Pair = std::pair<int32_t, int32_t>;
struct Word {
  std::vector<int32_t> symbols;
  int64_t count = 0;
};

// The frequency of every adjacent pair, kept up to date as words are merged.
class PairCounts {
 public:
  explicit PairCounts(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) count(w, +1);
  }

  // The most frequent pair that occurs at least twice; count 0 when there is none.
  std::pair<Pair, int64_t> best() const {
    std::pair<Pair, int64_t> best{{0, 0}, 1};
    for (const auto& [pair, entry] :
         pairs_)  // ordered, so the lowest ids win among equals
      if (entry.count > best.second) best = {pair, entry.count};
    if (best.second < 2) best.second = 0;
    return best;
  }

  void merge(Pair pair, int32_t merged) {
    const std::vector<size_t> where = pairs_[pair].words;
    size_t previous = SIZE_MAX;
    for (size_t w : where) {
      if (w == previous) continue;  // a word is listed once for each occurrence
      previous = w;
      count(w, -1);
      std::vector<int32_t>& symbols = words_[w].symbols;
      size_t to = 0;
      for (size_t from = 0; from < symbols.size(); ++from, ++to) {
        if (from + 1 < symbols.size() && symbols[from] == pair.first &&
            symbols[from + 1] == pair.second) {
          symbols[to] = merged;
          ++from;
        } else {
          symbols[to] = symbols[from];
        }
      }
      symbols.resize(to);
      count(w, +1);
    }
    pairs_.erase(pair);
  }

 private:
  struct Entry {
    int64_t count = 0;
    std::vector<size_t> words;  // where it occurs, or did
  };
  void count(size_t w, int sign) {
    const Word& word = words_[w];
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      Entry& entry = pairs_[{word.symbols[i], word.symbols[i + 1]}];
      entry.count += sign * word.count;
      if (sign > 0 && (entry.words.empty() || entry.words.back() != w))
        entry.words.push_back(w);
    }
  }

  std::vector<Word> words_;
  std::map<Pair, Entry> pairs_;
};

ordered_json special_token(int id, const char* content) {
  return {{"id", id},        {"content", content}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false},
          {"special", true}};
}
ordered_json byte_level() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", true}};
}
ordered_json template_item(const char* kind, const char* id, int type_id) {
  return {{kind, {{"id", id}, {"type_id", type_id}}}};
}

}  // namespace

Result<std::string> train_bpe(const std::vector<std::string>& lines, int64_t vocabulary) {
  if (vocabulary < kSmallest)
    return error(StatusCode::invalid_argument, "[bpe] vocabulary: at least ", kSmallest,
                 " (256 bytes, BOS and EOS) was required; found ", vocabulary,
                 "; raise it");
  std::unordered_map<std::string, int64_t> frequency;
  std::vector<std::string_view> pieces;
  for (const std::string& line : lines) {
    pieces.clear();
    split_text(line, SplitPattern::gpt2, pieces);
    for (std::string_view piece : pieces) ++frequency[std::string(piece)];
  }
  const std::map<std::string, int64_t> ordered(frequency.begin(), frequency.end());
  std::vector<Word> words;
  for (const auto& [text, count] : ordered) {
    Word word;
    word.count = count;
    for (char byte : text)
      word.symbols.push_back(kFirstByte + static_cast<uint8_t>(byte));
    words.push_back(std::move(word));
  }

  std::vector<std::string> spelled = {kBos, kEos};
  for (const std::string& character : byte_alphabet()) spelled.push_back(character);
  ordered_json merges = ordered_json::array();
  PairCounts pairs(std::move(words));
  std::map<std::string, int32_t> known;
  for (size_t id = 0; id < spelled.size(); ++id)
    known.emplace(spelled[id], static_cast<int32_t>(id));
  while (static_cast<int64_t>(spelled.size()) < vocabulary) {
    const auto [pair, count] = pairs.best();
    if (count == 0)
      return error(StatusCode::invalid_argument,
                   "[bpe] vocabulary: text with enough repeated pairs for ", vocabulary,
                   " ids was required; it has ", spelled.size(),
                   "; give more text or a smaller vocabulary");
    const std::string& left = spelled[static_cast<size_t>(pair.first)];
    const std::string& right = spelled[static_cast<size_t>(pair.second)];
    merges.push_back({left, right});
    // Two ways to one string ("ab"+"c", "a"+"bc") are two merges into one id.
    const auto [entry, is_new] =
        known.emplace(left + right, static_cast<int32_t>(spelled.size()));
    if (is_new) spelled.push_back(entry->first);
    pairs.merge(pair, entry->second);
  }

  ordered_json vocab = ordered_json::object();
  for (size_t id = 0; id < spelled.size(); ++id) vocab[spelled[id]] = id;
  const ordered_json bos = template_item("SpecialToken", kBos, 0),
                     a = template_item("Sequence", "A", 0);
  const ordered_json root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", {special_token(0, kBos), special_token(1, kEos)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level()},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {bos, a}},
        {"pair", {bos, a, template_item("Sequence", "B", 1)}},
        {"special_tokens",
         {{kBos,
           {{"id", kBos},
            {"ids", ordered_json::array({0})},
            {"tokens", ordered_json::array({kBos})}}}}}}},
      {"decoder", byte_level()},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", merges}}}};
  return root.dump(1) + "\n";
}

std::string bpe_tokenizer_config() {
  const ordered_json root = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                             {"bos_token", kBos},
                             {"eos_token", kEos}};
  return root.dump(2) + "\n";
}

}  // namespace nibble
