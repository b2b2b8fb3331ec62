// GGUF v3: one file with the decoder's sizes, its vocabulary and its tensors, for
// llama.cpp and what is built on ggml.
//
// Codes go to the block type that holds them exactly (gguf/hold.h), floats are written as
// they are or as --dtype says, norms and biases as F32. Rows of q and k are put in pairs
// where llama.cpp's rope reads them so. Tensors are written one after the other; every
// block is decoded again by the reader's own code, and the whole file is read back,
// before it gets its name.
#include <cmath>
#include <cstring>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/ggml/pack.h"
#include "export/ggml/quantize.h"
#include "export/ggml/unpack.h"
#include "export/gguf/decoder_keys.h"
#include "export/gguf/gguf_model.h"
#include "export/gguf/hold.h"
#include "export/gguf/requantize.h"
#include "export/gguf/vocabulary.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/base/sha256.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {
namespace {

template <class... Parts>
Status unsupported(const Parts&... parts) {
  return error(StatusCode::unsupported, "[gguf] ", parts...);
}
Status in_tensor(const std::string& name, const Status& status) {
  return Status(status.code(), cat("[gguf] ", name, ": ", status.message()));
}

// How a parameter is written.
struct Plan {
  const GgmlType* type = nullptr;
  bool requantized = false;
};
// One tensor of the file; several parameters where a layer's experts lie together.
struct Entry {
  std::string name;
  std::vector<std::string> parameters;
  Plan plan;
  int64_t rows = 1, cols = 1;  // of one parameter
  size_t dims = 1;
  bool is_turned = false;
};

class GgufWriter {
 public:
  GgufWriter(const Artifact& artifact, const ExportOptions& options)
      : artifact_(artifact), options_(options) {}

  Status plan() {
    NIBBLE_RETURN_IF_ERROR(check_model());
    NIBBLE_ASSIGN_OR_RETURN(decoder_, decoder_of(artifact_.program));
    NIBBLE_ASSIGN_OR_RETURN(rules_,
                            requantize_rules(options_.requantize, artifact_.program));
    std::map<std::string, size_t> places;
    for (const Node& node : artifact_.program.nodes) {
      for (const auto& [role, parameter] : node.parameters) {
        NIBBLE_RETURN_IF_ERROR(add(node, parameter, places));
      }
    }
    for (const Entry& entry : entries_) {
      if (entry.name == "token_embd.weight") decoder_.hidden = entry.cols;
      if (entry.name == "blk.0.ffn_gate.weight") decoder_.intermediate = entry.rows;
      if (entry.dims == 3 &&
          static_cast<int64_t>(entry.parameters.size()) != decoder_.experts)
        return unsupported(entry.name, ": needs all ", decoder_.experts, " experts");
    }
    Result<GgufVocabulary> vocabulary = vocabulary_of(
        artifact_.tokenizer, artifact_.config_json, artifact_.program.vocabulary);
    if (vocabulary.ok()) {
      vocabulary_ = std::move(*vocabulary);
    } else if (vocabulary.status().code() != StatusCode::not_found) {
      return vocabulary.status();  // not_found: the model carries none
    }
    return ok_status();
  }

