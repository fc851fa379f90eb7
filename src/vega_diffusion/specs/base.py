"""The base of every spec: frozen data that knows no hardware and survives JSON and TOML.

No torch, numpy or diffusers here, nor in any other module of this package.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError


class Spec(BaseModel):
    """Frozen, strict about unknown keys, and equal after a round trip through JSON or TOML."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def says(self, field: str) -> bool:
        """Whether a field has another value than its default: what was written out in full still says nothing."""
        return getattr(self, field) != type(self).model_fields[field].get_default(call_default_factory=True)

    def to_json(self, indent: int | None = None) -> str:
        """Return the spec as JSON text."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build the spec from JSON text.

        Raises:
            InvalidValue: A key is unknown or a value is not allowed.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise as_vega_error(error, text) from error

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build the spec from plain data (as JSON or TOML give it).

        Raises:
            InvalidValue: A key is unknown or a value is not allowed.
        """
        return cls.from_json(json.dumps(data))

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Build the spec from a TOML file.

        Raises:
            MissingFile: The file cannot be read.
            InvalidValue: A key is unknown or a value is not allowed.
        """
        return cls.from_dict(read_toml(path))

    @classmethod
    def from_json_file(cls, path: Path) -> Self:
        """Build the spec from a JSON file.

        Raises:
            MissingFile: The file cannot be read.
            InvalidValue: A key is unknown or a value is not allowed.
            VegaError: The text is not JSON.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MissingFile(f"{path}: cannot be read ({error}); give the path of a JSON file") from error
        return cls.from_json(text)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into plain data; a missing file or a syntax error is one line.

    Raises:
        MissingFile: The file cannot be read.
        VegaError: The text is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VegaError(f"{path}: not valid TOML ({error}); mend the file") from error


def as_vega_error(error: ValidationError, text: str | None = None) -> VegaError:
    """Turn pydantic's report into one line that names field, value, what is allowed and the remedy.

    Args:
        error: The report.
        text: The JSON text that was wrong; without it, a path may hold the `kind` of a table as a step of its own.
    """
    first = error.errors(include_url=False)[0]
    field = ".".join(_steps(first["loc"], text)) or error.title
    rest = error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, VegaError):
        return cause
    if first["type"] == "extra_forbidden":
        return InvalidValue(field, first["input"], "only the known keys", f"remove or rename this key{more}")
    if first["type"] == "missing":
        return VegaError(f"{field}: missing; allowed: a value for this key; add it{more}")
    allowed = first["msg"].removeprefix("Value error, ")
    allowed = allowed[:1].lower() + allowed[1:]
    return InvalidValue(field, first["input"], allowed, f"change the value{more}")


def _steps(path: tuple[int | str, ...], text: str | None) -> list[str]:
    """Return a path's steps as a user would write them: pydantic puts a union's `kind` between a table and its key."""
    try:
        at: Any = None if text is None else json.loads(text)
    except ValueError:
        at = None
    steps = []
    for step in path:
        if isinstance(at, dict) and step not in at and step == at.get("kind"):
            continue
        steps.append(str(step))
        known = isinstance(at, dict) or (isinstance(at, list) and isinstance(step, int) and step < len(at))
        at = (at.get(step) if isinstance(at, dict) else at[int(step)]) if known else None
    return steps
