"""``python -m ppsr2q.ops``: which operators a kernel serves on this machine, and why not all."""
from __future__ import annotations

import sys

from ppsr2q.core.errors import UserError
from ppsr2q.ops import dispatch, native


def report() -> str:
    """The table as text; builds the kernels when they are not in the cache."""
    lines = []
    if native.why_unavailable() is None:
        lines.append(f"library:         {native.library()._name}")
        lines.append(f"instruction set: {native.instruction_set()}")
        lines.append(f"threads:         {native.get_threads()} (OMP_NUM_THREADS)")
        lines.append("")
    rows = [("operator", "served by", "why, or where the reference steps in")]
    for operator in dispatch.ARGUMENTS:
        reason = dispatch.why_reference(operator)
        served_by = "reference" if reason else "kernel"
        rows.append((operator, served_by, reason or dispatch.limits(operator)))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines += [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
    lines += ["", "Every kernel takes float32 tensors on the CPU outside of traced graphs and range "
              "searches; anything else goes to the reference."]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(report())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
