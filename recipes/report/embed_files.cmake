# Writes OUTPUT, a .cpp that holds every file of FILES (a list) as bytes, and the lookup that
# recipes/report/embedded_files.h declares. A file is found under its own name without folders.
#
#   cmake -DOUTPUT=embedded_files.cpp "-DFILES=a.yaml;b.js" -P embed_files.cmake
#
# Bytes and not string literals: no character of a file can then end the literal early.
cmake_minimum_required(VERSION 3.25)
if(NOT OUTPUT)
  message(FATAL_ERROR "[embed_files] OUTPUT: required; found nothing; pass -DOUTPUT=FILE")
endif()

set(arrays "")
set(rows "")
set(index 0)
list(REMOVE_ITEM FILES "")
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME)
  file(READ "${file}" bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  # The closing 0 keeps an empty file legal; the size leaves it out.
  string(APPEND arrays "const unsigned char kFile${index}[] = {\n${bytes}0};\n")
  string(APPEND rows "    {\"${name}\", kFile${index}, sizeof(kFile${index}) - 1},\n")
  math(EXPR index "${index} + 1")
endforeach()

set(text "// Made by recipes/report/embed_files.cmake.
#include \"recipes/report/embedded_files.h\"

namespace nibble {
namespace {
${arrays}
struct Row {
  const char* name\;
  const unsigned char* bytes\;
  unsigned long size\;
}\;
const Row kRows[] = {
${rows}    {nullptr, nullptr, 0}}\;
}  // namespace

std::string_view embedded_file(std::string_view name) {
  for (const Row* row = kRows\; row->name != nullptr\; ++row) {
    if (name == row->name) return {reinterpret_cast<const char*>(row->bytes), row->size}\;
  }
  return {}\;
}

std::vector<std::string_view> embedded_file_names() {
  std::vector<std::string_view> names\;
  for (const Row* row = kRows\; row->name != nullptr\; ++row) names.emplace_back(row->name)\;
  return names\;
}

}  // namespace nibble
")
string(REPLACE "\\;" ";" text "${text}")
file(WRITE "${OUTPUT}" "${text}")
