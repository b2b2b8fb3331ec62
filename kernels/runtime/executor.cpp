#include "kernels/runtime/executor.h"

#include <algorithm>
#include <optional>

#include "kernels/base/function_ref.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/embedding/embedding.h"
#include "kernels/ops/hadamard/hadamard.h"
#include "kernels/ops/kv_attention/kv_attention.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/encoder_path.h"
#include "kernels/runtime/integer_path.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/net_ports.h"
#include "kernels/runtime/pool_shape.h"
#include "kernels/runtime/rounded_inputs.h"
#include "kernels/runtime/signal_step.h"
#include "kernels/runtime/step.h"
#include "kernels/runtime/summation_order.h"
#include "kernels/runtime/value_slots.h"

namespace nibble {
namespace {

constexpr int64_t kImages = 16;       // that go through a node together
constexpr int64_t kRows = 16;         // of a value that one thread takes at a time
constexpr int64_t kChunk = 1 << 14;   // floats of an elementwise node, likewise

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

void in_chunks(int64_t n, int64_t chunk, FunctionRef<void(int64_t, int64_t)> body) {
  parallel_for((n + chunk - 1) / chunk, [&](int64_t i) {
    body(i * chunk, std::min(chunk, n - i * chunk));
  });
}

Status require_decoder(const Program& program) {
  if (program.is_language_model() && !program.is_encoder()) return ok_status();
  return failure(StatusCode::invalid_argument, program.architecture,
                 "a language model was required; this one ",
                 program.is_encoder() ? "is an encoder, which makes no logits; use encode"
                                      : "reads images");
}

}  // namespace

struct Executor::Implementation {
  std::shared_ptr<const Artifact> artifact;
  ExecutorOptions options;
  std::vector<Step> steps;
  std::vector<RopeTable> ropes;
  std::vector<KvScheme> kv;  // one a state
  std::vector<std::vector<float>> slots;
  // One step's input: rounded to FP8, or where sums run in reverse (floats alone do).
  std::vector<float> reversed;
  std::optional<KvRows> queries;  // of one attention, where they are rounded
  std::vector<float> query_floats;
  ValueSlots sharing;
  std::map<std::string, std::string> kernels;
  std::unique_ptr<IntegerPath> integer;
  std::unique_ptr<EncoderPath> encoder;
  std::function<void(const TapValue&)> tap;
  int64_t rows = 0;  // that the slots have room for
  // A net's inputs that are read, and its outputs.
  std::vector<NetPort> input_ports, output_ports;
  std::vector<int64_t> image_shape;  // of one image
  int64_t classes = 0;

  std::vector<std::function<void()>> undo;  // of an exchanged layer

  // --- preparation

  // The shapes of values, with kUnknownSize for the batch (and sequence).
  Result<Shapes> value_shapes() const {
    Shapes given, values;
    for (const auto& [name, tensor] : artifact->tensors) given[name] = tensor.shape;
    for (const auto& [name, packed] : artifact->packed) given[name] = packed.shape;
    NIBBLE_RETURN_IF_ERROR(check_shapes(artifact->program, given, &values));
    return values;
  }

