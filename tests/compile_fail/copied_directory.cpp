// must fail: (use of deleted function|call to implicitly-deleted|call to deleted)
#include "kernels/base/file.h"

// Two owners of one staging directory would remove it twice.
nibble::Status use(nibble::AtomicDirectory& directory) {
#ifdef NIBBLE_MUST_FAIL
  nibble::AtomicDirectory other = directory;
#else
  nibble::AtomicDirectory other = std::move(directory);
#endif
  return other.commit();
}
