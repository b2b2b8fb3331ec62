#include "kernels/cuda/blas.h"

namespace nibble::cuda {
namespace {

Status no_blas() {
  return error(StatusCode::unsupported,
               "[cuda] this build has no cuBLASLt; install it and build the preset "
               "`cuda` anew");
}

}  // namespace

struct Blas::Implementation {};
Blas::Blas() = default;
Blas::Blas(Blas&&) noexcept = default;
Blas& Blas::operator=(Blas&&) noexcept = default;
Blas::~Blas() = default;
Result<Blas> Blas::create() { return no_blas(); }
Status Blas::multiply(const ProductCall&, void*) { return no_blas(); }
bool Blas::is_there() { return false; }

}  // namespace nibble::cuda
