#include "kernels/scheme/kv_scheme.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "kernels/scheme/coded_matrix.h"

namespace nibble {
namespace {

// Fewer values under one f16 scale would cost more than 1/16 of an int8 cache.
constexpr int64_t kLeastGroup = 32;

template <class... Parts>
Status refuse(StatusCode code, std::string_view text, const Parts&... parts) {
  return error(code, "[kv] ", text, ": ", parts...);
}

std::string short_name(const std::string& name, bool keys, int64_t kv_heads,
                       int64_t head_dim) {
  int64_t group = std::max<int64_t>(1, head_dim);
  while (group < kLeastGroup) group += std::max<int64_t>(1, head_dim);
  const std::string block =
      group >= kv_heads * head_dim ? std::string("/r") : cat("/g", group);
  if (name == "int8") return cat("int8n", block, "@f16");
  if (name == "fp8") return cat("e4m3", block, "@f16");
  if (name == "int4" && keys) return "uint4/b32x1@f16+m/b32x1@f16";
  if (name == "int4") return cat("uint4", block, "@f16+m", block, "@f16");
  if (name == "int8-static") return "int8/t@bf16";
  if (name == "fp8-static") return "e4m3/t@bf16";
  return name;
}

Status parse_one(std::string_view text, std::string_view whole, QuantScheme& scheme,
                 float& scale) {
  const size_t equals = text.find('=');
  const Result<QuantScheme> parsed = parse_scheme(text.substr(0, equals));
  if (!parsed.ok())
    return refuse(StatusCode::invalid_argument, whole,
                  "f32, f16, bf16, int8, fp8, int4, int8-static, fp8-static, a scheme, "
                  "KEYS,VALUES or KEYS,VALUES,QUERIES was required; found '",
                  text, "' (", parsed.status().message(), ")");
  NIBBLE_RETURN_IF_ERROR(validate_kv_scheme(*parsed));
  scheme = *parsed;
  scale = 0;
  if (equals == std::string_view::npos) return ok_status();
  const std::string_view number = text.substr(equals + 1);
  const auto [end, problem] =
      std::from_chars(number.data(), number.data() + number.size(), scale);
  const bool read = problem == std::errc() && end == number.data() + number.size();
  if (!is_static_kv(scheme) || !read || !(scale > 0) || !std::isfinite(scale) ||
      round_to_element(scheme.scales[0].element, scale) != scale)
    return refuse(
        StatusCode::invalid_argument, whole,
        "after = the scale of a scheme with one t block, a positive number that "
        "its element holds, was required; found '",
        text, "'");
  return ok_status();
}

}  // namespace

Status validate_kv_scheme(const QuantScheme& scheme) {
  if (scheme.is_float() || is_static_kv(scheme)) return ok_status();
  const Block* grid = nullptr;
  bool by_position = false;
  for (const std::vector<ScaleLevel>* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels) {
      const Block::Kind kind = level.block.kind;
      if (level.shifted)
        return refuse(StatusCode::unsupported, to_string(scheme),
                      "levels without +o were required of a KV cache, which is never "
                      "whole; found one; leave +o out");
      if (kind == Block::Kind::grid) {
        if (grid != nullptr && grid->rows != level.block.rows)
          return refuse(
              StatusCode::unsupported, to_string(scheme),
              "blocks of as many positions in every level were required; found ",
              grid->rows, " and ", level.block.rows);
        grid = &level.block;
      } else if (kind == Block::Kind::row || kind == Block::Kind::group) {
        by_position = true;
      } else {
        return refuse(
            StatusCode::unsupported, to_string(scheme),
            "blocks r, gN (a position's own scales), bTxC (T positions together) or one "
            "t@f32, t@f16 or t@bf16 without zero point or minimum (a calibrated scale) "
            "were required of a KV cache, which grows; found one that needs every "
            "position");
      }
    }
  }
  if (grid != nullptr && by_position)
    return refuse(StatusCode::unsupported, to_string(scheme),
                  "either bTxC blocks or r and gN blocks were required; found both");
  return ok_status();
}

