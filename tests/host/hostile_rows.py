"""Rows as no program writes them, for both databases: what an inattentive or ill-meaning hand can put into the shared
table with SQL. Each is written as SQL literals, since drivers refuse much of it as a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st

GOOD = {"character_name": "Elara", "description": "sleep 0"}
REFUSED = {"character_name": "a/b", "description": "1girl"}  # fails before a child is started
OURS = ("LORA_GENERATION", "lora_tagging", "Lora_Training", "LORA_STAGE")
HALF, NUL = "\\ud800", "\\u0000"


@dataclass(frozen=True)
class Row:
    """One row: SQL literals by column. `ours` by its type or payload; all of ours here must fail."""

    ours: bool
    literals: dict[str, str] = field(default_factory=dict)

    def insert(self) -> str:
        values = {"name": "'n'", "priority": "3", "status": "'pending'", "payload": "'{}'"} | self.literals
        values = {"created_at": "CURRENT_TIMESTAMP", "updated_at": "CURRENT_TIMESTAMP"} | values
        return f"INSERT INTO echo_tasks ({', '.join(values)}) VALUES ({', '.join(values.values())})"


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def deep(levels: int, inside: str = '"lora_ character_name"') -> str:
    return '{"a":' * levels + inside + "}" * levels


def payload_texts() -> Iterator[str]:
    """Payloads of ours that cannot be run, as the text that stands in the column."""
    for value in (None, 5, True, "lora_generation", [], [1], {}, {"character_name": 5}, {"description": "x"}):
        yield json.dumps(value)
    for levels in (900, 1500, 5000):
        yield deep(levels)
        yield '{"character_name": "Elara", "description": "x", "settings": ' + deep(levels) + "}"
        yield '{"character_name": "Elara", "description": "x", "recipe": ' + deep(levels) + "}"
        yield "[" * levels + "]" * levels
    for rubbish in (
        HALF,
        NUL,
        f"a{HALF}b",
        "x" * 100_000,
        "../../etc",
        "/etc/passwd",
        "",
        " ",
        "CON",
        ".",
        "[red]",
    ):
        quoted = '"' + rubbish + '"'
        yield '{"character_name": ' + quoted + ', "description": "x"}'
        yield '{"character_name": "a/b", "description": ' + quoted + "}"
        for key in ("recipe", "output_dir", "reference_image", "image_dir", "training_dir", "output_name", "base_model",
                    "task_uuid", "stage", "pipeline"):  # fmt: skip
            yield '{"character_name": "a/b", "description": "x", "' + key + '": ' + quoted + "}"
        yield '{"character_name": "Elara", "description": "x", "settings": {' + quoted + ": 1}}"
    for number in ("1e999", "-1", "NaN", "1" * 400, "1" * 5000, "0.5"):
        yield (
            '{"character_name": "Elara", "training_dir": "Elara", "output_name": "e", "epochs": '
            + number
            + "}"
        )
        yield (
            '{"character_name": "Elara", "description": "x", "settings": {"generate.images": ' + number + "}}"
        )
    yield '{"character_name": "Elara", "description": "' + "x" * 1_200_000 + '"}'


def ours_of_any_type() -> Iterator[Row]:
    for number, said in enumerate(payload_texts()):
        yield Row(True, {"task_type": text(OURS[number % 4]), "payload": text(said)})
    for marker in ("LORA_BAKE", "lora_" + "x" * 100_000, "lora_" + HALF, "Lora_\\u0000"):
        said = '{"character_name": "E", "task_type": "' + marker + '"}'
        yield Row(True, {"task_type": "'user_request'", "payload": text(said)})


def odd_columns() -> Iterator[dict[str, str]]:
    """Columns that mean nothing, each alone; a database may refuse some."""
    for word in (
        "x" * 100_000,
        "",
        "[red]x[/red]",
        "\x1b[31m",
        "a\nb",
        "'; DROP TABLE echo_tasks; --",
        "🦊",
        "\u202e",
    ):
        yield {"name": text(word)}
        yield {"creator": text(word[:90])}
        yield {"error": text(word)}
    for blob in (
        "CAST(X'ff' AS TEXT)",
        "CAST(X'eda080' AS TEXT)",
        "CAST(X'610062' AS TEXT)",
        "X'00ff'",
        "5",
        "1.5",
    ):
        for column in (
            "name",
            "error",
            "creator",
            "payload",
            "dependencies",
            "result",
            "created_at",
            "scheduled_for",
        ):
            yield {column: blob}
    for number in (
        "0",
        "-1",
        "6",
        "2147483647",
        "-2147483648",
        "9223372036854775807",
        "'high'",
        "1.5",
        "NULL",
        "X'00'",
    ):
        for column in ("priority", "timeout", "retries", "max_retries"):
            yield {column: number}
    for moment in ("'infinity'", "'-infinity'", "'0001-01-01 00:00:00'", "'4713-01-01 00:00:00 BC'", "'rubbish'", "''",
                   "'294276-01-01 00:00:00'"):  # fmt: skip
        for column in ("created_at", "updated_at", "started_at", "completed_at"):
            yield {column: moment}
    for said in (
        "{",
        "not json",
        deep(1500),
        '"' + HALF + '"',
        '"' + NUL + '"',
        "[" * 3000,
        "NaN",
        "1" * 5000,
    ):
        yield {"result": text(said)}
    for number in ("0", "-7", "2147483653", "4611686018427387904"):
        yield {"id": number}


def odd_dependencies() -> Iterator[str]:
    for value in ([99999], ["99999999999999999999"], [10**30], ["x" * 100_000], [None], [True], [1.5], [[1]], [{}], {},
                  "5", 5, "x", ["../../etc"], [""], list(range(50_000, 52_000)), ["é" * 40], ["'"], ["%"]):  # fmt: skip
        yield json.dumps(value)
    yield from (
        f'["{HALF}"]',
        f'["a{NUL}"]',
        "[" * 2000 + "]" * 2000,
        "{",
        "not json",
        '["NaN", NaN]',
        "[1e999]",
    )


def rows() -> list[Row]:
    """Some four hundred: ours, which must fail, and others', which must stay as they are."""
    made = list(ours_of_any_type())
    kind = {"task_type": "'LORA_GENERATION'", "payload": text(json.dumps(REFUSED))}
    foreign = {"task_type": "'monitoring'", "payload": text('{"target": "lora_ character_name"}')}
    for columns in odd_columns():
        number = columns.get("id")
        made.append(Row(True, kind | columns))
        made.append(Row(False, foreign | columns | ({"id": str(int(number) + 1)} if number else {})))
    for said in odd_dependencies():
        made.append(Row(True, kind | {"dependencies": text(said)}))
        made.append(Row(False, foreign | {"dependencies": text(said)}))
    for said in (deep(900), deep(1500), deep(5000), f'"lora_{HALF}"', f'["lora_", "{NUL}"]', '{"lora_": NaN}', "{lora_",
                 '{"type": "summary", "character_name": "' + HALF + '"}',
                 '{"message": "LORA_ ' + "x" * 50_000 + '"}'):  # fmt: skip
        made.append(Row(False, {"task_type": "'user_request'", "payload": text(said)}))
    return made


# What hypothesis puts together: any JSON, in any text column, in rows of ours and of others.
WORDS = st.text(max_size=12) | st.sampled_from(
    [HALF, NUL, "\ud800", "\0", "lora_", "a/b", "~", "..", "x" * 2000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def drawn_rows(draw: st.DrawFn) -> Row:
    ours = draw(st.booleans())
    said = draw(VALUES)
    if isinstance(said, dict):
        said = REFUSED | said | {"character_name": "a/b"}
    kind = (
        draw(st.sampled_from(OURS)) if ours else draw(st.sampled_from(["monitoring", "summary", "LORA", ""]))
    )
    literals = {"task_type": text(kind), "payload": _json(said), "name": text(draw(WORDS).replace("\0", ""))}
    if draw(st.booleans()):
        literals["dependencies"] = _json(draw(VALUES))
    if draw(st.booleans()):
        literals[draw(st.sampled_from(["priority", "timeout", "max_retries"]))] = str(draw(st.integers()))
    return Row(ours, literals)


def _json(value: object) -> str:
    return text(json.dumps(value))
