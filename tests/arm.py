"""Build engines and generate an image on an emulated Arm CPU, and compare with this one: `make emulated-arm`.

`python tests/arm.py FOLDER [PROFILE...]` unpacks Debian's Python and libraries for arm64, wheels for aarch64 and QEMU
into a folder, without root and without a container, and runs `doctor`, `build` and one small image for each profile, on
the emulated CPU and on this one. Without PROFILE, these are the profiles whose proof is emulation. The figures go into
RECORD, of which `tests/readme.py` makes a table. Times of an emulated CPU say nothing about a real one.
"""

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentc.core.files import sha256_json
from latentc.core.recipes import RECIPES
from latentc.core.tensors import psnr_db
from latentc.profiles import Profile, load_profile

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, RECORD = ROOT / "constraints.txt", ROOT / "benchmarks" / "results" / "arm.json"
CPUS = {
    "raspberry-pi-5": "cortex-a76",
    "edge-cpu-4gb": "cortex-a72",  # of the Raspberry Pi 4, without instructions for f16 and int8
    "cpu-openvino-f32": "cortex-a76",
}
"""The emulated CPU for each profile, by QEMU's name."""

SUITE, PYTHON = "trixie", "3.13"
"""The release of Debian and its Python. QEMU of earlier releases crashes when it runs ONNX Runtime."""
QEMU = "qemu-user"
PACKAGES = (
    *(f"{name}{PYTHON}-{kind}" for name, kind in (("python", "minimal"), ("libpython", "minimal"))),
    f"libpython{PYTHON}-stdlib",
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "liblzma5", "libbz2-1.0"),
)
GLIBC_MINORS = range(17, 42)
"""Versions of glibc 2 whose wheels trixie's glibc 2.41 can load."""
UNUSED = ("tests", "include", "hf_xet", "hf_xet.libs", "backend/test")
"""Folders of wheels that nothing here imports."""

REFERENCE = "torch-f32"
REQUEST = {"prompt": "a lighthouse at sunset", "seed": 7, "steps": 2, "guidance": 4.0}
THREADS = 2
SPINNING = "session.intra_op.allow_spinning"
"""ONNX Runtime's threads wait actively by default, which starves the others under emulation."""
COMPUTED = ("runtime", "device", "opset", "precision", "shapes", "parity_db", "options", "part_options")
"""Fields of a profile that affect its engines."""


def profile_sha256(profile: Profile) -> str:
    """Digest of what a profile computes: its proof belongs to this."""
    return sha256_json(profile.model_dump(mode="json", include=set(COMPUTED)))


def below(name: str, row: Mapping[str, Any]) -> list[str]:
    """Figures of a profile's row that are below their floors: those of the profile for its engines, those of the
    benchmark suite for the latents and the image.
    """
    profile = load_profile(name)
    found = [
        f"{part} {engine['psnr_db']:.1f} dB"
        for part, engine in row["engines"].items()
        if not engine["psnr_db"] >= profile.parity_db[engine["precision"]]
    ]
    gate = RECIPES[row["engines"]["unet"]["precision"]].gate
    floors = {"step_db": gate.part_psnr_db, "latents_db": gate.part_psnr_db, "image_db": gate.psnr_db}
    floors |= {"torch_latents_db": gate.part_psnr_db, "torch_image_db": gate.psnr_db}
    return found + [f"{one} {row[one]:.1f} dB" for one, floor in floors.items() if not row[one] >= floor]