  Status prepare() {
    const Program& program = artifact->program;
    NIBBLE_RETURN_IF_ERROR(check_program(program));
    if (program.is_encoder()) {
      NIBBLE_ASSIGN_OR_RETURN(encoder,
                              EncoderPath::create(artifact, options.compute, &kernels));
      return ok_status();
    }
    NIBBLE_ASSIGN_OR_RETURN(const Shapes full, value_shapes());
    NIBBLE_RETURN_IF_ERROR(check_ends(program, full));
    Shapes shapes = full;  // without the batch
    for (auto& [name, shape] : shapes) {
      shape.erase(std::remove(shape.begin(), shape.end(), kUnknownSize), shape.end());
    }
    const std::vector<int64_t>& input = shapes.at(program.inputs[0].name);
    image_shape.assign(input.begin(), input.end());
    const auto features = [&](const std::string& value) {
      return features_of(shapes.at(value));
    };
    if (!artifact->activations.empty() && options.integer &&
        !program.is_language_model()) {
      NIBBLE_ASSIGN_OR_RETURN(integer, IntegerPath::create(*artifact, &kernels));
      const auto port = [&](const ProgramValue& value) {
        return NetPort{value.name, -1, full.at(value.name), features(value.name)};
      };
      input_ports.push_back(port(program.inputs[0]));
      output_ports.push_back(port(program.outputs[0]));
      return ok_status();
    }
    for (const ProgramState& state : program.states) {
      kv.push_back(state.scheme);
      if (options.kv.empty()) continue;
      NIBBLE_ASSIGN_OR_RETURN(kv.back(),
                              parse_kv_scheme(options.kv, state.kv_heads, state.head_dim));
    }
    sharing = share_slots(program, features);
    slots.resize(sharing.features.size());
    const std::map<std::string, int>& slot = sharing.slot;
    if (!program.is_language_model()) {
      for (const ProgramValue& value : program.inputs) {
        if (!slot.count(value.name)) continue;  // nothing reads it
        input_ports.push_back(
            {value.name, slot.at(value.name), full.at(value.name), features(value.name)});
      }
    }
    steps.reserve(program.nodes.size());
    for (const Node& node : program.nodes) {
      Step step;
      step.node = &node;
      for (const std::string& name : node.inputs) {
        step.inputs.push_back(slot.count(name) ? slot.at(name) : -1);  // -1: token ids
      }
      const auto shape = shapes.find(node.inputs[0]);
      if (shape != shapes.end()) {
        step.image_shape = shape->second;
        step.full_shape = full.at(node.inputs[0]);
      }
      step.output_shape = shapes.at(node.outputs[0]);
      if (node.op == "concat") {
        for (const std::string& name : node.inputs) {
          step.input_features.push_back(features(name));
        }
      }
      step.features = features(node.outputs[0]);
      step.output = slot.at(node.outputs[0]);
      NIBBLE_RETURN_IF_ERROR(prepare_step(*artifact, options, step, ropes, &kernels));
      steps.push_back(std::move(step));
    }
    classes = features(program.outputs[0].name);
    for (const ProgramValue& value : program.outputs) {
      output_ports.push_back(
          {value.name, slot.at(value.name), full.at(value.name), features(value.name)});
    }
    if (program.is_language_model() && classes != program.vocabulary) {
      return failure(StatusCode::invalid_argument, program.outputs[0].name,
                     "logits over the vocabulary of ", program.vocabulary,
                     " were required; the last node makes ", classes);
    }
    return ok_status();
  }

  void reserve(int64_t wanted) {
    if (wanted <= rows) return;
    rows = wanted;
    // Nothing of a batch outlives it: smaller ones go before larger ones come.
    for (std::vector<float>& slot : slots) std::vector<float>().swap(slot);
    for (size_t i = 0; i < slots.size(); ++i) {
      slots[i].resize(static_cast<size_t>(rows * sharing.features[i]));
    }
  }

  // The rows as the step's weight wants them: rounded to FP8, or reversed where its columns
  // are.
  const float* input_rows(const Step& step, const float* x, int64_t n, int64_t columns,
                          int64_t run) {
    if (step.rounded) {
      reversed.resize(std::max(reversed.size(), static_cast<size_t>(n * columns)));
      round_inputs(*step.rounded, MatrixView<const float>(x, n, columns),
                   reversed.data());
      return reversed.data();
    }
    if (!step.reversed) return x;
    reversed.resize(std::max(reversed.size(), static_cast<size_t>(n * columns)));
    reverse_columns(x, n, columns, run, reversed.data());
    return reversed.data();
  }

  float* data(int slot) { return slots[static_cast<size_t>(slot)].data(); }

  void tap_value(const Step& step, int64_t count, const float* values) {
    if (!tap) return;
    std::vector<int64_t> shape = {count};
    shape.insert(shape.end(), step.output_shape.begin(), step.output_shape.end());
    tap({.name = step.node->outputs[0],
         .shape = shape,
         .floats = {values, static_cast<size_t>(count * step.features)},
         .codes = {},
         .scale = 0});
  }

