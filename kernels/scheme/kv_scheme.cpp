#include "kernels/scheme/kv_scheme.h"

#include <algorithm>

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
  return name;
}

Result<QuantScheme> parse_one(std::string_view text, std::string_view whole) {
  const Result<QuantScheme> scheme = parse_scheme(text);
  if (!scheme.ok())
    return refuse(
        StatusCode::invalid_argument, whole,
        "f32, f16, bf16, int8, fp8, int4, a scheme or KEYS,VALUES was required; "
        "found '",
        text, "' (", scheme.status().message(), ")");
  NIBBLE_RETURN_IF_ERROR(validate_kv_scheme(*scheme));
  return scheme;
}

}  // namespace

Status validate_kv_scheme(const QuantScheme& scheme) {
  if (scheme.is_float()) return ok_status();
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
            "blocks r, gN (a position's own scales) or bTxC (T positions "
            "together) were required of a KV cache, which grows; found one that "
            "needs every position");
      }
    }
  }
  if (grid != nullptr && by_position)
    return refuse(StatusCode::unsupported, to_string(scheme),
                  "either bTxC blocks or r and gN blocks were required; found both");
  return ok_status();
}

Result<KvScheme> parse_kv_scheme(std::string_view text, int64_t kv_heads,
                                 int64_t head_dim) {
  const size_t comma = text.find(',');
  const std::string keys(text.substr(0, comma));
  const std::string values(comma == std::string_view::npos ? text
                                                           : text.substr(comma + 1));
  KvScheme scheme;
  NIBBLE_ASSIGN_OR_RETURN(scheme.keys,
                          parse_one(short_name(keys, true, kv_heads, head_dim), text));
  NIBBLE_ASSIGN_OR_RETURN(scheme.values,
                          parse_one(short_name(values, false, kv_heads, head_dim), text));
  return scheme;
}

std::string to_string(const KvScheme& scheme) {
  const std::string keys = to_string(scheme.keys);
  return scheme.keys == scheme.values ? keys : keys + "," + to_string(scheme.values);
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
