"""Composes the prompts of the suite `scenes`: which things, in which words, how many, in which half.

Everything follows from the vocabulary, `scenes.splits` and stable hashes; nothing is drawn by chance and nothing is
chosen by looking at pictures. `scripts/make_suites.py` writes what comes out into `suites/`.

Seen and unseen. In the kinds with pairs (two objects, colours, position, attribute binding, place), about a third of
the prompts ask for combinations that training may show; the rest ask for at least one that it never does. Whatever
a prompt asks for, all its combinations belong to its half: no combination stands in both `dev` and `test`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, product
from typing import Literal, TypeVar

from vega_diffusion.data.scenes import words
from vega_diffusion.data.scenes.confusable import merged_nouns, testable_nouns
from vega_diffusion.data.scenes.scene import BACKGROUNDS, PLACES, STYLES
from vega_diffusion.data.scenes.splits import Combination, held_out_part
from vega_diffusion.data.scenes.vocabulary import Noun, load_vocabulary
from vega_diffusion.evaluation.natural_prompts import CARD_NEGATIVE, CARD_PROMPT, NATURAL
from vega_diffusion.evaluation.object_colours import askable_colours
from vega_diffusion.evaluation.renders import drawable_styles
from vega_diffusion.evaluation.suites import prompt_combinations
from vega_diffusion.specs.evaluation import ExpectedObject, SuiteKind, SuitePrompt

Half = Literal["dev", "test"]
_Item = TypeVar("_Item")

# GenEval has about 92 prompts a kind and no rows; 72 a kind and the rows together are as many pictures.
NUM_PROMPTS: dict[Half, dict[SuiteKind, int]] = {
    "dev": {
        "single_object": 20,
        "two_objects": 20,
        "counting": 20,
        "colours": 20,
        "position": 20,
        "attribute_binding": 20,
        "background": 12,
        "place": 15,
        "style": 12,
        "natural": 16,
    },
    "test": {
        "single_object": 72,
        "two_objects": 72,
        "counting": 72,
        "colours": 72,
        "position": 72,
        "attribute_binding": 72,
        "background": 24,
        "place": 25,
        "style": 18,
        "natural": 50,
    },
}
NUM_SEEDS: dict[Half, int] = {"dev": 2, "test": 4}
FIRST_SEED: dict[Half, int] = {"dev": 200_000, "test": 100_000}
SEEN_SHARE = 1 / 3
MIN_STYLES = 3
"""Styles that must be able to draw what a prompt asks for: a thing that only one style can draw is hardly learned."""

_SALT = "vega suites, 7"
_POOL = 8
"""Candidates looked at for every prompt that is wanted."""
_PEOPLE = frozenset({"ninja", "santa claus"})
"""People that are neither professions nor left out of tests already."""
_TEMPLATES = ("{}", "{}", "a picture of {}")
_POSITIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def compose_scenes(half: Half) -> tuple[SuitePrompt, ...]:
    """Return all prompts of one half of the suite, kind by kind."""
    composer = _Composer(half)
    prompts: list[SuitePrompt] = []
    for kind, number in NUM_PROMPTS[half].items():
        made = composer.prompts(kind, number)
        if len(made) < number:
            raise ValueError(f"{half}, {kind}: only {len(made)} of {number} prompts can be made")
        prompts += made
    seeds = NUM_SEEDS[half]
    return tuple(
        prompt.model_copy(update={"seeds": tuple(FIRST_SEED[half] + index * seeds + i for i in range(seeds))})
        for index, prompt in enumerate(prompts)
    )


def half_of(combination: Combination) -> Half:
    """Return the half that a combination belongs to: for one kept out of training as `splits` says, else by hash."""
    return held_out_part(*combination) or ("test" if _hash("half", combination) % 2 else "dev")


@cache
def asked_nouns() -> tuple[Noun, ...]:
    """Return the nouns that prompts ask for: no people, and none that cannot be told from others."""
    return tuple(load_vocabulary().noun(name) for name in testable_nouns() if name not in _PEOPLE)


def phrase(noun: Noun, *, colour: str | None = None, count: int = 1) -> str:
    """Return a noun in its plainest words: "a cat", "scissors", "a red car", "three dogs"."""
    form = noun.forms[0]
    if count > 1:
        return f"{_NUMBERS[count]} {form.plural}"
    if form.kind != "count":
        return f"{colour} {form.text}" if colour else form.text
    if colour is None:
        return f"{form.article} {form.text}"
    return f"{_article(colour)} {colour} {form.text}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass
class _Composer:
    """Makes one half's prompts; remembers which pairs and texts it has used."""

    half: Half
    used: set[Combination] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def prompts(self, kind: SuiteKind, number: int) -> list[SuitePrompt]:
        match kind:
            case "single_object":
                made = self._of_nouns(kind, asked_nouns(), lambda noun, _: (phrase(noun), None))
            case "counting":
                countable = [noun for noun in asked_nouns() if noun.forms[0].kind == "count"]
                made = self._of_nouns(kind, countable, _counted)
            case "background":
                made = self._on_backgrounds(kind)
            case "style":
                made = self._styled(kind)
            case "place":
                made = self._balanced(kind, number, self._placed(kind))
            case "colours":
                made = self._balanced(kind, number, self._coloured(kind))
            case "two_objects" | "position" | "attribute_binding":
                made = self._balanced(kind, number, self._pairs(kind))
            case "natural":
                made = self._natural(number)
        chosen: list[SuitePrompt] = []
        for prompt in made:
            if len(chosen) == number:
                break
            if len(drawable_styles(prompt)) >= (1 if prompt.style else MIN_STYLES) and prompt.prompt not in self.texts:
                self.texts.add(prompt.prompt)
                chosen.append(prompt.model_copy(update={"id": f"{kind}-{len(chosen):03d}"}))
        return chosen

    # Kinds without pairs: every noun once, dev and test from two ends of one order.

    def _order(self, kind: str, nouns: Iterable[Noun]) -> list[Noun]:
        ordered = _shuffled(f"{kind} nouns", nouns, lambda noun: noun.name)
        return ordered if self.half == "test" else ordered[::-1]

    def _of_nouns(
        self, kind: SuiteKind, nouns: Iterable[Noun], say: Callable[[Noun, int], tuple[str, int | None]]
    ) -> Iterator[SuitePrompt]:
        for index, noun in enumerate(self._order(kind, nouns)):
            text, count = say(noun, index)
            yield _prompt(kind, _TEMPLATES[index // 3 % 3].format(text), [_expected(noun, count=count)])

    def _on_backgrounds(self, kind: SuiteKind) -> Iterator[SuitePrompt]:
        """Go round the backgrounds, each time with the next noun that stands out there."""
        waiting = self._order(kind, asked_nouns())
        while True:
            for colour in BACKGROUNDS:
                said = f"on {_article(colour)} {colour} background"
                made = (
                    _prompt(kind, f"{phrase(noun)} {said}", [_expected(noun)], background=colour) for noun in waiting
                )
                fitting = next((prompt for prompt in made if len(drawable_styles(prompt)) >= MIN_STYLES), None)
                if fitting is None:
                    return
                waiting = [noun for noun in waiting if noun.name != fitting.objects[0].nouns[0]]
                yield fitting

    def _styled(self, kind: SuiteKind) -> Iterator[SuitePrompt]:
        for index, noun in enumerate(
            self._order(kind, [noun for noun in asked_nouns() if set(STYLES) <= set(noun.styles)])
        ):
            style, said = STYLES[index % len(STYLES)], phrase(noun)
            texts = (
                f"{said}, {words.STYLE_TAGS[style][0]}",
                f"{words.STYLE_MEDIA[style][0]} of {said}",
                f"{said} {words.STYLE_ENDINGS[style][0]}",
            )
            yield _prompt(kind, texts[index // len(STYLES) % 3], [_expected(noun)], style=style)

    # Kinds with pairs.

    def _balanced(self, kind: SuiteKind, number: int, candidates: Iterable[SuitePrompt]) -> list[SuitePrompt]:
        """Choose so that about a third is seen and no noun comes up much more often than others."""
        unseen: list[SuitePrompt] = []
        seen: list[SuitePrompt] = []
        for candidate in candidates:
            pool = unseen if candidate.unseen else seen
            if len(pool) < _POOL * number and len(drawable_styles(candidate)) >= MIN_STYLES:
                pool.append(candidate)
            if min(len(unseen), len(seen)) >= _POOL * number:
                break
        wanted_unseen = round(number * (1 - SEEN_SHARE))
        chosen_unseen = self._spread(unseen, wanted_unseen)
        chosen_seen = self._spread(seen, number - len(chosen_unseen))
        return _shuffled(f"{kind} order", chosen_unseen + chosen_seen, lambda prompt: prompt.prompt)

    def _spread(self, candidates: list[SuitePrompt], number: int) -> list[SuitePrompt]:
        """Take candidates in order, but first those whose nouns, colours and relations have been taken least."""
        taken: Counter[str] = Counter()
        chosen: list[SuitePrompt] = []
        left = list(candidates)
        while left and len(chosen) < number:
            left = [candidate for candidate in left if not _pairs_of(candidate) & self.used]
            if not left:
                break
            best = min(left, key=lambda candidate: sum(taken[feature] for feature in _features(candidate)))
            left.remove(best)
            taken.update(_features(best))
            self.used |= _pairs_of(best)
            chosen.append(best)
        return chosen

    def _mine(self, prompt: SuitePrompt) -> SuitePrompt | None:
        """Return a prompt marked as seen or unseen where all its combinations belong to this half, else None."""
        asked = prompt_combinations(prompt)
        if {half_of(combination) for combination in asked} - {self.half}:
            return None
        return prompt.model_copy(update={"unseen": any(held_out_part(*combination) for combination in asked)})

    def _kept(self, candidates: Iterable[SuitePrompt]) -> Iterator[SuitePrompt]:
        return (mine for candidate in candidates if (mine := self._mine(candidate)) is not None)

    def _placed(self, kind: SuiteKind) -> Iterator[SuitePrompt]:
        pairs = [(noun, place) for noun in asked_nouns() for place in PLACES]
        for noun, place in _shuffled(kind, pairs, lambda pair: (pair[0].name, pair[1])):
            text = f"{phrase(noun)} {words.PLACE_PHRASES[place][0]}"
            yield from self._kept([_prompt(kind, text, [_expected(noun)], background=place)])

    def _coloured(self, kind: SuiteKind) -> Iterator[SuitePrompt]:
        pairs = [(noun, colour) for noun in asked_nouns() for colour in askable_colours(noun.name)]
        for index, (noun, colour) in enumerate(_shuffled(kind, pairs, lambda pair: (pair[0].name, pair[1]))):
            text = _TEMPLATES[index % 3].format(phrase(noun, colour=colour))
            yield from self._kept([_prompt(kind, text, [_expected(noun, colour=colour)])])

    def _pairs(self, kind: SuiteKind) -> Iterator[SuitePrompt]:
        binding = kind == "attribute_binding"
        nouns = [noun for noun in asked_nouns() if not binding or askable_colours(noun.name)]
        pairs = [pair for pair in combinations(nouns, 2) if _tell_apart(*pair)]
        mine = [pair for pair in pairs if half_of(_noun_pair(*pair)) == self.half]
        for index, pair in enumerate(_shuffled(kind, mine, lambda pair: (pair[0].name, pair[1].name))):
            first, second = pair if _hash("turn", kind, pair[0].name, pair[1].name) % 2 else pair[::-1]
            if kind == "position":
                relation = _POSITIONS[index % 4]
                said = words.RELATION_WORDS[relation][0]
                text = f"{phrase(first)} {said} {phrase(second)}"
                yield from self._kept([_prompt(kind, text, [_expected(first), _expected(second)], relation=relation)])
            elif not binding:
                text = _TEMPLATES[index % 3].format(f"{phrase(first)} and {phrase(second)}")
                yield from self._kept([_prompt(kind, text, [_expected(first), _expected(second)])])
            else:
                hues = product(askable_colours(first.name), askable_colours(second.name))
                colours = [(a, b) for a, b in hues if a != b]
                for a, b in _shuffled(f"{kind} {first.name} {second.name}", colours, lambda two: two):
                    said = f"{phrase(first, colour=a)} and {phrase(second, colour=b)}"
                    expected = [_expected(first, colour=a), _expected(second, colour=b)]
                    made = self._mine(_prompt(kind, _TEMPLATES[index % 3].format(said), expected))
                    if made is not None:
                        yield made
                        break

    def _natural(self, number: int) -> list[SuitePrompt]:
        """Take the prompts whose combinations are this half's; fill up with others, dev from the end of the table."""
        asked = {noun.name: noun for noun in asked_nouns()}
        bound: list[SuitePrompt] = []
        free: list[SuitePrompt] = []
        for text, names, place in NATURAL:
            if not set(names) <= set(asked):
                continue
            prompt = _prompt("natural", text, [_expected(asked[name]) for name in names], background=place)
            if text == CARD_PROMPT:
                prompt = prompt.model_copy(update={"negative_prompt": CARD_NEGATIVE})
            if len(drawable_styles(prompt)) < MIN_STYLES:
                continue
            if not prompt_combinations(prompt):
                free.append(prompt)
            elif (mine := self._mine(prompt)) is not None:
                bound.append(mine)
        missing = max(0, number - len(bound))
        return (bound + (free[:missing] if self.half == "test" else free[len(free) - missing :]))[:number]


def _counted(noun: Noun, index: int) -> tuple[str, int | None]:
    count = 2 + index % 3
    return phrase(noun, count=count), count


def _prompt(
    kind: SuiteKind,
    text: str,
    objects: Sequence[ExpectedObject],
    *,
    relation: str | None = None,
    background: str | None = None,
    style: str | None = None,
) -> SuitePrompt:
    """Return a prompt that still lacks its id and its seeds."""
    return SuitePrompt(
        id="", kind=kind, prompt=text, objects=tuple(objects), relation=relation, background=background, style=style,
        seeds=(),
    )  # fmt: skip


def _expected(noun: Noun, colour: str | None = None, count: int | None = None) -> ExpectedObject:
    return ExpectedObject(nouns=merged_nouns(noun.name), colour=colour, count=count)


def _noun_pair(first: Noun, second: Noun) -> Combination:
    low, high = sorted((first.name, second.name))
    return "noun-noun", low, high


def _tell_apart(first: Noun, second: Noun) -> bool:
    """Say whether two nouns may stand in one prompt: neither may be taken for the other."""
    alike = second.name in first.confusable_with or first.name in second.confusable_with
    return not alike and not set(merged_nouns(first.name)) & set(merged_nouns(second.name))


def _pairs_of(prompt: SuitePrompt) -> set[Combination]:
    """Return the combinations that stand in one prompt of a half only: pairs of nouns, else all that there are."""
    asked = prompt_combinations(prompt)
    return {combination for combination in asked if combination[0] == "noun-noun"} or asked


def _features(prompt: SuitePrompt) -> list[str]:
    found = [expected.nouns[0] for expected in prompt.objects]
    found += [expected.colour for expected in prompt.objects if expected.colour]
    return found + [value for value in (prompt.relation, prompt.background) if value]


def _hash(*parts: object) -> int:
    digest = hashlib.blake2b(f"{_SALT}|{parts!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _shuffled(purpose: str, items: Iterable[_Item], key: Callable[[_Item], object]) -> list[_Item]:
    """Return items in a fixed order that has nothing to do with where they stood."""
    return sorted(items, key=lambda item: (_hash(purpose, key(item)), str(key(item))))
