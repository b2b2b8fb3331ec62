#include "kernels/tokenizer/normalizers.h"

#include <algorithm>

#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/charsmap.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/sections.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

constexpr const char* kWhere = "normalizer";

Result<NormalizerStep> form_step(NormalForm form) {
  return NormalizerStep([form](std::string& text) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(text, normalize(text, form));
    return ok_status();
  });
}

// Rewrites character by character: put(code point, out) appends what stands for it.
template <class Put>
Status map_characters(std::string& text, const Put& put) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    if (c.code_point < 0) return not_utf8(kWhere, at);
    put(c.code_point, out);
    at += static_cast<size_t>(c.length);
  }
  text = std::move(out);
  return ok_status();
}

bool is_chinese(int32_t c) {  // the blocks that BERT takes for words of one character
  return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
         (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2b73f) ||
         (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

Status bert_clean(std::string& text, bool clean, bool chinese) {
  return map_characters(text, [&](int32_t c, std::string& out) {
    if (clean) {
      const bool line = c == '\t' || c == '\n' || c == '\r';
      if (!line && (c == 0xfffd || is_other(c))) return;  // a form feed goes
      if (is_space(c)) {
        out += ' ';
        return;
      }
    }
    const bool alone = chinese && is_chinese(c);
    if (alone) out += ' ';
    append_utf8(out, c);
    if (alone) out += ' ';
  });
}

Result<NormalizerStep> read_bert(JsonView json) {
  const bool clean = json["clean_text"].flag(true),
             chinese = json["handle_chinese_chars"].flag(true),
             lower = json["lowercase"].flag(true),
             strip = json["strip_accents"].flag(lower);
  return NormalizerStep([=](std::string& text) -> Status {
    if (clean || chinese) NIBBLE_RETURN_IF_ERROR(bert_clean(text, clean, chinese));
    if (strip) {
      NIBBLE_ASSIGN_OR_RETURN(text, normalize(text, NormalForm::nfd));
      NIBBLE_RETURN_IF_ERROR(map_characters(text, [](int32_t c, std::string& out) {
        if (!is_nonspacing_mark(c)) append_utf8(out, c);
      }));
    }
    if (lower) text = lowercase(text);
    return ok_status();
  });
}

Result<NormalizerStep> read_lowercase(JsonView) {
  return NormalizerStep([](std::string& text) {
    text = lowercase(text);
    return ok_status();
  });
}

Result<NormalizerStep> read_strip_accents(JsonView) {
  return NormalizerStep([](std::string& text) {
    return map_characters(text, [](int32_t c, std::string& out) {
      if (!is_mark(c)) append_utf8(out, c);
    });
  });
}

Result<NormalizerStep> read_strip(JsonView json) {
  const bool left = json["strip_left"].flag(true), right = json["strip_right"].flag(true);
  return NormalizerStep([=](std::string& text) {
    size_t begin = 0, end = 0, at = 0;  // end: after the last character that is no space
    while (at < text.size()) {
      const Character c = character_at(text, at);
      at += static_cast<size_t>(c.length);
      if (!is_space(c.code_point))
        end = at;
      else if (left && end == 0)
        begin = at;
    }
    text = text.substr(begin, (right ? std::max(end, begin) : text.size()) - begin);
    return ok_status();
  });
}

Result<NormalizerStep> read_prepend(JsonView json) {
  if (!json["prepend"].is_string())
    return damaged_json(kWhere, "Prepend with a string `prepend` was required; found ",
                        json.dump());
  return NormalizerStep(
      [prefix = std::string(json["prepend"].text())](std::string& text) {
        if (!text.empty()) text = prefix + text;
        return ok_status();
      });
}

Result<NormalizerStep> read_replace(JsonView json) {
  NIBBLE_ASSIGN_OR_RETURN(Pattern pattern, read_pattern(json["pattern"], kWhere));
  if (!json["content"].is_string())
    return damaged_json(kWhere, "Replace with a string `content` was required; found ",
                        json.dump());
  return NormalizerStep(
      [pattern = std::move(pattern), content = std::string(json["content"].text())](
          std::string& text) { return pattern.replace_all(text, content); });
}

// The rules of neural machine translation that SentencePiece's nmt_ models begin with.
Result<NormalizerStep> read_nmt(JsonView) {
  return NormalizerStep([](std::string& text) {
    return map_characters(text, [](int32_t c, std::string& out) {
      if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f ||
          c == 0x8f || c == 0x9f)
        return;
      const bool space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 ||
                         (c >= 0x200b && c <= 0x200f) || c == 0x2028 || c == 0x2029 ||
                         c == 0x2581 || c == 0xfeff || c == 0xfffd;
      append_utf8(out, space ? ' ' : c);
    });
  });
}

Result<NormalizerStep> read_precompiled(JsonView json) {
  NIBBLE_ASSIGN_OR_RETURN(Charsmap map,
                          Charsmap::from_base64(json["precompiled_charsmap"].text(),
                                                "tokenizer.json normalizer"));
  return NormalizerStep([map = std::move(map)](std::string& text) -> Status {
    if (const int64_t at = first_invalid_utf8(text); at >= 0)
      return not_utf8(kWhere, static_cast<size_t>(at));
    text = map.map_graphemes(text);
    return ok_status();
  });
}

Result<NormalizerStep> read_byte_level(JsonView) {
  return NormalizerStep([](std::string& text) {
    text = spell_bytes(text);
    return ok_status();
  });
}

constexpr SectionRow<NormalizerStep> kNormalizers[] = {
    {"BertNormalizer", read_bert},
    {"ByteLevel", read_byte_level},
    {"Lowercase", read_lowercase},
    {"NFC", [](JsonView) { return form_step(NormalForm::nfc); }},
    {"NFD", [](JsonView) { return form_step(NormalForm::nfd); }},
    {"NFKC", [](JsonView) { return form_step(NormalForm::nfkc); }},
    {"NFKD", [](JsonView) { return form_step(NormalForm::nfkd); }},
    {"Nmt", read_nmt},
    {"Precompiled", read_precompiled},
    {"Prepend", read_prepend},
    {"Replace", read_replace},
    {"Strip", read_strip},
    {"StripAccents", read_strip_accents}};

}  // namespace

Result<Normalizer> read_normalizer(JsonView component) {
  Normalizer normalizer;
  NIBBLE_ASSIGN_OR_RETURN(
      normalizer.steps,
      read_section<NormalizerStep>(component, kWhere, "normalizers", kNormalizers));
  return normalizer;
}

}  // namespace nibble
