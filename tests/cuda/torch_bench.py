"""torch's own products beside nibble's kernels: cuBLAS bf16 and int4 (tinygemm), in microseconds.

The same way as kernels_bench.cu: a CUDA graph of calls that each read another copy of the weight,
more than 200 MB in all; the median of 30 rounds.
"""
import sys

import torch

ROTATED, ROUNDS = 256 << 20, 30


def microseconds(weights, call):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(weights[0])
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for w in weights:
                call(w)
        times = []
        for _ in range(ROUNDS + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return sorted(times[3:])[ROUNDS // 2] * 1000 / len(weights)


def main():
    if not torch.cuda.is_available():
        print("skipped: torch sees no GPU")
        return 77
    print(f"torch {torch.__version__}\n")
    print("| kernel | shape | tokens | us | GB/s |\n|---|---|---|---|---|")
    for rows, cols in [(4096, 4096), (8192, 8192), (7168, 20480), (14336, 4096)]:
        for tokens in [1, 2, 4, 8, 16, 32, 64, 512, 2048]:
            x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
            copies = max(2, min(64, -(-ROTATED // (rows * cols * 2))))
            weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
                       for _ in range(copies)]
            time = microseconds(weights, lambda w: torch.nn.functional.linear(x, w))
            print(f"| cuBLAS bf16 | {rows} x {cols} | {tokens} | {time:.2f} | "
                  f"{rows * cols * 2 / time / 1000:.0f} |", flush=True)
            if tokens > 64:
                continue
            codes = torch.randint(0, 255, (rows, cols // 2), device="cuda", dtype=torch.uint8)
            levels = torch.full((cols // 128, rows, 2), 0.01, device="cuda", dtype=torch.bfloat16)
            one = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
            bytes_ = one.numel() * 4 + levels.numel() * 2
            copies = max(2, min(64, -(-ROTATED // bytes_)))
            weights = [one.clone() for _ in range(copies)]
            time = microseconds(
                weights, lambda w: torch.ops.aten._weight_int4pack_mm(x, w, 128, levels))
            print(f"| torch int4 g128 | {rows} x {cols} | {tokens} | {time:.2f} | "
                  f"{bytes_ / time / 1000:.0f} |", flush=True)
    return 0


sys.exit(main())
