#include "recipes/eval/signal_quality.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "kernels/base/cancel.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 64;  // samples or streams that go through together, at most
constexpr int64_t kMostBytes = int64_t{64} << 20;  // and what their values may take
constexpr int64_t kUnitSteps = 32;  // of a stream that are drawn together
constexpr double kNothing = 1e-30;  // sum of squares of an output of zeros

// One net on its way through some of the streams (or samples), step by step.
class Course {
 public:
  Course(Executor& net, const SignalSet& set, int64_t first, int64_t count)
      : net_(net), set_(set), first_(first), picks_(static_cast<size_t>(count)) {
    const Program& program = net.artifact().program;
    for (const ProgramValue& input : program.inputs) {
      const auto start = set.starts.find(input.name);
      if (start == set.starts.end()) continue;
      std::iota(picks_.begin(), picks_.end(), first);
      states_[input.name] = rows_to_batch(input, start->second, picks_);
    }
  }

  // The step's outputs, in the program's shapes. states: before it (may be null).
  Result<std::vector<NetOutput>> step(int64_t step,
                                      std::map<std::string, std::vector<float>>* states) {
    const Program& program = net_.artifact().program;
    if (states != nullptr) *states = states_;
    std::iota(picks_.begin(), picks_.end(), step * set_.streams + first_);
    const auto batch = static_cast<int64_t>(picks_.size());
    std::map<std::string, std::vector<float>> given;
    std::vector<NetInput> inputs;
    for (const ProgramValue& input : program.inputs) {
      if (program.consumers(input.name).empty()) continue;
      const auto state = states_.find(input.name);
      const auto rows = set_.inputs.find(input.name);
      if (state == states_.end() && rows == set_.inputs.end()) {
        return error(StatusCode::invalid_argument, "[evaluate] ", input.name,
                     ": values for this input were required; the data has none; give "
                     "data of this net");
      }
      if (state == states_.end())
        given[input.name] = rows_to_batch(input, rows->second, picks_);
      inputs.push_back({input.name, batch_shape(input, batch),
                        state == states_.end() ? given[input.name] : state->second});
    }
    NIBBLE_ASSIGN_OR_RETURN(std::vector<NetOutput> outputs, net_.forward_values(inputs));
    for (const NetOutput& output : outputs) {
      for (size_t i = 0; i < output.values.size(); ++i) {
        if (std::isfinite(output.values[i])) continue;
        return error(StatusCode::out_of_range, "[evaluate] ", output.name, ", step ",
                     step,
                     ": finite outputs were required; found NaN or infinity; the weights "
                     "or scales of the model are wrong, run nibble validate");
      }
      for (const Carry& carry : set_.carries) {
        if (carry.output == output.name) states_[carry.input] = output.values;
      }
    }
    return outputs;
  }

 private:
  Executor& net_;
  const SignalSet& set_;
  int64_t first_;
  std::vector<int64_t> picks_;
  std::map<std::string, std::vector<float>> states_;
};

const ProgramValue& output_of(const Program& program, const std::string& name) {
  for (const ProgramValue& output : program.outputs) {
    if (output.name == name) return output;
  }
  return program.outputs.front();
}

// Calls visit(course's streams, their number, step) for all of the set. bytes: of the
// widest net's values of a sample.
template <class Begin, class Visit>
Status walk(const SignalSet& set, int64_t bytes, const EvaluationProgress& progress,
            const Begin& begin, const Visit& visit) {
  int64_t done = 0;
  const int64_t rows = rows_together(bytes);
  for (int64_t first = 0; first < set.streams; first += rows) {
    const int64_t count = std::min(rows, set.streams - first);
    begin(first, count);
    for (int64_t step = 0; step < set.steps; ++step) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("evaluate"));
      NIBBLE_RETURN_IF_ERROR(visit(first, count, step));
      done += count;
      if (progress) progress(done, set.count());
    }
  }
  return ok_status();
}

// Sums of one output, by unit.
struct Sums {
  std::vector<double> error, size;
  double largest_difference = 0, sum = 0, largest = 0;
  int64_t values = 0;
};

class Comparison {
 public:
  explicit Comparison(const SignalSet& set) : set_(set) {
    blocks_ = set.is_stream() ? (set.steps + kUnitSteps - 1) / kUnitSteps : 1;
  }
  int64_t units() const { return blocks_ * set_.streams; }

  // Rows of samples of one step, streams first ... of output `name`.
  void add(const std::string& name, int64_t step, int64_t first, int64_t count,
           const float* found, const float* wanted, int64_t row) {
    Sums& sums = sums_[name];
    if (sums.error.empty()) {
      sums.error.assign(static_cast<size_t>(units()), 0);
      sums.size = sums.error;
    }
    const int64_t block = set_.is_stream() ? step / kUnitSteps : 0;
    for (int64_t b = 0; b < count; ++b) {
      const auto unit = static_cast<size_t>((first + b) * blocks_ + block);
      for (int64_t i = b * row; i < (b + 1) * row; ++i) {
        const double r = wanted[i], apart = std::abs(found[i] - r);
        sums.error[unit] += apart * apart;
        sums.size[unit] += r * r;
        sums.sum += apart;
        sums.largest_difference = std::max(sums.largest_difference, apart);
        sums.largest = std::max(sums.largest, std::abs(r));
      }
      sums.values += row;
    }
  }

