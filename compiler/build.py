"""From bundle and profile to verified engines: look up existing ones, compile missing ones, prove and store them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

from ..core.bundle import GRAPHS, Bundle, check_sizes, check_whole, open_bundle, verify_files
from ..core.errors import (
    BundleError,
    CompileError,
    InexactError,
    LatentcError,
    ParityError,
    ProfileError,
    RuntimeMissing,
    ShapeError,
)
from ..core.files import fresh_folder
from ..core.progress import Progress, quiet
from ..core.records import recall, remember
from ..core.references import stored_at
from ..core.standing import PROVED, Standing
from ..profiles import Profile, load_profile
from .apart import measured_apart
from .cache import (
    Artifact,
    Miss,
    Parity,
    artifacts,
    check_place,
    claim,
    explain,
    find,
    loadable,
    locked,
    seal,
    share,
    sweep,
    take,
)
from .calibrate import uncalibrated
from .engines import Engines
from .looped import without_step
from .make import make
from .packaged import usual_profile
from .parity import check_graphs
from .plan import planned
from .proof import (
    Steps,
    check_floor,
    check_steps,
    engine_key,
    prove_host,
    prove_steps,
    steps_key,
    unproved,
)
from .refused import refuse
from .sized import with_built_sizes, with_known_sizes
from .states import Found, Site, looked
from .targets import Wanted, floor_db, wanted

How = Literal["there", "taken", "refitted", "compiled"]


@dataclass(frozen=True)
class Built:
    """One engine of a build."""

    artifact: Artifact
    how: How
    """Whether it already existed, was taken from another bundle, refitted from another bundle's engine, or compiled."""
    note: str | None = None
    """A message to the user: why refitting failed, or that a damaged engine was replaced."""

    @property
    def hit(self) -> bool:
        """Whether it already existed."""
        return self.how == "there"


@dataclass(frozen=True)
class Build:
    """The result of a build."""

    profile: str
    engines: tuple[Built, ...]
    host_psnr_db: float
    """PSNR of what latentc computes outside the engines, against diffusers' pipeline."""
    steps: Steps | None
    """Figures of the whole step, of what the prompt changes in it, and of an image; None without the device."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Messages on what was not proved."""
    standing: Standing = PROVED
    """What stands behind the references that the engines agree with."""
    condition: str = "prompt"
    """What the model generates from: `prompt` or `image`."""

    @property
    def step_psnr_db(self) -> float | None:
        """PSNR of the whole step, each started from diffusers' own latents; None without the device."""
        return self.steps.step_db if self.steps else None


def build(
    bundle: Bundle | Path | str,
    profile: Profile | Path | str | None = None,
    on_progress: Progress = quiet,
    *,
    force: bool = False,
    like: Bundle | Path | str | None = None,
) -> Build:
    """Compile each part for a profile unless its artifact exists, compare it with the reference, and store it.

    Bundles and the profile are given as objects, names or paths; the default profile is `usual_profile`.

    Where the device is absent and the compiler works without it, the graph is compared instead, run on the CPU.
    The same build on a machine with the device then compares the engines without compiling them again.

    `like` is another bundle, for example of the checkpoint that this one was fine-tuned from. Its engines of equal
    parts are taken over. Its engines of parts that differ by their weights alone are refitted with the new weights,
    where runtime and options support that, and compared as any other.

    Where the profile names several precisions for a part, and its engine in one is below the floor, the next is built,
    and `Build.notes` says so.

    Raises `CompileError` where missing engines are predicted not to fit, unless `force` is set; `ParityError` naming
    part and figure where an engine is below the profile's floor. Such an engine is not stored, unless it was built on
    another machine. Also raises `RuntimeMissing`, `ProfileError`, and `BundleError` for a damaged bundle.
    """
    start = time.perf_counter()
    bundle, like = open_bundle(bundle), None if like is None else open_bundle(like)
    profile = usual_profile(bundle) if profile is None else load_profile(profile)
    site = _site(bundle, profile, like, on_progress)
    while True:
        try:
            return replace(_built(site, force=force), seconds=time.perf_counter() - start)
        except _Refused as exc:
            before, site = site, _site(bundle, profile, like, on_progress)
            if [want.key for want in site.engines] == [want.key for want in before.engines]:  # the record was not read
                raise ParityError(str(exc)) from exc


