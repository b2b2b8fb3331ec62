#!/usr/bin/env python3
"""Quantizes a model by every method that the peers have, at each width, and compares.

    ptq_table.py NIBBLE MODEL PEERS.json WORK [--threads N] [--only TEXT]

MODEL holds calibration_tokens.safetensors and evaluation_tokens.safetensors. PEERS.json maps a
peer's row to {"kl": [a number a sequence]} on the same evaluation tokens. WORK gets a folder a
row; a row that is already there is not run again. Prints a table in Markdown: for each row of
ours KL with its 95 % interval, bits a weight of the quantized layers, seconds, and beside each
peer of the same method and width the mean difference with a 95 % interval from 10,000 paired
bootstrap samples of the sequences: below 0 where ours is better.
"""
import argparse
import json
import pathlib
import subprocess
import sys

from ptq_peers import paired

ASYM = ["symmetric=false"]


def width(bits, group):
    return [f"bits={bits}", f"group={group}"]


def mse(settings):
    return settings + ["scale_rule.kind=mse"]


# (name, recipe, settings, the peers' rows of the same method and width)
ROWS = [
    ("rtn w4 g128 sym", "w4a16-rtn", width(4, 128), ["llmc_rtn_4g128_sym"]),
    ("rtn w4 g128 asym", "w4a16-rtn", width(4, 128) + ASYM,
     ["llmc_rtn_4g128_asym", "tao_tinygemm_4g128"]),
    ("rtn w4 g32 sym", "w4a16-rtn", width(4, 32), ["llmc_rtn_4g32_sym"]),
    ("rtn w4 g32 asym", "w4a16-rtn", width(4, 32) + ASYM, ["llmc_rtn_4g32_asym"]),
    ("rtn w4 g32 minima", "w4a16-rtn", ["weight=uint4/g32@f16+m/g32@f16"],
     ["tao_tinygemm_4g32"]),
    ("rtn w3 g128 sym", "w4a16-rtn", width(3, 128), ["llmc_rtn_3g128_sym"]),
    ("rtn w3 g128 asym", "w4a16-rtn", width(3, 128) + ASYM, ["llmc_rtn_3g128_asym"]),
    ("rtn w2 g32 sym", "w4a16-rtn", width(2, 32), ["llmc_rtn_2g32_sym"]),
    ("rtn w2 g32 asym", "w4a16-rtn", width(2, 32) + ASYM + ["scale_rule.kind=absmax"],
     ["llmc_rtn_2g32_asym"]),
    ("rtn NF4 block 64", "w4a16-rtn", ["weight=nf4/f64@f32"], ["bnb_nf4_64"]),
    ("hqq w4 g128", "w4a16-hqq", ["weight=uint4/g128@f16+m/g128@f16"],
     ["hqq_4g128", "tao_hqq_4g128"]),
    ("hqq w4 g32", "w4a16-hqq", ["weight=uint4/g32@f16+m/g32@f16"],
     ["hqq_4g32", "tao_hqq_4g32"]),
    ("hqq w3 g128", "w4a16-hqq", ["weight=uint3/g128@f16+m/g128@f16"], ["hqq_3g128"]),
    ("hqq w2 g32", "w4a16-hqq", ["weight=uint2/g32@f16+m/g32@f16"], ["hqq_2g32"]),
    ("rtn w8a8", "w8a8-dynamic", [], ["llmc_w8a8_rtn"]),
    ("smoothquant w8a8", "w8a8-smoothquant", [], ["llmc_w8a8_smooth_rtn"]),
    ("awq w4 g128 asym", "w4a16-awq", width(4, 128), ["llmc_awq-bf16_4g128_asym"]),
    ("gptq w4 g128 sym", "w4a16-gptq", width(4, 128),
     ["llmc_gptq-weight_4g128_sym", "gm_desc_act_4g128_sym", "gm_default-t1_4g128_sym"]),
    ("gptq w4 g128 asym", "w4a16-gptq", width(4, 128) + ASYM,
     ["llmc_gptq_4g128_asym", "gm_default_4g128_asym", "ar_4g128_sym"]),
    ("gptq w4 g32 sym", "w4a16-gptq", width(4, 32),
     ["llmc_gptq_4g32_sym", "gm_default_4g32_sym"]),
    ("gptq w4 g32 asym", "w4a16-gptq", width(4, 32) + ASYM, ["llmc_gptq_4g32_asym"]),
    ("gptq w3 g128 sym", "w4a16-gptq", mse(width(3, 128)),
     ["llmc_gptq_3g128_sym", "gm_default_3g128_sym"]),
    ("gptq w2 g32 asym", "w4a16-gptq", mse(width(2, 32) + ASYM),
     ["llmc_gptq_2g32_asym", "gm_default_2g32_asym"]),
    ("autoround w4 g128 sym", "w4a16-autoround", width(4, 128), ["ar_4g128_sym"]),
    ("autoround w4 g32 sym", "w4a16-autoround", width(4, 32), ["ar_4g32_sym"]),
    ("autoround w3 g128 sym", "w4a16-autoround", width(3, 128), ["ar_3g128_sym"]),
    ("autoround w2 g32 sym", "w4a16-autoround", width(2, 32), ["ar_2g32_sym"]),
    ("autoround w2 g32 asym", "w4a16-autoround", width(2, 32) + ASYM, ["ar_2g32_asym"]),
]


def quantize(arguments, folder, recipe, settings):
    model = pathlib.Path(arguments.model)
    command = [arguments.nibble, "quantize", str(model), "--recipe", recipe, "--evaluation",
               str(model / "evaluation_tokens.safetensors"), "--set",
               "evaluation.sequences=64", "--threads", str(arguments.threads), "--output",
               str(folder)]
    if recipe not in ("w4a16-rtn", "w4a16-hqq", "w8a8-dynamic"):
        command += ["--calibration", str(model / "calibration_tokens.safetensors")]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command + ["--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-600:]}")
    (folder / "run.json").write_text(done.stdout, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("peers")
    parser.add_argument("work")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    arguments = parser.parse_args()
    with open(arguments.peers, encoding="utf-8") as file:
        peers = json.load(file)
    print("| method, width | bits | KL | seconds | peer: its KL, ours less its |\n|---|---|---|---|---|")
    for name, recipe, settings, rivals in ROWS:
        if arguments.only not in name:
            continue
        folder = pathlib.Path(arguments.work) / name.replace(" ", "-")
        if not (folder / "run.json").exists():
            quantize(arguments, folder, recipe, settings)
        with open(folder / "measurements.json", encoding="utf-8") as file:
            measured = json.load(file)
        with open(folder / "run.json", encoding="utf-8") as file:
            seconds = json.load(file)["calibration_seconds"]
        ours = measured["sequence_kl"]
        beside = []
        for rival in rivals:
            theirs = peers[rival]["kl"]
            mean, low, high = paired(ours, theirs)
            beside.append(f"{rival}: {sum(theirs) / len(theirs):.6f}, {mean:+.6f} "
                          f"[{low:+.6f}, {high:+.6f}]")
        print(f"| {name} | {measured['quantized_bits_per_weight']:.3f} | "
              f"{sum(ours) / len(ours):.6f} | {seconds:.0f} | "
              f"{'; '.join(beside)} |", flush=True)


if __name__ == "__main__":
    main()
