// Cross-layer equalization of convolutional nets: Nagel et al., "Data-Free Quantization
// Through Weight Equalization and Bias Correction", arXiv 1906.04721, sec. 4.1.
//
// A channel c that a convolution or linear layer makes, and that others read behind
// ReLUs, poolings and concats, is divided by s_c in its maker and multiplied by it in its
// readers:
//
//   s_c = a_c^alpha / w_c^(1 - alpha) / g
//   a_c  the channel's largest magnitude on the calibration images
//   w_c  max over readers and their rows o of max|W[o, c]| / max|W[o]|
//   g    the geometric mean over all channels that meet in one concat: only ratios matter
//
// The paper balances ranges of weights, which is what a scale a tensor needs. With a
// scale a row the maker's rows cost nothing, and what is balanced is the activations, of
// one scale a tensor, against the readers' rows: SmoothQuant's eq. 4 (arXiv 2211.10438).
// At alpha 1 all channels fill the codes on these images, and clip on others.
#include <ATen/ATen.h>

#include <cmath>
#include <cstring>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "kernels/program/edits/scale_channels.h"
#include "ptq/calibration/samples.h"
#include "ptq/distributed/ranks.h"
#include "ptq/error.h"
#include "ptq/methods/round_trip.h"
#include "ptq/methods/transform.h"
#include "ptq/module/program_module.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr double kLeast = 1e-3;  // of the largest: a channel of zeros needs no factor

// A weight that reads some of its columns, or with `rows` some of its rows (depthwise),
// from the maker.
struct Reader {
  const Node* node = nullptr;
  int64_t channels = 0;  // of what the node reads
  int64_t first = 0;     // the maker's channel 0 is this one of them
  bool by_row = false;
};

struct Group {
  const Node* maker = nullptr;
  std::string value;  // its output, or that of the ReLU that alone reads it
  int64_t channels = 0;
  std::vector<Reader> readers;
  std::string meets;  // the value of the outermost concat, else the own
};

bool is_layer(const Node& node) { return node.op == "conv2d" || node.op == "linear"; }

class Finder {
 public:
  Finder(const Program& program, const std::map<std::string, Tensor>& tensors)
      : program_(program), tensors_(tensors) {
    for (const Node& node : program.nodes) {
      for (const auto& [role, name] : node.parameters) ++named_[name];
      channels_[node.outputs.at(0)] = channels_after(node);
    }
  }

  std::vector<Group> groups() const {
    std::vector<Group> found;
    for (const Node& node : program_.nodes) {
      if (!is_layer(node) || !owns(node)) continue;
      Group group{.maker = &node,
                  .value = node.outputs.at(0),
                  .channels = tensors_.at(node.parameter("weight")).rows(),
                  .readers = {},
                  .meets = node.outputs.at(0)};
      const std::vector<const Node*> readers = program_.consumers(group.value);
      if (readers.size() == 1 && readers[0]->op == "relu") {
        group.value = group.meets = readers[0]->outputs.at(0);
      }
      if (follow(group.value, 0, group) && !group.readers.empty()) {
        found.push_back(std::move(group));
      }
    }
    return found;
  }

 private:
  bool owns(const Node& node) const {
    for (const auto& [role, name] : node.parameters) {
      if (named_.at(name) != 1 || !tensors_.count(name)) return false;
    }
    return true;
  }

  int64_t channels_after(const Node& node) const {
    if (is_layer(node)) {
      const auto weight = tensors_.find(node.parameter("weight"));
      return weight == tensors_.end() ? 0 : weight->second.rows();
    }
    int64_t channels = 0;
    const size_t count = node.op == "concat" ? node.inputs.size() : 1;
    for (size_t i = 0; i < std::min(count, node.inputs.size()); ++i) {
      const auto input = channels_.find(node.inputs[i]);
      if (input == channels_.end()) return 0;
      channels += input->second;
    }
    return channels;
  }

