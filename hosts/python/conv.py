"""Smears the one bright pixel of an image, in arrays of this program: conv.py <checkout> <libadvect>"""
import sys

import numpy as np
from advect import Advect, Error  # hosts/python/advect.py: one file of ctypes, to be copied

advect = Advect(sys.argv[2], sys.argv[1] + "/capi/include/advect.h", device="cpu")
image = np.zeros((1, 1, 5, 7), np.float32)
image[0, 0, 2, 3] = 1
weight = np.float32([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]])
smeared = np.empty_like(image)

try:  # The arguments are the fields of advect_conv_args. What is left out is 0: no bias, no residual, stride 1.
    advect.run("conv", x=image, weight=weight, out=smeared)
except Error as error:
    print("without padding:", error)
advect.run("conv", x=image, weight=weight, out=smeared, padding=(1, 1))
print(smeared[0, 0])
advect.close()
