// nlohmann-json, its two types and its parser compiled once for all files (json.cpp):
// every file that spells json::parse compiles a parser of its own, which is most of its
// time.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

extern template class nlohmann::basic_json<>;
extern template class nlohmann::basic_json<nlohmann::ordered_map>;

namespace nibble {

// Discarded (is_discarded()) unless text is JSON.
nlohmann::json parse_json(std::string_view text);
nlohmann::ordered_json parse_ordered_json(std::string_view text);

// Throws nlohmann::json::parse_error, which names line and column, unless text is JSON.
nlohmann::json parse_json_or_throw(std::string_view text);
nlohmann::ordered_json parse_ordered_json_or_throw(std::string_view text);

}  // namespace nibble
