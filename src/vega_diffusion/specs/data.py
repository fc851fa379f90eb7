"""Where a run's samples come from, as data: one spec a source, told apart by `kind`. The sources are in `data/`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.curation import CurationSpec
from vega_diffusion.specs.optimizer import Fraction, StrictSpec


class SceneMixSpec(StrictSpec):
    """How often what is drawn; what is not given keeps the default of `data.scenes.grammar.SceneMix`.

    `kinds` maps kinds of scenes to weights, `styles` and `nouns` restrict what is drawn, the rates are shares.
    """

    kinds: dict[str, NonNegativeFloat] | None = None
    styles: tuple[str, ...] | None = None
    nouns: tuple[str, ...] | None = None
    style_word_rate: Fraction | None = None
    line_word_rate: Fraction | None = None
    background_word_rate: Fraction | None = None
    gender_word_rate: Fraction | None = None
    white_rate: Fraction | None = None
    place_rate: Fraction | None = None
    flip_rate: Fraction | None = None
    low_resolution_rate: Fraction | None = None
    high_resolution_rate: Fraction | None = None
    crop_rate: Fraction | None = None
    reading_order_rate: Fraction | None = None


class SceneImagesSpec(StrictSpec):
    """Pictures of scenes, drawn at the moment they are needed; scene number = sample position, so none comes twice.

    `icons` is a folder that `vega data icons` filled; without it the sprites come from `$VEGA_HOME/icons`, else from
    the small sample in the package.
    """

    kind: Literal["scene_images"] = "scene_images"
    seed: NonNegativeInt = 0
    mix: SceneMixSpec = SceneMixSpec()
    icons: str | None = None


class SceneCaptionsSpec(StrictSpec):
    """Captions of scenes with the scene's exact specification as targets, and no pictures."""

    kind: Literal["scene_captions"] = "scene_captions"
    seed: NonNegativeInt = 0
    mix: SceneMixSpec = SceneMixSpec()
    icons: str | None = None


class SceneLatentsSpec(StrictSpec):
    """Captioned latents of `num_scenes` scenes, encoded once by the frozen autoencoder and kept on disk.

    Each time a sample comes up, its latents are drawn anew from the posterior and its caption is one of
    `captions_per_scene` phrasings; in a share `empty_caption_rate` of cases it is the empty condition
    (classifier-free guidance). `empty_condition` says what that is: `zeros` is what SDXL pipelines use when no
    negative prompt is given, `encoded` is the encoded empty text.
    """

    kind: Literal["scene_latents"] = "scene_latents"
    seed: NonNegativeInt = 0
    mix: SceneMixSpec = SceneMixSpec()
    num_scenes: PositiveInt = 100_000
    captions_per_scene: PositiveInt = 4
    empty_caption_rate: Fraction = 0.12
    empty_condition: Literal["zeros", "encoded"] = "zeros"
    icons: str | None = None


class SceneChecksSpec(StrictSpec):
    """Pictures with exact ground truth for the checker, drawn at the moment they are needed.

    All combinations and, unless `mix` names some, all seven styles. `crowd_rate` is the share of crowded scenes (up to
    nine objects), `subject_rate` of scenes with a subject, `filter_rate` of those behind a filter style where objects
    are large enough, `worn_rate` of slightly damaged pictures, `spoiled_rate` of those in which nothing can be named.
    """

    kind: Literal["scene_checks"] = "scene_checks"
    seed: NonNegativeInt = 0
    mix: SceneMixSpec = SceneMixSpec()
    crowd_rate: Fraction = 0.4
    subject_rate: Fraction = 0.12
    filter_rate: Fraction = 0.2
    worn_rate: Fraction = 0.6
    spoiled_rate: Fraction = 0.04
    icons: str | None = None