  // --- nodes that read rows (tokens, or flattened images) alone

  // True when the op is one of them.
  bool run_rows(const Step& step, int64_t n) {
    const std::string& op = step.node->op;
    const float* x = data(step.inputs[0]);
    float* y = data(step.output);
    const int64_t size = n * step.features;
    if (step.integer && op == "linear") {
      const int64_t columns = step.integer->input_size();
      parallel_for(size / step.integer->shape.outputs, [&](int64_t t) {
        step.integer->run(x + t * columns, y + t * step.integer->shape.outputs);
      });
    } else if (op == "linear") {
      const float* rows = input_rows(step, x, n, step.linear.cols, 1);
      run_linear(step.linear, MatrixView<const float>(rows, n, step.linear.cols),
                 step.bias.empty() ? nullptr : step.bias.data(),
                 MatrixView<float>(y, n, step.features));
    } else if (op == "moe") {
      const int64_t experts = step.node->integer("experts", 0);
      step.moe->run(MatrixView<const float>(x, n, step.features),
                    MatrixView<const float>(data(step.inputs[1]), n, experts),
                    MatrixView<float>(y, n, step.features));
    } else if (op == "add") {
      const float* b = data(step.inputs[1]);
      in_chunks(size, kChunk,
                [&](int64_t i, int64_t count) { add(x + i, b + i, count, y + i); });
    } else if (op == "silu_mul") {
      const float* up = data(step.inputs[1]);
      const SiluMulFunction run = select_silu_mul().run;
      in_chunks(size, kChunk,
                [&](int64_t i, int64_t count) { run(x + i, up + i, count, y + i); });
    } else if (op == "relu") {
      in_chunks(size, kChunk, [&](int64_t i, int64_t count) { relu(x + i, count, y + i); });
    } else if (op == "leaky_relu") {
      const float slope = static_cast<float>(step.node->number("slope", 0.01));
      in_chunks(size, kChunk,
                [&](int64_t i, int64_t count) { leaky_relu(x + i, slope, count, y + i); });
    } else if (op == "rms_norm") {
      const RmsNormFunction run = select_rms_norm().run;
      const float epsilon = static_cast<float>(step.node->number("epsilon", 1e-6));
      const int64_t width = static_cast<int64_t>(step.weight.size());  // of a head, or of x
      in_chunks(size / width, kRows * (step.features / width), [&](int64_t t, int64_t count) {
        run(MatrixView<const float>(x + t * width, count, width), step.weight.data(), epsilon,
            MatrixView<float>(y + t * width, count, width));
      });
    } else if (op == "hadamard") {
      const int64_t block = step.node->integer("block", 1);
      in_chunks(size / block, std::max<int64_t>(1, kChunk / block),
                [&](int64_t t, int64_t count) {
                  hadamard(x + t * block, count * block, block, y + t * block);
                });
    } else if (op == "flatten") {
      std::copy_n(x, size, y);
    } else if (op == "softmax") {
      const int64_t width = step.output_shape.back();
      in_chunks(size / width, kRows, [&](int64_t t, int64_t count) {
        for (int64_t r = t; r < t + count; ++r) softmax(x + r * width, width, y + r * width);
      });
    } else {
      return false;
    }
    return true;
  }

  // --- language models

  // As a cache would give them back. Valid until the next call.
  Result<MatrixView<const float>> rounded_queries(const QuantScheme& scheme,
                                                  MatrixView<const float> q) {
    if (!queries || queries->scheme() != scheme || queries->width() != q.cols ||
        queries->capacity() < q.rows) {
      NIBBLE_ASSIGN_OR_RETURN(queries, KvRows::create(scheme, q.rows, q.cols));
    }
    queries->truncate(0);
    NIBBLE_RETURN_IF_ERROR(queries->append(q));
    query_floats.resize(
        std::max(query_floats.size(), static_cast<size_t>(q.rows * q.cols)));
    queries->read(nullptr, 0, 0, MatrixView<float>(query_floats.data(), q.rows, q.cols));
    return MatrixView<const float>(query_floats.data(), q.rows, q.cols);
  }

