#include "export/exporter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/levels.h"
#include "kernels/base/parallel.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/program/edits/low_rank.h"
#include "kernels/program/edits/rotate.h"

namespace nibble {
namespace {

// A function's name as people type the format's: compressed-tensors.
template <size_t N>
struct Typed {
  char text[N];
  constexpr explicit Typed(const char (&name)[N]) : text{} {
    for (size_t i = 0; i < N; ++i) text[i] = name[i] == '_' ? '-' : name[i];
  }
};

Status differs(const std::string& tensor, int64_t r, int64_t c, const char* what,
               double required, double found) {
  return error(StatusCode::data_loss, "[export] ", tensor, ": row ", r, ", column ", c,
               ": the ", what, " must be ", required, "; read back ", found,
               "; the written file does not hold this model");
}

bool is_whole(const CodedMatrix& q) {
  return element_info(q.scheme.code).kind == ElementKind::integer &&
         q.scheme.offset != OffsetKind::minimum;
}

// q - z of an integer scheme.
float distance_to_zero(const CodedMatrix& q, int64_t r, int64_t c) {
  const uint8_t code = q.codes[static_cast<size_t>(r * q.cols + c)];
  const float value = element_info(q.scheme.code).lowest < 0
                          ? static_cast<float>(static_cast<int8_t>(code))
                          : static_cast<float>(code);
  return value - offset_at(q, r, c);
}

// Where each column of the weight lies among the codes.
std::vector<int64_t> places(const std::vector<int32_t>& order, int64_t cols) {
  std::vector<int64_t> place(static_cast<size_t>(cols));
  for (int64_t c = 0; c < cols; ++c) {
    const auto at = static_cast<size_t>(c);
    place[order.empty() ? at : static_cast<size_t>(order[at])] = c;
  }
  return place;
}

// The columns [c, end) of row r, whose scale and offset are one in both: is q - z the same
// everywhere? Where z differs by no integer the general way decides.
bool same_distances(const CodedMatrix& q, const CodedMatrix& read, int64_t r, int64_t c,
                    int64_t end) {
  const float difference = offset_at(read, r, c) - offset_at(q, r, c);
  if (!(std::abs(difference) <= 1000)) return false;  // NaN too
  const auto shift = static_cast<int>(difference);
  if (static_cast<float>(shift) != difference) return false;
  const uint8_t* mine = q.codes.data() + r * q.cols;
  const uint8_t* other = read.codes.data() + r * q.cols;
  // 256 is taken from what a signed byte has above 127.
  const int sign = element_info(q.scheme.code).lowest < 0 ? 128 : 0;
  const int sign_read = element_info(read.scheme.code).lowest < 0 ? 128 : 0;
  int different = 0;
  for (int64_t i = c; i < end; ++i) {
    different |= ((other[i] ^ sign_read) - sign_read) - ((mine[i] ^ sign) - sign) - shift;
  }
  return different == 0;
}

// The same integers under another name (int4 codes, and uint4 codes with zero points of
// 8), or with their columns in another order within a group.
Status check_distances(const std::string& tensor, const CodedMatrix& q,
                       const CodedMatrix& read, const std::vector<int32_t>& order,
                       const std::vector<int32_t>& order_read) {
  const std::vector<int64_t> place = places(order, q.cols);
  const std::vector<int64_t> place_read = places(order_read, q.cols);
  for (int64_t r = 0; r < q.rows; ++r) {
    // Cell by cell where the columns lie in their own order.
    int64_t begin = 0;
    while (order.empty() && order_read.empty() && begin < q.cols) {
      const int64_t end =
          std::min(cell_end(q.scheme, q.cols, r, begin), cell_end(read.scheme, q.cols, r, begin));
      if (scale_at(q, r, begin) != scale_at(read, r, begin) ||
          !same_distances(q, read, r, begin, end)) {
        break;
      }
      begin = end;
    }
    for (int64_t column = begin; column < q.cols; ++column) {
      const int64_t c = place[static_cast<size_t>(column)];
      const int64_t d = place_read[static_cast<size_t>(column)];
      const float required = distance_to_zero(q, r, c),
                  found = distance_to_zero(read, r, d);
      if (required != found) return differs(tensor, r, column, "code", required, found);
      const float scale = scale_at(q, r, c), scale_read = scale_at(read, r, d);
      if (scale != scale_read)
        return differs(tensor, r, column, "scale", scale, scale_read);
    }
  }
  return ok_status();
}

// Column c of a weight's codes is column order[c] of the weight; empty: c itself.
Result<std::vector<int32_t>> order_of(const Artifact& artifact,
                                      const std::string& weight) {
  const auto layer = artifact.layers.find(weight);
  if (layer == artifact.layers.end()) return std::vector<int32_t>{};
  const auto tensor = artifact.tensors.find(layer->second.extras.permutation);
  if (tensor == artifact.tensors.end()) return std::vector<int32_t>{};
  return to_int32(tensor->second);
}

Status check_coded(const std::string& tensor, const CodedMatrix& q,
                   const CodedMatrix& read, const std::vector<int32_t>& order,
                   const std::vector<int32_t>& order_read, bool reciprocal) {
  if (q.rows != read.rows || q.cols != read.cols) {
    return error(StatusCode::data_loss, "[export] ", tensor, ": must be [", q.rows, ", ",
                 q.cols, "]; read back [", read.rows, ", ", read.cols, "]");
  }
  if (is_whole(q) && is_whole(read) &&
      (q.scheme.code != read.scheme.code || order != order_read)) {
    return check_distances(tensor, q, read, order, order_read);
  }
  if (q.scheme.code != read.scheme.code) {
    return error(StatusCode::data_loss, "[export] ", tensor, ": must have codes of ",
                 to_string(q.scheme), "; read back ", to_string(read.scheme));
  }
  for (int64_t r = 0; r < q.rows; ++r) {
    const auto row = static_cast<size_t>(r * q.cols);
    const bool same = std::memcmp(q.codes.data() + row, read.codes.data() + row,
                                  static_cast<size_t>(q.cols)) == 0;
    for (int64_t c = 0; !same && c < q.cols; ++c) {
      const auto i = row + static_cast<size_t>(c);
      if (q.codes[i] != read.codes[i]) {
        return differs(tensor, r, c, "code", q.codes[i], read.codes[i]);
      }
    }
    for (int64_t c = 0; c < q.cols;) {
      const float scale = scale_at(q, r, c), scale_read = scale_at(read, r, c);
      const float allowed = reciprocal ? std::ldexp(std::abs(scale), -22) : 0;
      if (!(std::abs(scale - scale_read) <= allowed))
        return differs(tensor, r, c, "scale", scale, scale_read);
      const float offset = offset_at(q, r, c), offset_read = offset_at(read, r, c);
      if (offset != offset_read)
        return differs(tensor, r, c, "offset", offset, offset_read);
      c = std::min(cell_end(q.scheme, q.cols, r, c), cell_end(read.scheme, q.cols, r, c));
    }
  }
  return ok_status();
}

Status check_floats(const std::string& name, const Tensor& tensor, const Tensor& read) {
  if (tensor.shape != read.shape) {
    return error(StatusCode::data_loss, "[export] ", name, ": must be ",
                 shape_text(tensor.shape), "; read back ", shape_text(read.shape));
  }
  if (read.dtype == DType::i32)
    return ok_status();  // a bias in the format's integer form
  if (tensor.dtype == read.dtype && tensor.bytes.size() == read.bytes.size() &&
      std::memcmp(tensor.bytes.data(), read.bytes.data(), tensor.bytes.size()) == 0) {
    return ok_status();
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> required, to_float(tensor));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> found, to_float(read));
  const int64_t cols = std::max<int64_t>(tensor.cols(), 1);
  for (size_t i = 0; i < required.size(); ++i) {
    if (std::bit_cast<uint32_t>(required[i]) != std::bit_cast<uint32_t>(found[i])) {
      const auto at = static_cast<int64_t>(i);
      return differs(name, at / cols, at % cols, "value", required[i], found[i]);
    }
  }
  return ok_status();
}

}  // namespace

