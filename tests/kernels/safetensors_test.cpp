#include "kernels/artifact/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "kernels/base/file.h"
#include "kernels/base/splitmix64.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
 protected:
  // A file of this header and data; header_size replaces the true length when given.
  fs::path write(const std::string& header, const std::string& data,
                 int64_t header_size = -1) {
    const uint64_t size =
        header_size < 0 ? header.size() : static_cast<uint64_t>(header_size);
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(size >> (8 * i));
    return write_bytes(bytes + header + data);
  }
  fs::path write_bytes(const std::string& bytes) {
    const fs::path path = directory_.path() / "test.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // The error without the file's directory.
  std::string message(const fs::path& path) {
    const Result<SafetensorsFile> file = read_safetensors(path);
    if (file.ok()) return "read";
    std::string text = file.status().message();
    const std::string prefix = directory_.path().string() + "/";
    for (size_t at; (at = text.find(prefix)) != std::string::npos;)
      text.erase(at, prefix.size());
    return cat(status_code_name(file.status().code()), ": ", text);
  }
  TemporaryDirectory directory_;
};

const std::string kFour(4, '\1');

std::string entry(const std::string& name, const std::string& shape, int begin, int end,
                  const std::string& dtype = "F32") {
  return cat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
             ",\"data_offsets\":[", begin, ",", end, "]}");
}

