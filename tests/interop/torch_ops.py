"""nibble's torch operators against torch's own arithmetic, eagerly and under torch.compile.

    python3 torch_ops.py LIBRARY [cpu|cuda]

cuda: exits 77, saying why, where torch sees no GPU or LIBRARY was built without CUDA.
"""
import sys

import torch


def quantize(w, scheme, group, lowest, highest, asymmetric):
    """Codes, scales and zeros of w, absmax or range, by torch alone."""
    rows, cols = w.shape
    blocks = w.reshape(rows, cols // group, group)
    if asymmetric:
        low = blocks.amin(-1, keepdim=True).clamp(max=0)
        high = blocks.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / (highest - lowest)).half().float()
        zero = torch.round(lowest - low / scale).clamp(lowest, highest)
    else:
        scale = (blocks.abs().amax(-1, keepdim=True) / highest).half().float()
        zero = torch.zeros_like(scale)
    codes = torch.round(blocks / scale + zero).clamp(lowest, highest)
    values = (codes - zero) * scale
    kind = torch.int8 if lowest < 0 else torch.uint8
    return (codes.reshape(rows, cols).to(kind), scale.reshape(rows, -1),
            zero.reshape(rows, -1) if asymmetric else None, values.reshape(rows, cols))


def expect_error(text, function):
    try:
        function()
    except RuntimeError as e:
        assert text in str(e), f"'{text}' is not in: {e}"
        return
    raise AssertionError(f"no error with '{text}'")


def main():
    library, device = sys.argv[1], (sys.argv[2:] or ["cpu"])[0]
    if device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no GPU")
        return 77
    torch.ops.load_library(library)
    if device == "cuda" and not torch._C._dispatch_has_kernel_for_dispatch_key(
            "nibble::linear_w4a16", "CUDA"):
        print("skipped: the library was built without CUDA")
        return 77
    ops = torch.ops.nibble
    torch.manual_seed(1)
    rows, cols = 200, 512
    types = [torch.float16, torch.bfloat16] + ([torch.float32] if device == "cpu" else [])
    cases = [
        ("linear_w4a16", "int4/g128@f16", 128, -8, 7, False),
        ("linear_w4a16", "uint4/g32@f16+z/g32@uint4", 32, 0, 15, True),
        ("linear_w8a16", "int8/r@f32", cols, -128, 127, False),
        ("linear_w8a8", "int8/r@f32", cols, -128, 127, False),
    ]
    checked = 0
    for name, scheme, group, lowest, highest, asymmetric in cases:
        w = torch.randn(rows, cols) + 0.2
        codes, scales, zeros, values = quantize(w, scheme, group, lowest, highest, asymmetric)
        to = lambda t: None if t is None else t.to(device)
        packed = ops.pack_linear(to(codes), to(scales), to(zeros), scheme, name == "linear_w8a8")
        bias = torch.randn(rows, device=device)
        op = getattr(ops, name)

        def layer(x):
            return op(x * 1, packed, scheme, rows, bias) + 0

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        for kind in types:
            # 70 and 100: more tokens than the GPU's own kernels take.
            for shape in [(1,), (3,), (2, 9), (70,), (100,), ()]:
                x = torch.randn(*shape, cols, device=device).to(kind)
                y = layer(x)
                assert y.dtype == kind and y.shape == (*shape, rows), (y.dtype, y.shape)
                x64 = x.double().cpu()
                if name == "linear_w8a8":
                    a = x.float().cpu().abs().amax(-1, keepdim=True)
                    s = a / 127
                    q = torch.round(x.float().cpu() / s).clamp(-127, 127).double()
                    x64 = q * s.double()
                expected = x64 @ values.double().T + bias.double().cpu()
                size = x64.abs() @ values.abs().double().T + bias.double().abs().cpu()
                last = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 0}[kind]
                # Beyond 64 tokens the GPU multiplies weights of x's type.
                weight = last if device == "cuda" and len(shape) and shape[0] >= 70 else 0
                bound = (8 * (cols + 8) * 2**-24 + weight) * size + last * expected.abs() + 1e-6
                error = (y.double().cpu() - expected).abs()
                assert (error <= bound).all(), (name, scheme, kind, shape, (error / bound).max())
                if kind == torch.float16 and shape in [(3,), (70,)]:  # each compile takes seconds
                    assert torch.equal(compiled(x), y), "torch.compile gives other bits"
                assert torch.equal(layer(x), y), "another call gives other bits"
                checked += 1
        meta = op(torch.empty(5, cols, device="meta", dtype=torch.float16),
                  torch.empty(packed.shape, device="meta", dtype=torch.uint8), scheme, rows, None)
        assert meta.shape == (5, rows) and meta.dtype == torch.float16
        torch.library.opcheck(
            op.default, (torch.randn(4, cols, device=device).half(), packed, scheme, rows, bias),
            test_utils=("test_schema", "test_faketensor"))

    codes, scales, zeros, _ = quantize(torch.randn(rows, cols), "", 128, -8, 7, False)
    to = lambda t: t.to(device)
    packed = ops.pack_linear(to(codes), to(scales), None, "int4/g128@f16")
    x = torch.randn(1, cols, device=device).half()
    expect_error("scales are needed", lambda: ops.pack_linear(to(codes), to(scales[:, :2]), None,
                                                              "int4/g128@f16"))
    expect_error("needs zeros", lambda: ops.pack_linear(to(codes), to(scales), None,
                                                        "uint4/g128@f16+z/g128@uint4"))
    expect_error("call linear_w8a16",
                 lambda: ops.linear_w4a16(x, packed, "int8/r@f32", rows, None))
    expect_error("pack_linear", lambda: ops.linear_w4a16(x, packed[:100], "int4/g128@f16", rows,
                                                         None))
    expect_error("needed; found x",
                 lambda: ops.linear_w4a16(x.double(), packed, "int4/g128@f16", rows, None))
    print(f"{checked} products on {device}, eagerly and compiled")
    return 0


sys.exit(main())
