// Links over NCCL, where CMake has found it beside a LibTorch with CUDA. MPI brings the
// ranks together: the first one's id goes to all.
#include <ATen/ATen.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "ptq/distributed/device_link.h"
#include "ptq/error.h"

namespace nibble {
namespace {

void check(ncclResult_t result, const char* call) {
  if (result == ncclSuccess) return;
  throw Error(error(StatusCode::internal, "[distributed] NCCL: ", call, ": ",
                    ncclGetErrorString(result)));
}

void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  throw Error(error(StatusCode::internal, "[distributed] CUDA: ", call, ": ",
                    cudaGetErrorString(result)));
}

// Where a GPU sits; empty: no GPU.
std::string place_of(at::Device device) {
  if (!device.is_cuda()) return "";
  int index = device.index();
  if (index < 0) check(cudaGetDevice(&index), "cudaGetDevice");
  char bus[32] = {};
  check(cudaDeviceGetPCIBusId(bus, sizeof(bus), index), "cudaDeviceGetPCIBusId");
  return bus;
}

// Of this machine: bus numbers of two machines may be the same, and such ranks go through
// the CPU, which is right as well.
bool have_one_each(Ranks& ranks, const std::string& mine) {
  std::vector<std::string> places;
  for (int rank = 0; rank < ranks.count(); ++rank)
    places.push_back(ranks.broadcast(rank == ranks.rank() ? mine : std::string(), rank));
  std::sort(places.begin(), places.end());
  return !places.front().empty() &&
         std::adjacent_find(places.begin(), places.end()) == places.end();
}

class NcclLink : public DeviceLink {
 public:
  NcclLink(Ranks& ranks, at::Device device) : device_(device.index()) {
    if (device_ < 0) check(cudaGetDevice(&device_), "cudaGetDevice");
    ncclUniqueId id{};
    if (ranks.is_first()) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    const std::string bytes =
        ranks.broadcast(std::string(id.internal, sizeof(id.internal)), 0);
    std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
    check(cudaSetDevice(device_), "cudaSetDevice");
    check(ncclCommInitRank(&communicator_, ranks.count(), id, ranks.rank()),
          "ncclCommInitRank");
  }
  ~NcclLink() override {
    cudaSetDevice(device_);
    cudaStreamSynchronize(kDefaultStream);
    ncclCommDestroy(communicator_);
  }
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  void send(const at::Tensor& tensor, int to) override {
    use(tensor);
    check(ncclSend(tensor.data_ptr(), tensor.nbytes(), ncclUint8, to, communicator_,
                   kDefaultStream),
          "ncclSend");
  }
  void receive(at::Tensor& tensor, int from) override {
    use(tensor);
    check(ncclRecv(tensor.data_ptr(), tensor.nbytes(), ncclUint8, from, communicator_,
                   kDefaultStream),
          "ncclRecv");
  }
  void broadcast(at::Tensor& tensor, int from) override {
    use(tensor);
    check(ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclUint8,
                        from, communicator_, kDefaultStream),
          "ncclBroadcast");
  }

 private:
  // LibTorch's, unless someone chose another, which nibble does not.
  static constexpr cudaStream_t kDefaultStream = nullptr;

  void use(const at::Tensor& tensor) const {
    if (!tensor.is_cuda() || !tensor.is_contiguous() || tensor.get_device() != device_) {
      throw Error(
          error(StatusCode::internal,
                "[distributed] a contiguous tensor of this rank's GPU is required; "
                "found another"));
    }
    check(cudaSetDevice(device_), "cudaSetDevice");
  }

  int device_;
  ncclComm_t communicator_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceLink> DeviceLink::create(Ranks& ranks, at::Device device) {
  if (ranks.count() == 1 || !have_one_each(ranks, place_of(device))) return nullptr;
  return std::make_unique<NcclLink>(ranks, device);
}

}  // namespace nibble
