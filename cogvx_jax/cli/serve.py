"""`cogvx serve`: the server, and a worker beside it."""

import dataclasses
import functools
import importlib.util
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import tyro

from cogvx_jax.cli.enhance import prompt_enhancer
from cogvx_jax.cli.options import GivenFlags, ModelFlags, check_maker, check_memory, parse_lora, report
from cogvx_jax.cli.work import MOST_NICE, WorkFlags, check_lease, check_together, serving_packages
from cogvx_jax.cli.worker_processes import Workers
from cogvx_jax.given import Given
from cogvx_jax.prompting.chat import Endpoint, has_endpoint

if TYPE_CHECKING:
    from cogvx_jax.configs import ModelSpec

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

BOUNDS: dict[str, tuple[float, float]] = {  # of flags, both ends included
    "port": (0, 65535),
    "workers": (0, 64),
    "nice": (0, MOST_NICE),
    "max_jobs": (1, 10**7),
    "max_upload_mb": (0.01, 10**4),
    "url_minutes": (1, 10**5),
    "keep_hours": (0.01, 10**6),
    "keep_videos": (1, 10**9),
    "keep_gb": (0.001, 10**9),
}
NO_PAGE = "there is no web page: `pip install 'cogvx_jax[ui]'` brings it, and --no-page leaves this line out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeFlags(WorkFlags):
    """How videos are served.

    Args:
      host: the address to listen on; one that other machines reach needs --keys, or --open.
      port: to listen on; 0 takes one that is free, and prints it.
      keys: a TOML file of API keys, stored as hashes, with their limits.
      new_key: show a new key for this name, print its lines for the file of keys, and end.
      open: let anyone ask who reaches the address.
      workers: worker processes beside the server; 0 where they run elsewhere. An accelerator belongs to one.
      strict: refuse the vendors' sizes and durations that the model does not make, instead of mapping them.
      fetch_urls: take pictures and clips as addresses, too; those of this machine and its network are refused.
      keep_hours: for which videos are kept; None is without a bound.
      keep_videos: that are kept at most, the newest; None is without a bound.
      keep_gb: gigabytes of videos that are kept at most; None is without a bound.
      max_jobs: that may wait at a time; further ones are refused.
      max_upload_mb: megabytes of a request.
      url_minutes: for which an address of a video needs no key.
      public_url: under which clients reach this server, where a proxy changes it.
      allow_origin: such as https://example.com, whose pages may use this server.
      page: serve the web page, too, where the extra `ui` is installed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    new_key: str | None = None
    open: bool = False
    workers: int = 1
    strict: bool = False
    fetch_urls: bool = False
    keep_hours: float | None = 24.0
    keep_videos: int | None = None
    keep_gb: float | None = None
    max_jobs: int = 10_000
    max_upload_mb: float = 128.0
    url_minutes: float = 60.0
    public_url: str | None = None
    allow_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    page: bool = True


def serve(
    *,
    run: Annotated[ServeFlags, tyro.conf.OmitArgPrefixes] = ServeFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Serves videos over HTTP, by OpenAI's API, Zhipu's and a web page, and makes them in a process beside it.

    Jobs wait in a queue that outlives both. docs/serving.md has the calls.
    """
    about = given.checked()
    with serving_packages("serve"):
        from cogvx_jax.serving.keys import Keys, new_key
    if run.new_key is not None:
        key, lines = new_key(run.new_key)
        report(f"the key of {run.new_key}, which is shown this once: {key}")
        print(lines)  # alone, so that they may be sent to the file
        return
    check_flags(run)
    keys = Keys(run.keys)
    environment = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the worker's
    if run.distributed:
        _serve_or_follow(run, about, keys, environment)
        return
    listening = _listen(run.host, run.port)
    app, at = _app_and_page(run, about, keys)
    with Workers(run, about, environment, app.state.site.service.queue) as workers:
        _serve(run, app, at, listening, workers)


def _serve_or_follow(run: ServeFlags, about: Given, keys: Any, environment: dict[str, str]) -> None:
    """On each host of a slice: a process of the worker, and beside the first one the server."""
    with Workers(run, about, environment) as workers:
        if index := workers.index():
            report(f"this host has process {index} of the worker; the one with process 0 serves")
            workers.wait()  # which raises where that cannot work
        listening = _listen(run.host, run.port)
        app, at = _app_and_page(run, about, keys)
        workers.queue = app.state.site.service.queue
        _serve(run, app, at, listening, workers)


def _app_and_page(run: ServeFlags, about: Given, keys: Any) -> tuple[Any, str | None]:
    """The app, and the path of the page where there is one."""
    enhancer = enhancer_of(run.model, about)
    app = app_of(run, about, keys, enhancer)
    return app, _add_page(app, run, keys, enhancer) if run.page else None


def _serve(run: ServeFlags, app: Any, at: str | None, listening: socket.socket, workers: Workers) -> None:
    from cogvx_jax.serving.http import run as make_server

    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    report(f"{url} serves {run.model}; /docs has the calls")
    if run.page:
        report(f"{url}{at} is the page" if at else NO_PAGE)
    server = make_server(app, "", 0)
    workers.give_up = lambda: setattr(server, "should_exit", True)
    server.run(sockets=[listening])
    workers.check()