const std::vector<Exporter>& all_exporters() {
#define NIBBLE_EXPORTER(name, description) static constexpr Typed kTyped_##name(#name);
#include "export/exporters.inc"
#undef NIBBLE_EXPORTER
  static const std::vector<Exporter> exporters = {
#define NIBBLE_EXPORTER(name, description) \
  {kTyped_##name.text, description, can_express_##name, write_##name, read_##name},
#include "export/exporters.inc"
#undef NIBBLE_EXPORTER
  };
  return exporters;
}

Status can_express(const Exporter& exporter, const Artifact& artifact,
                   const ExportOptions& options) {
  const std::string_view name = exporter.name;
  if (name != "nibble" && name != "onnx" && has_low_rank(artifact.program)) {
    return error(StatusCode::unsupported, "[export] ", name,
                 ": a model of its architecture's own layers is required; found adapters "
                 "beside them (lora_A, lora_B); train with lora.merge=true or quantize "
                 "without low_rank, or export to onnx");
  }
  if (name != "nibble" && name != "onnx" && has_online_rotation(artifact.program)) {
    return error(
        StatusCode::unsupported, "[export] ", name,
        ": a model of its architecture's own layers is required; found hadamard "
        "nodes between them; quantize with rotate=residual,heads alone, or export "
        "to onnx");
  }
  return exporter.can_express(artifact, options);
}

Result<const Exporter*> find_exporter(std::string_view name) {
  std::string known;
  for (const Exporter& exporter : all_exporters()) {
    if (name == exporter.name) return &exporter;
    known += cat(known.empty() ? "" : ", ", exporter.name);
  }
  return error(StatusCode::not_found, "[export] format: must be one of ", known,
               "; found `", name, "`; name a known format");
}

namespace {

Status missing(const std::string& tensor) {
  return error(
      StatusCode::data_loss, "[export] ", tensor,
      ": every parameter of the program must be in the written files; read back none "
      "of this name");
}

// Are these the same scheme, scales and codes, in their own order? Some rows at a time
// through a small buffer, so that the artifact's codes need no memory of the weight's
// size.
Result<bool> same_matrix(const PackedTensor& packed, const CodedMatrix& levels,
                         const CodedMatrix& read) {
  if (!(levels.scheme == read.scheme) || levels.rows != read.rows ||
      levels.cols != read.cols || levels.scales != read.scales ||
      levels.offsets != read.offsets ||
      read.codes.size() != static_cast<size_t>(read.rows * read.cols)) {
    return false;
  }
  constexpr int64_t kPiece = 128 << 10;  // stays in a core's own cache
  const int64_t step = std::max<int64_t>(1, kPiece / read.cols);
  std::vector<uint8_t> codes(static_cast<size_t>(std::min(step, read.rows) * read.cols));
  for (int64_t row = 0; row < read.rows; row += step) {
    const int64_t rows = std::min(step, read.rows - row);
    NIBBLE_RETURN_IF_ERROR(unpack_rows(packed, row, rows, codes.data()));
    if (std::memcmp(codes.data(), read.codes.data() + row * read.cols,
                    static_cast<size_t>(rows * read.cols)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

Status check_decoded_weight(const Artifact& artifact, const std::string& name,
                            const Decoded& decoded, CodedMatrix& q) {
  const auto packed = artifact.packed.find(name);
  const auto read = decoded.coded.find(name);
  if (packed == artifact.packed.end() || read == decoded.coded.end())
    return missing(name);
  NIBBLE_RETURN_IF_ERROR(unpack_levels(packed->second, q));
  std::vector<int32_t> order, order_read;
  if (const auto found = decoded.permutations.find(name);
      found != decoded.permutations.end()) {
    order_read = found->second;
  }
  if (decoded.keeps_permutations) {
    NIBBLE_ASSIGN_OR_RETURN(order, order_of(artifact, name));
  }
  if (order == order_read) {  // most are the same altogether
    NIBBLE_ASSIGN_OR_RETURN(const bool same,
                            same_matrix(packed->second, q, read->second));
    if (same) return ok_status();
  }
  NIBBLE_RETURN_IF_ERROR(unpack(packed->second, q));
  return check_coded(name, q, read->second, order, order_read,
                     decoded.reciprocal_scales.count(name) > 0);
}

Status check_decoded(const Artifact& artifact, const Decoded& decoded,
                     const std::set<std::string>& checked) {
  std::set<std::string> parameters;
  for (const Node& node : artifact.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) parameters.insert(tensor);
  }
  const auto check = [&](const std::string& name) -> Status {
    if (checked.count(name)) return ok_status();
    if (artifact.packed.count(name)) {
      CodedMatrix q;
      return check_decoded_weight(artifact, name, decoded, q);
    }
    const auto tensor = artifact.tensors.find(name);
    const auto read = decoded.floats.find(name);
    if (tensor == artifact.tensors.end() || read == decoded.floats.end())
      return missing(name);
    return check_floats(name, tensor->second, read->second);
  };
  const std::vector<std::string> names(parameters.begin(), parameters.end());
  std::vector<Status> outcomes(names.size());
  parallel_for(static_cast<int64_t>(names.size()), [&](int64_t i) {
    outcomes[static_cast<size_t>(i)] = check(names[static_cast<size_t>(i)]);
  });
  for (Status& outcome : outcomes) NIBBLE_RETURN_IF_ERROR(std::move(outcome));
  return ok_status();
}

}  // namespace nibble
