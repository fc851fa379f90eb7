"""A map told from weights: after noise as large as training leaves, in every shape, with doubt where it is due."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.recover import RELATED, _in_order, recover_map
from vega_diffusion.models.surgery import carve
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.known_maps import find_map
from vega_diffusion.specs.presets import KOALA_1B, KOALA_700M, MINI_SDXL, SSD_1B, VEGA

WIDTHS = {"block_out_channels": (16, 32, 64), "attention_head_dim": (1, 2, 4), "norm_num_groups": 4}
TEACHER = MINI_SDXL.unet.model_copy(update=WIDTHS)
STRUCTURE = (
    "layers_per_block",
    "mid_block_type",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_unet(TEACHER).state_dict()


def narrow(spec: UNetSpec) -> UNetSpec:
    return TEACHER.model_copy(update={field: getattr(spec, field) for field in STRUCTURE})


def trained_on(state: dict[str, Tensor], noise: float, seed: int = 1) -> dict[str, Tensor]:
    """Move every weight by noise of this multiple of the tensor's spread."""
    draw = torch.Generator().manual_seed(seed)
    spread = {name: value.std() if value.numel() > 1 else torch.tensor(0.0) for name, value in state.items()}
    return {
        name: value + noise * spread[name] * torch.randn(value.shape, generator=draw) for name, value in state.items()
    }


@pytest.mark.parametrize("student", [VEGA, SSD_1B, KOALA_1B, KOALA_700M], ids=lambda spec: spec.name)
@pytest.mark.parametrize("rule", ["first", "even", "random:7"])
def test_the_map_of_a_student_that_was_trained_on_is_told_exactly(student, rule, weights):
    spec = narrow(student.unet)
    layers = find_map(rule, spec, TEACHER)
    carved, _ = carve(layers, spec, TEACHER, weights)
    found = recover_map(spec, trained_on(carved.state_dict(), noise=1.0), TEACHER, weights)
    assert found.layers.blocks == layers.blocks
    assert not found.layers.new
    # Noise as large as the weights leaves a cosine of 1 / sqrt(2).
    assert all(0.6 < match.similarity < 0.8 for match in found.matches)
    assert found.least_confident.confidence > 0.5


def test_one_checkpoint_against_itself_is_sure(weights):
    found = recover_map(TEACHER, weights, TEACHER, weights)
    assert all(match.student == match.teacher and match.similarity > 0.999 for match in found.matches)
    assert len(found.matches) == 98


def test_blocks_with_weights_of_their_own_are_new(weights):
    torch.manual_seed(3)
    state = dict(weights)
    fresh = build_unet(TEACHER).state_dict()
    blocks = ("mid_block.resnets.1", "down_blocks.2.attentions.1.transformer_blocks.4")
    state |= {name: value for name, value in fresh.items() if name.startswith(tuple(f"{block}." for block in blocks))}
    found = recover_map(TEACHER, state, TEACHER, weights)
    assert set(found.layers.new) == set(blocks)
    assert {match.teacher for match in found.matches if match.student in blocks} == {None}


def test_a_deeper_student_has_new_blocks(weights):
    small = narrow(VEGA.unet)
    carved, _ = carve(find_map("first", small, TEACHER), small, TEACHER, weights)
    found = recover_map(TEACHER, weights, small, carved.state_dict())
    assert len(found.layers.new) == 57
    assert "mid_block.attentions.0.transformer_blocks.3" in found.layers.new


def test_unrelated_weights_and_other_widths_are_one_line(weights):
    torch.manual_seed(4)
    with pytest.raises(InvalidValue, match="weights that came from the teacher's"):
        recover_map(TEACHER, build_unet(TEACHER).state_dict(), TEACHER, weights)
    wide = TEACHER.model_copy(update={"block_out_channels": (32, 64, 128)})
    with pytest.raises(InvalidValue):
        recover_map(wide, build_unet(wide).state_dict(), TEACHER, weights)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_assignment_keeps_the_order_and_is_the_best_there_is(rows, columns, seed):
    draw = torch.Generator().manual_seed(seed)
    cosines = (torch.rand(rows, columns, generator=draw) * 1.2 - 0.2).tolist()
    chosen = _in_order(cosines)
    taken = [column for column in chosen if column is not None]
    assert taken == sorted(set(taken))
    assert all(cosines[row][column] >= RELATED for row, column in enumerate(chosen) if column is not None)

    def best(row: int, column: int) -> float:
        if row == rows or column == columns:
            return 0.0
        here = cosines[row][column] + best(row + 1, column + 1) if cosines[row][column] >= RELATED else 0.0
        return max(here, best(row + 1, column), best(row, column + 1))

    value = sum(cosines[row][column] for row, column in enumerate(chosen) if column is not None)
    assert value == pytest.approx(best(0, 0))
