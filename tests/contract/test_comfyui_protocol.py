"""The parsers against answers that a real ComfyUI 0.3.64 gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.backends.comfyui.faults import execution_error, fault_sentence, nearest, refusal
from lora_foundry.backends.comfyui.protocol import (
    ImageRef,
    PromptAccepted,
    PromptRefused,
    parse_event,
    parse_history,
    parse_object_info,
    parse_prompt_answer,
    parse_queue,
    parse_stats,
)
from lora_foundry.errors import BackendError, BaseModelError, InputError

DATA = Path(__file__).parents[1] / "data" / "comfyui"


def recorded(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def answer(name: str) -> tuple[int, bytes]:
    response = recorded(name)["response"]
    body = response["text"] if response["json"] is None else json.dumps(response["json"])
    return response["status"], body.encode()


def refused(name: str) -> PromptRefused:
    parsed = parse_prompt_answer(*answer(name))
    assert isinstance(parsed, PromptRefused)
    return parsed


def test_an_accepted_prompt_has_an_id_and_no_faults() -> None:
    assert parse_prompt_answer(*answer("prompt_success")) == PromptAccepted(
        "72d9c8e2-a636-4846-8a9d-d9f793e42300"
    )


def test_a_missing_checkpoint_is_named_with_what_there_is() -> None:
    parsed = refused("prompt_invalid_missing_checkpoint")
    (fault,) = parsed.faults
    assert (fault.node, fault.kind, fault.received) == ("4", "value_not_in_list", "nope.safetensors")
    assert "tiny.safetensors" in fault.allowed
    error = refusal(parsed, {"4": {"class_type": "CheckpointLoaderSimple", "_meta": {"title": "My model"}}})
    assert isinstance(error, BaseModelError)
    assert "checkpoint nope.safetensors is not installed" in str(error)
    assert "'My model' (node 4)" in str(error)


def test_a_dropped_output_hides_in_an_answer_of_status_200() -> None:
    parsed = parse_prompt_answer(*answer("prompt_invalid_one_good_one_bad_output_200"))
    assert isinstance(parsed, PromptAccepted)
    assert [fault.node for fault in parsed.faults] == ["14"]


def test_a_long_list_of_choices_is_not_in_the_answer() -> None:
    (fault,) = refused("prompt_invalid_bad_sampler").faults
    assert fault.allowed == ()
    assert "sampler nope is not a choice" in fault_sentence(fault, {})


def test_a_missing_input_is_named() -> None:
    (fault,) = refused("prompt_invalid_missing_input").faults
    assert "'seed'" in fault_sentence(fault, {})


@pytest.mark.parametrize(
    ("name", "words"),
    [("prompt_invalid_unknown_node_class", "NoSuchNode"), ("prompt_invalid_no_outputs", "Save Image")],
)
def test_a_refusal_without_node_errors_has_its_message(name: str, words: str) -> None:
    error = refusal(refused(name), {})
    assert isinstance(error, InputError)
    assert words in str(error)


def test_a_server_error_in_plain_text_may_pass_and_a_foreign_origin_may_not() -> None:
    with pytest.raises(BackendError, match="500"):
        parse_prompt_answer(*answer("prompt_malformed_bad_json"))
    with pytest.raises(InputError, match="403"):
        parse_prompt_answer(*answer("prompt_malformed_origin_mismatch_403"))


def history(name: str) -> Any:
    data = recorded(name)
    data = data["response"]["json"] if "response" in data else {data["prompt"][1]: data}
    (prompt_id,) = data
    return parse_history(data, prompt_id)


def test_a_finished_run_has_its_pictures_and_its_seconds() -> None:
    entry = history("history_done_success")
    assert entry.outcome == "success"
    assert entry.images == {"9": (ImageRef("full_00001_.png", "rec", "output"),)}
    assert entry.seconds == pytest.approx(2.777)
    assert not entry.cached


def test_outputs_do_not_mean_success() -> None:
    entry = history("history_failed_with_fresh_outputs")
    assert entry.images["9"]
    assert entry.outcome == "error"
    assert entry.failure.node == "19"


def test_a_failure_and_an_interrupt_are_told_apart() -> None:
    failed = history("history_failed")
    assert failed.outcome == "error"
    text = str(execution_error(failed.failure, {}))
    assert "node 4" in text
    assert "header too large" in text
    assert history("history_interrupted").outcome == "interrupted"


def test_a_cached_run_says_so() -> None:
    assert "9" in history("history_identical_resubmit").cached


def test_a_run_that_is_not_over_has_no_record() -> None:
    assert parse_history(recorded("history_while_running")["response"]["json"], "any") is None


def test_the_queue_is_read() -> None:
    queue = parse_queue(recorded("queue_running_and_pending")["response"]["json"])
    assert queue.running == {"20f4afc4-6121-4e8a-9cb9-e0031c45a2f5"}
    assert len(queue.pending) == 3
    assert not queue.idle


def test_the_statistics_are_read() -> None:
    stats = parse_stats(recorded("get_system_stats")["response"]["json"])
    assert (stats.version, stats.devices[0].name, stats.free) == ("0.3.64", "cpu", 18070220800)


def test_choices_are_read_in_both_forms_and_uploads_have_none() -> None:
    sampler = parse_object_info(recorded("get_object_info_KSampler")["response"]["json"])["KSampler"]
    assert "dpmpp_2m" in (sampler.inputs["sampler_name"].options or ())
    assert (sampler.inputs["steps"].least, sampler.outputs) == (1, ("LATENT",))
    newer = {"N": {"input": {"required": {"mode": ["COMBO", {"options": ["a", "b"]}]}}, "output": []}}
    assert parse_object_info(newer)["N"].inputs["mode"].options == ("a", "b")
    load = parse_object_info(recorded("get_object_info_LoadImage")["response"]["json"])["LoadImage"]
    assert load.inputs["image"].options is None


def test_the_end_of_a_run_is_the_last_message_of_the_socket() -> None:
    for name in ("ws_complete_run_no_previews", "ws_execution_error"):
        events = [parse_event(json.dumps(message["text"])) for message in recorded(name)]
        ends = [event for event in events if event and event.kind == "executing" and event.node is None]
        assert len(ends) == 1
        assert events[-1] == ends[0]
        assert ends[0].prompt_id
    assert parse_event(b"\0\0\0\1\0\0\0\1\xff\xd8") is None
    assert parse_event("no json") is None


def test_what_is_near_is_proposed() -> None:
    assert nearest("dreamshaper_8.safetensors", ["dreamshaper_8_pruned.safetensors", "x"]).startswith(
        "did you mean d"
    )
    assert "4 more" in nearest("zzz", [f"{letter}.safetensors" for letter in "abcdefghijkl"])
    assert "none" in nearest("zzz", [])
