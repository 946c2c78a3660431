"""Compile every Triton kernel of the table without a GPU, and look at memory, registers and instructions.

    python benchmarks/triton_compile.py [--only WORD] [--jobs N] [--json FILE]

Exit code 1: a kernel is not as `kernels/triton_cases.py` says it must be, or does not compile.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ostinato.bench import gpu_compiled


def look(number: int) -> dict[str, Any]:
    case = gpu_compiled.cases()[number]
    try:
        found = gpu_compiled.examine(case)
    except Exception as error:  # noqa: BLE001 - the compiler may fail in any way, and the others go on
        return {"name": case.name, "faults": [f"{type(error).__name__}: {str(error)[:300]}"]}
    return {"name": case.name, **found._asdict(), "faults": gpu_compiled.faults(case, found)}


def text_of(row: dict[str, Any]) -> str:
    numbers = {name: value for name, value in row.items() if name not in ("name", "faults", "seconds")}
    said = ", ".join(f"{name} {value}" for name, value in numbers.items())
    wrong = f" WRONG: {'; '.join(row['faults'])}" if row["faults"] else ""
    return f"{row['name']}: {said}, {row.get('seconds', 0):.1f} s{wrong}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names with this word, such as sm_90")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    numbers = [i for i, case in enumerate(gpu_compiled.cases()) if given.only in case.name]
    rows = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for row in pool.map(look, numbers):
            rows.append(row)
            print(text_of(row), flush=True)
    wrong = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} kernels, {wrong} not as they must be")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
