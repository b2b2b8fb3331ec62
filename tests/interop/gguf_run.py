"""The other side of the GGUF tests: packages that read GGUF files.

    gguf_run.py values FILE OUT            OUT/<tensor>.f32, dequantized by the gguf package
    gguf_run.py transformers IDS FILE ..   FILE.f32: logits of the ids in the file IDS
    gguf_run.py llama.cpp COUNT PROMPT FILE ..
                                           FILE.txt: the greedy continuation by COUNT tokens
Exits 77, saying why, where a package is missing.
"""
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def values(path, out):
    import gguf
    import numpy as np
    os.makedirs(out, exist_ok=True)
    for tensor in gguf.GGUFReader(path).tensors:
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        floats.astype(np.float32).tofile(os.path.join(out, tensor.name + ".f32"))


def run_transformers(ids, *paths):
    import gguf  # noqa: F401: transformers reads the file with it
    import numpy as np
    import torch
    import transformers
    ids = np.fromfile(ids, np.int32)
    for path in paths:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32,
            attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(ids).long()[None]).logits[0]
        logits.float().numpy().astype(np.float32).tofile(path + ".f32")


def run_llama_cpp(count, prompt, *paths):
    import gpt4all
    for path in paths:
        model = gpt4all.GPT4All(model_name=os.path.basename(path),
                                model_path=os.path.dirname(path), allow_download=False,
                                device="cpu", n_ctx=256, n_threads=1)
        text = model.generate(prompt, max_tokens=int(count), temp=0, top_k=1, n_batch=8,
                              repeat_penalty=1.0)
        model.close()
        with open(path + ".txt", "w") as file:
            file.write(text)


if __name__ == "__main__":
    try:
        {"values": values, "transformers": run_transformers,
         "llama.cpp": run_llama_cpp}[sys.argv[1]](*sys.argv[2:])
    except ImportError as reason:
        print(reason)
        sys.exit(77)
