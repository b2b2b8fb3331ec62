// The files compiled into the binary: the built-in recipes and the report's plotting
// script.
//
// embed_files.cmake writes the definitions; a file is found under its name without
// folders
// ("w8a16.yaml", "chart.min.js"). Safe to call from any thread; the bytes live for ever.
#pragma once

#include <string_view>
#include <vector>

namespace nibble {

// The file's bytes; empty (data() == nullptr) when no file has that name.
std::string_view embedded_file(std::string_view name);

// Every name, in the order of the build's list (by name within a folder).
std::vector<std::string_view> embedded_file_names();

}  // namespace nibble
