// Builds an ONNX model node by node and serialises it, the same bytes every time.
//
// Values are named strings. Small constants are initializers whose names begin with "/":
// they say their content ("/i64[0,0,-1,8]") and so each exists once; parameters carry the
// checkpoint's names. Nothing of protobuf is seen outside the .cpp files of export.
//
// Not safe to share between threads while it is built.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/status.h"

namespace onnx {
class ModelProto;
}

namespace nibble {

// onnx.proto's TensorProto.DataType, those that we write or read.
enum class OnnxType : int32_t {
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  int32 = 6,
  int64 = 7,
  boolean = 9,
  float16 = 10,
  float64 = 11,
  bfloat16 = 16,
  e4m3 = 17,
  e5m2 = 19,
  uint4 = 21,
  int4 = 22,
  e2m1 = 23,
  e8m0 = 24,
};
int64_t onnx_type_bits(OnnxType type);

using OnnxAttribute = std::variant<int64_t, float, std::vector<int64_t>, std::string>;
using OnnxAttributes = std::map<std::string, OnnxAttribute>;

inline constexpr int64_t kOnnxOpset = 21;      // the first with INT4 and blocked QDQ
inline constexpr int64_t kOnnxFp4Opset = 23;   // with FLOAT4E2M1
inline constexpr int64_t kOnnxE8m0Opset = 24;  // with scales of FLOAT8E8M0
inline constexpr const char* kContribDomain = "com.microsoft";

class OnnxGraph {
 public:
  // opset: one of those above; the IR version is the first that has it.
  explicit OnnxGraph(const std::string& name, int64_t opset = kOnnxOpset);
  OnnxGraph(OnnxGraph&&) noexcept;
  ~OnnxGraph();

  // Dimensions are numbers or symbols ("batch").
  void add_input(const std::string& name, OnnxType type,
                 const std::vector<std::string>& shape);
  void add_output(const std::string& name, OnnxType type,
                  const std::vector<std::string>& shape);
  void add_metadata(const std::string& key, const std::string& value);

  // One node, named after its first output. Returns that output's name.
  std::string add(const std::string& op, const std::vector<std::string>& inputs,
                  const std::string& output, const OnnxAttributes& attributes = {});
  void add(const std::string& op, const std::vector<std::string>& inputs,
           const std::vector<std::string>& outputs,
           const OnnxAttributes& attributes = {});
  // One of ONNX Runtime's own operators (com.microsoft). The standard's shape inference
  // does not know them, so the type and shape of the output are declared.
  std::string add_contrib(const std::string& op, const std::vector<std::string>& inputs,
                          const std::string& output,
                          const std::vector<std::string>& shape,
                          const OnnxAttributes& attributes,
                          OnnxType type = OnnxType::float32);

  // raw: little-endian, row-major; 4-bit types two a byte, the first in the low nibble.
  void add_initializer(const std::string& name, OnnxType type,
                       const std::vector<int64_t>& shape, std::string raw);
  void add_initializer(const std::string& name, const std::vector<int64_t>& shape,
                       const std::vector<float>& values);
  bool has_initializer(const std::string& name) const;
  std::string integers(const std::vector<int64_t>& values);  // 1-D int64 constant
  std::string integer(int64_t value);                        // scalar int64 constant
  std::string number(float value);                           // scalar f32 constant
  std::string number64(double value);                        // scalar f64 constant

  int64_t initializer_bytes() const { return initializer_bytes_; }
  const onnx::ModelProto& model() const { return *model_; }

  // The model's bytes. With external_data, initializers of 1 KiB and more move into it
  // (offsets multiples of 4096, referred to as `location`). resource_exhausted: over
  // protobuf's 2 GiB.
  Result<std::string> serialize(const std::string& location, std::string* external_data);

 private:
  std::unique_ptr<onnx::ModelProto> model_;
  std::map<std::string, int> initializers_;  // name -> index
  int64_t initializer_bytes_ = 0;
};

}  // namespace nibble
