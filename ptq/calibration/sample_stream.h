// The calibration samples on their way through a program: each sample's live values,
// moved forward a few nodes at a time, so that a layer can be solved before what follows
// it runs.
//
// A sample is a map from value name to tensor; at first the program's inputs. Parameters
// are loaded when the nodes that read them run and dropped after their last reader: the
// whole model is never in memory. With a spill file, parked samples wait on disk; what
// they give is the same to the bit. Nodes run on the device that samples and parameters
// are on. Throws nibble::Error. Use from one thread; runs samples in parallel with the
// same results at any thread count.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/program/program.h"
#include "ptq/calibration/input_rounding.h"
#include "ptq/calibration/spill_file.h"

namespace nibble {

class SampleStream {
 public:
  using Values = std::map<std::string, at::Tensor>;
  // f32 parameter by its tensor's name, called from one thread, once for each stretch of
  // nodes that reads it.
  using Load = std::function<at::Tensor(const std::string& tensor)>;
  // The rows `ids` (int64, any shape) of an embedding's table: [ids..., features].
  using Rows = std::function<at::Tensor(const std::string& tensor, const at::Tensor& ids)>;

  // rows: how an embedding reads its table, which is not loaded. rounding: empty, or what
  // nodes' inputs go through.
  SampleStream(const Program& program, std::vector<Values> samples, Load load, Rows rows,
               SpillFile* spill = nullptr, InputRounding rounding = {});

  int64_t size() const { return static_cast<int64_t>(samples_.size()); }

  // Runs nodes [begin, end) of the program on samples [first, last).
  void run(size_t begin, size_t end, int64_t first, int64_t last);
  at::Tensor value(int64_t sample, const std::string& name) const;
  Values values(int64_t sample) const;  // all that are live
  // Samples [first, last) are not needed soon: with a spill file they go to disk.
  void park(int64_t first, int64_t last);
  // Before memory is needed for a solve: what comes next loads what it reads again.
  void forget_parameters() { parameters_.clear(); }
  // The same samples where they stand, to go a way of their own. What waits on disk is
  // copied there.
  std::unique_ptr<SampleStream> fork() const;
  void drop();  // every sample

 private:
  // A value in memory, on disk, or both.
  struct Held {
    at::Tensor tensor;
    at::Tensor like;     // of a parked one: type and shape, no data
    at::Device device = at::kCPU;  // of a parked one: where it goes back to
    int64_t place = -1;  // in the spill file
  };
  using Sample = std::map<std::string, Held>;

  void load_parameters(size_t begin, size_t end);
  at::Tensor in_memory(const Held& held) const;
  void forget(Sample& sample, const std::string& name);
  at::Tensor run_node(const Node& node, const Sample& sample) const;

  const Program& program_;
  std::vector<Sample> samples_;
  Load load_;
  Rows rows_;
  SpillFile* spill_;
  InputRounding rounding_;
  Values parameters_;
  std::map<std::string, size_t> last_reader_;            // of a value: index of a node
  std::map<std::string, size_t> last_parameter_reader_;  // of a parameter
};

}  // namespace nibble
