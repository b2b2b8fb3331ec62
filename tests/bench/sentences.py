"""The first sentences of a text as token ids, for the benchmarks of encoders."""
import os
import re

import numpy as np
import tokenizers
from safetensors.numpy import save_file


def sentence_ids(model, text, count):
    """Ids of the first `count` sentences of the file, by MODEL's tokenizer, at most 256 each."""
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    sentences = []
    for line in open(text, encoding="utf-8"):
        sentences += [s for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+", line.strip())
                      if s]
    return [tokenizer.encode(s).ids for s in sentences[:count]]


def write_ids(ids, path):
    """As nibble reads them: int32 input_ids, padded with -1."""
    longest = max(len(i) for i in ids)
    save_file({"input_ids": np.array([i + [-1] * (longest - len(i)) for i in ids], np.int32)}, path)
