"""The forward pass of README.md in plain numpy, checked against the fixtures.

    python reference.py --model ..
"""
import argparse
import os

import numpy as np
from safetensors.numpy import load_file


GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tests/golden")


def silu(z):
    return z / (1 + np.exp(-z))


def conv(z, w, b, stride=1):
    k = w.shape[2]
    p = k // 2
    z = np.pad(z, ((0, 0), (0, 0), (p, p), (p, p)))
    oh = (z.shape[2] - k) // stride + 1
    ow = (z.shape[3] - k) // stride + 1
    o = np.zeros((z.shape[0], w.shape[0], oh, ow))
    for i in range(k):
        for j in range(k):
            o += np.einsum("oc,bcyx->boyx", w[:, :, i, j],
                           z[:, :, i:i + stride * (oh - 1) + 1:stride, j:j + stride * (ow - 1) + 1:stride],
                           optimize=True)
    return o + b[None, :, None, None]


def gn(z, w, b, groups=8, eps=1e-5):
    s = z.shape
    g = z.reshape(s[0], groups, -1)
    g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)
    return g.reshape(s) * w[None, :, None, None] + b[None, :, None, None]


class Flow:
    def __init__(self, path):
        self.w = {k: v.astype(np.float64) for k, v in load_file(path).items()}

    def p(self, name):
        return self.w[name + ".weight"], self.w[name + ".bias"]

    def conv(self, name, z, stride=1):
        return conv(z, *self.p(name), stride)

    def linear(self, name, z):
        w, b = self.p(name)
        return z @ w.T + b

    def embed(self, t, y):
        a = 100.0 * t[:, None] * 1000.0 ** (-np.arange(32) / 32)
        e = np.concatenate([np.cos(a), np.sin(a)], 1)
        e = self.linear("time_mlp.1", silu(self.linear("time_mlp.0", e)))
        return silu(e + self.w["class_emb.weight"][y])

    def res(self, name, x, e):
        h = self.conv(name + ".conv1", silu(gn(x, *self.p(name + ".norm1"))))
        f = self.linear(name + ".film", e)[:, :, None, None]
        c = h.shape[1]
        h = silu(gn(h, *self.p(name + ".norm2")) * (1 + f[:, :c]) + f[:, c:])
        h = self.conv(name + ".conv2", h)
        return h + (self.conv(name + ".skip", x) if name + ".skip.weight" in self.w else x)

    def attn(self, name, x):
        b, c, hh, ww = x.shape
        qkv = self.conv(name + ".qkv", gn(x, *self.p(name + ".norm"))).reshape(b, 3, c // 32, 32, hh * ww)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        s = np.einsum("bhdi,bhdj->bhij", q, k) / np.sqrt(32)
        s = np.exp(s - s.max(-1, keepdims=True))
        s /= s.sum(-1, keepdims=True)
        return x + self.conv(name + ".proj", np.einsum("bhij,bhdj->bhdi", s, v).reshape(b, c, hh, ww))

    def up(self, name, h):
        return self.conv(name, h.repeat(2, axis=2).repeat(2, axis=3))

    def __call__(self, x, t, y):
        e = self.embed(t, y)
        h = self.conv("conv_in", x)
        s0 = h = self.res("down.0.res", h, e)
        h = self.conv("down.0.down", h, 2)
        s1 = h = self.attn("down.1.attn", self.res("down.1.res", h, e))
        h = self.conv("down.1.down", h, 2)
        s2 = h = self.res("down.2.res", h, e)
        h = self.res("mid.res1", self.attn("mid.attn", self.res("mid.res0", h, e)), e)
        h = self.up("up.2.up", self.res("up.2.res", np.concatenate([h, s2], 1), e))
        h = self.attn("up.1.attn", self.res("up.1.res", np.concatenate([h, s1], 1), e))
        h = self.up("up.1.up", h)
        h = self.res("up.0.res", np.concatenate([h, s0], 1), e)
        return self.conv("conv_out", silu(gn(h, *self.p("norm_out"))))


def classify(w, x):
    w = {k: v.astype(np.float64) for k, v in w.items()}
    h = x
    for n, s in (("conv1", 1), ("conv2", 2), ("conv3", 1), ("conv4", 2)):
        h = np.maximum(conv(h, w[n + ".weight"], w[n + ".bias"], s), 0)
    f = np.maximum(h.reshape(len(x), -1) @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return f @ w["fc2.weight"].T + w["fc2.bias"], f


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", default="..")
    m = a.parse_args().model
    flow = Flow(os.path.join(m, "digits-flow.safetensors"))
    g = load_file(os.path.join(GOLDEN, "velocity.safetensors"))
    worst = 0.0
    for i, t in enumerate(g["t"]):
        tb = np.full(16, t, np.float64)
        for key, y in (("v_cond", g["labels"]), ("v_null", np.full(16, 10))):
            worst = max(worst, np.abs(flow(g["x"][i].astype(np.float64), tb, y) - g[key][i]).max())
    print(f"velocity: largest absolute difference {worst:.2e}")
    c = load_file(os.path.join(GOLDEN, "classifier.safetensors"))
    lg, ft = classify(load_file(os.path.join(m, "digits-classifier.safetensors")), c["x"].astype(np.float64))
    print(f"classifier: logits {np.abs(lg - c['logits']).max():.2e} features {np.abs(ft - c['features']).max():.2e}")
