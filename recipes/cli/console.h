// What a person sees while a verb works: progress and notes on stderr, never on stdout.
//
// On a terminal one line is redrawn, with the time that is left; elsewhere plain lines,
// one at the start and end of a stage and every tenth of it. Safe to call from any
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ptq/progress.h"

namespace nibble {

// The verb's progress line. Copies share it; the last copy to go ends the line.
Progress make_progress();

// The same for one stage that only counts.
std::function<void(int64_t, int64_t)> make_counter(const std::string& stage,
                                                   const std::string& what);

// A line on stderr, above the progress line.
void note(const std::string& line);

}  // namespace nibble
