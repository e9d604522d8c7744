"""A LoRA as a repository of the Hugging Face hub (or of a server with its API, HF_ENDPOINT): one commit with the file, the
pictures and the card. Private unless its owner says otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

# Of whichever HTTP library this version of the client uses: only the client knows which, and names it without exporting it.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip
from huggingface_hub.utils._validators import validate_repo_id

from lora_foundry.errors import BackendError, FoundryError, InputError
from lora_foundry.hubs.card import PICTURES, readme
from lora_foundry.hubs.release import Release


def check_repository(repository: str) -> str:
    """The repository's name. Raises InputError for what the hub would refuse."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"hf:{repository[:80]} is no repository: {error}") from error
    if "/" not in repository:
        raise InputError(f"hf:{repository[:80]} names no owner; write hf:USER/{repository[:80]}.")
    return repository


def upload(release: Release, repository: str, *, public: bool = False, update: bool = False) -> str:
    """Makes the repository and commits everything; returns the address of its page.

    update: into a repository that is there already, whose visibility stays as it is. Raises InputError for a name that is
    taken, a missing or refused token; BackendError where the hub cannot be reached or does not answer as it should.
    """
    check_repository(repository)
    token = get_token()
    if not token:
        raise InputError(
            "There is no Hugging Face token here; run `hf auth login`, or set HF_TOKEN to one that may write."
        )
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="lora-foundry")
    operations = [
        CommitOperationAdd(f"{release.name}.safetensors", release.lora),
        CommitOperationAdd("README.md", readme(release).encode()),
        *(CommitOperationAdd(f"{PICTURES}/{each.name}", each.data) for each in release.pictures),
    ]
    with _in_words(repository, "run the same command again"):
        made = api.create_repo(repository, private=not public, exist_ok=update)
    with _in_words(repository, "the repository is there, so run the same command again with --update"):
        api.create_commit(repository, operations, commit_message=f"{release.character} by lora-foundry")
    return str(made)


@contextmanager
def _in_words(repository: str, again: str) -> Iterator[None]:
    """Errors of the client as ours. again: what to do where trying again may help."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(repository, error, again) from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            "HF_HUB_OFFLINE forbids every request to the hub; unset it to publish there."
        ) from error
    except (HTTPError, OSError) as error:
        raise BackendError(
            f"The hub cannot be reached ({error}); look at the network, then {again}."
        ) from error
    except RuntimeError as error:  # the client's word for an upload that broke off
        raise BackendError(f"The upload broke off ({error.__cause__ or error}); {again}.") from error


def _refused(repository: str, error: HfHubHTTPError, again: str) -> FoundryError:
    status = error.response.status_code
    if status == HTTPStatus.CONFLICT:
        return InputError(f"{repository} is taken already; choose another name, or add to it with --update.")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return InputError(
            f"The hub lets this token not write to {repository} ({status}); make one that may at its settings page, and "
            "set HF_TOKEN or run `hf auth login`."
        )
    said = error.server_message or str(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return BackendError(f"The hub answered {status} ({said}); later, {again}.")
    return InputError(f"The hub refused {repository} ({status}): {said}")