class PriorSpec(StrictSpec):
    """Other pictures that a run must go on drawing as it did: of a subject's class, or plain ones beside a style.

    Every other sample is one of them (of two priors, every third sample is one of each), with size and crop conditions
    of its own. Where `folder` holds fewer than `num_pictures`, the model before training draws the rest from `caption`
    with seeds from `seed` on; without `folder` they are kept in `$VEGA_HOME/class_pictures`. Without `caption` the
    folder's pictures have captions of their own and nothing is drawn. `weight` scales their loss against that of the
    run's own pictures.

    `target` says what is to be predicted for them: `picture` is what the pictures say, as for all others; `model` is
    what the model before training predicts, so that at first there is nothing to change, and later what has drifted
    comes back, whatever the pictures show. `empty_caption_rate` of their captions is left out, the run's own share
    unless given: with `model`, what is drawn without a caption, from which guidance leads away, is guarded, too.
    `text_weight`, times `weight`, is that of how far text encoders that learn have moved from what they made of these
    captions: the squared distance of their states and of the pooled embedding, each as a share of its square.

    Source: Ruiz et al. 2022, equation 2 (arXiv 2208.12242); Li and Hoiem 2016, section 3 (arXiv 1606.09282).
    """

    caption: str | None = None
    folder: str | None = None
    num_pictures: PositiveInt = 100
    weight: NonNegativeFloat = 1.0
    target: Literal["picture", "model"] = "picture"
    empty_caption_rate: Fraction | None = None
    text_weight: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.text_weight and self.target != "model":
            said = '0 without data.prior.target = "model"'
            raise InvalidValue("data.prior.text_weight", self.text_weight, said, "remove it, or let the model answer")
        if self.caption is None:
            if self.folder is None:
                raise InvalidValue("data.prior.caption", None, "a text, or a folder with captions", "give one")
            for name in ("num_pictures", "seed"):
                if self.says(name):
                    said = "nothing without data.prior.caption"
                    raise InvalidValue(f"data.prior.{name}", getattr(self, name), said, "remove it")
        return self


class ImageLatentsSpec(StrictSpec):
    """Captioned latents of pictures, encoded once by the frozen autoencoder and kept on disk.

    The pictures are in exactly one of three places. `folder`: files with captions in `metadata.jsonl`, `metadata.csv`
    or text files beside them. `shards`: a folder of `.tar` files as WebDataset and img2dataset write them. `dataset`: a
    data set of the Hub or a folder that the library `datasets` reads, of which `dataset_config`, `split` and
    `image_column` are taken.
    `filters` leaves pictures out. `caption` is said of every picture instead of captions of their own. `max_pictures`
    takes that many, chosen by `seed`.

    Every picture goes to the bucket of the nearest aspect ratio, is scaled to cover it and cut out, from the middle or
    anywhere (`crop`); a share `flip_rate` is mirrored. Cuts and mirrorings are drawn `variants` times for every picture
    and encoded, each with its own crop condition; one of them is drawn whenever the picture comes up. Sizes of buckets
    are multiples of `bucket_step_px` with at most `resolution_px`^2 pixels and sides at most `max_aspect` apart: 1
    means squares alone. The picture's own size and the cut are the size and crop condition. Empty captions are as for
    scenes.
    """

    kind: Literal["image_latents"] = "image_latents"
    folder: str | None = None
    shards: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    caption: str | None = None
    max_pictures: PositiveInt | None = None
    filters: CurationSpec = CurationSpec()
    # Not strict: after a validator that comes before, pydantic takes JSON for Python, where a list is no tuple.
    prior: tuple[PriorSpec, ...] = Field(default=(), strict=False)
    seed: NonNegativeInt = 0
    resolution_px: PositiveInt = 1024
    bucket_step_px: PositiveInt = 64
    max_aspect: Annotated[float, Field(ge=1.0, le=4.0)] = 2.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "lanczos"
    crop: Literal["center", "random"] = "center"
    flip_rate: Fraction = 0.0
    variants: PositiveInt = 1
    empty_caption_rate: Fraction = 0.1
    empty_condition: Literal["zeros", "encoded"] = "zeros"

    @field_validator("prior", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """Take one table for a list of one."""
        return () if value is None else value if isinstance(value, list | tuple) else [value]

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        places = {"folder": self.folder, "shards": self.shards, "dataset": self.dataset}
        given = {name: place for name, place in places.items() if place is not None}
        if len(given) != 1:
            raise InvalidValue("data", given, "exactly one of folder, shards, dataset", "say where the pictures are")
        for name in ("dataset_config", "split", "image_column"):
            if self.says(name) and self.dataset is None:
                raise InvalidValue(f"data.{name}", getattr(self, name), "nothing without data.dataset", "remove it")
        if self.resolution_px % self.bucket_step_px:
            raise InvalidValue(
                "data.bucket_step_px",
                self.bucket_step_px,
                f"a divisor of resolution_px {self.resolution_px}",
                "change it",
            )
        if self.variants > 1 and not self.augmented:
            raise InvalidValue("data.variants", self.variants, "1 without random crops or flips", "remove it")
        if self.prior and self.max_aspect != 1.0:
            raise InvalidValue("data.max_aspect", self.max_aspect, "1.0 (squares) with data.prior", "set it to 1.0")
        return self

    @property
    def augmented(self) -> bool:
        """Whether a picture may be cut or mirrored in more than one way."""
        return self.crop == "random" or self.flip_rate > 0


DataSpec = Annotated[
    SceneImagesSpec | SceneCaptionsSpec | SceneLatentsSpec | SceneChecksSpec | ImageLatentsSpec,
    Field(discriminator="kind"),
]
