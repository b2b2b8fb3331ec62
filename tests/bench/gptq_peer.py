#!/usr/bin/env python3
"""GPTQ's time beside llm-compressor's, on one thread each, in turns.

    gptq_peer.py NIBBLE MODEL TOKENS [--rounds N] [--set KEY=VALUE ...]

MODEL is a Hugging Face directory; TOKENS a safetensors file with input_ids [sequences, length].
Both solve every linear layer but lm_head: 4 bits, groups of 128, symmetric, static act-order.
What is timed is the quantize call alone: no start of an interpreter, no imports, no loading.
--set goes to nibble; gptq.match_float=false, gptq.refine_sweeps=0 and gptq.refine_scales=0 are
the peer's algorithm. Needs llmcompressor; exits 77 without it.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as reason:
    print(reason)
    sys.exit(77)


def peer(model_path, ids):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    recipe = GPTQModifier(targets="Linear", ignore=["lm_head"], scheme="W4A16", actorder="static")
    start = time.time()
    oneshot(model=model, dataset=data, recipe=[recipe], max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids))
    return time.time() - start


def ours(nibble, model_path, tokens, settings):
    with tempfile.TemporaryDirectory() as folder:
        command = [nibble, "quantize", model_path, "--recipe", "w4a16-gptq", "--calibration", tokens, "--threads",
                   "1", "--set", "evaluation.sequences=1", "--output", os.path.join(folder, "made"), "--json"]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return json.loads(done.stdout)["calibration_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    ids = load_file(given.tokens)["input_ids"].long()
    times = [(peer(given.model, ids), ours(given.nibble, given.model, given.tokens, given.set))
             for _ in range(given.rounds)]
    theirs, mine = (statistics.median(column) for column in zip(*times))
    print(f"llm-compressor {theirs:.1f} s, nibble {mine:.1f} s: {theirs / mine:.2f} times as fast")


if __name__ == "__main__":
    main()
