// must fail: ignoring return.*Wunused-result|Wunused-value|nodiscard
#include "kernels/scheme/quant_scheme.h"

#ifdef NIBBLE_MUST_FAIL
#pragma GCC diagnostic error "-Wunused-result"
#endif

bool use() {
  const nibble::Result<nibble::QuantScheme> kept = nibble::parse_scheme("int4/g32@f16");
#ifdef NIBBLE_MUST_FAIL
  nibble::parse_scheme("int4/g32@f16");
#endif
  return kept.ok();
}