  // Of one sequence: rows [first, first + n).
  Status run_attention(const Step& step, int64_t first, int64_t n, KvCache& cache) {
    const int64_t width = step.attention.kv_heads * step.attention.head_dim;
    const int64_t length = cache.length() + n;
    NIBBLE_RETURN_IF_ERROR(cache.append(
        step.state,
        MatrixView<const float>(data(step.inputs[1]) + first * width, n, width),
        MatrixView<const float>(data(step.inputs[2]) + first * width, n, width)));
    const KvRows& keys = cache.keys(step.state);
    const KvRows& values = cache.values(step.state);
    const int64_t q_width = step.attention.heads * step.attention.head_dim;
    MatrixView<const float> q(data(step.inputs[0]) + first * q_width, n, q_width);
    const QuantScheme& asked = kv[step.state].queries;
    if (asked != QuantScheme{}) {
      NIBBLE_ASSIGN_OR_RETURN(q, rounded_queries(asked, q));
    }
    const MatrixView<float> y(data(step.output) + first * q_width, n, q_width);
    if (keys.floats() != nullptr && values.floats() != nullptr) {
      attention(select_attention(), step.attention, q,
                MatrixView<const float>(keys.floats(), length, width),
                MatrixView<const float>(values.floats(), length, width), y);
    } else {
      kv_attention(select_kv_attention(), step.attention, q, keys, values, y);
    }
    return ok_status();
  }

  // Copies a stage's live values out of the slots, or back into them.
  template <class Copy>
  void stage_values(const ValueSlots::Stage& stage, int64_t n, const Copy& copy) {
    size_t at = 0;
    for (const size_t slot : stage.slots) {
      const size_t size = static_cast<size_t>(n * sharing.features[slot]);
      copy(slots[slot].data(), at, size);
      at += size;
    }
  }

  void keep_stage(size_t step, int64_t n, BlockInputs& kept) {
    const size_t stage = kept.stages.size();
    if (stage == sharing.stages.size() || sharing.stages[stage].node != step) return;
    std::vector<float>& values = kept.stages.emplace_back();
    stage_values(sharing.stages[stage], n, [&](const float* from, size_t, size_t size) {
      values.insert(values.end(), from, from + size);
    });
  }

  // A run of as many tokens for each sequence, one after the other.
  Status run_tokens(std::span<const int32_t> tokens, std::span<KvCache* const> caches,
                    MatrixView<float> logits, size_t first_step = 0,
                    BlockInputs* kept = nullptr) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    const int64_t each = n / static_cast<int64_t>(caches.size());
    reserve(n);
    for (size_t i = first_step; i < steps.size(); ++i) {
      const Step& step = steps[i];
      if (kept != nullptr) keep_stage(i, n, *kept);
      const Node& node = *step.node;
      const bool last = &step == &steps.back();
      if (last && node.op == "linear") {
        // Straight to the caller, and only the rows that were asked for.
        const int64_t cols = step.linear.cols;
        const float* rows =
            input_rows(step, data(step.inputs[0]) + (n - logits.rows) * cols, logits.rows, cols, 1);
        run_linear(step.linear, MatrixView<const float>(rows, logits.rows, cols),
                   step.bias.empty() ? nullptr : step.bias.data(), logits);
        if (tap && logits.stride == logits.cols) tap_value(step, logits.rows, logits.data);
        continue;
      }
      if (node.op == "embedding") {
        NIBBLE_RETURN_IF_ERROR(
            embedding(tokens, step.table, MatrixView<float>(data(step.output), n, step.features)));
      } else if (node.op == "rope") {
        float* y = data(step.output);
        std::copy_n(data(step.inputs[0]), n * step.features, y);
        for (const KvCache* cache : caches) {
          ropes[step.rope].reserve(cache->length() + each, cache->capacity());
        }
        const RopeKernel& kernel = select_rope();
        const bool interleaved = node.integer("interleaved", 0) != 0;
        for (const KvCache* cache : caches) {
          in_chunks(each, kRows, [&](int64_t t, int64_t count) {
            apply_rope(kernel, MatrixView<float>(y + t * step.features, count, step.features),
                       ropes[step.rope], cache->length() + t, interleaved);
          });
          y += each * step.features;
        }
      } else if (node.op == "attention") {
        int64_t first = 0;
        for (KvCache* cache : caches) {
          NIBBLE_RETURN_IF_ERROR(run_attention(step, first, each, *cache));
          first += each;
        }
      } else if (!run_rows(step, n)) {
        return failure(StatusCode::unsupported, node.name, "op '", node.op,
                       "' does not run on tokens");
      }
      tap_value(step, n, data(step.output));
    }
    if (steps.back().node->op != "linear") {
      const float* from = data(steps.back().output) + (n - logits.rows) * classes;
      for (int64_t r = 0; r < logits.rows; ++r) {
        std::copy_n(from + r * classes, classes, logits.row(r));
      }
    }
    for (KvCache* cache : caches) cache->advance(each);
    return ok_status();
  }

