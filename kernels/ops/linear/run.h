// How the rows of the linear table run: they cut the work into tasks and give each to the
// instruction set's functions (linear_isa.h, ops/panel/panel.h).
#pragma once

#include "kernels/ops/linear/linear.h"

namespace nibble {

// f32 activations, panels of any form.
void run_panels_f32(const PreparedLinear& weight, MatrixView<const float> x,
                    const float* bias, MatrixView<float> y);
// f32 activations, any scheme: rows dequantized at run time, then the same product.
void run_any_f32(const PreparedLinear& weight, MatrixView<const float> x,
                 const float* bias, MatrixView<float> y);
// bf16 activations, panels of any form of linear_bf16.h.
void run_panels_bf16(const PreparedLinear& weight, MatrixView<const float> x,
                     const float* bias, MatrixView<float> y);
// int8 activations, int4 or int8 panels.
void run_panels_s8(const PreparedLinear& weight, MatrixView<const float> x,
                   const float* bias, MatrixView<float> y);
void run_reference_f32(const PreparedLinear& weight, MatrixView<const float> x,
                       const float* bias, MatrixView<float> y);
void run_reference_bf16(const PreparedLinear& weight, MatrixView<const float> x,
                        const float* bias, MatrixView<float> y);
void run_reference_s8(const PreparedLinear& weight, MatrixView<const float> x,
                      const float* bias, MatrixView<float> y);

}  // namespace nibble
