"""From the flags of diffusers' scripts to a recipe's pictures: where they lie, how many they are, how they are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vega_diffusion.data.picture_folder import IMAGE_SUFFIXES, list_folder, sidecar
from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, VegaError
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, ScriptFlags
from vega_diffusion.training.picture_sources import open_pictures

Say = Callable[[str], object]

GONE = "lambdalabs/pokemon-blip-captions"
SUBSTITUTES = "lambdalabs/naruto-blip-captions, or a local folder of pictures with captions in metadata.jsonl"
# What marks a folder that the library `datasets` reads, beside plain pictures.
_TABLES = ("*.parquet", "*.arrow", "dataset_dict.json", "state.json", "*.tar", "*.zip")
_METADATA = ("metadata.jsonl", "metadata.csv")


def picture_section(flags: ScriptFlags, seed: int, say: Say) -> dict[str, Any]:
    """Return a recipe's `data` as the flags say it, but for `variants`, which follow from the length of the run.

    Raises:
        VegaError: There are no pictures, no captions, or no such column; the message names the flag.
    """
    section = {"kind": "image_latents", "seed": seed} | _place(flags, say) | _views(flags)
    if flags["max_train_samples"] is not None:
        section["max_pictures"] = flags["max_train_samples"]
    prior = _prior(flags, seed, say)
    return section | ({"prior": prior} if prior else {})


def count_pictures(section: dict[str, Any]) -> int:
    """Return how many pictures a `data` section trains on.

    Raises:
        VegaError: They cannot be read, or none is left.
    """
    spec = ImageLatentsSpec.from_dict(section)
    number = len(open_pictures(spec)[0].pictures)
    return number if spec.max_pictures is None else min(number, spec.max_pictures)


def _place(flags: ScriptFlags, say: Say) -> dict[str, Any]:
    folder_flag = "instance_data_dir" if flags.script == DREAMBOOTH else "train_data_dir"
    name, folder, column = flags["dataset_name"], flags[folder_flag], flags["caption_column"]
    if (name is None) == (folder is None):
        raise InvalidValue(
            f"--dataset_name, --{folder_flag}", [name, folder], "exactly one of the two", "say where the pictures are"
        )
    spoken = {"caption": flags["instance_prompt"]} if flags.script == DREAMBOOTH and column is None else {}
    captions = {} if spoken else {"caption_column": column}
    if name is not None and not Path(name).expanduser().exists():
        _check_dataset_flags(name)
        found: dict[str, Any] = {"dataset": name, "image_column": flags["image_column"]}
    else:
        flag = "dataset_name" if folder is None else folder_flag
        found = _folder(flags, flag, Path(flags[flag]).expanduser().absolute(), column, bool(spoken), say)
    config = flags["dataset_config_name"]
    if config is not None:
        if "dataset" not in found:
            raise InvalidValue("--dataset_config_name", config, "nothing for a folder of pictures", "leave it out")
        found["dataset_config"] = config
    return found | spoken | captions


def _check_dataset_flags(name: str) -> None:
    if name == GONE:
        raise Unavailable(
            f"--dataset_name: {name!r} was taken off the Hub and cannot be had any more; allowed: {SUBSTITUTES}; "
            "name one of them"
        )


def _folder(flags: ScriptFlags, flag: str, folder: Path, column: str | None, spoken: bool, say: Say) -> dict[str, Any]:
    """Return a local place, after a look at what is in it."""
    if not folder.is_dir():
        raise MissingFile(f"--{flag}: {str(folder)!r} is no folder; allowed: a folder of pictures; check the path")
    if any(next(folder.rglob(pattern), None) for pattern in _TABLES):
        return {"dataset": str(folder), "image_column": flags["image_column"]}
    if flags.changed("image_column"):
        raise InvalidValue(
            "--image_column", flags["image_column"], "image, where pictures are files in a folder", "leave it out"
        )
    pictures, rows = list_folder(folder, column or "text")
    if not pictures:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise MissingFile(f"--{flag}: no pictures in {folder}; allowed: files that end with {kinds}; put some there")
    stray = _stray(folder, spoken)
    if stray:
        more = f" and {len(stray) - 5} more" if len(stray) > 5 else ""
        say(f"--{flag}: left out, since they are no pictures: {', '.join(stray[:5])}{more}")
    if not spoken and column is not None:
        _check_captions(flag, folder, column, pictures, rows)
    return {"folder": str(folder)}


def _check_captions(flag: str, folder: Path, column: str, pictures: list[Path], rows: dict[Path, Any]) -> None:
    there = sorted({key for row in rows.values() for key in row} - {"file_name"})
    if there and column not in there:
        raise InvalidValue("--caption_column", column, f"a column of the metadata: {', '.join(there)}", "name one")
    if not rows and not any(sidecar(path) for path in pictures):
        raise VegaError(
            f"--{flag}: none of the {len(pictures)} pictures in {folder} has a caption; allowed: metadata.jsonl with "
            f"file_name and {column}, or a text file beside each picture; add one of them"
        )


def _stray(folder: Path, spoken: bool) -> list[str]:
    """Return the names at the top of a folder that are no pictures, no captions and no folders of pictures."""
    known = IMAGE_SUFFIXES if spoken else IMAGE_SUFFIXES | {".txt"}
    found = []
    for path in sorted(folder.iterdir()):
        wanted = path.is_dir() or path.suffix.lower() in known or (path.name in _METADATA and not spoken)
        if path.name.startswith(".") or not wanted:
            found.append(path.name)
    return found


def _views(flags: ScriptFlags) -> dict[str, Any]:
    side, mode = flags["resolution"], flags["image_interpolation_mode"]
    return {
        "resolution_px": side,
        "bucket_step_px": side,  # with max_aspect 1: squares alone
        "max_aspect": 1.0,
        # For pictures that are not tensors yet, torchvision's nearest_exact is nearest.
        "interpolation": "nearest" if mode == "nearest_exact" else mode,
        "crop": "center" if flags["center_crop"] else "random",
        "flip_rate": 0.5 if flags["random_flip"] else 0.0,
        "empty_caption_rate": float(flags["proportion_empty_prompts"]),
        "empty_condition": "encoded",  # the flag speaks of empty strings
    }


def _prior(flags: ScriptFlags, seed: int, say: Say) -> dict[str, Any] | None:
    names = ("class_data_dir", "class_prompt", "prior_loss_weight", "num_class_images")
    names += ("prior_generation_precision", "sample_batch_size")
    if not flags["with_prior_preservation"]:
        for name in names:
            if flags.changed(name):
                say(f"--{name}: no effect without --with_prior_preservation")
        return None
    if not flags["class_prompt"]:
        raise InvalidValue(
            "--class_prompt", flags["class_prompt"], "a caption with --with_prior_preservation", "say what the class is"
        )
    if flags["class_data_dir"] is None:
        say("--class_data_dir: not given; pictures of the class are kept in $VEGA_HOME/class_pictures")
    if flags.changed("sample_batch_size"):
        say("--sample_batch_size: no effect; pictures of the class are drawn one by one, which gives the same pictures")
    if flags.changed("prior_generation_precision"):
        say("--prior_generation_precision: no effect; pictures of the class are drawn as vega generate draws here")
    folder = flags["class_data_dir"]
    return {
        "caption": flags["class_prompt"],
        "num_pictures": flags["num_class_images"],
        "weight": flags["prior_loss_weight"],
        "seed": seed,
    } | ({"folder": str(Path(folder).expanduser().absolute())} if folder else {})