  // --- images

  Status run_images(int64_t n, const float* images, MatrixView<float> logits) {
    reserve(n);
    std::copy_n(images, n * input_ports[0].features, data(input_ports[0].slot));
    NIBBLE_RETURN_IF_ERROR(run_net(n));
    const float* from = data(output_ports[0].slot);
    for (int64_t r = 0; r < n; ++r) std::copy_n(from + r * classes, classes, logits.row(r));
    return ok_status();
  }

  // The steps over a batch whose inputs lie in their slots.
  Status run_net(int64_t n) {
    std::vector<const float*> inputs;
    for (const Step& step : steps) {
      const Node& node = *step.node;
      const float* x = data(step.inputs[0]);
      float* y = data(step.output);
      if (!run_rows(step, n)) {
        const int64_t channels = step.image_shape[0];
        int64_t pixels = 1;
        for (size_t d = 1; d < step.image_shape.size(); ++d) pixels *= step.image_shape[d];
        const int64_t size = channels * pixels;
        const auto each = [&](const auto& body) {
          parallel_for(n, [&](int64_t i) { body(x + i * size, y + i * step.features); });
        };
        if (step.integer) {
          each([&](const float* from, float* to) { step.integer->run(from, to); });
        } else if (node.op == "conv2d") {
          x = input_rows(step, x, n, size, pixels);
          each([&](const float* from, float* to) {
            run_conv2d(*step.conv, from, step.bias.empty() ? nullptr : step.bias.data(), to);
          });
        } else if (node.op == "batch_norm") {
          each([&](const float* from, float* to) {
            for (int64_t c = 0; c < channels; ++c) {
              const float scale = step.weight[static_cast<size_t>(c)];
              const float bias = step.bias[static_cast<size_t>(c)];
              for (int64_t i = c * pixels; i < (c + 1) * pixels; ++i) {
                to[i] = from[i] * scale + bias;
              }
            }
          });
        } else if (node.op == "shortcut_pad") {
          each([&](const float* from, float* to) {
            shortcut_pad(from, channels, step.image_shape[1], step.image_shape[2],
                         node.integer("stride", 1), node.integer("pad_before", 0),
                         node.integer("pad_after", 0), to);
          });
        } else if (node.op == "global_average_pool") {
          each([&](const float* from, float* to) {
            global_average_pool(from, channels, pixels, to);
          });
        } else if (node.op == "max_pool") {
          const MaxPoolShape shape =
              max_pool_shape(node, channels, step.image_shape[1], step.image_shape[2]);
          each([&](const float* from, float* to) { max_pool(shape, from, to); });
        } else if (node.op == "concat") {
          // Each input's channels after those of the one before, image by image.
          int64_t before = 0;
          for (size_t k = 0; k < step.inputs.size(); ++k) {
            const float* part = data(step.inputs[k]);
            const int64_t width = step.input_features[k];
            parallel_for(n, [&](int64_t i) {
              std::copy_n(part + i * width, width, y + i * step.features + before);
            });
            before += width;
          }
        } else {
          inputs.clear();
          for (const int slot : step.inputs) inputs.push_back(data(slot));
          if (!run_signal(step, n, inputs, y)) {
            return failure(StatusCode::unsupported, node.name, "op '", node.op,
                           "' does not run on images");
          }
        }
      }
      tap_value(step, n, y);
    }
    return ok_status();
  }
};