def called(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output of a command; one that fails ends the program with the end of its output."""
    if shutil.which(str(command[0])) is None:
        sys.exit(f"{command[0]} was not found. The emulation needs Debian's apt-get and dpkg, and pip.")
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def mirror() -> str:
    """The mirror of Debian that this machine uses."""
    listed = called("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    found = next((one for one in listed if one.rstrip("/").endswith("/debian")), None)
    return found or sys.exit("This machine's package lists name no mirror of Debian. Run this on Debian.")


def get_debian(folder: Path) -> None:
    """Unpack `PACKAGES` of arm64 to `root`, and QEMU's emulator of aarch64 to `bin`."""
    apt, root = folder / "apt", folder / "root"
    for one in (
        apt / "lists" / "partial",
        apt / "cache" / "archives" / "partial",
        root / "usr" / "lib",
        folder / "bin",
    ):
        one.mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb {mirror()} {SUITE} main\n", encoding="utf-8")
    host = called("dpkg", "--print-architecture").strip()
    options = [
        *(f"-oDir::State={apt}", f"-oDir::State::status={apt / 'status'}", f"-oDir::Cache={apt / 'cache'}"),
        *(f"-oDir::Etc::SourceList={apt / 'sources.list'}", "-oDir::Etc::SourceParts=/dev/null"),
        *(f"-oAPT::Architectures::={one}" for one in (host, "arm64")),
        *("-oAPT::Sandbox::User=root", "-oAcquire::Languages=none", "-qq"),
    ]
    called("apt-get", *options, "update")
    called("apt-get", *options, "download", f"{QEMU}:{host}", *(f"{name}:arm64" for name in PACKAGES), cwd=apt)
    for path in sorted(apt.glob("*.deb")):
        if path.name.startswith(f"{QEMU}_"):
            called("dpkg", "-x", path, apt / "qemu")
            shutil.copy(apt / "qemu" / "usr" / "bin" / "qemu-aarch64", folder / "bin")
        else:
            called("dpkg", "-x", path, root)
    shutil.rmtree(apt)


def needs(names: Iterable[str]) -> list[str]:
    """Requirements of latentc and of the runtimes of some profiles."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ("build", *sorted({load_profile(name).runtime for name in names}))
    found = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return [one for one in found if not one.startswith("latentc[")]


def get_wheels(folder: Path, needed: Sequence[str]) -> None:
    """Install requirements for aarch64 to `site`, in the versions of constraints.txt, without tests and headers."""
    tags = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS))
    called(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--target", folder / "site", "--only-binary=:all:", "--python-version", PYTHON),
        *(f"--platform={tag}" for tag in tags),
        *("-c", CONSTRAINTS, *needed),
    )
    for path in [path for name in UNUSED for path in (folder / "site").rglob(name)]:
        shutil.rmtree(path, ignore_errors=True)


def get(folder: Path, needed: Sequence[str]) -> None:
    """Unpack everything, and write a `python` that runs under QEMU, also where it starts itself."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    get_debian(folder)
    get_wheels(folder, needed)
    (folder / "links").mkdir()
    (folder / "links" / "latentc").symlink_to(ROOT)
    python = folder / "bin" / "python"
    emulator, interpreter = folder / "bin" / "qemu-aarch64", folder / "root" / "usr" / "bin" / f"python{PYTHON}"
    python.write_text(f'#!/bin/sh\nexec "{emulator}" -0 "$0" "{interpreter}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)


def environment(folder: Path, cpu: str | None) -> dict[str, str]:
    """Variables for latentc on an emulated CPU, or on this one; each has proofs of its own."""
    own = {"LATENTC_STATE": str(folder / "state" / ("arm" if cpu else "here"))}
    links = str(folder / "links")
    if cpu is None:
        return os.environ | own | {"PYTHONPATH": links}
    own |= {"QEMU_CPU": cpu, "QEMU_LD_PREFIX": str(folder / "root"), "PYTHONHOME": str(folder / "root" / "usr")}
    own |= {"PYTHONPATH": os.pathsep.join((str(folder / "site"), links)), "PYTHONPYCACHEPREFIX": str(folder / "pyc")}
    return os.environ | own | {"HOME": str(folder / "home"), "PYTHONNOUSERSITE": "1"}


def draw(bundle: str, name: str, out: str) -> None:
    """Generate the image of `REQUEST`, and store it with its latents."""
    from latentc import Pipeline, Request

    profile = load_profile(name)
    if profile.runtime == "onnxruntime":
        profile = profile.with_options({SPINNING: False})
    with Pipeline.open(bundle, profile, threads=THREADS) as pipeline:
        result = pipeline(Request.model_validate(REQUEST))
    np.savez(out, image=result.images, latents=result.latents)


def drawn(python: str | Path, env: Mapping[str, str], bundle: Path, name: str, out: Path) -> dict[str, np.ndarray]:
    """The image and the latents that `draw` stores, in floats."""
    called(python, "-P", __file__, "draw", bundle, name, out, env=env)
    with np.load(out) as stored:
        return {key: stored[key].astype(np.float32) for key in stored.files}


def compared(folder: Path, bundle: Path, name: str, torch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Build and generate with a profile, on the emulated CPU and on this one; returns its row."""
    cpu, python = CPUS[name], folder / "bin" / "python"
    here, arm = environment(folder, None), environment(folder, cpu)
    called(sys.executable, "-m", "latentc", "build", bundle, "--profile", name, "--quiet", env=here)
    expected = drawn(sys.executable, here, bundle, name, folder / "here.npz")
    machine = json.loads(called(python, "-m", "latentc", "doctor", "--json", env=arm))["machine"]
    (build,) = json.loads(called(python, "-m", "latentc", "build", bundle, "--profile", name, "--json", env=arm))
    found = drawn(python, arm, bundle, name, folder / "arm.npz")
    engines = {one["part"]: one for one in build["engines"]}
    fields = next(iter(engines.values()))["fields"]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "bundle": json.loads((bundle / "latentc.json").read_text(encoding="utf-8"))["digest"],
        "profile_sha256": profile_sha256(load_profile(name)),
        "cpu": cpu,
        "instructions": machine["instructions"],
        "versions": {
            "qemu": called(folder / "bin" / "qemu-aarch64", "--version").split("version ")[1].split()[0],
            "libc": machine["libc"],
            "python": machine["python"],
            **fields["versions"],
        },
        "engines": {
            part: {"precision": one["fields"]["precision"], "psnr_db": round(one["parity"]["psnr_db"], 1)}
            for part, one in engines.items()
        },
        "step_db": round(build["step_psnr_db"], 1),
        "latents_db": round(psnr_db(expected["latents"], found["latents"]), 1),
        "image_db": round(psnr_db(expected["image"], found["image"]), 1),
        "torch_latents_db": round(psnr_db(torch["latents"], found["latents"]), 1),
        "torch_image_db": round(psnr_db(torch["image"], found["image"]), 1),
    }


def main(folder: Path, names: Sequence[str]) -> None:
    if platform.machine() != "x86_64":
        sys.exit(f"This machine is {platform.machine()}; the comparison is with x86_64. On Arm, run `latentc build`.")
    if unknown := set(names) - CPUS.keys():
        sys.exit(f"{', '.join(sorted(unknown))} cannot be emulated. Profiles: {', '.join(CPUS)}.")
    needed = needs(names)
    ready, wanted = folder / ".ready", sha256_json([*PACKAGES, *needed, CONSTRAINTS.read_text(encoding="utf-8")])
    if not (ready.exists() and ready.read_text(encoding="utf-8") == wanted):
        get(folder, needed)
        ready.write_text(wanted, encoding="utf-8")
    bundle, here = folder / "scenes.bundle", environment(folder, None)
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.rmtree(folder / "state", ignore_errors=True)
    called(sys.executable, "-m", "latentc", "export", "scenes", "-o", bundle, "--quiet", env=here)
    called(sys.executable, "-m", "latentc", "build", bundle, "--profile", REFERENCE, "--quiet", env=here)
    torch = drawn(sys.executable, here, bundle, REFERENCE, folder / "torch.npz")
    for name in names:
        row = compared(folder, bundle, name, torch)
        sys.stdout.write(f"{name}: {json.dumps(row)}\n")
        if low := below(name, row):
            sys.exit(f"{name} is below its floor: {', '.join(low)}.")
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        RECORD.write_text(json.dumps(record | {name: row}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "draw":
        draw(*sys.argv[2:])
    else:
        emulated = [name for name in CPUS if load_profile(name).proof == "emulated"]
        main(Path(sys.argv[1]).absolute(), sys.argv[2:] or emulated)
