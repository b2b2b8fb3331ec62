#include "recipes/data/signals.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/sha256.h"
#include "kernels/program/batch_axis.h"

namespace nibble {
namespace {

constexpr const char* kTarget = "target.";

template <class... Parts>
Status wrong(const std::string& where, const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[data] ", where, ": ", parts...);
}

const ProgramValue* find(const std::vector<ProgramValue>& values,
                         const std::string& name) {
  for (const ProgramValue& value : values) {
    if (value.name == name) return &value;
  }
  return nullptr;
}

std::string names_of(const std::vector<ProgramValue>& values) {
  std::string names;
  for (const ProgramValue& value : values)
    names += (names.empty() ? "" : ", ") + value.name;
  return names;
}

std::string declared(const ProgramValue& value, bool steps) {
  std::string text = steps ? "[steps" : "[";
  for (const std::string& size : value.shape)
    text += (text.size() > 1 ? ", " : "") + size;
  return text + "]";
}

int64_t before_batch(const ProgramValue& value) {
  int64_t size = 1;
  for (const std::string& dim : value.shape) {
    if (is_open_size(dim)) break;
    size *= std::atoll(dim.c_str());
  }
  return size;
}

// How many steps and streams tensors agree on; 0: not known yet.
struct Sizes {
  int64_t steps = 0, streams = 0;
};

// One tensor as rows. steps: they stand in front of the value's own shape.
Result<std::vector<float>> read_rows(const std::string& name, const Tensor& tensor,
                                     const ProgramValue& value, bool steps,
                                     Sizes& sizes) {
  if (!tensor.is_float()) {
    return wrong(name, "floats (F32, F16, BF16) were required; found ",
                 dtype_name(tensor.dtype), "; convert them");
  }
  Sizes found = sizes;
  bool fits = tensor.shape.size() == value.shape.size() + (steps ? 1 : 0);
  if (fits && steps && found.steps == 0) found.steps = tensor.shape[0];
  if (fits && steps) fits = tensor.shape[0] == found.steps && found.steps > 0;
  for (size_t d = 0; fits && d < value.shape.size(); ++d) {
    const int64_t size = tensor.shape[d + (steps ? 1 : 0)];
    const bool open = is_open_size(value.shape[d]);
    if (open && found.streams == 0) found.streams = size;
    fits =
        size > 0 && size == (open ? found.streams : std::atoll(value.shape[d].c_str()));
  }
  if (!fits) {
    const std::string known =
        sizes.streams == 0
            ? std::string()
            : cat(", ",
                  steps && sizes.steps > 0 ? cat("steps ", sizes.steps, ", ")
                                           : std::string(),
                  "batch ", sizes.streams, " as the tensors before it");
    return wrong(name, declared(value, steps), " was required", known, "; found ",
                 shape_text(tensor.shape), "; write it in that shape");
  }
  sizes = found;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
  const int64_t count = steps ? sizes.steps : 1;
  const int64_t size = static_cast<int64_t>(values.size()) / count;
  const int64_t row = size / sizes.streams;
  std::vector<float> rows;
  rows.reserve(values.size());
  for (int64_t step = 0; step < count; ++step) {
    const std::vector<float> part = batch_to_rows(
        value, {values.data() + step * size, static_cast<size_t>(size)}, sizes.streams);
    rows.insert(rows.end(), part.begin(), part.end());
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::isfinite(rows[i])) continue;
    return error(StatusCode::out_of_range, "[data] ", name,
                 ": finite numbers were required; found ", rows[i], " in sample ",
                 static_cast<int64_t>(i) / row, "; leave it out or repair it");
  }
  return rows;
}

Status missing(const Program& program, const ProgramValue& input) {
  std::string carried;
  for (const ProgramValue& output : program.outputs) {
    if (output.shape == input.shape)
      carried =
          cat(", or carry it, ", output.name, "=", input.name, " (data.carry, --carry)");
  }
  return wrong(input.name, declared(input, false),
               ", a tensor of this name, was required; found none; give it", carried);
}

SignalRows cut(const SignalRows& rows, int64_t all, int64_t first, int64_t count) {
  SignalRows result;
  for (const auto& [name, values] : rows) {
    const int64_t size = static_cast<int64_t>(values.size()) / all;
    result[name].assign(values.begin() + first * size,
                        values.begin() + (first + count) * size);
  }
  return result;
}

}  // namespace

