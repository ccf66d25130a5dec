"""Export trained checkpoints to safetensors + JSON, and compute the golden fixtures.

    python export.py --run RUN --out MODEL

Weights are rounded to float16 once. Every
fixture is computed in float64 from those rounded weights and stored as float32.
"""
import argparse
import json
import os

import torch
from safetensors.torch import load_file, save_file

from nets import FLOW_CONFIG, DigitClassifier, FlowUNet, time_embedding
from sampling import FIXED, dopri5, velocity

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tests/golden")
GUIDANCE = 1.5
GUIDED = (("cond", 1.0), ("cfg1.5", GUIDANCE))
TIMES = [0.0, 0.125, 0.25, 0.5, 0.75, 0.9375, 1.0]


def load_flow(path, dtype=torch.float32):
    net = FlowUNet()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net.to(dtype).eval()


def load_classifier(path, dtype=torch.float32):
    net = DigitClassifier()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net.to(dtype).eval()


def export_weights(run, out):
    ck = torch.load(os.path.join(run, "flow.pt"))
    half = {k: v.detach().to(torch.float16).contiguous() for k, v in ck["ema"].items()}
    save_file(half, os.path.join(out, "digits-flow.safetensors"))
    cls = torch.load(os.path.join(run, "classifier.pt"))
    save_file({k: v.to(torch.float16).contiguous() for k, v in cls.items()},
              os.path.join(out, "digits-classifier.safetensors"))
    with open(os.path.join(out, "digits-flow.json"), "w") as f:
        json.dump({**FLOW_CONFIG, "parameters": sum(v.numel() for v in half.values())}, f, indent=2)
        f.write("\n")


def f32(t):
    return t.detach().to(torch.float32).contiguous()


def fixed_inputs():
    """The 16 noise images (used exactly as stored in f32) and their labels."""
    x0 = torch.randn((16, 1, 28, 28), generator=torch.Generator().manual_seed(20240607))
    return x0, torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 5, 8, 2, 4, 9])


def golden_velocity(out):
    """v(x, t, y) and v(x, t, null) at TIMES along the conditional Euler-16 path."""
    net = load_flow(os.path.join(out, "digits-flow.safetensors"), torch.float64)
    x0, y = fixed_inputs()
    null = torch.full_like(y, FLOW_CONFIG["null_class"])
    f = velocity(net, y)
    states, s = {0: x0.double()}, x0.double()
    for k in range(16):
        s = s + f(k / 16, s) / 16
        states[k + 1] = s
    xs = torch.stack([f32(states[round(t * 16)]) for t in TIMES])
    v, u = [], []
    for t, xt in zip(TIMES, xs):
        tb = torch.full((16,), t, dtype=torch.float64)
        v.append(f32(net(xt.double(), tb, y)))
        u.append(f32(net(xt.double(), tb, null)))
    save_file({"x0": x0, "labels": y.to(torch.int32), "t": torch.tensor(TIMES, dtype=torch.float32),
               "x": xs, "v_cond": torch.stack(v), "v_null": torch.stack(u)},
              os.path.join(GOLDEN, "velocity.safetensors"))
    # activations after each stage: samples 0 and 1 of the t = 0.5 entry
    i = TIMES.index(0.5)
    acts, hooks = {}, []

    def keep(name):
        def hook(_m, _i, o):
            acts[name] = f32(o)
        return hook

    inner = (".conv1", ".conv2", ".norm1", ".norm2", ".film", ".skip", ".qkv", ".proj", ".norm")
    for name, m in net.named_modules():
        if type(m).__name__ in ("ResBlock", "Attention", "Conv2d", "GroupNorm", "Linear"):
            if not name.endswith(inner) or name.startswith(("down.1.res.", "mid.attn.")):
                hooks.append(m.register_forward_hook(keep(name)))
    tb = torch.full((2,), 0.5, dtype=torch.float64)
    c = FLOW_CONFIG
    acts["v"] = f32(net(xs[i, :2].double(), tb, y[:2]))
    for h in hooks:
        h.remove()
    acts["x"] = xs[i, :2].contiguous()
    acts["time_embedding"] = f32(time_embedding(tb, c["time_freqs"], c["time_scale"], c["time_max_period"]))
    acts["embed"] = f32(net.embed(tb, y[:2]))
    save_file(acts, os.path.join(GOLDEN, "activations.safetensors"))


def golden_samples(out):
    """Final samples of each solver from x0, conditional and guided."""
    net = load_flow(os.path.join(out, "digits-flow.safetensors"), torch.float64)
    x0, y = fixed_inputs()
    fin, evals = {"x0": x0, "labels": y.to(torch.int32)}, {}
    for name, w in GUIDED:
        f = velocity(net, y, w)
        for s, step in FIXED.items():
            fin[f"{s}10.{name}"] = f32(step(f, x0.double(), 10))
        r, evals[f"dopri5.{name}"] = dopri5(f, x0.double(), 1e-5)
        fin[f"dopri5.{name}"] = f32(r)
        print(name, evals, flush=True)
    save_file(fin, os.path.join(GOLDEN, "samples.safetensors"))
    cls = load_classifier(os.path.join(out, "digits-classifier.safetensors"), torch.float64)
    imgs = fin["heun10.cfg1.5"]
    lg, ft = cls(imgs.double())
    save_file({"x": imgs, "logits": f32(lg), "features": f32(ft)},
              os.path.join(GOLDEN, "classifier.safetensors"))
    meta = {"guidance": GUIDANCE, "times": TIMES, "labels": y.tolist(),
            "classifier_argmax": lg.argmax(1).tolist(), "evaluations": evals}
    write_meta(out, meta)


def write_meta(out, meta):
    with open(os.path.join(GOLDEN, "golden.json"), "w") as fh:
        fh.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in meta.items()) + "\n}\n")


def read_meta(out):
    with open(os.path.join(GOLDEN, "golden.json")) as fh:
        return json.load(fh)


def golden_exact(out):
    """A reference solution of the same ODEs (tolerance 1e-7), to measure solver errors against."""
    net = load_flow(os.path.join(out, "digits-flow.safetensors"), torch.float64)
    x0, y = fixed_inputs()
    ref, meta = {}, read_meta(out)
    for name, w in GUIDED:
        r, n = dopri5(velocity(net, y, w), x0.double(), 1e-7)
        ref[f"exact.{name}"] = f32(r)
        meta["evaluations"][f"exact.{name}"] = n
    save_file(ref, os.path.join(GOLDEN, "exact.safetensors"))
    write_meta(out, meta)


def compare(out):
    """Add the root-mean-square distance of each solver's samples from the reference to golden.json."""
    fin = load_file(os.path.join(GOLDEN, "samples.safetensors"))
    ref = load_file(os.path.join(GOLDEN, "exact.safetensors"))
    meta = read_meta(out)
    meta["rms_from_exact"] = {
        k: float(f"{(v.double() - ref['exact.' + k.split('.', 1)[1]].double()).pow(2).mean().sqrt():.3e}")
        for k, v in fin.items() if "." in k and "exact." + k.split(".", 1)[1] in ref}
    write_meta(out, meta)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="run")
    p.add_argument("--out", default=".")
    p.add_argument("--stages", default="weights,velocity,samples,exact,compare")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    os.makedirs(GOLDEN, exist_ok=True)
    with torch.no_grad():
        for stage in a.stages.split(","):
            if stage == "weights":
                export_weights(a.run, a.out)
            else:
                {"velocity": golden_velocity, "samples": golden_samples, "exact": golden_exact,
                 "compare": compare}[stage](a.out)
