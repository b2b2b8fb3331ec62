#include "kernels/artifact/stored_parts.h"

#include "kernels/artifact/manifest.h"

namespace nibble {
namespace {

DType dtype_of(Element element) {
  switch (element) {
    case Element::f32:
      return DType::f32;
    case Element::f16:
      return DType::f16;
    case Element::bf16:
      return DType::bf16;
    case Element::e4m3:
      return DType::f8_e4m3;
    case Element::e5m2:
      return DType::f8_e5m2;
    case Element::e8m0:
      return DType::f8_e8m0;
    case Element::int8:
      return DType::i8;
    default:
      return DType::u8;  // uint8, dyn8, and bit streams
  }
}

std::vector<int64_t> level_tensor_shape(const ScaleLevel& level, int64_t rows,
                                        int64_t cols) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  const int bits = element_info(level.element).bits;
  return {shape.rows, bits < 8 ? (shape.cols * bits + 7) / 8 : shape.cols};
}

}  // namespace

std::vector<StoredPart> stored_parts(const std::string& weight, const QuantScheme& scheme,
                                     int64_t rows, int64_t cols) {
  const int64_t row_bytes = (cols * element_info(scheme.code).bits + 7) / 8;
  std::vector<StoredPart> parts = {
      {StoredPart::Kind::codes, 0, codes_name(weight), DType::u8, {rows, row_bytes}}};
  for (size_t i = 0; i < scheme.scales.size(); ++i) {
    parts.push_back({StoredPart::Kind::scale, i, scale_name(weight, i),
                     dtype_of(scheme.scales[i].element),
                     level_tensor_shape(scheme.scales[i], rows, cols)});
  }
  for (size_t i = 0; i < scheme.offsets.size(); ++i) {
    parts.push_back({StoredPart::Kind::offset, i, offset_name(weight, scheme.offset, i),
                     dtype_of(scheme.offsets[i].element),
                     level_tensor_shape(scheme.offsets[i], rows, cols)});
  }
  return parts;
}

}  // namespace nibble
