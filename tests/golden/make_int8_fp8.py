"""Makes int8_fp8.safetensors with bitsandbytes 0.50.2 and torch 2.13.0 (CPU):

    python tests/golden/make_int8_fp8.py

LLM.int8 codes and row maxima of [6, 40] half-precision weights with an outlier and a row of
zeros; E4M3 codes of [20, 70] floats under a scale a block of 16 x 32, amax / 448.
"""
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file
g = torch.Generator().manual_seed(8)
w = (torch.randn(6, 40, generator=g) * 0.3).to(torch.float16)
w[2, 7] = 9.5
w[4] = 0
codes, scb, _ = F.int8_vectorwise_quant(w)
values = F.int8_vectorwise_dequant(codes, scb)
f = torch.randn(20, 70, generator=g) * torch.logspace(-3, 1, 70)
blocks = torch.zeros(2, 3)
fp8 = torch.zeros(20, 70, dtype=torch.float8_e4m3fn)
for i in range(2):
    for j in range(3):
        at = (slice(16 * i, 16 * i + 16), slice(32 * j, 32 * j + 32))
        blocks[i, j] = f[at].abs().max() / 448
        fp8[at] = (f[at] / blocks[i, j]).to(torch.float8_e4m3fn)
full = blocks.repeat_interleave(16, 0)[:20].repeat_interleave(32, 1)[:, :70]
save_file({"int8.weight": w.float(), "int8.codes": codes, "int8.SCB": scb, "int8.values": values.float(),
  "fp8.weight": f, "fp8.codes": fp8, "fp8.weight_scale_inv": blocks, "fp8.values": fp8.float() * full}, "tests/golden/int8_fp8.safetensors")
