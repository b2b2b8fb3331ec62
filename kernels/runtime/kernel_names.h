// Which kernel row will serve each layer on this machine, by tensor name.
//
// Of a language model from schemes and shapes alone, so that no weight is repacked: what
// Executor::kernels says, for models that memory does not hold. Of other nets by an
// Executor. Errors: the executor's.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/runtime/executor.h"

namespace nibble {

Result<std::map<std::string, std::string>> kernel_names(
    std::shared_ptr<const Artifact> artifact, const ExecutorOptions& options);

}  // namespace nibble
