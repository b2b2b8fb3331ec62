#!/usr/bin/env python3
"""Compares quantized artifacts with another tool's, or with one of ours, sequence by sequence.

    ptq_peers.py PEERS.json PEER MEASUREMENTS.json [MEASUREMENTS.json ...]
    ptq_peers.py BASE/measurements.json MEASUREMENTS.json [MEASUREMENTS.json ...]

PEERS.json maps a name to {"kl": [a number a sequence]}; PEER is one of its names. Each
MEASUREMENTS.json is what nibble quantize or train leaves beside an artifact, measured on the
same sequences in the same order. Prints the mean difference of KL and how much less it is,
1 - KL / KL of the peer, each with a 95 % interval from 10,000 paired bootstrap samples of the
sequences.
"""
import json
import random
import sys


def paired(ours, theirs, samples=10_000):
    differences = [a - b for a, b in zip(ours, theirs)]
    count = len(differences)
    source = random.Random(1)
    means = sorted(sum(source.choices(differences, k=count)) / count for _ in range(samples))
    return sum(differences) / count, means[int(0.025 * samples)], means[int(0.975 * samples)]


def less(ours, theirs, samples=10_000):
    pairs = list(zip(ours, theirs))
    source = random.Random(1)

    def gain(chosen):
        return 1 - sum(a for a, _ in chosen) / sum(b for _, b in chosen)

    gains = sorted(gain(source.choices(pairs, k=len(pairs))) for _ in range(samples))
    return gain(pairs), gains[int(0.025 * samples)], gains[int(0.975 * samples)]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    base = json.load(open(sys.argv[1]))
    name, paths = sys.argv[1], sys.argv[2:]
    theirs = base.get("sequence_kl")
    if not theirs:
        name, paths = sys.argv[2], sys.argv[3:]
        if name not in base:
            sys.exit(f"PEER must be one of {', '.join(sorted(base))}; found {name}")
        theirs = base[name]["kl"]
    if not paths:
        sys.exit(__doc__)
    for path in paths:
        measured = json.load(open(path))
        ours = measured.get("sequence_kl")
        if not ours or len(ours) != len(theirs):
            sys.exit(f"{path}: {len(theirs)} KL values are required; found "
                     f"{len(ours) if ours else 'none'}; evaluate on the peer's sequences")
        mean, low, high = paired(ours, theirs)
        gain, least, most = less(ours, theirs)
        mine, their = sum(ours) / len(ours), sum(theirs) / len(theirs)
        print(f"{path}: KL {mine:.6f} against {their:.6f} of {name}, less by {gain:.3f} "
              f"[{least:.3f}, {most:.3f}], difference {mean:+.6f} [{low:+.6f}, {high:+.6f}], "
              f"{measured.get('quantized_bits_per_weight', float('nan')):.3f} bits a weight")


if __name__ == "__main__":
    main()
