"""The tokenizer: byte-pair encoding in CLIP's own form, small, with every word of the world as one token
and every byte covered, so that a name it never saw falls into pieces instead of becoming unknown.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from mini_world.vocabulary import ATTRIBUTES, QUALITY_TAGS, tag

LENGTH = 64
START, END = "<|startoftext|>", "<|endoftext|>"
POOR = (
    "low quality",
    "worst quality",
    "blurry",
    "bad anatomy",
    "deformed",
    "ugly",
    "watermark",
    "text",
    "signature",
    "extra limbs",
    "jpeg artifacts",
    "lowres",
    "bad hands",
    "multiple people",
    "cropped",
)
"""What negative prompts say; the model is taught that these words mean no wish at all."""
LINKING = (
    "a",
    "an",
    "the",
    "of",
    "with",
    "and",
    "in",
    "on",
    "wearing",
    "has",
    "girl",
    "boy",
    "solo",
    "masterpiece",
    "portrait",
    "photo",
    "picture",
    "drawing",
    "character",
    "anime",
    "cartoon",
    "style",
    "eyes",
    "hair",
)


def words() -> list[str]:
    """Every word that a caption of this world can hold, and a few that prompts hold anyway."""
    tags = [tag(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]
    text = " ".join(
        [*tags, *QUALITY_TAGS, *POOR, *LINKING, "1 2 3 4 5 6 7 8 9 0", ", . - ! ? ( ) : '"]
    ).lower()
    return sorted(set(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text)))


def learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    """Merge until every word of the corpus is whole."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build() -> CLIPTokenizer:
    """The tokenizer with its vocabulary laid out as CLIP lays out its own."""
    merges = learn_merges(words())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(first + second for first, second in merges),
    ]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """In the new single-file form and in the two files that every older reader of CLIP wants."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer.")
    parser.add_argument("--work", type=Path, required=True)
    folder = parser.parse_args().work / "tokenizer"
    save(build(), folder)
    loaded = CLIPTokenizer.from_pretrained(folder)
    broken = [word for word in words() if len(loaded(word).input_ids) != 3]
    assert not broken, broken
    for word in ("Elara", "Zoe", "Ünïcode 日本", "school uniform, close-up portrait, 1girl"):
        print(
            word,
            loaded.convert_ids_to_tokens(loaded(word).input_ids),
            "->",
            loaded.decode(loaded(word).input_ids),
        )
    print(len(loaded), "tokens, length", loaded.model_max_length)


if __name__ == "__main__":
    main()
