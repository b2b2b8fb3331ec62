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
#include <cstring>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/half_scales.h"
#include "export/huggingface/quantized_directory.h"
#include "kernels/base/json.h"

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

// Of a tile: lines of words, lines of codes. So many rows, that each page of words is met
// seldom.
constexpr int64_t kRows = 512, kColumns = 64;

// The words of a tile: its codes come row by row, its words go column by column, each in
// whole cache lines.
void put_tile(const CodedMatrix& q, int64_t row, int64_t column, uint32_t* words) {
  const int64_t rows = std::min(kRows, q.rows - row);
  const int64_t columns = std::min(kColumns, q.cols - column);
  const uint8_t lift = code_lift(q.scheme);
  uint8_t codes[kRows][kColumns] = {};
  // Both sides jump from page to page: each line is asked for ahead of its use.
  uint32_t* to = words + column * (q.rows / 8) + row / 8;
  for (int64_t c = 0; c < columns; ++c) __builtin_prefetch(to + c * (q.rows / 8), 1);
  for (int64_t r = 0; r < rows; ++r)
    __builtin_prefetch(q.codes.data() + (row + r) * q.cols + column + kColumns);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(codes[r], q.codes.data() + (row + r) * q.cols + column,
                static_cast<size_t>(columns));
  uint32_t lines[kColumns][kRows / 8];
  uint8_t planes[4][kColumns];  // the bytes of the words of 8 rows
  for (int64_t w = 0; w < rows / 8; ++w) {
    for (int plane = 0; plane < 4; ++plane) {
      const uint8_t* low = codes[8 * w + kOrder[2 * plane]];
      const uint8_t* high = codes[8 * w + kOrder[2 * plane + 1]];
      for (int64_t c = 0; c < kColumns; ++c) {
        planes[plane][c] =
            static_cast<uint8_t>(((low[c] + lift) & 15) | ((high[c] + lift) & 15) << 4);
      }
    }
    for (int64_t c = 0; c < kColumns; ++c) {
      lines[c][w] = planes[0][c] | static_cast<uint32_t>(planes[1][c]) << 8 |
                    static_cast<uint32_t>(planes[2][c]) << 16 |
                    static_cast<uint32_t>(planes[3][c]) << 24;
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    std::memcpy(to + c * (q.rows / 8), lines[c],
                static_cast<size_t>(rows / 8) * sizeof(uint32_t));
  }
}

std::map<std::string, Tensor> tensors_of(const std::string& weight,
                                         const CodedMatrix& q) {
  const int64_t n = q.rows, k = q.cols, groups = q.scales[0].cols;
  const Words codes = q.codes.empty() ? nullptr : fresh_words(k * (n / 8));
  std::vector<uint32_t> zeros;
  for (int64_t r = 0; r < n && !q.codes.empty(); r += kRows) {
    for (int64_t c = 0; c < k; c += kColumns) put_tile(q, r, c, codes.get());
  }
  int eight[8];
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < n; r += 8) {
      for (int64_t i = 0; i < 8; ++i) eight[i] = unsigned_zero(q, (r + i) * groups + g);
      zeros.push_back(word_of(eight));
    }
  }
  const std::string module = module_of(weight);
  return {{module + ".qweight", word_tensor({k, n / 8}, codes)},
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
