#include "kernels/runtime/cuda_nodes.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/program/rope_attributes.h"
#include "kernels/runtime/cuda_layer_call.h"
#include "kernels/runtime/node_weights.h"

namespace nibble::cuda {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[cuda] ", where, ": ", parts...);
}

const char* name_of(Float16 type) { return type == Float16::f16 ? "f16" : "bf16"; }
const char* name_of(LinearForm form) {
  constexpr const char* kNames[] = {"int4", "table4", "int8", "e4m3", "e5m2", "int8"};
  return kNames[static_cast<size_t>(form)];
}

std::string linear_name(bool int8_input, Float16 type,
                        const std::optional<LinearForm>& form) {
  return cat("linear_", int8_input ? "s8" : name_of(type), "_",
             form ? name_of(*form) : "plain", "__cuda");
}

// A value of at most kChunk rows: columns of a buffer, which siblings share.
struct Place {
  size_t buffer = 0;
  int64_t offset = 0, stride = 0, features = 0;  // 16-bit numbers
};

// What a linear node brings; several that read one value are joined where they can be.
struct Layer {
  std::vector<const Node*> nodes;
  std::vector<int64_t> rows;  // of each
  std::optional<ActivationScheme> input;  // codes that are read in place of floats
  std::optional<LinearPacked> packed;
  LinearWeight plain;  // where it is not packed
  std::vector<float> bias;
  bool reads_int8() const { return input && input->scheme.code != Element::e4m3; }
  int64_t all_rows() const {
    int64_t sum = 0;
    for (const int64_t r : rows) sum += r;
    return sum;
  }
};