TEST_F(Safetensors, WritesTheWorkedExampleOfTheFormat) {
  const std::vector<int32_t> values = {1, 2, 3, -1};
  const fs::path path = directory_.path() / "example.safetensors";
  ASSERT_TRUE(
      write_safetensors(
          path, {{"test", make_tensor({2, 2}, std::span<const int32_t>(values))}}, {})
          .ok());
  const std::string required =
      std::string("\x40\0\0\0\0\0\0\0", 8) +
      "{\"test\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}    " +
      std::string("\1\0\0\0\2\0\0\0\3\0\0\0\xff\xff\xff\xff", 16);
  EXPECT_EQ(*read_text_file(path), required);
  EXPECT_EQ(required.size(), 88u);
  const Result<SafetensorsFile> file = read_safetensors(path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(*to_int32(file->tensors.at("test")), values);
}

TEST_F(Safetensors, OrdersByAlignmentThenName) {
  const std::vector<float> one = {1};
  const Tensor f32 = make_tensor({1}, std::span<const float>(one));
  std::map<std::string, Tensor> tensors;
  const auto add = [&](const std::string& name, DType dtype) {
    tensors[name] = {
        dtype, {2}, Bytes::copy_of("0123456789abcdef", 2 * dtype_bytes(dtype))};
  };
  add("a", DType::u8), add("b", DType::bf16), add("c", DType::f16), add("d", DType::i64),
      add("e", DType::u8), add("f", DType::f8_e4m3), add("g", DType::boolean),
      add("h", DType::i32), add("A", DType::f32);
  const fs::path path = directory_.path() / "order.safetensors";
  ASSERT_TRUE(write_safetensors(path, tensors, {{"format", "pt"}}).ok());
  const std::string text = *read_text_file(path);
  EXPECT_EQ(text.find("{\"__metadata__\":{\"format\":\"pt\"},\"d\":"), 8u);
  size_t at = 0;
  for (const char* name : {"d", "A", "h", "b", "c", "f", "a", "e", "g"}) {
    const size_t next = text.find(cat("\"", name, "\":{\"dtype\""));
    ASSERT_NE(next, std::string::npos);
    EXPECT_GT(next, at) << name;
    at = next;
  }
  uint64_t header = 0;
  std::memcpy(&header, text.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  const Result<SafetensorsFile> file = read_safetensors(path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->metadata.at("format"), "pt");
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(file->tensors.at(name).bytes.text(), tensor.bytes.text());
    EXPECT_EQ(file->tensors.at(name).dtype, tensor.dtype);
  }
}

TEST_F(Safetensors, RoundTripsRandomTensorsToEqualBytes) {
  SplitMix64 random(11);
  for (int round = 0; round < 30; ++round) {
    std::map<std::string, Tensor> tensors;
    const DType types[] = {
        DType::boolean, DType::u8,      DType::i8,      DType::u16,
        DType::i16,     DType::u32,     DType::i32,     DType::u64,
        DType::i64,     DType::f16,     DType::bf16,    DType::f32,
        DType::f64,     DType::f8_e4m3, DType::f8_e5m2, DType::f8_e8m0};
    for (size_t k = random.below(8); k > 0; --k) {
      Tensor tensor;
      tensor.dtype = types[random.below(std::size(types))];
      size_t bytes = static_cast<size_t>(dtype_bytes(tensor.dtype));
      for (size_t d = random.below(4); d > 0; --d) {
        tensor.shape.push_back(static_cast<int64_t>(random.below(5)));  // 0 is legal
        bytes *= static_cast<size_t>(tensor.shape.back());
      }
      std::string data(bytes, '\0');
      for (char& c : data) c = static_cast<char>(random.below(256));
      tensor.bytes = Bytes::copy_of(data.data(), data.size());
      // Names with every kind of character that JSON escapes.
      tensors[cat("x\"\\/\n\t\x7f\u00e9", k, std::string(random.below(3), '.'))] = tensor;
    }
    const fs::path a = directory_.path() / "a", b = directory_.path() / "b";
    ASSERT_TRUE(write_safetensors(a, tensors, {}).ok());
    const Result<SafetensorsFile> file = read_safetensors(a);
    ASSERT_TRUE(file.ok()) << file.status().message();
    ASSERT_EQ(file->tensors.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      const Tensor& read = file->tensors.at(name);
      EXPECT_EQ(read.dtype, tensor.dtype);
      EXPECT_EQ(read.shape, tensor.shape);
      EXPECT_EQ(read.bytes.text(), tensor.bytes.text());
    }
    ASSERT_TRUE(write_safetensors_atomically(b, file->tensors, {}).ok());
    EXPECT_EQ(*read_text_file(a), *read_text_file(b));
  }
}

TEST_F(Safetensors, AcceptsWhatTheReferenceAccepts) {
  // A scalar, an empty tensor, an unknown extra field, white space first, unaligned data.
  const fs::path path =
      write(" {" + entry("s", "[]", 1, 5) + "," + entry("e", "[0,7]", 5, 5) + "," +
                entry("u", "[1]", 0, 1, "U8") +
                ",\"x\":{\"more\":[1],\"dtype\":\"U8\",\"shape\":[2],"
                "\"data_offsets\":[5,7]}}  ",
            "1234567");
  const Result<SafetensorsFile> file = read_safetensors(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensors.at("s").bytes.text(), "2345");
  EXPECT_EQ(file->tensors.at("e").numel(), 0);
  EXPECT_EQ(file->tensors.at("x").bytes.text(), "67");
  float value;
  std::memcpy(&value, "2345", 4);
  EXPECT_EQ(to_float(file->tensors.at("s")).value()[0], value);
}

TEST_F(Safetensors, RefusesABrokenLength) {
  EXPECT_EQ(
      message(write_bytes("1234567")),
      "data_loss: [safetensors] test.safetensors: a file has at least 8 bytes; found 7; "
      "it is truncated");
  EXPECT_EQ(
      message(write("{}", "", 100000001)),
      "data_loss: [safetensors] test.safetensors: a header has at most 100000000 bytes; "
      "the file says 100000001; it is damaged or no safetensors file");
  EXPECT_EQ(
      message(write_bytes(std::string(8, '\xff') + "{}")),
      "data_loss: [safetensors] test.safetensors: a header has at most 100000000 bytes; "
      "the file says 18446744073709551615; it is damaged or no safetensors file");
  EXPECT_EQ(
      message(write("{}", "", 3)),
      "data_loss: [safetensors] test.safetensors: the header needs 3 bytes; found 2; the "
      "file is truncated");
}

TEST_F(Safetensors, RefusesABrokenHeader) {
  for (const std::string header :
       {"", "[]", "{", "{\"a\":}", "{}x", "\xef\xbb\xbf{}", "nul", "{\"\xff\":1}"}) {
    EXPECT_THAT(message(write(header, "")), HasSubstr("data_loss: [safetensors] "))
        << header;
  }
  // NUL padding: the reference rejects it.
  EXPECT_THAT(message(write(std::string("{}\0\0", 4), "")),
              HasSubstr("found a byte that JSON does not allow"));
  EXPECT_EQ(
      message(write("{" + entry("a", "[1]", 0, 4) + "," + entry("a", "[1]", 0, 4) + "}",
                    kFour)),
      "data_loss: [safetensors] test.safetensors: tensor a: every key must be unique; "
      "found it twice; the file is damaged");
  EXPECT_THAT(message(write("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],"
                            "\"data_offsets\":[0,4]}}",
                            kFour)),
              HasSubstr("tensor shape: every key must be unique"));
  EXPECT_EQ(
      message(write("{\"__metadata__\":{\"a\":1}}", "")),
      "data_loss: [safetensors] test.safetensors: tensor __metadata__: the value of a "
      "must be a string; the file is damaged");
  EXPECT_THAT(message(write("{\"__metadata__\":[]}", "")),
              HasSubstr("metadata must be an object"));
  EXPECT_THAT(message(write("{\"a\":3}", "")), HasSubstr("its entry must be an object"));
  EXPECT_THAT(message(write("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", kFour)),
              HasSubstr("data_offsets must be two non-negative integers"));
}

TEST_F(Safetensors, RefusesBrokenTypesAndShapes) {
  EXPECT_THAT(
      message(write("{" + entry("a", "[1]", 0, 4, "F33") + "}", kFour)),
      HasSubstr("data_loss: [safetensors] test.safetensors: tensor a: dtype F33 is "
                "unknown; the file is damaged"));
  EXPECT_THAT(
      message(write("{" + entry("a", "[1]", 0, 4, "C64") + "}", kFour)),
      HasSubstr("unsupported: [safetensors] test.safetensors: tensor a: nibble reads "
                "integers, F64, F32, F16, BF16 and F8; found dtype C64"));
  for (const std::string shape : {"[-1]", "[1.0]", "[\"1\"]", "1",
                                  "[18446744073709551616]", "[9223372036854775808]"}) {
    EXPECT_THAT(message(write(cat("{", entry("a", shape, 0, 4), "}"), kFour)),
                HasSubstr("shape must"))
        << shape;
  }
  // 2^62 * 4 overflows 64 bits; with a 0 beside it the tensor is empty and legal.
  EXPECT_THAT(
      message(write("{" + entry("a", "[4611686018427387904]", 0, 4) + "}", kFour)),
      HasSubstr("the size of its shape overflows 64 bits"));
  EXPECT_EQ(message(write("{" + entry("a", "[4611686018427387904,8,0]", 0, 0) + "}", "")),
            "read");
  EXPECT_EQ(
      message(write("{" + entry("a", "[2]", 0, 4) + "}", kFour)),
      "data_loss: [safetensors] test.safetensors: tensor a: its shape [2] of F32 needs 8 "
      "bytes; data_offsets say [0, 4]; the file is damaged");
}

TEST_F(Safetensors, RefusesHolesOverlapAndTrailingBytes) {
  EXPECT_THAT(message(write("{" + entry("a", "[1]", 4, 8) + "}", kFour + kFour)),
              HasSubstr("it begins at 4 where 0 was required"));
  EXPECT_THAT(
      message(write("{" + entry("a", "[1]", 0, 4) + "," + entry("b", "[1]", 6, 10) + "}",
                    kFour + kFour + "12")),
      HasSubstr("tensor b: tensors must follow each other without holes or overlap; it "
                "begins at 6 where 4 was required"));
  EXPECT_THAT(
      message(write("{" + entry("a", "[1]", 0, 4) + "," + entry("b", "[1]", 0, 4) + "}",
                    kFour)),
      HasSubstr("begins at 0 where 4 was required"));
  EXPECT_THAT(message(write("{" + entry("a", "[1]", 4, 0) + "}", kFour)),
              HasSubstr("data_offsets say [4, 0]"));
  EXPECT_EQ(
      message(write("{" + entry("a", "[1]", 0, 4) + "}", "123")),
      "data_loss: [safetensors] test.safetensors: its tensors need 4 bytes; found 3; the "
      "file is truncated");
  EXPECT_EQ(
      message(write("{" + entry("a", "[1]", 0, 4) + "}", "12345")),
      "data_loss: [safetensors] test.safetensors: its tensors need 4 bytes; found 5; the "
      "file is damaged: bytes follow the last tensor");
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  const fs::path whole = write(
      "{" + entry("a", "[1]", 0, 4) + "," + entry("b", "[1]", 4, 8) + "}", kFour + kFour);
  const std::string bytes = *read_text_file(whole);
  EXPECT_EQ(message(whole), "read");
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(message(write_bytes(bytes.substr(0, size))), "read") << size;
  }
}

