// Takes nccl.cpp's place in a build without NCCL: tensors go through the CPU.
#include "ptq/distributed/device_link.h"

namespace nibble {

std::unique_ptr<DeviceLink> DeviceLink::create(Ranks&, at::Device) { return nullptr; }

}  // namespace nibble
