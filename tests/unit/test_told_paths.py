"""What a client is told of this machine's paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.settings import Settings
from lora_foundry.web.told_paths import teller

HOME = Path("/srv/my data/foundry").absolute()
SETTINGS = Settings(home=HOME, kohya=Path("/opt/sd-scripts"))
SENT = HOME / "uploads" / ("0123456789abcdef" * 2)
tell = teller(SETTINGS)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"There is no picture in {SENT}/more/a.zip.", "There is no picture in more/a.zip."),
        (f"There is no picture in {SENT}.", "There is no picture in what was sent."),
        (f"{HOME}/datasets/Elara cannot be written.", f"{HOME}/datasets/Elara cannot be written."),
        ("/opt/sd-scripts/train.py is missing.", "/opt/sd-scripts/train.py is missing."),
        ("/etc/ssl/x.pem cannot be read ('/usr/lib/y').", "x.pem cannot be read ('y')."),
        ("The disk that holds /tmp/lora-foundry-x1/a.png is full.", "The disk that holds a.png is full."),
        ("See `POST /api/v1/uploads` at http://127.0.0.1:8188/usr/x.", None),
        ("12/40 pictures, and/or /; a/b.png", None),
    ],
)
def test_places_that_are_nobodys_business_are_names(said: str, told: str | None) -> None:
    assert tell(said) == (said if told is None else told)


@given(st.text(max_size=80))
def test_any_sentence_can_be_told_and_told_again(said: str) -> None:
    told = tell(said)
    assert len(told) <= len(said)
    assert tell(told) == told
