"""Draws digits with advect from Python, and compares them with the golden samples of the checkout.

    digits.py <checkout> <libadvect> [<images, up to 16>]

The network is that of models/digits/README.md: NumPy owns the arrays, advect's ops read and write them in place.
"""

import ctypes as c
import json
import sys
from pathlib import Path

import numpy as np
from advect import Advect, Error
from dlpack import Exported, imported

ROOT, LIBRARY = Path(sys.argv[1]), sys.argv[2]
IMAGES = int(sys.argv[3]) if len(sys.argv) > 3 else 4


def safetensors(path):
    """The arrays of a file, floats as f32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kinds, arrays = {"F32": np.float32, "F16": np.float16, "I32": np.int32}, {}
    for name, t in json.loads(data[8:start]).items():
        if name != "__metadata__":
            raw = np.frombuffer(data[slice(*(start + at for at in t["data_offsets"]))], kinds[t["dtype"]])
            arrays[name] = np.array(raw.reshape(t["shape"]), np.int32 if t["dtype"] == "I32" else np.float32)
    return arrays


advect = Advect(LIBRARY, ROOT / "capi/include/advect.h")
weights = safetensors(ROOT / "models/digits/digits-flow.safetensors")
golden = safetensors(ROOT / "tests/golden/samples.safetensors")


def conv(name, x, stride=1, out=None, **more):
    w = weights[name + ".weight"]
    w = w.reshape(w.shape + (1,) * (4 - w.ndim))
    if out is None:
        out = np.empty((len(x), len(w), x.shape[2] // stride, x.shape[3] // stride), np.float32)
    advect.run("conv", x=x, weight=w, bias=weights[name + ".bias"], out=out, stride=(stride, stride),
               padding=(w.shape[2] // 2, w.shape[3] // 2), **more)
    return out


def norm(name, x, silu=True, film=None):
    out, half = np.empty_like(x), x.shape[1]
    scale, shift = (None, None) if film is None else (film[:, :half], film[:, half:])
    advect.run("norm", x=x, weight=weights[name + ".weight"], bias=weights[name + ".bias"], scale=scale,
               shift=shift, out=out, kind=advect.NORM_GROUP, groups=8, eps=1e-5,
               activation=advect.ACTIVATION_SILU if silu else advect.ACTIVATION_NONE)
    return out


def linear(name, x, silu=False):
    out = np.empty((len(x), len(weights[name + ".bias"])), np.float32)
    advect.run("matmul", a=x, b=weights[name + ".weight"].T, bias=weights[name + ".bias"], out=out,
               activation=advect.ACTIVATION_SILU if silu else advect.ACTIVATION_NONE)
    return out


def residual(b, x, e, out=None):
    h = conv(b + ".conv1", norm(b + ".norm1", x))
    skip = x if h.shape[1] == x.shape[1] else conv(b + ".skip", x)
    return conv(b + ".conv2", norm(b + ".norm2", h, film=linear(b + ".film", e)), residual=skip, out=out)


def attention(b, x, out=None):
    n, channels, h, w = x.shape
    qkv = conv(b + ".qkv", norm(b + ".norm", x, silu=False))
    q, k, v = qkv.reshape(n, 3, channels // 32, 32, h * w).transpose(1, 0, 2, 4, 3)
    o = np.empty_like(x)
    advect.run("attention", q=q, k=k, v=v, out=o.reshape(n, channels // 32, 32, h * w).transpose(0, 1, 3, 2))
    return conv(b + ".proj", o, residual=x, out=out)


def up(name, x, out=None):
    big = np.empty((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), np.float32)
    advect.run("resample", x=x, out=big, mode=advect.RESAMPLE_UP2)
    return conv(name, big, out=out)


def unet(t, x, labels):
    angle = 100 * t * 1000 ** (-np.arange(32) / 32)
    time = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)
    units = linear("time_mlp.0", np.broadcast_to(time, (len(x), 64)), silu=True)
    e = conv("time_mlp.1", units[:, :, None, None], sample_bias=weights["class_emb.weight"][labels],
             activation=advect.ACTIVATION_SILU)[:, :, 0, 0]
    # What a level leaves on the way down lies beside what comes up to it.
    c0, c1, c2 = (np.empty((len(x), 2 * n, s, s), np.float32) for n, s in ((16, 28), (32, 14), (96, 7)))
    h = residual("down.0.res", conv("conv_in", x), e, out=c0[:, 16:])
    h = attention("down.1.attn", residual("down.1.res", conv("down.0.down", h, 2), e), out=c1[:, 32:])
    h = residual("down.2.res", conv("down.1.down", h, 2), e, out=c2[:, 96:])
    residual("mid.res1", attention("mid.attn", residual("mid.res0", h, e)), e, out=c2[:, :96])
    up("up.2.up", residual("up.2.res", c2, e), out=c1[:, :32])
    up("up.1.up", attention("up.1.attn", residual("up.1.res", c1, e)), out=c0[:, :16])
    return conv("conv_out", norm("norm_out", residual("up.0.res", c0, e)))


def sample(name, method):
    noise, labels = golden["x0"][:IMAGES].copy(), golden["labels"][:IMAGES]
    drawn = advect.solve(lambda t, x: unet(t, x, labels), noise, method, steps=10)
    worst = np.abs(drawn - golden[name][:IMAGES]).max()
    print(f"{name}: differs from the golden samples by {worst:.1e}")
    assert worst <= 1e-5  # what models/digits/README.md says that an f32 implementation reaches


def dlpack():
    """NumPy and advect share memory both ways."""
    ours = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor, view = imported(advect, ours.T), advect.struct("view")
    advect.call("tensor_view", tensor, c.byref(view))
    assert list(view.shape[:2]) == [3, 2] and list(view.strides[:2]) == [1, 3]
    for _ in range(2):  # from the struct with a version, and by older NumPy's call from that without
        theirs = np.from_dlpack(Exported(advect, view))
        ours[0, 1] += 40
        assert theirs.shape == (3, 2) and theirs[1, 0] == ours[0, 1]
    advect.call("tensor_destroy", tensor)
    assert (theirs == ours.T).all()  # the export keeps the memory alive


sample("euler10.cond", advect.METHOD_EULER)
sample("heun10.cond", advect.METHOD_HEUN)
dlpack()
try:
    advect.run("resample", x=golden["x0"], out=np.empty((1, 1, 5, 5), np.float32), mode=advect.RESAMPLE_UP2)
    raise AssertionError("a wrong shape was accepted")
except Error as error:
    print("as it should be refused:", error)
advect.close()
