"""The other side of the tests of quantized Hugging Face directories.

    quantized_run.py logits IDS MODEL..   MODEL/theirs.f32: transformers' logits of the ids in IDS
    quantized_run.py weights MODEL..      MODEL/theirs.safetensors: every quantized weight as float32,
                                          by compressed-tensors, its AutoAWQ converter or bitsandbytes;
                                          GPTQ by numpy, from the format's definition
Both read every tensor with the safetensors package. Exits 77, saying why, where a package is missing.
"""
import json
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
try:
    import accelerate  # noqa: F401: transformers loads bitsandbytes' weights with it
    import bitsandbytes.functional as bnb
    import compressed_tensors.compressors  # noqa: F401: registers them
    import numpy as np
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors import safe_open
    from safetensors.torch import save_file
except ImportError as reason:
    print(reason)
    sys.exit(77)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def tensors_of(path):
    tensors = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors") and not name.startswith("theirs"):
            with safe_open(os.path.join(path, name), "pt") as file:
                for key in file.keys():
                    tensors[key] = file.get_tensor(key)
    return tensors


def decompress(module, form, scheme, tensors):
    """One module by the library's own code; float32 scales, so that nothing is rounded."""
    parts = {name[len(module) + 1:]: tensor for name, tensor in tensors.items()
             if name.startswith(module + ".weight") or name == module + ".weight"}
    if not form.endswith("fp4-pack-quantized"):
        parts["weight_scale"] = parts["weight_scale"].float()
    return BaseCompressor.get_value_from_registry(form).decompress(parts, scheme)["weight"].float()


def compressed_tensors_weights(config, tensors):
    groups = [(group, QuantizationScheme(targets=group["targets"], weights=group["weights"]))
              for group in config["config_groups"].values()]
    weights = {}
    for name in tensors:
        module, end = name.rsplit(".", 1)
        if end != "weight_scale":
            continue
        group, scheme = next((g, s) for g, s in groups
                             if module in g["targets"] or g["targets"] == ["Linear"])
        weights[module + ".weight"] = decompress(module, group["format"], scheme, tensors)
    return weights


def awq_weights(config, tensors):
    converter = AutoAWQConverter(group_size=config["group_size"], version=config["version"], ignore=[])
    packed = converter.process(dict(tensors))
    group = converter._build_quant_config().config_groups["config_group_0"]
    return {name[:-len("_scale")]: decompress(name[:-len(".weight_scale")], "pack-quantized", group, packed)
            for name in packed if name.endswith(".weight_scale")}


def stream(words, bits, count):
    """The first `count` codes of each row of a dense stream of 32-bit words."""
    bytes_ = np.ascontiguousarray(words).view(np.uint8)
    flat = np.unpackbits(bytes_, axis=1, bitorder="little")[:, :count * bits]
    return (flat.reshape(len(words), count, bits) << np.arange(bits)).sum(2)


def gptq_weights(config, tensors):
    weights = {}
    for name in [n for n in tensors if n.endswith(".qweight")]:
        module = name[:-len(".qweight")]
        part = {end: tensors[module + "." + end].numpy() for end in ("qweight", "qzeros", "scales", "g_idx")}
        own = [v for k, v in config.get("dynamic", {}).items()
               if k.startswith("+:") and k[3:-1].replace("\\", "") == module]
        bits = (own or [config])[0]["bits"]
        rows = part["qweight"].shape[1]
        codes = stream(part["qweight"].T, bits, len(part["g_idx"]))  # [N, K]
        zeros = stream(part["qzeros"], bits, rows)                   # [G, N]
        if config["checkpoint_format"] == "gptq":
            zeros = zeros + 1
        group = part["g_idx"]
        value = (codes - zeros.T[:, group]).astype(np.float32) * part["scales"].astype(np.float32).T[:, group]
        weights[module + ".weight"] = torch.from_numpy(value)
    return weights


def bitsandbytes_weights(config, tensors):
    weights = {}
    for name in [n for n in tensors if n.endswith(".SCB")]:
        module = name[:-len(".SCB")]
        weights[module + ".weight"] = bnb.int8_vectorwise_dequant(tensors[module + ".weight"], tensors[name])
    for name in [n for n in tensors if ".quant_state.bitsandbytes__" in n]:
        weight = name.split(".quant_state.")[0]
        state = {k[len(weight) + 1:]: v for k, v in tensors.items() if k.startswith(weight + ".")}
        state = bnb.QuantState.from_dict(state, device=torch.device("cpu"))
        state.dtype = torch.float32
        weights[weight] = bnb.dequantize_4bit(tensors[weight], state).float()
    return weights


WEIGHTS = {"compressed-tensors": compressed_tensors_weights, "awq": awq_weights, "gptq": gptq_weights,
           "bitsandbytes": bitsandbytes_weights}


def weights(*models):
    for path in models:
        with open(os.path.join(path, "config.json")) as file:
            config = json.load(file)["quantization_config"]
        found = WEIGHTS[config["quant_method"]](config, tensors_of(path))
        save_file({k: v.contiguous() for k, v in found.items()}, os.path.join(path, "theirs.safetensors"))


def logits(ids, *models):
    ids = torch.from_numpy(np.fromfile(ids, np.int32)).long()[None]
    for path in models:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32).eval()
        for module in model.modules():
            # On a CPU that has AVX512-BF16 bitsandbytes would multiply in bfloat16.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        with torch.no_grad():
            found = model(ids).logits[0].float().numpy()
        found.astype(np.float32).tofile(os.path.join(path, "theirs.f32"))


if __name__ == "__main__":
    {"logits": logits, "weights": weights}[sys.argv[1]](*sys.argv[2:])
