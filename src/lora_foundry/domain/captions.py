"""How a caption is put together from what was asked for and what is seen: what the picture shows beats the prompt, what
belongs to the character is left to the trigger word where the recipe says so, and nothing contradicts anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from lora_foundry.domain.tags import (
    CLOTHES,
    GROUPS,
    booru,
    describes_identity,
    is_extra,
    same,
    topics,
    topics_of,
    without_color,
    without_contradictions,
)

_LONGEST_LINE = 6  # words; a longer line is part of a sentence and no tag
_FOREIGN_COMMAS = re.compile(r"\s*[，、]\s*")


def one_line(text: str) -> str:
    """A caption as trainers read it: on one line, its tags parted by ", " whether they stood on a line each or were
    parted by the commas of Chinese and Japanese. Wrapped sentences are joined by a blank."""
    lines = [line for part in text.splitlines() if (line := " ".join(part.split()))]
    tags = [line.rstrip(",，、 ") for line in lines]
    listed = len(lines) > 1 and all(_is_tag_line(line) for line in lines)
    joined = ", ".join(tag for tag in tags if tag) if listed else " ".join(lines)
    if _FOREIGN_COMMAS.search(joined):
        joined = _FOREIGN_COMMAS.sub(", ", joined).strip(", ")
    return joined


def _is_tag_line(line: str) -> bool:
    """Whether a line stands for itself: a tag or several, no part of a wrapped sentence."""
    tags = [tag for part in re.split(r"[,，、]", line) if (tag := part.strip())]
    return all(len(tag.split()) <= _LONGEST_LINE and tag[-1] not in ".!?。" for tag in tags)


def says(caption: str, word: str) -> bool:
    """Whether a caption says a trigger word, as a tag or within a sentence, in any case of letters."""
    pattern = rf"(?<!\w){re.escape(word.lower())}(?!\w)"
    return bool(word) and re.search(pattern, caption.lower()) is not None


def call(caption: str, trigger: str, former: Iterable[str] = ()) -> str:
    """A person's caption under the trigger word: as it is where it says it; else with the word in the place of a
    former trigger, or put before all."""
    if says(caption, trigger):
        return caption
    for old in former:
        if says(caption, old):
            pattern = rf"(?<!\w){re.escape(old)}(?!\w)"
            return re.sub(pattern, lambda _: trigger, caption, count=1, flags=re.IGNORECASE)
    return ", ".join(filter(None, (trigger, caption)))


def uncalled(caption: str, triggers: Iterable[str]) -> str:
    """What a caption says of whoever has no name: "elara, running" is "running", "a sketch of elara" one "of someone"."""
    words = "|".join(re.escape(each) for each in sorted(triggers, key=len, reverse=True) if each)
    named = re.compile(rf"(?<!\w)(?:{words})(?!\w)" if words else r"(?!)", re.IGNORECASE)
    parts = [part.strip() for part in caption.split(",")]
    return ", ".join(named.sub("someone", part) for part in parts if part and not named.fullmatch(part))


def framed(caption: str, framing: str) -> str:
    """A person's caption for a part of the picture: it names that framing, and no other."""
    rivals = [group for group in GROUPS if framing in group]
    tags = [tag for part in caption.split(",") if (tag := part.strip())]
    kept = [tag for tag in tags if not any(tag.lower() in group for group in rivals)]
    return ", ".join([*kept, framing])


def own_features(seen: Sequence[Sequence[str]], share: float) -> tuple[str, ...]:
    """The features seen in at least `share` of the pictures: they are the character's, whatever was described."""
    counts = Counter(tag for tags in seen for tag in dict.fromkeys(tags) if describes_identity(tag))
    least = share * len(seen)
    return tuple(tag for tag, count in counts.most_common() if count >= least)


def shared_tags(seen: Sequence[Sequence[str]], share: float) -> tuple[str, ...]:
    """Everything seen in at least `share` of the pictures: of a set in one style, what it is done with."""
    counts = Counter(tag for tags in seen for tag in dict.fromkeys(tags))
    return tuple(tag for tag, count in counts.most_common() if count >= share * len(seen))


def open_features(description: str, seen: Sequence[Sequence[str]], share: float) -> tuple[str, ...]:
    """What pictures of a character settle of what its description leaves open: of each feature the value that most of
    them have, where it is that of two pictures and of `share` of those that show the feature at all. A "red dress" is seen
    as a dress, too: where pictures agree on the dress and not on its colour, the dress is settled. Extras (glasses,
    a hat) are settled together only if they are seen together."""
    seen = [[each for tag in tags for each in (tag, *without_color(tag))] for tags in seen]
    counts = Counter(tag for tags in seen for tag in dict.fromkeys(tags))
    shown = Counter(topic for tags in seen for topic in {topic for tag in tags for topic in topics(tag)})
    settled, words = topics_of(description), set(description.lower().replace(",", " ").split())
    extras = [tag for tag in counts if is_extra(tag) and topics(tag) <= settled]
    found: list[str] = []
    for tag, count in counts.most_common():
        own, kind = topics(tag), booru(tag).split(" ")[-1]
        enough = count >= 2 and all(count >= share * shown[topic] for topic in own)
        # "red dress" says more of a "dress" that is settled already, and nothing else of it.
        open_still = not own & settled or (
            own == CLOTHES and "clothes color" not in settled and kind in words
        )
        if own and enough and open_still and (not is_extra(tag) or _together(tag, extras, seen)):
            found.append(tag)
            extras += [tag] if is_extra(tag) else []
            settled |= own
            words.add(kind)
    return tuple(found)


def _together(tag: str, others: Sequence[str], seen: Sequence[Sequence[str]]) -> bool:
    """Whether at least half of the pictures that show `tag` show each of `others` too."""
    showing = [tags for tags in seen if tag in tags]
    return all(2 * sum(other in tags for tags in showing) >= len(showing) for other in others)


def corrected(asked: Sequence[str], seen: Sequence[str]) -> list[str]:
    """The words of the shot, each replaced by what is seen where that says otherwise."""
    words = []
    for word in asked:
        rivals = [group for group in GROUPS if word in group]
        shown = [tag for tag in seen if any(tag in group for group in rivals)]
        right = not shown or any(same(word, tag) for tag in shown)
        words.append(word if right else shown[0])
    return words


def merge(
    trigger: str,
    features: Sequence[str],
    asked: Sequence[str],
    seen: Sequence[str],
    pruned: Collection[str],
    quality: Sequence[str],
) -> str:
    """One caption: the trigger, features, the shot as it is seen, what else is seen, quality tags; nothing twice.

    pruned: what the trigger word is to mean, in any spelling; it is left out wherever it came from.
    """
    left_out = {booru(tag) for tag in pruned} | {booru(trigger)} | {booru(tag) for tag in quality}

    def allowed(tags: Iterable[str]) -> list[str]:
        return [tag for tag in tags if tag and booru(tag) not in left_out]

    middle = without_contradictions([*allowed(features), *allowed(corrected(asked, seen)), *allowed(seen)])
    return ", ".join(dict.fromkeys([trigger, *middle, *quality]))
