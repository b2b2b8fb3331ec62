// must fail: ignoring return.*Wunused-result|Wunused-value|nodiscard
#include "kernels/base/file.h"

#ifdef NIBBLE_MUST_FAIL
#pragma GCC diagnostic error "-Wunused-result"
#endif

nibble::Status use() {
  const nibble::Status kept = nibble::write_file_atomically("x", "y");
#ifdef NIBBLE_MUST_FAIL
  nibble::write_file_atomically("x", "y");  // an outcome that nobody looks at
#endif
  return kept;
}