Result<std::vector<Carry>> parse_carries(const std::string& text,
                                         const std::string& where) {
  std::vector<Carry> carries;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    const auto is_space = [](char c) { return c == ' ' || c == '\t'; };
    while (!part.empty() && is_space(part.front())) part.erase(part.begin());
    while (!part.empty() && is_space(part.back())) part.pop_back();
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == part.size()) {
      return error(StatusCode::invalid_argument, where, " ", part,
                   ": OUTPUT=INPUT was required; write it so");
    }
    carries.push_back({part.substr(0, equals), part.substr(equals + 1)});
  }
  return carries;
}

Status check_carries(const Program& program, const std::vector<Carry>& carries) {
  std::set<std::string> inputs;
  for (const Carry& carry : carries) {
    const ProgramValue* from = find(program.outputs, carry.output);
    const ProgramValue* to = find(program.inputs, carry.input);
    const bool fits = from != nullptr && to != nullptr && from->shape == to->shape;
    if (fits && inputs.insert(carry.input).second) continue;
    return error(StatusCode::invalid_argument, "[run] ", carry.output, "=", carry.input,
                 ": an output and an input of one shape were required; found ",
                 from == nullptr ? cat("no output ", carry.output, " (",
                                       names_of(program.outputs), ")")
                 : to == nullptr
                     ? cat("no input ", carry.input, " (", names_of(program.inputs), ")")
                 : fits ? cat(carry.input, " twice")
                        : std::string("two that differ"));
  }
  return ok_status();
}

int64_t row_size(const ProgramValue& value) {
  int64_t size = 1;
  for (const std::string& dim : value.shape) {
    if (!is_open_size(dim)) size *= std::atoll(dim.c_str());
  }
  return size;
}

std::vector<int64_t> batch_shape(const ProgramValue& value, int64_t batch) {
  std::vector<int64_t> shape;
  for (const std::string& dim : value.shape)
    shape.push_back(is_open_size(dim) ? batch : std::atoll(dim.c_str()));
  return shape;
}

std::vector<float> rows_to_batch(const ProgramValue& value, std::span<const float> rows,
                                 std::span<const int64_t> picks) {
  const int64_t row = row_size(value), before = before_batch(value);
  const int64_t inner = row / before, batch = static_cast<int64_t>(picks.size());
  std::vector<float> values(static_cast<size_t>(batch * row));
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < before; ++i) {
      std::copy_n(rows.data() + picks[static_cast<size_t>(b)] * row + i * inner, inner,
                  values.data() + (i * batch + b) * inner);
    }
  }
  return values;
}

std::vector<float> batch_to_rows(const ProgramValue& value, std::span<const float> values,
                                 int64_t batch) {
  const int64_t row = row_size(value), before = before_batch(value);
  const int64_t inner = row / before;
  std::vector<float> rows(values.size());
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < before; ++i) {
      std::copy_n(values.data() + (i * batch + b) * inner, inner,
                  rows.data() + b * row + i * inner);
    }
  }
  return rows;
}

int64_t parts_in(const SignalSet& set) {
  return set.is_stream() ? set.steps : set.streams;
}

SignalSet part_of(const SignalSet& set, int64_t first, int64_t count) {
  SignalSet part = set;
  (set.is_stream() ? part.steps : part.streams) = count;
  const int64_t all = parts_in(set);
  part.inputs = cut(set.inputs, all, first, count);
  part.targets = cut(set.targets, all, first, count);
  for (auto& [name, values] : part.starts) {
    if (first > 0) std::fill(values.begin(), values.end(), 0.0f);
  }
  return part;
}

