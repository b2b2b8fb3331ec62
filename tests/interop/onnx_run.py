"""Checks an exported ONNX model and runs it in ONNX Runtime, for tests/interop/onnx_test.cpp.

onnx_run.py check MODEL                     checker with full_check, strict shape inference
onnx_run.py images MODEL INPUT SHAPE OUT    f32 file -> logits as f32 file
onnx_run.py fused MODEL                     operators left after ONNX Runtime's optimizer,
                                            "19 QLinearConv" a line, sorted by name
onnx_run.py stream FILE INPUT SIZE OUT      FILE is a .onnx with inputs input [1, SIZE] and state; rows of
                                            SIZE floats go in one by one, each with the state that
                                            the one before left; OUT gets output and state of each
onnx_run.py each FILE INPUT SHAPE OUT       FILE is a .onnx; images of SHAPE go in one by one
onnx_run.py tokens MODEL IDS STEPS OUT      prompt ids (comma separated), then STEPS greedy
                                            tokens through the cache, one at a time; OUT gets
                                            the logits of every position, IDS are printed
onnx_run.py many LIST                       the same for each line of the file LIST
onnx_run.py padded MODEL IDS IDS OUT        two prompts in one batch, the shorter one padded
                                            on the left, and one more token (3) each; OUT
                                            gets the last logits of both, then both again
onnx_run.py dequantized MODEL VALUE OUT     what DequantizeLinear makes of constants, by the
                                            onnx package's reference evaluator, as f32 file
onnx_run.py genai MODEL IDS STEPS           ONNX Runtime GenAI: the greedy tokens are printed
onnx_run.py genai-text MODEL TEXT STEPS     the same from a text, tokenized by GenAI; ids of
                                            the text, then the tokens
Exit code 77: a package cannot be imported (the reason is printed).
"""
import os
import sys

try:
    import numpy as np
    import onnx
    import onnxruntime
except ImportError as reason:
    print(reason)
    sys.exit(77)


def session(path):
    options = onnxruntime.SessionOptions()
    # Without this, DequantizeLinear + MatMul runs with 8-bit activations: about 1 % error.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if "NIBBLE_ORT_PLAIN" in os.environ:  # the graph as it is written
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(path):
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True,
                                              data_prop=True).graph
    known = {v.name for v in [*graph.value_info, *graph.output]
             if v.type.tensor_type.elem_type and v.type.tensor_type.HasField("shape")}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if unknown:
        sys.exit("no type and shape follow for " + ", ".join(unknown[:5]))


def fused(path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = path + ".optimized"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(path + ".optimized").graph.node]
    os.remove(path + ".optimized")
    for op in sorted(set(ops)):
        print(ops.count(op), op)


def dequantized(path, value, target):
    from onnx.reference import ReferenceEvaluator
    model = onnx.load(path)
    constants = {item.name: item for item in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node
              if node.op_type == "DequantizeLinear"}
    nodes, wanted = [], [value]
    while wanted:
        name = wanted.pop()
        if name in makers:
            nodes.insert(0, makers[name])
            wanted += makers[name].input
    used = {name for node in nodes for name in node.input if name in constants}
    graph = onnx.helper.make_graph(
        nodes, "weights", [], [onnx.helper.make_tensor_value_info(value, 1, None)],
        [constants[name] for name in sorted(used)])
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import,
                                   ir_version=model.ir_version)
    ReferenceEvaluator(alone).run(None, {})[0].astype(np.float32).tofile(target)


def images(path, source, shape, target):
    values = np.fromfile(source, np.float32).reshape([int(d) for d in shape.split(",")])
    model = session(path)
    model.run(None, {model.get_inputs()[0].name: values})[0].astype(np.float32).tofile(target)


def each(path, source, shape, target):
    shape = [int(d) for d in shape.split(",")]
    values = np.fromfile(source, np.float32).reshape([-1, *shape])
    model = session(path)
    item = model.get_inputs()[0]
    kind = np.float16 if "float16" in item.type else np.float32
    rows = [model.run(None, {item.name: value[None].astype(kind)})[0].reshape(-1)
            for value in values]
    np.array(rows).astype(np.float32).tofile(target)


