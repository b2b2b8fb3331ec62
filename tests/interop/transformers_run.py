"""The other side of the decoder tests: tiny random checkpoints and logits by transformers.

    transformers_run.py write DIR          every case below, DIR/<case>/ with input_ids.i32, logits.f32
    transformers_run.py logits IDS MODEL.. MODEL/theirs.f32: logits of the ids in the file IDS
Exits 77, saying why, where a package is missing.
"""
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    import numpy as np
    import safetensors.torch
    import torch
    import transformers
except ImportError as reason:
    print(reason)
    sys.exit(77)

SIZE = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0)
LENGTH = 48
# 32 positions: of the 8 pairs of a head one turns often, one in between, six seldom.
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", factor=4.0)


def rope(scaling, theta=10000.0):
    return dict(rope_parameters=dict(scaling, rope_theta=theta))


EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
DEFAULT = rope(dict(rope_type="default"))
# name: model class, fields, and whether config.json is rewritten as transformers 4 spells it
CASES = {
    "llama": ("Llama", DEFAULT, False),
    "llama3": ("Llama", rope(LLAMA3), False),
    "llama3_old": ("Llama", rope(LLAMA3), True),
    "linear": ("Llama", rope(LINEAR), False),
    "linear_old": ("Llama", rope(LINEAR), True),
    "llama_tied": ("Llama", dict(DEFAULT, tie_word_embeddings=True), False),
    "mistral": ("Mistral", dict(DEFAULT, sliding_window=7), False),
    "mistral_null": ("Mistral", dict(DEFAULT, sliding_window=None), False),
    "qwen2": ("Qwen2", rope(dict(rope_type="default"), 1e6), False),
    "qwen2_window": ("Qwen2", dict(DEFAULT, use_sliding_window=True, sliding_window=5,
                                   max_window_layers=1), False),
    "qwen3": ("Qwen3", rope(dict(rope_type="default"), 1e6), False),
    "moe": ("Qwen3Moe", dict(DEFAULT, **EXPERTS, norm_topk_prob=True), False),
    "moe_some": ("Qwen3Moe", dict(DEFAULT, **EXPERTS, norm_topk_prob=False,
                                  decoder_sparse_step=2, mlp_only_layers=[0]), False),
    "moe_fused": ("Qwen3Moe", dict(DEFAULT, **EXPERTS, norm_topk_prob=True), False),
    "qwen3_tied": ("Qwen3", dict(DEFAULT, tie_word_embeddings=True), True),
}


def randomise(model):
    """Weights large enough that every part of the model shows in the logits."""
    random = torch.Generator().manual_seed(7)
    for name, value in sorted(model.named_parameters()):
        if name.endswith("bias"):
            value.data = 0.3 * torch.randn(value.shape, generator=random)
        elif "norm" in name:
            value.data = 1 + 0.3 * torch.randn(value.shape, generator=random)
        else:
            value.data = torch.randn(value.shape, generator=random) * 1.5 * value.shape[-1] ** -0.5


def respell(path):
    """config.json as transformers 4 writes it: rope_theta and rope_scaling."""
    with open(path) as file:
        config = json.load(file)
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    if config["rope_scaling"] and scaling["rope_type"] == "linear":
        config["rope_scaling"] = {"type": "linear", "factor": scaling["factor"]}
    with open(path, "w") as file:
        json.dump(config, file, indent=2)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()[None]).logits[0].float().numpy()


def write(directory):
    ids = (np.arange(LENGTH) * 37 % 89 + 3).astype(np.int32)
    for name, (kind, fields, old) in CASES.items():
        config = getattr(transformers, kind + "Config")(**{**SIZE, **fields})
        config._attn_implementation = "eager"
        model = getattr(transformers, kind + "ForCausalLM")(config).float().eval()
        randomise(model)
        model.tie_weights()
        path = os.path.join(directory, name)
        model.save_pretrained(path)
        if name == "moe_fused":  # as the model holds them: one tensor for all experts
            safetensors.torch.save_file(
                {n: t.contiguous() for n, t in model.state_dict().items()},
                os.path.join(path, "model.safetensors"), {"format": "pt"})
        ids.tofile(os.path.join(path, "input_ids.i32"))
        logits_of(model, ids).astype(np.float32).tofile(os.path.join(path, "logits.f32"))
        if old:
            respell(os.path.join(path, "config.json"))
    print(transformers.__version__)


def logits(ids, *models):
    ids = np.fromfile(ids, np.int32)
    for path in models:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32).eval()
        logits_of(model, ids).astype(np.float32).tofile(os.path.join(path, "theirs.f32"))


if __name__ == "__main__":
    {"write": write, "logits": logits}[sys.argv[1]](*sys.argv[2:])
