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

const Bytes& part_bytes(const PackedTensor& packed, const StoredPart& part) {
  switch (part.kind) {
    case StoredPart::Kind::scale:
      return packed.scales[part.level].values;
    case StoredPart::Kind::offset:
      return packed.offsets[part.level].values;
    default:
      return packed.codes;
  }
}

Result<PackedTensor> take_packed(const std::string& name, const ManifestWeight& weight,
                                 std::map<std::string, Tensor>& stored) {
  PackedTensor packed;
  packed.scheme = weight.layer.weight;
  packed.shape = weight.shape;
  packed.rows = weight.rows;
  packed.cols = weight.cols;
  const int64_t most = int64_t{1}
                       << 40;  // keeps products of sizes and bits inside 64 bits
  if (weight.rows < 1 || weight.cols < 1 || weight.rows > most / weight.cols) {
    return error(StatusCode::data_loss, "[artifact] ", name,
                 ": rows and cols must be sizes; ", "found ", weight.rows, " and ",
                 weight.cols);
  }
  packed.scales.resize(packed.scheme.scales.size());
  packed.offsets.resize(packed.scheme.offsets.size());
  for (const StoredPart& part :
       stored_parts(name, packed.scheme, weight.rows, weight.cols)) {
    const auto found = stored.find(part.name);
    if (found == stored.end() || found->second.dtype != part.dtype ||
        found->second.shape != part.shape) {
      return error(StatusCode::data_loss, "[artifact] ", part.name, ": scheme ",
                   to_string(packed.scheme), " needs ", dtype_name(part.dtype), " ",
                   shape_text(part.shape), "; found ",
                   found == stored.end() ? std::string("no such tensor")
                                         : cat(dtype_name(found->second.dtype), " ",
                                               shape_text(found->second.shape)));
    }
    switch (part.kind) {
      case StoredPart::Kind::codes:
        packed.codes = found->second.bytes;
        break;
      case StoredPart::Kind::scale:
        packed.scales[part.level].values = found->second.bytes;
        break;
      case StoredPart::Kind::offset:
        packed.offsets[part.level].values = found->second.bytes;
        break;
    }
    stored.erase(found);
  }
  if (!packed.scales.empty()) packed.scales[0].shift = weight.scale_shift;
  if (!packed.offsets.empty()) packed.offsets[0].shift = weight.offset_shift;
  return packed;
}

}  // namespace nibble