class NodeMaker {
 public:
  NodeMaker(const Artifact& artifact, const NodeOptions& options, Runner& runner)
      : artifact_(artifact),
        program_(artifact.program),
        options_(options),
        runner_(runner) {
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      for (const std::string& name : program_.nodes[i].inputs) last_use_[name] = i;
    }
  }

  Result<NodeCalls> make() {
    NIBBLE_ASSIGN_OR_RETURN(net_.ids, allocate<int32_t>(kChunk));
    NIBBLE_ASSIGN_OR_RETURN(net_.positions, allocate<int32_t>(kChunk));
    NIBBLE_ASSIGN_OR_RETURN(net_.lengths, allocate<int32_t>(kChunk));
    NIBBLE_ASSIGN_OR_RETURN(net_.logits,
                            allocate<float>(kLogitRows * program_.vocabulary));
    NIBBLE_RETURN_IF_ERROR(make_caches());
    const Node& last = program_.nodes.back();
    if (last.op != "linear" || last.outputs[0] != program_.outputs[0].name) {
      return failure(StatusCode::unsupported, last.name,
                     "a linear layer that makes the logits was required; found ",
                     last.op);
    }
    done_.assign(program_.nodes.size(), false);
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      if (!done_[i]) NIBBLE_RETURN_IF_ERROR(make_node(i));
      release_after(i);
    }
    NIBBLE_ASSIGN_OR_RETURN(scratch_->partial, runner_.allocate(scratch_->partial_bytes));
    NIBBLE_ASSIGN_OR_RETURN(scratch_->weight, runner_.allocate(scratch_->weight_bytes));
    NIBBLE_ASSIGN_OR_RETURN(scratch_->sums, runner_.allocate(scratch_->sum_bytes));
    NIBBLE_ASSIGN_OR_RETURN(scratch_->counters,
                            allocate<uint32_t>(scratch_->counter_count));
    const std::vector<uint32_t> zeros(static_cast<size_t>(scratch_->counter_count), 0);
    NIBBLE_RETURN_IF_ERROR(
        runner_.copy_in(scratch_->counters, zeros.data(), scratch_->counter_count * 4));
    return std::move(net_);
  }

 private:
  // --- memory

  template <class T>
  Result<T*> allocate(int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(void* const at,
                            runner_.allocate(count * static_cast<int64_t>(sizeof(T))));
    return static_cast<T*>(at);
  }
  Result<void*> upload(const void* data, int64_t bytes) {
    NIBBLE_ASSIGN_OR_RETURN(void* const at, runner_.allocate(bytes));
    NIBBLE_RETURN_IF_ERROR(runner_.copy_in(at, data, bytes));
    return at;
  }
  Result<const float*> upload_floats(const std::vector<float>& values) {
    if (values.empty()) return static_cast<const float*>(nullptr);
    NIBBLE_ASSIGN_OR_RETURN(
        void* const at, upload(values.data(), static_cast<int64_t>(values.size()) * 4));
    return static_cast<const float*>(at);
  }
  // Rows of a weight in the type of the values, a piece at a time.
  Result<const void*> upload_16(const LinearWeight& weight) {
    NIBBLE_ASSIGN_OR_RETURN(uint16_t* const table,
                            allocate<uint16_t>(weight.rows * weight.cols));
    const int64_t piece = std::max<int64_t>(1, (int64_t{1} << 22) / weight.cols);
    std::vector<float> rows;
    std::vector<uint16_t> halves;
    for (int64_t first = 0; first < weight.rows; first += piece) {
      const int64_t now = std::min(piece, weight.rows - first);
      rows.resize(static_cast<size_t>(now * weight.cols));
      halves.resize(rows.size());
      NIBBLE_RETURN_IF_ERROR(
          weight_rows(weight, first, MatrixView<float>(rows.data(), now, weight.cols)));
      const bool f16 = options_.type == Float16::f16;
      parallel_for(now, [&](int64_t r) {
        const size_t begin = static_cast<size_t>(r * weight.cols);
        for (size_t i = begin; i < begin + static_cast<size_t>(weight.cols); ++i)
          halves[i] = f16 ? f16_from_float(rows[i]) : bf16_from_float(rows[i]);
      });
      NIBBLE_RETURN_IF_ERROR(runner_.copy_in(table + first * weight.cols, halves.data(),
                                             now * weight.cols * 2));
    }
    return static_cast<const void*>(table);
  }
  // The same of a tensor that several nodes name, once.
  Result<const void*> table_of(const Node& node, const LinearWeight& weight) {
    const auto known = tables_.find(node.parameter("weight"));
    if (known != tables_.end()) return known->second;
    NIBBLE_ASSIGN_OR_RETURN(const void* const table, upload_16(weight));
    tables_[node.parameter("weight")] = table;
    return table;
  }

  // --- values

  struct Buffer {
    uint16_t* data = nullptr;
    int64_t columns = 0;
    int users = 0;
  };

  Result<size_t> take_buffer(int64_t columns) {
    for (size_t b = 0; b < buffers_.size(); ++b) {
      if (buffers_[b].users == 0 && buffers_[b].columns == columns) return b;
    }
    Buffer buffer{.columns = columns};
    NIBBLE_ASSIGN_OR_RETURN(buffer.data, allocate<uint16_t>(kChunk * columns));
    buffers_.push_back(buffer);
    return buffers_.size() - 1;
  }
  void put(const std::string& value, const Place& place) {
    ++buffers_[place.buffer].users;
    places_[value] = place;
  }
  // A value of its own.
  Result<Place> put_new(const std::string& value, int64_t features) {
    NIBBLE_ASSIGN_OR_RETURN(const size_t buffer, take_buffer(features));
    const Place place = {buffer, 0, features, features};
    put(value, place);
    return place;
  }
  uint16_t* data(const Place& place) const {
    return buffers_[place.buffer].data + place.offset;
  }
  const Place& input(const Node& node, size_t at) const {
    return places_.at(node.inputs[at]);
  }
  void release_after(size_t i) {
    for (auto at = places_.begin(); at != places_.end();) {
      const auto use = last_use_.find(at->first);
      if (use != last_use_.end() && use->second > i) {
        ++at;
        continue;
      }
      --buffers_[at->second.buffer].users;
      at = places_.erase(at);
    }
  }

  // --- nodes

  // A call of all tokens, whatever their number.
  template <class Call>
  void add_call(Call call) {
    net_.calls.push_back([&runner = runner_, call](int tokens, int) mutable {
      call.tokens = tokens;
      return runner.run(call);
    });
  }

  Status make_node(size_t i) {
    const Node& node = program_.nodes[i];
    if (node.op == "embedding") return make_embedding(node);
    if (node.op == "linear") return make_linear(i);
    if (node.op == "rms_norm") return make_norm(node, nullptr);
    if (node.op == "rope") return make_rope(i);
    if (node.op == "attention") return make_attention(node);
    if (node.op == "silu_mul") return make_silu_mul(node);
    if (node.op == "add") return make_add(i);
    return failure(StatusCode::unsupported, node.name, "op '", node.op,
                   "' has no CUDA kernel; run this model on the CPU");
  }

  Status make_embedding(const Node& node) {
    NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, node_weight(artifact_, node));
    NIBBLE_ASSIGN_OR_RETURN(const void* const table, table_of(node, weight));
    NIBBLE_ASSIGN_OR_RETURN(const Place y, put_new(node.outputs[0], weight.cols));
    net_.kernels.emplace(node.parameter("weight"),
                         cat("embedding_", name_of(options_.type), "__cuda"));
    EmbeddingCall call{.table = table,
                       .ids = net_.ids,
                       .y = data(y),
                       .y_stride = y.stride,
                       .cols = static_cast<int>(weight.cols)};
    add_call(call);
    return ok_status();
  }

  Result<Layer> layer_of(const Node& node) {
    NIBBLE_ASSIGN_OR_RETURN(LinearWeight weight, node_weight(artifact_, node));
    Layer layer;
    layer.nodes = {&node};
    layer.rows = {weight.rows};
    if (const ActivationScheme* asked = asked_input(artifact_, node)) {
      layer.input = *asked;
      const std::string scheme = to_string(asked->scheme);
      const bool known = asked->dynamic
                             ? scheme == "int8n/r@f32" || scheme == "e4m3/r@f32"
                             : scheme == "e4m3/t@f32" && asked->scale > 0;
      if (!known || weight.is_plain() ||
          !can_pack_linear(weight.scheme, weight.cols, layer.reads_int8())) {
        return failure(
            StatusCode::unsupported, node.name,
            "float inputs, e4m3 ones with weights that a kernel packs, or dynamic "
            "int8n/r@f32 ones with intN weights under one scale a row were required; "
            "found ",
            asked->dynamic ? "" : "static ", scheme, " with ", to_string(weight.scheme),
            "; run this model on the CPU");
      }
    }
    if (!weight.is_plain() &&
        can_pack_linear(weight.scheme, weight.cols, layer.reads_int8())) {
      NIBBLE_ASSIGN_OR_RETURN(layer.packed, pack_linear(weight, layer.reads_int8()));
    } else {
      layer.plain = std::move(weight);
    }
    NIBBLE_ASSIGN_OR_RETURN(layer.bias, node_floats(artifact_, node, "bias"));
    return layer;
  }

  // Joins b to a where one call can do both.
  static bool join(Layer& a, Layer& b) {
    if (!a.packed || !b.packed || a.input != b.input ||
        !can_stack(*a.packed, *b.packed)) {
      return false;
    }
    if (!a.bias.empty() || !b.bias.empty()) {
      a.bias.resize(static_cast<size_t>(a.all_rows()));
      b.bias.resize(static_cast<size_t>(b.all_rows()));
      a.bias.insert(a.bias.end(), b.bias.begin(), b.bias.end());
    }
    a.packed = stack(*a.packed, *b.packed);
    a.nodes.push_back(b.nodes[0]);
    a.rows.push_back(b.rows[0]);
    return true;
  }

  Status make_linear(size_t i) {
    const Node& node = program_.nodes[i];
    const std::string& x = node.inputs[0];
    const auto is_last = [&](size_t n) { return n + 1 == program_.nodes.size(); };
    std::vector<Layer> layers;
    for (size_t j = i; j < program_.nodes.size(); ++j) {
      const Node& other = program_.nodes[j];
      if (other.block != node.block || (j > i && is_last(j))) break;
      if (other.op != "linear" || other.inputs[0] != x || done_[j]) continue;
      done_[j] = true;
      NIBBLE_ASSIGN_OR_RETURN(Layer layer, layer_of(other));
      if (layers.empty() || !join(layers.back(), layer))
        layers.push_back(std::move(layer));
    }
    const Place from = input(node, 0);
    std::optional<ActivationScheme> made;  // of x: what its codes are just now
    for (Layer& layer : layers) {
      if (layer.input && made != layer.input) {
        NIBBLE_RETURN_IF_ERROR(make_codes(from, *layer.input));
        made = layer.input;
      }
      NIBBLE_RETURN_IF_ERROR(make_layer(layer, from, is_last(i)));
    }
    return ok_status();
  }

  // x as codes with a scale a token, for the linear layers that follow; of FP8 also as
  // numbers.
  Status make_codes(const Place& x, const ActivationScheme& input) {
    const bool fp8 = input.scheme.code == Element::e4m3;
    const int64_t stride = whole_16(x.features), size = kChunk * stride;
    uint8_t*& codes = codes_[x.features];
    if (codes == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(codes, allocate<uint8_t>(size));
      const std::vector<uint8_t> zeros(static_cast<size_t>(size), 0);
      NIBBLE_RETURN_IF_ERROR(runner_.copy_in(codes, zeros.data(), size));
    }
    uint16_t*& numbers = numbers_[x.features];
    if (fp8 && numbers == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(numbers, allocate<uint16_t>(size));
    }
    if (x_scales_ == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(x_scales_, allocate<float>(kChunk));
    }
    QuantizeRowsCall call{.input = options_.type,
                          .x = data(x),
                          .x_stride = x.stride,
                          .fp8 = fp8,
                          .codes = codes,
                          .stride = stride,
                          .scales = x_scales_,
                          .scale = input.dynamic ? 0 : input.scale,
                          .numbers = fp8 ? numbers : nullptr,
                          .numbers_stride = stride,
                          .cols = static_cast<int>(x.features)};
    add_call(call);
    return ok_status();
  }

  Status make_layer(const Layer& layer, const Place& x, bool makes_logits) {
    const int64_t rows = layer.all_rows();
    void* y = net_.logits;
    int64_t y_stride = rows;
    if (!makes_logits) {
      NIBBLE_ASSIGN_OR_RETURN(const size_t buffer, take_buffer(rows));
      int64_t offset = 0;
      for (size_t n = 0; n < layer.nodes.size(); ++n) {
        put(layer.nodes[n]->outputs[0], {buffer, offset, rows, layer.rows[n]});
        offset += layer.rows[n];
      }
      y = buffers_[buffer].data;
    }
    NIBBLE_ASSIGN_OR_RETURN(const float* const bias, upload_floats(layer.bias));
    const Output output = makes_logits                    ? Output::f32
                          : options_.type == Float16::f16 ? Output::f16
                                                          : Output::bf16;
    for (const Node* node : layer.nodes) {
      net_.kernels[node->parameter("weight")] =
          linear_name(layer.reads_int8(), options_.type,
                      layer.packed ? std::optional(layer.packed->form) : std::nullopt);
    }
    if (!layer.packed) return make_plain(layer, x, bias, y, output, makes_logits);
    const LinearPacked& packed = *layer.packed;
    net_.weight_bytes += packed.bytes();
    LinearCall call = linear_call(packed);
    call.input = options_.type;
    call.output = output;
    NIBBLE_ASSIGN_OR_RETURN(call.codes, upload_bytes(packed.codes));
    NIBBLE_ASSIGN_OR_RETURN(call.scales, upload_bytes(packed.scales));
    NIBBLE_ASSIGN_OR_RETURN(call.zeros, upload_bytes(packed.zeros));
    call.x = data(x);
    call.x_stride = x.stride;
    if (layer.input) {
      call.x = layer.reads_int8() ? static_cast<const void*>(codes_.at(x.features))
                                  : numbers_.at(x.features);
      call.x_stride = whole_16(x.features);
      call.x_scales = x_scales_;
    }
    call.bias = bias;
    call.y = y;
    call.y_stride = y_stride;
    const bool reads_fp8 = layer.input && !layer.reads_int8();
    const LayerCall of_layer{
        call, runner_.multiprocessors(),
        runner_.has_products() && !makes_logits && (!layer.reads_int8() || rows % 4 == 0),
        reads_fp8 ? codes_.at(x.features) : nullptr};
    for (const int tokens : {8, kMostTokens}) {
      const LinearPlan plan =
          plan_linear(call.form, call.rows, call.cols, tokens, of_layer.multiprocessors);
      want_scratch(plan.partial_bytes, plan.row_blocks);
    }
    if (of_layer.has_products) {
      scratch_->weight_bytes = std::max(scratch_->weight_bytes, of_layer.weight_bytes());
      if (of_layer.needs_epilogue())
        scratch_->sum_bytes = std::max(scratch_->sum_bytes, kChunk * rows * 4);
    }
    const int64_t x_bytes = layer.reads_int8() ? 1 : 2;
    net_.calls.push_back([&runner = runner_, scratch = scratch_, of_layer, makes_logits,
                          x_bytes](int tokens, int with_logits) {
      if (!makes_logits) return of_layer.run(runner, *scratch, tokens);
      if (with_logits == 0) return ok_status();
      LayerCall last = of_layer;
      const int64_t skipped = tokens - with_logits;
      last.call.x = static_cast<const uint8_t*>(of_layer.call.x) +
                    skipped * of_layer.call.x_stride * x_bytes;
      if (last.call.x_scales != nullptr) last.call.x_scales += skipped;
      return last.run(runner, *scratch, with_logits);
    });
    return ok_status();
  }

  Result<const void*> upload_bytes(const Bytes& bytes) {
    if (bytes.size() == 0) return static_cast<const void*>(nullptr);
    NIBBLE_ASSIGN_OR_RETURN(const void* const at,
                            upload(bytes.data(), static_cast<int64_t>(bytes.size())));
    return at;
  }

  Status make_plain(const Layer& layer, const Place& x, const float* bias, void* y,
                    Output output, bool makes_logits) {
    NIBBLE_ASSIGN_OR_RETURN(const void* const w, table_of(*layer.nodes[0], layer.plain));
    net_.weight_bytes += layer.plain.rows * layer.plain.cols * 2;
    const PlainLinearCall call{.type = options_.type,
                               .output = output,
                               .rows = static_cast<int>(layer.plain.rows),
                               .cols = static_cast<int>(layer.plain.cols),
                               .w = w,
                               .x = data(x),
                               .x_stride = x.stride,
                               .bias = bias,
                               .y = y,
                               .y_stride = layer.plain.rows};
    const bool has_products =
        runner_.has_products() && !makes_logits && call.cols % 8 == 0;
    if (has_products && bias != nullptr) {
      scratch_->sum_bytes =
          std::max(scratch_->sum_bytes, int64_t{kChunk} * call.rows * 4);
    }
    net_.calls.push_back([&runner = runner_, scratch = scratch_, call, makes_logits,
                          has_products](int tokens, int with_logits) {
      const int wanted = makes_logits ? with_logits : tokens;
      if (wanted == 0) return ok_status();
      PlainLinearCall now = call;
      now.x = static_cast<const uint16_t*>(call.x) + (tokens - wanted) * call.x_stride;
      now.tokens = wanted;
      return run_plain_layer(runner, *scratch, now, has_products);
    });
    return ok_status();
  }

  // added: the add node whose sum is normed, or null.
  Status make_norm(const Node& node, const Node* added) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> weight,
                            node_floats(artifact_, node, "weight"));
    const Place x = added == nullptr ? input(node, 0) : input(*added, 0);
    const int64_t width = static_cast<int64_t>(weight.size());
    RmsNormCall call{.input = options_.type,
                     .output = options_.type == Float16::f16 ? Output::f16 : Output::bf16,
                     .x = data(x),
                     .x_stride = x.stride,
                     .epsilon = static_cast<float>(node.number("epsilon", 1e-6)),
                     .cols = static_cast<int>(width),
                     .parts = static_cast<int>(x.features / width)};
    if (added != nullptr) {
      const Place other = input(*added, 1);
      NIBBLE_ASSIGN_OR_RETURN(const Place sum, put_new(added->outputs[0], x.features));
      call.add = data(other);
      call.add_stride = other.stride;
      call.sum = data(sum);
      call.sum_stride = sum.stride;
    }
    NIBBLE_ASSIGN_OR_RETURN(call.weight, upload_floats(weight));
    NIBBLE_ASSIGN_OR_RETURN(const Place y, put_new(node.outputs[0], x.features));
    call.y = data(y);
    call.y_stride = y.stride;
    net_.calls.push_back([&runner = runner_, call](int tokens, int) mutable {
      call.rows = tokens * call.parts;
      return runner.run(call);
    });
    return ok_status();
  }

  Status make_add(size_t i) {
    const Node& node = program_.nodes[i];
    if (i + 1 < program_.nodes.size()) {
      const Node& next = program_.nodes[i + 1];
      if (next.op == "rms_norm" && next.inputs[0] == node.outputs[0] &&
          next.integer("head_dim", 0) == 0) {
        done_[i + 1] = true;
        return make_norm(next, &node);
      }
    }
    const Place a = input(node, 0), b = input(node, 1);
    NIBBLE_ASSIGN_OR_RETURN(const Place y, put_new(node.outputs[0], a.features));
    AddCall call{.type = options_.type,
                 .a = data(a),
                 .b = data(b),
                 .a_stride = a.stride,
                 .b_stride = b.stride,
                 .y = data(y),
                 .y_stride = y.stride,
                 .cols = static_cast<int>(a.features)};
    add_call(call);
    return ok_status();
  }

  Status make_silu_mul(const Node& node) {
    const Place gate = input(node, 0), up = input(node, 1);
    NIBBLE_ASSIGN_OR_RETURN(const Place y, put_new(node.outputs[0], gate.features));
    SiluMulCall call{.type = options_.type,
                     .gate = data(gate),
                     .up = data(up),
                     .gate_stride = gate.stride,
                     .up_stride = up.stride,
                     .y = data(y),
                     .y_stride = y.stride,
                     .cols = static_cast<int>(gate.features)};
    add_call(call);
    return ok_status();
  }

  struct Angles {
    RopeShape shape;
    const float *cosines, *sines;
  };
  Result<Angles> angles_of(const Node& node) {
    const RopeShape shape = rope_shape(node);
    for (const Angles& known : angles_) {
      if (known.shape == shape) return known;
    }
    RopeTable table(shape);
    table.reserve(options_.capacity);
    const size_t count = static_cast<size_t>(options_.capacity * shape.head_dim / 2);
    Angles angles{shape, nullptr, nullptr};
    NIBBLE_ASSIGN_OR_RETURN(angles.cosines,
                            upload_floats({table.cosines(0), table.cosines(0) + count}));
    NIBBLE_ASSIGN_OR_RETURN(angles.sines,
                            upload_floats({table.sines(0), table.sines(0) + count}));
    angles_.push_back(angles);
    return angles;
  }

  // Turns its input where it lies, which nobody else may read; with the next node's where
  // that lies beside it and turns alike, as q and k do.
  Status make_rope(size_t i) {
    const Node& node = program_.nodes[i];
    if (last_use_.at(node.inputs[0]) != i) {
      return failure(
          StatusCode::unsupported, node.name,
          "a value that nothing else reads was required; run this model on the "
          "CPU");
    }
    const Place x = input(node, 0);
    NIBBLE_ASSIGN_OR_RETURN(const Angles angles, angles_of(node));
    const bool interleaved = node.integer("interleaved", 0) != 0;
    int64_t features = x.features;
    put(node.outputs[0], x);
    size_t j = i + 1;  // the next node that is not part of another's call
    while (j < program_.nodes.size() && done_[j]) ++j;
    if (j < program_.nodes.size() && program_.nodes[j].op == "rope") {
      const Node& next = program_.nodes[j];
      const Place& beside = input(next, 0);
      if (beside.buffer == x.buffer && beside.offset == x.offset + x.features &&
          rope_shape(next) == angles.shape && last_use_.at(next.inputs[0]) == j &&
          (next.integer("interleaved", 0) != 0) == interleaved) {
        features += beside.features;
        put(next.outputs[0], beside);
        done_[j] = true;
      }
    }
    RopeCall call{.type = options_.type,
                  .x = data(x),
                  .stride = x.stride,
                  .positions = net_.positions,
                  .cosines = angles.cosines,
                  .sines = angles.sines,
                  .heads = static_cast<int>(features / angles.shape.head_dim),
                  .head_dim = static_cast<int>(angles.shape.head_dim),
                  .interleaved = interleaved};
    add_call(call);
    return ok_status();
  }

  // --- attention

  struct Cache {
    KvForm form = KvForm::f16;
    void *keys = nullptr, *values = nullptr;
    uint16_t *key_scales = nullptr, *value_scales = nullptr;
  };

  Result<KvForm> form_of(const ProgramState& state) const {
    KvScheme scheme = state.scheme;
    if (!options_.kv.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(
          scheme, parse_kv_scheme(options_.kv, state.kv_heads, state.head_dim));
    }
    if (scheme.rounds_queries()) {
      return failure(StatusCode::unsupported, state.name,
                     "queries as they are were required; found them rounded to ",
                     to_string(scheme.queries),
                     "; run this model on the CPU, or choose a cache with the option kv");
    }
    const std::string head = cat("/g", state.head_dim, "@f16");
    const std::string text = to_string(scheme);
    if (scheme.is_f32() || text == "f16") return KvForm::f16;
    if (text == "int8n" + head) return KvForm::int8;
    if (text == "e4m3" + head) return KvForm::e4m3;
    return failure(StatusCode::unsupported, state.name, "a KV cache of f16, int8n", head,
                   " or e4m3", head, " was required; found ", text,
                   "; choose one with the option kv");
  }

  Status make_caches() {
    for (const ProgramState& state : program_.states) {
      Cache cache;
      NIBBLE_ASSIGN_OR_RETURN(cache.form, form_of(state));
      const int64_t width = state.kv_heads * state.head_dim;
      const int64_t bytes = width * (cache.form == KvForm::f16 ? 2 : 1);
      NIBBLE_ASSIGN_OR_RETURN(cache.keys, runner_.allocate(options_.capacity * bytes));
      NIBBLE_ASSIGN_OR_RETURN(cache.values, runner_.allocate(options_.capacity * bytes));
      net_.position_bytes += 2 * bytes;
      if (cache.form != KvForm::f16) {
        const int64_t count = options_.capacity * state.kv_heads;
        NIBBLE_ASSIGN_OR_RETURN(cache.key_scales, allocate<uint16_t>(count));
        NIBBLE_ASSIGN_OR_RETURN(cache.value_scales, allocate<uint16_t>(count));
        net_.position_bytes += 4 * state.kv_heads;
      }
      caches_[state.name] = cache;
    }
    return ok_status();
  }

  Status make_attention(const Node& node) {
    const AttentionShape shape{.heads = node.integer("heads", 0),
                               .kv_heads = node.integer("kv_heads", 0),
                               .head_dim = node.integer("head_dim", 0),
                               .scale = static_cast<float>(node.number("scale", 1.0)),
                               .window = node.integer("window", 0)};
    const auto found = caches_.find(node.text("state", ""));
    if (found == caches_.end()) {
      return failure(StatusCode::invalid_argument, node.name, "a state named '",
                     node.text("state", ""),
                     "' was required; the program has none by this name");
    }
    const Cache& cache = found->second;
    if (!has_kv_attention(cache.form, shape.head_dim)) {
      return failure(StatusCode::unsupported, node.name,
                     "heads of 64, 128 or 256 numbers, or 32 with an f16 cache, were "
                     "required; found ",
                     shape.head_dim, "; run this model on the CPU");
    }
    const Place q = input(node, 0), k = input(node, 1), v = input(node, 2);
    StoreKvCall store{.input = options_.type,
                      .form = cache.form,
                      .keys = {data(k), k.stride, cache.keys, cache.key_scales},
                      .values = {data(v), v.stride, cache.values, cache.value_scales},
                      .positions = net_.positions,
                      .kv_heads = static_cast<int>(shape.kv_heads),
                      .head_dim = static_cast<int>(shape.head_dim)};
    add_call(store);
    NIBBLE_ASSIGN_OR_RETURN(const Place y, put_new(node.outputs[0], q.features));
    const KvAttentionCall call{
        .shape = shape,
        .input = options_.type,
        .output = options_.type == Float16::f16 ? Output::f16 : Output::bf16,
        .form = cache.form,
        .capacity = options_.capacity,
        .one_cache = true,
        .q = data(q),
        .q_stride = q.stride,
        .k = cache.keys,
        .v = cache.values,
        .k_scales = cache.key_scales,
        .v_scales = cache.value_scales,
        .lengths = net_.lengths,
        .y = data(y)};
    const int longest = static_cast<int>(options_.capacity);
    const int multiprocessors = runner_.multiprocessors();
    for (int tokens = 1; tokens <= kChunk; ++tokens) {
      const KvAttentionPlan plan =
          plan_kv_attention(shape, tokens, longest, multiprocessors);
      want_scratch(plan.partial_bytes, plan.counters);
    }
    net_.calls.push_back([&runner = runner_, scratch = scratch_, call, longest,
                          multiprocessors](int tokens, int) {
      KvAttentionCall now = call;
      now.batch = tokens;
      now.partial = static_cast<float*>(scratch->partial);
      now.counters = scratch->counters;
      return runner.run(now,
                        plan_kv_attention(call.shape, tokens, longest, multiprocessors));
    });
    return ok_status();
  }

  void want_scratch(int64_t partial_bytes, int64_t counters) {
    scratch_->partial_bytes = std::max(scratch_->partial_bytes, partial_bytes);
    scratch_->counter_count = std::max(scratch_->counter_count, counters);
  }

  const Artifact& artifact_;
  const Program& program_;
  const NodeOptions& options_;
  Runner& runner_;
  NodeCalls net_;
  std::map<std::string, size_t> last_use_;
  std::vector<bool> done_;  // as part of an earlier node's call
  std::vector<Buffer> buffers_;
  std::map<std::string, Place> places_;
  std::map<std::string, const void*> tables_;
  std::map<int64_t, uint8_t*> codes_;  // by columns
  std::map<int64_t, uint16_t*> numbers_;
  float* x_scales_ = nullptr;
  std::vector<Angles> angles_;
  std::map<std::string, Cache> caches_;
  std::shared_ptr<Scratch> scratch_ = std::make_shared<Scratch>();
};

}  // namespace

