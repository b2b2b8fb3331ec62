#include "export/onnx/onnx_ends.h"

#include <algorithm>
#include <limits>
#include <set>

#include "kernels/base/file.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

std::string type_name(int32_t type) {
  switch (type) {
    case onnx::TensorProto::FLOAT:
      return "F32";
    case onnx::TensorProto::FLOAT16:
      return "F16";
    case onnx::TensorProto::DOUBLE:
      return "F64";
    case onnx::TensorProto::INT32:
      return "I32";
    case onnx::TensorProto::INT64:
      return "I64";
    case onnx::TensorProto::BOOL:
      return "BOOL";
    default:
      return cat("type ", type);
  }
}

OnnxEnd end_of(const onnx::ValueInfoProto& value) {
  const auto& type = value.type().tensor_type();
  OnnxEnd end{value.name(), type_name(type.elem_type()), {}};
  for (const auto& dim : type.shape().dim()) {
    end.shape.push_back(dim.has_dim_value()        ? std::to_string(dim.dim_value())
                        : !dim.dim_param().empty() ? dim.dim_param()
                                                   : std::string("?"));
  }
  return end;
}

}  // namespace

std::vector<std::string> OnnxEnds::open_sizes() const {
  std::vector<std::string> symbols;
  for (const OnnxEnd& input : inputs) {
    for (const std::string& size : input.shape) {
      const bool number = size.find_first_not_of("0123456789") == std::string::npos;
      if (!number && std::find(symbols.begin(), symbols.end(), size) == symbols.end())
        symbols.push_back(size);
    }
  }
  return symbols;
}

Result<OnnxEnds> read_onnx_ends(const std::filesystem::path& file) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, read_text_file(file));
  onnx::ModelProto model;
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      !model.has_graph()) {
    return error(StatusCode::data_loss, "[onnx] ", file.string(),
                 ": an ONNX model was required; found something else");
  }
  OnnxEnds ends;
  for (const auto& opset : model.opset_import()) {
    if (opset.domain().empty()) ends.opset = opset.version();
  }
  std::set<std::string> constants;
  for (const auto& tensor : model.graph().initializer()) {
    constants.insert(tensor.name());
    if (tensor.data_type() != onnx::TensorProto::FLOAT &&
        tensor.data_type() != onnx::TensorProto::FLOAT16)
      continue;
    int64_t count = 1;
    for (const int64_t size : tensor.dims()) count *= std::max<int64_t>(0, size);
    ends.weights += count;
  }
  for (const auto& input : model.graph().input()) {
    if (!constants.count(input.name())) ends.inputs.push_back(end_of(input));
  }
  for (const auto& output : model.graph().output())
    ends.outputs.push_back(end_of(output));
  for (const auto& node : model.graph().node()) ++ends.operators[node.op_type()];
  return ends;
}

}  // namespace nibble
