"""What a training step costs with quantization in the loop, beside the float step, in turns.

qat_overhead.py NIBBLE MODEL DATA --recipe w4a4-qat [--set KEY=VALUE]... [--steps 20] [--rounds 5] [--threads 2]

Each round runs `nibble train` of the recipe and of `float` once, one after the other, with the
same optimizer, batch and sequence length, and reads the seconds of the steps alone (calibration
and evaluation are left out). The median of the rounds' ratios and its range are printed. Steps
with batch norms in place: --qat-set qat.batch_norm.epochs=E --qat-set train.steps=1 --qat-steps
(theirs + 1).
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

parser = argparse.ArgumentParser()
for name in ("nibble", "model", "data"):
    parser.add_argument(name)
parser.add_argument("--recipe", default="w4a4-qat")
parser.add_argument("--set", action="append", default=[], help="of both runs")
parser.add_argument("--qat-set", action="append", default=[], help="of the quantized run alone")
for name, value in (("steps", 20), ("qat-steps", 0), ("rounds", 5), ("threads", 2)):
    parser.add_argument("--" + name, type=int, default=value)
options = parser.parse_args()

folder = tempfile.mkdtemp(prefix="qat_overhead")


def seconds(recipe, settings, steps):
    arguments = [options.nibble, "train", options.model, "--recipe", recipe,
                 "--data", options.data, "--output", os.path.join(folder, "out"), "--overwrite",
                 "--threads", str(options.threads), "--json"]
    settings = [f"train.steps={options.steps}", "evaluation.images=8", "evaluation.sequences=1",
                *settings, *options.set]
    for setting in settings:
        arguments += ["--set", setting]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["training_seconds"] / steps


if os.path.exists(options.recipe):
    printed = open(options.recipe, encoding="utf-8").read()
else:
    printed = subprocess.run([options.nibble, "recipes", options.recipe], capture_output=True,
                             text=True, check=True).stdout
optimizer = next(line.split()[1] for line in printed.splitlines() if "optimizer:" in line)
batch = next(line.split()[1] for line in printed.splitlines() if line.strip().startswith("batch:"))
same = [f"train.optimizer={optimizer}", f"train.batch={batch}"]
ratios = []
for _ in range(options.rounds):
    quantized = seconds(options.recipe, options.qat_set, options.qat_steps or options.steps)
    plain = seconds("float", same, options.steps)
    ratios.append(quantized / plain)
    print(f"{options.recipe} {quantized * 1e3:.1f} ms a step, float {plain * 1e3:.1f} ms: "
          f"{ratios[-1]:.3f}", flush=True)
print(f"median {statistics.median(ratios):.3f}, range {min(ratios):.3f} to {max(ratios):.3f}")