Status validate_query_scheme(const QuantScheme& scheme) {
  NIBBLE_RETURN_IF_ERROR(validate_kv_scheme(scheme));
  if (!is_static_kv(scheme) && kv_block_positions(scheme) == 1) return ok_status();
  return refuse(
      StatusCode::unsupported, to_string(scheme),
      "f32, f16, bf16, int8, fp8 or a scheme of r and gN blocks was required of "
      "queries, which no position keeps; found one that several share");
}

Result<KvScheme> parse_kv_scheme(std::string_view text, int64_t kv_heads,
                                 int64_t head_dim) {
  std::string_view rest = text;
  const auto next = [&] {
    const size_t comma = rest.find(',');
    const std::string part(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    return part;
  };
  const bool one = text.find(',') == std::string_view::npos;
  const std::string keys = next(), values = one ? keys : next();
  KvScheme scheme;
  NIBBLE_RETURN_IF_ERROR(parse_one(short_name(keys, true, kv_heads, head_dim), text,
                                   scheme.keys, scheme.key_scale));
  NIBBLE_RETURN_IF_ERROR(parse_one(short_name(values, false, kv_heads, head_dim), text,
                                   scheme.values, scheme.value_scale));
  if (std::count(text.begin(), text.end(), ',') < 2) return scheme;
  float scale = 0;
  NIBBLE_RETURN_IF_ERROR(
      parse_one(short_name(std::string(rest), false, kv_heads, head_dim), text,
                scheme.queries, scale));
  NIBBLE_RETURN_IF_ERROR(validate_query_scheme(scheme.queries));
  return scheme;
}

std::string kv_text(const QuantScheme& scheme, float scale) {
  if (!(scale > 0)) return to_string(scheme);
  char shortest[48];
  const char* end = std::to_chars(shortest, shortest + sizeof(shortest), scale).ptr;
  return cat(to_string(scheme), "=", std::string_view(shortest, end));
}

std::string to_string(const KvScheme& scheme) {
  const std::string keys = kv_text(scheme.keys, scheme.key_scale);
  const std::string values = kv_text(scheme.values, scheme.value_scale);
  if (scheme.rounds_queries())
    return cat(keys, ",", values, ",", to_string(scheme.queries));
  return keys == values ? keys : keys + "," + values;
}

bool is_static_kv(const QuantScheme& scheme) {
  if (scheme.is_float() || scheme.scales.size() != 1 || !scheme.offsets.empty())
    return false;
  const ScaleLevel& level = scheme.scales[0];
  const ElementInfo& code = element_info(scheme.code);
  if (code.kind == ElementKind::integer && code.lowest >= 0)
    return false;  // no zero point
  return level.block.kind == Block::Kind::tensor && !level.shifted &&
         (level.element == Element::f32 || level.element == Element::f16 ||
          level.element == Element::bf16);
}

bool is_static_kv(const KvScheme& scheme) {
  return is_static_kv(scheme.keys) || is_static_kv(scheme.values);
}

float static_kv_scale(const QuantScheme& scheme, float largest_magnitude) {
  if (!(largest_magnitude > 0)) return 1;
  const Element element = scheme.scales[0].element;
  const float exact = largest_magnitude / element_info(scheme.code).highest;
  // Rounding to nearest could clamp the very value that was measured.
  float scale = round_to_element(element, exact);
  for (float above = exact; scale < exact; scale = round_to_element(element, above))
    above *= 1 + 1.0f / 512;
  return scale;
}

int64_t kv_block_positions(const QuantScheme& scheme) {
  for (const ScaleLevel& level : scheme.scales) {
    if (level.block.kind == Block::Kind::grid) return level.block.rows;
  }
  for (const ScaleLevel& level : scheme.offsets) {
    if (level.block.kind == Block::Kind::grid) return level.block.rows;
  }
  return 1;
}

}  // namespace nibble
