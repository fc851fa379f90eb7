"""From what a user calls a model to a folder on this machine: known names, folders, Hub ids.

Nothing is downloaded unless the user wrote a Hub id. What is in the folder is the matter of `detect` and `checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, UnreadableModel
from vega_diffusion.models.layout import MODEL_INDEX, PIPELINE_COMPONENTS, WEIGHT_STEMS, check_folder
from vega_diffusion.specs.presets import PRESETS

# Shipped with the package.
EMBEDDED = ("vega-mini",)
# Kept in the repository only, with the recipe that makes each.
TEACHERS: dict[str, str] = {"mini-sdxl": "recipes/mini-sdxl-denoise-cpu.toml"}
# Presets whose weights others publish.
HUB_IDS: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "ssd-1b": "segmind/SSD-1B",
    "vega": "segmind/Segmind-Vega",
    "koala-1b": "etri-vilab/koala-1b",
    "koala-700m": "etri-vilab/koala-700m",
}
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def resolve_model(model: str | Path) -> Path:
    """Return the folder of a model, complete and SDXL-shaped.

    A known name wins over a folder of that name in the working directory (write `./vega-mini` for that one); an
    existing folder wins over a Hub id.

    Args:
        model: A known name (`vega-mini`, `mini-sdxl`, ...), a folder, or a Hub id such as `segmind/Segmind-Vega`.

    Raises:
        InvalidValue: No such model.
        MissingFile: A known name whose weights are not in this installation; the message says what makes them.
        Unavailable: A Hub id that cannot be fetched (no network, no such repository, no access).
        UnreadableModel: The folder is incomplete or holds another kind of model.
    """
    folder = find_folder(model)
    check_folder(folder)
    return folder


def find_folder(model: str | Path, configs_only: bool = False) -> Path:
    """Return the folder of a model without a look inside; `configs_only` fetches no weights from the Hub.

    Raises:
        InvalidValue: No such model.
        MissingFile: A known name whose weights are not in this installation.
        Unavailable: A Hub id that cannot be fetched.
        UnreadableModel: A file instead of a folder, or a repository without the files of a model.
    """
    name = str(model)
    if name in EMBEDDED:
        return _existing(package_root() / "assets" / name, f"{name}: this installation lacks its weights; reinstall it")
    if name in TEACHERS:
        return _existing(
            repository_root() / "weights" / name,
            f"{name}: its weights are kept in the repository, not in the package; "
            f"check the repository out, or make them: vega train {TEACHERS[name]}",
        )
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise UnreadableModel(
            f"model: {name!r} is a file; allowed: a diffusers folder; give the folder that holds it, or make one of a "
            f"single-file checkpoint: vega convert folder {name} FOLDER --tokenizers MODEL"
        )
    if name in HUB_IDS:
        raise MissingFile(
            f"{name}: an architecture whose weights are not shipped here; use --model {HUB_IDS[name]} (from the Hub)"
        )
    if is_hub_id(name):
        return fetch_from_hub(name, configs_only)
    names = ", ".join((*EMBEDDED, *TEACHERS))
    raise InvalidValue("model", name, f"{names}, a model folder, or a Hub id owner/name", "check the spelling")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, `owner/name`; a folder of that name may exist as well."""
    return _HUB_ID.fullmatch(name) is not None


def package_root() -> Path:
    """Return the folder of the installed package."""
    return Path(__file__).resolve().parents[1]


def repository_root() -> Path:
    """Return the folder of the checkout that the package runs from; meaningless in a wheel install."""
    return package_root().parents[1]


def _existing(folder: Path, otherwise: str) -> Path:
    if not (folder / MODEL_INDEX).is_file():
        raise MissingFile(otherwise)
    return folder


def files_to_fetch(names: Iterable[str]) -> list[str]:
    """Choose, from the files of a Hub repository, those that a model folder needs, one precision a component.

    fp16 files are taken where they exist: half the download, and no worse for models published at fp16. Single-file
    checkpoints, pickles, other formats and pictures are left.

    Raises:
        UnreadableModel: A component has no safetensors weights there.
    """
    present = sorted(set(names))
    chosen = [name for name in present if name in (MODEL_INDEX, "vega.json")]
    for component in PIPELINE_COMPONENTS:
        inside = [name for name in present if name.rpartition("/")[0] == component]
        chosen += [name for name in inside if name.endswith((".txt", ".json")) and ".index." not in name]
        if component not in WEIGHT_STEMS:
            continue
        stem = re.escape(f"{component}/{WEIGHT_STEMS[component]}")
        half = re.compile(rf"{stem}\.fp16(-\d+-of-\d+)?\.safetensors|{stem}\.safetensors\.index\.fp16\.json")
        full = re.compile(rf"{stem}(-\d+-of-\d+)?\.safetensors|{stem}\.safetensors\.index\.json")
        weights = [name for name in inside if half.fullmatch(name)] or [name for name in inside if full.fullmatch(name)]
        if not weights:
            raise UnreadableModel(
                f"component {component} has no safetensors weights in this repository; "
                "allowed: a diffusers folder with safetensors; choose another model"
            )
        chosen += weights
    return chosen


def fetch_from_hub(hub_id: str, configs_only: bool = False) -> Path:
    """Fetch what is needed of a Hub repository into the Hub's cache; without network take what the cache has.

    Args:
        hub_id: `owner/name`.
        configs_only: Fetch the small files that describe the model, no weights.

    Raises:
        Unavailable: It is neither reachable nor cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        try:
            # One request without retries: no network must be told at once, not after half a minute of attempts.
            listing = HfApi().model_info(hub_id, timeout=10).siblings or []
            names = [sibling.rfilename for sibling in listing]
            wanted = [name for name in names if name.endswith(".json")] if configs_only else files_to_fetch(names)
            return Path(snapshot_download(hub_id, allow_patterns=wanted))
        except (GatedRepoError, RepositoryNotFoundError, UnreadableModel):
            raise
        except Exception:  # offline mode, no route, a proxy, a server error: whichever HTTP library says so
            return Path(snapshot_download(hub_id, local_files_only=True))
    except UnreadableModel as error:
        raise UnreadableModel(f"{hub_id}: {error}") from error
    except GatedRepoError as error:
        raise Unavailable(
            f"model: {hub_id!r} asks for a licence agreement; agree on the Hub and log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise Unavailable(
            f"model: {hub_id!r} is not on the Hub, or private; allowed: a public id; check the spelling"
        ) from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise Unavailable(
            f"model: {hub_id!r} is not in the Hub's cache and the Hub cannot be reached; connect to the network, "
            "or use a local folder or an embedded model: " + ", ".join(EMBEDDED)
        ) from error


def known_names() -> tuple[str, ...]:
    """Return every name that stands for an architecture or for weights."""
    return tuple(dict.fromkeys((*PRESETS, *EMBEDDED, *TEACHERS)))
