// The whole way of a GGUF's bytes through its reader, for libFuzzer (fuzz.sh) and for the
// replay of the corpus (corrupt/fuzz_corpus_test.cpp).
#include <cstddef>
#include <cstdint>

#include "export/gguf/gguf_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  // In memory of its own, so that reading beyond it is seen.
  auto file = parse_gguf(Bytes::copy_of(data, size));
  if (!file.ok()) return 0;
  (void)gguf_tokenizer_files(file->metadata).ok();
  (void)gguf_type_counts(*file);
  const auto model = gguf_model_of(std::move(*file));
  if (!model.ok()) return 0;
  for (const GgufParameter& parameter : model->parameters) {
    if (parameter.is_float()) {
      (void)read_floats(parameter).ok();
    } else {
      (void)read_codes(parameter).ok();
    }
  }
  return 0;
}
