"""What holds for every test: no model hub, and threads that wait without spinning (as `alignvl` itself sets them)."""

import os
import tempfile

import support  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # transformers copies code of models there: processes would disturb each other
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="alignvl-modules-")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
