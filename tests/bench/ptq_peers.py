#!/usr/bin/env python3
"""Compares quantized artifacts with another tool's, sequence by sequence.

    ptq_peers.py PEERS.json PEER MEASUREMENTS.json [MEASUREMENTS.json ...]

PEERS.json maps a name to {"kl": [a number a sequence]}; PEER is one of its names. Each
MEASUREMENTS.json is what nibble quantize leaves beside an artifact, measured on the same
sequences in the same order. Prints the mean difference of KL with a 95 % interval from
10,000 paired bootstrap samples of the sequences, and the ratio of the means.
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


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    peers = json.load(open(sys.argv[1]))
    if sys.argv[2] not in peers:
        sys.exit(f"PEER must be one of {', '.join(sorted(peers))}; found {sys.argv[2]}")
    theirs = peers[sys.argv[2]]["kl"]
    for path in sys.argv[3:]:
        measured = json.load(open(path))
        ours = measured.get("sequence_kl")
        if not ours or len(ours) != len(theirs):
            sys.exit(f"{path}: {len(theirs)} KL values are required; found "
                     f"{len(ours) if ours else 'none'}; evaluate on the peer's sequences")
        mean, low, high = paired(ours, theirs)
        mine, their = sum(ours) / len(ours), sum(theirs) / len(theirs)
        print(f"{path}: KL {mine:.6f} against {their:.6f} of {sys.argv[2]}, ratio "
              f"{mine / their:.3f}, difference {mean:+.6f} [{low:+.6f}, {high:+.6f}], "
              f"{measured.get('quantized_bits_per_weight', float('nan')):.3f} bits a weight")


if __name__ == "__main__":
    main()