std::vector<CudaKernel> cuda_kernels() {
  std::vector<CudaKernel> rows = {
      {"linear", linear_name(true, Float16::f16, LinearForm::int8_s8)}};
  for (const Float16 type : {Float16::f16, Float16::bf16}) {
    for (const LinearForm form : {LinearForm::int4, LinearForm::table4, LinearForm::int8,
                                  LinearForm::e4m3, LinearForm::e5m2})
      rows.push_back({"linear", linear_name(false, type, form)});
    rows.push_back({"linear", linear_name(false, type, std::nullopt)});
    rows.push_back({"embedding", cat("embedding_", name_of(type), "__cuda")});
    for (const char* cache : {"f16", "int8", "e4m3"}) {
      rows.push_back(
          {"kv_attention", cat("kv_attention_", name_of(type), "_", cache, "__cuda")});
    }
    for (const char* op :
         {"rms_norm", "rope", "silu_mul", "add", "quantize_rows", "store_kv"})
      rows.push_back({op, cat(op, "_", name_of(type), "__cuda")});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return std::string_view(a.op) < std::string_view(b.op);
  });
  return rows;
}

Result<NodeCalls> make_node_calls(const Artifact& artifact, const NodeOptions& options,
                                  Runner& runner) {
  return NodeMaker(artifact, options, runner).make();
}

}  // namespace nibble::cuda
