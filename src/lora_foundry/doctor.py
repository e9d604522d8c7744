"""Says what a run would find missing on this machine before it starts, each fault with what to do about it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import FoundryError, MissingExtraError
from lora_foundry.extras import install_command
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import BUNDLED, recipe_base
from lora_foundry.files.storage import disk_space
from lora_foundry.needs import base_needs, needs_of
from lora_foundry.settings import Settings

LEAST_DISK = 500 * 1024 * 1024  # what one SD1.5 character took in the system this one replaces


class Finding(NamedTuple):
    """One line of the examination; `fix` says what to do where `ok` is false."""

    subject: str
    ok: bool
    found: str
    fix: str = ""


def examine(settings: Settings, recipe: Recipe) -> list[Finding]:
    """Every check, in the order in which a run would need it."""
    findings = [
        _python(),
        _torch(settings.device, recipe),
        *_base(settings, recipe),
        *_other_needs(settings, recipe),
    ]
    findings.extend(_folder("datasets folder", settings.datasets_dir, "LORA_FOUNDRY_DATASETS"))
    findings.extend(_folder("LoRA folder", settings.loras_dir, "LORA_FOUNDRY_LORAS"))
    findings.extend(_comfyui(settings, recipe))
    findings.extend(_kohya(settings, recipe))
    findings.extend(_database(settings))
    findings.extend(_storage(settings))
    findings.extend(_redis(settings))
    return findings


def _comfyui(settings: Settings, recipe: Recipe) -> Iterator[Finding]:
    """Nothing where neither the recipe nor the settings speak of a ComfyUI."""
    used = recipe.generate.backend == "comfyui" or recipe.publish.verify == "comfyui"
    if not used and not settings.names_comfyui:
        return
    from lora_foundry.backends.comfyui.ahead import asked_of
    from lora_foundry.backends.comfyui.examine import examine_comfyui
    from lora_foundry.backends.comfyui.options import options_for

    base = None
    with contextlib.suppress(FoundryError):  # has a line of its own
        base = recipe_base(recipe, settings.model_folders)
    options = options_for(recipe, settings, base)
    for found in examine_comfyui(options, asked_of(recipe, options) if used else None):
        yield Finding(*found)


def _kohya(settings: Settings, recipe: Recipe) -> Iterator[Finding]:
    """Nothing where neither the recipe nor the settings speak of sd-scripts."""
    if settings.kohya is None and recipe.train.backend != "kohya":
        return
    from lora_foundry.backends.kohya.checkout import find_checkout

    try:
        found = find_checkout(settings.kohya, settings.kohya_python)
    except FoundryError as error:
        fix = (
            "Set LORA_FOUNDRY_KOHYA to a checkout of sd-scripts, and LORA_FOUNDRY_KOHYA_PYTHON to its Python."
        )
        yield Finding("sd-scripts (kohya)", False, str(error), fix)
        return
    yield Finding("sd-scripts (kohya)", True, f"{found.folder}, run by {found.python}")


def _database(settings: Settings) -> Iterator[Finding]:
    """Looks without making anything: a SQLite file that is not there yet is made by the first worker."""
    import sqlalchemy as sa

    from lora_foundry.tasks.database import connect_arguments, parse_url, sync_url

    subject = "task database"
    fix = "Start the database, or set LORA_FOUNDRY_DATABASE_URL."
    try:
        url = sync_url(parse_url(settings.task_database))
    except FoundryError as error:
        yield Finding(subject, False, str(error), "Correct LORA_FOUNDRY_DATABASE_URL.")
        return
    place = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        yield Finding(subject, True, f"{place}, which the first worker makes")
        return
    engine = sa.create_engine(url, connect_args=connect_arguments(url), poolclass=sa.NullPool)
    try:
        tables = sa.inspect(engine).get_table_names()
    except sa.exc.SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        yield Finding(subject, False, f"{place}: {reason}", fix)
        return
    finally:
        engine.dispose()
    known = "echo_tasks" in tables
    yield Finding(subject, True, place if known else f"{place}, where the first worker makes the table")


def _redis(settings: Settings) -> Iterator[Finding]:
    """Nothing where none was set: it is a hint, never the truth."""
    if settings.redis_url is None:
        return
    try:
        import redis

        redis.from_url(settings.redis_url, socket_connect_timeout=3).ping()
    except ModuleNotFoundError as error:
        yield Finding("Redis", False, f"{error.name} is not installed", install_command("redis"))
    except (redis.RedisError, ValueError) as error:
        fix = "Start Redis, or unset LORA_FOUNDRY_REDIS_URL: without it workers only wake up later."
        yield Finding("Redis", False, " ".join(str(error).split())[:200], fix)
    else:
        yield Finding("Redis", True, "answers")


def _storage(settings: Settings) -> Iterator[Finding]:
    """Nothing where none was set. Writes a probe, writes it again as new, which must be refused, reads and deletes it."""
    if not settings.storage:
        return
    from datetime import timedelta

    from lora_foundry.remote.objects import ObjectStore

    subject = "storage"
    probe = f"doctor/{uuid4().hex}"
    try:
        store = ObjectStore(settings.storage, patience=timedelta(seconds=5))
        store.create(probe, b"probe")
        safe = not store.create(probe, b"another")
        read = store.read(probe) == b"probe"
        store.remove([probe])
        gone = store.read(probe) is None
    except MissingExtraError as error:
        said = str(error).rpartition("; install")[0]
        yield Finding(subject, False, said, f"Run: {install_command('storage')}")
        return
    except FoundryError as error:
        yield Finding(subject, False, str(error), "Correct LORA_FOUNDRY_STORAGE or what the message names.")
        return
    if not safe:
        found = f"{settings.storage} replaces objects that are to be written only where none is"
        fix = (
            "Use a server that honours If-None-Match (S3, R2, MinIO, SeaweedFS, Google and Azure do): two hosts could "
            "else overwrite each other."
        )
        yield Finding(subject, False, found, fix)
        return
    fix = "Give these credentials the rights to read, list, write and delete there."
    yield Finding(subject, read and gone, f"{settings.storage}, written, read and deleted", fix)
    if settings.task_database.startswith("sqlite"):
        found = "a storage is set, and the task table is a file that no other host can read"
        yield Finding(
            "storage and task table",
            False,
            found,
            "Set LORA_FOUNDRY_DATABASE_URL to a PostgreSQL for all hosts.",
        )


def _python() -> Finding:
    return Finding(
        "Python", sys.version_info >= (3, 11), sys.version.split()[0], "Install Python 3.11 or newer."
    )


def _torch(device: str, recipe: Recipe) -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", False, str(error), "Install it for your GPU; the README says how.")
    if not torch.cuda.is_available():
        wanted = device.startswith("cuda")
        fix = "Install a CUDA build of torch (README), or set LORA_FOUNDRY_DEVICE=auto."
        slowly = (
            "" if recipe.model.base == BUNDLED else f", many times slower; {recipe.name!r} is made for a GPU"
        )
        return Finding(
            "torch", not wanted, f"{torch.__version__}, no GPU seen: the CPU computes{slowly}", fix
        )
    index = torch.device(device).index or 0 if device.startswith("cuda") else 0
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Finding("torch", True, f"{torch.__version__}, {name}, {free >> 20} of {total >> 20} MiB free")


def _base(settings: Settings, recipe: Recipe) -> Iterator[Finding]:
    subject = f"base model of recipe {recipe.name!r}"
    try:
        base = recipe_base(recipe, settings.model_folders, training=True)
    except FoundryError as error:
        places = " or ".join(str(folder) for folder in settings.model_folders)
        fix = f"Put it into {places}, or name its path: --set model.base=PATH."
        missing = [need for need in base_needs(recipe, settings) if need.found is None]
        if missing and missing[0].fetchable:
            fix = f"Run: lora-foundry setup {recipe.name} (or put it into {places})."
        yield Finding(subject, False, str(error), fix)
        return
    yield Finding(subject, True, f"{base.path} ({base.family}, {base.layout})")
    yield from _gpu_memory(base, settings, recipe)


def _other_needs(settings: Settings, recipe: Recipe) -> Iterator[Finding]:
    """The files of instruments and the vocabulary; nothing where a recipe needs none."""
    for need in needs_of(recipe, settings):
        if need.what != "base model":
            advice = f"Run: lora-foundry setup {recipe.name}" if need.fetchable else need.advice
            yield Finding(need.what, need.found is not None, str(need.found or need.source.name), advice)


def _gpu_memory(base: Base, settings: Settings, recipe: Recipe) -> Iterator[Finding]:
    """What the training needs beside what the driver says is free now; nothing on a processor."""
    from lora_foundry.families._shared.memory import MIB, driver_free, needed_memory

    free = driver_free(settings.device)
    if free is None:
        return
    needed = needed_memory(base, recipe.train, settings.device)
    fix = "Close other programs on this GPU, or train with less: train.gradient_checkpointing, train.batch_size."
    found = f"about {needed // MIB} MiB needed, {free // MIB} MiB free by the driver's count"
    yield Finding("GPU memory for the training", free >= needed, found, fix)


def _folder(subject: str, folder: Path, variable: str) -> Iterator[Finding]:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    probe = existing / ".lora-foundry-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = f"Make {existing} writable, or set {variable} to a folder that you can write."
        yield Finding(subject, False, f"{folder}: {error.strerror}", fix)
        return
    free = disk_space(existing).free
    enough = free >= LEAST_DISK
    yield Finding(
        subject, enough, f"{folder}, {free >> 20} MiB free", f"Free {LEAST_DISK >> 20} MiB on its disk."
    )
