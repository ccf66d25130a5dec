"""advect beside PyTorch on a CUDA GPU, in turn, over one list of cases.

    python benches/torch_gpu.py --advect target/release/advect [--cases benches/cases-gpu.json]
                                [--dtypes bf16 f32] [--rounds 2] [--budget 0.1] [--out gpu.jsonl]

Both sides call launch after launch without waiting, in samples of at least 3 ms, and wait at the end of each
sample; the best sample of all rounds counts. PyTorch gets every way that it has: each backend of
scaled_dot_product_attention, cuDNN with benchmark on, torch.compile for what it can fuse. f32 is without TF32.
"""

import argparse
import json
import subprocess
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, dynamic=False)


def attention(c, dtype):
    shape = lambda h, n: (c["B"], h, n, c["D"])
    q = torch.randn(shape(c["Hq"], c["Nq"]), dtype=dtype)
    k, v = (torch.randn(shape(c["Hkv"], c["Nk"]), dtype=dtype) for _ in range(2))
    grouped = {"enable_gqa": True} if c["Hq"] != c["Hkv"] else {}

    def run(backend):
        def f():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=c["causal"], **grouped)

        return f

    scores = c["B"] * c["Hq"] * c["Nq"] * c["Nk"]
    names = [n for n in BACKENDS if n != "math" or scores < 2**31]
    return {(f"sdpa_{n}", None): run(BACKENDS[n]) for n in names}


