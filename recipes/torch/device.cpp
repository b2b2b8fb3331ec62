#include "recipes/torch/device.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <cstdlib>

namespace nibble {

Status check_device(const std::string& name, const char* verb) {
  const auto wrong = [&](StatusCode code, const auto&... parts) {
    return error(code, "[", verb, "] --device: ", parts..., "; found ", name,
                 "; leave it out to run on the CPU");
  };
  const bool cuda = name.starts_with("cuda");
  if (name != "cpu" && name != "cuda" &&
      (!name.starts_with("cuda:") || name.size() == 5 ||
       name.find_first_not_of("0123456789", 5) != std::string::npos || name.size() > 7)) {
    return wrong(StatusCode::invalid_argument, "cpu, cuda or cuda:N is required");
  }
  if (!cuda) return ok_status();
  if (!at::hasCUDA())
    return wrong(StatusCode::unsupported, "a LibTorch with CUDA and a GPU are required");
  const int64_t count = at::detail::getCUDAHooks().deviceCount();
  if (at::Device(name).index() >= count) {
    return wrong(StatusCode::invalid_argument, "one of this machine's ", count,
                 " GPUs is required");
  }
  return ok_status();
}

std::string own_device(const std::string& name) {
  const int count =
      at::hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0;
  if (name != "cuda" || count == 0) return name;
  // Open MPI, Hydra (MPICH, Intel MPI), Slurm.
  for (const char* variable :
       {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}) {
    const char* rank = std::getenv(variable);
    if (rank != nullptr) return cat("cuda:", std::atoi(rank) % count);
  }
  return name;
}

}  // namespace nibble
