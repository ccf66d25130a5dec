"""The digits model of models/digits in PyTorch on the CPU, and `advect sample` in turn with it.

    cargo build --release
    OMP_NUM_THREADS=2 python benches/torch_digits.py --advect target/release/advect

Draws 80 digits (0-9 eight times) with Heun, 10 steps, guidance 1.5, in f32. Every round runs each variant
of PyTorch and advect once, one after the other, so that what else the machine does falls on all alike.
Prints one JSON line a variant: time of the whole solve (`ms` median, `ms_min` best of the rounds) and, on
a machine that others use too, processor time of all threads (`cpu_ms_min`; for advect with its start).
Weights are loaded, and PyTorch's variants run once, before the clock starts. The guided velocity is one
batch of 2 x 80, which is PyTorch's faster way too (`--separate` makes two calls of 80).
Needs torch, numpy and safetensors; `compile` needs g++.
"""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models", "digits")
sys.path.insert(0, os.path.join(MODEL, "train"))
from nets import FlowUNet  # noqa: E402
from sampling import heun  # noqa: E402


def velocity(net, labels, guidance, layout, separate):
    """v_null + guidance * (v_label - v_null)."""
    null = torch.full_like(labels, net.cfg["null_class"])
    both = torch.cat([labels, null])

    def f(t, x):
        x = x.contiguous(memory_format=layout)
        if separate:
            tb = torch.full((len(x),), float(t))
            v, u = net(x, tb, labels), net(x, tb, null)
        else:
            tb = torch.full((2 * len(x),), float(t))
            v, u = net(torch.cat([x, x]), tb, both).chunk(2)
        return u + guidance * (v - u)

    return f


def torch_variant(name, a):
    """A function that samples once and returns (milliseconds, milliseconds of processor time)."""
    net = FlowUNet()
    net.load_state_dict({k: v.float() for k, v in load_file(f"{MODEL}/digits-flow.safetensors").items()})
    net.eval()
    layout = torch.contiguous_format
    if name.endswith("channels_last"):
        layout = torch.channels_last
        net = net.to(memory_format=layout)
    run = net
    if name.startswith("compile"):
        run = torch.compile(net)
        run.cfg = net.cfg
    labels = torch.arange(a.count) % 10
    x0 = torch.randn((a.count, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    f = velocity(run, labels, a.guidance, layout, a.separate)

    def once():
        with torch.no_grad():
            start, used = time.perf_counter(), time.process_time()
            heun(f, x0, a.steps)
            return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - used)

    with torch.no_grad():
        heun(f, x0, 1)
    return once


def advect_variant(a):
    """The same for `advect sample`, which prints the time of its solve."""
    def once():
        with tempfile.TemporaryDirectory() as folder:
            command = [a.advect, "sample", "--device", "cpu", "--threads", str(a.threads), "--count", str(a.count),
                       "--solver", "heun", "--steps", str(a.steps), "--guidance", str(a.guidance),
                       "--out", os.path.join(folder, "digits.png")]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return 1e3 * float(re.search(r"^time +([0-9.]+) s", text, re.M)[1]), 1e3 * used

    return once


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--advect", help="the advect executable; without it PyTorch alone is measured")
    p.add_argument("--count", type=int, default=80)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--guidance", type=float, default=1.5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--variants", default="eager,channels_last,compile,compile_channels_last")
    p.add_argument("--separate", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)

    runs = {("torch", name): torch_variant(name, a) for name in a.variants.split(",")}
    if a.advect:
        runs["advect", "cpu"] = advect_variant(a)
    times = {key: [] for key in runs}
    for _ in range(a.rounds):
        for key, once in runs.items():
            times[key].append(once())
            print(" ".join(key), "%.0f ms, %.0f ms of processor time" % times[key][-1], file=sys.stderr, flush=True)
    best = {}
    for (framework, variant), rows in times.items():
        ms, cpu = [r[0] for r in rows], [r[1] for r in rows]
        so_far = best.get(framework, (ms[0], cpu[0]))
        best[framework] = min(so_far[0], *ms), min(so_far[1], *cpu)
        print(json.dumps({"framework": framework, "id": f"digits_heun{a.steps}_x{a.count}", "kind": "sample",
                          "variant": variant, "dtype": "f32", "threads": a.threads,
                          "ms": round(statistics.median(ms), 2), "ms_min": round(min(ms), 2), "n": len(ms),
                          "cpu_ms_min": round(min(cpu), 2)}))
    if a.advect:
        wall, cpu = (ours / theirs for ours, theirs in zip(best["advect"], best["torch"]))
        print(f"of PyTorch's best (torch {torch.__version__}), advect takes {wall:.2f} of the time "
              f"and {cpu:.2f} of the processor time")


if __name__ == "__main__":
    main()
