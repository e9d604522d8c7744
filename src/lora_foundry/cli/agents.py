"""The command that lets agents in."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from lora_foundry.cli.tasks import Home, settings_of

_err = Console(stderr=True, highlight=False)


def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Answer over HTTP instead of standard input and output.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="With --http: address to answer on. Any but loopback asks for a token, as `serve` does."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --http: port; 0 takes a free one.")
    ] = 8190,
    with_worker: Annotated[
        bool,
        typer.Option("--with-worker", help="Run a worker as well, which ends with this command."),
    ] = False,
    home: Home = None,
) -> None:
    """Let an agent make LoRAs: the Model Context Protocol, over standard input and output unless --http is given."""
    from lora_foundry.agents.server import run_http, run_stdio
    from lora_foundry.web.serving import access

    settings = settings_of(home)
    if not http:
        run_stdio(settings, with_worker=with_worker)
        return
    token, made = access(settings, host)
    if made:
        _err.print(f"Token, shown only now: {token}", soft_wrap=True, markup=False)

    def ready(address: str) -> None:
        _err.print(f"Serving {address} (Ctrl-C stops it).", soft_wrap=True, markup=False)

    run_http(settings, host, port, token, with_worker=with_worker, ready=ready)
