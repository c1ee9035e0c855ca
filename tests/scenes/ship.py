"""Write `exported.tar.xz` and `references.tar.xz` of `scenes` from a bundle that `latentc export` made: `make graphs`.

python tests/scenes/ship.py BUNDLE
"""

import hashlib
import io
import json
import lzma
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

from latentc.checkpoints import SHIPPED
from latentc.checkpoints.stored import read_header
from latentc.core.bundle import MANIFEST, Bundle, open_bundle
from latentc.core.external import parameter_of
from latentc.core.files import sha256
from latentc.export.shipped import ARCHIVE, DEFINITION, FORMS, NAME, PLACES, REFERENCES, definition, in_form

MEASURED = ("psnr_db", "proved", "bf16_db")
"""Facts about a part that depend on PyTorch's outputs, which differ by CPU in the last bits."""
LEAST_BYTES = 16
"""Smaller weights stay in the graph: their values may be anywhere."""


def known_weights() -> dict[bytes, list[tuple[str, str, str]]]:
    """By digest of a weight's bytes in each form: file of the checkpoint, tensor and form."""
    found: dict[bytes, list[tuple[str, str, str]]] = {}
    for path in sorted(SHIPPED[NAME].rglob("*.safetensors")):
        for name, tensor in sorted(read_header(path)[0].items()):
            for form, (_, transposed) in FORMS.items():
                if len(tensor.shape) == 2 or not transposed:
                    place = (path.relative_to(SHIPPED[NAME]).as_posix(), name, form)
                    found.setdefault(hashlib.sha256(in_form(tensor, form)).digest(), []).append(place)
    return found


def weights_of(bundle: Bundle, part: str) -> Iterator[tuple[str, int, str, bytes]]:
    """Each weight of a part: file in the bundle, where it begins there, its name, and its bytes."""
    import onnx

    path = bundle.part(part).path
    graph, at = bundle.graph(part).read_bytes(), 0
    read: dict[str, bytes] = {}
    for tensor in onnx.load(bundle.graph(part), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            begin, end = int(place["offset"]), int(place["offset"]) + int(place["length"])
            data = f"{path.rpartition('/')[0]}/{place['location']}"
            if data not in read:
                read[data] = (bundle.folder / data).read_bytes()
            yield data, begin, tensor.name, read[data][begin:end]
        elif len(tensor.raw_data) >= LEAST_BYTES:
            at = graph.index(tensor.raw_data, at)
            yield path, at, tensor.name, tensor.raw_data


def members(bundle: Bundle) -> dict[str, bytes]:
    """The files of the archive by name; the manifest lists no references."""
    known, places = known_weights(), dict[str, dict[str, list[tuple[int, str, str]]]]()
    files = {name: info for name, info in bundle.manifest.files.items() if not name.startswith("reference/")}
    copies = {sha256(path) for path in SHIPPED[NAME].rglob("*") if path.is_file()}
    made = {name: bytearray((bundle.folder / name).read_bytes()) for name in files if files[name].sha256 not in copies}
    for part in bundle.manifest.parts:
        for file, begin, name, content in weights_of(bundle, part):
            if not (found := known.get(hashlib.sha256(content).digest())):
                continue
            parameter = parameter_of(name)[0]
            component, tensor, form = next((one for one in found if one[1].endswith(parameter)), found[0])
            places.setdefault(file, {}).setdefault(component, []).append((begin, tensor, form))
            made[file][begin : begin + len(content)] = bytes(len(content))
    manifest = bundle.manifest.model_copy(update={"files": files})
    stated = {MANIFEST: manifest.model_dump(mode="json"), PLACES: places}
    texts = {name: json.dumps(value, separators=(",", ":")).encode() for name, value in stated.items()}
    return {name: bytes(content) for name, content in made.items()} | texts


def stable(manifest: dict[str, Any]) -> dict[str, Any]:
    """What an export states of the same graphs everywhere: not what depends on the last bits of PyTorch's outputs."""
    parts = {
        name: {key: value for key, value in part.items() if key not in MEASURED}
        for name, part in manifest["parts"].items()
    }
    model = {key: value for key, value in manifest["model"].items() if key != "preview"}
    names = ("schema_version", "family", "source", "components", "license", "notices", "trained_for", "files")
    return {"parts": parts, "model": model} | {name: manifest[name] for name in names}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that differ, or that only one has; of the manifest, only what is `stable` counts."""
    found = [name for name in {**one, **other} if one.get(name) != other.get(name) and name != MANIFEST]
    manifests = [stable(json.loads(each[MANIFEST])) for each in (one, other)]
    return sorted(found) + ([MANIFEST] if manifests[0] != manifests[1] else [])


def references(bundle: Bundle) -> dict[str, bytes]:
    """The files of the archive of references by name, with the whole manifest."""
    names = [name for name in bundle.manifest.files if name.startswith("reference/")]
    whole = bundle.manifest.model_dump_json().encode()
    files = {name: (bundle.folder / name).read_bytes() for name in names}
    return files | {MANIFEST: whole, DEFINITION: definition().encode()}


def packed(files: dict[str, bytes], preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """The archive: the same files give the same bytes."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files, key=lambda name: (name.rpartition(".")[2], name)):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))
    return lzma.compress(written.getvalue(), preset=preset)


def main() -> None:
    """Write the references and the graphs."""
    bundle = open_bundle(sys.argv[1])
    REFERENCES.write_bytes(packed(references(bundle)))
    ARCHIVE.write_bytes(packed(members(bundle)))


if __name__ == "__main__":
    main()
