"""Do equal steps teach as much as the plain loop that everyone knows? The same pictures, captions, rank, rate and
number of steps, once with our trainer and once with a page of diffusers and peft, over several seeds; the identity
score by the attribute reader. Stored after each run: run it again to go on."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, cast

import torch
from characters import draw_character
from common import RESULTS, finish, table
from settings import prepare
from torch.nn import functional

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import Run
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.stages.evaluate.scoring import EvaluationMetrics, score
from lora_foundry.stages.train.step import collect_images
from lora_foundry.trainer.images import read_tensor
from lora_foundry.trainer.trainer import InProcessTrainer


def ours(run: Run, images: tuple[TrainingImage, ...], seed: int, folder: Path) -> Path:
    """Our trainer, in deterministic order from the seed."""
    settings = run.recipe.train.model_copy(update={"seed": seed, "saves": 0})
    job = TrainingJob(images, settings, run.character.trigger, folder / "lora.safetensors", folder, {})
    return InProcessTrainer(find_base("mini"), "cpu").train(job, lambda event: None).path


def plain(run: Run, images: tuple[TrainingImage, ...], seed: int, folder: Path) -> Path:
    """The loop of the libraries' own examples: peft on the UNet, AdamW, a cosine, noise and timesteps at random."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    settings = run.recipe.train
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pipeline: Any = load_pipeline(find_base("mini"), torch.float32, "cpu")
    unet, scheduler = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    with quiet_libraries():
        unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha), target_modules=targets))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    rates = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    with torch.no_grad():
        frame = (settings.resolution, settings.resolution)
        latents = [
            pipeline.vae.encode(read_tensor(image.path, frame)[None]).latent_dist.mean
            * pipeline.vae.config.scaling_factor
            for image in images
        ]
        texts = [pipeline.encode_prompt(image.caption, "cpu", 1, False)[0] for image in images]
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order += rng.sample(range(len(images)), len(images))
        batch, order = order[: settings.batch_size], order[settings.batch_size :]
        clean = torch.cat([latents[index] for index in batch])
        noise = torch.randn_like(clean)
        steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(batch),))
        noised = scheduler.add_noise(clean, noise, steps)
        answer = unet(noised, steps, torch.cat([texts[index] for index in batch])).sample
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, steps) if v else noise
        functional.mse_loss(answer, target).backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return next(iter(folder.glob("*.safetensors")))


def identity(run: Run, lora: Path) -> float:
    """The identity score on held-out prompts with the trigger."""
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, [])
    tagger = MiniTagger()
    records = evaluation_prompts(run.character, run.recipe, shots, "x", "after")
    generator = DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu")
    batches = [[record.request for record in records[n : n + 8]] for n in range(0, len(records), 8)]
    pictures = [made.image for made in generator.generate(batches, LoraUse(path=lora))]
    metrics = EvaluationMetrics(tagger.understand(run.character.tags), tagger, None, None)
    return score([record.file for record in records], records, pictures, metrics).identity or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9, help="begin no training after so many minutes")
    parser.add_argument("--home", type=Path, required=True, help="where the set and the trainings are kept")
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    store = options.home / f"learning-{options.steps}.json"
    results: dict[str, list[dict[str, float]]] = json.loads(store.read_text()) if store.exists() else {}
    started = time.monotonic()
    run, _ = prepare(draw_character(random.Random(0)), (f"train.steps={options.steps}",), 0, options.home)
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    images = collect_images(run, paths, tagged)
    for seed in range(options.seeds):
        for name, train in (("ours", ours), ("plain", plain)):
            done = results.setdefault(name, [])
            if len(done) > seed or time.monotonic() - started > 60 * options.minutes:
                continue
            folder = options.home / "learning" / f"{name}-{options.steps}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            begun = time.process_time()
            lora = cast(Any, train)(run, images, seed, folder)
            seconds = round(time.process_time() - begun, 1)
            done.append({"identity": identity(run, lora), "seconds": seconds})
            store.write_text(json.dumps(results, indent=1))
            print(name, seed, done[-1], flush=True)
    rows: list[list[object]] = []
    for name, runs in results.items():
        scores = [run["identity"] for run in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        seconds = statistics.mean(run["seconds"] for run in runs)
        rows.append([name, len(runs), statistics.mean(scores), spread, seconds])
    header = ["loop", "seeds", "identity", "spread", "CPU s"]
    table(header, rows)
    figures = {str(row[0]): dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    finish("learning", figures, {"steps": options.steps, "runs": results}, RESULTS.is_dir())


if __name__ == "__main__":
    main()
