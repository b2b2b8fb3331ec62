#include "kernels/runtime/cuda_decoder.h"

#include <algorithm>

#include "kernels/runtime/cuda_nodes.h"

namespace nibble::cuda {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[cuda] ", where, ": ", parts...);
}

}  // namespace

struct Decoder::Implementation {
  std::shared_ptr<Runner> runner;
  std::string architecture;
  NodeCalls net;
  int64_t vocabulary = 0, capacity = 0, length = 0;
  // What the kernels read of a pass: words of device memory.
  int32_t* chosen = nullptr;
  int32_t* count = nullptr;
  // One token with its logits, and with its choice too, once they are recorded.
  std::function<Status()> token, step;

  // Tokens, their positions, and how much of the cache each sees.
  Status set_tokens(std::span<const int32_t> tokens) {
    const size_t n = tokens.size();
    std::vector<int32_t> positions(n), lengths(n);
    for (size_t t = 0; t < n; ++t) {
      positions[t] = static_cast<int32_t>(length) + static_cast<int32_t>(t);
      lengths[t] = positions[t] + 1;
    }
    const int64_t bytes = static_cast<int64_t>(n) * 4;
    NIBBLE_RETURN_IF_ERROR(runner->copy_in(net.ids, tokens.data(), bytes));
    NIBBLE_RETURN_IF_ERROR(runner->copy_in(net.positions, positions.data(), bytes));
    return runner->copy_in(net.lengths, lengths.data(), bytes);
  }

  Status check(std::span<const int32_t> tokens, int64_t wanted) const {
    if (length + wanted > capacity) {
      return failure(StatusCode::out_of_range, architecture, "room for ", length + wanted,
                     " positions was required; the cache has ", capacity,
                     "; give fewer tokens or a larger capacity");
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (tokens[t] >= 0 && tokens[t] < vocabulary) continue;
      return failure(StatusCode::out_of_range, architecture, "ids in [0, ", vocabulary,
                     ") were required; found ", tokens[t], " at position ", t,
                     "; does the tokenizer belong to this model?");
    }
    return ok_status();
  }

  // The first time as it is, since a first launch may set what a graph cannot hold.
  Status run_recorded(std::function<Status()>& recorded,
                      const std::function<Status()>& calls) {
    if (recorded != nullptr) return recorded();
    NIBBLE_RETURN_IF_ERROR(calls());
    NIBBLE_ASSIGN_OR_RETURN(recorded, runner->record(calls));
    return ok_status();
  }

  Status append(std::span<const int32_t> tokens, bool all, MatrixView<float> logits) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    const int64_t chunk = all ? kLogitRows : kChunk;
    for (int64_t first = 0; first < n; first += chunk) {
      const int64_t now = std::min(chunk, n - first);
      NIBBLE_RETURN_IF_ERROR(set_tokens(
          tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(now))));
      const int64_t rows = all ? now : first + now == n ? 1 : 0;
      if (now == 1 && rows == 1) {
        NIBBLE_RETURN_IF_ERROR(run_recorded(token, [this] { return net.run(1, 1); }));
      } else {
        NIBBLE_RETURN_IF_ERROR(net.run(static_cast<int>(now), static_cast<int>(rows)));
      }
      for (int64_t r = 0; r < rows; ++r) {
        NIBBLE_RETURN_IF_ERROR(runner->copy_out(logits.row(all ? first + r : 0),
                                                net.logits + r * vocabulary,
                                                4 * vocabulary));
      }
      length += now;
    }
    return ok_status();
  }

  Status run_step() {
    NIBBLE_RETURN_IF_ERROR(net.run(1, 1));
    return runner->run(NextTokenCall{.logits = net.logits,
                                     .vocabulary = static_cast<int>(vocabulary),
                                     .id = net.ids,
                                     .position = net.positions,
                                     .length = net.lengths,
                                     .chosen = chosen,
                                     .count = count,
                                     .room = static_cast<int>(capacity)});
  }
};

