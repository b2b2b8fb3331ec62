#include "export/onnx/onnx_graph.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <bit>
#include <charconv>
#include <cstring>

#include "kernels/artifact/artifact.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

constexpr int64_t kPageBytes = 4096;            // what memory mapping wants
constexpr int64_t kExternalTensorBytes = 1024;  // smaller tensors stay in the graph
constexpr int64_t kProtobufBytes =
    (int64_t{1} << 31) - 1;  // protobuf's limit: signed 32 bits

bool is_number(const std::string& text, int64_t* value) {
  const auto [end, failed] =
      std::from_chars(text.data(), text.data() + text.size(), *value);
  return failed == std::errc() && end == text.data() + text.size();
}

void fill_value_info(onnx::ValueInfoProto* info, const std::string& name, OnnxType type,
                     const std::vector<std::string>& shape) {
  info->set_name(name);
  auto* tensor = info->mutable_type()->mutable_tensor_type();
  tensor->set_elem_type(static_cast<int32_t>(type));
  auto* dims = tensor->mutable_shape();
  for (const std::string& dim : shape) {
    int64_t value = 0;
    if (is_number(dim, &value)) {
      dims->add_dim()->set_dim_value(value);
    } else {
      dims->add_dim()->set_dim_param(dim);
    }
  }
}

// The decimal that reads back as this number, so that names are unique.
template <class T>
std::string shortest(T value) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

template <class T>
std::string raw_bytes(const std::vector<T>& values) {
  static_assert(std::endian::native == std::endian::little);
  std::string raw(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(raw.data(), values.data(), raw.size());
  return raw;
}

}  // namespace

int64_t onnx_type_bits(OnnxType type) {
  switch (type) {
    case OnnxType::uint4:
    case OnnxType::int4:
    case OnnxType::e2m1:
      return 4;
    case OnnxType::uint8:
    case OnnxType::int8:
    case OnnxType::e4m3:
    case OnnxType::e5m2:
    case OnnxType::e8m0:
    case OnnxType::boolean:
      return 8;
    case OnnxType::float16:
    case OnnxType::bfloat16:
      return 16;
    case OnnxType::float32:
    case OnnxType::int32:
      return 32;
    case OnnxType::int64:
    case OnnxType::float64:
      return 64;
  }
  return 0;
}

OnnxGraph::OnnxGraph(const std::string& name, int64_t opset_version)
    : model_(std::make_unique<onnx::ModelProto>()) {
  const std::string_view version = kToolVersion;  // "nibble 0.1.0"
  const size_t space = version.find(' ');
  model_->set_ir_version(opset_version >= kOnnxE8m0Opset  ? 12
                         : opset_version >= kOnnxFp4Opset ? 11
                                                          : 10);
  model_->set_producer_name(std::string(version.substr(0, space)));
  model_->set_producer_version(std::string(version.substr(space + 1)));
  auto* opset = model_->add_opset_import();
  opset->set_domain("");
  opset->set_version(opset_version);
  model_->mutable_graph()->set_name(name);
}
OnnxGraph::OnnxGraph(OnnxGraph&&) noexcept = default;
OnnxGraph::~OnnxGraph() = default;

void OnnxGraph::add_input(const std::string& name, OnnxType type,
                          const std::vector<std::string>& shape) {
  fill_value_info(model_->mutable_graph()->add_input(), name, type, shape);
}

void OnnxGraph::add_output(const std::string& name, OnnxType type,
                           const std::vector<std::string>& shape) {
  fill_value_info(model_->mutable_graph()->add_output(), name, type, shape);
}

void OnnxGraph::add_metadata(const std::string& key, const std::string& value) {
  auto* entry = model_->add_metadata_props();
  entry->set_key(key);
  entry->set_value(value);
}

std::string OnnxGraph::add(const std::string& op, const std::vector<std::string>& inputs,
                           const std::string& output, const OnnxAttributes& attributes) {
  add(op, inputs, std::vector<std::string>{output}, attributes);
  return output;
}

void OnnxGraph::add(const std::string& op, const std::vector<std::string>& inputs,
                    const std::vector<std::string>& outputs,
                    const OnnxAttributes& attributes) {
  auto* node = model_->mutable_graph()->add_node();
  node->set_op_type(op);
  node->set_name(outputs.front());
  for (const std::string& input : inputs) node->add_input(input);
  for (const std::string& output : outputs) node->add_output(output);
  for (const auto& [name, value] : attributes) {
    auto* attribute = node->add_attribute();
    attribute->set_name(name);
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      attribute->set_type(onnx::AttributeProto::INT);
      attribute->set_i(*integer);
    } else if (const auto* number = std::get_if<float>(&value)) {
      attribute->set_type(onnx::AttributeProto::FLOAT);
      attribute->set_f(*number);
    } else if (const auto* text = std::get_if<std::string>(&value)) {
      attribute->set_type(onnx::AttributeProto::STRING);
      attribute->set_s(*text);
    } else {
      attribute->set_type(onnx::AttributeProto::INTS);
      for (int64_t item : std::get<std::vector<int64_t>>(value))
        attribute->add_ints(item);
    }
  }
}

