// Loops over arrays of vectors that must become registers.
#pragma once

#if defined(__clang__)
#define NIBBLE_UNROLL _Pragma("unroll")
#else
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")
#endif
