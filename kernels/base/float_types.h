// Conversions between float and the small element types, all round to nearest even.
//
// Sources: IEEE 754 half; OCP FP8 (E4M3FN has no infinity, 0x7f NaN), OCP MX v1.0 (E2M1,
// E8M0); NF4 table: QLoRA, arXiv 2305.14314, appendix E; FP4 and the signed dynamic map
// as bitsandbytes defines them; IQ4NL table: ggml's sixteen integers.
//
// The *_from_float functions saturate to the largest finite value (E4M3 448, E5M2 57344,
// E2M1 6); NaN stays NaN where the type has one, else becomes 0.
// Table types (nf4, fp4, dyn8): the nearest entry; a value equal to the float32 midpoint
// of two neighbours takes the lower one (iq4nl: the upper one, as ggml). fp4: zero and below-zero values that round to
// zero are code 0, positive ones code 8. Allocates nothing. Safe to call from any thread.
#pragma once

#include <array>
#include <cstdint>

namespace nibble {

uint16_t f16_from_float(float x);  // overflow becomes infinity, as IEEE
float float_from_f16(uint16_t bits);
uint16_t bf16_from_float(float x);
float float_from_bf16(uint16_t bits);

uint8_t e4m3_from_float(float x);
float float_from_e4m3(uint8_t bits);
uint8_t e5m2_from_float(float x);
float float_from_e5m2(uint8_t bits);
uint8_t e2m1_from_float(float x);  // low 4 bits; keeps the sign of zero (code 8)
float float_from_e2m1(uint8_t bits);
uint8_t e8m0_from_float(float x);  // nearest power of two in log2 (x > 0); 0xff NaN
float float_from_e8m0(uint8_t bits);

const std::array<float, 16>& nf4_table();
const std::array<float, 16>& fp4_table();
const std::array<float, 256>& dyn8_table();
const std::array<float, 16>& iq4nl_table();
uint8_t nf4_from_float(float x);
uint8_t fp4_from_float(float x);
uint8_t dyn8_from_float(float x);
uint8_t iq4nl_from_float(float x);

}  // namespace nibble
