// The block types of ggml, as rows of a table: what a GGUF file may hold, and which
// scheme each of them is.
//
// A row of `cols` values is cols / block blocks of `bytes` bytes, one after the other; a
// block holds codes and scales together. What ggml subtracts as dmin * m is the minimum
// (-dmin) * m of the scheme, which changes no float. TQ1_0 and TQ2_0 are one scheme in
// two packings.
//
// Safe to call from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct GgmlType {
  const char* name;    // "Q4_K"
  uint32_t id;         // in a GGUF's tensor infos
  int64_t block;       // values a block
  int64_t bytes;       // bytes a block
  uint32_t file_type;  // general.file_type of a file that is mostly of this type
  QuantScheme scheme;

  bool is_float() const { return scheme.is_float(); }
  int64_t row_bytes(int64_t cols) const { return cols / block * bytes; }
};
const std::vector<GgmlType>& all_ggml_types();
const GgmlType* ggml_type_of_id(uint32_t id);  // null: one that is not in the table
// By name, upper or lower case. invalid_argument: lists the names.
Result<const GgmlType*> find_ggml_type(std::string_view name);

}  // namespace nibble
