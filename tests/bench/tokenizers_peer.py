"""Encoding speed of the packages `tokenizers` and `sentencepiece`, one thread, as
tokenizer_bench.cpp measures nibble's: NIBBLE_TOKENIZERS, NIBBLE_TEXT."""

import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
data = "../shared/data/"
paths = os.environ.get("NIBBLE_TOKENIZERS", ":".join(data + p for p in (
    "tokenizers/hf_tokenizer_json/gpt2_codegen_tokenizer.json",
    "tokenizers/hf_tokenizer_json/phi3_spm_bpe_tokenizer.json", "models/docs14m/tokenizer.json",
    "tokenizers/llama2_tokenizer.model"))).split(":")
with open(os.environ.get("NIBBLE_TEXT", data + "text/tinystories_sample.txt"), encoding="utf-8", newline="") as f:
    text = f.read()
size = len(text.encode())
for path in paths:
    if path.endswith(".model"):
        import sentencepiece
        model = sentencepiece.SentencePieceProcessor(model_file=path)
        encode = model.encode
    else:
        from tokenizers import Tokenizer
        model = Tokenizer.from_file(path)
        model.no_truncation()
        encode = lambda t: model.encode(t, add_special_tokens=False).ids
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        ids = encode(text)
        best = min(best, time.process_time() - start)
    print(f"{path}  {size / best / 1e6:.2f} MB/s  {len(ids)} ids")
