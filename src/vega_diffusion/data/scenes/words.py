"""The words of captions: phrases for relations, backgrounds, places, styles, sizes, fillers, verbs. Tables only."""

from __future__ import annotations

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "high above", "directly above"),
    "below": ("below", "under", "underneath", "beneath"),
    "next to": ("next to", "beside", "next to", "near", "right next to"),
}
"""Object 1 stands (phrase) object 2."""

REVERSED_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("with {first} to its left", "with {first} on its left"),
    "right of": ("with {first} to its right", "with {first} on its right"),
    "above": ("with {first} above it",),
    "below": ("with {first} below it", "with {first} underneath"),
    "next to": ("with {first} next to it", "with {first} by its side"),
}
"""Object 2 (phrase), saying the same the other way round."""

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "gray": ("gray", "grey"),
    "teal": ("teal", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
"""Other words for some colours; all others are called by their name only."""

BACKGROUND_PHRASES: tuple[str, ...] = (
    "on {a} background",
    "on {a} background",
    "in front of {a} background",
    "against {a} background",
    "with {a} background",
    "against {a} backdrop",
)

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "in a meadow", "on a green meadow", "in a grassy field", "outside on the grass"),
    "beach": ("on the beach", "at the beach", "on a sandy beach", "on a sunny beach", "by the seaside"),
    "snow": ("in the snow", "in a snowy landscape", "on a snowy day", "outside in the snow", "in winter snow"),
    "night": (
        "under a starry night sky",
        "at night",
        "under the stars",
        "in front of a starry sky",
        "in the night sky",
    ),
    "sea": ("on the sea", "at sea", "in the ocean", "on the open sea", "in the sea"),
}

PLACE_TAGS: dict[str, tuple[str, ...]] = {
    "grass": ("grass", "meadow", "green meadow", "grassy field"),
    "beach": ("beach", "sandy beach", "seaside"),
    "snow": ("snow", "winter", "snowy landscape"),
    "night": ("night", "starry night", "starry sky", "night sky"),
    "sea": ("sea", "ocean", "open sea"),
}

STYLE_TAGS: dict[str, tuple[str, ...]] = {
    "fluent3d": ("3D render", "glossy 3D render", "3D", "glossy 3D", "3D art", "shiny 3D icon"),
    "fluentflat": ("flat", "flat icon", "flat design", "flat colors", "flat illustration", "minimalist flat art"),
    "fluentline": ("line art", "black line art", "black and white line art", "outline icon", "ink line drawing"),
    "noto": ("cartoon", "detailed cartoon", "shaded cartoon", "cartoon style", "cartoon drawing"),
    "notov1": ("retro blob", "retro blob style", "retro cartoon", "retro blob cartoon", "retro"),
    "twemoji": ("sticker", "sticker art", "sticker style", "vinyl sticker", "cut-out sticker"),
    "emojione": ("clip art", "clip art style", "classic clip art"),
}
"""Style words that stand alone behind a comma."""

STYLE_MEDIA: dict[str, tuple[str, ...]] = {
    "fluent3d": ("a 3D render", "a glossy 3D render", "a 3D illustration", "a 3D model"),
    "fluentflat": ("a flat icon", "a flat illustration", "a flat design picture", "a simple flat drawing"),
    "fluentline": ("a line drawing", "a black line drawing", "a black and white line drawing", "an outline drawing"),
    "noto": ("a cartoon", "a cartoon drawing", "a detailed cartoon", "a cartoon picture"),
    "notov1": ("a retro blob cartoon", "a retro cartoon", "a retro blob drawing"),
    "twemoji": ("a sticker", "a vinyl sticker", "a cut-out sticker"),
    "emojione": ("a clip art picture", "clip art"),
}
"""Style words that stand before "of"."""

