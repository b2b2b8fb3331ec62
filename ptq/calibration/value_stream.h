// The calibration samples on their way through a program: each sample's live values,
// moved forward a few nodes at a time, so that a layer can be solved before what follows
// it runs.
//
// A sample is a map from value name to tensor; at first the program's inputs. Parameters
// are loaded when the nodes that read them run and dropped after their last reader: the
// whole model is never in memory. Nodes run on `device`; between runs a sample waits
// where it came from, so that whoever reads a value finds it there. Throws nibble::Error.
// Use from one thread; runs samples in parallel with the same results at any thread
// count.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/program/program.h"
#include "ptq/calibration/input_rounding.h"

namespace nibble {

using StreamValues = std::map<std::string, at::Tensor>;

// One node on values and parameters by name (every parameter of its that the node names).
at::Tensor run_node(const Node& node, const StreamValues& values,
                    const StreamValues& parameters, const InputRounding& rounding = {});

class ValueStream {
 public:
  using Values = StreamValues;
  // f32 parameter by its tensor's name, called from one thread, once for each stretch of
  // nodes that reads it.
  using Load = std::function<at::Tensor(const std::string& tensor)>;

  // keep: values that are not dropped after their last reader.
  ValueStream(const Program& program, std::vector<Values> samples, Load load,
              const std::string& device, std::set<std::string> keep = {},
              InputRounding rounding = {});

  int64_t size() const { return static_cast<int64_t>(samples_.size()); }

  // Runs nodes [begin, end) of the program on samples [first, last).
  void run(size_t begin, size_t end, int64_t first, int64_t last);
  const at::Tensor& value(int64_t sample, const std::string& name) const;
  void drop(int64_t sample) { samples_[static_cast<size_t>(sample)].clear(); }

 private:
  void load_parameters(size_t begin, size_t end);

  const Program& program_;
  std::vector<Values> samples_;
  Load load_;
  at::Device device_;
  InputRounding rounding_;
  Values parameters_;
  std::map<std::string, size_t> last_reader_;            // of a value: index of a node
  std::map<std::string, size_t> last_parameter_reader_;  // of a parameter
};

}  // namespace nibble
