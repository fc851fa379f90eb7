"""Surgery: every tensor accounted for, weights from the right blocks, growth that changes nothing, early errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vega_diffusion.errors import InvalidValue, UnreadableModel
from vega_diffusion.models.surgery import account, carve, plan_surgery
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.known_maps import KNOWN_MAPS, find_map
from vega_diffusion.specs.layer_map import block_table
from vega_diffusion.specs.presets import KOALA_1B, KOALA_700M, MINI_SDXL, PRESETS, SDXL, SSD_1B, VEGA, VEGA_MINI

WIDTHS = {"block_out_channels": (8, 16, 32), "attention_head_dim": (1, 2, 4), "norm_num_groups": 4}
SMALL = VEGA_MINI.unet.model_copy(update=WIDTHS)
LARGE = MINI_SDXL.unet.model_copy(update=WIDTHS)
STRUCTURE = (
    "layers_per_block",
    "mid_block_type",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)


def narrow(spec: UNetSpec) -> UNetSpec:
    """The same blocks as a full-size U-Net at the tests' width."""
    return LARGE.model_copy(update={field: getattr(spec, field) for field in STRUCTURE})


def run(unet: torch.nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    size = SMALL.cross_attention_dim
    pooled = SMALL.projection_class_embeddings_input_dim - 6 * SMALL.addition_time_embed_dim  # type: ignore[operator]
    added = {"text_embeds": torch.randn(2, pooled, generator=draw), "time_ids": torch.ones(2, 6)}
    latents, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, size, generator=draw)
    return unet(latents, torch.tensor([1, 700]), encoder_hidden_states=text, added_cond_kwargs=added).sample


def named(unet: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


# Student, teacher, map -> tensors copied, re-indexed, new, dropped. Sums are those of the published checkpoints:
# 1680 tensors of SDXL, 944 of SSD-1B, 564 of Vega.
@pytest.mark.parametrize(
    ("student", "teacher", "layers", "counts"),
    [
        ("vega", "sdxl", "vega", (464, 100, 0, 1116)),
        ("ssd-1b", "sdxl", "ssd-1b", (864, 80, 0, 736)),
        ("vega", "ssd-1b", "ssd-1b-to-vega", (464, 100, 0, 380)),
        ("koala-1b", "sdxl", "koala-1b", (582, 208, 0, 890)),
        ("koala-700m", "sdxl", "koala-700m", (396, 188, 0, 1096)),
        ("vega", "sdxl", "first", (564, 0, 0, 1116)),
        ("sdxl", "vega", "first", (564, 0, 1116, 0)),
        ("vega-mini", "mini-sdxl", "vega", (464, 100, 0, 1116)),
        ("sd-1.5", "sd-1.5", "first", (686, 0, 0, 0)),
    ],
)
def test_every_tensor_of_both_sides_is_accounted_for(student, teacher, layers, counts):
    mine, theirs = PRESETS[student].unet, PRESETS[teacher].unet
    surgery = plan_surgery(find_map(layers, mine, theirs), mine, theirs)
    assert tuple(surgery.counts().values()) == counts
    with torch.device("meta"):
        left, right = build_unet(mine).state_dict(), build_unet(theirs).state_dict()
    assert surgery.origins.keys() | set(surgery.new) == left.keys()
    assert set(surgery.origins.values()) | set(surgery.dropped) == right.keys()
    assert all(left[name].shape == right[origin].shape for name, origin in surgery.origins.items())
    assert account(surgery)["counts"] == dict(zip(("copied", "reindexed", "new", "dropped"), counts, strict=True))


@pytest.mark.parametrize("student", [VEGA, SSD_1B, KOALA_1B, KOALA_700M])
def test_a_student_holds_the_tensors_of_the_mapped_blocks_and_its_own_memory(student):
    torch.manual_seed(0)
    spec, layers = narrow(student.unet), KNOWN_MAPS[student.name]
    weights = named(build_unet(LARGE))
    unet, surgery = carve(layers, spec, LARGE, weights)
    state = unet.state_dict()
    for block, origin in layers.blocks.items():
        suffix = "attn1.to_q.weight" if "transformer_blocks" in block else None
        suffix = suffix or ("conv1.weight" if "resnets" in block else "proj_in.weight")
        assert torch.equal(state[f"{block}.{suffix}"], weights[f"{origin}.{suffix}"])
    assert surgery.reindexed
    assert all(torch.equal(state[name], weights[origin]) for name, origin in surgery.origins.items())
    before = weights["conv_in.weight"].clone()
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert torch.equal(weights["conv_in.weight"], before)
    assert torch.isfinite(run(unet)).all()
    assert not unet.training
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_two_surgeries_in_a_row_are_one():
    torch.manual_seed(1)
    weights = named(build_unet(LARGE))
    middle, _ = carve(KNOWN_MAPS["ssd-1b"], narrow(SSD_1B.unet), LARGE, weights)
    there, _ = carve(KNOWN_MAPS["ssd-1b-to-vega"], SMALL, narrow(SSD_1B.unet), named(middle))
    straight, _ = carve(KNOWN_MAPS["vega"], SMALL, LARGE, weights)
    mine, other = there.state_dict(), straight.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    joined = KNOWN_MAPS["ssd-1b"].then(KNOWN_MAPS["ssd-1b-to-vega"])
    assert joined.blocks == KNOWN_MAPS["vega"].blocks


def test_a_student_with_all_blocks_is_the_teacher():
    torch.manual_seed(2)
    teacher = build_unet(LARGE).eval()
    student, surgery = carve(find_map("first", LARGE, LARGE), LARGE, LARGE, teacher.state_dict())
    assert surgery.counts() == {"copied": 1680, "reindexed": 0, "new": 0, "dropped": 0}
    with torch.no_grad():
        assert torch.equal(run(student), run(teacher))


def test_weights_keep_their_dtype():
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in named(build_unet(SMALL)).items()}
    unet, _ = carve(find_map("first", LARGE, SMALL), LARGE, SMALL, weights)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("without_mid_block", [False, True])
