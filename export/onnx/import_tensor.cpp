#include "export/onnx/import_tensor.h"

#include <cstring>
#include <fstream>

#include "onnx.pb.h"

namespace nibble {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;

template <class... Parts>
Status damaged(const onnx::TensorProto& proto, const Parts&... parts) {
  return error(StatusCode::data_loss, "[onnx] ", proto.name(), ": ", parts...,
               "; the file is damaged");
}

Result<DType> dtype_of(const onnx::TensorProto& proto) {
  switch (proto.data_type()) {
    case onnx::TensorProto::FLOAT:
      return DType::f32;
    case onnx::TensorProto::FLOAT16:
      return DType::f16;
    case onnx::TensorProto::BFLOAT16:
      return DType::bf16;
    case onnx::TensorProto::DOUBLE:
      return DType::f64;
    case onnx::TensorProto::INT64:
      return DType::i64;
    case onnx::TensorProto::INT32:
      return DType::i32;
    case onnx::TensorProto::BOOL:
      return DType::u8;
    default:
      return error(StatusCode::unsupported, "[onnx] ", proto.name(),
                   ": a float or integer constant was required; found data type ",
                   proto.data_type(), "; import the float model");
  }
}

template <class T, class Values>
std::string packed(const Values& values) {
  std::string raw;
  for (const auto value : values) {
    const T narrow = static_cast<T>(value);
    raw.append(reinterpret_cast<const char*>(&narrow), sizeof(narrow));
  }
  return raw;
}

// The typed fields: 16-bit floats and bools lie in int32_data.
std::string typed_values(const onnx::TensorProto& proto, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return packed<float>(proto.float_data());
    case DType::f64:
      return packed<double>(proto.double_data());
    case DType::i64:
      return packed<int64_t>(proto.int64_data());
    case DType::i32:
      return packed<int32_t>(proto.int32_data());
    case DType::u8:
      return packed<uint8_t>(proto.int32_data());
    default:
      return packed<uint16_t>(proto.int32_data());
  }
}

}  // namespace

Result<std::string> external_bytes(const onnx::TensorProto& proto,
                                   const std::filesystem::path& directory) {
  std::string location;
  int64_t offset = 0, length = -1;
  for (const auto& entry : proto.external_data()) {
    if (entry.key() == "location") location = entry.value();
    if (entry.key() == "offset") offset = std::atoll(entry.value().c_str());
    if (entry.key() == "length") length = std::atoll(entry.value().c_str());
  }
  const std::filesystem::path name(location);
  bool inside = !location.empty() && !name.is_absolute();
  for (const auto& part : name) inside = inside && part != "..";
  std::error_code failed;
  const int64_t size =
      inside ? static_cast<int64_t>(std::filesystem::file_size(directory / name, failed)) : 0;
  if (!inside || failed) {
    return damaged(proto, "its data must lie in this directory; found location `",
                   location, "`");
  }
  if (length < 0) length = size - offset;
  if (offset < 0 || length < 0 || offset > size - length) {
    return damaged(proto, "its bytes must lie in ", location, " of ", size,
                   " bytes; found offset ", offset, ", length ", length);
  }
  std::ifstream file(directory / name, std::ios::binary);
  std::string bytes(static_cast<size_t>(length), '\0');
  file.seekg(offset);
  if (!file.read(bytes.data(), length)) {
    return error(StatusCode::io_error, "[onnx] ", (directory / name).string(),
                 ": cannot read ", length, " bytes at ", offset);
  }
  return bytes;
}

Result<Tensor> tensor_of(const onnx::TensorProto& proto,
                         const std::filesystem::path& directory) {
  Tensor tensor;
  NIBBLE_ASSIGN_OR_RETURN(tensor.dtype, dtype_of(proto));
  tensor.shape.assign(proto.dims().begin(), proto.dims().end());
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) {
    if (dim < 0 || (dim > 0 && count > kMaxElements / dim)) {
      return damaged(proto, "dimensions must be sane; found ", dim);
    }
    count *= dim;
  }
  std::string bytes;
  if (proto.data_location() == onnx::TensorProto::EXTERNAL) {
    NIBBLE_ASSIGN_OR_RETURN(bytes, external_bytes(proto, directory));
  } else {
    bytes = proto.has_raw_data() ? proto.raw_data() : typed_values(proto, tensor.dtype);
  }
  const int64_t needed = count * dtype_bytes(tensor.dtype);
  if (static_cast<int64_t>(bytes.size()) != needed) {
    return damaged(proto, count, " values take ", needed, " bytes; found ", bytes.size());
  }
  tensor.bytes = Bytes::copy_of(bytes.data(), bytes.size());
  return tensor;
}

}  // namespace nibble
