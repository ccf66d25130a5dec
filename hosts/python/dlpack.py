"""DLPack both ways through ctypes: NumPy's arrays in advect, and advect's tensors in NumPy, without a copy."""

import ctypes as c

api = c.pythonapi
api.PyCapsule_New.restype, api.PyCapsule_New.argtypes = c.py_object, [c.c_void_p, c.c_char_p, c.c_void_p]
api.PyCapsule_SetName.argtypes = [c.py_object, c.c_char_p]
api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = c.c_void_p, [c.py_object, c.c_char_p]
# Capsules keep these by address. That of a used one says so, and its struct is no longer its own.
NAMES = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}
FROM = {b"dltensor": "tensor_from_dlpack", b"dltensor_versioned": "tensor_from_dlpack_versioned"}
VIEW = {b"dltensor": "view_to_dlpack", b"dltensor_versioned": "view_to_dlpack_versioned"}


def imported(advect, array):
    """A tensor (to be destroyed) over an array's memory, which it keeps alive."""
    capsule, name = array.__dlpack__(max_version=(1, 0)), b"dltensor_versioned"
    tensor = advect.out(FROM[name], None, c.c_void_p(api.PyCapsule_GetPointer(capsule, name)))
    api.PyCapsule_SetName(capsule, NAMES[name])
    return tensor


class Exported:
    """A view of advect as an object that np.from_dlpack takes."""

    def __init__(self, advect, view):
        self.advect, self.view = advect, view

    def __dlpack_device__(self):
        return 1, 0  # kDLCPU

    def __dlpack__(self, *, max_version=None, **_):
        name = b"dltensor_versioned" if max_version is not None and max_version[0] >= 1 else b"dltensor"
        managed = self.advect.out(VIEW[name], c.byref(self.view))
        return api.PyCapsule_New(managed, name, c.cast(self.destructor(name), c.c_void_p))

    def destructor(self, name):
        """Gives back, through advect, the struct of a capsule that nobody has used."""
        if name not in DESTRUCTORS:
            advect, valid = self.advect, c.PYFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p)(("PyCapsule_IsValid", api))
            pointer = c.PYFUNCTYPE(c.c_void_p, c.c_void_p, c.c_char_p)(("PyCapsule_GetPointer", api))

            def destroy(capsule):
                if valid(capsule, name):
                    managed = c.c_void_p(pointer(capsule, name))
                    advect.call("tensor_destroy", advect.out(FROM[name], None, managed))

            DESTRUCTORS[name] = c.PYFUNCTYPE(None, c.c_void_p)(destroy)
        return DESTRUCTORS[name]


DESTRUCTORS = {}  # which capsules know by address, and which stay until the program ends
