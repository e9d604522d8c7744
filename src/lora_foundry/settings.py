"""Where things are on this machine: folders now, servers later. What a run does is the recipe's business, not this."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

COMFYUI_ADDRESS = "http://127.0.0.1:8188"


def default_home() -> Path:
    """The platform's user data folder for this program."""
    return Path(platformdirs.user_data_dir("lora-foundry", appauthor=False))


def is_local(url: str) -> bool:
    """Whether an address is this machine's own."""
    return urlsplit(url if "://" in url else f"//{url}").hostname in (
        "localhost",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
    )


class Settings(BaseSettings):
    """Read from the environment as LORA_FOUNDRY_<NAME>, or given by the caller."""

    model_config = SettingsConfigDict(env_prefix="LORA_FOUNDRY_", frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=default_home,
        description="Folder that holds everything below unless set. Default: the platform's user data folder "
        "(`~/.local/share/lora-foundry` on Linux, `~/Library/Application Support/lora-foundry` on macOS, "
        "`%LOCALAPPDATA%\\lora-foundry` on Windows). `--home` overrides it for one command.",
    )
    datasets: Path | None = Field(
        default=None,
        description="Folder of the training sets, one folder a character. Default: `<home>/datasets`.",
    )
    loras: Path | None = Field(
        default=None,
        description="Where finished LoRAs are installed. Default: `<comfyui>/models/loras` if ComfyUI's folder is "
        "set, else `<home>/loras`.",
    )
    models: Path | None = Field(
        default=None,
        description="Folder in which base models are looked for by name. Default: `<home>/models`.",
    )
    comfyui: Path | None = Field(
        default=None,
        description="ComfyUI's folder. Its `models/checkpoints` is searched for base models, and LoRAs go to its "
        "`models/loras`.",
    )
    comfyui_url: str | None = Field(
        default=None,
        description="Address of the ComfyUI server that makes pictures where a recipe says `generate.backend = "
        '"comfyui"`. Default: `http://127.0.0.1:8188`.',
    )
    comfyui_token: str = Field(
        default="",
        description="Bearer token for a ComfyUI behind a proxy; a name and password go into its address "
        "(`https://name:password@host`). Default: none.",
        repr=False,
    )
    comfyui_paths: dict[str, Path] = Field(
        default={},
        description="Folders as ComfyUI's machine or container names them, and what they are here, as a JSON object: "
        '`{"/app/ComfyUI": "/srv/comfyui"}`. Default: none.',
    )
    comfyui_gpu: Literal["auto", "shared", "own"] = Field(
        default="auto",
        description="Whether ComfyUI computes on the GPU that trains and is asked for its memory before a training: "
        "`shared`, `own` (a GPU or a machine of its own), or `auto`: shared where a ComfyUI was named and"
        " its address is this machine's. Default: `auto`.",
    )
    comfyui_stop: tuple[str, ...] = Field(
        default=(),
        description="Command, as a JSON list of arguments (no shell), that stops ComfyUI where it keeps too much "
        'memory before a training: `["systemctl", "--user", "stop", "comfyui"]`. Default: none; the '
        "training is then refused with both figures.",
    )
    comfyui_start: tuple[str, ...] = Field(
        default=(),
        description="Command, as a JSON list of arguments, that starts ComfyUI again after the training. Default: "
        "none.",
    )
    kohya: Path | None = Field(
        default=None,
        description='Folder of an sd-scripts checkout, for recipes with `train.backend = "kohya"`. Default: none.',
    )
    kohya_python: Path | None = Field(
        default=None,
        description="The Python that has sd-scripts' requirements. Default: `venv/bin/python` or `.venv/bin/python` "
        "in that folder.",
    )
    database_url: str | None = Field(
        default=None,
        description="Database that holds the task table: `sqlite:///PATH` or `postgresql://user:password@host/name`. "
        "Default: `<home>/tasks.db`.",
    )
    storage: str | None = Field(
        default=None,
        description="Object store that workers share instead of a folder: `s3://bucket/prefix`, `gs://...`, `az://...` or "
        "`file:///folder`, the same on every host. Credentials are read where the cloud's own tools read them. Needs the "
        "extra `storage` and a PostgreSQL for all. Default: none; hosts that share the work share a folder.",
    )
    redis_url: str | None = Field(
        default=None,
        description="Redis whose lists `echo_tasks:1` to `echo_tasks:5` wake workers up sooner. Default: none; "
        "nothing is lost without it.",
    )
    vlm_url: str | None = Field(
        default=None,
        description="Address of an OpenAI-compatible server (Ollama, vLLM) whose model looks at pictures where a "
        'recipe says `caption.look = ["vlm"]`, such as `http://127.0.0.1:11434/v1`. Default: none.',
    )
    vlm_model: str = Field(
        default="",
        description="That model's name, as the server knows it.",
    )
    vlm_key: str = Field(
        default="",
        description="Key for that server, where it wants one.",
        repr=False,
    )
    recipe: str = Field(
        default="mini",
        description="Recipe where none is named. Default: `mini`.",
    )
    notify: SecretStr | None = Field(
        default=None,
        description="[Apprise](https://github.com/caronc/apprise) addresses, separated by spaces "
        "(`ntfy://ntfy.sh/topic mailto://...`): told with the picture when a pipeline that a worker runs "
        "is completed or fails. Needs the extra `apprise`. Default: none.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="What `serve` asks for: 16 or more ASCII characters. On any address but loopback one is made at "
        "each start, and printed, unless this is set. Default: none.",
    )
    device: str = Field(
        default="auto",
        description="`auto` (a GPU if one is there), `cpu`, `cuda` or `cuda:1`. Default: `auto`.",
    )

    @property
    def datasets_dir(self) -> Path:
        return (self.datasets or self.home / "datasets").expanduser().absolute()

    @property
    def task_database(self) -> str:
        """Where the tasks are: the database that was set, else a SQLite file in the home folder."""
        return self.database_url or f"sqlite:///{self.home.expanduser().absolute() / 'tasks.db'}"

    @property
    def comfyui_loras_dir(self) -> Path | None:
        """ComfyUI's LoRA folder as this machine sees it: the one that was named for LoRAs, or that of its own folder."""
        if self.loras is not None:
            return self.loras.expanduser().absolute()
        if self.comfyui is not None:
            return (self.comfyui / "models" / "loras").expanduser().absolute()
        return None

    @property
    def comfyui_address(self) -> str:
        """The address of the ComfyUI server: the one that was named, else ComfyUI's usual one on this machine."""
        return self.comfyui_url or COMFYUI_ADDRESS

    @property
    def names_comfyui(self) -> bool:
        """Whether somebody spoke of a ComfyUI, by its folder or its address."""
        return self.comfyui is not None or self.comfyui_url is not None

    def comfyui_shares_gpu(self, used: bool) -> bool:
        """Whether ComfyUI must be asked for its memory before a training. used: the recipe draws with it."""
        if self.comfyui_gpu != "auto":
            return self.comfyui_gpu == "shared"
        return (used or self.names_comfyui) and is_local(self.comfyui_address)

    def for_child(self) -> dict[str, Any]:
        """These settings as JSON-like values for a child process, every one of them said, so that it reads none of its
        own from the environment. Without the secrets, which no stage needs."""
        return self.model_dump(mode="json") | {"notify": None, "token": None}

    @property
    def recipe_folders(self) -> tuple[Path, ...]:
        """Where a person's own recipes lie."""
        return ((self.home / "recipes").expanduser().absolute(),)

    @property
    def loras_dir(self) -> Path:
        if self.loras is None and self.comfyui_loras_dir is not None:
            return self.comfyui_loras_dir
        return (self.loras or self.home / "loras").expanduser().absolute()

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where base models are looked for, in order."""
        folders = [(self.models or self.home / "models").expanduser().absolute()]
        if self.comfyui is not None:
            models = (self.comfyui / "models").expanduser().absolute()
            folders += [models / "checkpoints", models / "diffusion_models"]
        return tuple(folders)