  // Everybody who reads the value, in which the maker's channels begin at `first`; false
  // where a factor cannot pass.
  bool follow(const std::string& value, int64_t first, Group& group) const {
    for (const ProgramValue& output : program_.outputs) {
      if (output.name == value) return false;
    }
    for (const Node* reader : program_.consumers(value)) {
      const std::string& op = reader->op;
      if (op == "relu" || op == "max_pool" || op == "global_average_pool" ||
          op == "flatten") {
        if (!follow(reader->outputs.at(0), first, group)) return false;
      } else if (op == "concat") {
        group.meets = reader->outputs.at(0);
        int64_t begin = first;
        for (const std::string& input : reader->inputs) {
          if (input == value) break;
          begin += channels_.at(input);
        }
        if (!follow(reader->outputs.at(0), begin, group)) return false;
      } else if (!is_layer(*reader) || !owns(*reader) || !reads(*reader, first, group)) {
        return false;
      }
    }
    return true;
  }

  bool reads(const Node& node, int64_t first, Group& group) const {
    const Tensor& weight = tensors_.at(node.parameter("weight"));
    const int64_t channels = channels_.at(node.inputs.at(0));
    const int64_t groups = node.op == "conv2d" ? node.integer("groups", 1) : 1;
    if (groups == 1 && channels > 0 && weight.cols() % channels == 0) {
      group.readers.push_back({&node, channels, first});
      return true;
    }
    if (groups != channels || weight.rows() != channels) return false;
    group.readers.push_back({&node, channels, first, /*by_row=*/true});
    return true;
  }

  const Program& program_;
  const std::map<std::string, Tensor>& tensors_;
  std::map<std::string, int> named_;
  std::map<std::string, int64_t> channels_;  // of a value; 0: unknown
};

// max |x| of every channel of the values, over the calibration images.
std::map<std::string, at::Tensor> channel_maxima(const TransformProblem& problem,
                                                 const std::vector<Group>& groups) {
  const Program& program = problem.model.program;
  std::set<std::string> watched;
  for (const Group& group : groups) watched.insert(group.value);
  ValueStream stream(
      program, make_samples(problem.model, problem.plan, problem.data),
      [&](const std::string& name) { return to_torch(problem.model.tensors.at(name)); },
      problem.data.device, watched);
  std::map<std::string, at::Tensor> most;
  // A maximum is the same in any order: no more samples at once than run side by side.
  for (int64_t first = 0; first < stream.size(); first += thread_count()) {
    throw_if_error(check_cancelled("calibrate"));
    const int64_t last = std::min<int64_t>(stream.size(), first + thread_count());
    stream.run(0, program.nodes.size(), first, last);
    for (int64_t sample = first; sample < last; ++sample) {
      for (const std::string& name : watched) {
        const at::Tensor x = stream.value(sample, name).abs();
        const at::Tensor largest =
            (x.dim() == 4 ? x.amax({0, 2, 3}) : x.reshape({-1, x.size(-1)}).amax(0))
                .to(at::kDouble);
        at::Tensor& so_far = most[name];
        so_far = so_far.defined() ? at::maximum(so_far, largest) : largest;
      }
      stream.drop(sample);
    }
    if (problem.progress) problem.progress("equalize", "channels", last, stream.size());
  }
  return most;
}

// w_c of the header.
std::vector<double> weight_maxima(const Group& group,
                                  const std::map<std::string, Tensor>& tensors) {
  at::Tensor most = at::zeros({group.channels}, at::kDouble);
  for (const Reader& reader : group.readers) {
    if (reader.by_row) continue;  // its rows have scales of their own
    const at::Tensor weight =
        to_matrix(tensors.at(reader.node->parameter("weight"))).abs().to(at::kDouble);
    const int64_t times = weight.size(1) / reader.channels;
    const at::Tensor share = weight / weight.amax(1, true).clamp_min(1e-30);
    most = at::maximum(most, share.view({weight.size(0), -1, times})
                                 .amax({0, 2})
                                 .narrow(0, reader.first, group.channels));
  }
  const double* begin = most.data_ptr<double>();
  return {begin, begin + group.channels};
}

