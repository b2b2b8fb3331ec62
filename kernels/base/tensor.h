// A named-nothing tensor: element type, shape and a shared, read-only run of bytes (a
// mapped file or an owned buffer). Copying a Tensor copies no data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

// The element types of a safetensors file (whose names dtype_name gives: "F32", "BF16"
// ...).
enum class DType : uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
};
const char* dtype_name(DType dtype);
Result<DType> dtype_from_name(std::string_view name);  // unsupported: the name is unknown
int64_t dtype_bytes(DType dtype);

// A run of bytes with shared ownership. owner keeps the mapping or buffer alive.
class Bytes {
 public:
  Bytes() = default;
  Bytes(std::shared_ptr<const void> owner, const std::byte* data, size_t size,
        bool mapped = false)
      : owner_(std::move(owner)), data_(data), size_(size), mapped_(mapped) {}
  static Bytes copy_of(const void* data, size_t size);  // aligned to 64 bytes
  // An owned, zeroed, 64-byte aligned buffer; *mutable_data may be written until it is
  // shared.
  static Bytes allocate(size_t size, std::byte** mutable_data);
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  Bytes slice(size_t begin, size_t size) const {
    return Bytes(owner_, data_ + begin, size, mapped_);
  }
  bool is_mapped() const { return mapped_; }
  // Lets the system take back the pages of a mapped file: our resident memory shrinks, and
  // a later read brings them again. Nothing happens to an owned buffer.
  void release_pages() const;
  std::span<const std::byte> span() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  std::shared_ptr<const void> owner_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;  // a file, read-only and private: its pages can be had again
};

struct Tensor {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  Bytes bytes;

  int64_t numel() const;
  // rows = shape[0] (1 for a scalar), cols = everything else: how nibble reads every
  // weight.
  int64_t rows() const;
  int64_t cols() const;
  bool is_float() const;  // f16, bf16, f32, f64
};

Tensor make_tensor(std::vector<int64_t> shape, std::span<const float> values);
Tensor make_tensor(std::vector<int64_t> shape, std::span<const int32_t> values);

// f16, bf16, f32, f64 (rounded) to float. unsupported: another dtype (the message names
// it).
Result<std::vector<float>> to_float(const Tensor& tensor);
// The same of elements [first, first + values.size()), into memory that is there already.
// invalid_argument: the tensor has not so many.
Status read_floats(const Tensor& tensor, int64_t first, std::span<float> values);
// i32 and i64 (range-checked) to int32.
Result<std::vector<int32_t>> to_int32(const Tensor& tensor);
std::string shape_text(std::span<const int64_t> shape);  // "[64, 172]"

}  // namespace nibble
