// Which values cannot be below 0, whatever the inputs are: unsigned codes serve them.
//
// After relu, sigmoid, softmax and sqrt; a value times itself; sums and products of such
// values; what only moves, chooses or averages them.
//
// A program's input may be negative. Safe to call from any thread.
#pragma once

#include <string>

#include "kernels/program/program.h"

namespace nibble {

bool never_negative(const Program& program, const std::string& value);

}  // namespace nibble
