#include "export/huggingface/static_caches.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace nibble {
namespace {

constexpr std::string_view kCache = ".cache";

bool can_be_written(const QuantScheme& scheme, float scale, Element code) {
  return is_static_kv(scheme) && scale > 0 && scheme.code == code && !scheme.narrow;
}

struct Scale {
  Element element = Element::f32;
  float value = 0;
};

std::optional<Scale> scale_of(const Tensor& tensor) {
  Scale scale;
  if (tensor.dtype == DType::f16) {
    scale.element = Element::f16;
  } else if (tensor.dtype == DType::bf16) {
    scale.element = Element::bf16;
  } else if (tensor.dtype != DType::f32) {
    return std::nullopt;
  }
  if (tensor.numel() != 1) return std::nullopt;
  const Result<std::vector<float>> values = to_float(tensor);
  if (!values.ok()) return std::nullopt;
  scale.value = values->front();
  if (!(scale.value > 0) || !std::isfinite(scale.value)) return std::nullopt;
  return scale;
}

QuantScheme static_scheme(Element code, Element scale) {
  QuantScheme scheme;
  scheme.code = code;
  scheme.scales = {{{Block::Kind::tensor, 1, 1}, scale, false}};
  return scheme;
}

}  // namespace

StaticCaches static_caches(const Program& program) {
  StaticCaches caches;
  for (const ProgramState& state : program.states) {
    const Element code = program.states[0].scheme.keys.code;
    const KvScheme& scheme = state.scheme;
    if ((code != Element::e4m3 && code != Element::int8) ||
        !can_be_written(scheme.keys, scheme.key_scale, code) ||
        !can_be_written(scheme.values, scheme.value_scale, code) ||
        scheme.rounds_queries() || !state.name.ends_with(kCache)) {
      return {};
    }
    caches[state.name.substr(0, state.name.size() - kCache.size())] = scheme;
  }
  return caches;
}

Element static_cache_code(const StaticCaches& caches) {
  return caches.begin()->second.keys.code;
}

std::string add_static_cache(const std::string& module, Element code, const Tensor* keys,
                             const Tensor* values, StaticCaches& caches) {
  if (keys == nullptr || values == nullptr)
    return "the scale of a KV cache's keys or values without the other";
  const std::optional<Scale> key = scale_of(*keys), value = scale_of(*values);
  if (!key || !value)
    return "the scale of a KV cache that is not one positive number of f32, f16 or bf16";
  caches[module] = {.keys = static_scheme(code, key->element),
                    .values = static_scheme(code, value->element),
                    .key_scale = key->value,
                    .value_scale = value->value};
  return "";
}

Status set_static_caches(const StaticCaches& caches, Program& program) {
  for (const auto& [module, scheme] : caches) {
    const std::string name = module + ".cache";
    const auto state =
        std::find_if(program.states.begin(), program.states.end(),
                     [&](const ProgramState& s) { return s.name == name; });
    if (state == program.states.end())
      return error(StatusCode::invalid_argument, "[kv] ", module, ": ",
                   program.architecture,
                   " has no such attention; found scales of its KV cache in the "
                   "checkpoint; do config.json and the weights belong together?");
    state->scheme = scheme;
  }
  return ok_status();
}

bool same_static_caches(const StaticCaches& a, const StaticCaches& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& one, const auto& other) {
                      const KvScheme &x = one.second, &y = other.second;
                      return one.first == other.first && x.keys.code == y.keys.code &&
                             x.values.code == y.values.code &&
                             x.key_scale == y.key_scale && x.value_scale == y.value_scale;
                    });
}

}  // namespace nibble
