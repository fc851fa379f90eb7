"""The Hub around a run: models of a certain revision before it, a repository that takes the result after it.

A token is handed on to the Hub's own client and nowhere else: it is in no message, no file and no log. Known models
and Hub ids without further wishes are the matter of `models/find.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue, Unavailable, UnreadableModel, VegaError
from vega_diffusion.models.find import EMBEDDED, TEACHERS, files_to_fetch, is_hub_id

# Licences of models that are known by name; what others say is read from their cards.
LICENCES = {
    "segmind/Segmind-Vega": "apache-2.0",
    "segmind/SSD-1B": "apache-2.0",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}


def open_repository(name: str, token: str | None) -> str:
    """Check a token and make the repository that the result goes to, where it is not there yet.

    Args:
        name: `owner/name`, or `name` for one of the token's own user.
        token: None takes the one that `hf auth login` keeps, or `$HF_TOKEN`.

    Returns:
        The repository's full id.

    Raises:
        Unavailable: No token, a wrong one, one that may only read, no network, or no right to that repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(token=token)
    try:
        user = api.whoami()
    except LocalTokenNotFoundError as error:
        raise Unavailable("--push_to_hub: no token; log in (hf auth login) or give --hub_token") from error
    except Exception as error:  # whichever HTTP library says so
        if _status(error) in (401, 403):
            raise Unavailable(
                "--push_to_hub: the Hub does not take this token; log in again (hf auth login) or give another one"
            ) from error
        raise _unreachable(error) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise Unavailable("--push_to_hub: this token may only read; make one that may write, at hf.co/settings/tokens")
    try:
        return api.create_repo(name, exist_ok=True).repo_id
    except ValueError as error:
        said = str(error).splitlines()[0]
        raise InvalidValue("--hub_model_id", name, f"a repository's name ({said})", "give another") from error
    except Exception as error:
        if _status(error) in (401, 402, 403):
            who = user.get("name", "this user")
            raise Unavailable(
                f"--hub_model_id: {who} may not write to {name!r}; allowed: repositories of your own; give another name"
            ) from error
        raise _unreachable(error) from error


def upload(repo_id: str, files: Mapping[str, Path], token: str | None, message: str) -> str:
    """Put files into a repository as one commit and return its address.

    Args:
        repo_id: From `open_repository`.
        files: Path in the repository -> file.
        token: As for `open_repository`.
        message: Of the commit.

    Raises:
        Unavailable: It did not work; the result is still on disk.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    added = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    api = HfApi(token=token)
    try:
        api.create_commit(repo_id, added, commit_message=message)
    except Exception as error:
        raise Unavailable(
            f"--push_to_hub: the upload to {repo_id} failed ({_said(error)}); the result is kept, run the same command "
            "with --resume_from_checkpoint latest to upload it"
        ) from error
    return f"{api.endpoint}/{repo_id}"


def fetch_model(hub_id: str, revision: str | None, cache_dir: str | None) -> Path:
    """Fetch a model of the Hub at a revision, into a cache of one's own; return its folder.

    Raises:
        Unavailable: It is neither reachable nor cached.
        UnreadableModel: The repository is no SDXL-shaped model in safetensors.
    """
    return _fetch(hub_id, revision, cache_dir, files_to_fetch)


def fetch_autoencoder(hub_id: str, cache_dir: str | None = None) -> Path:
    """Fetch the autoencoder of a Hub repository, which may hold nothing else; return the folder with its weights.

    Raises:
        Unavailable: It is neither reachable nor cached.
        UnreadableModel: The repository holds no autoencoder in safetensors.
    """
    folder = _fetch(hub_id, None, cache_dir, autoencoder_files)
    return folder / "vae" if (folder / "vae").is_dir() else folder


def autoencoder_files(names: Sequence[str]) -> list[str]:
    """Choose the autoencoder among a repository's files: config and weights, in `vae/` or at the top.

    Raises:
        UnreadableModel: There is none.
    """
    for home in ("vae/", ""):
        for weights in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
            wanted = [f"{home}config.json", f"{home}{weights}"]
            if set(wanted) <= set(names):
                return wanted
    raise UnreadableModel("no autoencoder in this repository (config.json and safetensors); choose another")


def licence_of(model: str, folder: Path | None) -> str | None:
    """Return the licence that a model's own card states, or None where nothing is said.

    Args:
        model: What the user calls it: a known name, a Hub id or a folder.
        folder: Where it lies.
    """
    if model in (*EMBEDDED, *TEACHERS):
        return "apache-2.0"
    if model in LICENCES:
        return LICENCES[model]
    card = folder / "README.md" if folder is not None else None
    if card is not None and card.is_file():
        return stated_licence(card.read_text(encoding="utf-8", errors="replace"))
    if not is_hub_id(model) or Path(model).exists():
        return None
    from huggingface_hub import hf_hub_download

    try:
        return stated_licence(Path(hf_hub_download(model, "README.md")).read_text(encoding="utf-8", errors="replace"))
    except Exception:  # a card is a courtesy: without it the licence stays unknown, and the result says so
        return None


def stated_licence(card: str) -> str | None:
    """Return `license` out of a card's head, "other (its name)" for one of its own, None where it states none."""
    if not card.startswith("---"):
        return None
    head = dict(
        (key.strip(), value.strip().strip("'\""))
        for key, colon, value in (line.partition(":") for line in card.split("---")[1].splitlines())
        if colon
    )
    licence = head.get("license") or None
    return f"other ({head['license_name']})" if licence == "other" and head.get("license_name") else licence


def _fetch(hub_id: str, revision: str | None, cache_dir: str | None, choose: Callable[[list[str]], list[str]]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    try:
        try:
            listing = HfApi().model_info(hub_id, revision=revision, timeout=10).siblings or []
            return Path(snapshot_download(hub_id, allow_patterns=choose([one.rfilename for one in listing]), **where))
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, UnreadableModel):
            raise
        except Exception:  # offline mode, no route, a proxy, a server error
            return Path(snapshot_download(hub_id, local_files_only=True, **where))
    except UnreadableModel as error:
        raise UnreadableModel(f"{hub_id}: {error}") from error
    except RevisionNotFoundError as error:
        raise InvalidValue("--revision", revision, f"a branch, tag or commit of {hub_id}", "check it") from error
    except GatedRepoError as error:
        raise Unavailable(f"model: {hub_id!r} asks for a licence agreement; agree on the Hub and log in") from error
    except RepositoryNotFoundError as error:
        raise Unavailable(f"model: {hub_id!r} is not on the Hub, or private; check the spelling") from error
    except Exception as error:
        raise Unavailable(
            f"model: {hub_id!r} is not in the Hub's cache and the Hub cannot be reached; connect to the network, or "
            f"use a local folder or an embedded model: {', '.join(EMBEDDED)}"
        ) from error


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(error: Exception) -> VegaError:
    return Unavailable(
        f"--push_to_hub: the Hub cannot be reached ({_said(error)}); connect to the network, or leave the flag out and "
        "upload the result later"
    )


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