Result<SignalSet> load_signals(const std::filesystem::path& file, const Program& program,
                               const std::vector<Carry>& carries, int64_t limit) {
  const std::string name_of_file = file.filename().string();
  for (const auto* values : {&program.inputs, &program.outputs}) {
    for (const ProgramValue& value : *values) {
      const bool is_read =
          values == &program.outputs || !program.consumers(value.name).empty();
      if (!is_read || batch_axis(value) >= 0) continue;
      return error(StatusCode::unsupported, "[data] ", value.name,
                   ": a value with a batch was required; found ", declared(value, false));
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_carries(program, carries));
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile read, read_safetensors(file));
  SignalSet set;
  set.carries = carries;
  Sizes sizes;
  const bool streams = set.is_stream();
  for (const auto& [name, tensor] : read.tensors) {
    const bool is_target =
        name.starts_with(kTarget) &&
        find(program.outputs, name.substr(std::string(kTarget).size()));
    if (is_target || find(program.inputs, name) != nullptr) continue;
    return wrong(cat(name_of_file, ": ", name), "a tensor named as an input (",
                 names_of(program.inputs), ") or ", kTarget, "OUTPUT (",
                 names_of(program.outputs), ") was required; found another; rename it");
  }
  for (const ProgramValue& input : program.inputs) {
    if (program.consumers(input.name).empty()) continue;
    const bool carried =
        std::any_of(carries.begin(), carries.end(),
                    [&](const Carry& carry) { return carry.input == input.name; });
    const auto found = read.tensors.find(input.name);
    if (carried) continue;
    if (found == read.tensors.end()) return missing(program, input);
    NIBBLE_ASSIGN_OR_RETURN(set.inputs[input.name],
                            read_rows(input.name, found->second, input, streams, sizes));
  }
  if (set.inputs.empty()) {
    return wrong(name_of_file,
                 "an input that is not carried was required, for the number of steps; "
                 "found none");
  }
  set.steps = streams ? sizes.steps : 1;
  set.streams = sizes.streams;
  for (const Carry& carry : carries) {
    const ProgramValue& input = *find(program.inputs, carry.input);
    const auto found = read.tensors.find(carry.input);
    std::vector<float>& start = set.starts[carry.input];
    if (found == read.tensors.end()) {
      start.assign(static_cast<size_t>(set.streams * row_size(input)), 0.0f);
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(start,
                            read_rows(carry.input, found->second, input, false, sizes));
  }
  for (const ProgramValue& output : program.outputs) {
    const auto found = read.tensors.find(kTarget + output.name);
    if (found == read.tensors.end()) continue;
    NIBBLE_ASSIGN_OR_RETURN(
        set.targets[output.name],
        read_rows(found->first, found->second, output, streams, sizes));
  }
  set.description = streams ? cat(name_of_file, ", ", set.steps, " steps of ",
                                  set.streams, set.streams == 1 ? " stream" : " streams")
                            : cat(name_of_file, ", ", set.streams, " samples");
  if (limit > 0 && limit < set.count()) {
    const int64_t parts = std::max<int64_t>(1, streams ? limit / set.streams : limit);
    set = part_of(set, 0, parts);
    set.description += cat(", the first ", parts);
  }
  return set;
}

std::string data_sha256(const SignalSet& set) {
  Sha256 hash;
  const auto add_text = [&](const std::string& text) {
    const uint64_t size = text.size();
    hash.update(&size, sizeof(size));
    hash.update(text.data(), text.size());
  };
  hash.update(&set.steps, sizeof(set.steps));
  hash.update(&set.streams, sizeof(set.streams));
  for (const Carry& carry : set.carries) {
    add_text(carry.output);
    add_text(carry.input);
  }
  for (const SignalRows* rows : {&set.inputs, &set.starts, &set.targets}) {
    for (const auto& [name, values] : *rows) {
      add_text(name);
      hash.update(values.data(), values.size() * sizeof(float));
    }
  }
  return hash.hex();
}

}  // namespace nibble
