// GPTQ checkpoints, as GPTQModel, vLLM and SGLang load them: 2, 3, 4 or 8 bits.
//
//   qweight I32 [K b / 32, N]   unsigned codes, dense along K, one stream a column
//   qzeros  I32 [G, N b / 32]   dense along N: z - 1 in version 1, z in version 2
//   scales  F16 [G, N]          w[n, k] = s[g, n] (q - z[g, n]),  g = g_idx[k]
//   g_idx   I32 [K]
//
// Symmetric codes have z = 2^(b-1). Version 1 is what every loader reads; it cannot hold
// a zero point of 0, which version 2 can. Layers that differ from the most common setting
// are listed in "dynamic", float ones as well.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/half_scales.h"
#include "export/huggingface/quantized_directory.h"
#include "export/huggingface/word_stream.h"
#include "export/levels.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "gptq";

// What quantize_config.json says of a layer.
struct Setting {
  int bits = 4;
  int64_t group = -1;  // -1: the whole row
  bool symmetric = true;
  bool operator<(const Setting& b) const {
    return std::tie(bits, group, symmetric) < std::tie(b.bits, b.group, b.symmetric);
  }
};

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

Result<Setting> setting_of(const std::string& tensor, const LayerScheme& layer,
                           const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  const int bits = element_info(scheme.code).bits;
  if (element_info(scheme.code).kind != ElementKind::integer ||
      (bits != 2 && bits != 3 && bits != 4 && bits != 8)) {
    return unsupported(tensor, "uses ", to_string(scheme),
                       "; GPTQ holds integers of 2, 3, 4 or 8 bits; quantize with one of "
                       "these");
  }
  if (layer.input) {
    return unsupported("the input of " + tensor, "activations must be float; found ",
                       to_string(layer.input->scheme),
                       "; export to compressed-tensors, or leave the input float");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, half_scale_group(kFormat, tensor, packed));
  for (const auto& [what, size] :
       {std::pair("columns", packed.cols), std::pair("rows", packed.rows)}) {
    if (size * bits % 32 == 0) continue;
    return unsupported(tensor, "its ", size, " ", what, " of ", bits,
                       " bits must fill whole 32-bit words, multiples of ",
                       bits == 3 ? 32 : 32 / bits, "; export to compressed-tensors");
  }
  return Setting{
      bits, group,
      scheme.offset == OffsetKind::none && element_info(scheme.code).lowest < 0};
}

Result<std::map<std::string, Setting>> all_settings(const Artifact& artifact) {
  std::map<std::string, Setting> settings;
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_ASSIGN_OR_RETURN(settings[name],
                            setting_of(name, artifact.layers.at(name), packed));
  }
  return settings;
}

// The first zero point of 0, which version 1 stores as -1; "" without one.
Result<std::string> zero_of_zero(const Artifact& artifact) {
  for (const auto& [name, packed] : artifact.packed) {
    if (packed.offsets.empty() && code_lift(packed.scheme) != 0) continue;
    CodedMatrix q;
    NIBBLE_RETURN_IF_ERROR(unpack_levels(packed, q));
    const CodedLevel& level = q.scales[0];
    for (int64_t i = 0; i < level.rows * level.cols; ++i) {
      if (unsigned_zero(q, i) == 0) {
        return cat(name, ": row ", i / level.cols, ", group ", i % level.cols);
      }
    }
  }
  return std::string();
}

// 1 or 2, as asked for, or what the zero points allow.
Result<int> version_of(const Artifact& artifact, const ExportOptions& options) {
  if (options.gptq_version < 0 || options.gptq_version > 2) {
    return error(StatusCode::invalid_argument, "[", kFormat,
                 "] gptq_version: must be 1 or 2; found ", options.gptq_version);
  }
  if (options.gptq_version == 2) return 2;
  NIBBLE_ASSIGN_OR_RETURN(const std::string place, zero_of_zero(artifact));
  if (place.empty()) return 1;
  if (options.gptq_version == 0) return 2;
  return unsupported(place,
                     "version 1 holds zero points of 1 and more; found 0; leave "
                     "--gptq-version out, which gives version 2");
}

std::string regex_of(const std::string& module) {
  std::string text;
  for (const char c : module) text += c == '.' ? std::string("\\.") : std::string(1, c);
  return "^" + text + "$";
}

Json setting_json(const Setting& setting) {
  return {
      {"bits", setting.bits}, {"group_size", setting.group}, {"sym", setting.symmetric}};
}

std::string quantization_config(const Artifact& artifact,
                                const std::map<std::string, Setting>& settings,
                                int version) {
  std::map<Setting, int64_t> counts;
  for (const auto& [name, setting] : settings) ++counts[setting];
  Setting usual = counts.begin()->first;
  for (const auto& [setting, count] : counts) {
    if (count > counts[usual]) usual = setting;
  }
  bool act_order = false;
  for (const auto& [name, layer] : artifact.layers) {
    act_order = act_order || !layer.extras.permutation.empty();
  }
  Json dynamic = Json::object();
  for (const auto& [name, setting] : settings) {
    if (setting < usual || usual < setting) {
      dynamic["+:" + regex_of(module_of(name))] = setting_json(setting);
    }
  }
  for (const std::string& module : float_modules(artifact)) {
    if (module != "lm_head") dynamic["-:" + regex_of(module)] = Json::object();
  }
  Json config = setting_json(usual);
  config["desc_act"] = act_order;
  config["lm_head"] = artifact.packed.count("lm_head.weight") > 0;
  config["quant_method"] = kFormat;
  config["checkpoint_format"] = version == 1 ? "gptq" : "gptq_v2";
  config["pack_dtype"] = "int32";
  if (!dynamic.empty()) config["dynamic"] = dynamic;
  config["meta"] = {{"quantizer", {std::string("nibble:") + (kToolVersion + 7)}},
                    {"static_groups", !act_order}};
  return config.dump(2);
}

