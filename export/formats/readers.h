// The readers of every row of exporters.inc: they may not reach kernels/packing, so that
// what they decode proves what it wrote.
#pragma once

#include <filesystem>

#include "export/huggingface/each_weight.h"
#include "kernels/base/status.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

#define NIBBLE_EXPORTER(name, description) \
  Result<Decoded> read_##name(const std::filesystem::path& directory);
#include "export/exporters.inc"
#undef NIBBLE_EXPORTER

// Of a .onnx of any name.
Result<Decoded> read_onnx_file(const std::filesystem::path& path);

// The same of Hugging Face directories, weight by weight.
Result<Decoded> read_compressed_tensors(const std::filesystem::path& directory,
                                        const EachWeight& each);
Result<Decoded> read_gptq(const std::filesystem::path& directory, const EachWeight& each);
Result<Decoded> read_awq(const std::filesystem::path& directory, const EachWeight& each);
Result<Decoded> read_bitsandbytes(const std::filesystem::path& directory,
                                  const EachWeight& each);
Result<Decoded> read_fp8(const std::filesystem::path& directory, const EachWeight& each);
Result<Decoded> read_modelopt(const std::filesystem::path& directory,
                              const EachWeight& each);

}  // namespace nibble
