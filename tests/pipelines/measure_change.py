"""Measure how accurately swapped engines make an adapter's change, and planted faults, for `HEADROOM_DB`.

    python tests/pipelines/measure_change.py BUNDLE LORA PROFILE all|honest STRENGTH ...

Prints a line for each engine, strength and fault: the PSNR of the part's own engine and of the swapped one, the share
of the change in the output in dB, the SNR of the change, that SNR less the share, which depends little on the strength
for a correct engine, and whether the engine is accepted. The bundle is built for the profile.
"""

import sys
import tempfile
from dataclasses import replace
from math import log10
from pathlib import Path

import numpy as np

from latentc.checkpoints.adapters.fuse import fuse as fused_weights
from latentc.compiler import swap
from latentc.compiler.build import build
from latentc.compiler.engines import load
from latentc.core.bundle import open_bundle
from latentc.core.errors import ParityError
from latentc.core.external import map_values
from latentc.export.fused import _load, _weights, adapters_of, write_changed
from latentc.profiles import load_profile


def weights_of(bundle, part):
    """The weights of a part's graph, by the names of their parameters."""
    model = _load(bundle, part)
    map_values(model)
    return _weights(model)


def size_of(edit, weights):
    """The norm of what an edit changes."""
    stored = {name: weights[name].values() for name in edit.names}
    return sum(np.linalg.norm(values - stored[name]) for name, values in fused_weights(stored, [edit]).items())


def exchanged_layers(edits, weights):
    """The edits, with the changes of two layers of one shape exchanged: of the largest ones that there are."""
    seen = {}
    for place, edit in enumerate(edits):
        kind = weights[edit.names[0]].shape, tuple(sorted((name, slot.shape) for name, slot in edit.slots.items()))
        if kind in seen and len(edit.names) == 1:
            other = seen[kind]
            changed = list(edits)
            changed[place], changed[other] = (
                replace(edit, slots=edits[other].slots),
                replace(edits[other], slots=edit.slots),
            )
            return changed
        seen[kind] = place
    return None


def faults(edits, weights):
    """Planted faults: other edits, by what is wrong with them."""
    edits = sorted(edits, key=lambda edit: -size_of(edit, weights))
    yield "honest", edits
    for word, place in (("largest", 0), ("median", len(edits) // 2), ("smallest", len(edits) - 1)):
        yield f"{word} weight unchanged", [*edits[:place], *edits[place + 1 :]]
    scaled = [replace(edits[0], strength=edits[0].strength * 1.1), *edits[1:]]
    yield "largest change times 1.1", scaled
    yield "strength times 1.1", [replace(edit, strength=edit.strength * 1.1) for edit in edits]
    yield "strength times 1.01", [replace(edit, strength=edit.strength * 1.01) for edit in edits]
    yield "strength negated", [replace(edit, strength=-edit.strength) for edit in edits]
    yield "nothing changed", []
    if exchanged := exchanged_layers(edits, weights):
        yield "two layers exchanged", exchanged


def main(folder, lora, name, what, *strengths):
    bundle = open_bundle(folder)
    (adapter,) = adapters_of(bundle, {lora: 1.0})
    profile = load_profile(name)
    build(bundle, profile)
    with load(bundle, profile) as engines:
        for want in [one for one in engines.wanted if one.part in adapter.edits]:
            weights = weights_of(bundle, want.part)
            for strength in map(float, strengths):
                edits = [replace(edit, strength=strength) for edit in adapter.edits[want.part]]
                with tempfile.TemporaryDirectory() as place:
                    report(engines, want, edits, weights, strength, Path(place), honest=what == "honest")


def report(engines, want, edits, weights, strength, place, *, honest):
    (place / "asked").mkdir()
    asked = write_changed(engines.bundle, want.part, edits, place / "asked")
    for number, (what, wrong) in enumerate(faults(edits, weights)):
        if honest and number:
            return
        folder = place / str(number)
        folder.mkdir()
        engine = swap._open(engines, want, write_changed(engines.bundle, want.part, wrong, folder))
        found = swap.compare(engines.bundle, want, engine, asked.graph)
        engine.close()
        own, share_db = engines.figures(want), 20 * log10(found.change_share)
        try:
            swap.check(engines.bundle, engines.profile, want, found, own)
            verdict = "accepted"
        except ParityError:
            verdict = "refused"
        figures = (own.psnr_db, found.parity.psnr_db, share_db, found.change_db, found.change_db - share_db)
        shown = (f"{one:.1f}" for one in figures)
        sys.stdout.write("\t".join((engines.profile.name, want.part, f"{strength}", what, *shown, verdict)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
