"""What a checker saw in a picture: objects with places and colours, background, style. Plain data, no network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        noun: The likeliest name.
        noun_score: Its probability, 0..1.
        colour: The likeliest of `natural` and the object colours.
        box: x0, y0, x1, y1 in px of the picture.
        score: Probability that an object is there at all, 0..1.
    """

    noun: str
    noun_score: float
    colour: str
    box: tuple[float, float, float, float]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """Centre x, y in px."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Finding:
    """One picture: its objects by falling score, and the likeliest background (or place) and style."""

    detections: tuple[Detection, ...]
    background: str
    style: str