void apply(const Group& group, const std::vector<double>& scale,
           std::map<std::string, Tensor>& tensors) {
  ChannelScaling scaling{
      .makers = {}, .readers = {}, .channel_of_column = {}, .scale = scale};
  for (const auto& [role, name] : group.maker->parameters) scaling.makers.push_back(name);
  throw_if_error(scale_channels(scaling, tensors));
  for (const Reader& reader : group.readers) {
    const std::string& name = reader.node->parameter("weight");
    if (reader.by_row) {  // rows of others keep theirs
      std::vector<double> inverse(static_cast<size_t>(reader.channels), 1.0);
      for (size_t c = 0; c < scale.size(); ++c)
        inverse[static_cast<size_t>(reader.first) + c] = 1 / scale[c];
      throw_if_error(scale_channels(
          {.makers = {name}, .readers = {}, .channel_of_column = {}, .scale = inverse},
          tensors));
      continue;
    }
    std::vector<double> factors(static_cast<size_t>(reader.channels), 1.0);
    std::copy(scale.begin(), scale.end(), factors.begin() + reader.first);
    std::vector<int64_t> channel_of_column;
    const int64_t columns = tensors.at(name).cols(), times = columns / reader.channels;
    for (int64_t j = 0; j < columns; ++j) channel_of_column.push_back(j / times);
    throw_if_error(scale_channels({.makers = {},
                                   .readers = {name},
                                   .channel_of_column = channel_of_column,
                                   .scale = factors},
                                  tensors));
  }
}

// The first rank's on every rank: makes of CPU may differ in the last bit of a power.
void share(std::vector<double>& scale) {
  const std::string own(reinterpret_cast<const char*>(scale.data()),
                        scale.size() * sizeof(double));
  const std::string first = Ranks::instance().broadcast(own, 0);
  std::memcpy(scale.data(), first.data(), own.size());
}

}  // namespace

void transform_equalize(const TransformProblem& problem) {
  const OneThread one_thread;
  const at::NoGradGuard no_gradients;
  const Artifact before = problem.model;  // shares its tensors
  const std::vector<Group> groups = Finder(before.program, before.tensors).groups();
  if (groups.empty()) {
    throw Error(error(
        StatusCode::invalid_argument,
        "[equalize] convolutions or linear layers that read each other through ReLUs, "
        "poolings and concats are required; found none; leave the transform out"));
  }
  const std::map<std::string, at::Tensor> most = channel_maxima(problem, groups);
  std::vector<std::vector<double>> scales;
  std::map<std::string, std::pair<double, int64_t>> logarithms;  // by where they meet
  const double alpha = problem.plan.equalize_alpha;
  for (const Group& group : groups) {
    const at::Tensor& a = most.at(group.value);
    const std::vector<double> w = weight_maxima(group, before.tensors);
    const double least = kLeast * a.max().item<double>();
    std::vector<double> scale(w.size(), 1.0);
    for (size_t c = 0; c < w.size(); ++c) {
      const double range = std::max(a.data_ptr<double>()[c], least);
      if (range > 0) {
        scale[c] = std::pow(range, alpha) / std::pow(std::max(w[c], kLeast), 1 - alpha);
      }
      auto& [sum, count] = logarithms[group.meets];
      sum += std::log(scale[c]);
      ++count;
    }
    scales.push_back(std::move(scale));
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const auto& [sum, count] = logarithms.at(groups[i].meets);
    for (double& s : scales[i]) s /= std::exp(sum / static_cast<double>(count));
    share(scales[i]);
    apply(groups[i], scales[i], problem.model.tensors);
    const auto [low, high] = std::minmax_element(scales[i].begin(), scales[i].end());
    problem.notes[groups[i].maker->parameter("weight")] =
        cat("equalized: channels divided by ", *low, " to ", *high);
  }
}

}  // namespace nibble
