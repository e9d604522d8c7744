"""No more turns are taken at once than there are."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.turns import WAITING, a_turn

ROOT = Path(__file__).parents[2]


def test_who_comes_third_of_two_waits_for_one_that_ends(tmp_path: Path) -> None:
    taken: list[int] = []

    def third() -> None:
        with a_turn(tmp_path, 2) as place:
            taken.append(place)

    with a_turn(tmp_path, 2) as first:
        with a_turn(tmp_path, 2) as second:
            waiting = threading.Thread(target=third)
            waiting.start()
            waiting.join(0.2)
            assert {first, second} == {0, 1}
            assert not taken
        waiting.join(20)
        assert taken == [second]


def test_the_files_that_take_no_turn_are_there() -> None:
    assert not [name for name in WAITING if not (ROOT / name).is_file()]
