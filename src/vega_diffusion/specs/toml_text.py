"""Writes a recipe as TOML text that `TrainRecipe.read` takes back. Reading is `base.read_toml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vega_diffusion.specs.base import Spec


def to_toml(spec: Spec) -> str:
    """Return a spec as TOML: what is not at its default, and of every table its kind.

    TOML cannot say "no value", for which recipes take the text "none".
    """
    full = json.loads(spec.model_dump_json())
    chosen = json.loads(spec.model_dump_json(exclude_defaults=True))
    return "\n".join(_table(chosen, full, ())).strip() + "\n"


def _table(chosen: Mapping[str, Any], full: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    kind = {"kind": full["kind"]} if "kind" in full else {}
    lines, tables = [], []
    for key, value in (kind | dict(chosen)).items():
        inside = full.get(key)
        if isinstance(value, Mapping):
            tables += _table(value, inside if isinstance(inside, Mapping) else {}, (*path, key))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    # a table without a line of its own is written only where something must say that it is there
    head = ["", f"[{'.'.join(map(_key, path))}]"] if path and (lines or not chosen) else []
    return [*head, *lines, *tables]


def _key(name: str) -> str:
    plain = all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if plain and name else _text(name)


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items() if entry is not None) + "}"
        )
    return repr(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