def check_flags(run: ServeFlags) -> None:
    """Raises: ValueError for flags that cannot be, before anything is begun."""
    check_memory(run.memory)
    check_maker(run.sound_from)
    check_lease(run.lease, run.save_every)
    check_together(run)
    if run.distributed and run.workers != 1:
        raise ValueError("--distributed is one worker of several processes; leave --workers out")
    if run.keys is None and not run.open and not _is_loopback(run.host):
        raise ValueError(f"{run.host} can be reached by others: give --keys, or --open to let anyone make videos")
    for name, (low, high) in BOUNDS.items():
        value = getattr(run, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} must be from {low:g} to {high:g}, got {value:g}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """Raises: OSError, naming the address, where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None


def app_of(run: ServeFlags, about: Given, keys: Any, enhancer: Callable[[], Any] | None = None) -> Any:
    """The app of a server with these flags.

    Args:
      enhancer: of `enhancer_of`.
    Raises: ValueError or OSError for what it cannot serve, or its queue.
    """
    from cogvx_jax.serving.queue import Queue, Retention

    queue = Queue(run.url, capacity=run.max_jobs, patience=5.0)
    from cogvx_jax.serving.adapters import Adapters, find_parts
    from cogvx_jax.serving.bucket import open_store
    from cogvx_jax.serving.http import make_app
    from cogvx_jax.serving.service import Rules, Service

    keep = Retention(
        age=None if run.keep_hours is None else run.keep_hours * 3600,
        count=run.keep_videos,
        bytes=None if run.keep_gb is None else round(run.keep_gb * 1e9),
    )
    rules = Rules(
        strict=run.strict,
        fetches=run.fetch_urls,
        sounds=run.sound_from is not None,
        url_seconds=run.url_minutes * 60,
        keep=keep,
        public_url=run.public_url,
    )
    adapters, spec = Adapters(run.loras), _spec(run, about)
    how: dict[str, Any] = dict(adapters=adapters, rules=rules, check=_check_of(run, spec), enhance=_enhance(enhancer))
    how["parts"] = find_parts(**run.parts)
    service = Service(queue, open_store(run.store, run.results), model=run.model, spec=spec, **how)
    hosts = _hosts(run)
    return make_app(service, keys, limit=round(run.max_upload_mb * 2**20), origins=run.allow_origin, hosts=hosts)


def enhancer_of(model: str, about: Given) -> Callable[[], Any] | None:
    """Gives what rewrites prompts; None where the environment names no language model. The tokenizer is read then."""
    if not has_endpoint():
        return None
    return functools.cache(lambda: prompt_enhancer(model, about, Endpoint()))


def _enhance(enhancer: Callable[[], Any] | None) -> Any:
    """A prompt and a picture -> a description."""
    return None if enhancer is None else lambda prompt, image: enhancer()(prompt, image)


def _add_page(app: Any, run: ServeFlags, keys: Any, enhancer: Callable[[], Any] | None) -> str | None:
    """Mounts the web page into the app, and gives its path; None where its packages are not installed."""
    if importlib.util.find_spec("gradio") is None:
        return None
    from cogvx_jax.serving.page.actions import Desk
    from cogvx_jax.serving.page.app import PATH, mount

    desk = Desk(app.state.site.service, keys, _improve(enhancer))
    mount(app, desk, round(run.max_upload_mb * 2**20))
    return PATH


def _improve(enhancer: Callable[[], Any] | None) -> Any:
    """A prompt and a picture -> a description, and the name of the language model."""
    return None if enhancer is None else lambda prompt, image: (enhancer()(prompt, image), enhancer().llm)


def _check_of(run: ServeFlags, spec: "ModelSpec") -> Any:
    """What refuses requests that the workers cannot make as they compute."""
    from cogvx_jax.pipelines.memory_modes import AUTO, find_mode
    from cogvx_jax.pipelines.model import resolve
    from cogvx_jax.pipelines.short_schedule import check_asked, check_in_mode

    folder = resolve(run.model)

    def check(request: Any) -> None:
        check_asked(request, spec.name, folder, None, exact=run.exact)
        if run.memory not in (None, AUTO):
            check_in_mode(find_mode(str(run.memory)), request)

    return check


def _hosts(run: ServeFlags) -> tuple[str, ...]:
    """Names that a server without keys is called by on this machine; () is any."""
    if run.keys is not None or run.open:
        return ()
    public = urlsplit(run.public_url or "").hostname
    return tuple(filter(None, ("localhost", "127.0.0.1", "::1", run.host, public)))


def _spec(run: ServeFlags, about: Given) -> "ModelSpec":
    """Of the model with the LoRAs that workers add to it."""
    from cogvx_jax.models.lora import first_distilled
    from cogvx_jax.pipelines.lora import find_lora
    from cogvx_jax.pipelines.model import load_spec

    spec = load_spec(run.model, about)
    found = [(find_lora(path, spec).distilled, weight) for path, weight in map(parse_lora, run.lora)]
    return spec.distilled(first_distilled(found))
