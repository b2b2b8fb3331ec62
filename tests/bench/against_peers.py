"""Linear layers of low-precision weights: nibble beside the peers that are installed, in turns.

against_peers.py NIBBLE [--shape 4096x4096] [--threads 1] [--tokens 1,8,512] [--rounds 5]
                 [--working-set BYTES] [--ggml FOLDER] [--peers TEXT]

A round times each once, one after the other, so that a slow minute of the machine hits all;
medians over the rounds and how far the rounds spread are printed, as weight bytes a second
(decode), GFLOP/s, and the ratio of medians to nibble's. One thread is timed by CPU time on both
sides, so that other work on the machine counts little; several by the clock on both. Decode goes
through different weights, together the working set (default: 2.25 GiB of different bytes; ONNX
Runtime shares prepacked weights of equal content, so each is random); more than 8 tokens stay with
one weight. Weight bytes are codes and scales alike for all: bits / 8 of each weight, and two bytes
of scale a group. The CPU and the level of nibble's kernels come first.

Error: max |y - exact| / max |exact| of one random token, exact in float64 from float activations
and the dequantized weight.

Peers: ONNX Runtime MatMulNBits (accuracy levels 1: float, 4: int8 activations), torch's int4pack,
_int_mm and bfloat16 product, and with --ggml, the folder of a built libggml.so, ggml_mul_mat of
Q4_0 and Q8_0 weights in the buffer that its CPU backend chooses for them (repacked where it can).
One that cannot be loaded is left out, with the reason.
"""
import argparse
import json
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("nibble")
parser.add_argument("--shape", default="4096x4096")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--tokens", default="1,8,512")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--working-set", type=int, default=9 << 28)
parser.add_argument("--peers", default="", help="those whose name has TEXT in it")
parser.add_argument("--ggml", help="folder of libggml.so, libggml-base.so and libggml-cpu.so")
options = parser.parse_args()
N, K = (int(n) for n in options.shape.split("x"))

import numpy as np  # noqa: E402

random = np.random.default_rng(1)


