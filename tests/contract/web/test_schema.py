"""Requests that nobody would think of, made from the OpenAPI document: none is answered with a fault of the server,
and every answer is one that the document promises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from lora_foundry.settings import Settings
from lora_foundry.web.app import create_app
from tests.contract.web.conftest import ELARA, paint_set, serving

if (
    TYPE_CHECKING
):  # where the tests run: its import takes seconds, and whoever only collects them needs none of it
    import schemathesis

DOCUMENT: dict[str, Any] = create_app(Settings(home="/nonexistent/lora-foundry-schema")).openapi()
# Streams never end (test_events.py), and the doctor takes seconds (test_system.py).
LEFT_OUT = "events$|/doctor$"
LABELS = [
    f"{method.upper()} {path}"
    for path, methods in DOCUMENT["paths"].items()
    if not re.search(LEFT_OUT, path)
    for method in methods
]
EXAMPLES = 6


@pytest.fixture(scope="module")
def operations() -> dict[str, schemathesis.models.APIOperation]:
    """By label. No other than those that the tests are named for."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path_regex=LEFT_OUT)
    found = {operation.label: operation for operation in (each.ok() for each in schema.get_all_operations())}
    assert sorted(found) == sorted(LABELS)
    return found


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, requests.Session, dict[str, str]]]:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    paths = paint_set(settings)
    with serving(settings) as address, requests.Session() as session:
        made = session.post(f"{address}/api/v1/pipelines", json=ELARA).json()
        picture = {"files": ("elara.png", paths.image(0).read_bytes())}
        upload = session.post(f"{address}/api/v1/uploads", files=picture).json()["id"]
        real = {"pipeline": made["id"], "file": paths.image(0).name, "name": "mini", "side": "before",
                "task": str(made["stages"][0]["task_id"]), "candidate": "step-00005-at-1", "upload": upload,
                "trial": "20260101-000000-abcdef", "entry": "20260101-000000-abcdef01", "subject": "database",
                "what": "logs"}  # fmt: skip
        yield address, session, real


@pytest.mark.parametrize("label", LABELS)
def test_no_request_is_answered_with_a_fault_of_the_server(
    label: str,
    operations: dict[str, schemathesis.models.APIOperation],
    server: tuple[str, requests.Session, dict[str, str]],
) -> None:
    from schemathesis.specs.openapi import checks

    kept = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    operation, (address, session, real) = operations[label], server

    @examples(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(), known=st.booleans())
    def ask(case: schemathesis.Case, known: bool) -> None:
        if known:  # a random id would never come further than "not found"
            for name in case.path_parameters or {}:
                case.path_parameters[name] = real[name]
        answer = case.call(base_url=address, session=session, timeout=20)
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=kept)

    ask()
