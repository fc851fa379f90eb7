"""The table of flags equals the committed copy of the originals' parsers: names, types, defaults, choices."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import pytest

from vega_diffusion.specs.diffusers_flags import (
    DREAMBOOTH,
    FULL,
    INTERPOLATIONS,
    LORA,
    SCRIPTS,
    Script,
    flags_of,
    with_defaults,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "card-flags.tsv"
KINDS = {"str": "text", "int": "int", "float": "float", "bool": "bool", "": "switch"}
NUMBERS = {LORA: 55, FULL: 59, DREAMBOOTH: 72}


def rows(script: Script) -> list[dict[str, str]]:
    with open(GOLDEN, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["script"] == script]


def default_of(row: dict[str, str]) -> Any:
    return ast.literal_eval(row["default"]) if row["default"] else False


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_that_of_the_original(script: Script):
    golden = rows(script)
    assert len(golden) == NUMBERS[script]
    flags = {f"--{flag.name}": flag for flag in flags_of(script)}
    assert flags.keys() == {row["flag"] for row in golden}
    assert len(flags_of(script)) == len(golden)
    for row in golden:
        flag = flags[row["flag"]]
        assert flag.kind == KINDS[row["type"]], flag.name
        assert flag.default_in(script) == default_of(row), flag.name
        assert type(flag.default_in(script)) is type(default_of(row)), flag.name
        assert flag.required == (row["required"] == "True"), flag.name
        assert (flag.kind == "switch") == (row["action"] == "'store_true'"), flag.name
        choices = row["choices"]
        computed = INTERPOLATIONS if "InterpolationMode" in choices else tuple(ast.literal_eval(choices or "()"))
        assert flag.choices == computed, flag.name
        assert flag.help


def test_flags_are_asked_by_name_and_secrets_are_not_shown():
    flags = with_defaults(LORA, hub_token="secret", rank=8)
    assert flags["rank"] == 8
    assert flags.changed("rank")
    assert not flags.changed("seed")
    assert flags["proportion_empty_prompts"] == 0  # another script's
    assert not flags.changed("proportion_empty_prompts")
    assert "secret" not in repr(flags)
    with pytest.raises(KeyError):
        with_defaults(LORA, use_ema=True)
