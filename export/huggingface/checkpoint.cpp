#include "export/huggingface/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"

namespace nibble {

using Json = nlohmann::json;

Result<HfCheckpoint> HfCheckpoint::open(const std::filesystem::path& directory,
                                        const char* format) {
  HfCheckpoint checkpoint;
  checkpoint.format_ = format;
  NIBBLE_ASSIGN_OR_RETURN(checkpoint.config_json_,
                          read_text_file(directory / "config.json"));
  const Json config = parse_json(checkpoint.config_json_);
  const std::string where = (directory / "config.json").string();
  if (!config.is_object()) {
    return checkpoint.damaged(where, "must be one JSON object; found something else");
  }
  const auto found = config.find("quantization_config");
  if (found == config.end() || !found->is_object()) {
    return checkpoint.damaged(where, "needs the object quantization_config; found none");
  }
  // GPTQModel writes both names.
  const auto text = [&](const char* field) {
    const auto at = found->find(field);
    return at != found->end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  const std::string method =
      text("quant_method").empty() ? text("method") : text("quant_method");
  if (method != format) {
    return checkpoint.damaged(where, "quant_method must be ", format, "; found `", method,
                              "`");
  }
  checkpoint.quantization_ = std::make_shared<const Json>(*found);
  NIBBLE_ASSIGN_OR_RETURN(checkpoint.tensors_,
                          read_sharded_safetensors(directory, nullptr));
  return checkpoint;
}

std::vector<std::string> HfCheckpoint::modules_with(const std::string& suffix) const {
  std::vector<std::string> modules;
  for (const auto& [name, tensor] : tensors_) {
    if (name.size() > suffix.size() && name.ends_with(suffix)) {
      modules.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  return modules;
}

Result<Tensor> HfCheckpoint::take(const std::string& name,
                                  std::initializer_list<DType> dtypes,
                                  const std::vector<int64_t>& shape) {
  std::string required;
  for (const DType dtype : dtypes)
    required += cat(required.empty() ? "" : " or ", dtype_name(dtype));
  std::string sizes;
  for (const int64_t n : shape) {
    sizes +=
        cat(sizes.empty() ? "" : ", ", n < 0 ? std::string("any") : std::to_string(n));
  }
  required += cat(" [", sizes, "]");
  const auto found = tensors_.find(name);
  if (found == tensors_.end() || is_taken(name)) {
    return damaged(name, "must be there, ", required, "; found no such tensor");
  }
  const Tensor& tensor = found->second;
  bool fits = std::find(dtypes.begin(), dtypes.end(), tensor.dtype) != dtypes.end() &&
              tensor.shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || shape[i] == tensor.shape[i];
  }
  if (!fits) {
    return damaged(name, "must be ", required, "; found ", dtype_name(tensor.dtype), " ",
                   shape_text(tensor.shape));
  }
  const std::lock_guard<std::mutex> lock(*mutex_);
  taken_.insert(name);
  return tensor;
}

bool HfCheckpoint::is_taken(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(*mutex_);
  return taken_.count(name) > 0;
}

std::vector<uint8_t> HfCheckpoint::spare_codes(int64_t n) {
  std::vector<uint8_t> codes;
  {
    const std::lock_guard<std::mutex> lock(*mutex_);
    if (!spare_.empty()) {
      codes = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  codes.resize(static_cast<size_t>(n));
  return codes;
}

std::map<std::string, Tensor> HfCheckpoint::rest() const {
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, tensor] : tensors_) {
    if (!taken_.count(name)) tensors[name] = tensor;
  }
  return tensors;
}

Status HfCheckpoint::read_modules(
    const std::vector<std::string>& modules, const EachWeight& each, Decoded& decoded,
    const std::function<Status(const std::string& module, Decoded& one)>& body) {
  struct Outcome {
    Decoded one;
    Status status;
    std::exception_ptr thrown;  // parallel_for lets nothing through
  };
  std::vector<Outcome> outcomes(modules.size());
  parallel_for(static_cast<int64_t>(modules.size()), [&](int64_t i) {
    Outcome& outcome = outcomes[static_cast<size_t>(i)];
    try {
      outcome.status = body(modules[static_cast<size_t>(i)], outcome.one);
    } catch (...) {
      outcome.thrown = std::current_exception();
      return;
    }
    if (!outcome.status.ok() || !each) return;
    std::map<std::string, CodedMatrix>& coded = outcome.one.coded;
    while (outcome.status.ok() && !coded.empty()) {
      const std::string weight = coded.begin()->first;
      outcome.status = each(weight, outcome.one);
      const auto done = coded.extract(weight);
      const std::lock_guard<std::mutex> lock(*mutex_);
      if (!done.empty()) spare_.push_back(std::move(done.mapped().codes));
    }
  });
  for (Outcome& outcome : outcomes) {
    if (outcome.thrown) std::rethrow_exception(outcome.thrown);
    NIBBLE_RETURN_IF_ERROR(std::move(outcome.status));
    decoded.coded.merge(outcome.one.coded);
    decoded.floats.merge(outcome.one.floats);
    decoded.inputs.merge(outcome.one.inputs);
    decoded.permutations.merge(outcome.one.permutations);
    decoded.reciprocal_scales.merge(outcome.one.reciprocal_scales);
    decoded.ignored.merge(outcome.one.ignored);
  }
  return ok_status();
}

uint32_t stream_bits(const Tensor& words, int64_t first, int64_t stride, int64_t bit,
                     int width) {
  const int64_t word = bit / 32;
  uint64_t window = word_at(words, first + word * stride);
  if (bit % 32 + width > 32) {
    window |= static_cast<uint64_t>(word_at(words, first + (word + 1) * stride)) << 32;
  }
  return static_cast<uint32_t>((window >> (bit % 32)) & ((uint64_t{1} << width) - 1));
}

void read_stream(const Tensor& words, int64_t first, int64_t stride, int64_t bit, int width,
                 int64_t n, uint8_t minus, uint8_t* codes) {
  int64_t i = 0;
  if (32 % width == 0 && bit % 32 == 0) {
    const int each = 32 / width;
    const uint32_t mask = (uint32_t{1} << width) - 1;
    int64_t at = first + bit / 32 * stride;
    for (; width == 4 && i + each <= n; i += each, at += stride)
      put_bytes(spread_4_bits(word_at(words, at), minus), codes + i);
    for (; i + each <= n; i += each, at += stride) {
      const uint32_t word = word_at(words, at);
      for (int j = 0; j < each; ++j)
        codes[i + j] = static_cast<uint8_t>(((word >> (j * width)) & mask) - minus);
    }
  }
  for (; i < n; ++i)
    codes[i] = static_cast<uint8_t>(
        stream_bits(words, first, stride, bit + i * width, width) - minus);
}

Element integer_element(int64_t bits, bool is_signed) {
  const Element first = is_signed ? Element::int2 : Element::uint2;
  return static_cast<Element>(static_cast<int64_t>(first) + bits - 2);
}

Element float_element(const Tensor& tensor) {
  return tensor.dtype == DType::f16    ? Element::f16
         : tensor.dtype == DType::bf16 ? Element::bf16
                                       : Element::f32;
}

Result<CodedLevel> float_level(const Tensor& tensor, LevelShape shape) {
  CodedLevel level{shape.rows, shape.cols, {}, 0};
  NIBBLE_ASSIGN_OR_RETURN(level.values, to_float(tensor));
  return level;
}

bool columns_by_group(const std::vector<int32_t>& group_of, int64_t group,
                      std::vector<int32_t>& order) {
  order.resize(group_of.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return group_of[static_cast<size_t>(a)] < group_of[static_cast<size_t>(b)];
  });
  bool in_order = true;
  for (size_t i = 0; i < order.size(); ++i) {
    const auto column = static_cast<size_t>(order[i]);
    if (group_of[column] != static_cast<int64_t>(i) / group) return false;
    in_order = in_order && column == i;
  }
  if (in_order) order.clear();
  return true;
}

void put_columns_in(const std::vector<int32_t>& order, CodedMatrix& q) {
  std::vector<uint8_t> row(order.size());
  for (int64_t r = 0; r < q.rows; ++r) {
    uint8_t* codes = q.codes.data() + r * q.cols;
    for (size_t c = 0; c < order.size(); ++c) row[c] = codes[order[c]];
    std::memcpy(codes, row.data(), row.size());
  }
}

void make_symmetric(CodedMatrix& q) {
  const ElementInfo& info = element_info(q.scheme.code);
  if (q.scheme.offset != OffsetKind::zero_point || info.lowest < 0) return;
  const int middle = 1 << (info.bits - 1);
  for (const float zero : q.offsets[0].values) {
    if (zero != static_cast<float>(middle)) return;
  }
  for (uint8_t& code : q.codes) code = static_cast<uint8_t>(code - middle);
  q.scheme.code = integer_element(info.bits, true);
  q.scheme.offset = OffsetKind::none;
  q.scheme.offsets.clear();
  q.offsets.clear();
}

}  // namespace nibble
