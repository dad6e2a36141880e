import ctypes
import subprocess
import sys

import pytest

FREED = """
import sys
import torch
from models.memory import keep_freed_memory

def kilobytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

assert sys.argv[1] == "as it is" or keep_freed_memory()
before = kilobytes()
torch.ones(50_000_000)
print(kilobytes() - before)
"""


def kept_megabytes(how: str) -> float:
    said = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_freed_memory_is_kept():
    assert kept_megabytes("kept") > 190 > 50 > kept_megabytes("as it is")
