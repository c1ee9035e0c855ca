"""Write the planned rows of docs/memory.md: `python tests/memory.py BUNDLE PROFILE > benchmarks/results/FILE`.

Each row is the answer of `latentc plan --memory GB --size SIDExSIDE` to one size and budget. Nothing is built or
loaded, so a bundle of random weights at full size does.
"""

import json
import sys

from latentc.compiler.budget import budget_bytes, plan_budget
from latentc.core.bundle import open_bundle
from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.profiles import load_profile

SIDES = (512, 768, 1024)
BUDGETS_GB = (4, 4.5, 6, 8, 10, 12, 24)


def main(folder: str, names: list[str]) -> None:
    bundle = open_bundle(folder)
    rows: list[str] = []
    for name in names:
        profile = load_profile(name)
        for side in SIDES:
            request = Request(prompt="", width=side, height=side)
            for budget in BUDGETS_GB:
                row = {"family": bundle.manifest.family, "profile": name, "side": side, "budget_gb": budget}
                try:
                    fitted = plan_budget(bundle, profile, budget_bytes(budget), request)
                    row["fitted"] = fitted and fitted.model_dump()
                except RequestError as exc:
                    row["refused"] = str(exc)
                rows.append(json.dumps(row))
    sys.stdout.write("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
