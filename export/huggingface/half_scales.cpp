#include "export/huggingface/half_scales.h"

#include "export/huggingface/quantized_directory.h"
#include "export/levels.h"
#include "kernels/base/float_types.h"

namespace nibble {
namespace {

Status check_halves(const char* format, const std::string& tensor,
                    const PackedTensor& packed) {
  if (packed.scheme.scales[0].element == Element::f16) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed));
  const CodedLevel& level = q.scales[0];
  for (size_t i = 0; i < level.values.size(); ++i) {
    const float value = level.values[i];
    if (float_from_f16(f16_from_float(value)) == value) continue;
    const auto at = static_cast<int64_t>(i);
    return error(StatusCode::unsupported, "[", format, "] ", tensor, ": row ",
                 at / level.cols, ", group ", at % level.cols,
                 ": scales must be f16 numbers; found ", value, ", a number of ",
                 element_info(packed.scheme.scales[0].element).text,
                 "; quantize with --set scale=f16");
  }
  return ok_status();
}

}  // namespace

Result<int64_t> half_scale_group(const char* format, const std::string& tensor,
                                 const PackedTensor& packed) {
  const QuantScheme& scheme = packed.scheme;
  const auto refused = [&](const char* what) {
    return error(StatusCode::unsupported, "[", format, "] ", tensor, ": uses ",
                 to_string(scheme), "; the format has ", what, "; quantize so");
  };
  if (scheme.scales.size() != 1 || scheme.scales[0].shifted) {
    return refused("one level of scales");
  }
  const Block block = simplified(scheme.scales[0].block, packed.cols);
  if (block.kind != Block::Kind::row && block.kind != Block::Kind::group) {
    return refused("a scale a row or a group of columns");
  }
  if (scheme.offset != OffsetKind::none &&
      (scheme.offset != OffsetKind::zero_point || scheme.offsets.size() != 1 ||
       scheme.offsets[0].shifted || scheme.offsets[0].element != scheme.code ||
       !(simplified(scheme.offsets[0].block, packed.cols) == block))) {
    return refused("integer zero points of the codes' own bits, one a scale");
  }
  NIBBLE_RETURN_IF_ERROR(check_halves(format, tensor, packed));
  // A group of more columns than the row has is written as it is said, so that layers of
  // several widths share one setting.
  const Block& said = scheme.scales[0].block;
  if (said.kind == Block::Kind::group) return said.cols;
  return block.kind == Block::Kind::group ? block.cols : -1;
}

Tensor half_scales(const CodedMatrix& q) {
  const int64_t rows = q.scales[0].rows, groups = q.scales[0].cols;
  std::vector<float> values;
  values.reserve(static_cast<size_t>(rows * groups));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < rows; ++r) {
      values.push_back(q.scales[0].values[static_cast<size_t>(r * groups + g)]);
    }
  }
  return float_tensor(Element::f16, {groups, rows}, values);
}

}  // namespace nibble