STYLE_ENDINGS: dict[str, tuple[str, ...]] = {
    "fluent3d": ("in 3D", "in glossy 3D", "rendered in 3D", "in a glossy 3D style"),
    "fluentflat": ("in flat style", "in a flat design style", "as a flat icon", "in flat colors"),
    "fluentline": ("as line art", "drawn as black line art", "in line art style", "drawn in black outlines"),
    "noto": ("as a cartoon", "in cartoon style", "drawn as a cartoon", "in a detailed cartoon style"),
    "notov1": ("in retro blob style", "as a retro blob cartoon", "in a retro cartoon style"),
    "twemoji": ("as a sticker", "in sticker style", "in the style of a sticker"),
    "emojione": ("as clip art", "in clip art style"),
}
"""Style words that end a sentence."""

PLAIN_MEDIA: tuple[str, ...] = (
    "a picture",
    "a picture",
    "an image",
    "an image",
    "an illustration",
    "a drawing",
    "a photo",
    "artwork",
    "a nice picture",
)
"""Before "of", where the style stays unsaid."""

IS_LEADS: tuple[tuple[str, str], ...] = (
    ("there is {}", "there are {}"),
    ("this is {}", "these are {}"),
    ("here is {}", "here are {}"),
)
"""Openings for one and for several."""

LEADS: tuple[str, ...] = (
    "this picture shows {}",
    "the image shows {}",
    "draw {}",
    "show me {}",
    "I want to see {}",
    "please draw {}",
    "we see {}",
)

SIZE_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "tiny", "little"),
    "large": ("large", "large", "big", "huge"),
}

NUMBER_WORDS: dict[int, tuple[str, ...]] = {
    1: ("one", "a single", "exactly one", "just one"),
    2: ("two", "two", "2", "a couple of"),
    3: ("three", "three", "3", "a group of three"),
    4: ("four", "four", "4", "a group of four"),
}

FILLER_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "animals": ("cute", "cute", "adorable", "friendly", "lovely", "funny", "happy"),
    "persons": ("friendly", "cute", "cheerful", "professional", "smiling"),
    "fantasy": ("cute", "funny", "cool", "strange"),
    "food": ("delicious", "tasty", "fresh", "yummy"),
    "vehicles": ("shiny", "fast", "cool", "beautiful"),
    "plants": ("beautiful", "lovely", "pretty", "cute"),
    "sky": ("beautiful", "bright", "lovely", "cute"),
    "places": ("beautiful", "old", "picturesque"),
    "clothes": ("stylish", "elegant", "new", "beautiful"),
    "music": ("beautiful", "shiny", "cool"),
    "activities": ("nice", "cool", "cute", "colorful"),
    "objects": ("simple", "nice", "shiny", "old", "cute"),
}

CARD_FILLERS: tuple[str, ...] = ("stunning color scheme", "masterpiece", "illustration")

FILLERS: tuple[str, ...] = (
    *CARD_FILLERS,
    "high quality",
    "best quality",
    "highly detailed",
    "vivid colors",
    "colorful",
    "digital art",
    "award winning",
    "4k",
    "8k",
    "sharp focus",
    "beautiful composition",
    "cute",
    "simple",
    "clean",
    "professional",
    "soft light",
    "trending on artstation",
    "intricate details",
    "adorable",
    "artwork",
    "beautiful",
)

TOGETHER: tuple[str, ...] = ("{first} and {second}", "{first} and {second}", "{first} with {second}")
TOGETHER_ENDINGS: tuple[str, ...] = (" together", " side by side", "", "", "", "")

EATING: tuple[str, ...] = ("eating", "eating", "about to eat", "looking at", "enjoying", "with")
PLAYING: tuple[str, ...] = ("playing", "with", "practicing")
WATCHING: tuple[str, ...] = ("looking at", "watching", "with", "standing next to")
HOLDING: tuple[str, ...] = ("holding", "with", "carrying", "looking at")
RIDING: tuple[str, ...] = ("standing next to", "driving", "with", "waiting next to")

DRINKS: frozenset[str] = frozenset({"cup of coffee"})
DRINKING: tuple[str, ...] = ("drinking", "enjoying", "with", "looking at")

GENDER_WORDS: dict[str, tuple[str, ...]] = {"man": ("male",), "woman": ("female", "female", "woman")}
