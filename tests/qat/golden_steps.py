"""Prints the figures of trainer_test.cpp's golden training steps: plain PyTorch, no nibble.

Run: python tests/qat/golden_steps.py
"""

import math

import torch


def wave(shape, frequency, size):
    count = math.prod(shape)
    values = [size * math.sin(frequency * (i + 1)) for i in range(count)]
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).reshape(shape)


def train(name):
    w1, b1 = wave([8, 4], 1.3, 0.7), wave([8], 0.9, 0.2)
    w2, b2 = wave([3, 8], 2.1, 0.7), wave([3], 1.7, 0.2)
    matrices, others = [w1, w2], [b1, b2]
    for p in matrices + others:
        p.requires_grad_()
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    else:
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    steps, warmup, rate, final, clip = 10, 3, 0.05, 0.1, 0.4
    for step in range(steps):
        if step < warmup:
            lr = rate * (step + 1) / warmup
        else:
            p = (step - warmup) / (steps - warmup)
            lr = rate * (final + (1 - final) * (1 + math.cos(math.pi * p)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr
        x = wave([6, 4], 0.37 * (step + 1), 1.0)
        target = torch.tensor([(i + step) % 3 for i in range(6)])
        optimizer.zero_grad()
        h = torch.relu(torch.nn.functional.linear(x, w1, b1))
        logits = torch.nn.functional.linear(h, w2, b2)
        loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(matrices + others, clip)
        optimizer.step()
        print(f"{name} {{{step + 1}, {loss.item():.7f}, {lr:.9f}, {norm.item():.7f}}},")
    print(name, "w1[0]", [round(v, 7) for v in w1[0].tolist()], "b2", [round(v, 7) for v in b2.tolist()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    train("adamw")
    train("sgd")
