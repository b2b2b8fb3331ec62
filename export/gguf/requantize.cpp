#include "export/gguf/requantize.h"

#include "kernels/base/glob.h"
#include "kernels/program/layers.h"

namespace nibble {

Result<RequantizeRules> requantize_rules(const std::vector<std::string>& options,
                                         const Program& program) {
  RequantizeRules rules;
  for (const std::string& option : options) {
    const size_t equals = option.rfind('=');
    const std::string name =
        equals == std::string::npos ? option : option.substr(equals + 1);
    NIBBLE_ASSIGN_OR_RETURN(const GgmlType* type, find_ggml_type(name));
    if (equals == std::string::npos) {
      rules.otherwise = type;
      continue;
    }
    const std::string pattern = option.substr(0, equals);
    bool matches = false;
    std::string names;
    for (const Layer& layer : layers_of(program)) {
      if (names.size() < 120) names += cat(names.empty() ? "" : ", ", layer.name);
      if (!glob_matches(pattern, layer.name)) continue;
      matches = true;
      rules.by_parameter[layer.tensor] = type;
    }
    if (!matches) {
      return error(StatusCode::invalid_argument,
                   "[gguf] requantize: a pattern must match "
                   "a layer; found `",
                   pattern, "`, which matches none of ", names, " ...");
    }
  }
  return rules;
}

const GgmlType* type_for_columns(const GgmlType* type, int64_t cols) {
  struct Fallback {
    std::string_view type, otherwise;
  };
  constexpr Fallback kFallbacks[] = {
      {"Q2_K", "Q4_0"}, {"Q3_K", "Q4_0"}, {"TQ1_0", "Q4_0"}, {"TQ2_0", "Q4_0"},
      {"Q4_K", "Q5_0"}, {"Q5_K", "Q5_1"}, {"Q6_K", "Q8_0"},  {"IQ4_XS", "IQ4_NL"}};
  if (cols % type->block == 0) return type;
  for (const Fallback& row : kFallbacks) {
    if (row.type == type->name && cols % 32 == 0) return *find_ggml_type(row.otherwise);
  }
  return *find_ggml_type("F16");
}

}  // namespace nibble
