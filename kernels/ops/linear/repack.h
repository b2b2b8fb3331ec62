// Weights into panels (the layouts of linear_isa.h), one function a form.
#pragma once

#include "kernels/ops/linear/linear.h"
#include "kernels/ops/linear/linear_isa.h"

namespace nibble {

Result<PreparedLinear> repack_plain(const LinearKernel& kernel, const LinearWeight& weight,
                                    const LinearInput& input);
Result<PreparedLinear> repack_int4(const LinearKernel& kernel, const LinearWeight& weight,
                                   const LinearInput& input);
Result<PreparedLinear> repack_int8(const LinearKernel& kernel, const LinearWeight& weight,
                                   const LinearInput& input);
Result<PreparedLinear> repack_table4(const LinearKernel& kernel, const LinearWeight& weight,
                                     const LinearInput& input);
Result<PreparedLinear> repack_fp8(const LinearKernel& kernel, const LinearWeight& weight,
                                  const LinearInput& input);
// For bf16 activations (linear_bf16.h): zero points become minima.
Result<PreparedLinear> repack_bf16_plain(const LinearKernel& kernel, const LinearWeight& weight,
                                         const LinearInput& input);
Result<PreparedLinear> repack_bf16_table4(const LinearKernel& kernel, const LinearWeight& weight,
                                          const LinearInput& input);
Result<PreparedLinear> repack_bf16_table8(const LinearKernel& kernel, const LinearWeight& weight,
                                          const LinearInput& input);
// Keeps the source: rows that decode it at run time.
Result<PreparedLinear> repack_nothing(const LinearKernel& kernel, const LinearWeight& weight,
                                      const LinearInput& input);

PanelForm panel_form(const PreparedLinear& weight);
PanelCodes panel_codes(const PreparedLinear& weight);

}  // namespace nibble