def copies(bytes_each, tokens):
    return -(-options.working_set // bytes_each) if tokens <= 8 else 1


def weight_bytes(bits, group):
    return N * K * bits // 8 + (2 * N * (K // group) if group else 4 * N)


# As nibble times itself: one thread by CPU time, which is the whole process's here, so that a
# peer's other threads are not forgotten; several by the clock.
clock = time.process_time if options.threads == 1 else time.perf_counter


def seconds_of(call, count):
    """Of one weight: `count` of them a call."""
    start, calls = clock(), 0
    while calls == 0 or clock() - start < 0.2:
        call()
        calls += 1
    return (clock() - start) / calls / count


def error_of(found, exact):
    return float(np.abs(found - exact).max() / np.abs(exact).max())


class OnnxRuntime:
    def __init__(self, group, level):
        self.name = f"ONNX Runtime MatMulNBits g{group} level {level}"
        self.bits, self.group, self.level = 4, group, level
        self.like = (f"int4/g{group}@f16", "s8" if level == 4 else "f32")

    def prepare(self, tokens):
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        count = copies(weight_bytes(4, self.group), tokens)
        nodes, weights = [], []
        blocks = K // self.group
        for i in range(count):
            codes = random.integers(0, 256, (N, blocks, self.group // 2), np.uint8)
            scales = random.uniform(0.001, 0.01, (N * blocks,)).astype(np.float32)
            if i == 0:
                self.codes, self.scales = codes, scales
            weights += [numpy_helper.from_array(codes, f"w{i}"),
                        numpy_helper.from_array(scales, f"s{i}")]
            nodes.append(helper.make_node(
                "MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", K=K,
                N=N, bits=4, block_size=self.group, accuracy_level=self.level))
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, K])],
            [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [tokens, N])
             for i in range(count)], weights)
        model = helper.make_model(graph, opset_imports=[
            helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        import os
        import tempfile
        with tempfile.TemporaryDirectory() as folder:  # more than protobuf's 2 GiB in all
            import onnx
            path = os.path.join(folder, "m.onnx")
            onnx.save(model, path, save_as_external_data=True, location="m.data")
            del model, graph, weights
            session = onnxruntime.InferenceSession(path, settings,
                                                   providers=["CPUExecutionProvider"])
        x = random.standard_normal((tokens, K)).astype(np.float32)
        low, high = self.codes & 15, self.codes >> 4
        q = np.stack([low, high], -1).reshape(N, blocks, self.group).astype(np.float64) - 8
        exact = x[:1].astype(np.float64) @ (
            q * self.scales.reshape(N, blocks, 1).astype(np.float64)).reshape(N, K).T
        self.error = error_of(session.run(["y0"], {"x": x})[0][:1], exact)
        return lambda: session.run(None, {"x": x}), count


class TorchInt4:
    name = "torch int4pack g128, bf16"
    bits, group, like = 4, 128, ("int4/g128@f16", "f32")

    def prepare(self, tokens):
        import torch

        torch.set_num_threads(options.threads)
        count = copies(weight_bytes(4, 128), tokens)
        layers = []
        for i in range(count):
            codes = torch.randint(0, 16, (N, K), dtype=torch.int32)
            scales = torch.rand(K // 128, N, 2).to(torch.bfloat16) * 0.01
            scales[..., 1] = 0
            if i == 0:
                first, scale = codes, scales
            layers.append((torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2), scales))
        x = torch.randn(tokens, K).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        w = (first.double() - 8) * scale[..., 0].double().T.repeat_interleave(128, 1)
        self.error = error_of(product(x[:1], layers[0][0], 128, scale).double().numpy(),
                              (x[:1].double() @ w.T).numpy())

        def call():
            for packed, s in layers:
                product(x, packed, 128, s)
        return call, count


class TorchBf16:
    name = "torch bf16"
    bits, group, like = 16, 0, ("bf16", "f32")

    def prepare(self, tokens):
        import torch

        torch.set_num_threads(options.threads)
        count = copies(2 * N * K, tokens)
        layers = [torch.randn(N, K).to(torch.bfloat16) for _ in range(count)]
        x = torch.randn(tokens, K).to(torch.bfloat16)
        self.error = error_of((x[:1] @ layers[0].T).double().numpy(),
                              (x[:1].double() @ layers[0].double().T).numpy())

        def call():
            for layer in layers:
                torch.nn.functional.linear(x, layer)
        return call, count


class TorchInt8:
    name = "torch _int_mm (products alone)"
    bits, group, like = 8, 0, ("int8n/r@f32", "s8")

    def prepare(self, tokens):
        import torch

        torch.set_num_threads(options.threads)
        count = copies(N * K, tokens)
        layers = [torch.randint(-127, 128, (N, K), dtype=torch.int8) for _ in range(count)]
        x = torch.randint(-127, 128, (tokens, K), dtype=torch.int8)
        self.error = 0.0

        def call():
            for layer in layers:
                torch._int_mm(x, layer.T)
        return call, count


class Ggml:
    """Through the C API of ggml.h and ggml-backend.h."""

    def __init__(self, type_name):
        self.name = f"ggml {type_name}"
        self.type, self.bits = (2, 4) if type_name == "Q4_0" else (8, 8)
        self.group = 32
        self.like = ("int4/g32@f16" if self.bits == 4 else "int8n/r@f32", "s8")

    def weight(self):
        """Blocks of 32 as the file has them, and their values."""
        bytes_each = 16 if self.bits == 4 else 32
        block = np.dtype([("d", "<f2"), ("q", "u1", bytes_each)])
        w = np.empty((N, K // 32), block)
        w["d"] = random.uniform(0.001, 0.01, w.shape)
        w["q"] = random.integers(0, 256, (*w.shape, bytes_each), np.uint8)
        if self.bits == 8:
            return w, w["q"].view(np.int8), w["d"]
        return w, np.concatenate([w["q"] & 15, w["q"] >> 4], -1).astype(np.int8) - 8, w["d"]

    def prepare(self, tokens):
        import ctypes
        import os

        for part in ("base", "cpu", ""):
            path = os.path.join(options.ggml, f"libggml{'-' + part if part else ''}.so")
            library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t

        class InitParams(ctypes.Structure):
            _fields_ = [("mem_size", size), ("mem_buffer", pointer), ("no_alloc", ctypes.c_bool)]

        def function(name, result, *arguments):
            f = getattr(library, name)
            f.restype, f.argtypes = result, arguments
            return f

        init = function("ggml_init", pointer, InitParams)
        new_2d = function("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64,
                          ctypes.c_int64)
        nbytes = function("ggml_nbytes", size, pointer)
        mul_mat = function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        backend = function("ggml_backend_cpu_init", pointer)()
        function("ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int)(
            backend, options.threads)
        device = function("ggml_backend_get_device", pointer, pointer)(backend)
        registry = function("ggml_backend_dev_backend_reg", pointer, pointer)(device)
        extra = function("ggml_backend_reg_get_proc_address", pointer, pointer,
                         ctypes.c_char_p)(registry, b"ggml_backend_dev_get_extra_bufts")
        buft_name = function("ggml_backend_buft_name", ctypes.c_char_p, pointer)
        types = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(extra)(device)
        supports = function("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
        alloc = function("ggml_backend_buft_alloc_buffer", pointer, pointer, size)
        base_of = function("ggml_backend_buffer_get_base", pointer, pointer)
        place = function("ggml_backend_tensor_alloc", ctypes.c_int, pointer, pointer, pointer)
        put = function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
        get = function("ggml_backend_tensor_get", None, pointer, pointer, size, size)

        def put_array(tensor, array):
            put(tensor, array.ctypes.data, 0, array.nbytes)

        count = copies(weight_bytes(self.bits, 32), tokens)
        weights = init(InitParams(64 << 20, None, True))
        values = init(InitParams(64 << 20, None, True))
        x = new_2d(values, 0, K, tokens)
        plain = function("ggml_backend_cpu_buffer_type", pointer)()
        wanted, i = plain, 0
        while types and types[i]:  # the first that takes a product of this type
            trial_context = init(InitParams(1 << 20, None, True))
            trial = new_2d(trial_context, self.type, K, N)
            buffer = alloc(types[i], nbytes(trial) + 4096)
            place(buffer, trial, base_of(buffer))
            if supports(device, mul_mat(trial_context, trial, x)):
                wanted = types[i]
                break
            i += 1
        self.name += f" ({buft_name(wanted).decode()})"
        made = [new_2d(weights, self.type, K, N) for _ in range(count)]
        each = (nbytes(made[0]) + 4095) // 4096 * 4096
        buffer = alloc(wanted, each * count)
        for i, tensor in enumerate(made):
            place(buffer, tensor, base_of(buffer) + each * i)
            blocks, codes, scales = self.weight()
            if i == 0:
                first = (codes.astype(np.float64) * scales[..., None]).reshape(N, K)
            put_array(tensor, blocks)
        graph = function("ggml_new_graph_custom", pointer, pointer, size, ctypes.c_bool)(
            values, count + 16, False)
        add = function("ggml_build_forward_expand", None, pointer, pointer)
        outputs = [mul_mat(values, tensor, x) for tensor in made]
        for y in outputs:
            add(graph, y)
        function("ggml_backend_alloc_ctx_tensors", pointer, pointer, pointer)(values, backend)
        inputs = random.standard_normal((tokens, K)).astype(np.float32)
        put_array(x, inputs)
        compute = function("ggml_backend_graph_compute", ctypes.c_int, pointer, pointer)
        assert compute(backend, graph) == 0
        found = np.empty((tokens, N), np.float32)
        get(outputs[0], found.ctypes.data, 0, found.nbytes)
        self.error = error_of(found[:1], inputs[:1].astype(np.float64) @ first.T)
        return lambda: compute(backend, graph), count


machine = None  # nibble's name for it, once known


def nibble(scheme, activation, tokens):
    global machine
    out = subprocess.run(
        [options.nibble, "bench", "--kernels", "--shape", options.shape, "--threads",
         str(options.threads), "--working-set", str(options.working_set), "--repeats", "1",
         "--filter", f"{scheme} {activation} {tokens}", "--json"],
        check=True, capture_output=True, text=True).stdout
    report = json.loads(out)
    if machine is None:
        machine = f"{report['cpu']}, {report['level']}"
        print(f"on {machine}, {options.threads} threads timed by "
              f"{'CPU time' if options.threads == 1 else 'the clock'}, {N}x{K}, decode over "
              f"{options.working_set / 2**30:.2f} GiB of different weights", flush=True)
    found = [c for c in report["cases"] if c["tokens"] == tokens]
    return 2.0 * N * K * tokens / found[0]["operations_per_second"]["median"], found[0]["error"]


def rate(seconds, bits, group, tokens):
    gflops = 2e-9 * N * K * tokens / seconds
    return (f"{weight_bytes(bits, group) / seconds / 1e9:.1f} GB/s" if tokens == 1
            else f"{gflops:.0f} GFLOP/s")


for tokens in (int(t) for t in options.tokens.split(",")):
    for peer in (OnnxRuntime(32, 4), OnnxRuntime(128, 4), OnnxRuntime(32, 1), TorchInt4(),
                 TorchInt8(), TorchBf16(),
                 *([Ggml("Q4_0"), Ggml("Q8_0")] if options.ggml else [])):
        if options.peers not in peer.name:
            continue
        try:
            call, count = peer.prepare(tokens)
        except Exception as reason:  # absent, or too old for this operator
            print(f"{tokens} tokens, {peer.name}: left out ({str(reason).splitlines()[0]})")
            continue
        call()
        theirs, ours, error = [], [], 0
        for _ in range(options.rounds):
            theirs.append(seconds_of(call, count))
            seconds, error = nibble(*peer.like, tokens)
            ours.append(seconds)
        a, b = statistics.median(ours), statistics.median(theirs)
        spread = [f"{min(s) / statistics.median(s):.2f} to {max(s) / statistics.median(s):.2f}"
                  for s in (ours, theirs)]
        print(f"{tokens} tokens, {options.threads} threads: nibble {' '.join(peer.like)} "
              f"{rate(a, peer.bits, peer.group, tokens)} (times {spread[0]}), error {error:.1e}; "
              f"{peer.name} {rate(b, peer.bits, peer.group, tokens)} (times {spread[1]}), error "
              f"{peer.error:.1e}; {b / a:.2f}x", flush=True)
        del call
