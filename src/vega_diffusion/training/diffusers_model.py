"""From the flags of diffusers' scripts to the model that a recipe starts from, and in which precision it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue, MissingFile
from vega_diffusion.models.find import EMBEDDED, TEACHERS, is_hub_id, resolve_model
from vega_diffusion.models.layout import WEIGHT_STEMS, weight_filename
from vega_diffusion.specs.diffusers_flags import FULL, PRECISIONS, ScriptFlags
from vega_diffusion.training.hub import fetch_autoencoder, fetch_model, licence_of

Say = Callable[[str], object]


@dataclass(frozen=True)
class BaseModel:
    """The model that training starts from.

    Args:
        name: As the user called it.
        folder: Where it lies.
        licence: As far as it is known.
        section: `base`, `weights` and `dtype` of a recipe's `model`.
    """

    name: str
    folder: Path
    licence: str | None
    section: dict[str, Any]


def find_base(flags: ScriptFlags, precision: str, say: Say) -> BaseModel:
    """Find the model that the flags name, fetching it where it is on the Hub.

    Raises:
        VegaError: It is not there, or not in the precision or at the revision asked for.
    """
    name: str = flags["pretrained_model_name_or_path"]
    variant = flags["variant"]
    if variant not in (None, "fp16"):
        raise InvalidValue("--variant", variant, "fp16, or none at all", "leave it out")
    on_hub = is_hub_id(name) and not Path(name).expanduser().is_dir()
    weights: dict[str, str] = {}
    if on_hub and (flags["revision"] or flags["cache_dir"]):
        folder = fetch_model(name, flags["revision"], flags["cache_dir"])
        base = str(folder)
    else:
        folder = resolve_model(name)
        known = name in (*EMBEDDED, *TEACHERS)
        base = name if known or on_hub else str(folder.absolute())
        if known:  # in a recipe such a name alone is an architecture
            weights = {component: name for component in WEIGHT_STEMS}
    if not on_hub and flags["revision"]:
        say(f"--revision: no effect, since {name} is on this machine")
    if variant is not None:
        weights = {component: str(_half_file(folder, component)) for component in WEIGHT_STEMS}
    weights |= _autoencoder(flags)
    dtype = "fp32" if flags.script == FULL or precision == "no" else precision
    section = {"base": base, "weights": weights, "dtype": dtype}
    return BaseModel(name, folder, licence_of(name, folder), section)


def precision_of(flags: ScriptFlags, launched: str | None, has_gpu: bool, say: Say) -> str:
    """Return the precision of the work: the flag's, else the launcher's; fp16 needs a GPU.

    Raises:
        InvalidValue: The launcher asks for one that there is none of.
    """
    given = flags["mixed_precision"]
    wanted = given or launched or "no"
    source = "--mixed_precision" if given else "accelerate launch --mixed_precision"
    if wanted not in PRECISIONS:
        raise InvalidValue(source, wanted, f"one of: {', '.join(PRECISIONS)}", "choose one of them")
    if wanted == "fp16" and not has_gpu:
        say(f"{source}: fp16 needs a GPU and this machine has none; fp32 is used instead")
        return "no"
    return wanted


def _autoencoder(flags: ScriptFlags) -> dict[str, str]:
    name = flags["pretrained_vae_model_name_or_path"]
    if name is None:
        return {}
    if name in (*EMBEDDED, *TEACHERS):
        return {"vae": name}
    folder = Path(name).expanduser()
    if folder.exists():
        return {"vae": str(folder.absolute())}
    if not is_hub_id(name):
        raise MissingFile(
            f"--pretrained_vae_model_name_or_path: {name!r} is not there; allowed: a folder, a Hub id; check the path"
        )
    return {"vae": str(fetch_autoencoder(name, flags["cache_dir"]))}


def _half_file(folder: Path, component: str) -> Path:
    path = folder.absolute() / component / weight_filename(component, "fp16")
    if not path.is_file():
        raise MissingFile(f"--variant: {folder} has no fp16 file of {component}; leave the flag out")
    return path
