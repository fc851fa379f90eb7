"""Pairs of modules: how many at each level, which with which, and hooks that cannot stay silent or stay behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.features import SilentHook, captured, feature_pairs
from vega_diffusion.specs.known_maps import KNOWN_MAPS, find_map
from vega_diffusion.specs.presets import MINI_SDXL, SDXL, VEGA_MINI

VEGA, SSD, KOALA = KNOWN_MAPS["vega"], KNOWN_MAPS["ssd-1b"], KNOWN_MAPS["koala-700m"]


@pytest.mark.parametrize(
    ("level", "counts"),
    [  # Vega, SSD-1B, KOALA-700M; 26 are the terms of SSD-1B's own training
        ("block", (7, 7, 6)),
        ("module", (26, 26, 15)),
        ("transformer_block", (15, 34, 21)),
        ("self_attention", (15, 34, 21)),
    ],
)
def test_how_many_pairs_there_are(level, counts):
    assert tuple(len(feature_pairs(level, layers)) for layers in (VEGA, SSD, KOALA)) == counts


def test_which_belongs_to_which():
    modules = dict(feature_pairs("module", VEGA))
    assert modules["mid_block"] == "mid_block"
    assert not [name for name in modules if name.startswith("mid_block.")]
    assert dict(feature_pairs("module", KOALA))["up_blocks.0.resnets.1"] == "up_blocks.0.resnets.2"
    layer = "down_blocks.2.attentions.0"
    runs = [pair for pair in feature_pairs("transformer_block", VEGA) if pair.student.startswith(layer)]
    assert [pair.teacher.rpartition(".")[2] for pair in runs] == ["5", "-1"]  # of 0 to 5 and 6 to 9
    attention = dict(feature_pairs("self_attention", VEGA))
    assert attention[f"{layer}.transformer_blocks.1.attn1"] == f"{layer}.transformer_blocks.6.attn1"
    whole = find_map("first", SDXL.unet, SDXL.unet)
    assert all(pair.student == pair.teacher for pair in feature_pairs("self_attention", whole))
    deeper = find_map("first", MINI_SDXL.unet, VEGA_MINI.unet)  # new blocks have no counterpart
    assert len(feature_pairs("self_attention", deeper)) == 15


def test_of_blocks_that_came_from_one_the_last_is_compared():
    layer = "down_blocks.2.attentions.0"
    stretched = find_map("stretch", MINI_SDXL.unet, VEGA_MINI.unet)
    origins = stretched.kept(layer)
    assert origins == (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    pairs = [pair for pair in feature_pairs("transformer_block", stretched) if pair.student.startswith(layer)]
    found = [(pair.student.rpartition(".")[2], pair.teacher.rpartition(".")[2]) for pair in pairs]
    assert found == [("4", "0"), ("9", "-1")]


def test_blocks_that_do_not_ascend_have_no_runs():
    first, second = (f"down_blocks.2.attentions.0.transformer_blocks.{number}" for number in (0, 1))
    turned = VEGA.model_copy(update={"blocks": VEGA.blocks | {first: VEGA.blocks[second], second: VEGA.blocks[first]}})
    with pytest.raises(InvalidValue, match=rf"map.blocks.{second}: .* in ascending order at feature_level"):
        feature_pairs("transformer_block", turned)
    assert len(feature_pairs("self_attention", turned)) == 15


@pytest.mark.parametrize("level", ["block", "module", "transformer_block", "self_attention"])
def test_paired_outputs_exist_and_have_equal_shapes(level):
    pairs = feature_pairs(level, VEGA)
    states = []
    for spec, names in (
        (VEGA_MINI.unet, [pair.student for pair in pairs]),
        (MINI_SDXL.unet, [pair.teacher for pair in pairs]),
    ):
        with torch.device("meta"):
            unet = build_unet(spec)
            latents, text = torch.empty(2, 4, 16, 16), torch.empty(2, 7, 192)
            added = {"text_embeds": torch.empty(2, 128), "time_ids": torch.empty(2, 6)}
            with captured(unet, names) as found:
                unet(latents, torch.empty(2), encoder_hidden_states=text, added_cond_kwargs=added)
        states.append([found[name].shape for name in names])
        assert not [hook for module in unet.modules() for hook in module._forward_hooks]
    assert states[0] == states[1]


def test_the_end_of_a_list_has_a_name():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    network = nn.ModuleDict({"layers": layers})
    with captured(network, ["layers.-1", "layers.0"]) as found:
        layers(torch.zeros(1, 2))
    assert [found[name].shape[1] for name in ("layers.-1", "layers.0")] == [3, 2]


def test_a_hook_that_does_not_fire_is_an_error_and_hooks_never_stay():
    network = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    with pytest.raises(SilentHook, match="1 of 2 modules did not run, first two"), captured(network, ["one", "two"]):
        network["one"](torch.zeros(1, 2))
    with pytest.raises(ZeroDivisionError), captured(network, ["one"]):
        raise ZeroDivisionError
    with pytest.raises(AttributeError), captured(network, ["one", "three"]):
        pass
    assert not [hook for module in network.modules() for hook in module._forward_hooks]


def test_a_recomputed_module_keeps_its_first_output():
    network = nn.ModuleDict({"one": nn.Identity()})
    with captured(network, ["one"]) as found:
        network["one"](torch.zeros(1))
        network["one"](torch.ones(1))
    assert found["one"].item() == 0
