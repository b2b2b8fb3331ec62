// libFuzzer's entry for the reader that NIBBLE_FUZZED names (fuzz.sh sets it).
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nibble::fuzz::Reader* const reader = [] {
    for (const nibble::fuzz::Reader& row : nibble::fuzz::readers()) {
      if (std::string_view(row.name) == NIBBLE_FUZZED) return &row;
    }
    return static_cast<const nibble::fuzz::Reader*>(nullptr);
  }();
  if (reader == nullptr) __builtin_trap();
  reader->read(data, size);
  return 0;
}
