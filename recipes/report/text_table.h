// Tables and numbers as a terminal shows them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

// Columns padded to their widest cell, two spaces between; the first row is the header. A
// column whose cells below the header all begin with a digit, a sign or "-" is set right.
std::string table_text(const std::vector<std::vector<std::string>>& rows);

// "6.83 MB", "123.0 kB", "85 B" (powers of 1000).
std::string bytes_text(int64_t bytes);

// "3GiB", "500 MB", "2g" (powers of 1024 with an i or alone, of 1000 with a B alone), a plain
// number of bytes; -1: none of these.
int64_t parse_bytes(const std::string& text);

// This many significant digits, without an exponent where that stays short: 15.187,
// 0.00093.
std::string number_text(double value, int digits = 5);

}  // namespace nibble
