"""The fake CUDA runtime for a build process."""

import json
import os

from tests.engines.tensorrt.fake.cuda import Device, make_cuda

DEVICE = Device()
vars(DEVICE).update(json.loads(os.environ.get("FAKE_DEVICE", "{}")))
globals().update(vars(make_cuda(DEVICE)), DEVICE=DEVICE)
