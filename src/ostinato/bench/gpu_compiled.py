"""What Triton's compiler made of a kernel, without a GPU: memory, registers and instructions.

Read by NVIDIA's tools, which Triton brings. The kernels, and what must be true of them, are in
`kernels/triton_cases.py`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ostinato.kernels.triton_cases import CompileCase

# Shared memory that a thread block may have, in bytes, by compute capability: 163 KB and 227 KB.
SHARED_LIMITS = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}
# How far ahead h is read was chosen so that this compiler keeps all of it in registers. Others order loads
# otherwise: Triton 3.9 puts up to 304 bytes of the largest kernels aside, which should cost less than reading
# h late.
TUNED_FOR, STACK_OF_OTHERS = "3.6.", 320


class Findings(NamedTuple):
    """Of one compiled kernel.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread, in local memory: what does not fit into registers.
        spills: loads and stores of local memory among the instructions.
        shared_bytes: of a thread block.
        wide_products: instructions for tensor cores of capability 9 (HGMMA).
        products: those of all capabilities (HMMA).
        instructions: in all.
        seconds: that the compilation took, next to nothing where it was cached.
    """

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    wide_products: int
    products: int
    instructions: int
    seconds: float


def cases() -> list[CompileCase]:
    """Of recurrences and of scans."""
    from ostinato.kernels import triton_cases, triton_scan_cases

    return [*triton_cases.compile_cases(), *triton_scan_cases.compile_cases()]


def examine(case: CompileCase) -> Findings:
    """Compile a kernel and look at it."""
    from ostinato.kernels.triton_cases import compiled

    began_s = time.perf_counter()
    kernel = compiled(case)
    seconds = time.perf_counter() - began_s
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = _said("--dump-resource-usage", path)
        code = _said("--dump-sass", path)
    words = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    heads = [word.split(".")[0] for word in words]
    return Findings(
        _number("REG", usage), _number("STACK", usage), sum(head in ("LDL", "STL") for head in heads),
        int(kernel.metadata.shared), heads.count("HGMMA"), heads.count("HMMA"), len(heads), seconds,
    )  # fmt: skip


def _said(what: str, path: Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, what, path], capture_output=True, text=True, check=True)
    return done.stdout


def _is_tuned() -> bool:
    import triton

    return str(triton.__version__).startswith(TUNED_FOR)


def _number(name: str, usage: str) -> int:
    found = re.search(rf"{name}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of {name}: {usage[:300]}")
    return int(found[1])


def faults(case: CompileCase, found: Findings) -> list[str]:
    """What is not as the case says it must be; nothing where all is well."""
    facts: Any = case.facts
    limit = min(facts.shared_bytes, SHARED_LIMITS[case.capability])
    wrong = []
    if found.shared_bytes > limit:
        wrong.append(f"{found.shared_bytes} bytes of shared memory, expected at most {limit}")
    if found.shared_bytes < facts.resident_bytes:
        wrong.append(
            f"{found.shared_bytes} bytes of shared memory, expected {facts.resident_bytes} of weights in it"
        )
    allowed = 0 if _is_tuned() else STACK_OF_OTHERS
    if facts.hot and found.stack_bytes > allowed:
        wrong.append(
            f"{found.spills} spills, {found.stack_bytes} bytes of stack, expected "
            + (f"at most {allowed} bytes" if allowed else "none")
        )
    if facts.products and not (found.wide_products if facts.wide else found.products):
        name = "HGMMA" if facts.wide else "HMMA"
        wrong.append(f"no {name} among {found.instructions} instructions")
    return wrong
