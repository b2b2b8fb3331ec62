// What takes the weights of a Hugging Face directory while its reader decodes them.
//
// Called with each weight as soon as it is there, from several threads; one.coded holds
// it and keeps it no longer than the call: a model's codes are never all in memory. A
// failure ends the reading.
#pragma once

#include <functional>
#include <string>

#include "kernels/base/status.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

using EachWeight = std::function<Status(const std::string& weight, Decoded& one)>;

}  // namespace nibble
