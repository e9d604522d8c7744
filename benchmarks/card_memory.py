"""What a training takes on cards of 8 to 24 GB: the estimate by which it is fitted to them, beside what torch's meta device
counts of one step of the trainer's own network, LoRA and loss at full size. No GPU is needed, and none is measured.

    python -m benchmarks.card_memory
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import finish, table
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.memory import encoders_there, footprint, usual_means
from lora_foundry.recipe_files import load_recipe
from lora_foundry.trainer.memory import CARDS, RESERVE, fit
from tests.unit.families.meter import full_size, step_bytes
from tests.unit.families.test_memory import CASES, condition

GIB = 1 << 30
COMPUTER = 32 * GIB
# Recipe, pixels, and the case of the memory test that says how the family is asked.
SETS = {
    "sd15": (768, "sd 512"),
    "sdxl": (1024, "sdxl 1024 checkpointed"),
    "z-image": (1024, "z_image 1024 checkpointed"),
    "klein": (1024, "klein 1024 checkpointed"),
    "krea2": (1024, "krea2 1024 checkpointed"),
    "qwen-image": (1024, "qwen_image 1024 checkpointed"),
}
_SHOWN = ("batch_size", "gradient_checkpointing", "cache_captions", "streamed", "quantise")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append", choices=[*SETS], help="only this one; may be repeated")
    parser.add_argument(
        "--save", action="store_true", help="store the figures in benchmarks/results/card_memory.json"
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.recipe or SETS:
        counted: dict[str, int] = {}
        for card in CARDS:
            found = measure(name, card, counted)
            rows.append(found)
            print(found, flush=True)
    table(("recipe", "card", "estimated", "counted", "text encoders"),
          [(row["recipe"], row["card"], row["estimated_gib"], row["counted_gib"], row["text_encoders_gib"])
           for row in rows])  # fmt: skip
    away = max(abs(row["estimated_gib"] / row["counted_gib"] - 1) for row in rows)
    finish("card_memory", {"largest_difference": round(away, 3)}, {"rows": rows}, options.save)


def measure(name: str, card: str, counted: dict[str, int]) -> dict[str, Any]:
    """One recipe on one card; `counted` remembers what was counted for the same settings. The text encoders that stay are
    not part of a step and stand apart; CUDA's own share is in neither figure."""
    resolution, case = SETS[name]
    family, configuration, latents, _, text = CASES[case]
    base = full_size(family, configuration)
    asked = load_recipe(name).train.model_copy(
        update={"resolution": resolution, "memory": card, "precision": "bf16"}
    )
    fitted, _ = fit(asked, base, None, usual_means(base, asked, COMPUTER))
    step = fitted.model_copy(update={"memory": "as_set", "cache_captions": True})
    key = TrainSection.model_dump_json(step)
    if key not in counted:
        counted[key] = sum(step_bytes(base, step, condition(step.batch_size, **text), *latents))
    estimate, encoders = footprint(base, fitted), encoders_there(base, fitted)
    return {
        "recipe": f"{name} {resolution}", "card": card, "room_gib": CARDS[card] - RESERVE,
        "fits": estimate.total <= (CARDS[card] - RESERVE) * GIB,
        "chosen": {field: getattr(fitted, field) for field in _SHOWN},
        "estimated_gib": round((estimate.total - estimate.runtime - encoders) / GIB, 3),
        "counted_gib": round(counted[key] / GIB, 3), "text_encoders_gib": round(encoders / GIB, 3),
        "runtime_gib": round(estimate.runtime / GIB, 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