def _built(site: Site, *, force: bool) -> Build:
    """One build; raises `_Refused` where it should be repeated, because another precision is next."""
    bundle, profile, on_progress = site.bundle, site.profile, site.on_progress
    check_sizes(bundle)
    # Graphs and weights are verified when a part is compiled.
    verify_files(bundle, [name for name in bundle.manifest.present if not GRAPHS.search(name)])
    sweep(bundle)
    built: dict[str, Built] = {}
    with looked(site) as (found, locks):
        _check_makable(site, [one.want for one in found.values() if not one.is_there])
        host = prove_host(bundle)
        if site.adapter.facts.reads_onnx:
            check_graphs(bundle, bundle.manifest.parts, on_progress)
        _check_compilable(site, [one.want for one in found.values() if one.state in ("refit", "compile")])
        if not force and any(one.state in ("refit", "compile") for one in found.values()):
            _check_fit(site, {key: one.artifact for key, one in found.items() if one.is_there})
        for key in dict.fromkeys(want.key for want in site.engines):
            with locks[key]:
                built[key] = _done(site, found[key])
    built = {key: _claimed(site, one) for key, one in built.items()}
    engines: list[Built] = []
    for want in site.engines:  # two equal sizes share one engine: the second reports it as existing
        again = any(one.artifact.key == want.key for one in engines)
        engines.append(replace(built[want.key], how="there", note=None) if again else built[want.key])
    steps = _prove_steps(site, {key: one.artifact for key, one in built.items()}) if site.here else None
    remark = site.adapter.remark([bundle.engines / one.artifact.name for one in built.values()], profile.device)
    return Build(
        profile=profile.name,
        engines=tuple(engines),
        host_psnr_db=host,
        steps=steps,
        seconds=0.0,
        notes=(*_refused(site), *unproved(bundle), *filter(None, (remark, without_step(bundle, profile)))),
        standing=bundle.standing,
        condition=bundle.manifest.model.condition,
    )


class _Refused(ParityError):
    """An engine is below its floor, and the profile names a further precision for its part."""


def _refused(site: Site) -> tuple[str, ...]:
    """Sentences on engines that were refused, and on what was built instead."""
    return tuple(
        dict.fromkeys(
            f"{refused.sentence} {want.part} is built in {want.target.precision} instead."
            for want in site.engines
            for refused in want.refused
        )
    )


def _require(site: Site, want: Wanted, parity: Parity, built: Parity | None = None) -> None:
    """`check_floor`, for an engine that was not changed since it was built."""
    bundle, profile = site.bundle, site.profile
    try:
        check_floor(bundle, profile, want, parity, built)
    except ParityError as exc:
        if want.is_last or (built is not None and built.psnr_db >= floor_db(bundle, profile, want, built)):
            raise
        _refuse(site, want, parity, exc)


def _refuse(site: Site, want: Wanted, parity: Parity, exc: LatentcError, reason: str | None = None) -> NoReturn:
    """Record that an engine is below its floor, and raise `_Refused`."""
    refuse(site.bundle, want.fields, parity, floor_db(site.bundle, site.profile, want, parity), reason)
    raise _Refused(str(exc)) from exc


def check(bundle: Bundle, profile: Profile, *, force: bool = False, like: Bundle | None = None) -> None:
    """Raise the errors that `build` would raise before it compiles anything; only headers of engines are read."""
    site = _site(bundle, profile, like, quiet)
    there = {want.key: find(bundle, want.part, want.key) for want in site.engines}
    lacking = [want for want in site.engines if there[want.key] is None]
    _check_makable(site, lacking)
    made = [want for want in lacking if site.source(want).state != "take"]
    _check_compilable(site, made)
    if made and not force:
        _check_fit(site, there)


