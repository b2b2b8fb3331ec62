// Writes a Hugging Face directory of quantized weights: what compressed-tensors, GPTQ,
// AWQ and bitsandbytes have in common.
//
// config.json with quantization_config, safetensors shards with an index, tokenizer
// files; all or nothing. Before the directory gets its name it is read back by the
// format's own reader, and every code, scale and float is compared with the artifact.
//
// A format says what one quantized weight becomes; everything else keeps its dtype.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "export/exporter.h"
#include "export/huggingface/each_weight.h"
#include "export/huggingface/static_caches.h"

namespace nibble {

struct QuantizedFormat {
  const char* name;                                // of the exporter, for messages
  std::string quantization_config;                 // JSON text
  std::map<std::string, std::string> extra_files;  // name -> contents
  StaticCaches caches;                             // that are written, and
  std::map<std::string, Tensor> cache_tensors;     // their scales
  // The tensors of one weight, by their names in the checkpoint. Where q has no codes
  // yet, those of codes have their types and shapes alone. May point into q. Called from
  // several threads.
  std::function<Result<std::map<std::string, Tensor>>(const std::string& weight,
                                                      const CodedMatrix& q)>
      tensors_of;
  Result<Decoded> (*read)(const std::filesystem::path& directory, const EachWeight& each);
};

// What all of them need: an architecture of transformers; every quantized weight a linear
// layer's; no low-rank part; activations belong to layers. unsupported: the first that is
// otherwise, named.
Status check_quantized_model(const Artifact& artifact, const ExportOptions& options,
                             const char* format);

// The artifact as it is written: rows in transformers' order (rope_order.h), and where
// the option says so, quantized embeddings as the floats that they stand for.
Result<Artifact> prepared_for_transformers(const Artifact& artifact,
                                           const ExportOptions& options,
                                           const char* format);

// artifact: prepared and checked.
Status write_quantized_directory(const Artifact& artifact, const QuantizedFormat& format,
                                 const std::filesystem::path& directory,
                                 const ExportOptions& options);

// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"
std::string module_of(const std::string& weight);
// The linear layers, experts too, that stay float, and those of the checkpoint that the program
// has no use for: for lists of modules to leave alone.
std::set<std::string> float_modules(const Artifact& artifact);

// "float16", "bfloat16", "float32": what config.json says, else what the tensors are.
std::string model_dtype(const Artifact& artifact);

// A tensor of 32-bit words or of bytes.
Tensor word_tensor(std::vector<int64_t> shape, std::vector<uint32_t> words);
// Of words that are written once and need no zeros before: shape's product of them.
using Words = std::shared_ptr<uint32_t[]>;
inline Words fresh_words(int64_t n) {
  return Words(new uint32_t[static_cast<size_t>(n)]);
}
Tensor word_tensor(std::vector<int64_t> shape, Words words);
Tensor byte_tensor(DType dtype, std::vector<int64_t> shape, std::vector<uint8_t> bytes);
// q's codes themselves, as long as they are there.
Tensor code_tensor(DType dtype, std::vector<int64_t> shape, const CodedMatrix& q);
// Values that the element holds exactly, in its dtype: f16, bf16 or f32.
Tensor float_tensor(Element element, std::vector<int64_t> shape,
                    const std::vector<float>& values);

// zero_point of a code as unsigned numbers: code - lowest of the element, and z likewise.
// 2^(B-1) where an intB scheme has none; 0 for uintB.
int unsigned_code(const QuantScheme& scheme, uint8_t code);
// What makes a code byte an unsigned number when it is added, as a byte.
uint8_t code_lift(const QuantScheme& scheme);
int unsigned_zero(const CodedMatrix& q, int64_t index);

}  // namespace nibble
