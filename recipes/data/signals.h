// What nets over values are calibrated, trained and evaluated on: a safetensors file with
// a tensor an input, floats, named as the input.
//
//   alone      each tensor in its input's own shape; its batch axis (wherever the shape
//              has it) counts the samples: silero's `input` [n, 576], `state` [2, n, 128]
//   as streams with a carry OUTPUT=INPUT, what the output gives in one step the input
//              reads in the next: tensors are [steps, ..own shape..], the batch counts
//              streams; a carried input begins as its tensor (own shape, no steps in
//              front) or as zeros. A sample is one step of one stream
//   targets    `target.<output>`, as the output is, steps in front where there are: what
//              it should be, for training and for figures. They may be left out
//
// Inputs that no node reads (a sample rate) may be given, and are not looked at. Held as
// rows: a sample's values, the axes before the batch first, then those behind it.
//
// not_found / data_loss: read_safetensors'. invalid_argument: a tensor is missing, or of
// another name, shape, number of samples or element type; a carry that names nothing.
// out_of_range: NaN or infinity (names tensor and sample). Messages say what was
// required.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct Carry {
  std::string output, input;
  bool operator==(const Carry&) const = default;
};
// "stateN=state, c=d"; "" gives none. where: for the message.
Result<std::vector<Carry>> parse_carries(const std::string& text,
                                         const std::string& where);
// Each names an output and an input that is read, of one shape, and no input twice.
Status check_carries(const Program& program, const std::vector<Carry>& carries);

using SignalRows = std::map<std::string, std::vector<float>>;  // by value

struct SignalSet {
  int64_t steps = 0, streams = 0;
  std::vector<Carry> carries;
  SignalRows inputs;   // [steps, streams, row], those that are read and not carried
  SignalRows starts;   // [streams, row] of carried inputs
  SignalRows targets;  // [steps, streams, row] by output; may be empty
  std::string description;

  int64_t count() const { return steps * streams; }
  bool is_stream() const { return !carries.empty(); }
};

// limit: at most so many samples, the first ones; 0: all.
Result<SignalSet> load_signals(const std::filesystem::path& file, const Program& program,
                               const std::vector<Carry>& carries, int64_t limit = 0);

// Samples [first, first + count) of a set without streams, or those steps of one with
// them (the states begin as zeros where first > 0).
SignalSet part_of(const SignalSet& set, int64_t first, int64_t count);
// What part_of counts in: steps of streams, else samples.
int64_t parts_in(const SignalSet& set);

// A value's rows as the program has it: its shape with `picks.size()` as the batch; and
// back.
int64_t row_size(const ProgramValue& value);
std::vector<int64_t> batch_shape(const ProgramValue& value, int64_t batch);
std::vector<float> rows_to_batch(const ProgramValue& value, std::span<const float> rows,
                                 std::span<const int64_t> picks);
std::vector<float> batch_to_rows(const ProgramValue& value, std::span<const float> values,
                                 int64_t batch);

// SHA-256 over names, sizes and values.
std::string data_sha256(const SignalSet& set);

}  // namespace nibble
