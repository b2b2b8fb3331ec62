// Several recipes on one model, side by side, sorted by quality per byte.
//
//   loss x size   KL (text) or share of wrong classes (images), times the weights' MB:
//   the
//                 smaller, the more quality a byte buys. Without figures the size alone.
//   best          no other recipe of these is both smaller and better
#pragma once

#include "recipes/report/run_report.h"

namespace nibble {

// The order of the reports, the most quality per byte first; equal ones by name.
std::vector<RunReport> sorted_by_quality_per_byte(std::vector<RunReport> reports);
// One row a recipe, in the given order.
std::string comparison_table(const std::vector<RunReport>& reports);
std::string comparison_json(const std::vector<RunReport>& reports,
                            const std::string& output);
// One page: the float model and every recipe, size against quality. reports not empty.
RunReport combined_report(const std::vector<RunReport>& reports);

}  // namespace nibble