def test_a_grown_network_computes_what_the_small_one_does(without_mid_block: bool) -> None:
    torch.manual_seed(1)
    spec = SMALL.model_copy(update={"mid_block_type": None}) if without_mid_block else SMALL
    small = build_unet(spec)
    layers = find_map("first", LARGE, spec)
    large, surgery = carve(layers, LARGE, spec, small.state_dict())
    with torch.no_grad():
        assert torch.equal(run(small), run(large))
    parts = dict(large.named_parameters())
    assert set(surgery.new) == parts.keys() - dict(small.named_parameters()).keys()
    assert ("mid_block.resnets.0" in layers.new) is without_mid_block


def test_a_stretched_network_walks_the_same_way_in_finer_steps() -> None:
    torch.manual_seed(4)
    small = build_unet(SMALL).eval()
    layers = find_map("stretch", LARGE, SMALL)
    assert layers.kept("down_blocks.2.attentions.0") == (0,) * 5 + (1,) * 5
    assert layers.kept("up_blocks.1.attentions.0") == (0, 0)
    assert set(layers.new) == {name for name in block_table(LARGE) if name.startswith("mid_block.")} - {
        "mid_block.resnets.0"
    }
    large, _ = carve(layers, LARGE, SMALL, small.state_dict())
    mine, theirs = large.state_dict(), small.state_dict()
    block = "down_blocks.2.attentions.0.transformer_blocks"
    assert torch.equal(mine[f"{block}.7.attn2.to_q.weight"], theirs[f"{block}.1.attn2.to_q.weight"])
    for end in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"):
        for part in ("weight", "bias"):
            whole = sum(mine[f"{block}.{number}.{end}.{part}"] for number in range(5))
            torch.testing.assert_close(whole, theirs[f"{block}.0.{end}.{part}"])
    grown, _ = carve(find_map("first", LARGE, SMALL), LARGE, SMALL, small.state_dict())
    fresh = build_unet(LARGE).eval()
    with torch.no_grad():
        expected = run(small)
        distances = [(run(one) - expected).square().mean() for one in (grown, large, fresh)]
    assert distances[0] == 0
    assert distances[1] < distances[2] / 20


def test_after_one_step_every_new_weight_has_a_gradient() -> None:
    torch.manual_seed(2)
    small = build_unet(SMALL)
    large, surgery = carve(find_map("first", LARGE, SMALL), LARGE, SMALL, small.state_dict())
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(2):  # the ends of the branches move first, then what feeds them gets a gradient
        optimizer.zero_grad()
        run(large).square().mean().backward()
        optimizer.step()
    parts = dict(large.named_parameters())
    for name in surgery.new:
        gradient = parts[name].grad
        assert gradient is not None
        assert gradient.any(), name


def test_new_resnets_on_the_way_get_fresh_weights_and_are_named():
    torch.manual_seed(3)
    wide = LARGE.model_copy(update={"layers_per_block": 3})
    layers = find_map("first", wide, LARGE)
    assert {"down_blocks.0.resnets.2", "up_blocks.2.resnets.2"} <= set(layers.new)
    assert layers.blocks["up_blocks.0.resnets.3"] == "up_blocks.0.resnets.2"
    unet, surgery = carve(layers, wide, LARGE, named(build_unet(LARGE)))
    assert len(surgery.origins) == 1680
    assert unet.state_dict()["up_blocks.2.resnets.2.conv1.weight"].any()
    assert torch.isfinite(run(unet)).all()


NO_ADDED = {
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"block_out_channels": (8, 16, 64)}, "student.unet.block_out_channels: .* allowed: the teacher's"),
        ({"cross_attention_dim": 96}, "student.unet.cross_attention_dim"),
        (NO_ADDED, "student.unet.(addition|projection)"),
    ],
)
def test_teachers_of_another_shape_are_refused_by_name(change: dict[str, object], match: str) -> None:
    teacher = LARGE.model_copy(update=change)
    with pytest.raises(InvalidValue, match=match):
        plan_surgery(KNOWN_MAPS["vega"], SMALL, teacher)


def test_weights_that_are_not_the_teachers_are_refused():
    weights = named(build_unet(LARGE))
    layers = KNOWN_MAPS["vega"]
    with pytest.raises(UnreadableModel, match="1 tensors are missing or left over .first: conv_in.bias"):
        carve(layers, SMALL, LARGE, {name: value for name, value in weights.items() if name != "conv_in.bias"})
    with pytest.raises(UnreadableModel, match="size mismatch for conv_out.bias"):
        carve(layers, SMALL, LARGE, weights | {"conv_out.bias": torch.zeros(3)})


def test_a_full_size_student_is_planned_without_memory():
    assert SDXL.unet.block_out_channels[0] == 320
    surgery = plan_surgery(KNOWN_MAPS["vega"], VEGA.unet, SDXL.unet)
    with torch.device("meta"):
        sizes = {name: tensor.numel() for name, tensor in build_unet(VEGA.unet).state_dict().items()}
    assert sum(sizes[name] for name in surgery.origins) == 745_225_604
