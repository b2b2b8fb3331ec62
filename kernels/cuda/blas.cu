#include <cublasLt.h>

#include <map>
#include <tuple>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/memory.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kWorkspace = 32 << 20;  // what Hopper's fastest algorithms ask for

Status blas_status(cublasStatus_t result) {
  if (result == CUBLAS_STATUS_SUCCESS) return ok_status();
  return error(result == CUBLAS_STATUS_NOT_SUPPORTED ? StatusCode::unsupported
                                                     : StatusCode::internal,
               "[cuda] cuBLASLt: status ", static_cast<int>(result));
}

// Of an address, up to what cuBLASLt asks about.
uint32_t alignment(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  uint32_t bytes = 256;
  while (address % bytes != 0) bytes /= 2;
  return bytes;
}

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, d = nullptr;
  cublasLtMatmulHeuristicResult_t chosen = {};
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {w, x, d}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }
};

cudaDataType_t type_of(ProductType type) {
  switch (type) {
    case ProductType::f16:
      return CUDA_R_16F;
    case ProductType::bf16:
      return CUDA_R_16BF;
    case ProductType::s8:
      return CUDA_R_8I;
    case ProductType::e4m3:
      break;
  }
  return CUDA_R_8F_E4M3;
}

}  // namespace

struct Blas::Implementation {
  using Key = std::tuple<int, bool, int, int, int, int64_t, int64_t, int64_t, uint32_t,
                         uint32_t, uint32_t>;
  cublasLtHandle_t handle = nullptr;
  DeviceBuffer workspace;
  std::map<Key, Plan> plans;
  ~Implementation() {
    plans.clear();
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  // Column by column, as cuBLAS counts: d [n, t] = w^T [n, k] x [k, t].
  Status make(const ProductCall& call, Plan& plan) const {
    const bool is_s8 = call.type == ProductType::s8;
    const cudaDataType_t type = type_of(call.type);
    const cudaDataType_t out = is_s8 ? CUDA_R_32I : call.sums ? CUDA_R_32F : type;
    NIBBLE_RETURN_IF_ERROR(blas_status(cublasLtMatmulDescCreate(
        &plan.product, is_s8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
        is_s8 ? CUDA_R_32I : CUDA_R_32F)));
    const cublasOperation_t turned = CUBLAS_OP_T;
    NIBBLE_RETURN_IF_ERROR(blas_status(cublasLtMatmulDescSetAttribute(
        plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned))));
    const auto rows = static_cast<uint64_t>(call.rows),
               cols = static_cast<uint64_t>(call.cols),
               tokens = static_cast<uint64_t>(call.tokens);
    NIBBLE_RETURN_IF_ERROR(blas_status(
        cublasLtMatrixLayoutCreate(&plan.w, type, cols, rows, call.w_stride)));
    NIBBLE_RETURN_IF_ERROR(blas_status(
        cublasLtMatrixLayoutCreate(&plan.x, type, cols, tokens, call.x_stride)));
    NIBBLE_RETURN_IF_ERROR(blas_status(
        cublasLtMatrixLayoutCreate(&plan.d, out, rows, tokens, call.d_stride)));
    cublasLtMatmulPreference_t preference = nullptr;
    NIBBLE_RETURN_IF_ERROR(blas_status(cublasLtMatmulPreferenceCreate(&preference)));
    const auto bytes = static_cast<size_t>(kWorkspace);
    cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    const uint32_t alignments[] = {alignment(call.w), alignment(call.x),
                                   alignment(call.d), alignment(call.d)};
    constexpr cublasLtMatmulPreferenceAttributes_t kAlignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; ++i) {
      cublasLtMatmulPreferenceSetAttribute(preference, kAlignments[i], &alignments[i],
                                           sizeof(alignments[i]));
    }
    int found = 0;
    const Status asked = blas_status(
        cublasLtMatmulAlgoGetHeuristic(handle, plan.product, plan.w, plan.x, plan.d,
                                       plan.d, preference, 1, &plan.chosen, &found));
    cublasLtMatmulPreferenceDestroy(preference);
    NIBBLE_RETURN_IF_ERROR(asked);
    if (found > 0) return ok_status();
    return error(StatusCode::unsupported, "[cuda] cuBLASLt: no algorithm for ",
                 call.tokens, " x ", call.cols, " by ", call.rows, " x ", call.cols);
  }
};

Blas::Blas() : implementation_(std::make_unique<Implementation>()) {}
Blas::Blas(Blas&&) noexcept = default;
Blas& Blas::operator=(Blas&&) noexcept = default;
Blas::~Blas() = default;
bool Blas::is_there() { return true; }

Result<Blas> Blas::create() {
  Blas blas;
  NIBBLE_RETURN_IF_ERROR(blas_status(cublasLtCreate(&blas.implementation_->handle)));
  NIBBLE_ASSIGN_OR_RETURN(blas.implementation_->workspace,
                          DeviceBuffer::allocate(kWorkspace));
  return std::move(blas);  // nvcc moves a local only when told to
}

Status Blas::multiply(const ProductCall& call, void* stream) {
  const bool is_8_bit = call.type == ProductType::s8 || call.type == ProductType::e4m3;
  if (call.rows < 1 || call.cols < 1 || call.tokens < 1 || call.w == nullptr ||
      call.x == nullptr || call.d == nullptr || call.w_stride < call.cols ||
      call.x_stride < call.cols || call.d_stride < call.rows ||
      (is_8_bit && (!call.sums || call.w_stride % 16 != 0 || call.x_stride % 16 != 0))) {
    return error(StatusCode::invalid_argument,
                 "[cuda] product: w, x, d, whole strides and for 8 bits sums and strides "
                 "in multiples of 16 are needed; found ",
                 call.tokens, " x ", call.cols, " by ", call.rows, ", strides ",
                 call.w_stride, ", ", call.x_stride, ", ", call.d_stride);
  }
  Implementation& b = *implementation_;
  const Implementation::Key key = {static_cast<int>(call.type),
                                   call.sums,
                                   call.rows,
                                   call.cols,
                                   call.tokens,
                                   call.w_stride,
                                   call.x_stride,
                                   call.d_stride,
                                   alignment(call.w),
                                   alignment(call.x),
                                   alignment(call.d)};
  const auto [at, is_new] = b.plans.try_emplace(key);
  Plan& plan = at->second;
  if (is_new) {
    if (const Status made = b.make(call, plan); !made.ok()) {
      b.plans.erase(at);
      return made;
    }
  }
  const float one = 1, none = 0;
  const int32_t whole = 1, zero = 0;
  const bool is_s8 = call.type == ProductType::s8;
  return blas_status(cublasLtMatmul(
      b.handle, plan.product,
      is_s8 ? static_cast<const void*>(&whole) : static_cast<const void*>(&one), call.w,
      plan.w, call.x, plan.x,
      is_s8 ? static_cast<const void*>(&zero) : static_cast<const void*>(&none), call.d,
      plan.d, call.d, plan.d, &plan.chosen.algo, b.workspace.data(),
      static_cast<size_t>(kWorkspace), static_cast<cudaStream_t>(stream)));
}

}  // namespace nibble::cuda
