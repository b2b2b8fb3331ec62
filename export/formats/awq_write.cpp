// AWQ checkpoints in the GEMM layout, as AutoAWQ, vLLM and transformers load them: 4
// bits.
//
//   qweight I32 [K, N / 8]   codes 8c .. 8c + 7 of a row of inputs in word c, nibble i
//   holding
//                            output 8c + order[i], order = 0 2 4 6 1 3 5 7
//   qzeros  I32 [G, N / 8]   zero points in the same order
//   scales  F16 [G, N]       w[n, k] = s[g, n] (q - z[g, n]),  g = k / group
//
// Symmetric codes have z = 8. All layers share one group size.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/half_scales.h"
#include "export/huggingface/quantized_directory.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "awq";
constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

template <class... Parts>
Status unsupported(const std::string& where, const Parts&... parts) {
  return error(StatusCode::unsupported, "[", kFormat, "] ", where, ": ", parts...);
}

Result<int64_t> group_of(const std::string& tensor, const LayerScheme& layer,
                         const PackedTensor& packed) {
  const ElementInfo& info = element_info(packed.scheme.code);
  if (info.kind != ElementKind::integer || info.bits != 4) {
    return unsupported(tensor, "uses ", to_string(packed.scheme),
                       "; AWQ holds 4-bit integers; quantize with these, or export to "
                       "compressed-tensors");
  }
  if (layer.input) {
    return unsupported("the input of " + tensor, "activations must be float; found ",
                       to_string(layer.input->scheme),
                       "; export to compressed-tensors, or leave the input float");
  }
  if (!layer.extras.permutation.empty()) {
    return unsupported(tensor,
                       "columns must be in their own order; found a permutation; "
                       "export to gptq, or quantize with static groups");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, half_scale_group(kFormat, tensor, packed));
  if (packed.rows % 8 != 0) {
    return unsupported(tensor, "its ", packed.rows,
                       " rows must fill whole words of 8; export to compressed-tensors");
  }
  if (group > 0 && group < packed.cols && packed.cols % group != 0) {
    return unsupported(tensor, "its ", packed.cols, " columns must be whole groups of ",
                       group, "; use a group that divides them");
  }
  return group;
}

// The one group size of all layers.
Result<int64_t> common_group(const Artifact& artifact) {
  int64_t group = 0;
  std::string first;
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t own,
                            group_of(name, artifact.layers.at(name), packed));
    if (first.empty()) {
      group = own;
      first = name;
    } else if (own != group) {
      return unsupported(name, "all layers must share the group of ", first, ", ", group,
                         "; found ", own, "; export to gptq or compressed-tensors");
    }
  }
  return group;
}

uint32_t word_of(const int (&values)[8]) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) word |= static_cast<uint32_t>(values[kOrder[i]]) << (4 * i);
  return word;
}

std::map<std::string, Tensor> tensors_of(const std::string& weight,
                                         const CodedMatrix& q) {
  const int64_t n = q.rows, k = q.cols, groups = q.scales[0].cols;
  std::vector<uint32_t> codes(static_cast<size_t>(k * (n / 8))), zeros;
  int eight[8];
  const uint8_t lift = code_lift(q.scheme);
  // A cache line of columns at a time: rows are read along, words written along.
  for (int64_t first = 0; first < k; first += 64) {
    for (int64_t r = 0; r < n; r += 8) {
      for (int64_t c = first; c < std::min(k, first + 64); ++c) {
        uint32_t word = 0;
        for (int i = 0; i < 8; ++i) {
          const uint8_t code = q.codes[static_cast<size_t>((r + kOrder[i]) * k + c)];
          word |= (static_cast<uint32_t>(code + lift) & 15) << (4 * i);
        }
        codes[static_cast<size_t>(c * (n / 8) + r / 8)] = word;
      }
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < n; r += 8) {
      for (int64_t i = 0; i < 8; ++i) eight[i] = unsigned_zero(q, (r + i) * groups + g);
      zeros.push_back(word_of(eight));
    }
  }
  const std::string module = module_of(weight);
  return {{module + ".qweight", word_tensor({k, n / 8}, std::move(codes))},
          {module + ".qzeros", word_tensor({groups, n / 8}, std::move(zeros))},
          {module + ".scales", half_scales(q)}};
}

}  // namespace

Status can_express_awq(const Artifact& artifact, const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact prepared,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(prepared, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(common_group(prepared).status());
  return ok_status();
}

Status write_awq(const Artifact& artifact, const std::filesystem::path& directory,
                 const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Artifact ordered,
                          prepared_for_transformers(artifact, options, kFormat));
  NIBBLE_RETURN_IF_ERROR(check_quantized_model(ordered, options, kFormat));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, common_group(ordered));
  Json config;
  config["quant_method"] = kFormat;
  config["zero_point"] = true;
  config["group_size"] = group;
  config["bits"] = 4;
  config["version"] = "gemm";
  const std::set<std::string> floats = float_modules(ordered);
  config["modules_to_not_convert"] = floats.empty() ? Json(nullptr) : Json(floats);
  QuantizedFormat format;
  format.name = kFormat;
  format.quantization_config = config.dump();
  format.tensors_of = [](const std::string& weight,
                         const CodedMatrix& q) -> Result<std::map<std::string, Tensor>> {
    return tensors_of(weight, q);
  };
  format.read = read_awq;
  return write_quantized_directory(ordered, format, directory, options);
}

}  // namespace nibble
