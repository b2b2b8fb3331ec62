#include "export/ggml/ggml_type.h"

#include <algorithm>
#include <cctype>

namespace nibble {

const std::vector<GgmlType>& all_ggml_types() {
  static const std::vector<GgmlType> types = [] {
    std::vector<GgmlType> rows;
    const auto add = [&](const char* name, uint32_t id, int64_t block, int64_t bytes,
                         uint32_t file_type, const char* scheme) {
      rows.push_back({name, id, block, bytes, file_type, *parse_scheme(scheme)});
    };
#define NIBBLE_GGML(name, id, block, bytes, file_type, scheme) \
  add(#name, id, block, bytes, file_type, scheme);
#include "export/ggml/types.inc"
#undef NIBBLE_GGML
    return rows;
  }();
  return types;
}

const GgmlType* ggml_type_of_id(uint32_t id) {
  for (const GgmlType& type : all_ggml_types()) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

Result<const GgmlType*> find_ggml_type(std::string_view name) {
  const auto same = [](char a, char b) {
    return std::toupper(static_cast<unsigned char>(a)) == b;
  };
  std::string known;
  for (const GgmlType& type : all_ggml_types()) {
    const std::string_view text = type.name;
    if (std::equal(name.begin(), name.end(), text.begin(), text.end(), same)) {
      return &type;
    }
    known += cat(known.empty() ? "" : ", ", type.name);
  }
  return error(StatusCode::invalid_argument, "[ggml] type: must be one of ", known,
               "; found `", name, "`");
}

}  // namespace nibble