def stream(path, source, size, target):
    values = np.fromfile(source, np.float32).reshape([-1, 1, int(size)])
    model = session(path)
    names = {item.name for item in model.get_inputs()}
    feed = {"state": np.zeros([2, 1, 128], np.float32)}
    if "sr" in names:
        feed["sr"] = np.array(16000, np.int64)
    rows = []
    for value in values:
        output, feed["state"] = model.run(["output", "stateN"], {"input": value, **feed})
        rows.append(np.concatenate([output.reshape(-1), feed["state"].reshape(-1)]))
    np.array(rows).astype(np.float32).tofile(target)


class Decoder:
    """A batch in one session: feeds new tokens, the mask and positions of all, and the cache."""

    def __init__(self, path, batch):
        self.model = session(path)
        self.names = [item.name for item in self.model.get_outputs()]
        self.inputs = {item.name for item in self.model.get_inputs()}
        self.mask = np.zeros([batch, 0], np.int64)
        self.past = {item.name: np.zeros([batch, item.shape[1], 0, item.shape[3]], np.float32)
                     for item in self.model.get_inputs() if item.name.startswith("past")}

    def __call__(self, ids, mask):
        self.mask = np.concatenate([self.mask, np.array(mask, np.int64)], 1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -len(ids[0]):]
        feed = {"input_ids": np.array(ids, np.int64), "attention_mask": self.mask,
                "position_ids": positions}
        feed = {name: feed[name] for name in feed if name in self.inputs}
        out = dict(zip(self.names, self.model.run(None, {**feed, **self.past})))
        self.past = {n.replace("present", "past_key_values"): out[n]
                     for n in self.names if n != "logits"}
        return out["logits"]


def numbers(text):
    return [int(i) for i in text.split(",")]


def tokens(path, ids, steps, target):
    decoder = Decoder(path, 1)
    feed = numbers(ids)
    rows, chosen = [], []
    for step in range(int(steps) + 1):
        logits = decoder([feed], [[1] * len(feed)])
        rows.append(logits[0])
        if step < int(steps):
            feed = [int(logits[0, -1].argmax())]
            chosen += feed
    np.concatenate(rows).astype(np.float32).tofile(target)
    print(",".join(str(i) for i in chosen))


def padded(path, first, second, target):
    prompts = [numbers(first), numbers(second)]
    length = max(len(p) for p in prompts)
    decoder = Decoder(path, 2)
    # What stands in a padded place must not matter: 5 is a token like others.
    logits = decoder([[5] * (length - len(p)) + p for p in prompts],
                     [[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    more = decoder([[3], [3]], [[1], [1]])
    np.concatenate([logits[:, -1], more[:, -1]]).astype(np.float32).tofile(target)


def generate(path, steps, prompt_of):
    try:
        import onnxruntime_genai as genai
    except ImportError as reason:
        print(reason)
        sys.exit(77)
    genai.disable_telemetry_events()
    model = genai.Model(path)
    prompt = prompt_of(genai, model)
    options = genai.GeneratorParams(model)
    options.set_search_options(do_sample=False, max_length=len(prompt) + int(steps))
    generator = genai.Generator(model, options)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    print(",".join(str(i) for i in generator.get_sequence(0)[len(prompt):]))


def genai_text(path, text, steps):
    def prompt_of(genai, model):
        ids = genai.Tokenizer(model).encode(text)
        print(",".join(str(i) for i in ids))
        return ids
    generate(path, steps, prompt_of)


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(os.path.join(sys.argv[2], "model.onnx"))
    elif sys.argv[1] == "many":  # a file with the arguments of `tokens`, a model a line
        with open(sys.argv[2]) as lines:
            for line in lines:
                path, *rest = line.split()
                tokens(os.path.join(path, "model.onnx"), *rest)
    elif sys.argv[1] == "fused":
        fused(os.path.join(sys.argv[2], "model.onnx"))
    elif sys.argv[1] == "dequantized":
        dequantized(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:5])
    elif sys.argv[1] == "each":
        each(*sys.argv[2:6])
    elif sys.argv[1] == "stream":
        stream(*sys.argv[2:6])
    elif sys.argv[1] == "padded":
        padded(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:6])
    elif sys.argv[1] == "genai":
        generate(sys.argv[2], sys.argv[4], lambda *_: numbers(sys.argv[3]))
    elif sys.argv[1] == "genai-text":
        genai_text(*sys.argv[2:5])
    elif sys.argv[1] == "images":
        images(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:6])
    else:
        tokens(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:6])
