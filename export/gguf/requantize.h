// What is to become of a parameter in a GGUF: kept exactly, written as floats, or
// quantized (again) by ggml's rules because that was asked for.
//
//   --requantize TYPE           what no block type holds, and float layers of the blocks
//   --requantize PATTERN=TYPE   the layers whose names match, whatever they are
//
// TYPE's own fallback serves rows that are not whole blocks of it, as llama.cpp has it:
// Q4_K -> Q5_0, Q5_K -> Q5_1, Q6_K -> Q8_0, Q2_K Q3_K TQ1_0 TQ2_0 -> Q4_0, IQ4_XS ->
// IQ4_NL, and F16 where they are not whole blocks of 32 either.
//
// invalid_argument: an unknown type, a pattern that matches no layer.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "export/ggml/ggml_type.h"
#include "kernels/program/program.h"

namespace nibble {

struct RequantizeRules {
  const GgmlType* otherwise = nullptr;                  // TYPE
  std::map<std::string, const GgmlType*> by_parameter;  // of patterns
};
Result<RequantizeRules> requantize_rules(const std::vector<std::string>& options,
                                         const Program& program);

const GgmlType* type_for_columns(const GgmlType* type, int64_t cols);

}  // namespace nibble
