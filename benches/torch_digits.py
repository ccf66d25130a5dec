"""The digits model of models/digits in PyTorch on the CPU: the peer that `advect sample` is measured against.

    OMP_NUM_THREADS=2 python benches/torch_digits.py [--runs 5] [--variants eager,channels_last,compile]

Draws 80 digits (0-9 eight times) with Heun, 10 steps, guidance 1.5, in f32, and prints one JSON line a
variant: the time of the whole ODE solve (`ms` median, `ms_min` best of the runs), processor time of all
threads (`cpu_ms_min`), and time per image. Weights
are loaded, and each variant is run once, before the clock starts. The guided velocity is one batch of
2 x 80, the faster of the two ways in PyTorch too (`--separate` makes two calls of 80).
Needs torch, numpy and safetensors.
"""
import argparse
import json
import os
import statistics
import sys
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


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=80)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--guidance", type=float, default=1.5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--variants", default="eager,channels_last,compile,compile_channels_last")
    p.add_argument("--separate", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)

    labels = torch.arange(a.count) % 10
    x0 = torch.randn((a.count, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for variant in a.variants.split(","):
        net = FlowUNet()
        net.load_state_dict({k: v.float() for k, v in load_file(f"{MODEL}/digits-flow.safetensors").items()})
        net.eval()
        layout = torch.contiguous_format
        if variant.endswith("channels_last"):
            layout = torch.channels_last
            net = net.to(memory_format=layout)
        run = net
        if variant.startswith("compile"):
            run = torch.compile(net)
            run.cfg = net.cfg
        f = velocity(run, labels, a.guidance, layout, a.separate)
        times, cpu = [], []
        with torch.no_grad():
            heun(f, x0, 1)
            for _ in range(a.runs):
                start, used = time.perf_counter(), time.process_time()
                heun(f, x0, a.steps)
                times.append(1e3 * (time.perf_counter() - start))
                cpu.append(1e3 * (time.process_time() - used))
        ms = statistics.median(times)
        print(json.dumps({"framework": "torch", "version": torch.__version__, "id": f"digits_heun{a.steps}_x{a.count}",
                          "variant": variant + ("_separate" if a.separate else ""), "dtype": "f32",
                          "threads": a.threads, "ms": round(ms, 2), "ms_min": round(min(times), 2), "n": len(times),
                          "cpu_ms_min": round(min(cpu), 2), "ms_per_image": round(min(times) / a.count, 3)}),
              flush=True)


if __name__ == "__main__":
    main()
