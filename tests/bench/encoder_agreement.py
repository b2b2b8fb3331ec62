"""How far the sentence embeddings of an artifact's ONNX graph are from nibble's own.

encoder_agreement.py NIBBLE ARTIFACT TEXT [--sentences 200]

The artifact is exported twice, as it is and with --float64; ONNX Runtime embeds the first
sentences of TEXT with both, one a call. nibble embeds them with the best kernels of this
machine and with the reference rows, whose sums are float64's. Printed for each pair: how many
sentences have every element within 1e-3 and within 1e-6, the largest difference, 1 - cosine.
"""
import argparse
import os
import subprocess
import tempfile

parser = argparse.ArgumentParser()
for name in ("nibble", "artifact", "text"):
    parser.add_argument(name)
parser.add_argument("--sentences", type=int, default=200)
options = parser.parse_args()

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from sentences import sentence_ids, write_ids  # noqa: E402

ids = sentence_ids(options.artifact, options.text, options.sentences)
folder = tempfile.mkdtemp(prefix="encoder_agreement")
ids_file = os.path.join(folder, "ids.safetensors")
write_ids(ids, ids_file)


def nibble(*arguments):
    subprocess.run([options.nibble, *arguments], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def ours(*flags):
    target = os.path.join(folder, "embeddings.safetensors")
    nibble("embed", options.artifact, "--text", ids_file, "--output", target, "--overwrite", *flags)
    return load_file(target)["embeddings"]


def theirs(*flags):
    target = os.path.join(folder, "onnx")
    nibble("export", options.artifact, "--to", "onnx", "--output", target, "--overwrite", *flags)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.path.join(target, "model.onnx"), settings,
                                           providers=["CPUExecutionProvider"])
    rows = []
    for sentence in ids:
        feed = {"input_ids": np.array([sentence], np.int64)}
        feed["attention_mask"] = np.ones_like(feed["input_ids"])
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        rows.append(session.run(None, feed)[0][0])
    return np.stack(rows)


def compare(name, a, b):
    apart = np.abs(a - b).max(1)
    cosine = (a.astype(np.float64) * b).sum(1) / np.sqrt(
        (a.astype(np.float64) ** 2).sum(1) * (b.astype(np.float64) ** 2).sum(1))
    print(f"{name}: of {len(a)} sentences {int((apart <= 1e-3).sum())} within 1e-3, "
          f"{int((apart <= 1e-6).sum())} within 1e-6; largest difference {apart.max():.2g}; "
          f"1 - cosine mean {(1 - cosine).mean():.2g}, largest {(1 - cosine).max():.2g}")


fast, exact = ours(), ours("--cpu", "reference")
graph, graph64 = theirs(), theirs("--float64")
compare("float64 graph and reference rows", graph64, exact)
compare("usual graph and best rows", graph, fast)
compare("usual graph and float64 graph, both in ONNX Runtime", graph, graph64)
compare("best rows and reference rows, both in nibble", fast, exact)
