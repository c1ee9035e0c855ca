"""`latentc serve`: answer HTTP requests with the images of bundles."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType, TracebackType

import uvicorn

from ..compiler.budget import budget_bytes
from ..compiler.devices import each_device
from ..compiler.plan import BuildPlan, plan
from ..compiler.targets import with_threads
from ..core.bundle import Bundle, open_bundle
from ..core.errors import ProfileError, RequestError
from ..core.limits import cores
from ..core.reading import read_small
from ..core.units import counted, sized
from ..profiles import Profile
from ..runtimes import runtime
from ..serving.app import create_app
from ..serving.errors import ApiError
from ..serving.guard import LOCAL, Access
from ..serving.limits import Limits
from ..serving.opened import OpenModel
from ..serving.ray import Cluster
from ..serving.replica import Begin, spawned
from ..serving.replicas import Replicas
from ..serving.residents import Residents, check_each
from ..serving.service import Service
from ..serving.service import serve as service_of
from ..serving.worker import Opening
from .additions import AdditionOptions, additions
from .progress import shown
from .text import say

TOKEN_BYTES = 1 << 16
MOST_CONNECTIONS = 512
SEND_SECONDS = 30
"""Within which answers are sent after the last job."""


@dataclass(frozen=True)
class OnRay:
    """Where replicas are actors of Ray."""

    address: str | None = None
    gpus: float | None = None
    """GPUs of each replica; None is one, or none for a profile of CPUs."""


class _Server(uvicorn.Server):
    """Finishes the jobs that it accepted before it exits; a second signal cancels them."""

    service: Service
    seconds: float

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn at SIGINT and SIGTERM."""
        del sig, frame
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self.service.close(self.seconds)
        self.should_exit = True