  Status write(const std::filesystem::path& path, bool overwrite) {
    NIBBLE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path, overwrite));
    NIBBLE_RETURN_IF_ERROR(file.append(header()));
    for (const Entry& entry : entries_) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("gguf"));
      std::string hash;
      if (entry.parameters.empty()) {
        NIBBLE_RETURN_IF_ERROR(append(file, rope_bytes(), &hash));
      } else {
        std::string bytes;
        for (const std::string& parameter : entry.parameters) {
          NIBBLE_ASSIGN_OR_RETURN(const std::string part, bytes_of(entry, parameter));
          bytes += part;
        }
        NIBBLE_RETURN_IF_ERROR(append(file, bytes, &hash));
      }
      hashes_.push_back(hash);
    }
    NIBBLE_RETURN_IF_ERROR(file.sync());
    NIBBLE_RETURN_IF_ERROR(read_back(file.staging()));
    return file.commit();
  }

 private:
  Status check_model() const {
    const std::string& dtype = options_.dtype;
    if (!dtype.empty() && dtype != "f32" && dtype != "bf16" && dtype != "f16") {
      return error(StatusCode::invalid_argument,
                   "[gguf] dtype: must be one of f32, bf16, f16; found `", dtype, "`");
    }
    for (const auto& [value, activation] : artifact_.activations) {
      return unsupported("value ", value, ": activations must be float; found ",
                         to_string(activation.scheme), "; export to the nibble format");
    }
    for (const auto& [tensor, layer] : artifact_.layers) {
      if (layer.input) {
        return unsupported("the input of ", tensor,
                           ": activations must be float, GGUF's readers choose ",
                           "their own; found ", to_string(layer.input->scheme),
                           "; export to the nibble format");
      }
      const LayerExtras& extras = layer.extras;
      for (const std::string* extra :
           {&extras.permutation, &extras.low_rank_a, &extras.low_rank_b}) {
        if (extra->empty()) continue;
        return unsupported(tensor, ": a layer must be its codes and scales alone; found ",
                           *extra, "; export to the nibble format");
      }
    }
    return ok_status();
  }

  Status add(const Node& node, const std::string& parameter,
             std::map<std::string, size_t>& places) {
    const GgufName name = gguf_name(parameter);
    if (name.name.empty()) {
      return unsupported(parameter, ": GGUF has no tensor for it in ",
                         decoder_.architecture->gguf);
    }
    const auto [place, fresh] = places.emplace(name.name, entries_.size());
    if (!fresh && name.expert < 0) return ok_status();  // tied: written once
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, shape_of(parameter));
    NIBBLE_ASSIGN_OR_RETURN(const Plan plan, plan_of(node, parameter, shape));
    if (!fresh) {
      Entry& entry = entries_[place->second];
      if (entry.plan.type != plan.type) {
        return unsupported(parameter,
                           ": the experts of a layer must be of one type; found ",
                           plan.type->name, " beside ", entry.plan.type->name);
      }
      entry.parameters.push_back(parameter);
      return ok_status();
    }
    Entry entry;
    entry.name = name.name;
    entry.parameters = {parameter};
    entry.plan = plan;
    entry.dims = name.expert >= 0 ? 3 : shape.size();
    entry.rows = shape.size() > 1 ? shape[0] : 1;
    entry.cols = shape.back();
    entry.is_turned = decoder_.pairs_rows && is_turned(parameter);
    entries_.push_back(std::move(entry));
    if (decoder_.has_rope_frequencies() && entries_.size() == 1) {
      Entry rope;
      rope.name = "rope_freqs.weight";
      rope.plan.type = *find_ggml_type("F32");
      rope.cols = decoder_.head_dim / 2;
      entries_.push_back(std::move(rope));
    }
    return ok_status();
  }

  Result<std::vector<int64_t>> shape_of(const std::string& name) const {
    const auto packed = artifact_.packed.find(name);
    const auto tensor = artifact_.tensors.find(name);
    if (packed == artifact_.packed.end() && tensor == artifact_.tensors.end()) {
      return error(StatusCode::not_found, "[gguf] ", name,
                   ": every parameter must be in the artifact; found none of this name");
    }
    std::vector<int64_t> shape =
        packed != artifact_.packed.end() ? packed->second.shape : tensor->second.shape;
    if (shape.empty() || shape.size() > 2)
      return unsupported(name, ": a vector or a matrix was required; found ",
                         shape_text(shape));
    return shape;
  }

  Result<Plan> plan_of(const Node& node, const std::string& name,
                       const std::vector<int64_t>& shape) const {
    const bool matrix = shape.size() == 2;
    const auto asked = rules_.by_parameter.find(name);
    if (matrix && asked != rules_.by_parameter.end())
      return Plan{type_for_columns(asked->second, shape[1]), true};
    const auto packed = artifact_.packed.find(name);
    if (packed != artifact_.packed.end()) {
      NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, unpack(packed->second));
      const Result<HeldMatrix> held = hold_exactly(std::move(q));
      if (held.ok()) return Plan{held->type, false};
      if (rules_.otherwise != nullptr)
        return Plan{type_for_columns(rules_.otherwise, shape[1]), true};
      return unsupported(
          name, " ", held.status().message(),
          "; quantize it again with --requantize TYPE (Q4_0, Q8_0, F16 ...)");
    }
    const bool router = name.find(".mlp.gate.weight") != std::string::npos;
    const bool of_block = node.block >= 0 && node.block < kLastBlock;
    if (matrix && of_block && !router && rules_.otherwise != nullptr)
      return Plan{type_for_columns(rules_.otherwise, shape[1]), true};
    return Plan{float_type(name, matrix && !router), false};
  }

  const GgmlType* float_type(const std::string& name, bool matrix) const {
    std::string dtype = options_.dtype;
    if (dtype.empty()) {
      const DType stored = artifact_.tensors.at(name).dtype;
      dtype = stored == DType::bf16 ? "bf16" : stored == DType::f16 ? "f16" : "f32";
    }
    return *find_ggml_type(!matrix           ? "F32"
                           : dtype == "bf16" ? "BF16"
                           : dtype == "f16"  ? "F16"
                                             : "F32");
  }

  std::string header() const {
    GgufMetadataWriter keys;
    std::map<const GgmlType*, int64_t> values;
    for (const Entry& entry : entries_)
      if (entry.dims > 1) values[entry.plan.type] += entry.rows * entry.cols;
    const GgmlType* most = nullptr;
    bool quantized = false;
    for (const auto& [type, count] : values) {
      quantized = quantized || !type->is_float();
      if (most == nullptr || count > values[most]) most = type;
    }
    write_decoder_keys(decoder_, keys);
    if (most != nullptr) keys.number("general.file_type", most->file_type);
    if (quantized) keys.number("general.quantization_version", 2);
    keys.text("nibble.version", kToolVersion);
    if (vocabulary_) {
      write_vocabulary_keys(*vocabulary_, chat_template_of(artifact_.tokenizer), keys);
    } else {
      keys.text("tokenizer.ggml.model", "none");
    }
    std::vector<GgufInfo> infos;
    for (const Entry& entry : entries_) {
      GgufInfo info{entry.name, {entry.cols}, entry.plan.type->id, 0};
      if (entry.dims > 1) info.dims.push_back(entry.rows);
      if (entry.dims > 2) info.dims.push_back(decoder_.experts);
      const int64_t rows =
          entry.rows * static_cast<int64_t>(std::max<size_t>(1, entry.parameters.size()));
      info.bytes = static_cast<uint64_t>(rows * entry.plan.type->row_bytes(entry.cols));
      infos.push_back(std::move(info));
    }
    return keys.finish(infos);
  }

  static Status append(AtomicFile& file, const std::string& bytes, std::string* hash) {
    *hash = sha256_hex(bytes);
    NIBBLE_RETURN_IF_ERROR(file.append(bytes));
    return file.append(std::string(gguf_padded(bytes.size()) - bytes.size(), '\0'));
  }

  std::string rope_bytes() const {
    const std::vector<float> divisors = decoder_.rope_divisors();
    return std::string(reinterpret_cast<const char*>(divisors.data()),
                       divisors.size() * sizeof(float));
  }

  Result<std::vector<float>> floats_of(const std::string& name) const {
    const auto packed = artifact_.packed.find(name);
    if (packed == artifact_.packed.end()) return to_float(artifact_.tensors.at(name));
    const PackedTensor& p = packed->second;
    std::vector<float> values(static_cast<size_t>(p.rows * p.cols));
    NIBBLE_RETURN_IF_ERROR(
        dequantize_rows(p, 0, MatrixView<float>(values.data(), p.rows, p.cols)));
    return values;
  }

  // As the file has them, rows in pairs where they must be.
  Result<std::string> bytes_of(const Entry& entry, const std::string& name) const {
    const GgmlType& type = *entry.plan.type;
    std::string bytes;
    if (type.is_float()) {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, floats_of(name));
      NIBBLE_ASSIGN_OR_RETURN(bytes, float_bytes(type, name, values));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, codes_of(entry, name));
      bytes.resize(static_cast<size_t>(q.rows * type.row_bytes(q.cols)));
      NIBBLE_RETURN_IF_ERROR(
          pack_ggml(type, q, reinterpret_cast<std::byte*>(bytes.data())));
      const Result<CodedMatrix> read =
          unpack_ggml(type, q.rows, q.cols,
                      {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
      if (!read.ok() || !(*read == q)) {
        return error(StatusCode::data_loss, "[gguf] ", name, ": ", type.name,
                     " blocks must decode to the codes and scales that were packed; ",
                     read.ok() ? "found others" : read.status().message());
      }
    }
    return entry.is_turned ? paired(bytes, entry) : bytes;
  }

  Result<CodedMatrix> codes_of(const Entry& entry, const std::string& name) const {
    if (entry.plan.requantized) {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, floats_of(name));
      Result<CodedMatrix> q =
          quantize_ggml(*entry.plan.type,
                        MatrixView<const float>(values.data(), entry.rows, entry.cols));
      return q.ok() ? std::move(q) : Result<CodedMatrix>(in_tensor(name, q.status()));
    }
    NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, unpack(artifact_.packed.at(name)));
    Result<HeldMatrix> held = hold_exactly(std::move(q));
    if (!held.ok()) return in_tensor(name, held.status());
    return std::move(held->q);
  }

  static Result<std::string> float_bytes(const GgmlType& type, const std::string& name,
                                         const std::vector<float>& values) {
    if (type.scheme.code == Element::f32) {
      return std::string(reinterpret_cast<const char*>(values.data()),
                         values.size() * sizeof(float));
    }
    const bool half = type.scheme.code == Element::f16;
    std::string bytes(values.size() * sizeof(uint16_t), '\0');
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t word = half ? f16_from_float(values[i]) : bf16_from_float(values[i]);
      std::memcpy(bytes.data() + 2 * i, &word, sizeof word);
      if (std::isfinite(half ? float_from_f16(word) : float_from_bf16(word))) continue;
      return error(StatusCode::out_of_range, "[gguf] ", name, ": every value must fit ",
                   type.name, "; found ", values[i], " at index ", i,
                   "; use --dtype bf16 or f32");
    }
    return bytes;
  }

  // Row j * half + i of a head becomes row 2 i + j.
  std::string paired(const std::string& bytes, const Entry& entry) const {
    const GgmlType& type = *entry.plan.type;
    const bool vector = entry.dims == 1;
    const int64_t rows = vector ? entry.cols : entry.rows;
    const int64_t row_bytes = vector ? type.bytes : type.row_bytes(entry.cols);
    const int64_t head = decoder_.head_dim, half = head / 2;
    std::string out(bytes.size(), '\0');
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t in_head = r % head;
      const int64_t to = r - in_head + 2 * (in_head % half) + in_head / half;
      std::memcpy(out.data() + to * row_bytes, bytes.data() + r * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
    return out;
  }

  // --- the proof

  Status read_back(const std::filesystem::path& path) const {
    NIBBLE_ASSIGN_OR_RETURN(const GgufModel model, open_gguf_model(path));
    for (size_t i = 0; i < entries_.size(); ++i) {
      const GgufTensor& tensor = model.file.tensors[i];
      if (tensor.name == entries_[i].name &&
          sha256_hex(tensor.bytes.text()) == hashes_[i])
        continue;
      return error(StatusCode::data_loss, "[gguf] ", entries_[i].name,
                   ": must read back as it was written; found other bytes; is the disk "
                   "sound?");
    }
    std::map<std::string, const Entry*> places;
    for (const Entry& entry : entries_)
      for (const std::string& name : entry.parameters) places[name] = &entry;
    for (const GgufParameter& parameter : model.parameters) {
      const auto found = places.find(parameter.name);
      if (found == places.end())
        return error(StatusCode::data_loss, "[gguf] ", parameter.name,
                     ": is in the written file; found no such parameter in the model");
      // A reader puts rows in transformers' order; the model's own may lie in pairs.
      if (!found->second->plan.requantized &&
          !(decoder_.rows_are_paired && is_turned(parameter.name)))
        NIBBLE_RETURN_IF_ERROR(check_values(*found->second, parameter));
      places.erase(found);
    }
    if (places.empty()) return ok_status();
    return error(StatusCode::data_loss, "[gguf] ", places.begin()->first,
                 ": every parameter must be in the written file; read back none of this "
                 "name");
  }

  // What the file says and the model's own values, bit for bit.
  Status check_values(const Entry& entry, const GgufParameter& parameter) const {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> required, floats_of(parameter.name));
    std::vector<float> found(required.size());
    if (parameter.is_float()) {
      NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor, read_floats(parameter));
      NIBBLE_ASSIGN_OR_RETURN(found, to_float(tensor));
      for (float& value : required)
        value = round_to_element(entry.plan.type->scheme.code, value);
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, read_codes(parameter));
      NIBBLE_RETURN_IF_ERROR(
          dequantize(q, MatrixView<float>(found.data(), q.rows, q.cols)));
    }
    for (size_t i = 0; i < required.size(); ++i) {
      if (i < found.size() && required[i] == found[i]) continue;
      const auto at = static_cast<int64_t>(i);
      return error(StatusCode::data_loss, "[gguf] ", parameter.name, ": row ",
                   at / entry.cols, ", column ", at % entry.cols, ": must be ",
                   required[i], "; read back ", i < found.size() ? found[i] : 0.0f);
    }
    return ok_status();
  }

  const Artifact& artifact_;
  const ExportOptions& options_;
  GgufDecoder decoder_;
  RequantizeRules rules_;
  std::vector<Entry> entries_;
  std::vector<std::string> hashes_;
  std::optional<GgufVocabulary> vocabulary_;
};

}  // namespace

Status can_express_gguf(const Artifact& artifact, const ExportOptions& options) {
  return GgufWriter(artifact, options).plan();
}

Status write_gguf(const Artifact& artifact, const std::filesystem::path& path,
                  const ExportOptions& options) {
  GgufWriter writer(artifact, options);
  NIBBLE_RETURN_IF_ERROR(writer.plan());
  if (path.extension() == ".gguf") return writer.write(path, options.overwrite);
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory files,
                          AtomicDirectory::create(path, options.overwrite));
  NIBBLE_RETURN_IF_ERROR(writer.write(files.staging() / "model.gguf", false));
  return files.commit();
}

}  // namespace nibble
