// KV caches of one calibrated scale a layer's keys and one its values, as quantized
// checkpoints carry them: compressed-tensors' kv_cache_scheme, ModelOpt's KV FP8.
//
//   x = s * code        code e4m3 or int8; s [1] or [] beside the attention's weights
//
// By the attention's module, "model.layers.0.self_attn", whose state in a program is
// "model.layers.0.self_attn.cache".
#pragma once

#include <map>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

using StaticCaches = std::map<std::string, KvScheme>;

// The caches of a program whose every state has the same code, e4m3 or int8, under a
// static scheme with its scales; empty for any other.
StaticCaches static_caches(const Program& program);
// e4m3 or int8, of caches that are not empty.
Element static_cache_code(const StaticCaches& caches);

// Takes the scales of keys and values (keys.at(module), values.at(module): one positive
// finite number, f32, f16 or bf16) into caches. Why a module's scales say nothing, ""
// where they were taken: a scale without its other half, of another shape or type, not a
// scale.
std::string add_static_cache(const std::string& module, Element code, const Tensor* keys,
                             const Tensor* values, StaticCaches& caches);

// The schemes into the program's states. invalid_argument: a module that has none.
Status set_static_caches(const StaticCaches& caches, Program& program);

// Codes and scales equal; what a scale is stored as may differ, its value may not.
bool same_static_caches(const StaticCaches& a, const StaticCaches& b);

}  // namespace nibble