// --- shards

TEST_F(Safetensors, ReadsShardsAndNamesAMissingOne) {
  const std::vector<float> one = {1}, two = {2};
  const fs::path& d = directory_.path();
  ASSERT_TRUE(write_safetensors(d / "model-00001-of-00002.safetensors",
                                {{"a", make_tensor({1}, std::span<const float>(one))}},
                                {})
                  .ok());
  ASSERT_TRUE(write_safetensors(d / "model-00002-of-00002.safetensors",
                                {{"b", make_tensor({1}, std::span<const float>(two))}},
                                {})
                  .ok());
  const auto index = [&](const std::string& map) {
    std::ofstream(d / "model.safetensors.index.json")
        << "{\"metadata\":{},\"weight_map\":{" << map << "}}";
  };
  const auto failure = [&] {
    std::string text = read_sharded_safetensors(d, nullptr).status().message();
    const std::string prefix = d.string() + "/";
    for (size_t at; (at = text.find(prefix)) != std::string::npos;)
      text.erase(at, prefix.size());
    return text;
  };
  const std::string a = "\"a\":\"model-00001-of-00002.safetensors\"";
  const std::string b = "\"b\":\"model-00002-of-00002.safetensors\"";
  index(a + "," + b);
  std::vector<std::string> sources;
  const auto tensors = read_sharded_safetensors(d, &sources);
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  EXPECT_EQ(to_float(tensors->at("b")).value()[0], 2.0f);
  EXPECT_EQ(sources, (std::vector<std::string>{"model-00001-of-00002.safetensors",
                                               "model-00002-of-00002.safetensors",
                                               "model.safetensors.index.json"}));
  index(a + "," + b + ",\"c\":\"model-00002-of-00002.safetensors\"");
  EXPECT_EQ(failure(),
            "[safetensors] model-00002-of-00002.safetensors: "
            "model.safetensors.index.json says that tensor c is in this shard; "
            "found it is not");
  index("\"a\":\"../a\"");
  EXPECT_THAT(failure(), HasSubstr("weight_map must name a file of the same directory"));
  index(a + "," + b);
  fs::remove(d / "model-00002-of-00002.safetensors");
  EXPECT_EQ(failure(),
            "[safetensors] model-00002-of-00002.safetensors: "
            "model.safetensors.index.json names "
            "this shard for 1 tensors, the first b; found no such file; is the download "
            "complete?");
  EXPECT_EQ(read_sharded_safetensors(d, nullptr).status().code(), StatusCode::not_found);
}