Decoder::Decoder() : implementation_(std::make_unique<Implementation>()) {}
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;
Decoder::~Decoder() = default;

Result<Decoder> Decoder::create(const Artifact& artifact, const DecoderOptions& options,
                                std::shared_ptr<Runner> runner) {
  const Program& program = artifact.program;
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  if (!program.is_language_model() || program.is_encoder()) {
    return failure(StatusCode::unsupported, program.architecture,
                   "a decoder of tokens was required; run this net on the CPU");
  }
  const int64_t capacity =
      options.capacity == 0 ? program.context_length : options.capacity;
  if (capacity < 1 || capacity > program.context_length) {
    return failure(StatusCode::out_of_range, program.architecture, "a capacity of 1 to ",
                   program.context_length,
                   " positions (the model's context) was "
                   "required; found ",
                   capacity);
  }
  Decoder decoder;
  Implementation& d = *decoder.implementation_;
  d.runner = std::move(runner);
  d.architecture = program.architecture;
  d.vocabulary = program.vocabulary;
  d.capacity = capacity;
  NIBBLE_ASSIGN_OR_RETURN(
      d.net, make_node_calls(
                 artifact, {.type = options.type, .capacity = capacity, .kv = options.kv},
                 *d.runner));
  NIBBLE_ASSIGN_OR_RETURN(void* const words, d.runner->allocate(4 * (capacity + 1)));
  d.count = static_cast<int32_t*>(words);
  d.chosen = d.count + 1;
  return decoder;
}

Status Decoder::forward(std::span<const int32_t> tokens, MatrixView<float> logits) {
  Implementation& d = *implementation_;
  const int64_t n = static_cast<int64_t>(tokens.size());
  if (n == 0 || (logits.rows != n && logits.rows != 1) || logits.cols != d.vocabulary) {
    return failure(StatusCode::invalid_argument, d.architecture,
                   "tokens and logits [tokens or 1, ", d.vocabulary,
                   "] were required; found ", n, " tokens and logits [", logits.rows,
                   ", ", logits.cols, "]");
  }
  NIBBLE_RETURN_IF_ERROR(d.check(tokens, n));
  const int64_t before = d.length;
  Status appended = d.append(tokens, logits.rows == n, logits);
  if (!appended.ok()) d.length = before;
  return appended;
}

Status Decoder::continue_greedily(int32_t token, std::span<int32_t> chosen) {
  Implementation& d = *implementation_;
  const int64_t n = static_cast<int64_t>(chosen.size());
  NIBBLE_RETURN_IF_ERROR(d.check({&token, 1}, n));
  NIBBLE_RETURN_IF_ERROR(d.set_tokens({&token, 1}));
  const int32_t none = 0;
  NIBBLE_RETURN_IF_ERROR(d.runner->copy_in(d.count, &none, 4));
  for (int64_t i = 0; i < n; ++i) {
    NIBBLE_RETURN_IF_ERROR(d.run_recorded(d.step, [&d] { return d.run_step(); }));
  }
  NIBBLE_RETURN_IF_ERROR(d.runner->copy_out(chosen.data(), d.chosen, 4 * n));
  d.length += n;
  return ok_status();
}

int64_t Decoder::length() const { return implementation_->length; }
int64_t Decoder::capacity() const { return implementation_->capacity; }
int64_t Decoder::vocabulary() const { return implementation_->vocabulary; }
void Decoder::truncate(int64_t length) {
  implementation_->length = std::clamp<int64_t>(length, 0, implementation_->length);
}
int64_t Decoder::weight_bytes() const { return implementation_->net.weight_bytes; }
int64_t Decoder::cache_bytes(int64_t length) const {
  return implementation_->net.position_bytes * length;
}
const std::map<std::string, std::string>& Decoder::kernels() const {
  return implementation_->net.kernels;
}

}  // namespace nibble::cuda
