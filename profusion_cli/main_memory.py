"""How much main memory there is."""

from __future__ import annotations

import re
from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may use."""


def main_memory() -> dict[str, int]:
    """Main memory in bytes, free and in all; of a container's limit, where there is one."""
    import psutil

    whole = psutil.virtual_memory()
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        used = re.search(r"^anon (\d+)$", (CONTAINER / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit
        return {"free": whole.available, "total": whole.total}
    left = limit - int(used[1]) if used else limit
    return {"free": max(min(whole.available, left), 0), "total": min(whole.total, limit)}
