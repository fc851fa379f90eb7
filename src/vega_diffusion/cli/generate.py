"""`vega generate`: from a prompt, or from a picture of ours, to PNG files."""

from __future__ import annotations

import json as jsonlib
import os
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.request import GenerateRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.inference.images import GeneratedImage, Progress
    from vega_diffusion.inference.metadata import PictureRecord

DEFAULT_MODEL = "vega-mini"
DEFAULT_FOLDER = "pictures"
_MODELS = "the model's"


def run(argv: list[str]) -> int:
    """Parse the arguments and draw.

    Returns:
        0 when every picture is written.
    """
    return run_verb("generate", generate, argv)


def generate(
    prompt: Annotated[str | None, tyro.conf.Positional, text("[PROMPT]")] = None,
    /,
    model: Annotated[str | None, text("NAME|FOLDER|HUB-ID", DEFAULT_MODEL)] = None,
    negative_prompt: Annotated[str | None, text("TEXT", _MODELS)] = None,
    default_negative: Annotated[bool, tyro.conf.arg(help_behavior_hint=" ")] = True,
    guidance_scale: Annotated[str | None, text("FLOAT", _MODELS)] = None,
    num_steps: Annotated[str | None, text("INT", _MODELS)] = None,
    sampler: Annotated[str | None, text("NAME", _MODELS)] = None,
    seed: Annotated[str | None, text("INT", "a random one, recorded")] = None,
    num_images: Annotated[str | None, text("INT", "1")] = None,
    width: Annotated[str | None, text("PX", _MODELS)] = None,
    height: Annotated[str | None, text("PX", _MODELS)] = None,
    prompt_syntax: Annotated[str | None, text("plain|weighted", "plain")] = None,
    init_image: Annotated[str | None, text("IMAGE")] = None,
    strength: Annotated[str | None, text("FLOAT", "0.8, with a mask 1")] = None,
    mask: Annotated[str | None, text("IMAGE")] = None,
    original_size: Annotated[str | None, text("HEIGHTxWIDTH", "the picture's")] = None,
    crop_top_left: Annotated[str | None, text("TOPxLEFT", "0x0")] = None,
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE@WEIGHT"), tyro.conf.UseAppendAction] = (),
    profile: Annotated[str | None, text("exact|balanced|turbo|realtime", "exact")] = None,
    guidance_interval: Annotated[str | None, text("FROM,TO", "the profile's")] = None,
    guidance_kept: Annotated[str | None, text("SHARE", "the profile's")] = None,
    reuse: Annotated[str | None, text("STEPS", "the profile's")] = None,
    decoder: Annotated[str | None, text("full|tiny", "the profile's")] = None,
    precision: Annotated[str | None, text("fp32|bf16|int8|int8-weights", "the profile's")] = None,
    device: Annotated[str, text("auto|cpu|cuda|mps|xpu", "auto")] = "auto",
    dtype: Annotated[str, text("auto|float32|bfloat16|float16", "auto")] = "auto",
    compile: bool = False,
    output: Annotated[str | None, text("FILE.png|FOLDER", DEFAULT_FOLDER)] = None,
    from_: Annotated[str | None, tyro.conf.arg(name="from"), text("IMAGE.png")] = None,
    plan: bool = False,
    json: bool = False,
) -> int:
    """Draw pictures from a prompt; prints their paths.

    Args:
        prompt: What to draw.
        model: A known name, a diffusers folder, or a Hub id such as segmind/Segmind-Vega.
        negative_prompt: What to move away from.
        default_negative: Do without the model's own negative prompt.
        guidance_scale: How strictly to follow the prompt; 1 or less is off.
        num_steps: Sampler steps.
        sampler: euler, euler_a, ddim, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde_karras, unipc, heun or lcm.
        seed: Seed of the first picture; picture i has seed + i.
        num_images: How many pictures.
        width: A multiple of 8.
        height: A multiple of 8.
        prompt_syntax: weighted reads (x:1.3), [x] and BREAK; plain reads every character literally.
        init_image: Picture to start from.
        strength: How much of it is redrawn, above 0, at most 1.
        mask: Picture, white where to redraw.
        original_size: Size conditioning.
        crop_top_left: Crop conditioning.
        lora: LoRA file of either layout, with a weight (1 unless given); give it again for several.
        profile: How to draw, from exactly to fast; flags here go before what it says.
        guidance_interval: Shares of the steps between which guidance acts, as 0,0.8.
        guidance_kept: Share of what guidance last changed that acts after the interval, 0 to 1.
        reuse: Compute the U-Net's deep layers every so many steps only.
        decoder: The full autoencoder, or the model's tiny one.
        precision: Numbers of a profile's networks on OpenVINO; int8 (after vega calibrate) and int8-weights take least
            memory. On a GPU, int8 needs no calibration.
        device: Where to run.
        dtype: Number format of the networks.
        compile: Let profiles compile the U-Net for a GPU: up to a minute a size, faster after; for many pictures.
        output: A PNG file for one picture, or a folder; files that are there are never replaced in a folder.
        from_: Make the same picture again from one made by vega; other arguments change what they name.
        plan: Print what the steps will cost, and what is known of the profile, and draw nothing.
        json: Print one JSON object as the last line.
    """
    fields = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        # Only what was said: a replay keeps what its record says.
        "default_negative": None if default_negative else False,
        "guidance_scale": guidance_scale,
        "num_steps": num_steps,
        "sampler": sampler,
        "seed": seed,
        "num_images": num_images,
        "width": width,
        "height": height,
        "prompt_syntax": prompt_syntax,
        "init_image": init_image,
        "strength": strength,
        "mask": mask,
        "original_size": _pair("original_size", original_size),
        "crop_top_left": _pair("crop_top_left", crop_top_left),
        "loras": list(lora) or None,
        "profile": profile,
        "guidance_interval": _interval(guidance_interval),
        "guidance_kept": guidance_kept,
        "reuse": reuse,
        "decoder": decoder,
        "precision": precision,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    if from_ is None:
        job = Job(_request(given), model or DEFAULT_MODEL, device, dtype, None)
    else:
        job = _replay(Path(from_), given, model, device, dtype)
    if compile and job.request.drawn_by.name == "exact":
        raise InvalidValue("compile", True, "only with a profile other than exact", "name one")
    if plan:
        return _print_plan(job, json)
    return _draw(replace(job, may_compile=compile), Targets.choose(output, job.request), json)


