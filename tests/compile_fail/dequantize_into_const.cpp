// must fail: (cannot convert|invalid conversion|could not convert|no viable|no matching|cannot initialize)
#include <vector>

#include "kernels/scheme/coded_matrix.h"

// A view of constant floats is not a place to write to.
nibble::Status use(const nibble::CodedMatrix& q, std::vector<float>& x) {
#ifdef NIBBLE_MUST_FAIL
  const nibble::MatrixView<const float> view(x.data(), q.rows, q.cols);
#else
  const nibble::MatrixView<float> view(x.data(), q.rows, q.cols);
#endif
  return nibble::dequantize(q, view);
}
