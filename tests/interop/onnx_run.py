"""Checks an exported ONNX model and runs it in ONNX Runtime, for tests/interop/onnx_test.cpp.

onnx_run.py check MODEL                     checker with full_check, strict shape inference
onnx_run.py images MODEL INPUT SHAPE OUT    f32 file -> logits as f32 file
onnx_run.py tokens MODEL IDS STEPS OUT      prompt ids (comma separated), then STEPS greedy
                                            tokens through the cache, one at a time; OUT gets
                                            the logits of every position, IDS are printed
onnx_run.py many LIST                       the same for each line of the file LIST
Exit code 77: onnx or onnxruntime cannot be imported (the reason is printed).
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
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(path):
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True,
                                      data_prop=True)


def images(path, source, shape, target):
    values = np.fromfile(source, np.float32).reshape([int(d) for d in shape.split(",")])
    model = session(path)
    model.run(None, {model.get_inputs()[0].name: values})[0].astype(np.float32).tofile(target)


def tokens(path, ids, steps, target):
    model = session(path)
    past = {}
    for item in model.get_inputs()[1:]:
        past[item.name] = np.zeros([1, item.shape[1], 0, item.shape[3]], np.float32)
    names = [item.name for item in model.get_outputs()]
    feed = [int(i) for i in ids.split(",")]
    rows, chosen = [], []
    for step in range(int(steps) + 1):
        out = dict(zip(names, model.run(None, {"input_ids": np.array([feed], np.int64), **past})))
        rows.append(out["logits"][0])
        past = {n.replace("present", "past_key_values"): out[n] for n in names if n != "logits"}
        if step < int(steps):
            feed = [int(out["logits"][0, -1].argmax())]
            chosen += feed
    np.concatenate(rows).astype(np.float32).tofile(target)
    print(",".join(str(i) for i in chosen))


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(os.path.join(sys.argv[2], "model.onnx"))
    elif sys.argv[1] == "many":  # a file with the arguments of `tokens`, a model a line
        with open(sys.argv[2]) as lines:
            for line in lines:
                path, *rest = line.split()
                tokens(os.path.join(path, "model.onnx"), *rest)
    elif sys.argv[1] == "images":
        images(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:6])
    else:
        tokens(os.path.join(sys.argv[2], "model.onnx"), *sys.argv[3:6])
