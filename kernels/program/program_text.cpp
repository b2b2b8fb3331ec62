#include <charconv>
#include <cmath>

#include "kernels/program/program.h"

namespace nibble {
namespace {

constexpr std::string_view kHeader = "nibble-program 1";

// --- printing

bool is_word_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         c == '_' || c == '.' || c == '/' || c == '-';
}

std::string in_quotes(std::string_view text) {
  static const char* digits = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// "-" leads no bare word, so that "->" is never one.
std::string word(std::string_view text) {
  bool bare = !text.empty() && text[0] != '-';
  for (const char c : text) bare = bare && is_word_char(c);
  return bare ? std::string(text) : in_quotes(text);
}

std::string list(const std::vector<std::string>& words, char open, char close) {
  std::string out(1, open);
  for (size_t i = 0; i < words.size(); ++i) out += (i ? ", " : "") + word(words[i]);
  return out + close;
}

std::string real(double value) {
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (std::isnan(value)) return "nan";
  char buffer[40];
  // Without a precision to_chars gives the shortest text that reads back to the same
  // double.
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string attribute_text(const Attribute& attribute) {
  if (const auto* value = std::get_if<int64_t>(&attribute)) return std::to_string(*value);
  if (const auto* value = std::get_if<double>(&attribute)) return real(*value);
  if (const auto* value = std::get_if<std::string>(&attribute)) return in_quotes(*value);
  std::string out = "(";
  const auto& numbers = std::get<std::vector<int64_t>>(attribute);
  for (size_t i = 0; i < numbers.size(); ++i) {
    out += (i ? ", " : "") + std::to_string(numbers[i]);
  }
  return out + ")";
}

std::string block_text(int block) {
  if (block == kFirstBlock) return "first";
  if (block == kLastBlock) return "last";
  return std::to_string(block);
}

// --- parsing: one line at a time

class LineParser {
 public:
  LineParser(std::string_view line, int number) : rest_(line), number_(number) {}

  Status fail(std::string_view expected) const {
    const std::string_view found = rest_.substr(0, 40);
    return error(StatusCode::invalid_argument, "[program] line ", number_, ": expected ",
                 expected, "; found ",
                 found.empty() ? std::string("the end of the line") : in_quotes(found));
  }
  void skip_spaces() {
    while (!rest_.empty() && rest_[0] == ' ') rest_.remove_prefix(1);
  }
  bool at_end() {
    skip_spaces();
    return rest_.empty();
  }
  bool peek(std::string_view token) {
    skip_spaces();
    return rest_.substr(0, token.size()) == token;
  }
  bool accept(std::string_view token) {
    if (!peek(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }
  Status expect(std::string_view token) {
    return accept(token) ? ok_status() : fail(cat("`", token, "`"));
  }
  Status end() { return at_end() ? ok_status() : fail("the end of the line"); }

  Result<std::string> word(std::string_view what) {
    skip_spaces();
    if (peek("\"")) return quoted_text();
    size_t size = 0;
    while (size < rest_.size() && is_word_char(rest_[size])) ++size;
    if (size == 0) return fail(what);
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }

  Result<std::string> quoted_text() {
    NIBBLE_RETURN_IF_ERROR(expect("\""));
    std::string text;
    while (!rest_.empty() && rest_[0] != '"') {
      char c = rest_[0];
      rest_.remove_prefix(1);
      if (c == '\\') {
        if (rest_.empty()) return fail("an escaped character");
        c = rest_[0];
        rest_.remove_prefix(1);
        if (c == 'x') {
          unsigned code = 0;
          const std::string_view two = rest_.substr(0, 2);
          const auto read =
              std::from_chars(two.data(), two.data() + two.size(), code, 16);
          if (read.ec != std::errc() || read.ptr != two.data() + 2) {
            return fail("two hexadecimal digits after \\x");
          }
          rest_.remove_prefix(2);
          c = static_cast<char>(code);
        } else if (c != '"' && c != '\\') {
          return fail("one of \\\" \\\\ \\xNN");
        }
      }
      text += c;
    }
    NIBBLE_RETURN_IF_ERROR(expect("\""));
    return text;
  }

  Result<int64_t> integer(std::string_view what) {
    skip_spaces();
    int64_t value = 0;
    const auto read = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (read.ec != std::errc()) return fail(what);
    rest_.remove_prefix(static_cast<size_t>(read.ptr - rest_.data()));
    return value;
  }

  Result<std::vector<std::string>> words(std::string_view open, std::string_view close) {
    std::vector<std::string> result;
    NIBBLE_RETURN_IF_ERROR(expect(open));
    while (!accept(close)) {
      if (!result.empty()) NIBBLE_RETURN_IF_ERROR(expect(","));
      NIBBLE_ASSIGN_OR_RETURN(std::string text, word(cat("a name or `", close, "`")));
      result.push_back(std::move(text));
    }
    return result;
  }

  Result<Attribute> attribute() {
    if (peek("\"")) {
      NIBBLE_ASSIGN_OR_RETURN(std::string text, quoted_text());
      return Attribute(std::move(text));
    }
    if (accept("(")) {
      std::vector<int64_t> numbers;
      while (!accept(")")) {
        if (!numbers.empty()) NIBBLE_RETURN_IF_ERROR(expect(","));
        NIBBLE_ASSIGN_OR_RETURN(const int64_t number, integer("an integer or `)`"));
        numbers.push_back(number);
      }
      return Attribute(std::move(numbers));
    }
    skip_spaces();
    const size_t size = std::min(rest_.find_first_of(" ,]"), rest_.size());
    const std::string_view text = rest_.substr(0, size);
    const char* last = text.data() + text.size();
    int64_t number = 0;
    double value = 0;
    const auto whole = std::from_chars(text.data(), last, number);
    if (whole.ec == std::errc() && whole.ptr == last) {
      rest_.remove_prefix(size);
      return Attribute(number);
    }
    const auto real = std::from_chars(text.data(), last, value);
    if (real.ec != std::errc() || real.ptr != last || text.empty()) {
      return fail("an integer, a real, quoted text or `(`");
    }
    rest_.remove_prefix(size);
    return Attribute(value);
  }

 private:
  std::string_view rest_;
  int number_;
};

Result<ProgramValue> parse_value(LineParser& line) {
  ProgramValue value;
  NIBBLE_ASSIGN_OR_RETURN(value.name, line.word("a value's name"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string dtype, line.word("an element type"));
  NIBBLE_ASSIGN_OR_RETURN(value.dtype, dtype_from_name(dtype));
  NIBBLE_ASSIGN_OR_RETURN(value.shape, line.words("[", "]"));
  return value;
}

Result<Node> parse_node(LineParser& line) {
  Node node;
  if (line.accept("first ")) {
    node.block = kFirstBlock;
  } else if (line.accept("last ")) {
    node.block = kLastBlock;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t block, line.integer("first, last or a block"));
    if (block < 0 || block >= kLastBlock) return line.fail("a block from 0 to 1048575");
    node.block = static_cast<int>(block);
  }
  NIBBLE_ASSIGN_OR_RETURN(node.op, line.word("an op"));
  NIBBLE_ASSIGN_OR_RETURN(node.name, line.word("a node's name"));
  NIBBLE_ASSIGN_OR_RETURN(node.inputs, line.words("(", ")"));
  NIBBLE_RETURN_IF_ERROR(line.expect("->"));
  NIBBLE_ASSIGN_OR_RETURN(node.outputs, line.words("(", ")"));
  if (line.accept("{")) {
    while (!line.accept("}")) {
      if (!node.parameters.empty()) NIBBLE_RETURN_IF_ERROR(line.expect(","));
      NIBBLE_ASSIGN_OR_RETURN(const std::string role, line.word("a role or `}`"));
      NIBBLE_RETURN_IF_ERROR(line.expect(":"));
      NIBBLE_ASSIGN_OR_RETURN(std::string tensor, line.word("a tensor's name"));
      if (!node.parameters.emplace(role, std::move(tensor)).second) {
        return line.fail(cat("each role once (`", role, "` is repeated)"));
      }
    }
  }
  if (line.accept("[")) {
    while (!line.accept("]")) {
      if (!node.attributes.empty()) NIBBLE_RETURN_IF_ERROR(line.expect(","));
      NIBBLE_ASSIGN_OR_RETURN(const std::string name, line.word("an attribute or `]`"));
      NIBBLE_RETURN_IF_ERROR(line.expect("="));
      NIBBLE_ASSIGN_OR_RETURN(Attribute attribute, line.attribute());
      if (!node.attributes.emplace(name, std::move(attribute)).second) {
        return line.fail(cat("each attribute once (`", name, "` is repeated)"));
      }
    }
  }
  return node;
}

Status parse_line(LineParser& line, Program& program) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string kind, line.word("a keyword"));
  if (kind == "architecture") {
    NIBBLE_ASSIGN_OR_RETURN(program.architecture, line.word("a name"));
  } else if (kind == "context_length") {
    NIBBLE_ASSIGN_OR_RETURN(program.context_length, line.integer("an integer"));
  } else if (kind == "vocabulary") {
    NIBBLE_ASSIGN_OR_RETURN(program.vocabulary, line.integer("an integer"));
  } else if (kind == "input" || kind == "output") {
    NIBBLE_ASSIGN_OR_RETURN(ProgramValue value, parse_value(line));
    (kind == "input" ? program.inputs : program.outputs).push_back(std::move(value));
  } else if (kind == "state") {
    ProgramState state;
    NIBBLE_ASSIGN_OR_RETURN(state.name, line.word("a state's name"));
    NIBBLE_RETURN_IF_ERROR(line.expect("kv_heads"));
    NIBBLE_ASSIGN_OR_RETURN(state.kv_heads, line.integer("an integer"));
    NIBBLE_RETURN_IF_ERROR(line.expect("head_dim"));
    NIBBLE_ASSIGN_OR_RETURN(state.head_dim, line.integer("an integer"));
    if (!line.at_end()) {
      NIBBLE_RETURN_IF_ERROR(line.expect("keys"));
      NIBBLE_ASSIGN_OR_RETURN(const std::string keys, line.word("a scheme"));
      NIBBLE_RETURN_IF_ERROR(line.expect("values"));
      NIBBLE_ASSIGN_OR_RETURN(const std::string values, line.word("a scheme"));
      std::string text = keys + "," + values;
      if (!line.at_end()) {
        NIBBLE_RETURN_IF_ERROR(line.expect("queries"));
        NIBBLE_ASSIGN_OR_RETURN(const std::string queries, line.word("a scheme"));
        text += "," + queries;
      }
      const Result<KvScheme> scheme =
          parse_kv_scheme(text, state.kv_heads, state.head_dim);
      if (!scheme.ok()) {
        return line.fail(cat("a KV cache's schemes (", scheme.status().message(), ")"));
      }
      state.scheme = *scheme;
    }
    program.states.push_back(std::move(state));
  } else if (kind == "node") {
    NIBBLE_ASSIGN_OR_RETURN(Node node, parse_node(line));
    program.nodes.push_back(std::move(node));
  } else {
    return line.fail(cat(
        "architecture, context_length, vocabulary, input, output, state or node instead "
        "of `",
        kind, "`"));
  }
  return line.end();
}

}  // namespace

std::string print_program(const Program& program) {
  std::string out = std::string(kHeader) + "\n";
  out += "architecture " + word(program.architecture) + "\n";
  out += cat("context_length ", program.context_length, "\n");
  out += cat("vocabulary ", program.vocabulary, "\n");
  const auto value_line = [&](const char* kind, const ProgramValue& value) {
    out += cat(kind, " ", word(value.name), " ", dtype_name(value.dtype), " ",
               list(value.shape, '[', ']'), "\n");
  };
  for (const ProgramValue& value : program.inputs) value_line("input", value);
  for (const ProgramValue& value : program.outputs) value_line("output", value);
  for (const ProgramState& state : program.states) {
    out += cat("state ", word(state.name), " kv_heads ", state.kv_heads, " head_dim ",
               state.head_dim);
    if (!state.scheme.is_f32())
      out +=
          cat(" keys ", word(kv_text(state.scheme.keys, state.scheme.key_scale)),
              " values ", word(kv_text(state.scheme.values, state.scheme.value_scale)));
    if (state.scheme.rounds_queries())
      out += cat(" queries ", word(to_string(state.scheme.queries)));
    out += "\n";
  }
  for (const Node& node : program.nodes) {
    out += cat("node ", block_text(node.block), " ", word(node.op), " ", word(node.name),
               " ", list(node.inputs, '(', ')'), " -> ", list(node.outputs, '(', ')'));
    const char* before = " {";
    for (const auto& [role, tensor] : node.parameters) {
      out += cat(before, word(role), ": ", word(tensor));
      before = ", ";
    }
    if (!node.parameters.empty()) out += "}";
    before = " [";
    for (const auto& [name, attribute] : node.attributes) {
      out += cat(before, word(name), " = ", attribute_text(attribute));
      before = ", ";
    }
    if (!node.attributes.empty()) out += "]";
    out += "\n";
  }
  return out;
}

Result<Program> parse_program(std::string_view text) {
  Program program;
  int number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    LineParser line(text.substr(0, end), number);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (number == 1) {
      NIBBLE_RETURN_IF_ERROR(line.expect(kHeader));
      NIBBLE_RETURN_IF_ERROR(line.end());
    } else if (!line.at_end()) {
      NIBBLE_RETURN_IF_ERROR(parse_line(line, program));
    }
  }
  if (number == 0) {
    return error(StatusCode::invalid_argument, "[program] line 1: expected `", kHeader,
                 "`; found an empty text");
  }
  return program;
}

}  // namespace nibble