std::string OnnxGraph::add_contrib(const std::string& op,
                                   const std::vector<std::string>& inputs,
                                   const std::string& output,
                                   const std::vector<std::string>& shape,
                                   const OnnxAttributes& attributes, OnnxType type) {
  if (model_->opset_import_size() == 1) {
    auto* opset = model_->add_opset_import();
    opset->set_domain(kContribDomain);
    opset->set_version(1);
  }
  add(op, inputs, output, attributes);
  auto* graph = model_->mutable_graph();
  graph->mutable_node(graph->node_size() - 1)->set_domain(kContribDomain);
  fill_value_info(graph->add_value_info(), output, type, shape);
  return output;
}

void OnnxGraph::add_initializer(const std::string& name, OnnxType type,
                                const std::vector<int64_t>& shape, std::string raw) {
  initializers_[name] = model_->graph().initializer_size();
  initializer_bytes_ += static_cast<int64_t>(raw.size());
  auto* tensor = model_->mutable_graph()->add_initializer();
  tensor->set_name(name);
  tensor->set_data_type(static_cast<int32_t>(type));
  for (int64_t dim : shape) tensor->add_dims(dim);
  tensor->set_raw_data(std::move(raw));
}

void OnnxGraph::add_initializer(const std::string& name,
                                const std::vector<int64_t>& shape,
                                const std::vector<float>& values) {
  add_initializer(name, OnnxType::float32, shape, raw_bytes(values));
}

bool OnnxGraph::has_initializer(const std::string& name) const {
  return initializers_.count(name) > 0;
}

std::string OnnxGraph::integers(const std::vector<int64_t>& values) {
  std::string name = "/i64[";
  for (size_t i = 0; i < values.size(); ++i) name += cat(i == 0 ? "" : ",", values[i]);
  name += "]";
  if (!has_initializer(name)) {
    add_initializer(name, OnnxType::int64, {static_cast<int64_t>(values.size())},
                    raw_bytes(values));
  }
  return name;
}

std::string OnnxGraph::integer(int64_t value) {
  const std::string name = cat("/i64:", value);
  if (!has_initializer(name)) {
    add_initializer(name, OnnxType::int64, {}, raw_bytes(std::vector<int64_t>{value}));
  }
  return name;
}

std::string OnnxGraph::number(float value) {
  const std::string name = "/f32:" + shortest(value);
  if (!has_initializer(name)) add_initializer(name, {}, std::vector<float>{value});
  return name;
}

std::string OnnxGraph::number64(double value) {
  const std::string name = "/f64:" + shortest(value);
  if (!has_initializer(name)) {
    add_initializer(name, OnnxType::float64, {}, raw_bytes(std::vector<double>{value}));
  }
  return name;
}

Result<std::string> OnnxGraph::serialize(const std::string& location,
                                         std::string* external_data) {
  if (external_data != nullptr) {
    for (auto& tensor : *model_->mutable_graph()->mutable_initializer()) {
      const std::string& raw = tensor.raw_data();
      if (static_cast<int64_t>(raw.size()) < kExternalTensorBytes) continue;
      const size_t offset =
          (external_data->size() + kPageBytes - 1) / kPageBytes * kPageBytes;
      external_data->resize(offset, '\0');
      const auto describe = [&](const char* key, const std::string& value) {
        auto* entry = tensor.add_external_data();
        entry->set_key(key);
        entry->set_value(value);
      };
      describe("location", location);
      describe("offset", std::to_string(offset));
      describe("length", std::to_string(raw.size()));
      external_data->append(raw);
      tensor.clear_raw_data();
      tensor.set_data_location(onnx::TensorProto::EXTERNAL);
    }
  }
  if (static_cast<int64_t>(model_->ByteSizeLong()) > kProtobufBytes) {
    return error(StatusCode::resource_exhausted,
                 "[onnx] model.onnx: at most 2 GiB in one protobuf file; found ",
                 model_->ByteSizeLong(), " bytes; lower external_data_bytes");
  }
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  if (!model_->SerializeToCodedStream(&coded)) {
    return error(StatusCode::internal, "[onnx] model.onnx: serialisation failed");
  }
  coded.Trim();
  return bytes;
}

}  // namespace nibble
