"""Golden file of linear attention, by flash-linear-attention: `python tests/golden/linear_attention.py` writes
linear_attention.safetensors beside itself.

    pip install torch numpy safetensors einops
    pip install --no-deps fla-core==0.6.0

Everything is computed by what that library holds its kernels to, the functions of `fla/ops/*/naive.py`, on the CPU, from
numbers that float32 holds (RetNet's decays alone are of float64). These files are loaded one by one, since the package as a
whole wants Triton. They compute in float32 whatever they are given, so float32 means float64 while they run. In the golden
file axes are ours, (batch, head, token, element); most of the functions have tokens before heads.
"""

from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch.nn.functional import elu, relu

torch.manual_seed(0)
golden = {}
OPS = Path(find_spec("fla").origin).parent / "ops"


def normal(*shape):
    return torch.randn(shape, dtype=torch.float32).double()


def uniform(low, high, *shape):
    return torch.empty(shape, dtype=torch.float32).uniform_(low, high).double()


def keep(case, **tensors):
    for name, tensor in tensors.items():
        golden[f"{case}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)


def naive(op, function, *inputs, **options):
    """What a function computes, with float64 in the place of float32."""
    spec = spec_from_file_location(op, OPS / op / "naive.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    types = patch.multiple(torch, float=torch.float64, float32=torch.float64)
    with types, patch.object(torch.Tensor, "float", torch.Tensor.double):
        return getattr(module, function)(*inputs, **options)


def recurrent(op, *inputs, state=None, **options):
    """The same, of a function that has tokens before heads and a state: result and last state."""
    inputs = [x.transpose(1, 2) for x in inputs]
    options |= {"initial_state": state, "output_final_state": True}
    out, last = naive(op, f"naive_recurrent_{op}", *inputs, **options)
    return {"out": out.transpose(1, 2), "final_state": last}


# A head of 4: its scale is a number of float32. Keys are of length 1, as the delta rule has them.
B, H, N, D, DV = 2, 4, 19, 4, 3
q, k, v = normal(B, H, N, D), normal(B, H, N, D), normal(B, H, N, DV)
k = (k / k.norm(dim=-1, keepdim=True)).to(torch.float32).double()
keep("all", q=q, k=k, v=v)

keep("plain", **recurrent("linear_attn", q, k, v))
keep("scale", **recurrent("linear_attn", q, k, v, scale=0.75))
state = normal(B, H, D, DV)
keep("state", initial_state=state, **recurrent("linear_attn", q, k, v, state=state))

# Feature maps are applied by layers, before. The sum of keys is [B, 1, H, D] there, and our last column.
keep("relu", **recurrent("linear_attn", relu(q), relu(k), v))
keep("elu", **recurrent("linear_attn", elu(q) + 1, elu(k) + 1, v))
sums = uniform(0.5, 2.0, B, 1, H, D)
for case, state in [("normalized", None), ("normalized_state", (normal(B, H, D, DV), sums))]:
    got = recurrent("linear_attn", elu(q) + 1, elu(k) + 1, v, state=state, normalize=True)
    for name, parts in [("initial_state", state), ("final_state", got.pop("final_state"))]:
        if parts is not None:
            keep(case, **{name: torch.cat([parts[0], parts[1].permute(0, 2, 3, 1)], -1)})
    keep(case, **got)

# RetNet: head i keeps 1 - 2^-(5 + i) of its state.
decay = (1 - 2 ** -(5 + torch.arange(H, dtype=torch.float64))).log().view(1, H, 1).expand(B, H, N)
keep("retention", log_decay=decay, out=naive("retention", "naive_retention", q, k, v))

# One decay a token; Mamba-2, whose heads share queries and keys; one a channel.
decay, state = uniform(-1, 0, B, H, N), normal(B, H, D, DV)
keep(
    "simple_gla",
    log_decay=decay,
    initial_state=state,
    **recurrent("simple_gla", q, k, v, decay, state=state),
)
q1, k1 = q[:, :1], k[:, :1]
shared = [x.expand(B, H, N, D) for x in (q1, k1)]
keep("mamba2", q=q1, k=k1, log_decay=decay, **recurrent("simple_gla", *shared, v, decay, scale=1.0))
decay, state = uniform(-1, 0, B, H, N, D), normal(B, H, D, DV)
keep("gla", log_decay=decay, **recurrent("gla", q, k, v, decay))
keep("gla_state", log_decay=decay, initial_state=state, **recurrent("gla", q, k, v, decay, state=state))

# The delta rule; after a state, also with betas above 1, which turn round what the state holds under a key.
for case, most, state in [("delta", 1, None), ("delta_state", 2, normal(B, H, D, DV))]:
    beta = uniform(0, most, B, H, N)
    out, last = naive("delta_rule", "delta_rule_recurrence", q, k, v, beta, initial_state=state)
    keep(case, beta=beta, out=out, final_state=last)
    if state is not None:
        keep(case, initial_state=state)

beta, decay, state = uniform(0, 1, B, H, N), uniform(-1, 0, B, H, N), normal(B, H, D, DV)
keep("gated_delta", beta=beta, log_decay=decay, **recurrent("gated_delta_rule", q, k, v, beta, decay))
keep(
    "gated_delta_state",
    beta=beta,
    log_decay=decay,
    initial_state=state,
    **recurrent("gated_delta_rule", q, k, v, beta, decay, scale=0.75, state=state),
)

# Kimi Linear: one decay a channel. Two heads of queries and keys serve four of values.
decay, q2, k2 = uniform(-1, 0, B, H, N, D), q[:, :2], k[:, :2]
keep("kda", beta=beta, log_decay=decay, **recurrent("kda", q, k, v, decay, beta))
keep(
    "kda_grouped",
    q=q2,
    k=k2,
    beta=beta,
    log_decay=decay,
    initial_state=state,
    **recurrent("kda", q2, k2, v, decay, beta, state=state),
)

# DeltaProduct: two keys a token. For us these are two tokens, the first with the decay, and with a query of zeros.
k2, v2, beta = (torch.cat([x, x.flip(2)], 2) for x in (k, v, uniform(0, 2, B, H, N)))
decay = uniform(-1, 0, B, H, N)
got = recurrent("gated_delta_product", q, k2, v2, decay, beta, scale=0.5, state=state, num_householder=2)


def spread(x, at):
    """Tokens at every other place, zeros between."""
    wide = torch.zeros(B, H, N, 2, *x.shape[3:], dtype=torch.float64)
    wide[:, :, :, at] = x
    return wide.flatten(2, 3)


got["out"] = spread(got["out"], 1)
keep(
    "delta_product",
    q=spread(q, 1),
    k=k2,
    v=v2,
    log_decay=spread(decay, 0),
    beta=beta,
    initial_state=state,
    **got,
)

path = Path(__file__).with_name("linear_attention.safetensors")
versions = f"torch {torch.__version__}, fla-core {version('fla-core')}"
save_file(golden, path, metadata={"versions": versions})
print(f"{len(golden)} tensors, {path.stat().st_size} bytes, {versions}")
