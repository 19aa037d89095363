"""What the process is set up with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORK = """
import re, sys
from pathlib import Path
from mithridate.environment import use_huge_pages
use_huge_pages()
import torch
kept = torch.ones(64 << 20, dtype=torch.uint8)
sizes = re.findall(r"^AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps").read_text(), re.MULTILINE)
print(sum(map(int, sizes)))
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(), reason="no huge pages for who asks for them"
)
@pytest.mark.parametrize(("given", "huge"), [(None, True), ("0", False)])
def test_torch_is_given_huge_pages_unless_the_environment_says_otherwise(given, huge):
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    found = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, env=environment, check=True)
    assert (int(found.stdout) > 32 << 10) == huge
