// Patterns over layer names: `*` is any run of characters, `?` one, all else itself.
//
// Allocates nothing. Safe to call from any thread.
#pragma once

#include <string_view>

namespace nibble {

bool glob_matches(std::string_view pattern, std::string_view name);

}  // namespace nibble
