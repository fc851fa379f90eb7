"""`TrainRecipe`: one training run, complete, as frozen data that lives in a TOML file.

What lives here: the fields, their checks, `--set` overrides, the identity of a recipe. What does not: anything that
needs torch or looks at the machine; a recipe says the same on every device.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.base import read_toml
from vega_diffusion.specs.data import DataSpec, ImageLatentsSpec
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.lora import LoraSpec
from vega_diffusion.specs.objective import ObjectiveSpec
from vega_diffusion.specs.optimizer import AdamWSpec, EmaSpec, LrScheduleSpec, OptimizerSpec, StrictSpec

Component = Literal["unet", "vae", "vae_tiny", "text_encoder", "text_encoder_2", "checker"]

# What each objective can train, and the kind of data it eats.
TRAINABLE: dict[str, frozenset[str]] = {
    "denoising": frozenset({"unet", "text_encoder", "text_encoder_2"}),
    "distillation": frozenset({"unet"}),
    "autoencoding": frozenset({"vae"}),
    "tiny_autoencoding": frozenset({"vae_tiny"}),
    "scene_text": frozenset({"text_encoder", "text_encoder_2"}),
    "scene_checking": frozenset({"checker"}),
}
DATA_KINDS: dict[str, tuple[str, ...]] = {
    "denoising": ("scene_latents", "image_latents"),
    "distillation": ("scene_latents", "image_latents"),
    "autoencoding": ("scene_images",),
    "tiny_autoencoding": ("scene_images",),
    "scene_text": ("scene_captions",),
    "scene_checking": ("scene_checks",),
}

# The modules that make latents.
ENCODER = ("vae.encoder", "vae.quant_conv")

# Keys whose text "none" is a value of theirs, and not no value.
SAYS_NONE = frozenset({"sharding"})

# Keys and tables that a resumed run may change: they move no weight of the steps already done. (What
# samples.num_held_out keeps apart changes the samples themselves, which a resumed run compares.)
MAY_CHANGE = frozenset(
    {
        "steps",
        "save_every",
        "keep",
        "log_every",
        "sample_every",
        "micro_batch_size",
        "activation_checkpointing",
        "cuda_graphs",
        "sharding",
        "samples",
        "tracker",
    }
)


class SurgerySpec(StrictSpec):
    """Where a U-Net's first weights are carved from (`models/surgery.py`).

    Args:
        teacher: Where the teacher's weights and config are: a model folder, a known model, or `run:NAME`.
        map: A known layer map, a rule (`first`, `even`, `random:SEED`) or a file (`specs/known_maps.py`). `first` also
            grows a network deeper than the teacher: what it has beyond it starts by adding nothing.
    """

    teacher: str
    map: str


class TrainedModelSpec(StrictSpec):
    """Which model a run works on, and what of it learns.

    Args:
        base: A preset's name or a model folder: the architecture, and in a folder the weights too.
        train: Components that learn and are published.
        freeze: Dotted names of modules inside them that stay as they are, such as `vae.encoder`.
        freeze_after: Component -> number of optimizer steps after which it stays as it is.
        weights: Component -> where its weights come from: a file or folder, a known model, or `run:NAME` for the
            averaged weights of another run. For a trained component these are its first weights.
        surgery: Makes the U-Net's first weights out of a teacher's by a layer map.
        lora: The trained components learn by low-rank adapters alone; what is published are the adapters.
        words: New words, such as the name of a style: of the trained text encoders nothing learns but the embedding of
            each word's first token, so that what is said without these words is encoded as before.
        dtype: In which weights are held. Adapters are always fp32; without them bf16 needs
            `optimizer.stochastic_rounding`, and fp16 is for the frozen weights below adapters.
    """

    base: str
    train: tuple[Component, ...]
    freeze: tuple[str, ...] = ()
    freeze_after: dict[Component, PositiveInt] = {}
    weights: dict[Component, str] = {}
    surgery: SurgerySpec | None = None
    lora: LoraSpec | None = None
    words: tuple[str, ...] = ()
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def keeps_latents(self) -> bool:
        """Whether an autoencoder learns to decode the latents it has: denoisers trained on them stay valid."""
        return set(ENCODER) <= set(self.freeze)


class SamplesSpec(StrictSpec):
    """Pictures and losses by which a run is watched, made every `sample_every` steps.

    What is not given is the model's own: its guidance, negative prompt, sampler and steps, as `vega generate` uses
    them. Image i of a prompt has the seed `seed` + i, every time. Previews take at most `budget` of a run's work: where
    they would take more, they are made less often (the plan says how often). `num_held_out` samples that no step trains
    on are asked for their loss, each at fixed timesteps with fixed noise.
    """

    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    num_images: PositiveInt = 1
    num_steps: PositiveInt | None = None
    guidance_scale: NonNegativeFloat | None = None
    seed: NonNegativeInt = 0
    budget: PositiveFloat = 0.03
    num_held_out: NonNegativeInt = 0


class StageSpec(StrictSpec):
    """A student on the way to the last one, carved and trained before it (`specs/stages.py`).

    Args:
        name: What its run is called, after the recipe's own run name and a dot.
        base: Its architecture.
        map: The layer map from the stage before, or from `model.surgery.teacher` for the first one; `same` where the
            student is that of the stage before.
        steps: Its optimizer steps.
        changes: What else differs from the recipe, as `path=value` like `--set`: `data.resolution_px=512`.
    """

    name: str
    base: str
    map: str
    steps: PositiveInt
    changes: tuple[str, ...] = ()


class TrainRecipe(StrictSpec):
    """One run, or with `stages` a chain of runs of which this one is the last.

    Steps are optimizer steps; `batch_size` counts the samples of one step over all processes.

    `micro_batch_size` is what one process takes through the network at once; the rest is accumulated and gives the
    same step. With `activation_checkpointing` the U-Net's blocks, all or those named (`up_blocks.0`), keep their inputs
    alone and compute the rest again on the way back: a third more work for a fraction of the memory. "auto" takes the
    blocks that the free memory asks for, none if it can. With `sharding` full every process keeps a part of
    weights, gradients, moments and averages; otherwise all of them. `compile` names modules of the trained components
    to compile, such as `vae.encoder`. `cuda_graphs` records a step of one micro-batch on a GPU and replays it: several
    times as fast for mini networks, nothing elsewhere (the run says so). `channels_last` lays out pictures and
    convolutions so that GPUs multiply them faster. `tracker` gets numbers and samples beside `metrics.jsonl`.
    `max_grad_norm` clips the gradient's length. In a TOML file, "none" stands for no value: `max_grad_norm = "none"`
    does not clip.
    """

    model: TrainedModelSpec
    data: DataSpec
    objective: ObjectiveSpec
    optimizer: OptimizerSpec = AdamWSpec()
    lr_schedule: LrScheduleSpec = LrScheduleSpec()
    ema: EmaSpec | None = EmaSpec()
    seed: NonNegativeInt = 0
    steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    max_grad_norm: PositiveFloat | None = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: tuple[str, ...] = ()
    cuda_graphs: bool = False
    activation_checkpointing: bool | Literal["auto"] | tuple[str, ...] = False
    sharding: Literal["none", "full"] = "none"
    save_every: PositiveInt = 500
    keep: PositiveInt = 2
    log_every: PositiveInt = 20
    sample_every: PositiveInt | None = None
    samples: SamplesSpec = SamplesSpec()
    tracker: Literal["tensorboard", "wandb"] | None = "tensorboard"
    channels_last: bool = False
    stages: tuple[StageSpec, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise InvalidValue(
                "micro_batch_size", self.micro_batch_size, f"a divisor of batch_size {self.batch_size}", "change one"
            )
        kind = self.objective.kind
        if self.data.kind not in DATA_KINDS[kind]:
            choice = " or ".join(DATA_KINDS[kind])
            raise InvalidValue("data.kind", self.data.kind, f"{choice} for objective {kind}", "change one")
        allowed = ", ".join(sorted(TRAINABLE[kind]))
        if not self.model.train or not set(self.model.train) <= TRAINABLE[kind]:
            raise InvalidValue("model.train", list(self.model.train), f"some of: {allowed}", "change the list")
        if kind == "denoising" and "unet" not in self.model.train:
            raise InvalidValue("model.train", list(self.model.train), "a list with unet", "add it")
        if self.model.surgery is not None and "unet" in self.model.weights:
            raise InvalidValue(
                "model.weights.unet",
                self.model.weights["unet"],
                "nothing beside model.surgery",
                "remove one of the two",
            )
        if self.model.lora is not None and kind not in ("denoising", "distillation"):
            raise InvalidValue("model.lora", "adapters", f"nothing for {kind}", "remove it")
        if self.model.lora is not None and self.model.surgery is not None:
            raise InvalidValue(
                "model.surgery",
                "a map",
                "nothing with model.lora: adapters are of no use without what they sit on",
                "carve a folder with vega map carve and name it as model.base",
            )
        self._check_words()
        self._check_pictures()
        if kind in ("scene_text", "scene_checking", "tiny_autoencoding") and self.sample_every is not None:
            raise InvalidValue("sample_every", self.sample_every, f"nothing for {kind} (no pictures)", "remove it")
        self._check_module_names()
        if self.activation_checkpointing and "unet" not in self.model.train:
            raise InvalidValue("activation_checkpointing", True, "false where no U-Net is trained", "remove it")
        if isinstance(self.objective, DistillationSpec):
            fixed = self.objective.fixed_samples
            if fixed is not None and self.data.kind == "image_latents" and fixed % self.micro_batch_size:
                whole = f"a multiple of micro_batch_size {self.micro_batch_size}, which holds pictures of one size"
                raise InvalidValue("objective.fixed_samples", fixed, whole, "change it")
            self.objective.check_steps(self.steps + sum(stage.steps for stage in self.stages))
        if self.stages and self.model.surgery is None:
            raise InvalidValue(
                "model.surgery", None, "the first teacher and the last map, where there are stages", "add it"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise InvalidValue("stages", names, "names that differ", "rename one")
        if self.lr_schedule.warmup_steps >= self.steps:
            raise InvalidValue(
                "lr_schedule.warmup_steps", self.lr_schedule.warmup_steps, f"fewer than steps {self.steps}", "lower it"
            )
        return self

    def _check_words(self) -> None:
        """Check that new words have a text encoder that may learn them."""
        words = self.model.words
        if not words:
            return
        if any(not word.strip() or len(word.split()) > 1 for word in words):
            raise InvalidValue("model.words", list(words), "single words", "write each as an entry of its own")
        if not {"text_encoder", "text_encoder_2"} & set(self.model.train) or self.objective.kind != "denoising":
            nothing = "nothing but for denoising with a text encoder in model.train"
            raise InvalidValue("model.words", list(words), nothing, "add text_encoder and text_encoder_2 there")
        if self.model.lora is not None:
            nothing = "nothing with model.lora: a file of adapters holds no words"
            raise InvalidValue("model.words", list(words), nothing, "remove one of the two")

    def _check_pictures(self) -> None:
        """Check what holds only where a run has pictures of its own, or adapters."""
        if isinstance(self.data, ImageLatentsSpec):
            turns = 1 + len(self.data.prior)
            if self.micro_batch_size % turns:
                whole = f"a multiple of {turns} with data.prior, whose samples come in turn with the run's own"
                raise InvalidValue("micro_batch_size", self.micro_batch_size, whole, "change it")
            weights = [prior.text_weight for prior in self.data.prior if prior.text_weight]
            if weights and not any(name.startswith("text_encoder") for name in self.model.train):
                said = "0 where no text encoder learns"
                raise InvalidValue("data.prior.text_weight", weights[0], said, "remove it, or let one learn")
            guarded = any(prior.target == "model" for prior in self.data.prior)
            if guarded and self.objective.kind != "denoising":
                raise InvalidValue("data.prior.target", "model", "picture beside a distillation", "change it")
        elif self.samples.num_held_out:
            raise InvalidValue(
                "samples.num_held_out", self.samples.num_held_out, "nothing but for image_latents", "remove it"
            )
        if self.model.dtype == "fp16" and self.model.lora is None:
            raise InvalidValue("model.dtype", "fp16", "fp32 or bf16 without model.lora", "change it")
        if self.channels_last and "unet" not in self.model.train:
            raise InvalidValue("channels_last", True, "false where no U-Net is trained", "remove it")

    def _check_module_names(self) -> None:
        trained = set(self.model.train)
        choose = f"modules of the trained components ({', '.join(self.model.train)})"
        for field, names in (
            ("model.freeze", self.model.freeze),
            ("model.freeze_after", self.model.freeze_after),
            ("compile", self.compile),
            ("optimizer.lr_factors", self.optimizer.lr_factors),
        ):
            for name in names:
                if name.split(".")[0] not in trained:
                    raise InvalidValue(field, name, choose, "rename or remove it")

    @classmethod
    def read(cls, path: Path, changes: Iterable[str] = ()) -> Self:
        """Read a recipe file and apply `path=value` changes to it.

        Raises:
            MissingFile: The file cannot be read.
            InvalidValue: A key is unknown, a value is not allowed, or a change has no `=`.
            VegaError: The file is not TOML.
        """
        data = read_toml(path)
        for change in changes:
            apply_change(data, change)
        return cls.from_dict(without_none(data))

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights after a given step: every field but those of `MAY_CHANGE`, flattened."""
        fields = {name: value for name, value in json.loads(self.to_json()).items() if name not in MAY_CHANGE}
        return flatten(fields)

    def digest(self) -> str:
        """Return the hash of `identity()`; equal recipes make equal runs."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def changed_keys(self, other: dict[str, Any]) -> list[str]:
        """Return the keys whose values differ from another recipe's `identity()`.

        A key that the other does not have is like one at its default, and one that this does not have like one that
        says nothing: recipes saved before there was a setting still stand. A table that the other left out, `ema` or
        `model.lora`, is another thing than one at its defaults.
        """
        mine = self.identity()
        chosen = flatten(json.loads(self.model_dump_json(exclude_defaults=True)), keep_empty=True)
        # Tables that this has where the other has none, those with nothing in them but defaults among them.
        added = {key for key, value in chosen.items() if value == {} and not any(_within(one, key) for one in other)}
        added |= {key for key, value in other.items() if value is None and key not in mine}

        def differs(key: str) -> bool:
            if key not in other and key not in chosen:
                return any(_within(key, table) for table in added)
            first, second = mine.get(key), other.get(key)
            return first != second and not (_says_nothing(first) and _says_nothing(second))

        return sorted(key for key in mine.keys() | other.keys() if differs(key))


def _within(key: str, table: str) -> bool:
    return key.startswith(f"{table}.")


def _says_nothing(value: Any) -> bool:
    return value is None or value in ("", [], {})


def flatten(data: dict[str, Any], prefix: str = "", keep_empty: bool = False) -> dict[str, Any]:
    """Turn nested tables into one with dotted keys; lists stay values, empty tables vanish unless they are kept."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and (value or not keep_empty):
            flat.update(flatten(value, f"{prefix}{key}.", keep_empty))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def apply_change(data: dict[str, Any], change: str) -> None:
    """Apply one `dotted.path=value` to plain recipe data; the value is TOML, or text where it is not.

    Entries of a list are counted from 0: `objective.teachers.0.map=even`.

    Raises:
        InvalidValue: There is no `=`.
        VegaError: The path goes through a value that is not a table, or names an entry that a list does not have.
    """
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise InvalidValue("--set", change, "path=value, as in optimizer.lr=1e-4", "add the =")
    *tables, last = path.strip().split(".")
    table: Any = data
    for name in tables:
        if isinstance(table, list):
            if not name.isdigit() or int(name) >= len(table):
                raise VegaError(f"--set {path.strip()}: {name} is no entry of a list of {len(table)}; count from 0")
            table = table[int(name)]
        else:
            table = table.setdefault(name, {})
        if not isinstance(table, dict | list):
            raise VegaError(f"--set {path.strip()}: {name} is a value, not a table; give the path of a key")
    if isinstance(table, list):
        raise VegaError(f"--set {path.strip()}: {last} is an entry of a list; give the path of a key in it")
    table[last] = _toml_value(text.strip())


def without_none(value: Any) -> Any:
    """Turn the text "none" into no value, which TOML cannot write: `ema = "none"`; `sharding = "none"` stays."""
    if isinstance(value, dict):
        return {key: entry if key in SAYS_NONE else without_none(entry) for key, entry in value.items()}
    return None if value == "none" else value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
