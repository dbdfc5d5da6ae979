"""The fake TensorRT for a build process: put the folder above first on its path.

The environment says which: FAKE_TENSORRT a version, FAKE_DEVICE attributes of the GPU as JSON.
"""

import os

from cuda.bindings.runtime import DEVICE

from tests.engines.tensorrt.fake import make_module

globals().update(vars(make_module(os.environ.get("FAKE_TENSORRT", "10.16.1.11"), device=DEVICE)))
