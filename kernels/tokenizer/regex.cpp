#include "kernels/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/sections.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

template <auto free>
struct Free {
  template <class T>
  void operator()(T* value) const {
    free(value);
  }
};
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>>;

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Code {
  std::unique_ptr<pcre2_code, Free<pcre2_code_free>> code;
};

Result<Regex> Regex::compile(std::string_view expression, const char* where) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string syntax, pcre2_syntax(expression, where));
  int failed = 0;
  PCRE2_SIZE place = 0;
  std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  auto code = std::make_shared<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(syntax.data()),
                                 syntax.size(), PCRE2_UTF | PCRE2_UCP, &failed, &place,
                                 context.get()));
  if (!code->code)
    return error(StatusCode::unsupported, "[tokenizer] tokenizer.json ", where,
                 ": a regular expression that PCRE2 reads was required; found ",
                 expression, ", which as ", syntax, " has at byte ", place, ": ",
                 pcre2_message(failed),
                 "; evaluate with token ids from a safetensors file instead");
  // Where the machine allows no compiled code, pcre2_match interprets.
  (void)pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

Status Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  if (const int64_t invalid = first_invalid_utf8(text); invalid >= 0)
    return not_utf8("regular expression", static_cast<size_t>(invalid));
  const pcre2_code* code = code_->code.get();
  const MatchData data(pcre2_match_data_create_from_pattern(code, nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  const JitStack stack(pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr));
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t from = 0, last_end = SIZE_MAX;
  while (from <= text.size()) {
    const int found = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                  data.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      return error(StatusCode::resource_exhausted,
                   "[tokenizer] regular expression: matching within PCRE2's limits was "
                   "required; at byte ",
                   from, " of ", text.size(), " it says: ", pcre2_message(found),
                   "; cut the text into shorter ones");
    const size_t begin = pcre2_get_ovector_pointer(data.get())[0],
                 end = pcre2_get_ovector_pointer(data.get())[1];
    if (end > begin) {
      matches.push_back({begin, end});
      from = end;
    } else {  // an empty match counts, but not where the last match ended
      if (begin != last_end) matches.push_back({begin, end});
      from = end < text.size() ? end + static_cast<size_t>(character_at(text, end).length)
                               : text.size() + 1;
    }
    last_end = end;
  }
  return ok_status();
}

}  // namespace nibble
