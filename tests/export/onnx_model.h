// An exported ONNX file parsed back with protobuf, to look at its nodes and bytes.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "export/exporter.h"
#include "onnx.pb.h"
#include "tests/export/sample_models.h"

namespace nibble::sample {

struct Model {
  onnx::ModelProto proto;
  std::map<std::string, const onnx::TensorProto*> initializers;
  std::map<std::string, const onnx::NodeProto*> producers;

  const onnx::NodeProto& producer(const std::string& value) const {
    const auto found = producers.find(value);
    if (found == producers.end()) ADD_FAILURE() << "nothing makes " << value;
    return *found->second;
  }
  std::vector<std::string> consumers(const std::string& value) const {
    std::vector<std::string> ops;
    for (const auto& node : proto.graph().node()) {
      for (const std::string& input : node.input()) {
        if (input == value) ops.push_back(node.op_type());
      }
    }
    return ops;
  }
};

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Writes, parses back with protobuf; the directory is removed again.
inline std::unique_ptr<Model> exported(const Artifact& artifact,
                                       ExportOptions options = {}) {
  const auto directory = fresh_directory("onnx");
  const Exporter* onnx = take(find_exporter("onnx"));
  const Status status = onnx->write(artifact, directory, options);
  EXPECT_TRUE(status.ok()) << status.message();
  auto model = std::make_unique<Model>();
  EXPECT_TRUE(model->proto.ParseFromString(file_text(directory / "model.onnx")));
  for (const auto& tensor : model->proto.graph().initializer()) {
    model->initializers[tensor.name()] = &tensor;
  }
  for (const auto& node : model->proto.graph().node()) {
    for (const std::string& output : node.output()) {
      EXPECT_TRUE(model->producers.emplace(output, &node).second)
          << output << " is made twice";
    }
  }
  std::filesystem::remove_all(directory);
  return model;
}

inline int64_t attribute(const onnx::NodeProto& node, const std::string& name,
                         int64_t otherwise) {
  for (const auto& item : node.attribute()) {
    if (item.name() == name) return item.i();
  }
  return otherwise;
}

}  // namespace nibble::sample
