"""The command that starts the web server."""

from __future__ import annotations

import threading
import webbrowser
from typing import Annotated

import typer
from rich.console import Console

from lora_foundry.cli.tasks import Home, settings_of

_out = Console(highlight=False)


def serve(
    host: Annotated[
        str,
        typer.Option(
            help="Address to answer on. Any but loopback asks for a token, which is printed once at start unless "
            "LORA_FOUNDRY_TOKEN is set."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8189,
    with_worker: Annotated[
        bool,
        typer.Option(
            "--with-worker",
            help="Run a worker as well, in a process of its own that is started again when it dies and ends with the server.",
        ),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the dashboard in this machine's browser once it answers.")
    ] = False,
    root_path: Annotated[
        str,
        typer.Option(help="The path below which a proxy shows the server, such as /foundry.", metavar="PATH"),
    ] = "",
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For, -Proto and -Host are believed. May be given several "
            "times.",
            metavar="ADDRESS",
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Serve the dashboard and the REST API until stopped."""
    from lora_foundry.web.serving import access, run

    settings = settings_of(home)
    token, made = access(settings, host)
    if made:
        _out.print(f"Token, shown only now: {token}", soft_wrap=True, markup=False)

    def ready(address: str) -> None:
        _say(address)
        if open_browser:  # the socket listens already; the browser waits for the answer
            here = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            threading.Thread(target=webbrowser.open, args=(here,), daemon=True).start()

    run(
        settings,
        host,
        port,
        token,
        with_worker=with_worker,
        root=root_path,
        trusted=trusted_proxy or (),
        ready=ready,
    )


def _say(address: str) -> None:
    _out.print(f"Serving {address} (Ctrl-C stops it).", soft_wrap=True, markup=False)