  SignalQuality quality(const Program& program) const {
    SignalQuality result;
    result.samples = set_.count();
    result.units = units();
    for (const ProgramValue& output : program.outputs) {
      const auto found = sums_.find(output.name);
      if (found == sums_.end()) continue;
      const Sums& sums = found->second;
      std::vector<double> ratios, weights;
      for (size_t u = 0; u < sums.error.size(); ++u) {
        weights.push_back(std::max(sums.size[u], kNothing));
        ratios.push_back(sums.error[u] / weights.back());
      }
      const Interval squares = bootstrap_ci95(ratios, weights);
      const auto decibels = [](double e) { return -20 * std::log10(std::max(e, 1e-15)); };
      SignalQuality::Output& entry = result.outputs.emplace_back();
      entry.name = output.name;
      entry.relative_error = std::sqrt(weighted_mean(ratios, weights));
      entry.relative_error_ci95 = {std::sqrt(squares.low), std::sqrt(squares.high)};
      entry.snr = decibels(entry.relative_error);
      entry.snr_ci95 = {decibels(entry.relative_error_ci95.high),
                        decibels(entry.relative_error_ci95.low)};
      entry.largest_difference = sums.largest_difference;
      entry.mean_difference = sums.sum / static_cast<double>(sums.values);
      entry.largest = sums.largest;
    }
    return result;
  }

 private:
  const SignalSet& set_;
  int64_t blocks_ = 1;
  std::map<std::string, Sums> sums_;
};

}  // namespace

int64_t rows_together(int64_t bytes) {
  return std::clamp<int64_t>(kMostBytes / std::max<int64_t>(bytes, 1), 1, kRows);
}

double SignalQuality::loss() const {
  double sum = 0;
  for (const Output& output : outputs)
    sum += output.relative_error * output.relative_error;
  return outputs.empty() ? 0 : sum / static_cast<double>(outputs.size());
}

Result<SignalQuality> evaluate_signals(Executor& model, Executor& reference,
                                       const SignalSet& set,
                                       const EvaluationProgress& progress) {
  const Program& program = model.artifact().program;
  if (program.outputs != reference.artifact().program.outputs) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] reference: outputs of the model's names and shapes were "
                 "required; found others; give the model that this one was made from");
  }
  Comparison comparison(set);
  std::optional<Course> ours, theirs;
  NIBBLE_RETURN_IF_ERROR(walk(
      set, std::max(model.row_bytes(), reference.row_bytes()), progress,
      [&](int64_t first, int64_t count) {
        ours.emplace(model, set, first, count);
        theirs.emplace(reference, set, first, count);
      },
      [&](int64_t first, int64_t count, int64_t step) -> Status {
        NIBBLE_ASSIGN_OR_RETURN(const auto found, ours->step(step, nullptr));
        NIBBLE_ASSIGN_OR_RETURN(const auto wanted, theirs->step(step, nullptr));
        for (size_t o = 0; o < found.size(); ++o) {
          const ProgramValue& output = output_of(program, found[o].name);
          const auto a = batch_to_rows(output, found[o].values, count);
          const auto b = batch_to_rows(output, wanted[o].values, count);
          comparison.add(output.name, step, first, count, a.data(), b.data(),
                         row_size(output));
        }
        return ok_status();
      }));
  return comparison.quality(program);
}

Result<SignalQuality> evaluate_targets(Executor& model, const SignalSet& set,
                                       const EvaluationProgress& progress) {
  const Program& program = model.artifact().program;
  if (set.targets.empty()) {
    return error(StatusCode::invalid_argument, "[evaluate] ", set.description,
                 ": target.<output> tensors were required to measure against; found "
                 "none; give a --reference");
  }
  Comparison comparison(set);
  std::optional<Course> course;
  NIBBLE_RETURN_IF_ERROR(walk(
      set, model.row_bytes(), progress,
      [&](int64_t first, int64_t count) { course.emplace(model, set, first, count); },
      [&](int64_t first, int64_t count, int64_t step) -> Status {
        NIBBLE_ASSIGN_OR_RETURN(const auto found, course->step(step, nullptr));
        for (const NetOutput& made : found) {
          const auto target = set.targets.find(made.name);
          if (target == set.targets.end()) continue;
          const ProgramValue& output = output_of(program, made.name);
          const int64_t row = row_size(output);
          const auto rows = batch_to_rows(output, made.values, count);
          comparison.add(made.name, step, first, count, rows.data(),
                         target->second.data() + (step * set.streams + first) * row, row);
        }
        return ok_status();
      }));
  return comparison.quality(program);
}

Result<UnrolledSignals> unroll(Executor& model, const SignalSet& set,
                               const EvaluationProgress& progress) {
  const Program& program = model.artifact().program;
  UnrolledSignals result;
  const auto place = [&](SignalRows& rows, const ProgramValue& value, int64_t step,
                         int64_t first, int64_t count, const std::vector<float>& values) {
    const int64_t row = row_size(value);
    std::vector<float>& all = rows[value.name];
    all.resize(static_cast<size_t>(set.count() * row));
    const auto made = batch_to_rows(value, values, count);
    std::copy(made.begin(), made.end(), all.begin() + (step * set.streams + first) * row);
  };
  std::optional<Course> course;
  NIBBLE_RETURN_IF_ERROR(walk(
      set, model.row_bytes(), progress,
      [&](int64_t first, int64_t count) { course.emplace(model, set, first, count); },
      [&](int64_t first, int64_t count, int64_t step) -> Status {
        std::map<std::string, std::vector<float>> states;
        NIBBLE_ASSIGN_OR_RETURN(const auto outputs, course->step(step, &states));
        for (const ProgramValue& input : program.inputs) {
          if (states.count(input.name))
            place(result.states, input, step, first, count, states.at(input.name));
        }
        for (const NetOutput& output : outputs) {
          place(result.outputs, output_of(program, output.name), step, first, count,
                output.values);
        }
        return ok_status();
      }));
  return result;
}

}  // namespace nibble
