#include "export/gguf/hold.h"

#include <algorithm>
#include <cmath>

#include "export/levels.h"
#include "kernels/base/parallel.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = 32;

template <class... Parts>
Status cannot(const CodedMatrix& q, const Parts&... parts) {
  return error(StatusCode::unsupported, "uses ", to_string(q.scheme), "; ", parts...);
}

const GgmlType* type_named(const char* name) { return *find_ggml_type(name); }

// The whole numbers that q - z can be.
struct Range {
  int lowest, highest;
};
Range range_of(const QuantScheme& scheme) {
  const int lowest = code_lowest(scheme), highest = code_highest(scheme);
  if (scheme.offset != OffsetKind::zero_point) return {lowest, highest};
  return {lowest - highest, highest - lowest};
}

Result<const GgmlType*> choose(const CodedMatrix& q) {
  const QuantScheme& scheme = q.scheme;
  const ElementInfo& code = element_info(scheme.code);
  switch (scheme.code) {
    case Element::ternary:
    case Element::binary:
      return type_named("Q4_0");
    case Element::e2m1:
      return type_named("MXFP4");
    case Element::iq4nl:
      return type_named("IQ4_NL");
    default:
      break;
  }
  if (code.kind != ElementKind::integer) {
    return cannot(q, "GGUF has no type with ", code.text, " codes");
  }
  if (scheme.offset == OffsetKind::minimum) {
    if (code_lowest(scheme) < 0 || code_highest(scheme) > 31) {
      return cannot(q, "GGUF has minima for unsigned codes of at most 5 bits only");
    }
    return type_named(code_highest(scheme) <= 15 ? "Q4_1" : "Q5_1");
  }
  const Range range = range_of(scheme);
  for (const char* name : {"Q4_0", "Q5_0", "Q8_0"}) {
    const GgmlType* type = type_named(name);
    if (range.lowest >= code_lowest(type->scheme) &&
        range.highest <= code_highest(type->scheme)) {
      return type;
    }
  }
  return cannot(q, "its codes run from ", range.lowest, " to ", range.highest,
                "; the widest type of GGUF, Q8_0, from -128 to 127");
}

// Scales of the type, one a block, each the very value that governs it.
class Holder {
 public:
  Holder(const CodedMatrix& q, const GgmlType& type) : q_(q), type_(type) {
    out_.type = &type;
    out_.q.scheme = type.scheme;
    out_.q.rows = q.rows;
    out_.q.cols = q.cols;
    out_.q.codes.resize(q.codes.size());
    const LevelShape shape = level_shape(type.scheme.scales[0].block, q.rows, q.cols);
    const CodedLevel level{
        shape.rows, shape.cols,
        std::vector<float>(static_cast<size_t>(shape.rows * shape.cols)), 0};
    out_.q.scales = {level};
    if (!type.scheme.offsets.empty()) out_.q.offsets = {level};
  }

  Result<HeldMatrix> run() {
    std::vector<Status> outcomes(static_cast<size_t>(q_.rows));
    parallel_for(q_.rows, [&](int64_t r) { outcomes[static_cast<size_t>(r)] = row(r); });
    for (Status& outcome : outcomes) {
      if (!outcome.ok()) return std::move(outcome);
    }
    return std::move(out_);
  }

 private:
  Status row(int64_t r) {
    const bool minimum = q_.scheme.offset == OffsetKind::minimum;
    for (int64_t c = 0; c < q_.cols; c += kBlock) {
      const size_t block = static_cast<size_t>((r * q_.cols + c) / kBlock);
      const float scale = scale_at(q_, r, c);
      const float offset = q_.offsets.empty() ? 0.0f : offset_at(q_, r, c);
      NIBBLE_RETURN_IF_ERROR(value(r, c, "scale", type_.scheme.scales[0], scale,
                                   &out_.q.scales[0].values[block]));
      if (minimum) {
        NIBBLE_RETURN_IF_ERROR(value(r, c, "minimum", type_.scheme.offsets[0], offset,
                                     &out_.q.offsets[0].values[block]));
      }
      codes(r, c, minimum ? 0 : static_cast<int>(offset));
    }
    return ok_status();
  }

  Status value(int64_t r, int64_t c, const char* what, const ScaleLevel& level, float v,
               float* out) const {
    *out = round_to_element(level.element, v);
    if (*out == v) return ok_status();
    return cannot(q_, type_.name, " has ", element_info(level.element).text, " ", what,
                  level.element == Element::e8m0 ? "s (powers of two)" : "s", "; the ",
                  what, " of row ", r, ", column ", c, " is ", v);
  }

  void codes(int64_t r, int64_t c, int zero) {
    const uint8_t* from = q_.codes.data() + r * q_.cols + c;
    uint8_t* to = out_.q.codes.data() + r * q_.cols + c;
    const ElementInfo& code = element_info(q_.scheme.code);
    for (int64_t i = 0; i < kBlock; ++i) {
      if (q_.scheme.code == type_.scheme.code && zero == 0) {
        to[i] = from[i];
      } else if (code.kind == ElementKind::integer) {
        const int v = code.lowest < 0 ? static_cast<int8_t>(from[i]) : from[i];
        to[i] = static_cast<uint8_t>(v - zero);
      } else {  // ternary, binary: the number itself
        to[i] = static_cast<uint8_t>(static_cast<int>(value_of(q_.scheme.code, from[i])));
      }
    }
  }

  const CodedMatrix& q_;
  const GgmlType& type_;
  HeldMatrix out_;
};

// "GGUF has no block of 48": a scale that changes inside 32 columns.
Status check_runs(const CodedMatrix& q) {
  for (int64_t r = 0; r < q.rows; ++r) {
    for (int64_t c = 0; c < q.cols; c += kBlock) {
      if (cell_end(q.scheme, q.cols, r, c) >= c + kBlock) continue;
      for (const auto* levels : {&q.scheme.scales, &q.scheme.offsets}) {
        for (const ScaleLevel& level : *levels) {
          if (level.block.kind == Block::Kind::column)
            return cannot(q, "GGUF has no scale a column");
          if (level.block.cols % kBlock != 0)
            return cannot(q, "GGUF has no block of ", level.block.cols);
        }
      }
      return cannot(q, "its blocks do not end where GGUF's of 32 columns do, at row ", r);
    }
    // Only flat blocks lie differently from row to row.
    if (q.scheme.scales[0].block.kind != Block::Kind::flat) break;
  }
  return ok_status();
}

}  // namespace

Result<HeldMatrix> hold_exactly(CodedMatrix q) {
  for (const GgmlType& type : all_ggml_types()) {
    if (type.is_float() || !(type.scheme == q.scheme)) continue;
    if (q.cols % type.block == 0) return HeldMatrix{&type, std::move(q)};
    if (type.block > kBlock && q.scheme.code != Element::ternary)
      return cannot(q, type.name, " needs rows of whole blocks of ", type.block,
                    "; found ", q.cols, " columns");
  }
  if (q.cols % kBlock != 0)
    return cannot(q, "GGUF needs rows of whole blocks of 32; found ", q.cols, " columns");
  NIBBLE_RETURN_IF_ERROR(check_runs(q));
  NIBBLE_ASSIGN_OR_RETURN(const GgmlType* type, choose(q));
  return Holder(q, *type).run();
}

}  // namespace nibble