def _site(bundle: Bundle, profile: Profile, like: Bundle | None, on_progress: Progress) -> Site:
    adapter, engines = wanted(bundle, profile, to_run=False)
    every = with_known_sizes(bundle, profile, {want.name for want in engines})
    if every != profile:
        profile = every
        adapter, engines = wanted(bundle, profile, to_run=False)
    return Site(bundle, profile, adapter, engines, adapter.missing(profile.device) is None, like, on_progress)


def _check_makable(site: Site, lacking: Sequence[Wanted]) -> None:
    """Raise `BundleError` where missing engines can't be added to the bundle."""
    if lacking:
        check_whole(site.bundle, f"{lacking[0].part} cannot be built for profile {site.profile.name}")
        check_place(site.bundle)


def _check_compilable(site: Site, wants: Iterable[Wanted]) -> None:
    """Raise `RuntimeMissing` where compiling takes more than the runtime, and that is not installed, and `ProfileError`
    for a part that can't be calibrated.
    """
    for want in wants:
        if want.target.recipe.calibrated and (reason := uncalibrated(site.bundle, want.part)):
            raise ProfileError(
                f"{want.part} can't be built in {want.target.precision}: {reason} Set another precision for it under "
                "[precision]."
            )
        if reason := site.adapter.uncompilable(want.target):
            raise RuntimeMissing(f"{want.part} can't be built in {want.target.precision}: {reason}")


def _check_fit(site: Site, there: Mapping[str, Artifact | None]) -> None:
    """Raise `CompileError` where the missing engines are predicted not to fit; `there` is keyed by engine key."""
    asked = [(want.part, want.target, there.get(want.key)) for want in site.engines]
    bundle, profile = site.bundle, site.profile
    try:
        complaints = planned(bundle, profile, site.adapter, asked).complaints
    except (BundleError, ShapeError):  # without a prediction the build goes on
        return
    if complaints:
        raise CompileError(
            f"Profile {profile.name} is predicted not to fit. {'. '.join(complaints)}. `latentc plan` shows the "
            f"figures. To build anyway: latentc build {bundle.argument} --profile {profile.argument} --force"
        )


def _done(site: Site, found: Found) -> Built:
    """Do what the state of an engine requires; its lock is held, unless it exists and is proved."""
    bundle, want, note = site.bundle, found.want, None
    if found.is_there:
        return Built(_kept(site, found), "there")
    if found.damaged:
        _clear(bundle, want.name)
        note = f"{bundle.engines / want.name} was damaged, or built by another version of latentc. It was replaced."
    if found.state == "take":
        return Built(_taken(site, found), "taken", note)
    site.on_progress(f"{want.part}: read", None)
    verify_files(bundle, [*bundle.files(want.part), stored_at(want.part)])
    if found.state == "refit":
        try:
            return Built(_refitted(site, found), "refitted", note)
        except (CompileError, ParityError) as exc:
            note = " ".join(filter(None, (note, f"The engine was compiled, because refitting failed: {exc}")))
    return Built(_made(site, want), "compiled", note)


def _kept(site: Site, found: Found) -> Artifact:
    """An existing engine, proved first if it wasn't."""
    assert found.artifact is not None
    parity = found.parity or _prove(site, found.artifact)
    header = found.artifact.parity
    _require(site, found.want, parity, header if header.graph_run_by is None else None)
    return found.artifact


def _claimed(site: Site, built: Built) -> Built:
    """Record that an engine belongs to this profile too; does nothing in a bundle that can't be written.

    No other lock may be held here: two builds could wait for each other forever.
    """
    name = site.profile.name
    if name not in built.artifact.profiles:
        with suppress(BundleError), locked(site.bundle, built.artifact.name, site.on_progress):
            return replace(built, artifact=claim(site.bundle, built.artifact, name))
    return built