def convolution(c, dtype, fused):
    ways = {}
    for layout, fmt in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        x = torch.randn(c["N"], c["C"], *c["in"], dtype=dtype).to(memory_format=fmt)
        w = torch.randn(c["O"], c["C"] // c["groups"], *c["k"], dtype=dtype).to(memory_format=fmt)
        b = torch.randn(c["O"], dtype=dtype)
        f = lambda x=x, w=w, b=b: F.conv2d(x, w, b, c["stride"], c["pad"], c["dil"], c["groups"])
        if fused:
            ways["eager", layout] = lambda f=f: F.silu(f())
            ways["compile", layout] = compiled(lambda f=f: F.silu(f()))
        else:
            ways["conv", layout] = f
    return ways


def norm(c, dtype):
    x = torch.randn(c["shape"], dtype=dtype)
    if c["kind"] == "layernorm_adaln":
        n, _, d = c["shape"]
        scale, shift = torch.randn(n, 1, d, dtype=dtype), torch.randn(n, 1, d, dtype=dtype)
        f = lambda: F.layer_norm(x, (d,), eps=1e-6) * (1 + scale) + shift
        return {("eager", None): f, ("compile", None): compiled(f)}
    ways = {}
    w, b = torch.randn(c["shape"][1], dtype=dtype), torch.randn(c["shape"][1], dtype=dtype)
    for layout, fmt in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        y = x.to(memory_format=fmt)
        f = lambda y=y: F.silu(F.group_norm(y, c["groups"], w, b, 1e-6))
        ways["eager", layout] = f
        ways["compile", layout] = compiled(f)
    return ways


def resample(c, dtype):
    ways = {}
    for layout, fmt in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        x = torch.randn(c["shape"], dtype=dtype).to(memory_format=fmt)
        if c["mode"] == "up":
            ways["eager", layout] = lambda x=x: F.interpolate(x, scale_factor=2, mode="nearest")
        else:
            ways["eager", layout] = lambda x=x: F.avg_pool2d(x, 2)
    return ways


def step(c, dtype):
    n = c.get("n") or torch.Size(c["shape"]).numel()
    x, y, z, w, out = (torch.randn(n, dtype=dtype) for _ in range(5))
    if c["kind"] == "randn":
        return {("normal_", None): lambda: out.normal_()}
    if c["kind"] == "dpmpp2m_cfg":
        g, sigma, alpha, cx, cd, h = 7.5, 0.6, 0.8, 0.95, 0.21, 0.5

        def f(x, cond, uncond, before):
            x0 = (x - sigma * (uncond + g * (cond - uncond))) / alpha
            return x0, cx * x + cd * ((1 + h) * x0 - h * before)

        both = compiled(f)
        return {("eager", None): lambda: f(x, y, z, w), ("compile", None): lambda: both(x, y, z, w)}
    if c["kind"] == "scheduler":
        f = lambda x, y, z, w: x + 0.1 * y
    else:
        f = lambda x, y, z, w: 0.9 * x + 0.1 * y - 0.3 * z + 0.2 * w
    one = compiled(f)
    return {("eager", None): lambda: f(x, y, z, w), ("compile", None): lambda: one(x, y, z, w)}


def ways(c, dtype):
    """Every way that PyTorch has for a case, by (variant, layout)."""
    kind = c["kind"]
    if kind == "gemm":
        x, y = torch.randn(c["m"], c["k"], dtype=dtype), torch.randn(c["k"], c["n"], dtype=dtype)
        out = torch.empty(c["m"], c["n"], dtype=dtype)
        return {("mm", None): lambda: torch.mm(x, y, out=out)}
    if kind == "attention":
        return attention(c, dtype)
    if kind in ("merge", "linear_attention"):
        return {}  # PyTorch has no op that does it.
    if kind in ("conv", "conv_bias_silu"):
        return convolution(c, dtype, kind == "conv_bias_silu")
    if kind in ("groupnorm_silu", "layernorm_adaln"):
        return norm(c, dtype)
    return resample(c, dtype) if kind == "resample" else step(c, dtype)


def best(f, budget):
    """Milliseconds of the best sample, as `advect bench` takes them."""

    def sample(count):
        start = time.perf_counter()
        for _ in range(count):
            f()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / count

    sample(1)
    once = min(sample(1), sample(1))
    batch = min(1000, max(1, int(3 / once) + 1))
    end, times = time.perf_counter() + budget, []
    while len(times) < 3 or time.perf_counter() < end:
        times.append(sample(batch))
    return min(times)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--advect", required=True)
    a.add_argument("--cases", default="benches/cases-gpu.json")
    a.add_argument("--dtypes", nargs="+", default=["bf16", "f32"], choices=DTYPES)
    a.add_argument("--rounds", type=int, default=2)
    a.add_argument("--budget", type=float, default=0.1)
    a.add_argument("--filter", default="", help="cases whose id contains this")
    a.add_argument("--out")
    a = a.parse_args()
    torch.set_grad_enabled(False)
    torch.set_default_device("cuda")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    cases = [c for c in json.load(open(a.cases)) if a.filter in c["id"]]
    chosen = tempfile.NamedTemporaryFile("w", suffix=".json")
    json.dump(cases, chosen)
    chosen.flush()
    ours, theirs, work, kept = {}, {}, {}, {}
    for _ in range(a.rounds):
        for dtype in a.dtypes:
            for c in cases:
                # Kept from round to round, with what torch.compile made.
                if (c["id"], dtype) not in kept:
                    kept[c["id"], dtype] = ways(c, DTYPES[dtype])
                for (variant, layout), f in kept[c["id"], dtype].items():
                    try:
                        ms = best(f, a.budget)
                    except Exception as e:
                        print(f"# {c['id']} {dtype} {variant}: {str(e).splitlines()[0][:100]}", flush=True)
                        kept[c["id"], dtype] = {k: v for k, v in kept[c["id"], dtype].items() if v is not f}
                        continue
                    key = c["id"], dtype, layout
                    theirs[key] = min(theirs.get(key, (1e9, "")), (ms, variant))
            # The cache keeps what PyTorch freed from advect.
            torch.cuda.empty_cache()
            with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as lines:
                command = [a.advect, "bench", "--device", "cuda", "--cases", chosen.name, "--dtype", dtype]
                command += ["--budget", str(a.budget), "--json", lines.name]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                for line in map(json.loads, lines):
                    key = line["id"], dtype, line.get("layout")
                    if "error" in line:
                        print(f"# advect {key}: {line['error'][:200]}", flush=True)
                        continue
                    ours[key] = min(ours.get(key, 1e9), line["ms_min"])
                    for unit in ("gflops", "gbs"):
                        if unit in line:
                            work[key] = (line[unit] * line["ms"] / 1e6, "TFLOP/s" if unit == "gflops" else "TB/s")
                            break
    name = torch.cuda.get_device_name()
    print(f"{name}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n")
    print("| case | dtype | layout | ours, ms | rate | PyTorch's best | ms | ratio |\n|---|---|---|---|---|---|---|---|")
    out = open(a.out, "w") if a.out else None
    for key, mine in ours.items():
        ms, variant = theirs.get(key, (float("nan"), "none"))
        amount, unit = work.get(key, (0, ""))
        row = [key[0], key[1], key[2] or "", f"{mine:.4f}", f"{amount / mine * 1e3:.1f} {unit}", variant]
        print("| " + " | ".join(row + [f"{ms:.4f}", f"{ms / mine:.2f}"]) + " |")
        if out:
            record = {"id": key[0], "dtype": key[1], "layout": key[2], "device": name, "ours_ms": mine}
            out.write(json.dumps(record | {"peer": variant, "peer_ms": ms}) + "\n")


if __name__ == "__main__":
    main()
