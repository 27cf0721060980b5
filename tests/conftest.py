"""What holds for every test: no model hub, and threads that wait without spinning (as `alignvl` itself sets them)."""

import os

import support  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
