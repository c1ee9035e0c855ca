"""Energy of the CPU packages from the kernel's RAPL counters, if they exist and are readable.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MICROJOULES = 1_000_000


def read_counters(folder: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Microjoules of each CPU package and the value at which its counter wraps; empty if unavailable."""
    found: dict[str, tuple[int, int]] = {}
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's have the same name
            if (zone / "name").read_text(encoding="ascii").startswith("package"):
                count = int((zone / "energy_uj").read_text(encoding="ascii"))
                found[zone.name] = count, int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
    except (OSError, ValueError):  # since Linux 5.10 only root may read the counters
        return {}
    return found


def joules(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> float | None:
    """Joules between two readings; None without readings. A counter may have wrapped once."""
    if not before or before.keys() != after.keys():
        return None
    used = 0
    for zone, (start, wraps_at) in before.items():
        used += (after[zone][0] - start) % (wraps_at + 1)
    return used / MICROJOULES
