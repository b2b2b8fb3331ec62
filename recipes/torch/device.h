// --device of the verbs that LibTorch carries out: cpu, cuda or cuda:N.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace nibble {

// invalid_argument: another name, or a GPU that this machine has not; unsupported: no
// GPU, or a LibTorch without CUDA. verb: for the message.
Status check_device(const std::string& name, const char* verb);

// "cuda" of a process of mpirun: the GPU that is its own, counted among the processes of
// its machine, or shared where those are more. Else the name itself.
std::string own_device(const std::string& name);

}  // namespace nibble
