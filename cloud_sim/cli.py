"""`costeer serve`: the cloud model's server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_runtime.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from cloud_sim.model import CloudModel
    from edge_runtime.weights import Progress

MOST_THREADS = 512
"""Each takes memory of its own, and no machine here has so many cores."""


def serve(
    model: Annotated[
        str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Bearer token that clients must show; made if the file is not there."),
    ] = None,
    upstream: Annotated[
        str,
        typer.Option(help="http://HOST/v1#MODEL: compute there; --model gives the tokenizer."),
    ] = "",
    upstream_key_file: Annotated[
        Path | None, typer.Option(help="Bearer token that the upstream server wants.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[
        int, typer.Option(min=0, max=MOST_THREADS, help="For torch; 0: its own choice.")
    ] = 0,
    max_sessions: Annotated[int, typer.Option(min=1, help="Connections at a time.")] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Query and template.")] = 4096,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 2048,
    max_frame_bytes: Annotated[int, typer.Option(min=64, help="One uplink message.")] = 65_536,
    idle_s: Annotated[float, typer.Option(min=0.1, help="Silence allowed.")] = 120.0,
    kept_caches: Annotated[
        int, typer.Option(min=0, help="Caches kept for devices whose connection broke.")
    ] = 16,
    kept_s: Annotated[float, typer.Option(min=1, help="How long, at the least.")] = 300.0,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file, for wss.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file, for wss.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when listening.")
    ] = False,
) -> None:
    """Run the cloud model's server until interrupted.

    It sees the public query and the emitted tokens; the private note never reaches it.
    """
    from cloud_sim.live.limits import ServerLimits
    from cloud_sim.live.server import Server, Tls, bound, create_app
    from cloud_sim.session import Limits

    if upstream_key_file is not None and not upstream:
        raise UsageError(
            "--upstream-key-file",
            "without --upstream there is nobody to show it to",
            got=upstream_key_file,
            todo="Add --upstream http://HOST/v1#MODEL, or leave it out",
        )
    token = _token(token_file)
    tls = Tls(*pair) if (pair := _tls(tls_certificate, tls_key)) else None
    limits = ServerLimits(
        session=Limits(prompt_tokens=max_prompt_tokens, answer_tokens=max_answer_tokens),
        sessions=max_sessions,
        frame_bytes=max_frame_bytes,
        idle_s=idle_s,
        kept_caches=kept_caches,
        kept_s=kept_s,
    )
    listener = bound(host, port)

    opened: CloudModel
    if upstream:
        opened = _upstream(upstream, upstream_key_file, model)
    else:
        import torch

        from cloud_sim.live.llm import TransformersModel

        if threads:
            torch.set_num_threads(threads)
        with _progress() as progress:
            opened = TransformersModel.open_source(
                model, device=device, dtype=dtype, progress=progress
            )

    def ready() -> None:
        if as_json:
            about = {"url": server.url, "host": host, "port": server.port}
            print(json.dumps({**about, "model": opened.name, "pid": os.getpid()}), flush=True)
        else:
            closed = "" if token else " Anyone who can reach it may use it."
            print(f"serve: {opened.name} at {server.url}.{closed}", file=sys.stderr, flush=True)

    app = create_app(opened, limits, token)
    server = Server(app, listener, limits=limits, tls=tls, ready=ready)
    try:
        server.run_here()
    except KeyboardInterrupt:
        # The process ends now: another one could only tear what is being said about it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def _tls(certificate: Path | None, key: Path | None) -> tuple[str, str] | None:
    """Both files' names, once they were seen to fit: a model takes long to load in vain."""
    if not (certificate or key):
        return None
    if not (certificate and key):
        raise UsageError(
            "serve", "TLS needs two files", allowed="--tls-certificate FILE --tls-key FILE"
        )
    for option, file in (("--tls-certificate", certificate), ("--tls-key", key)):
        if not file.is_file():
            raise UsageError(option, "there is no such file", got=file)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own errors are among these
        reason = error.strerror or str(error)
        raise EnvironmentFailure(
            "serve",
            f"certificate and key cannot be used: {reason}",
            got=f"{certificate}, {key}",
            todo="Both are PEM files, and the key is the certificate's own, without a password",
        ) from error
    return str(certificate), str(key)


def _upstream(url: str, key_file: Path | None, model: str) -> CloudModel:
    from cloud_sim.live.load import load_text
    from cloud_sim.live.upstream import UpstreamModel

    if key_file is not None and not key_file.is_file():
        raise UsageError("--upstream-key-file", "there is no such file", got=key_file)
    with _progress() as progress:
        text, ends, size = load_text(model, progress)
    opened = UpstreamModel(url, text, ends, size, key=_token(key_file))
    print(f"serve: {url} gives {opened.top_logprobs} log-probabilities a token.", file=sys.stderr)
    return opened


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        if not path.exists():
            made = secrets.token_urlsafe(24)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made + "\n")
            return made
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise EnvironmentFailure(
            "--token-file", f"the file cannot be used: {reason.lower()}", got=path
        ) from error
    if not token or len(token.split()) != 1:
        raise UsageError("--token-file", "the file must hold one word", got=path)
    return token


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error while weights are fetched and loaded."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("starting", total=None)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what)

        yield tell
