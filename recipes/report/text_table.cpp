#include "recipes/report/text_table.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>

namespace nibble {
namespace {

// Characters and not bytes: continuation bytes of UTF-8 take no column.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool looks_numeric(const std::string& cell) {
  return cell.empty() || (cell[0] >= '0' && cell[0] <= '9') || cell[0] == '-' ||
         cell[0] == '+';
}

}  // namespace

std::string table_text(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  std::vector<bool> right;
  for (size_t r = 0; r < rows.size(); ++r) {
    widths.resize(std::max(widths.size(), rows[r].size()), 0);
    right.resize(widths.size(), true);
    for (size_t c = 0; c < rows[r].size(); ++c) {
      widths[c] = std::max(widths[c], width(rows[r][c]));
      if (r > 0 && !looks_numeric(rows[r][c])) right[c] = false;
    }
  }
  std::string text;
  for (const std::vector<std::string>& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - width(row[c]), ' ');
      if (c > 0) line += "  ";
      line += right[c] ? padding + row[c] : row[c] + padding;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    text += line + "\n";
  }
  return text;
}

int64_t parse_bytes(const std::string& text) {
  size_t at = 0;
  double value = -1;
  try {
    value = std::stod(text, &at);
  } catch (const std::exception&) {
    return -1;
  }
  std::string unit;
  for (const char c : text.substr(at)) {
    if (c != ' ') unit += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  const double base = unit.size() == 2 && unit[1] == 'b' ? 1000 : 1024;
  if (!unit.empty() && unit != "b") {
    const size_t power = std::string("kmgt").find(unit[0]);
    const std::string rest = unit.substr(1);
    if (power == std::string::npos || !(rest.empty() || rest == "b" || rest == "ib"))
      return -1;
    value *= std::pow(base, static_cast<double>(power + 1));
  }
  return value >= 0 && value < 9e18 ? static_cast<int64_t>(value) : -1;
}

std::string bytes_text(int64_t bytes) {
  char buffer[64];
  const double value = static_cast<double>(bytes);
  if (bytes < 1000) {
    std::snprintf(buffer, sizeof(buffer), "%lld B", static_cast<long long>(bytes));
  } else if (bytes < 1000000) {
    std::snprintf(buffer, sizeof(buffer), "%.1f kB", value / 1e3);
  } else if (bytes < 1000000000) {
    std::snprintf(buffer, sizeof(buffer), "%.2f MB", value / 1e6);
  } else {
    std::snprintf(buffer, sizeof(buffer), "%.2f GB", value / 1e9);
  }
  return buffer;
}

std::string number_text(double value, int digits) {
  char buffer[64];
  if (value == 0) return "0";
  if (!std::isfinite(value))
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const double magnitude = std::fabs(value);
  if (magnitude >= 1e-5 && magnitude < 1e9) {
    const int whole = static_cast<int>(std::floor(std::log10(magnitude))) + 1;
    std::snprintf(buffer, sizeof(buffer), "%.*f", std::max(digits - whole, 0), value);
  } else {
    std::snprintf(buffer, sizeof(buffer), "%.*g", digits, value);
  }
  return buffer;
}

}  // namespace nibble
