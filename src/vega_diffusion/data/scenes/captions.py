"""Says in English what a scene shows: `caption(scene, seed, position)`, in many phrasings of equal meaning.

A caption says all that the scene's flags ask for (nouns, colours, count, relation, size; background, style and gender
where the scene says so) and nothing that the picture does not show, apart from words of praise and liveliness.
`targets.py` holds the same facts as class indices. The words stand in `words.py` and `vocabulary.json`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vega_diffusion.data.scenes import words
from vega_diffusion.data.scenes.scene import PLACES, PlacedObject, Scene
from vega_diffusion.data.scenes.vocabulary import Noun, WordForm, load_vocabulary

SYNONYM_RATE = 0.35
FILLER_RATE = 0.2
ADJECTIVE_RATE = 0.18
CARD_RATE = 0.25  # of the fillers: the very words of Vega's model card


def caption(scene: Scene, seed: int, position: int) -> str:
    """Return one caption of a scene; a pure function of its arguments.

    Args:
        scene: What is shown.
        seed: Names the stream of phrasings (usually the stream of the scenes).
        position: Place in the stream.
    """
    return caption_with_mentions(scene, seed, position)[0]


def caption_with_mentions(scene: Scene, seed: int, position: int) -> tuple[str, tuple[int | None, ...]]:
    """Return a caption and, for each object that it names, where that phrase ends ("a red cat|").

    Arguments are `caption`'s. Several objects of one noun are one phrase ("three cats|"). The end is an index into the
    text; None where the words stand more than once, so that nobody can say which are meant.
    """
    digest = hashlib.blake2b(f"caption|{seed}|{position}".encode(), digest_size=8).digest()
    speaker = _Speaker(scene, random.Random(int.from_bytes(digest, "little")))
    text = speaker.say()
    return text, tuple(_end_of(phrase, text) for phrase in speaker.phrases)


@dataclass(frozen=True)
class _Phrase:
    """A noun with its adjectives: "red cat" + "a", or "red cats" without an article."""

    bare: str
    full: str


class _Speaker:
    """Builds one caption."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene = scene
        self.rng = rng
        self.vocabulary = load_vocabulary()
        self.phrases: list[str] = []  # what was said for each object, in the order of the scene's objects

    def say(self) -> str:
        draw = self.rng.random()
        if draw < 0.16:
            text = self._tags()
        elif draw < 0.30:
            text = self._telegram()
        elif draw < 0.52:
            text = self._medium()
        elif draw < 0.64:
            text = self._lead()
        else:
            text = self._plain()
        return self._letters(text)

    # The five sentence forms.

    def _plain(self) -> str:
        """Build for example: a cat on a blue background, flat icon."""
        parts = [self._core(), self._where()]
        style_ending = self.scene.style_in_caption and self.rng.random() < 0.5
        if style_ending:
            parts.append(self.rng.choice(words.STYLE_ENDINGS[self.scene.style]))
        text = " ".join(part for part in parts if part)
        if self.scene.style_in_caption and not style_ending:
            text += f", {self._style_tag()}"
        return self._filled(text)

    def _medium(self) -> str:
        """Build for example: a sticker of a cat on a blue background."""
        media = words.STYLE_MEDIA[self.scene.style] if self.scene.style_in_caption else words.PLAIN_MEDIA
        text = f"{self.rng.choice(media)} of {self._core()} {self._where()}".rstrip()
        return self._filled(text)

    def _lead(self) -> str:
        """Build for example: there is a cat on a blue background, as a sticker."""
        core = self._core()
        if self.rng.random() < 0.35:
            lead = self.rng.choice(words.IS_LEADS)[self._is_plural(core)]
        else:
            lead = self.rng.choice(words.LEADS)
        text = lead.format(f"{core} {self._where()}".rstrip())
        if self.scene.style_in_caption:
            text += f" {self.rng.choice(words.STYLE_ENDINGS[self.scene.style])}"
        return text

    def _telegram(self) -> str:
        """Build for example: cat on blue background."""
        parts = [self._core(articles=False), self._where(articles=False)]
        text = " ".join(part for part in parts if part)
        if self.scene.style_in_caption:
            tag = self._style_tag()
            text = f"{tag}, {text}" if self.rng.random() < 0.2 else f"{text}, {tag}"
        return self._filled(text)

    def _tags(self) -> str:
        """Build for example: cat, blue background, flat."""
        scene = self.scene
        if len(scene.objects) == 1 or scene.count > 1:
            tags = [self._group().bare]
        elif scene.relation:
            tags = [self._core(articles=False)]
        else:
            tags = [self._phrase(placed).bare for placed in scene.objects]
        rest: list[str] = []
        if scene.background_in_caption:
            if scene.background in PLACES:
                rest.append(self.rng.choice(words.PLACE_TAGS[scene.background]))
            else:
                rest.append(f"{self._colour(scene.background)} background")
        if scene.style_in_caption:
            rest.append(self._style_tag())
        self.rng.shuffle(rest)
        return self._filled(", ".join(tags + rest))

    # What is shown.

    def _core(self, *, articles: bool = True) -> str:
        """Return the objects and how they stand, without the background."""
        scene = self.scene
        if len(scene.objects) == 1 or scene.count > 1:
            phrase = self._group()
            return phrase.full if articles or scene.count > 1 else phrase.bare
        phrases = [self._phrase(placed) for placed in scene.objects]
        first, second = (phrase.full if articles else phrase.bare for phrase in phrases)
        if scene.relation:
            if articles and self.rng.random() < 0.2:
                return f"{second} {self.rng.choice(words.REVERSED_WORDS[scene.relation])}".format(first=first)
            return f"{first} {self.rng.choice(words.RELATION_WORDS[scene.relation])} {second}"
        if scene.caption_kind == "two":
            verb = self._verb()
            if verb and self.rng.random() < 0.6:
                return f"{first} {verb} {second}"
        together = self.rng.choice(words.TOGETHER).format(first=first, second=second)
        return together + (self.rng.choice(words.TOGETHER_ENDINGS) if self._beside() else "")

    def _is_plural(self, core: str) -> bool:
        """Say whether "there are" fits a phrase: it opens with a number above one or with a plural without article."""
        opening = core.split(" ", 1)[0]
        if opening in ("a", "an", "one", "just", "exactly"):
            return False
        if self.scene.count > 1:
            return True
        return any(form.text in core for form in self.vocabulary.plural_forms)

    def _beside(self) -> bool:
        first, second = self.scene.objects
        return abs(first.centre[0] - second.centre[0]) > abs(first.centre[1] - second.centre[1])

    def _verb(self) -> str | None:
        """Return what object 1 might be doing with object 2, or None where nothing comes to mind."""
        first, second = (self.vocabulary.nouns[placed.noun] for placed in self.scene.objects)
        if not first.animate:
            return None
        people = first.person or first.group == "fantasy"
        if second.name in words.DRINKS:
            choices: Sequence[str] = words.DRINKING if people else words.WATCHING
        elif second.group == "food":
            choices = words.EATING
        elif second.group == "music" and people:
            choices = words.HOLDING if second.name in ("bell", "headphones", "microphone") else words.PLAYING
        elif second.group == "vehicles" and people:
            choices = words.RIDING
        elif second.group in ("activities", "plants", "clothes") and people:
            choices = words.HOLDING
        else:
            choices = words.WATCHING
        return self.rng.choice(choices)

    def _group(self) -> _Phrase:
        """Return the only noun of the scene, with its number where there are several or the caption is about it."""
        scene, placed = self.scene, self.scene.objects[0]
        noun = self.vocabulary.nouns[placed.noun]
        if scene.caption_kind != "count" or not noun.countable_forms:
            return self._phrase(placed)
        form = self._form(noun, noun.countable_forms)
        number = self.rng.choice(words.NUMBER_WORDS[scene.count])
        if form.text.startswith("pair of") and number == "a couple of":
            number = "two"
        adjectives = self._adjectives(noun, placed, gender=False)
        text = form.text if scene.count == 1 else form.plural
        said = " ".join([number, *adjectives, text])
        self.phrases.append(said)
        return _Phrase(said, said)

    def _phrase(self, placed: PlacedObject) -> _Phrase:
        noun = self.vocabulary.nouns[placed.noun]
        size = self.scene.size_word
        forms = [form for form in noun.forms if form.kind != "mass"] if size else noun.forms
        form = self._form(noun, forms)
        adjectives = self._adjectives(noun, placed, gender=True)
        bare = " ".join([*adjectives, form.text])
        self.phrases.append(bare)
        if form.kind in ("mass", "plural") or (form.kind == "proper" and not adjectives):
            return _Phrase(bare, bare)
        article = _article(adjectives[0]) if adjectives else form.article
        return _Phrase(bare, f"{article} {bare}")

    def _form(self, noun: Noun, forms: Sequence[WordForm]) -> WordForm:
        if len(forms) == 1 or self.rng.random() >= SYNONYM_RATE:
            return forms[0]
        return self.rng.choice(forms[1:])

    def _adjectives(self, noun: Noun, placed: PlacedObject, *, gender: bool) -> list[str]:
        scene, found = self.scene, []
        if self.rng.random() < ADJECTIVE_RATE:
            choices = words.FILLER_ADJECTIVES[noun.group]
            found.append(self.rng.choice([word for word in choices if word != "colorful" or not placed.colour]))
        if scene.size_word:
            found.insert(0, self.rng.choice(words.SIZE_ADJECTIVES[scene.size_word]))
        if placed.colour:
            found.append(self._colour(placed.colour))
        if gender and scene.gender_in_caption and (shown := shown_gender(placed)) is not None:
            found.append(self.rng.choice(words.GENDER_WORDS[shown]))
        return found

    # Where, in which style, and praise.

    def _where(self, *, articles: bool = True) -> str:
        scene = self.scene
        if not scene.background_in_caption:
            return ""
        if scene.background in PLACES:
            return self.rng.choice(words.PLACE_PHRASES[scene.background])
        colour = self._colour(scene.background)
        if self.rng.random() < 0.15:
            colour = f"plain {colour}"
        named = f"{_article(colour)} {colour}" if articles else colour
        phrase = self.rng.choice(words.BACKGROUND_PHRASES)
        # "a cat with a dog with a red background" is hard to read.
        if len(scene.objects) > 1 and phrase.startswith("with"):
            phrase = words.BACKGROUND_PHRASES[0]
        return phrase.format(a=named)

    def _colour(self, name: str) -> str:
        return self.rng.choice(words.COLOUR_WORDS.get(name, (name,)))

    def _style_tag(self) -> str:
        return self.rng.choice(words.STYLE_TAGS[self.scene.style])

    def _filled(self, text: str) -> str:
        if self.rng.random() >= FILLER_RATE:
            return text
        if self.rng.random() < CARD_RATE:
            fillers: Sequence[str] = words.CARD_FILLERS
        else:
            fillers = self.rng.sample(words.FILLERS, self.rng.choice((1, 1, 2, 3, 4)))
        return ", ".join([text, *fillers])

    def _letters(self, text: str) -> str:
        """Vary capitals and the full stop, as people do."""
        draw = self.rng.random()
        if draw < 0.03:
            return text.upper()
        if draw < 0.15:
            return text.lower()
        if draw < 0.55:
            text = text[0].upper() + text[1:]
            return f"{text}." if self.rng.random() < 0.4 else text
        return text


def shown_gender(placed: PlacedObject) -> str | None:
    """Return "man" or "woman" where the drawing shows one, else None."""
    variants = load_vocabulary().noun(placed.noun).variants
    if placed.variant is None or placed.variant not in variants:
        return None
    gender = variants[placed.variant].gender
    return None if gender == "person" else gender


def _end_of(phrase: str, text: str) -> int | None:
    """Return where a phrase ends in a text of any letter case, or None unless it stands there exactly once."""
    ends = [match.end() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)]
    return ends[0] if len(ends) == 1 else None


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"
