"""advect through ctypes and NumPy: structs and constants are read from advect.h, arrays are used in place."""

import ctypes as c
import re
from pathlib import Path

import numpy as np

TYPES = {"size_t": c.c_size_t, "uint64_t": c.c_uint64, "int64_t": c.c_int64, "uint32_t": c.c_uint32,
         "int32_t": c.c_int32, "double": c.c_double, "float": c.c_float, "char": c.c_char,
         "advect_dtype": c.c_uint32, "advect_status": c.c_int32}


class Error(Exception):
    """What advect_last_error_message says, or what is wrong before the library is asked."""


class Advect:
    """A device of the library at `path`, whose header is at `header`; constants are attributes.

    After os.fork (multiprocessing with "fork") the child makes one of its own: what was opened before it is refused.
    """

    def __init__(self, path, header, device="cpu"):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", Path(header).read_text("utf-8"), flags=re.S)
        for name, value in re.findall(r"#define ADVECT_(\w+) (\d+)", text):
            setattr(self, name, int(value))
        self.structs = {}
        for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, flags=re.S):
            fields = []
            for kind, pointer, field, count in re.findall(r"(?:const )?(\w+) (\*?)(\w+)(?:\[(\w+)\])?;", body):
                kind = c.c_void_p if pointer else TYPES.get(kind) or self.structs[kind]
                if count:
                    kind *= int(count) if count.isdigit() else getattr(self, count.removeprefix("ADVECT_"))
                fields.append((field, kind))
            self.structs[name] = type(name, (c.Structure,), {"_fields_": fields})
        self.library = c.CDLL(path)
        self.library.advect_last_error_message.restype = c.c_char_p
        self.library.advect_version_string.restype = c.c_char_p
        self.device = self.out("device_open", device.encode(), None)

    def call(self, name, *arguments):
        """Calls advect_<name>; a status other than 0 becomes an Error."""
        if getattr(self.library, "advect_" + name)(*arguments) != self.OK:
            raise Error(self.library.advect_last_error_message().decode())

    def out(self, name, *arguments):
        """The handle that advect_<name> puts into its last argument."""
        handle = c.c_void_p()
        self.call(name, *arguments, c.byref(handle))
        return handle

    def struct(self, name, **fields):
        """A struct with its size and these fields set, and the others 0."""
        kind = self.structs["advect_" + name]
        known = [field for field, _ in kind._fields_ if field not in ("struct_size", "reserved")]
        for field in fields:
            if field not in known:  # ctypes would keep it beside the struct
                raise Error(f"{name.removesuffix('_args')}: wanted {', '.join(known)}, got `{field}`")
        value = kind(**fields)
        if kind._fields_[0][0] == "struct_size":
            value.struct_size = c.sizeof(kind)
        return value

    def view(self, array, read_only=False):
        """A view of an array, which it keeps alive, and the tensor (to be destroyed) that lends its memory."""
        names = {np.float32: self.F32, np.float16: self.F16, np.int32: self.I32, np.uint8: self.U8, np.bool_: self.U8}
        dtype = {np.dtype(k): v for k, v in names.items()}.get(array.dtype)
        if dtype is None:
            raise Error(f"wanted an array of float32, float16, int32, uint8 or bool, got {array.dtype}")
        size, pad = array.itemsize, (0,) * (self.MAX_AXES - array.ndim)
        if array.ndim > self.MAX_AXES or any(s < 0 or s % size for s in array.strides):
            raise Error(f"wanted up to {self.MAX_AXES} axes, with strides of whole elements that are not below 0, "
                        f"got strides of {array.strides} bytes; np.ascontiguousarray copies")
        count = 1 + sum((d - 1) * s // size for d, s in zip(array.shape, array.strides)) if array.size else 0
        flags = self.READ_ONLY if read_only or not array.flags.writeable else 0
        memory = c.c_void_p(array.ctypes.data), c.c_size_t(count * size)
        tensor = self.out("tensor_from_host", *memory, dtype, 1, (c.c_uint64 * 1)(count), flags)
        strides = tuple(s // size for s in array.strides)
        view = self.struct("view", tensor=tensor, shape=array.shape + pad, strides=strides + pad,
                           rank=array.ndim, dtype=dtype)
        view.array = array
        return view

    def run(self, op, **fields):
        """Calls an op; arrays become views, None stays absent, a list of arrays fills an array of views."""
        views, ops = [], [name[7:-5] for name in self.structs if name.endswith("_args")]
        if op not in ops:
            raise Error(f"wanted an op: {', '.join(ops)}, got `{op}`")

        def field(value):
            if isinstance(value, list):
                return tuple(field(v) for v in value)
            if not isinstance(value, np.ndarray):
                return value
            views.append(self.view(value))
            return c.addressof(views[-1])

        try:
            fields = {name: field(value) for name, value in fields.items()}
            self.call(op, self.device, c.byref(self.struct(op + "_args", **fields)))
        finally:
            for view in views:
                self.call("tensor_destroy", c.c_void_p(view.tensor))

    def solve(self, velocity, x, method, times=None, steps=0):
        """Integrates dx/dt = velocity(t, x), which returns a new array, from the array x, which is written over."""
        times = () if times is None else [float(t) for t in times]
        times = (c.c_double * len(times))(*times)
        options = self.struct("solver_options", method=method, steps=steps, times_count=len(times),
                              times=c.addressof(times) if len(times) else None)
        solver = self.out("solver_new", c.byref(options))
        try:
            return self.steps(solver, velocity, x)
        finally:
            self.call("solver_destroy", solver)

    def steps(self, solver, velocity, x):
        """Answers all that a solver asks."""
        info, ask = self.struct("solver_info"), self.struct("ask")
        self.call("solver_describe", solver, c.byref(info))
        states = [x] + [np.empty_like(x) for _ in range(1, info.states)]
        slopes = [None] * info.stages
        while True:
            self.call("solver_next", solver, c.byref(ask))
            if ask.kind == self.ASK_DONE:
                return states[ask.state]
            if ask.kind == self.ASK_EVAL:
                slopes[ask.stage] = velocity(ask.t, states[ask.state])
                continue
            terms = ask.terms[: ask.term_count]
            buffers = [(states if t.source == self.SOURCE_STATE else slopes)[t.index] for t in terms]
            pad = [None] * (self.MAX_BUFFERS - len(terms))
            self.run("step", x=buffers + pad, out=states[ask.state],
                     coefficients=tuple(t.coefficient for t in terms) + (0,) * len(pad))

    def close(self):
        """Destroys the device."""
        self.call("device_destroy", self.device)
