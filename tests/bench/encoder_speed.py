"""Sentences a second of an encoder: nibble beside ONNX Runtime, in turns.

encoder_speed.py NIBBLE MODEL ARTIFACT TEXT [--sentences 200] [--threads 2] [--rounds 5] [--batch 1]

MODEL is the float checkpoint (a sentence-transformers directory), ARTIFACT what
`nibble quantize MODEL --recipe w8a8-dynamic` made of it. Both get the same token ids, of the
first sentences of TEXT, one sentence a call or --batch (ONNX Runtime: padded to the longest
of a batch). ONNX Runtime runs `nibble export MODEL --to onnx`, the float model, with all its
graph optimizations, and the INT8 graph for comparison. A round times each once, one after the
other, so that a slow minute of the machine hits all; medians and quartiles are printed.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
for name in ("nibble", "model", "artifact", "text"):
    parser.add_argument(name)
for name, value in (("sentences", 200), ("threads", 2), ("rounds", 5), ("batch", 1)):
    parser.add_argument("--" + name, type=int, default=value)
options = parser.parse_args()

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from sentences import sentence_ids, write_ids  # noqa: E402

ids = sentence_ids(options.model, options.text, options.sentences)
folder = tempfile.mkdtemp(prefix="encoder_speed")
ids_file = os.path.join(folder, "ids.safetensors")
write_ids(ids, ids_file)


def exported(model, name):
    target = os.path.join(folder, name)
    subprocess.run([options.nibble, "export", model, "--to", "onnx", "--output", target],
                   check=True, stdout=subprocess.DEVNULL)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    # Its threads would spin beside the other program while that is timed.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(os.path.join(target, "model.onnx"), settings,
                                        providers=["CPUExecutionProvider"])


feeds = []
for first in range(0, len(ids), options.batch):
    part = ids[first:first + options.batch]
    width = max(len(i) for i in part)
    rows = np.array([i + [0] * (width - len(i)) for i in part], np.int64)
    mask = np.array([[1] * len(i) + [0] * (width - len(i)) for i in part], np.int64)
    feeds.append({"input_ids": rows, "attention_mask": mask, "token_type_ids": np.zeros_like(rows)})


def time_session(session):
    start = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return len(ids) / (time.perf_counter() - start)


def time_nibble(model):
    out = subprocess.run(
        [options.nibble, "bench", model, "--text", ids_file, "--repeats", "1", "--json", "--batch",
         str(options.batch), "--threads", str(options.threads)],
        check=True, capture_output=True, text=True).stdout
    return json.loads(out)["sentences_per_second"]


float_session = exported(options.model, "float")
int8_session = exported(options.artifact, "int8")
runs = {"ONNX Runtime float": lambda: time_session(float_session),
        "nibble float": lambda: time_nibble(options.model),
        "nibble w8a8-dynamic": lambda: time_nibble(options.artifact),
        "ONNX Runtime w8a8-dynamic": lambda: time_session(int8_session)}
for session in (float_session, int8_session):
    time_session(session)  # warm; nibble bench warms up by itself
rates = {name: [] for name in runs}
for _ in range(options.rounds):
    for name, run in runs.items():
        rates[name].append(run())
tokens = sum(len(i) for i in ids)
print(f"{len(ids)} sentences, {tokens} tokens, {options.batch} a call, {options.threads} threads, "
      f"{options.rounds} rounds; ONNX Runtime {onnxruntime.__version__}; "
      f"load average {os.getloadavg()[0]:.1f}")
for name, values in rates.items():
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    print(f"{name:28s} {statistics.median(values):8.1f} sentences/s  [{low:.1f}, {high:.1f}]")