def serve(
    bundles: Sequence[tuple[Path, Profile]],
    *,
    device: str | None = None,
    replicas: int | None = None,
    most_replicas: int | None = None,
    on_ray: OnRay | None = None,
    memory_gb: float | None = None,
    threads: int | None = None,
    host: str,
    port: int,
    limits: Limits,
    token_file: Path | None = None,
    hosts: Sequence[str] = (),
    drain_seconds: float = 60.0,
    adapters: Mapping[str, float] = {},
    embeddings: Sequence[str] = (),
    chosen: AdditionOptions | None = None,
    quiet: bool = False,
) -> None:
    """Open the bundles, each under its profile, and serve them until SIGTERM or Ctrl-C.

    With several `replicas`, each bundle is opened in as many processes, of `threads` each, or which share the CPU's
    cores. They are spread over the devices of `device`, by default one on each. While jobs wait, there are more, up to
    `most_replicas`. With `on_ray`, they are actors of Ray. With `memory_gb`, bundles are loaded when they are asked
    for, within this memory.
    """
    access = Access(tokens(token_file), [*LOCAL, *hosts] if host in LOCAL or hosts else None)
    if host not in LOCAL and not access.tokens:
        say(f"note: whoever reaches {host} may use this server. Pass --token-file to ask for a token.", err=True)
        if access.hosts is None:
            say("note: so may web pages that its users open (DNS rebinding). Pass --allow-host NAME.", err=True)
    opened = named([path for path, _ in bundles])
    if on_ray is not None and (device is not None or memory_gb is not None):
        raise RequestError("Ray places replicas, and keeps them loaded. Leave --device and --memory out.")
    chosen_for = {name: one for name, (_, one) in zip(opened, bundles, strict=True)}
    scales = {name: scaled(one, device, replicas, most_replicas) for name, one in chosen_for.items()}
    profiles = {name: each for name, (_, each) in scales.items()}
    residents, sizes = None, dict[str, int]()
    if on_ray is None:
        for crowded in dict.fromkeys(filter(None, map(crowd_notice, profiles.values()))):
            say(crowded, err=True)
        if threads is None:
            profiles = {
                name: each if len(each) < 2 else [with_share(one, cores() // len(each)) for one in each]
                for name, each in profiles.items()
            }
        sizes = check_memory(opened, profiles, together=memory_gb is None)
    if memory_gb is not None:
        residents = Residents(budget_bytes(memory_gb))
        check_each(sizes, residents.budget)
    listening, services = _listen(host, port), list[Service]()
    with listening, ExitStack() as stack:
        stack.push(partial(_leave, services))  # last of all, also after an error
        begins: dict[str, Begin] = dict.fromkeys(opened, spawned)
        if on_ray is not None:
            cluster = stack.enter_context(closing(Cluster(on_ray.address)))
            share = threads or cluster.threads(sum(map(len, profiles.values())))
            profiles = {name: [with_share(one, share) for one in each] for name, each in profiles.items()}
            needed = {name: needs(one, profiles[name][0], share, on_ray.gpus) for name, one in opened.items()}
            if lacks := cluster.lacks([one for name, one in needed.items() for _ in range(scales[name][0])]):
                say(lacks, err=True)
            begins = {name: cluster.begin(one) for name, one in needed.items()}
        added = stack.enter_context(additions(chosen or AdditionOptions()))
        with shown(quiet) as tell:
            pipelines: dict[str, OpenModel] = {}
            engines = stack.enter_context(ExitStack())
            for name, bundle in opened.items():
                openings = [
                    Opening(bundle, one, adapters, tuple(embeddings), loaded=residents is None)
                    for one in profiles[name]
                ]
                pipelines[name] = one = engines.enter_context(
                    closing(
                        openings[0].open(tell)
                        if len(openings) == 1 and on_ray is None
                        else Replicas(name, openings, tell, least=scales[name][0], begin=begins[name])
                    )
                )
                if residents is not None:
                    residents.add(name, one, sizes[name])
        service = service_of(pipelines, limits, added, residents)
        services.append(service)
        try:
            _run(service, access, listening, drain_seconds, quiet=quiet)
        finally:
            service.close(0)
            if service.hung:  # to close an engine that computes would wait for it, or crash
                engines.pop_all()


def _leave(
    services: Sequence[Service],
    _: type[BaseException] | None,
    error: BaseException | None,
    __: TracebackType | None,
) -> None:
    """End the process at once if a batch was given up: it would wait for its threads, or crash."""
    if not any(service.hung for service in services):
        return
    if isinstance(error, Exception):
        say(f"error: {error}", err=True)
    say("error: An image was given up that did not end, so the engines were not closed.", err=True)
    sys.stdout.flush()
    os._exit(1)


def _run(service: Service, access: Access, listening: socket.socket, seconds: float, *, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("latentc.serving")
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    config = uvicorn.Config(
        create_app(service, access),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # any local process could choose its address
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=SEND_SECONDS,
    )
    server = _Server(config)
    server.service, server.seconds = service, seconds
    failed: list[Exception] = []

    def announce() -> None:
        try:
            service.warmed()
        except Exception as exc:  # raised at the end, in the main thread
            failed.append(exc)
            server.should_exit = True
            return
        name, port = listening.getsockname()[:2]
        say(f"Serving {', '.join(service.models)} at http://{f'[{name}]' if ':' in name else name}:{port}")

    service.start()
    Thread(target=announce, daemon=True).start()
    try:
        server.run(sockets=[listening])
    finally:
        log.removeHandler(handler)
    if failed:
        raise advised(failed[0])


def advised(error: Exception) -> Exception:
    """What the command ends with if a first image failed: an answer to clients becomes advice for the operator."""
    if not isinstance(error, ApiError):
        return error
    return ProfileError(f"The first image was not generated. {error} Serve fewer replicas.")


def named(bundles: Sequence[Path]) -> dict[str, Bundle]:
    """The bundles by the names of their folders; raises `RequestError` for two of one name."""
    found: dict[str, Bundle] = {}
    for path in bundles:
        bundle = open_bundle(path)
        name = bundle.folder.resolve().name.removesuffix(".bundle")
        if name in found:
            raise RequestError(f"Two bundles are called {name!r}, by which requests choose one. Rename a folder.")
        found[name] = bundle
    return found


def crowd_notice(profiles: Sequence[Profile]) -> str | None:
    """What is said of more replicas than this machine has cores, where they compute on its CPU; None otherwise."""
    count, held = len(profiles), cores()
    if count <= held or runtime(profiles[0].runtime).threads_option(profiles[0].device) is None:
        return None
    return (
        f"note: {count} replicas share {counted(held, 'core')}, so each image takes longer, and memory is needed "
        f"{count} times. No more than --replicas {held} are of use here."
    )


def with_share(profile: Profile, threads: int) -> Profile:
    """The profile with a replica's share of the cores, at least one thread, where its device computes in threads."""
    option = runtime(profile.runtime).threads_option(profile.device)
    return profile if option is None else with_threads(profile, max(1, threads))


def scaled(profile: Profile, device: str | None, replicas: int | None, most: int | None) -> tuple[int, list[Profile]]:
    """How many replicas there are at first, and the profile of each that there may be. Raises `ProfileError` for fewer
    of these, and as `spread` does.
    """
    first = spread(profile, device, replicas)
    if most is None:
        return len(first), first
    if most < len(first):
        raise ProfileError(f"--most-replicas is {most}, but {len(first)} are started. Raise it, or leave it out.")
    return len(first), spread(profile, device, most)


def needs(bundle: Bundle, profile: Profile, threads: int, gpus: float | None) -> dict[str, float]:
    """What a replica of a bundle needs, by Ray's names: its cores, its share of a GPU, and the memory that is predicted
    for its engines.
    """
    found, in_threads = plan(bundle, profile), runtime(profile.runtime).threads_option(profile.device) is not None
    return {
        "num_cpus": threads if in_threads else 1,
        "num_gpus": 0 if found.on_host else 1 if gpus is None else gpus,
        "memory": found.held_bytes if found.on_host else 0,
    }


def spread(profile: Profile, device: str | None, replicas: int | None) -> list[Profile]:
    """The profile of each replica: those of the devices, in turn. Raises `ProfileError` for more devices than replicas,
    and as `each_device` does.
    """
    each = [profile] if device is None else each_device(profile, device)
    if replicas is not None and replicas < len(each):
        raise ProfileError(f"{counted(replicas, 'replica')} can't use {len(each)} devices. Leave --replicas out.")
    return [each[index % len(each)] for index in range(replicas or len(each))]


def check_memory(
    bundles: Mapping[str, Bundle], profiles: Mapping[str, Sequence[Profile]], *, together: bool = True
) -> dict[str, int]:
    """Predict the bytes of memory that each bundle's engines hold on one device, for the profile of each of its
    replicas.

    Raises `ProfileError` if several, of all bundles if they are loaded `together`, don't fit in the memory of a device.
    Replicas share nothing that the prediction counts: each has its own engines.
    """
    if together and sum(map(len, profiles.values())) < 2:
        return {}
    plans = {name: plan(bundle, profiles[name][0]) for name, bundle in bundles.items()}
    sizes, groups = dict[str, int](), dict[str | None, list[str]]()
    for name, one in plans.items():
        sizes[name] = _replicas_on_one(one, profiles[name]) * one.held_bytes
        groups.setdefault(None if one.on_host else one.device, []).append(name)
    for names in groups.values():
        first, count = plans[names[0]], len(profiles[names[0]])
        held = [sizes[name] for name in names]
        room = first.free_bytes if first.on_host else first.device_bytes
        if room is None or (sum(held) if together else max(held)) <= room:
            continue
        replicas = _replicas_on_one(first, profiles[names[0]])
        of = f"{replicas} replicas{' on a device' if replicas < count else ''} of " if replicas > 1 else ""
        raise ProfileError(
            f"{of or 'These '}{counted(len(names) if together else 1, 'bundle')} are predicted to hold "
            f"{sized(sum(held) if together else max(held))}, but {first.device} has {sized(room)}. Serve fewer "
            f"{'replicas or ' if of else ''}bundles{', or set --memory' if together and len(names) > 1 else ''}."
        )
    return sizes


def _replicas_on_one(found: BuildPlan, profiles: Sequence[Profile]) -> int:
    """How many of a bundle's replicas are on one device."""
    return -(-len(profiles) // (1 if found.on_host else len({one.device for one in profiles})))


def tokens(file: Path | None) -> tuple[str, ...]:
    """The tokens in a file, one in a line; raises `RequestError` for a file without any."""
    if file is None:
        return ()
    advice = "Use a text file with one token per line."
    text = read_small(file, TOKEN_BYTES, RequestError, advice).decode("utf-8", "replace")
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise RequestError(f"{file} contains no token. {advice}")
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as exc:
        raise RequestError(
            f"{host}:{port} can't be listened on ({getattr(exc, 'strerror', None) or exc}). Choose another --host or "
            "--port."
        ) from exc