// Codes of 4 bits in their own order: rows side by side fill cache lines of words, which
// lie across the rows. Both sides jump from page to page: so many rows, that each page of
// words is met seldom, and each line is asked for ahead of its use.
void put_tiles(const CodedMatrix& q, uint32_t* words) {
  constexpr int64_t kRows = 256, kColumns = 64, kLine = 16;
  const uint8_t lift = code_lift(q.scheme);
  uint32_t tile[kColumns / 8][kRows];
  for (int64_t row = 0; row < q.rows; row += kRows) {
    const int64_t rows = std::min(kRows, q.rows - row);
    for (int64_t column = 0; column < q.cols; column += kColumns) {
      const int64_t lines = std::min(kColumns, q.cols - column) / 8;
      for (int64_t i = 0; i < lines; ++i) {
        for (int64_t r = 0; r < rows; r += kLine)
          __builtin_prefetch(words + (column / 8 + i) * q.rows + row + r, 1);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* codes = q.codes.data() + (row + r) * q.cols + column;
        __builtin_prefetch(codes + kColumns);
        for (int64_t i = 0; i < lines; ++i)
          tile[i][r] = eight_of_4_bits(codes + 8 * i, lift);
      }
      for (int64_t i = 0; i < lines; ++i) {
        std::memcpy(words + (column / 8 + i) * q.rows + row, tile[i],
                    static_cast<size_t>(rows) * sizeof(uint32_t));
      }
    }
  }
}

std::map<std::string, Tensor> tensors_of(const std::string& weight, const CodedMatrix& q,
                                         const std::vector<int32_t>& order, int64_t group,
                                         int version) {
  const int bits = element_info(q.scheme.code).bits;
  const int64_t n = q.rows, k = q.cols, groups = q.scales[0].cols;
  const bool by_tiles = bits == 4 && order.empty();
  const int64_t words = q.codes.empty() ? 0 : stream_words(k, bits) * n;
  const Words tiles = by_tiles && words != 0 ? fresh_words(words) : nullptr;
  if (tiles != nullptr) put_tiles(q, tiles.get());
  std::vector<uint32_t> codes(by_tiles ? 0 : static_cast<size_t>(words));
  std::vector<uint8_t> column(order.size());
  for (int64_t r = 0; r < n && !by_tiles && !q.codes.empty(); ++r) {
    const uint8_t* row = q.codes.data() + r * k;
    for (size_t c = 0; c < order.size(); ++c) column[static_cast<size_t>(order[c])] = row[c];
    WordStream stream(codes.data() + r, n, bits);
    stream.put(order.empty() ? row : column.data(), k, code_lift(q.scheme));
  }
  const int64_t zero_words = stream_words(n, bits);
  std::vector<uint32_t> zeros(static_cast<size_t>(groups * zero_words), 0);
  for (int64_t g = 0; g < groups; ++g) {
    WordStream stream(zeros.data() + g * zero_words, 1, bits);
    for (int64_t r = 0; r < n; ++r) {
      stream.put(static_cast<uint32_t>(unsigned_zero(q, r * groups + g) -
                                       (version == 1 ? 1 : 0)));
    }
  }
  std::vector<int32_t> group_of(static_cast<size_t>(k));
  for (int64_t c = 0; c < k; ++c) {
    const auto at = static_cast<size_t>(c);
    group_of[order.empty() ? at : static_cast<size_t>(order[at])] =
        static_cast<int32_t>(group < 0 ? 0 : c / group);
  }
  const std::string module = module_of(weight);
  const std::vector<int64_t> shape = {stream_words(k, bits), n};
  return {{module + ".qweight",
           by_tiles ? word_tensor(shape, tiles) : word_tensor(shape, std::move(codes))},
          {module + ".qzeros", word_tensor({groups, zero_words}, std::move(zeros))},
          {module + ".scales", half_scales(q)},
          {module + ".g_idx", make_tensor({k}, std::span<const int32_t>(group_of))}};
}

}  // namespace

Status can_express_gptq(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(all_settings(prepared).status());
  NIBBLE_RETURN_IF_ERROR(version_of(prepared, options).status());
  return ok_status();
}

Status write_gptq(const Artifact& artifact, const std::filesystem::path& directory,
                  const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_ASSIGN_OR_RETURN(const auto settings, all_settings(ordered));
  NIBBLE_ASSIGN_OR_RETURN(const int version, version_of(ordered, options));
  QuantizedFormat format;
  format.name = kFormat;
  format.quantization_config = quantization_config(ordered, settings, version);
  format.extra_files["quantize_config.json"] = format.quantization_config + "\n";
  format.tensors_of = [&](const std::string& weight,
                          const CodedMatrix& q) -> Result<std::map<std::string, Tensor>> {
    const std::string& permutation = ordered.layers.at(weight).extras.permutation;
    std::vector<int32_t> order;
    if (!permutation.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(order, to_int32(ordered.tensors.at(permutation)));
    }
    return tensors_of(weight, q, order, settings.at(weight).group, version);
  };
  format.read = read_gptq;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
