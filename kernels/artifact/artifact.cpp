#include "kernels/artifact/artifact.h"

#include <cmath>
#include <cstring>
#include <set>

#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/program/shape.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {
namespace {

// The first value whose exponent bits are all ones (NaN or infinity), or -1.
template <class Word>
int64_t first_not_finite(const Bytes& bytes, Word exponent) {
  const int64_t count = static_cast<int64_t>(bytes.size() / sizeof(Word));
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes.data() + static_cast<size_t>(i) * sizeof(Word),
                sizeof(Word));
    if ((word & exponent) == exponent) return i;
  }
  return -1;
}

// The first value of a piece that is not finite, or -1.
int64_t first_not_finite(DType dtype, const Bytes& bytes) {
  switch (dtype) {
    case DType::f16:
      return first_not_finite<uint16_t>(bytes, 0x7c00);
    case DType::bf16:
      return first_not_finite<uint16_t>(bytes, 0x7f80);
    case DType::f32:
      return first_not_finite<uint32_t>(bytes, 0x7f800000u);
    case DType::f64:
      return first_not_finite<uint64_t>(bytes, 0x7ff0000000000000ull);
    default:
      return -1;
  }
}

Status check_finite(const std::string& name, const Tensor& tensor) {
  if (!tensor.is_float()) {
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": a parameter must be F16, BF16, F32 or F64; found ",
                 dtype_name(tensor.dtype));
  }
  int64_t before = 0, at = -1;
  (void)for_each_piece(tensor.bytes, [&](const Bytes& piece) {
    if (at >= 0) return ok_status();
    at = first_not_finite(tensor.dtype, piece);
    if (at >= 0) at += before;
    before += static_cast<int64_t>(piece.size()) / dtype_bytes(tensor.dtype);
    return ok_status();
  });
  if (at < 0) return ok_status();
  float value = 0;
  NIBBLE_RETURN_IF_ERROR(read_floats(tensor, at, {&value, 1}));
  return error(StatusCode::out_of_range, "[artifact] ", name,
               ": every value must be finite; found ",
               std::isnan(value) ? "NaN" : "infinity",
               " at index ", at, " of ", shape_text(tensor.shape),
               "; the checkpoint is broken");
}

// One stored value of a level, decoded. Sub-byte codes are a dense bit stream per level
// row.
float level_value(const ScaleLevel& level, const Bytes& bytes, const LevelShape& shape,
                  int64_t index) {
  const ElementInfo& info = element_info(level.element);
  const std::byte* data = bytes.data();
  if (info.bits == 32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  if (info.bits == 16) {
    uint16_t word;
    std::memcpy(&word, data + index * 2, 2);
    return level.element == Element::f16 ? float_from_f16(word) : float_from_bf16(word);
  }
  const int64_t row_bytes = (shape.cols * info.bits + 7) / 8;
  const int64_t bit = index % shape.cols * info.bits;
  const std::byte* at = data + index / shape.cols * row_bytes + bit / 8;
  unsigned window = static_cast<unsigned>(at[0]);
  if (bit % 8 + info.bits > 8) window |= static_cast<unsigned>(at[1]) << 8;
  unsigned code = (window >> (bit % 8)) & ((1u << info.bits) - 1);
  // value_of takes intN codes sign-extended to a byte.
  if (info.kind == ElementKind::integer && info.lowest < 0 &&
      (code >> (info.bits - 1)) != 0) {
    code |= 0xffu << info.bits;
  }
  return value_of(level.element, static_cast<uint8_t>(code));
}

Status check_level(const std::string& name, const char* kind, size_t i,
                   const ScaleLevel& level, const PackedLevel& packed, int64_t rows,
                   int64_t cols, bool positive, bool either_sign = false) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  for (int64_t at = 0; at < shape.rows * shape.cols; ++at) {
    const float value = level_value(level, packed.values, shape, at);
    const bool good = !positive || value > 0 || (either_sign && value != 0);
    if (!std::isfinite(value) || !good) {
      const char* more = !positive ? "" : either_sign ? " and not 0" : " and positive";
      return error(StatusCode::out_of_range, "[artifact] ", name, ": ", kind, " level ",
                   i, " must be finite", more, "; found ", value, " at row ",
                   at / shape.cols, ", column ", at % shape.cols);
    }
  }
  return ok_status();
}

// With a shift the innermost values may be negative: what must be positive is the whole
// scale.
Status check_shifted_scales(const std::string& name, const PackedTensor& packed) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix coded, unpack(packed));
  const std::vector<float> scales = expanded_scales(coded);
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!(scales[i] > 0) || !std::isfinite(scales[i])) {
      return error(StatusCode::out_of_range, "[artifact] ", name,
                   ": every scale must be finite and positive; found ", scales[i],
                   " at row ", static_cast<int64_t>(i) / packed.cols, ", column ",
                   static_cast<int64_t>(i) % packed.cols);
    }
  }
  return ok_status();
}

Status check_packed_values(const std::string& name, const PackedTensor& packed,
                           bool imported) {
  const Status sizes = check_packed(packed);
  if (!sizes.ok()) {
    return error(sizes.code(), "[artifact] ", name, ": ", sizes.message());
  }
  const QuantScheme& scheme = packed.scheme;
  if (scheme.is_float()) {
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": a packed weight needs a scheme with scales; found ", to_string(scheme),
                 "; store it as a float tensor");
  }
  const bool shifted = scheme.scales[0].shifted;
  for (size_t i = 0; i < scheme.scales.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(check_level(
        name, "scale", i, scheme.scales[i], packed.scales[i], packed.rows, packed.cols,
        !imported && (!shifted || i > 0), has_signed_scales(scheme)));
  }
  for (size_t i = 0; i < scheme.offsets.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(check_level(name, "offset", i, scheme.offsets[i],
                                       packed.offsets[i], packed.rows, packed.cols,
                                       false));
  }
  return shifted && !imported ? check_shifted_scales(name, packed) : ok_status();
}

