"""Draws scenes at random: `sample_scene(seed, position)` is a pure function of its arguments.

What lives here: which kinds of scenes there are, how often, and where objects stand. What does not: words
(`captions`), pixels (`renderer`), which combinations are kept out (`splits`), what can be seen where (`sprite_facts`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from vega_diffusion.data.scenes.layout import in_reading_order, place_count, place_one, place_two
from vega_diffusion.data.scenes.scene import (
    BACKGROUNDS,
    CANVAS_SIZE,
    CAPTION_KINDS,
    HELD_OUT_STYLE,
    LINE_STYLE,
    MAX_CROP,
    PLACES,
    RELATIONS,
    SIZE_WORDS,
    STYLES,
    Box,
    PlacedObject,
    Scene,
)
from vega_diffusion.data.scenes.splits import Split, check_split, in_split
from vega_diffusion.data.scenes.sprite_facts import SpriteFacts, load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import Noun, Vocabulary, load_vocabulary
from vega_diffusion.errors import InvalidValue, VegaError

_MOST_TRIES = 2000
_LOW_SIZES = (48, 56, 64, 80, 96, 112)
_HIGH_SIZES = (160, 192, 256)

DEFAULT_KINDS: tuple[tuple[str, float], ...] = (
    ("single", 0.30),
    ("background", 0.12),
    ("place", 0.07),
    ("size", 0.06),
    ("colour", 0.10),
    ("two", 0.08),
    ("relation", 0.12),
    ("count", 0.08),
    ("binding", 0.07),
)
"""Single objects are 65 % of the scenes: shapes need far more samples than attributes do."""


@dataclass(frozen=True)
class SceneMix:
    """How often what is drawn.

    Args:
        kinds: (caption kind, weight) pairs; weights need not add up to 1, a kind left out never comes.
        styles: Styles drawn equally often.
        nouns: Names of nouns to use; None takes the whole vocabulary.
        style_word_rate: Share of the captions that name the style.
        line_word_rate: The same for line art, whose thin strokes a small model draws worst: where captions always say
            it, a prompt without a style word asks for one of the others.
        background_word_rate: Share of the captions that name the background where the kind does not ask for it.
        gender_word_rate: Share of the captions of persons that say man or woman, where the drawing shows one.
        white_rate: Share of white among backgrounds that the caption does not name.
        place_rate: Share of places among the other backgrounds of kinds without a background of their own.
        flip_rate: Share of mirrored sprites among those that may be mirrored.
        low_resolution_rate: Share of scenes drawn smaller than the canvas and enlarged.
        high_resolution_rate: Share of scenes said to be drawn larger than the canvas.
        crop_rate: Share of single-object scenes on a longer canvas, cut somewhere along it.
        reading_order_rate: Share of pairs whose order no word tells, that stand as they are named: the first on the
            left or on top. Otherwise either order comes, and only chance can tell a model which thing goes where.
    """

    kinds: tuple[tuple[str, float], ...] = DEFAULT_KINDS
    styles: tuple[str, ...] = STYLES
    nouns: tuple[str, ...] | None = None
    style_word_rate: float = 0.5
    line_word_rate: float = 1.0
    background_word_rate: float = 0.35
    gender_word_rate: float = 0.3
    white_rate: float = 0.3
    place_rate: float = 0.15
    flip_rate: float = 0.25
    low_resolution_rate: float = 0.1
    high_resolution_rate: float = 0.05
    crop_rate: float = 0.08
    reading_order_rate: float = 0.0

    def __post_init__(self) -> None:
        for kind, weight in self.kinds:
            if kind not in CAPTION_KINDS or weight < 0:
                allowed = f"weights >= 0 of: {', '.join(CAPTION_KINDS)}"
                raise InvalidValue("mix.kinds", (kind, weight), allowed, "mend this pair")
        known = (*STYLES, HELD_OUT_STYLE)
        if not self.styles or set(self.styles) - set(known):
            raise InvalidValue("mix.styles", self.styles, f"some of: {', '.join(known)}", "choose at least one of them")
        for name, value in vars(self).items():
            if name.endswith("_rate") and not 0 <= value <= 1:
                raise InvalidValue(f"mix.{name}", value, "0 to 1", "give a share")
        for name in self.nouns or ():
            load_vocabulary().noun(name)


@dataclass(frozen=True)
class _Choice:
    """What of the vocabulary a style can show: (noun, slug) pairs grouped by noun."""

    nouns: tuple[Noun, ...]
    recolourable: tuple[Noun, ...]
    hues: dict[str, tuple[str, ...]] = field(hash=False)


def sample_scene(seed: int, position: int, *, split: str = "train", mix: SceneMix | None = None) -> Scene:
    """Return the scene at a position of an endless stream.

    Args:
        seed: Names the stream.
        position: Place in the stream, >= 0. The scene depends on nothing else.
        split: "train", "held-out", "dev", "test" or "all"; see `splits.in_split`.
        mix: How often what is drawn; None takes the defaults.

    Raises:
        InvalidValue: Unknown split.
        VegaError: No scene of this mix belongs to the split (for example counting on plain backgrounds, held out).
    """
    return _sampler(mix or SceneMix()).scene(seed, position, check_split(split))


@lru_cache(maxsize=16)
def _sampler(mix: SceneMix) -> SceneSampler:
    return SceneSampler(mix)


class SceneSampler:
    """Samples the scenes of one mix.

    Args:
        mix: How often what is drawn.
        vocabulary: The nouns; None takes the package's table.
        facts: Colours and contrast of the sprites; None takes the package's table.
    """

    def __init__(self, mix: SceneMix, vocabulary: Vocabulary | None = None, facts: SpriteFacts | None = None) -> None:
        self.mix = mix
        self.vocabulary = vocabulary or load_vocabulary()
        self.facts = facts or load_sprite_facts()
        self._kinds = [kind for kind, weight in mix.kinds if weight > 0]
        self._weights = [weight for _, weight in mix.kinds if weight > 0]
        self._choices = {style: self._choice(style) for style in mix.styles}

    def scene(self, seed: int, position: int, split: Split = "train") -> Scene:
        """Return the scene at a position; see `sample_scene`."""
        if position < 0:
            raise InvalidValue("position", position, "0 or more", "count from 0")
        digest = hashlib.blake2b(f"scene|{seed}|{position}".encode(), digest_size=8).digest()
        rng = random.Random(int.from_bytes(digest, "little"))
        # In training the kind is settled first, so that leaving combinations out does not change how often it comes.
        kind = rng.choices(self._kinds, self._weights)[0]
        for _ in range(_MOST_TRIES):
            if split not in ("train", "all"):
                kind = rng.choices(self._kinds, self._weights)[0]
            scene = self._draw(kind, rng)
            if scene is not None and in_split(scene, split):
                return scene
        raise VegaError(
            f"scene mix: no scene of kinds {', '.join(self._kinds)} found for split {split!r}; "
            "allow more kinds, nouns or styles"
        )

    def _choice(self, style: str) -> _Choice:
        names = self.mix.nouns or self.vocabulary.names
        nouns = tuple(noun for name in names if style in (noun := self.vocabulary.noun(name)).styles)
        hues = {slug: self.facts.colours(style, slug) for noun in nouns for slug in noun.drawings(style)}
        recolourable = tuple(noun for noun in nouns if any(hues[slug] for slug in noun.drawings(style)))
        return _Choice(nouns, recolourable, hues)

    def _draw(self, kind: str, rng: random.Random) -> Scene | None:
        """Draw one scene of a kind, or None where the draws contradict each other (then the caller draws again)."""
        style = rng.choice(self.mix.styles)
        choice = self._choices[style]
        coloured = kind in ("colour", "binding") or (kind == "count" and rng.random() < 0.25)
        pool = choice.recolourable if coloured else choice.nouns
        many = kind in ("two", "relation", "binding")
        if len(pool) < 1 + many:
            return None
        nouns = rng.sample(pool, 2) if many else [rng.choice(pool)]
        count = rng.randint(1, 4) if kind == "count" else 1
        if count > 1 and not nouns[0].countable_forms:
            return None
        relation = rng.choice(RELATIONS) if kind == "relation" else None
        size_word = rng.choice(SIZE_WORDS) if kind == "size" else None
        boxes = _boxes(kind, count, relation, size_word, rng)
        # No draw where nothing can come of it: streams of mixes without this rate stay what they were.
        if many and relation in (None, "next to") and self.mix.reading_order_rate > 0:
            boxes = in_reading_order(boxes) if rng.random() < self.mix.reading_order_rate else boxes
        objects = self._objects(nouns * count if count > 1 else nouns, boxes, style, coloured, rng)
        if objects is None:
            return None
        chosen = self._background(kind, objects, style, rng)
        if chosen is None:
            return None
        background, said = chosen
        scene = Scene(
            objects=objects,
            background=background,
            style=style,
            caption_kind=kind,
            relation=relation,
            size_word=size_word,
            count=count,
            style_in_caption=rng.random() < self._style_word_rate(style),
            background_in_caption=said,
            gender_in_caption=rng.random() < self.mix.gender_word_rate,
        )
        return self._frame(scene, rng)

    def _style_word_rate(self, style: str) -> float:
        return self.mix.line_word_rate if style == LINE_STYLE else self.mix.style_word_rate

    def _objects(
        self, nouns: Sequence[Noun], boxes: Sequence[Box], style: str, coloured: bool, rng: random.Random
    ) -> tuple[PlacedObject, ...] | None:
        """Choose drawing, colour and mirroring; two different nouns never get the same colour."""
        hues = self._choices[style].hues
        result: list[PlacedObject] = []
        for noun, box in zip(nouns, boxes, strict=True):
            drawings = noun.drawings(style)
            slug = drawings[0] if len(drawings) == 1 else rng.choice(drawings)
            colour = None
            if coloured:
                if result and result[0].noun == noun.name:
                    slug, colour = result[0].variant or noun.slug, result[0].colour
                else:
                    free = [hue for hue in hues[slug] if not result or hue != result[0].colour]
                    if not free:
                        return None
                    colour = rng.choice(free)
            flipped = not noun.lettering and rng.random() < self.mix.flip_rate
            result.append(PlacedObject(noun.name, box, colour, flipped, None if slug == noun.slug else slug))
        return tuple(result)

    def _background(
        self, kind: str, objects: Sequence[PlacedObject], style: str, rng: random.Random
    ) -> tuple[str, bool] | None:
        """Choose among the backgrounds from which every object stands out; return it and whether it is said."""
        seen: frozenset[str] | None = None
        for placed in objects:
            slug = placed.variant or self.vocabulary.nouns[placed.noun].slug
            own = self.facts.backgrounds(style, slug, placed.colour)
            seen = own if seen is None else seen & own
        said = kind in ("background", "place") or rng.random() < self.mix.background_word_rate
        if kind == "place" or (kind != "background" and rng.random() < self.mix.place_rate):
            names: list[str] = [name for name in PLACES if name in (seen or ())]
        elif not said and "white" in (seen or ()) and rng.random() < self.mix.white_rate:
            names = ["white"]
        else:
            names = [name for name in BACKGROUNDS if name in (seen or ())]
        return (rng.choice(names), said) if names else None

    def _frame(self, scene: Scene, rng: random.Random) -> Scene:
        """Give some scenes another original size, and some single objects a longer canvas that is cut."""
        draw = rng.random()
        mix = self.mix
        size: int = CANVAS_SIZE
        if draw < mix.low_resolution_rate:
            size = rng.choice(_LOW_SIZES)
        elif draw < mix.low_resolution_rate + mix.high_resolution_rate:
            size = rng.choice(_HIGH_SIZES)
        placed, *others = scene.objects
        if others or rng.random() >= mix.crop_rate:
            return scene if size == CANVAS_SIZE else replace(scene, original_size=(size, size))
        extra = rng.choice(range(8, MAX_CROP + 1, 8))
        offset, wide = rng.randint(0, extra), rng.random() < 0.5
        longer = (CANVAS_SIZE + extra) * size // CANVAS_SIZE
        x0, y0, x1, y1 = placed.box
        dx, dy = (extra // 2, 0) if wide else (0, extra // 2)
        return replace(
            scene,
            objects=(replace(placed, box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy)),),
            original_size=(size, longer) if wide else (longer, size),
            crop_top_left=(0, offset) if wide else (offset, 0),
        )


def _boxes(kind: str, count: int, relation: str | None, size_word: str | None, rng: random.Random) -> list[Box]:
    if kind in ("two", "relation", "binding"):
        return place_two(relation, rng)
    if count > 1:
        return place_count(count, rng)
    return [place_one(size_word, rng)]
