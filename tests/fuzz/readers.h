// The whole way of somebody's bytes through each reader: what fuzz.sh gives to libFuzzer,
// and what replays the corpora (corrupt/fuzz_corpus_test.cpp).
//
// An input is one file, or several one after the other: a part's size in 4 bytes,
// little-endian and at most what is left, then the part; the last part is what remains.
//
//   gguf            the file
//   safetensors     model.safetensors.index.json (may be empty), the shard
//   compressed_tensors, gptq, awq, bitsandbytes, fp8, modelopt    config.json,
//                   model.safetensors
//   nibble          manifest.json, config.json, model.safetensors; checksums are made
//                   right, so that what lies behind them is reached
//   onnx            model.onnx; the digest in one of ours is made right, so that its
//                   description is read
//   config          config.json, by every architecture
//   tokenizer       a byte for the kind, the file, and of vocab.json merges.txt after it
//
// Each returns true where the input was read to the end.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "export/formats/readers.h"
#include "export/gguf/gguf_model.h"
#include "export/onnx/description.h"
#include "export/onnx/import.h"
#include "kernels/artifact/artifact.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/json.h"
#include "kernels/base/sha256.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/tokenizer/tokenizer.h"
#include "onnx.pb.h"
#include "recipes/models/architecture.h"

namespace nibble::fuzz {

// `count` parts of the input.
inline std::vector<std::string> parts_of(const uint8_t* data, size_t size, size_t count) {
  std::vector<std::string> parts;
  const uint8_t* end = data + size;
  while (parts.size() + 1 < count) {
    size_t length = 0;
    if (end - data >= 4) {
      length = data[0] | data[1] << 8 | data[2] << 16 | static_cast<size_t>(data[3]) << 24;
      data += 4;
    }
    length = std::min(length, static_cast<size_t>(end - data));
    parts.emplace_back(reinterpret_cast<const char*>(data), length);
    data += length;
  }
  parts.emplace_back(reinterpret_cast<const char*>(data), static_cast<size_t>(end - data));
  return parts;
}

inline std::string joined_parts(const std::vector<std::string>& parts) {
  std::string all;
  for (size_t i = 0; i < parts.size(); ++i) {
    for (int b = 0; i + 1 < parts.size() && b < 4; ++b)
      all += static_cast<char>(parts[i].size() >> (8 * b) & 0xff);
    all += parts[i];
  }
  return all;
}

// A directory of this process with these files and no others; "" is no file.
inline std::filesystem::path directory_of(
    const std::vector<std::pair<const char*, std::string>>& files) {
  static const std::filesystem::path directory = [] {
    auto path = std::filesystem::temp_directory_path() /
                ("nibble_fuzz_" + std::to_string(getpid()));
    std::filesystem::create_directory(path);
    return path;
  }();
  for (const auto& [name, contents] : files) {
    // A file that is mapped somewhere must not be written into.
    std::filesystem::remove(directory / name);
    if (!contents.empty())
      std::ofstream(directory / name, std::ios::binary) << contents;
  }
  return directory;
}

inline bool gguf(const uint8_t* data, size_t size) {
  // In memory of its own, so that reading beyond it is seen.
  auto file = parse_gguf(Bytes::copy_of(data, size));
  if (!file.ok()) return false;
  (void)gguf_tokenizer_files(file->metadata).ok();
  (void)gguf_type_counts(*file);
  const auto model = gguf_model_of(std::move(*file));
  if (!model.ok()) return false;
  for (const GgufParameter& parameter : model->parameters) {
    if (parameter.is_float()) {
      (void)read_floats(parameter).ok();
    } else {
      (void)read_codes(parameter).ok();
    }
  }
  return true;
}

inline bool safetensors(const uint8_t* data, size_t size) {
  const auto parts = parts_of(data, size, 2);
  const auto directory =
      parts[0].empty()
          ? directory_of({{"model.safetensors.index.json", ""}, {"model.safetensors", parts[1]}})
          : directory_of({{"model.safetensors.index.json", parts[0]},
                          {"model.safetensors", ""},
                          {"shard.safetensors", parts[1]}});
  const auto tensors = read_sharded_safetensors(directory, nullptr);
  if (!tensors.ok()) return false;
  for (const auto& [name, tensor] : *tensors) (void)to_float(tensor).ok();
  return true;
}

// Decoded codes go on to where every verb takes them: packed, and unpacked again.
inline bool packs(const Result<Decoded>& decoded) {
  if (!decoded.ok()) return false;
  bool all = true;
  for (const auto& [name, q] : decoded->coded) {
    const auto packed = pack(q, {q.rows, q.cols});
    all = all && packed.ok() && unpack(*packed).ok();
  }
  return all;
}

template <Result<Decoded> (*read)(const std::filesystem::path&)>
bool quantized_directory(const uint8_t* data, size_t size) {
  const auto parts = parts_of(data, size, 2);
  return packs(
      read(directory_of({{"config.json", parts[0]}, {"model.safetensors", parts[1]}})));
}

// The manifest with the checksums and sizes of what lies beside it; as it is where it is no
// JSON object.
inline std::string sealed(const std::string& manifest,
                          const std::vector<std::pair<const char*, std::string>>& files) {
  auto json = parse_ordered_json(manifest);
  if (!json.is_object()) return manifest;
  json["manifest_sha256"] = std::string(64, '0');
  for (const auto& [name, contents] : files) {
    if (!json.contains("files") || !json["files"].is_object()) break;
    if (!json["files"].contains(name) || !json["files"][name].is_object()) continue;
    json["files"][name]["bytes"] = contents.size();
    json["files"][name]["sha256"] = sha256_hex(contents);
  }
  std::string text = json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string field = "\"manifest_sha256\": \"";
  const size_t at = text.find(field) + field.size();
  return text.replace(at, 64, sha256_hex(text));
}

inline bool nibble(const uint8_t* data, size_t size) {
  const auto parts = parts_of(data, size, 3);
  std::vector<std::pair<const char*, std::string>> files = {{"config.json", parts[1]},
                                                            {"model.safetensors", parts[2]}};
  files.emplace_back("manifest.json", sealed(parts[0], files));
  const auto directory = directory_of(files);
  const auto artifact = read_artifact(directory);
  const bool decodes = packs(read_nibble(directory));
  return artifact.ok() && decodes;
}

inline std::string with_its_digest(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  ::onnx::ModelProto model;
  if (!model.ParseFromString(bytes)) return bytes;
  const auto digest = graph_digest(model, std::filesystem::temp_directory_path());
  bool has = false;
  for (auto& entry : *model.mutable_metadata_props()) {
    if (entry.key() != kDigestKey || !digest.ok()) continue;
    entry.set_value(*digest);
    has = true;
  }
  return has ? model.SerializeAsString() : bytes;
}

inline bool onnx(const uint8_t* data, size_t size) {
  const auto file =
      directory_of({{"model.onnx", with_its_digest(data, size)}}) / "model.onnx";
  const auto graph = import_onnx(file);
  const auto described = read_described(file);
  (void)packs(read_onnx_file(file));
  return (graph.ok() && check_program(graph->program).ok()) ||
         (described.ok() && described->artifact.has_value());
}

inline bool config(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  bool any = false;
  for (const ModelArchitecture& row : all_architectures()) {
    const auto program = row.program(text);
    any = any || (program.ok() && check_program(*program).ok());
  }
  return any;
}

inline bool tokenizer(const uint8_t* data, size_t size) {
  static const char* const kNames[] = {"tokenizer.json", "tokenizer.model", "tokenizer.bin",
                                       "vocab.txt"};
  if (size == 0) return false;
  std::map<std::string, Bytes> files;
  const auto file = [](const std::string& text) {
    return Bytes::copy_of(text.data(), text.size());
  };
  if (data[0] % 5 == 4) {
    const auto parts = parts_of(data + 1, size - 1, 2);
    files["vocab.json"] = file(parts[0]);
    files["merges.txt"] = file(parts[1]);
  } else {
    files[kNames[data[0] % 5]] = Bytes::copy_of(data + 1, size - 1);
  }
  const auto tokenizer = make_tokenizer(files, 1 << 16);
  if (!tokenizer.ok()) return false;
  for (const std::string_view text : {"Once upon a time, there was", " \xc3\xa9\t12 \xff",
                                      "a"}) {
    const auto ids = (*tokenizer)->encode(text);
    if (ids.ok()) (void)(*tokenizer)->decode(*ids);
  }
  return true;
}

struct Reader {
  const char* name;  // of its corpus, and for fuzz.sh
  bool (*read)(const uint8_t* data, size_t size);
};
inline const std::vector<Reader>& readers() {
  static const std::vector<Reader> all = {
      {"gguf", gguf},
      {"safetensors", safetensors},
      {"compressed_tensors", quantized_directory<read_compressed_tensors>},
      {"gptq", quantized_directory<read_gptq>},
      {"awq", quantized_directory<read_awq>},
      {"bitsandbytes", quantized_directory<read_bitsandbytes>},
      {"fp8", quantized_directory<read_fp8>},
      {"modelopt", quantized_directory<read_modelopt>},
      {"nibble", nibble},
      {"onnx", onnx},
      {"config", config},
      {"tokenizer", tokenizer}};
  return all;
}

}  // namespace nibble::fuzz
