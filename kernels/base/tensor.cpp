#include "kernels/base/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <new>

#include "kernels/base/float_types.h"

namespace nibble {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  int64_t bytes;
};
constexpr DTypeRow kDTypes[] = {
    {DType::boolean, "BOOL", 1},    {DType::u8, "U8", 1},
    {DType::i8, "I8", 1},           {DType::u16, "U16", 2},
    {DType::i16, "I16", 2},         {DType::u32, "U32", 4},
    {DType::i32, "I32", 4},         {DType::u64, "U64", 8},
    {DType::i64, "I64", 8},         {DType::f16, "F16", 2},
    {DType::bf16, "BF16", 2},       {DType::f32, "F32", 4},
    {DType::f64, "F64", 8},         {DType::f8_e4m3, "F8_E4M3", 1},
    {DType::f8_e5m2, "F8_E5M2", 1}, {DType::f8_e8m0, "F8_E8M0", 1},
};

constexpr size_t kAlignment = 64;  // a cache line, and the widest vector load

template <class T>
T load(const std::byte* data, int64_t i) {  // a mapped file may be unaligned
  T value;
  std::memcpy(&value, data + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

Status check_bytes(const char* who, const Tensor& tensor) {
  const uint64_t needed =
      static_cast<uint64_t>(tensor.numel() * dtype_bytes(tensor.dtype));
  if (tensor.bytes.size() == needed) return ok_status();
  return error(StatusCode::invalid_argument, "[tensor] ", who, ": ",
               dtype_name(tensor.dtype), " ", shape_text(tensor.shape), " takes ", needed,
               " bytes; found ", tensor.bytes.size());
}

template <class T>
Tensor make_typed(DType dtype, std::vector<int64_t> shape, std::span<const T> values) {
  Tensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.bytes = Bytes::copy_of(values.data(), values.size_bytes());
  return tensor;
}

}  // namespace

const char* dtype_name(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "unknown";
}

Result<DType> dtype_from_name(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (name == row.name) return row.dtype;
  }
  std::string known;
  for (const DTypeRow& row : kDTypes) known += cat(known.empty() ? "" : ", ", row.name);
  return error(StatusCode::unsupported, "[tensor] dtype: one of ", known, "; found \"",
               name, "\"");
}

int64_t dtype_bytes(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row.bytes;
  }
  return 0;
}

Bytes Bytes::allocate(size_t size, std::byte** mutable_data) {
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  // A weight in pages of 2 MiB costs a decode fewer page walks; asked for before the first
  // touch, it is a hint that the system may ignore.
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = rounded >= 2 * kHugePage;
  const auto alignment = static_cast<std::align_val_t>(large ? kHugePage : kAlignment);
  void* data = ::operator new(rounded == 0 ? kAlignment : rounded, alignment);
  if (large) (void)madvise(data, rounded, MADV_HUGEPAGE);
  std::memset(data, 0, rounded == 0 ? kAlignment : rounded);
  *mutable_data = static_cast<std::byte*>(data);
  std::shared_ptr<const void> owner(data, [alignment](const void* p) {
    ::operator delete(const_cast<void*>(p), alignment);
  });
  return Bytes(std::move(owner), *mutable_data, size);
}

Bytes Bytes::copy_of(const void* data, size_t size) {
  std::byte* copy = nullptr;
  Bytes bytes = allocate(size, &copy);
  if (size != 0) std::memcpy(copy, data, size);
  return bytes;
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

int64_t Tensor::rows() const { return shape.empty() ? 1 : shape[0]; }

int64_t Tensor::cols() const {
  int64_t n = 1;
  for (size_t i = 1; i < shape.size(); ++i) n *= shape[i];
  return n;
}

bool Tensor::is_float() const {
  return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32 ||
         dtype == DType::f64;
}

Tensor make_tensor(std::vector<int64_t> shape, std::span<const float> values) {
  return make_typed(DType::f32, std::move(shape), values);
}

Tensor make_tensor(std::vector<int64_t> shape, std::span<const int32_t> values) {
  return make_typed(DType::i32, std::move(shape), values);
}

void Bytes::release_pages() const {
  if (!mapped_ || size_ == 0) return;
  // Outwards to whole pages: what a neighbour needs of them comes again.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data_) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data_) + size_ + page - 1) / page * page;
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Result<std::vector<float>> to_float(const Tensor& tensor) {
  NIBBLE_RETURN_IF_ERROR(check_bytes("to_float", tensor));
  if (!tensor.is_float()) {
    return error(StatusCode::unsupported,
                 "[tensor] to_float: F16, BF16, F32 or F64; found ",
                 dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
  }
  std::vector<float> values(static_cast<size_t>(tensor.numel()));
  NIBBLE_RETURN_IF_ERROR(read_floats(tensor, 0, values));
  return values;
}

Status read_floats(const Tensor& tensor, int64_t first, std::span<float> values) {
  const auto count = static_cast<int64_t>(values.size());
  const int64_t size = dtype_bytes(tensor.dtype);
  if (first < 0 || (first + count) * size > static_cast<int64_t>(tensor.bytes.size())) {
    return error(StatusCode::invalid_argument, "[tensor] read_floats: elements ", first,
                 " to ", first + count, " of ", shape_text(tensor.shape),
                 " are required; found ", tensor.bytes.size(), " bytes");
  }
  if (count == 0) return ok_status();
  const std::byte* data = tensor.bytes.data() + first * size;
  switch (tensor.dtype) {
    case DType::f32:
      std::memcpy(values.data(), data, values.size_bytes());
      return ok_status();
    case DType::f16:
      for (int64_t i = 0; i < count; ++i)
        values[i] = float_from_f16(load<uint16_t>(data, i));
      return ok_status();
    case DType::bf16:
      for (int64_t i = 0; i < count; ++i)
        values[i] = float_from_bf16(load<uint16_t>(data, i));
      return ok_status();
    case DType::f64:
      for (int64_t i = 0; i < count; ++i)
        values[i] = static_cast<float>(load<double>(data, i));
      return ok_status();
    default:
      return error(StatusCode::unsupported,
                   "[tensor] read_floats: F16, BF16, F32 or F64; found ",
                   dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
  }
}

Result<std::vector<int32_t>> to_int32(const Tensor& tensor) {
  NIBBLE_RETURN_IF_ERROR(check_bytes("to_int32", tensor));
  const int64_t n = tensor.numel();
  const std::byte* data = tensor.bytes.data();
  std::vector<int32_t> values(static_cast<size_t>(n));
  if (tensor.dtype == DType::i32) {
    if (n != 0) std::memcpy(values.data(), data, values.size() * sizeof(int32_t));
    return values;
  }
  if (tensor.dtype != DType::i64) {
    return error(StatusCode::unsupported, "[tensor] to_int32: I32 or I64; found ",
                 dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t value = load<int64_t>(data, i);
    if (value < std::numeric_limits<int32_t>::min() ||
        value > std::numeric_limits<int32_t>::max()) {
      return error(StatusCode::out_of_range, "[tensor] to_int32: element ", i,
                   " must fit in 32 bits; found ", value);
    }
    values[i] = static_cast<int32_t>(value);
  }
  return values;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

}  // namespace nibble
