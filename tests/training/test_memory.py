"""What a step frees is there for the next one."""

import platform

import pytest
import torch

from ostinato.training.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a rule of glibc's allocator")
def test_blocks_of_a_megabyte_are_not_asked_for_anew_at_each_step():
    import resource

    keep_freed_memory()
    torch.ones(2**18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        torch.ones(2**18)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 100 * 256 // 4, f"{faults} page faults for 100 blocks of 256 pages"
