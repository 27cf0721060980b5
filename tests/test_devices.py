"""What a process is told of itself and of torch."""

import subprocess
import sys

import numpy as np
import pytest

from alignvl_cli.devices import peak_resident_bytes

MIB = 2**20
ASK = "from alignvl_cli.devices import peak_resident_bytes; print(peak_resident_bytes())"


@pytest.mark.skipif(sys.platform == "win32", reason="nobody counts there")
def test_the_peak_is_the_process_own():
    """It grows with what was held and not with what the process that started it held; nothing is taken off later."""
    before = peak_resident_bytes()
    held = np.ones((before + 200 * MIB) // 8)
    peak = peak_resident_bytes()
    assert peak >= held.nbytes
    child = int(subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout)
    del held
    assert peak_resident_bytes() >= peak - MIB  # the kernel counts in lots
    assert MIB < child < peak / 2
