// must fail: (cannot convert|could not convert|invalid initialization|no known conversion|no matching function).*
#include <memory>

#include "ptq/calibrate.h"

// freeze takes what calibrate returns, and nothing else becomes that by itself.
nibble::Artifact use(std::shared_ptr<const nibble::Artifact> model, const nibble::Plan& plan) {
  const nibble::Calibrated calibrated = nibble::calibrate(model, plan, {}, {});
#ifdef NIBBLE_MUST_FAIL
  return nibble::freeze(*model, {});
#else
  return nibble::freeze(calibrated, {});
#endif
}
