"""What a careless Python program does with hosts/python: it gets an Error, and nothing is left behind.

    misuse.py <checkout> <libadvect>
"""

import ctypes as c
import gc
import os
import signal
import sys
import traceback
import weakref

import numpy as np

sys.path.insert(0, sys.argv[1] + "/hosts/python")
from advect import Advect, Error  # noqa: E402
from dlpack import Exported, imported  # noqa: E402

advect = Advect(sys.argv[2], sys.argv[1] + "/capi/include/advect.h")
x = np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)


def up(x, out=None):
    out = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), x.dtype) if out is None else out
    advect.run("resample", x=x, out=out, mode=advect.RESAMPLE_UP2)
    return out


def refused(call, says):
    try:
        call()
    except Error as error:
        assert says in str(error), error
    else:
        raise AssertionError("not refused: " + says)


def most(make, destroy):
    """The highest slot of several new objects: what is left behind would push it up."""
    handles = [make() for _ in range(16)]
    for handle in handles:
        advect.call(destroy, handle)
    return max(handle.value & ((1 << 28) - 1) for handle in handles)


def tensors():
    return most(lambda: advect.out("tensor_new", advect.device, advect.F32, 0, None), "tensor_destroy")


def solvers():
    options = advect.struct("solver_options", method=advect.METHOD_EULER, steps=1)
    return most(lambda: advect.out("solver_new", c.byref(options)), "solver_destroy")


def fails(t, x):
    raise ZeroDivisionError


before = tensors(), solvers()
# Strided, sliced, repeated and empty arrays are used as they are.
for view in (x, x[:, :, ::2, 1::2], x.transpose(0, 1, 3, 2), np.broadcast_to(x, (3, 1, 4, 6)), x[:0], x[:, :, :0]):
    assert (up(view) == view.repeat(2, 2).repeat(2, 3)).all()
pairs = np.zeros(24, [("x", "<f4"), ("other", "<u2")])  # 6 bytes apart
for wrong in (pairs["x"].reshape(1, 1, 4, 6), x[:, :, ::-1], x[..., ::-1]):
    refused(lambda: up(wrong), "np.ascontiguousarray copies")
refused(lambda: up(np.frombuffer(bytearray(97), np.uint8)[1:].view(np.float32).reshape(x.shape)), "aligned")
for dtype in (np.float64, np.int64, ">f4"):
    refused(lambda: up(x.astype(dtype)), "wanted an array of float32, float16, int32")
    refused(lambda: up(x, np.zeros((1, 1, 8, 12), dtype)), "wanted an array of float32, float16, int32")
for dtype in (np.int32, bool):
    refused(lambda: up(x.astype(dtype), np.zeros((1, 1, 8, 12), dtype)), "`x`: wanted f32, f16 or bf16")
refused(lambda: up(np.zeros((1,) * 9, np.float32)), "up to 8 axes")
refused(lambda: up(np.zeros((1,) * 7, np.float32)), "at most 6 axes")
refused(lambda: up(x, np.broadcast_to(np.float32(0), (1, 1, 8, 12))), "read-only")
refused(lambda: up(x, x), "memory apart from")
# What is misspelt is not left out.
refused(lambda: advect.run("resample", x=x, out=x, mod=1), "resample: wanted x, out, mode, got `mod`")
refused(lambda: advect.run("conv", x=x, weight=x, bais=x, out=x), "sample_bias, residual, out, stride")
refused(lambda: advect.run("resample", x=x, out=x, struct_size=8), "got `struct_size`")
refused(lambda: advect.run("resmaple", x=x), "norm, attention, merge, linear_attention, resample, step, got `resmaple`")
refused(lambda: advect.run("view", tensor=1), "got `view`")
refused(lambda: advect.struct("solver_options", setps=3), "solver_options: wanted method, steps")
ends = [advect.solve(lambda t, x: x, np.ones((1, 4), np.float32), advect.METHOD_EULER, times=times, steps=steps)
        for times, steps in ((None, 2), ([0, 0.5, 1], 0), (np.linspace(0, 1, 3, dtype=np.float32), 0))]
assert all((end == 2.25).all() for end in ends), ends
refused(lambda: advect.solve(fails, x, advect.METHOD_EULER, times=np.array([])), "`steps`")
for _ in range(3):
    try:
        advect.solve(fails, np.zeros((1, 4), np.float32), advect.METHOD_EULER, steps=2)
    except ZeroDivisionError:
        continue
    raise AssertionError("the network's error is lost")
assert (tensors(), solvers()) == before, "something is left behind"

# A view keeps its array, and what DLPack gave is given back: by a tensor, by NumPy, by a capsule that nobody took.
array = np.ones(4, np.float32)
there, view = weakref.ref(array), advect.view(array)
del array
gc.collect()
assert there() is not None
advect.call("tensor_destroy", c.c_void_p(view.tensor))
del view
assert there() is None

array = np.ones(4, np.float32)
there, tensor, view = weakref.ref(array), imported(advect, array), advect.struct("view")
advect.call("tensor_view", tensor, c.byref(view))
theirs = np.from_dlpack(Exported(advect, view))
capsules = [Exported(advect, view).__dlpack__(max_version=version) for version in (None, (1, 0))]
advect.call("tensor_destroy", tensor)
del array
assert there() is not None and (theirs == 1).all()
del theirs
assert there() is not None
del capsules
assert there() is None
refused(lambda: np.from_dlpack(Exported(advect, view)), "destroyed")
refused(lambda: imported(advect, np.ones(4)), "f32, f16, bf16, i32")
refused(lambda: imported(advect, np.ones(4, np.float32)[::-1]), "at least 0")
assert tensors() == before[0], "something is left behind"

# A child has the device and not its threads: it is refused and does not wait for ever, and one of its own works.
child = os.fork()
if child == 0:
    try:
        signal.alarm(60)
        refused(lambda: up(x), "`device`: wanted one of this process")
        advect.close()
        advect = Advect(sys.argv[2], sys.argv[1] + "/capi/include/advect.h")
        assert (up(x) == x.repeat(2, 2).repeat(2, 3)).all()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
up(x)
advect.close()
refused(lambda: up(x), "destroyed")
refused(lambda: Advect(sys.argv[2], sys.argv[1] + "/capi/include/advect.h", "tpu"), "`name`")
