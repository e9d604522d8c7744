"""Requests that nobody would think of, made from the OpenAPI document: none is answered with a fault of the server,
and every answer is one that the document promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lora_foundry.settings import Settings
from lora_foundry.web.app import create_app
from tests.contract.web.conftest import ELARA, paint_set, serving

DOCUMENT = create_app(Settings(home="/nonexistent/lora-foundry-schema")).openapi()
# Streams never end (test_events.py), and the doctor takes seconds (test_system.py).
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT).exclude(path_regex="events$|/doctor$")
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 6


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


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_is_answered_with_a_fault_of_the_server(
    operation: schemathesis.models.APIOperation, server: tuple[str, requests.Session, dict[str, str]]
) -> None:
    address, session, real = server

    @examples(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(), known=st.booleans())
    def ask(case: schemathesis.Case, known: bool) -> None:
        if known:  # a random id would never come further than "not found"
            for name in case.path_parameters or {}:
                case.path_parameters[name] = real[name]
        answer = case.call(base_url=address, session=session, timeout=20)
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()