def _interval(value: str | None) -> list[str] | None:
    """Split "0,0.8" into its two numbers, still as text: the spec judges them."""
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 2:
        raise InvalidValue("guidance_interval", value, "two numbers joined by a comma, as 0,0.8", "write it so")
    return parts


@dataclass(frozen=True)
class Job:
    """A request, the model it is for, where and how to run, and the record it repeats, if any."""

    request: GenerateRequest
    model: str
    device: str
    dtype: str
    record: PictureRecord | None
    may_compile: bool = False


def _request(given: dict[str, Any]) -> GenerateRequest:
    if "prompt" not in given:
        raise VegaError('prompt: missing; allowed: some text; write vega generate "a cat next to a slice of pizza"')
    return GenerateRequest.from_dict(given)


def _replay(path: Path, given: dict[str, Any], model: str | None, device: str, dtype: str) -> Job:
    """Return the job that made a picture, changed where arguments say so."""
    from vega_diffusion.inference.metadata import read_record

    record = read_record(path)
    request = record.request.changed(given)
    same_model = record if model is None else None
    return Job(request, model or record.model, device, record.dtype if dtype == "auto" else dtype, same_model)


def _pair(field: str, value: str | None) -> list[str] | None:
    """Split "128x96" into its two numbers, still as text: the spec judges them."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) != 2:
        raise InvalidValue(field, value, "two numbers joined by x, as 128x96", "write it so")
    return parts


@dataclass(frozen=True)
class Targets:
    """Where pictures go: one named file, or new files in a folder."""

    folder: Path
    file: Path | None
    stem: str

    @classmethod
    def choose(cls, output: str | None, request: GenerateRequest) -> Targets:
        """Decide before anything is drawn, so that a place that cannot be written fails at once.

        Raises:
            VegaError: The place cannot be written.
        """
        words = re.findall(r"[a-z0-9]+", request.prompt.lower())
        stem = "-".join(words)[:60].strip("-") or "picture"
        target = Path(output if output is not None else DEFAULT_FOLDER)
        is_file = target.suffix.lower() == ".png" and not target.is_dir()
        folder = target.parent if is_file else target
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VegaError(
                f"output: {str(folder)!r} cannot be made ({error.strerror}); choose another place"
            ) from error
        if not os.access(folder, os.W_OK):
            raise VegaError(f"output: {str(folder)!r} cannot be written (no permission); choose another place")
        if is_file and request.num_images == 1:
            return cls(folder, target, target.stem)
        return cls(folder, None, target.stem if is_file else stem)

    def path(self, seed: int) -> Path:
        """Return the file of the picture with that seed; in a folder, one that is not there yet."""
        if self.file is not None:
            return self.file
        base = f"{self.stem}-{seed}"
        path, copy = self.folder / f"{base}.png", 2
        while path.exists():
            path, copy = self.folder / f"{base}-{copy}.png", copy + 1
        return path


def _draw(job: Job, targets: Targets, as_json: bool) -> int:
    """Load the model, draw, write each picture as soon as it is done, print its path."""
    began = time.perf_counter()
    from vega_diffusion.inference.metadata import write_png
    from vega_diffusion.inference.samplers import public_name

    paths: list[str] = []
    seeds: list[int] = []
    with _Bar() as bar:
        for picture in _pictures(job, bar):
            for warning in picture.warnings:
                bar.warn(warning)
            path = targets.path(picture.seed)
            write_png(picture.image, path, picture.record, public_name(picture.record.request.sampler or ""))
            paths.append(str(path))
            seeds.append(picture.seed)
            print(path, flush=True)
    if as_json:
        report = {"images": paths, "seed": seeds[0], "seconds": round(time.perf_counter() - began, 3)}
        assert bar.first_step is not None, "every picture takes a step"
        report |= {"first_step_seconds": round(bar.first_step - began, 3), "model": job.model}
        print(jsonlib.dumps(report))
    return 0


def _pictures(job: Job, bar: _Bar) -> Iterator[GeneratedImage]:
    """Draw a job's pictures: without torch where all that it takes is kept, else by the engine."""
    from vega_diffusion.inference.backends.faults import BackendFault
    from vega_diffusion.inference.lean.engine import LeanEngine, unsuited

    if job.record is None and unsuited(job.request, job.device, job.dtype) is None:
        lean, drawn = LeanEngine.open(job.model, job.request, bar.warn), 0
        if lean is not None:
            try:
                for picture in lean.stream(job.request, bar.on_step):
                    drawn += 1
                    yield picture
                return
            except BackendFault as fault:
                if drawn:
                    raise
                bar.warn(f"{fault.route}: {fault.fault.value}; going on with torch")
    yield from _engine_pictures(job, bar)