Executor::Executor() : implementation_(std::make_unique<Implementation>()) {}
Executor::Executor(Executor&&) noexcept = default;
Executor& Executor::operator=(Executor&&) noexcept = default;
Executor::~Executor() = default;

Result<Executor> Executor::create(std::shared_ptr<const Artifact> artifact,
                                  ExecutorOptions options) {
  if (artifact == nullptr) {
    return error(StatusCode::invalid_argument, "[runtime] an artifact was required");
  }
  Executor executor;
  executor.implementation_->artifact = std::move(artifact);
  executor.implementation_->options = options;
  NIBBLE_RETURN_IF_ERROR(executor.implementation_->prepare());
  return executor;
}

const Artifact& Executor::artifact() const { return *implementation_->artifact; }
std::shared_ptr<const Artifact> Executor::shared_artifact() const {
  return implementation_->artifact;
}

int64_t Executor::row_bytes() const {
  return implementation_->integer ? implementation_->integer->row_bytes()
                                  : implementation_->sharing.row_bytes();
}

const std::vector<KvScheme>& Executor::kv_schemes() const { return implementation_->kv; }

void Executor::set_tap(std::function<void(const TapValue&)> tap) {
  implementation_->tap = std::move(tap);
}

std::map<std::string, std::string> Executor::kernels() const { return implementation_->kernels; }

Result<std::unique_ptr<KvCache>> Executor::make_cache(int64_t capacity) const {
  const Program& program = implementation_->artifact->program;
  NIBBLE_RETURN_IF_ERROR(require_decoder(program));
  if (capacity < 1 || capacity > program.context_length) {
    return failure(StatusCode::out_of_range, "cache", "1 to ", program.context_length,
                   " positions (the model's context) were required; found ", capacity);
  }
  return KvCache::create(program, implementation_->kv, capacity);
}

Status Executor::check_tokens(std::span<const int32_t> tokens, const KvCache& cache,
                              MatrixView<float> logits) const {
  const Program& program = implementation_->artifact->program;
  const int64_t n = static_cast<int64_t>(tokens.size());
  NIBBLE_RETURN_IF_ERROR(require_decoder(program));
  if (n == 0) return failure(StatusCode::invalid_argument, "tokens", "at least one was required");
  if ((logits.rows != n && logits.rows != 1) || logits.cols != program.vocabulary) {
    return failure(StatusCode::invalid_argument, "logits", "[", n, " or 1, ", program.vocabulary,
                   "] was required; found [", logits.rows, ", ", logits.cols, "]");
  }
  if (!cache.fits(program, implementation_->kv)) {
    return failure(StatusCode::invalid_argument, "cache",
                   "a cache of this model was required; found another model's; use make_cache");
  }
  if (cache.length() + n > cache.capacity()) {
    return failure(StatusCode::out_of_range, "tokens", "room for ", cache.length() + n,
                   " positions was required; the cache has ", cache.capacity(),
                   "; give fewer tokens or a longer cache (the model's context is ",
                   program.context_length, ")");
  }
  // Before anything is written to the cache.
  for (int64_t t = 0; t < n; ++t) {
    const int32_t id = tokens[static_cast<size_t>(t)];
    if (id < 0 || id >= program.vocabulary) {
      return failure(StatusCode::out_of_range, "tokens", "ids in [0, ", program.vocabulary,
                     ") were required; found ", id, " at position ", t,
                     "; does the tokenizer belong to this model?");
    }
  }
  return ok_status();
}

Status Executor::forward(std::span<const int32_t> tokens, KvCache& cache,
                         MatrixView<float> logits) {
  NIBBLE_RETURN_IF_ERROR(check_tokens(tokens, cache, logits));
  KvCache* const one = &cache;
  return implementation_->run_tokens(tokens, {&one, 1}, logits);
}