// --- writing

TEST_F(Safetensors, AFailedWriteLeavesNothing) {
  const std::vector<float> one = {1};
  const std::map<std::string, Tensor> tensors = {
      {"a", make_tensor({1}, std::span<const float>(one))}};
  const Status full = write_safetensors("/dev/full", tensors, {});
  EXPECT_EQ(full.code(), StatusCode::io_error);
  EXPECT_EQ(full.message(),
            "[safetensors] /dev/full: cannot write: No space left on device");
  const fs::path missing = directory_.path() / "missing" / "a.safetensors";
  EXPECT_EQ(write_safetensors_atomically(missing, tensors, {}).code(),
            StatusCode::io_error);
  // A destination that cannot be replaced: the temporary file must go.
  fs::create_directory(directory_.path() / "taken");
  std::ofstream(directory_.path() / "taken" / "file") << "x";
  EXPECT_EQ(write_safetensors_atomically(directory_.path() / "taken", tensors, {}).code(),
            StatusCode::io_error);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_.path()), {}), 1);
}

TEST_F(Safetensors, RefusesToWriteWhatCannotBeRead) {
  const fs::path path = directory_.path() / "x";
  const Tensor short_of_bytes{DType::f32, {2}, Bytes::copy_of("1234", 4)};
  EXPECT_EQ(write_safetensors(path, {{"a", short_of_bytes}}, {}).message(),
            "[safetensors] tensor a: its shape [2] needs 8 bytes; found 4");
  const Tensor good{DType::u8, {4}, Bytes::copy_of("1234", 4)};
  EXPECT_EQ(write_safetensors(path, {{"__metadata__", good}}, {}).message(),
            "[safetensors] tensor __metadata__: the name is reserved");
  EXPECT_THAT(write_safetensors(path, {{"\xff", good}}, {}).message(),
              HasSubstr("names must be UTF-8"));
  EXPECT_FALSE(fs::exists(path));
}

}  // namespace
}  // namespace nibble