def _engine_pictures(job: Job, bar: _Bar) -> Iterator[GeneratedImage]:
    """Draw a job's pictures by the engine, and leave what the next command may draw from without torch."""
    # Their notices about optional packages are of no use to someone who wants a picture.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from vega_diffusion.inference.bundles import keep_for_next_time
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.inference.lean.engine import unsuited

    engine = Engine.load(job.model, job.device, job.dtype, may_compile=job.may_compile)
    default_threads = _choose_threads(engine, job.request)
    if job.record is not None:
        for warning in engine.check_repeats(job.record, job.request):
            bar.warn(warning)
    picture: GeneratedImage | None = None
    for picture in engine.stream(job.request, bar.on_step):
        yield picture
    assert picture is not None, "a request has one picture or more"
    drawn = picture.record
    if drawn.backend == "openvino" and unsuited(drawn.request, job.device, job.dtype) is None:
        reason = keep_for_next_time(engine.components, drawn.request, default_threads)
        if reason is not None:
            bar.warn(f"the next picture starts no sooner: {reason}")


def _print_plan(job: Job, as_json: bool) -> int:
    """Print what a picture will cost beside the exact profile's, and what is known of its profile; loads no weights."""
    from vega_diffusion.inference.components import Components
    from vega_diffusion.inference.plan import known_of_profile, plan_picture
    from vega_diffusion.inference.start import Sources

    components = Components.open(job.model, job.device, job.dtype, None)
    size = Sources.open(job.request, {}).size
    found, known = plan_picture(components, job.request, size), known_of_profile(components, job.request, size)
    print("\n".join((str(found), *known)))
    if as_json:
        print(jsonlib.dumps(found.to_dict() | {"certificate": list(known)}))
    return 0


def _choose_threads(engine: Engine, request: GenerateRequest) -> int:
    """Use few threads where more only wait for one another, unless OMP_NUM_THREADS says otherwise.

    The number of threads belongs to the process, so the command sets it, not the engine.

    Returns:
        How many torch takes by itself.
    """
    import torch

    from vega_diffusion.inference.rules import OPENVINO_THREADS

    default = torch.get_num_threads()
    defaults = engine.components.spec.generation
    size = request.width or defaults.width, request.height or defaults.height
    if "OMP_NUM_THREADS" not in os.environ and engine.components.is_small_work(*size):
        torch.set_num_threads(1)
        engine.routes.num_threads = min(default, OPENVINO_THREADS)
    return default


class _Bar:
    """A progress bar on stderr over the steps of all pictures."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", file=sys.stderr, leave=False, disable=None, delay=0.5)
        self._said: set[str] = set()
        self.first_step: float | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def on_step(self, progress: Progress) -> None:
        """Move on by one step; `first_step` is when the first of all was done, by the clock of durations."""
        self.first_step = self.first_step or time.perf_counter()
        self._bar.set_description(f"picture {progress.image_index + 1}", refresh=False)
        if progress.step == 1:
            self._bar.reset(progress.num_steps)
        self._bar.update()

    def warn(self, line: str) -> None:
        """Print a warning without tearing the bar, once."""
        if line not in self._said:
            self._said.add(line)
            self._bar.write(f"warning: {line}", file=sys.stderr)
