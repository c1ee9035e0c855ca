"""`latentc serve`: answer HTTP requests with the images of bundles."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType, TracebackType

import uvicorn

from ..compiler.budget import budget_bytes
from ..core.bundle import Bundle, open_bundle
from ..core.errors import ProfileError, RequestError
from ..core.limits import cores
from ..core.progress import Progress
from ..core.progress import quiet as silent
from ..core.reading import read_small
from ..profiles import Profile
from ..serving.app import create_app
from ..serving.errors import ApiError
from ..serving.guard import LOCAL, Access
from ..serving.limits import Limits
from ..serving.loading import load_all
from ..serving.opened import OpenModel
from ..serving.ray import Cluster
from ..serving.replica import Begin, spawned
from ..serving.replicas import Replicas
from ..serving.residents import Residents, check_each
from ..serving.service import Service
from ..serving.service import serve as service_of
from ..serving.worker import Opening
from .additions import AdditionOptions, additions
from .placing import check_beside, check_memory, crowd_notice, needs, scaled, with_share
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
    model_control: bool = False,
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
    for, within this memory. `model_control` lets clients load models again.
    """
    access = Access(tokens(token_file), [*LOCAL, *hosts] if host in LOCAL or hosts else None)
    if host not in LOCAL and not access.tokens:
        say(f"note: whoever reaches {host} may use this server. Pass --token-file to ask for a token.", err=True)
        if access.hosts is None:
            say("note: so may web pages that its users open (DNS rebinding). Pass --allow-host NAME.", err=True)
    opened = named([path for path, _ in bundles])
    folders = {name: path for name, (path, _) in zip(opened, bundles, strict=True)}
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

        def opening(name: str, bundle: Bundle, tell: Progress) -> OpenModel:
            openings = [
                Opening(bundle, one, adapters, tuple(embeddings), loaded=residents is None) for one in profiles[name]
            ]
            if len(openings) == 1 and on_ray is None:
                return openings[0].open(tell)
            return Replicas(name, openings, tell, least=scales[name][0], begin=begins[name])

        def again(name: str, beside: Mapping[str, Bundle]) -> OpenModel:
            bundle = open_bundle(folders[name])
            check_beside(name, bundle, profiles, beside)
            return opening(name, bundle, silent)

        pipelines: dict[str, OpenModel] = {}
        engines = stack.enter_context(ExitStack())
        engines.callback(_close, pipelines)
        with shown(quiet) as tell:
            for name, bundle in opened.items():
                pipelines[name] = opening(name, bundle, tell)
                if residents is not None:
                    residents.add(name, pipelines[name], sizes[name])
        service = service_of(pipelines, limits, added, residents)
        service.reopen, service.model_control = again if on_ray is None else None, model_control
        services.append(service)
        try:
            with _loading_at_a_signal(service):
                _run(service, access, listening, drain_seconds, quiet=quiet)
        finally:
            service.close(0)
            pipelines |= {name: model.pipeline for name, model in service.models.items()}
            if service.hung:  # to close an engine that computes would wait for it, or crash
                engines.pop_all()


def _close(pipelines: Mapping[str, OpenModel]) -> None:
    with ExitStack() as stack:
        for one in pipelines.values():
            stack.enter_context(closing(one))


@contextmanager
def _loading_at_a_signal(service: Service) -> Generator[None]:
    """Load all models again at SIGHUP, unless it is what the end of a terminal sends, or is ignored."""
    number = getattr(signal, "SIGHUP", None)
    if number is None or signal.getsignal(number) is signal.SIG_IGN or (sys.stdin is not None and sys.stdin.isatty()):
        yield
        return

    def heard(_: int, __: FrameType | None) -> None:
        Thread(target=load_all, args=(service,), daemon=True).start()

    before = signal.signal(number, heard)
    try:
        yield
    finally:
        signal.signal(number, before)


def _leave(
    services: Sequence[Service],
    _: type[BaseException] | None,
    error: BaseException | None,
    __: TracebackType | None,
) -> None:
    """End the process at once if a batch was given up, or a model is being loaded: it would wait for its threads, or
    crash.
    """
    if not any(service.hung for service in services):
        if error is None and any(service.loads.locked() for service in services):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
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