Status Executor::decode(std::span<const int32_t> tokens, std::span<KvCache* const> caches,
                        MatrixView<float> logits) {
  if (caches.empty() || caches.size() != tokens.size() ||
      logits.rows != static_cast<int64_t>(tokens.size())) {
    return failure(StatusCode::invalid_argument, "caches",
                   "a token, a cache and a row of logits were required for each sequence; "
                   "found ",
                   tokens.size(), ", ", caches.size(), " and ", logits.rows);
  }
  for (size_t i = 0; i < caches.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(check_tokens(
        tokens.subspan(i, 1), *caches[i],
        MatrixView<float>(logits.row(static_cast<int64_t>(i)), 1, logits.cols)));
    if (std::find(caches.begin(), caches.begin() + static_cast<std::ptrdiff_t>(i),
                  caches[i]) != caches.begin() + static_cast<std::ptrdiff_t>(i)) {
      return failure(StatusCode::invalid_argument, "caches",
                     "a cache of its own was required for each sequence; found number ", i,
                     " twice");
    }
  }
  return implementation_->run_tokens(tokens, caches, logits);
}

int64_t Executor::embedding_features() const {
  return implementation_->encoder ? implementation_->encoder->features() : 0;
}

int64_t Executor::embedding_rows(std::span<const int64_t> lengths) const {
  return implementation_->encoder ? implementation_->encoder->rows(lengths) : 0;
}

Status Executor::encode(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
                        std::span<const int32_t> types, MatrixView<float> output) {
  if (!implementation_->encoder) {
    return failure(StatusCode::invalid_argument,
                   implementation_->artifact->program.architecture,
                   "an encoder was required; this model makes logits");
  }
  return implementation_->encoder->run(tokens, lengths, types, implementation_->tap, output);
}

Status Executor::forward_keeping(std::span<const int32_t> tokens, KvCache& cache,
                                 MatrixView<float> logits, BlockInputs& kept) {
  NIBBLE_RETURN_IF_ERROR(check_tokens(tokens, cache, logits));
  kept = {static_cast<int64_t>(tokens.size()), {}};
  KvCache* const one = &cache;
  return implementation_->run_tokens(tokens, {&one, 1}, logits, 0, &kept);
}

Status Executor::forward_from(size_t stage, const BlockInputs& kept,
                              std::span<const int32_t> tokens, KvCache& cache,
                              MatrixView<float> logits) {
  NIBBLE_RETURN_IF_ERROR(check_tokens(tokens, cache, logits));
  Implementation& net = *implementation_;
  const int64_t n = static_cast<int64_t>(tokens.size());
  if (kept.tokens != n || kept.stages.size() != net.sharing.stages.size() ||
      stage >= net.sharing.stages.size()) {
    return failure(StatusCode::invalid_argument, "stage", "one of ",
                   net.sharing.stages.size(), " stages kept of ", n,
                   " tokens was required; found stage ", stage, " of ",
                   kept.stages.size(), " kept of ", kept.tokens, " tokens");
  }
  net.reserve(n);
  const std::vector<float>& values = kept.stages[stage];
  net.stage_values(net.sharing.stages[stage], n, [&](float* to, size_t at, size_t size) {
    std::copy_n(values.data() + at, size, to);
  });
  KvCache* const one = &cache;
  return net.run_tokens(tokens, {&one, 1}, logits, net.sharing.stages[stage].node);
}

Result<size_t> Executor::stage_of(const std::string& layer) const {
  const Implementation& net = *implementation_;
  for (size_t i = 0; i < net.steps.size(); ++i) {
    if (role_of(*net.steps[i].node, layer).empty()) continue;
    size_t stage = 0;
    const std::vector<ValueSlots::Stage>& stages = net.sharing.stages;
    while (stage + 1 < stages.size() && stages[stage + 1].node <= i) ++stage;
    return stage;
  }
  return failure(StatusCode::not_found, layer, "a layer of the program was required");
}

