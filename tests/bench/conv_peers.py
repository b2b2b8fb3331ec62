"""Times int8 3x3 convolutions of ResNet-20 and ResNet-50 beside ONNX Runtime's QLinearConv.

    tests/bench/conv_peers.py build/release/tests/linear_bench [--rounds 5]

One thread, in turns; seconds of CPU, so that other work on the machine counts little. Both
take uint8 codes and int8 weights with a scale a channel and round to uint8 codes.
"""
import argparse
import json
import statistics
import subprocess
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("bench")
parser.add_argument("--rounds", type=int, default=5)
options = parser.parse_args()
SHAPES = [(16, 32), (32, 16), (64, 8), (64, 56), (128, 28), (256, 14), (512, 7)]


def session_of(channels, size):
    random = np.random.default_rng(1)
    shape = [1, channels, size, size]
    constants = {
        "s_x": np.float32(0.02), "z_x": np.uint8(0),
        "w": random.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8),
        "s_w": random.uniform(0.001, 0.002, channels).astype(np.float32),
        "z_w": np.zeros(channels, np.int8), "s_y": np.float32(0.05), "z_y": np.uint8(0)}
    node = helper.make_node("QLinearConv", ["x", "s_x", "z_x", "w", "s_w", "z_w", "s_y", "z_y"],
                            ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings,
                                           providers=["CPUExecutionProvider"])
    # A bound input and output: the Python around a call stays small.
    binding = session.io_binding()
    binding.bind_cpu_input("x", random.integers(0, 256, shape).astype(np.uint8))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def seconds_of(call):
    calls, start = 0, time.thread_time()
    while time.thread_time() - start < 0.05:
        call()
        calls += 1
    return (time.thread_time() - start) / calls


def nibble(channels, size):
    out = subprocess.run(
        [options.bench, f"--benchmark_filter=conv2d_s8.*/{channels}x{size}x{size}$",
         "--benchmark_min_time=0.05", "--benchmark_format=json"],
        check=True, capture_output=True, text=True).stdout
    best = json.loads(out)["benchmarks"][0]  # the table's first row is the best
    return best["name"].split("/")[0], best["cpu_time"] * 1e-6


print(f"ONNX Runtime {onnxruntime.__version__}, 1 thread")
for channels, size in SHAPES:
    call = session_of(channels, size)
    call()
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(seconds_of(call))
        row, seconds = nibble(channels, size)
        ours.append(seconds)
    a, b = statistics.median(ours), statistics.median(theirs)
    operations = 2e-9 * channels * channels * 9 * size * size
    print(f"{channels}x{size}x{size}: {row} {1e6 * a:.1f} us ({operations / a:.0f} GOP/s), "
          f"QLinearConv {1e6 * b:.1f} us ({operations / b:.0f} GOP/s); {b / a:.2f}x", flush=True)
