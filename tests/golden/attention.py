"""Golden files of attention, by PyTorch: `python tests/golden/attention.py` writes attention.safetensors beside itself.

    pip install torch numpy safetensors

Everything is computed in float64 from numbers that float32 holds, by `scaled_dot_product_attention` and `flex_attention`
as PyTorch defines them (eager, on the CPU). What PyTorch has only in CUDA kernels (packed sequences, pages) is the same
functions, sequence by sequence; sinks are as in the eager code of gpt-oss: one more column before the softmax.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

torch.manual_seed(0)
golden = {}


def normal(*shape):
    return torch.randn(shape, dtype=torch.float32).double()


def keep(case, **tensors):
    for name, tensor in tensors.items():
        golden[f"{case}.{name}"] = tensor.contiguous()


def flex(q, k, v, score=None, mask=None, **options):
    """Result and logarithm of the sums."""
    block_mask = None
    if mask is not None:
        block_mask = create_block_mask(mask, None, None, q.shape[2], k.shape[2], device="cpu")
    out, aux = flex_attention(
        q, k, v, score_mod=score, block_mask=block_mask, return_aux=AuxRequest(lse=True), **options
    )
    return out, aux.lse


# A head of 16: its scale is a number of float32.
B, H, NQ, NK, D = 2, 4, 7, 11, 16
q, k, v = normal(B, H, NQ, D), normal(B, H, NK, D), normal(B, H, NK, D)
keep("all", q=q, k=k, v=v)

keep("plain", out=sdpa(q, k, v))
keep("scale", out=sdpa(q, k, v, scale=0.75))
keep("causal", out=sdpa(q, k, v, attn_mask=causal_lower_right(NQ, NK)))
k2, v2 = k[:, :2], v[:, :2]
keep("grouped", out=sdpa(q, k2, v2, enable_gqa=True))
keep("grouped_causal", out=sdpa(q, k2, v2, attn_mask=causal_lower_right(NQ, NK), enable_gqa=True))
wide = normal(B, H, NK, 13)
keep("value_dim", v=wide, out=sdpa(q, k, wide))

bias = normal(B, H, NQ, NK)
bias[:, :, 2, 3:] = float("-inf")
keep("bias", bias=bias, out=sdpa(q, k, v, attn_mask=bias))
per_key = normal(1, 1, 1, NK).expand(B, H, NQ, NK)
keep("bias_per_key", bias=per_key, out=sdpa(q, k, v, attn_mask=per_key))
mask = torch.rand(B, H, NQ, NK) < 0.6
mask[..., 0] = True
keep("mask", mask=mask.to(torch.uint8), out=sdpa(q, k, v, attn_mask=mask))


def place(i):
    return i + NK - NQ


out, lse = flex(q, k, v, score=lambda s, b, h, i, j: 2.5 * torch.tanh(s / 2.5))
keep("softcap", out=out, lse=lse)
out, lse = flex(q, k, v, mask=lambda b, h, i, j: (j <= place(i) + 1) & (j >= place(i) - 3))
keep("window", out=out, lse=lse)
slopes = torch.tensor([0.5**i for i in range(1, H + 1)], dtype=torch.float64)
out, lse = flex(
    q,
    k,
    v,
    score=lambda s, b, h, i, j: s - slopes[h] * (place(i) - j).abs(),
    mask=lambda b, h, i, j: j <= place(i),
)
keep("alibi", slopes=slopes.expand(B, H), out=out, lse=lse)
lengths = torch.tensor([NK, 4], dtype=torch.int32)
out, lse = flex(q, k, v, mask=lambda b, h, i, j: j < lengths[b])
keep("lengths", k_lengths=lengths, out=out, lse=lse)
# A row without keys: zeros, and minus infinity.
out, lse = flex(q, k, v, mask=lambda b, h, i, j: (i != 2) & (j >= 0))
hidden = torch.ones(B, H, NQ, NK, dtype=torch.uint8)
hidden[:, :, 2] = 0
keep("no_key", mask=hidden, out=out, lse=lse)

sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.float64)
scores = q @ k.transpose(2, 3) / D**0.5
joined = torch.cat([scores, sinks.view(1, H, 1, 1).expand(B, H, NQ, 1)], -1)
keep("sinks", sinks=sinks, out=torch.softmax(joined, -1)[..., :-1] @ v, lse=torch.logsumexp(joined, -1))

# Sequences of 3, 1 and 5 queries, and 6, 2 and 5 keys, in a row.
starts_q, starts_k = torch.tensor([0, 3, 4, 9]), torch.tensor([0, 6, 8, 13])
pq, pk, pv = normal(1, H, 9, D), normal(1, 2, 13, D), normal(1, 2, 13, D)
parts = []
for i in range(3):
    a, b, c, d = starts_q[i], starts_q[i + 1], starts_k[i], starts_k[i + 1]
    seen = causal_lower_right(int(b - a), int(d - c))
    parts.append(sdpa(pq[:, :, a:b], pk[:, :, c:d], pv[:, :, c:d], attn_mask=seen, enable_gqa=True))
keep("packed", q=pq, k=pk, v=pv, cu_seqlens_q=starts_q.int(), cu_seqlens_k=starts_k.int(), out=torch.cat(parts, 2))

# Two sequences of 5 and 8 keys in pages of 4.
table, counts = torch.tensor([[3, 0], [1, 4]]), [5, 8]
tk, tv = normal(5, 2, 4, D), normal(5, 2, 4, D)
one = normal(2, H, 1, D)
parts = []
for b in range(2):
    rows = [x[table[b]].transpose(0, 1).reshape(1, 2, 8, D)[:, :, : counts[b]] for x in (tk, tv)]
    parts.append(sdpa(one[b : b + 1], *rows, enable_gqa=True))
keep("pages", q=one, k=tk, v=tv, block_table=table.int(), k_lengths=torch.tensor(counts).int(), out=torch.cat(parts))

path = Path(__file__).with_name("attention.safetensors")
save_file(golden, path, metadata={"torch": torch.__version__})
print(f"{len(golden)} tensors, {path.stat().st_size} bytes, torch {torch.__version__}")