def _taken(site: Site, found: Found) -> Artifact:
    """Take the other bundle's engine and prove it; it is removed again if it is below the floor."""
    assert site.like is not None
    assert found.artifact is not None
    _require(site, found.want, found.artifact.parity)
    site.on_progress(f"{found.want.part}: take", None)
    artifact = take(site.bundle, site.like, found.artifact)
    parity = site.there(found.want, artifact).parity or _prove(site, artifact)
    try:
        check_floor(site.bundle, site.profile, found.want, parity)
    except ParityError:
        _clear(site.bundle, artifact.name)
        raise
    return artifact


def _refitted(site: Site, found: Found) -> Artifact:
    """The other bundle's engine refitted with this part's weights, and compared as any other."""
    assert site.like is not None
    assert found.artifact is not None
    try:
        theirs = loadable(site.like, found.artifact)
    except BundleError as exc:  # the caller then compiles
        raise CompileError(str(exc)) from exc
    return _made(site, found.want, theirs, found.artifact.key)


def _made(site: Site, want: Wanted, refitted: Path | None = None, refitted_from: str | None = None) -> Artifact:
    """Compile an engine, or refit another one; it is compared before it is stored."""
    bundle, profile = site.bundle, site.profile
    with fresh_folder(bundle.engines / want.name, BundleError) as fresh:
        try:
            made = make(bundle, profile, site.adapter, want, fresh, site.on_progress, here=site.here, refitted=refitted)
        except InexactError as exc:
            if want.is_last:
                raise
            none = Parity(psnr_db=float("-inf"), cosine=0.0, reference="calls of its calibration")
            _refuse(site, want, none, exc, f"{str(exc).split('. ')[0]}.")
        if refitted is None:
            _require(site, want, made.parity)
        else:  # compiled, it may reach the floor
            check_floor(bundle, profile, want, made.parity)
        artifact = seal(fresh, want.fields, made.parity, made.seconds, profile.name, refitted_from)
        share(bundle, fresh, artifact.files)
    if site.here and made.parity.graph_run_by is None:
        remember(engine_key(bundle, site.adapter, artifact, profile.device), made.parity)
    return artifact


def _prove(site: Site, artifact: Artifact) -> Parity:
    """Compare an engine that this machine didn't build."""
    measured = measured_apart(site.bundle, site.profile, [artifact], on_progress=site.on_progress)
    parity = measured.parities[artifact.key]
    remember(engine_key(site.bundle, site.adapter, artifact, site.profile.device), parity)
    return parity


def _clear(bundle: Bundle, name: str) -> None:
    """Remove a damaged artifact."""
    path = bundle.engines / name
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise BundleError(f"{path} is damaged and cannot be removed ({exc.strerror}). Remove it manually.") from exc


def _prove_steps(site: Site, built: Mapping[str, Artifact]) -> Steps:
    """Compare whole steps of the engines with diffusers', once per set of engines."""
    bundle, profile, adapter, wants = site.bundle, site.profile, site.adapter, site.engines
    key = steps_key(bundle, profile, adapter, [built[want.key] for want in wants])
    steps = recall(key, Steps)
    if steps is None:
        opened = partial(Engines, bundle, profile, (adapter, wants), built)
        steps = prove_steps(bundle, profile, wants, opened, site.on_progress)
        remember(key, steps)
    check_steps(bundle, profile, wants, steps)
    return steps


def why(bundle: Bundle, profile: Profile) -> list[tuple[Wanted, Artifact | Miss]]:
    """For each engine that a profile requires: the artifact, or how the nearest one differs from it."""
    _, engines = wanted(bundle, with_built_sizes(bundle, profile), to_run=False)
    there = artifacts(bundle)
    built = {artifact.key: artifact for artifact in there}
    return [(want, built.get(want.key) or explain(bundle, want.fields, there)) for want in engines]