Status Executor::exchange_layer(const std::string& layer, const Artifact* other) {
  Implementation& net = *implementation_;
  for (const std::function<void()>& back : net.undo) back();
  net.undo.clear();
  if (other == nullptr) return ok_status();
  for (Step& step : net.steps) {
    const std::string role = role_of(*step.node, layer);
    if (role.empty()) continue;
    NIBBLE_ASSIGN_OR_RETURN(std::function<void()> back,
                            exchange_weight(*other, net.options, role, step));
    net.undo.push_back(std::move(back));
  }
  if (!net.undo.empty()) return ok_status();
  return failure(StatusCode::not_found, layer, "a layer of the program was required");
}

Status Executor::forward_images(std::span<const float> images, std::span<const int64_t> shape,
                                MatrixView<float> logits) {
  Implementation& net = *implementation_;
  const Program& program = net.artifact->program;
  if (program.is_language_model()) {
    return failure(StatusCode::invalid_argument, program.architecture,
                   "an image model was required; this one reads tokens");
  }
  if (net.integer) return net.integer->run(images, shape, net.tap, logits);
  if (net.input_ports.size() != 1 || net.output_ports.size() != 1 ||
      net.input_ports[0].shape[0] != kUnknownSize) {
    return failure(StatusCode::invalid_argument, program.architecture,
                   "a net of one input [n, ..] and one output was required; this one has ",
                   net.input_ports.size(), " and ", net.output_ports.size(),
                   "; use forward_values");
  }
  const int64_t count = shape.empty() ? 0 : shape[0];
  const int64_t size = net.input_ports[0].features;
  const bool same_shape = count > 0 && std::equal(shape.begin() + 1, shape.end(),
                                                  net.image_shape.begin(),
                                                  net.image_shape.end());
  if (!same_shape || static_cast<int64_t>(images.size()) != count * size ||
      logits.rows != count || logits.cols != net.classes) {
    return failure(StatusCode::invalid_argument, program.inputs[0].name, "images of ",
                   shape_text(net.image_shape), " and logits [n, ", net.classes,
                   "] were required; found images ",
                   shape_text(shape), " and logits [", logits.rows, ", ", logits.cols, "]");
  }
  const int64_t batch = net.tap ? count : kImages;
  for (int64_t first = 0; first < count; first += batch) {
    const int64_t now = std::min(batch, count - first);
    NIBBLE_RETURN_IF_ERROR(
        net.run_images(now, images.data() + first * size,
                       MatrixView<float>(logits.row(first), now, logits.cols, logits.stride)));
  }
  return ok_status();
}

Result<std::vector<NetOutput>> Executor::forward_values(std::span<const NetInput> inputs) {
  Implementation& net = *implementation_;
  const Program& program = net.artifact->program;
  if (program.is_language_model()) {
    return failure(StatusCode::invalid_argument, program.architecture,
                   "a net of floats was required; this one reads tokens");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t n, net_batch(program, net.input_ports, inputs));
  if (net.integer) {
    const NetPort& port = net.output_ports[0];
    NetOutput output{port.name, port.shape,
                     std::vector<float>(static_cast<size_t>(n * port.features))};
    std::replace(output.shape.begin(), output.shape.end(), kUnknownSize, n);
    NIBBLE_RETURN_IF_ERROR(
        net.integer->run(inputs[0].values, inputs[0].shape, net.tap,
                         MatrixView<float>(output.values.data(), n, port.features)));
    return std::vector<NetOutput>{std::move(output)};
  }
  net.reserve(n);
  for (const NetInput& input : inputs) {
    for (const NetPort& port : net.input_ports) {
      if (port.name != input.name) continue;
      std::copy(input.values.begin(), input.values.end(), net.data(port.slot));
      if (net.tap)
        net.tap({.name = port.name,
                 .shape = input.shape,
                 .floats = input.values,
                 .codes = {},
                 .scale = 0});
    }
  }
  NIBBLE_RETURN_IF_ERROR(net.run_net(n));
  std::vector<NetOutput> outputs;
  for (const NetPort& port : net.output_ports) {
    NetOutput& output = outputs.emplace_back(NetOutput{port.name, port.shape, {}});
    std::replace(output.shape.begin(), output.shape.end(), kUnknownSize, n);
    const float* from = net.data(port.slot);
    output.values.assign(from, from + n * port.features);
  }
  return outputs;
}

}  // namespace nibble
