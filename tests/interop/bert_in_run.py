"""BERTs of random weights as torch.onnx.export writes them, and ONNX Runtime on them.

bert_in_run.py make DIR KIND...   DIR/KIND/model.onnx for each kind:
                    eager17, sdpa14, sdpa17   a tiny BERT: its attention, the opset (before 17
                                              norms are decomposed)
                    tanh, relu                other activations
                    plain                     without token types
                    sentence                  mean over tokens, normalized
                    minilm                    of all-MiniLM-L6-v2's shape, few words
                    dynamo                    the tiny one by torch's newer exporter; without
                                              onnxscript it is left out, and why is printed
bert_in_run.py run DIR...         DIR/model.onnx on a padded batch; the first output of each
                                  token (or sequence) in turn goes to DIR/out.f32
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

# Of a vocabulary of 61; types of a sequence: three tokens of 0, three of 1, and so on.
IDS = [[(7 * i + 3 * n) % 61 for i in range(n)] for n in (1, 2, 5, 13, 16, 24)]


def make(directory, kinds):
    try:
        import onnx  # noqa: F401  what torch.onnx needs
        import torch
        import transformers
    except ImportError as reason:
        print(reason)
        sys.exit(77)
    import logging
    import warnings
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    class Encoder(torch.nn.Module):
        def __init__(self, bert, kind):
            super().__init__()
            self.bert, self.kind = bert, kind

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            out = self.bert(input_ids=input_ids, attention_mask=attention_mask,
                            token_type_ids=token_type_ids)
            if self.kind != "sentence":
                return out.last_hidden_state, out.pooler_output
            mask = attention_mask.unsqueeze(-1).expand(out.last_hidden_state.size()).float()
            total = torch.sum(out.last_hidden_state * mask, 1)
            mean = total / torch.clamp(mask.sum(1), min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1)

    for seed, kind in enumerate(kinds):
        torch.manual_seed(seed)
        sizes = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                     intermediate_size=80, max_position_embeddings=32, layer_norm_eps=1e-6,
                     initializer_range=0.3)
        if kind == "minilm":
            sizes = dict(vocab_size=997, hidden_size=384, num_hidden_layers=6,
                         num_attention_heads=12, intermediate_size=1536,
                         max_position_embeddings=512, initializer_range=0.05)
        config = transformers.BertConfig(
            hidden_act={"tanh": "gelu_new", "relu": "relu"}.get(kind, "gelu"),
            attn_implementation="eager" if kind in ("eager17", "tanh", "relu") else "sdpa", **sizes)
        bert = transformers.BertModel(config).eval()
        with torch.no_grad():  # transformers starts them at 0 and 1, where they prove nothing
            for _, value in bert.named_parameters():
                if value.dim() == 1:
                    value.add_(0.2 * torch.randn_like(value))
        model = Encoder(bert, kind)
        names = ["input_ids", "attention_mask", "token_type_ids"][:2 if kind == "plain" else 3]
        outputs = ["embedding"] if kind == "sentence" else ["last_hidden_state", "pooler_output"]
        inputs = tuple(torch.ones(2, 7, dtype=torch.long) for _ in names)
        folder = os.path.join(directory, kind)
        os.makedirs(folder)
        path = os.path.join(folder, "model.onnx")
        if kind == "dynamo":
            try:
                import onnxscript  # noqa: F401
            except ImportError as reason:
                print("dynamo:", reason)
                os.rmdir(folder)
                continue
            batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=32)
            torch.onnx.export(model, inputs, path, dynamo=True, input_names=names,
                              output_names=outputs, opset_version=18, external_data=False,
                              dynamic_shapes=[{0: batch, 1: sequence} for _ in names],
                              verbose=False)
            continue
        axes = {name: {0: "batch", 1: "sequence"} for name in names + outputs[:1]}
        if kind == "sentence":
            axes["embedding"] = {0: "batch"}
        torch.onnx.export(model, inputs, path, dynamo=False, input_names=names,
                          output_names=outputs, dynamic_axes=axes,
                          opset_version=14 if kind in ("sdpa14", "tanh") else 17)


def run(directory):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = onnxruntime.InferenceSession(os.path.join(directory, "model.onnx"), options,
                                         providers=["CPUExecutionProvider"])
    longest = max(len(ids) for ids in IDS)
    # What padding holds must not matter: another id than 0.
    feed = {"input_ids": [s + [5] * (longest - len(s)) for s in IDS],
            "attention_mask": [[1] * len(s) + [0] * (longest - len(s)) for s in IDS],
            "token_type_ids": [[i // 3 % 2 for i in range(longest)] for _ in IDS]}
    names = {item.name for item in model.get_inputs()}
    feed = {name: np.array(value, np.int64) for name, value in feed.items() if name in names}
    out = model.run([model.get_outputs()[0].name], feed)[0]
    rows = [out[i][None] if out.ndim == 2 else out[i, :len(ids)] for i, ids in enumerate(IDS)]
    np.concatenate(rows).astype(np.float32).tofile(os.path.join(directory, "out.f32"))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3:])
    else:
        for folder in sys.argv[2:]:
            run(folder)