Status check_activation(const std::string& where, const ActivationScheme& activation) {
  NIBBLE_RETURN_IF_ERROR(validate_scheme(activation.scheme));
  if (!activation.dynamic && !(activation.scale > 0 && std::isfinite(activation.scale))) {
    return error(StatusCode::out_of_range, "[artifact] ", where,
                 ": a static activation's scale must be finite and positive; found ",
                 activation.scale);
  }
  return ok_status();
}

std::set<std::string> named_tensors(const Program& program) {
  std::set<std::string> names;
  for (const Node& node : program.nodes) {
    for (const auto& [role, tensor] : node.parameters) names.insert(tensor);
  }
  return names;
}

// What an act-order permutation must be: every column once.
Status check_permutation(const Artifact& artifact, const std::string& layer,
                         const std::string& name, int64_t cols) {
  const auto found = artifact.tensors.find(name);
  if (found == artifact.tensors.end()) {
    return error(StatusCode::not_found, "[artifact] ", layer, ": its extras name tensor ",
                 name, "; found no such tensor");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> order, to_int32(found->second));
  const std::set<int32_t> columns(order.begin(), order.end());
  if (static_cast<int64_t>(order.size()) != cols ||
      static_cast<int64_t>(columns.size()) != cols || *columns.begin() != 0 ||
      *columns.rbegin() != cols - 1) {
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": a permutation must hold each of ", cols, " columns once; found ",
                 columns.size(), " different ones in ", order.size());
  }
  return ok_status();
}

Status check_layer(const Artifact& artifact, const std::string& name,
                   const PackedTensor& packed) {
  const auto layer = artifact.layers.find(name);
  if (layer == artifact.layers.end() || !(layer->second.weight == packed.scheme)) {
    return error(
        StatusCode::invalid_argument, "[artifact] ", name,
        ": a packed weight needs a layer scheme equal to its own, ",
        to_string(packed.scheme), "; found ",
        layer == artifact.layers.end() ? "none" : to_string(layer->second.weight));
  }
  if (layer->second.input) {
    NIBBLE_RETURN_IF_ERROR(check_activation(name, *layer->second.input));
  }
  const LayerExtras& extras = layer->second.extras;
  if (!extras.permutation.empty()) {
    NIBBLE_RETURN_IF_ERROR(
        check_permutation(artifact, name, extras.permutation, packed.cols));
  }
  for (const std::string& part : {extras.low_rank_a, extras.low_rank_b}) {
    if (!part.empty() && !artifact.tensors.count(part)) {
      return error(StatusCode::not_found, "[artifact] ", name,
                   ": its extras name tensor ", part, "; found no such tensor");
    }
  }
  const LedgerEntry* entry = artifact.ledger.find(name);
  return check_packed_values(name, packed, entry != nullptr && entry->method == kImported);
}

}  // namespace

int64_t Artifact::weight_bytes() const {
  int64_t total = 0;
  for (const std::string& name : named_tensors(program)) {
    if (const auto tensor = tensors.find(name); tensor != tensors.end()) {
      total += static_cast<int64_t>(tensor->second.bytes.size());
    } else if (const auto weight = packed.find(name); weight != packed.end()) {
      total += weight->second.bytes();
    }
  }
  return total;
}

Status check_artifact(const Artifact& artifact) {
  Shapes shapes, values;
  for (const auto& [name, tensor] : artifact.tensors) shapes[name] = tensor.shape;
  for (const auto& [name, packed] : artifact.packed) {
    if (!shapes.emplace(name, packed.shape).second) {
      return error(StatusCode::invalid_argument, "[artifact] ", name,
                   ": a parameter must be a float tensor or a packed one; found both");
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_shapes(artifact.program, shapes, &values));
  for (const std::string& name : named_tensors(artifact.program)) {
    const auto tensor = artifact.tensors.find(name);
    if (tensor != artifact.tensors.end()) {
      NIBBLE_RETURN_IF_ERROR(check_finite(name, tensor->second));
    }
  }
  for (const auto& [name, packed] : artifact.packed) {
    NIBBLE_RETURN_IF_ERROR(check_layer(artifact, name, packed));
    packed.release_pages();
  }
  for (const auto& [name, layer] : artifact.layers) {
    if (!artifact.packed.count(name)) {
      return error(StatusCode::invalid_argument, "[artifact] ", name,
                   ": a layer scheme needs its packed weight; found none");
    }
  }
  for (const auto& [name, activation] : artifact.activations) {
    if (!values.count(name)) {
      return error(
          StatusCode::invalid_argument, "[artifact] ", name,
          ": an activation scheme must name a value of the program; found no such "
          "value");
    }
    NIBBLE_RETURN_IF_ERROR(check_activation(name, activation));
  }
  if (artifact.image_mean.size() != artifact.image_std.size()) {
    return error(StatusCode::invalid_argument,
                 "[artifact] image_std: needs as many channels as image_mean, ",
                 artifact.image_mean.size(), "; found ", artifact.image_std.size());
  }
  for (size_t i = 0; i < artifact.image_std.size(); ++i) {
    if (!(artifact.image_std[i] > 0) || !std::isfinite(artifact.image_std[i]) ||
        !std::isfinite(artifact.image_mean[i])) {
      return error(StatusCode::out_of_range, "[artifact] image_std: channel ", i,
                   " needs a finite mean and a positive std; found ",
                   artifact.image_mean[i], " and ", artifact.image_std[i]);
    }
  }
  return ok_status();
}

}  // namespace nibble
