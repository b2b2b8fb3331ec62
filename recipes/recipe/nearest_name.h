// "did you mean ...?" for misspelt keys, recipes and verbs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
int edit_distance(std::string_view a, std::string_view b);

// The candidate within a third of its length (at least 1, first of the closest); "" when
// none.
std::string nearest_name(std::string_view name,
                         const std::vector<std::string>& candidates);

// " (did you mean 'x'?)" or "".
std::string did_you_mean(std::string_view name,
                         const std::vector<std::string>& candidates);

std::string joined(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace nibble
