// One training step's forward passes, shared among processes (mpirun -n N;
// data-parallel).
//
//   g = ((g_0 + g_1) + g_2) + ...      g_p: the gradient of pass p, of `accumulate`
//   passes r = (1 - m) r + m s_p              r: running statistics of batch norms in
//   place, s_p: those
//                                      of pass p's batch, in the order of the passes; m =
//                                      0.1
//
// Pass p is run by rank p N / passes. The first rank adds what the others send in the
// order of the passes and sends the sum back, so that N processes give the bytes of one.
// Every rank then makes the same optimizer step; no weights travel. All calls are
// collective. Ranks with a GPU each exchange over NCCL, where the build has it; else
// through the CPU, by MPI.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ptq/distributed/device_link.h"
#include "ptq/distributed/ranks.h"
#include "ptq/module/program_module.h"

namespace nibble {

class SharedStep {
 public:
  // invalid_argument, thrown: more ranks than passes.
  SharedStep(ProgramModule module, std::vector<torch::Tensor> trained, int64_t passes);

  // backward(pass) runs a pass forward and backward and returns its loss. Calls it for this
  // rank's passes; leaves the gradients of all in trained[i].grad() and returns the losses' sum,
  // the same on every rank. interrupted: whether any rank was asked to stop meanwhile.
  double run(const std::function<double(int64_t pass)>& backward, bool& interrupted);

 private:
  bool is_mine(int64_t pass) const { return owner(pass) == ranks_.rank(); }
  int owner(int64_t pass) const {
    return static_cast<int>(pass * ranks_.count() / passes_);
  }
  double tracked(const std::function<double(int64_t)>& backward, int64_t pass);
  void move_statistics(const std::vector<torch::Tensor>& seen);
  void send(double loss);
  double add_next(int from);
  void send_to_first(const torch::Tensor& x);
  torch::Tensor received(const torch::Tensor& like, int from);
  void broadcast(torch::Tensor& x);
  void spread(double& loss, bool& interrupted);

  Ranks& ranks_;
  std::unique_ptr<DeviceLink> link_;  // null: tensors go through the CPU
  std::vector<torch::Tensor> trained_;
  std::vector<torch::Tensor> statistics_;  // of batch norms in place
  std::vector<torch::Tensor> seen_;        // m s_p of the last pass
  int64_t passes_;
};

}  // namespace nibble
