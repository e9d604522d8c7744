"""How a caption is put together from what was asked for and what is seen: what the picture shows beats the prompt, what
belongs to the character is left to the trigger word where the recipe says so, and nothing contradicts anything."""

from __future__ import annotations

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
    without_contradictions,
)


def own_features(seen: Sequence[Sequence[str]], share: float) -> tuple[str, ...]:
    """The features seen in at least `share` of the pictures: they are the character's, whatever was described."""
    counts = Counter(tag for tags in seen for tag in dict.fromkeys(tags) if describes_identity(tag))
    least = share * len(seen)
    return tuple(tag for tag, count in counts.most_common() if count >= least)


def open_features(description: str, seen: Sequence[Sequence[str]], share: float) -> tuple[str, ...]:
    """What pictures of a character settle of what its description leaves open: of each feature the value that most of
    them have, where it is that of two pictures and of `share` of those that show the feature at all. Extras (glasses,
    a hat) are settled together only if they are seen together."""
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
