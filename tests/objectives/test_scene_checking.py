"""The checking loss: zero for a perfect answer, closed forms, and no gradient where there is no target."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.checker import CheckerOutput, SceneChecker
from vega_diffusion.objectives.scene_checking import SceneChecking, assign, focal, near_cross_entropy, of_owner
from vega_diffusion.specs.checker import CheckerSpec
from vega_diffusion.specs.objective import SceneCheckingSpec

GRID, NOUNS, COLOURS = 16, 5, 3
PARTS = ("objectness", "noun", "colour", "box", "style", "background")


class Says(nn.Module):
    """A checker that always gives the same answer."""

    def __init__(self, output: CheckerOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, pixels: Tensor) -> CheckerOutput:
        return self.output


def targets(count: int = 2) -> dict[str, Tensor]:
    boxes = torch.zeros(count, 3, 4)
    boxes[:, 0] = torch.tensor([10.0, 20.0, 50.0, 56.0])
    boxes[:, 1] = torch.tensor([70.0, 60.0, 120.0, 118.0])
    nouns = torch.tensor([[1, 3, IGNORE]] * count)
    return {
        "pixels": torch.zeros(count, 3, 128, 128),
        "boxes": boxes,
        "nouns": nouns,
        "colours": torch.tensor([[2, IGNORE, IGNORE]] * count),
        "style": torch.tensor([1] * count),
        "background": torch.tensor([0] * count),
        "judged": torch.tensor([True] * count),
    }


def perfect(wanted: dict[str, Tensor], sure: float = 30.0) -> CheckerOutput:
    """The answer that says exactly what the targets say, written without the objective's own code."""
    count = len(wanted["style"])
    objectness = torch.full((count, GRID, GRID), -sure)
    nouns, colours = torch.zeros(count, NOUNS, GRID, GRID), torch.zeros(count, COLOURS, GRID, GRID)
    boxes = torch.zeros(count, 4, GRID, GRID)
    for picture in range(count):
        for number in (0, 1):
            x0, y0, x1, y1 = wanted["boxes"][picture, number].tolist()
            x, y = (x0 + x1) / 2 / 8, (y0 + y1) / 2 / 8
            objectness[picture, int(y), int(x)] = sure
            rows, columns = slice(int(y0 / 8), int(y1 / 8) + 1), slice(int(x0 / 8), int(x1 / 8) + 1)
            nouns[picture, wanted["nouns"][picture, number], rows, columns] = sure
            colour = int(wanted["colours"][picture, number])
            if colour >= 0:
                colours[picture, colour, rows, columns] = sure
            for row in range(rows.start, rows.stop):
                for column in range(columns.start, columns.stop):
                    ideal = [x - column - 0.5, y - row - 0.5, math.log(x1 - x0), math.log(y1 - y0)]
                    boxes[picture, :, row, column] = torch.tensor(ideal)
    styles = torch.full((count, 2, GRID, GRID), -sure)
    background = torch.full((count, 2), -sure)
    styles[:, 1], background[:, 0] = sure, sure
    return CheckerOutput(objectness, nouns, colours, styles, boxes, background)


def loss_of(output: CheckerOutput, wanted: dict[str, Tensor], **weights: float):
    student = nn.ModuleDict({"checker": Says(output)})
    batch = Batch([str(number) for number in range(len(wanted["style"]))], wanted)
    return SceneChecking(SceneCheckingSpec.from_dict(dict(weights)))(student, batch, PositionRng(0, range(len(batch))))


def test_a_perfect_answer_costs_nothing() -> None:
    wanted = targets()
    loss = loss_of(perfect(wanted), wanted)
    assert loss.total.item() == pytest.approx(0, abs=1e-5)
    assert {name: loss.parts[name].item() for name in PARTS} == pytest.approx(dict.fromkeys(PARTS, 0.0), abs=1e-5)
    assert loss.parts["noun_accuracy"] == loss.parts["colour_accuracy"] == loss.parts["style_accuracy"] == 1


def test_knowing_nothing_costs_the_logarithm_of_the_choices() -> None:
    wanted = targets()
    known = perfect(wanted)
    unsure = CheckerOutput(*(torch.zeros_like(part) for part in known))
    parts = loss_of(unsure, wanted).parts
    assert parts["noun"].item() == pytest.approx(math.log(NOUNS), rel=1e-5)
    assert parts["colour"].item() == pytest.approx(math.log(COLOURS), rel=1e-5)
    assert parts["style"].item() == parts["background"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    wanted = targets()
    unsure = CheckerOutput(*(torch.zeros_like(part) for part in perfect(wanted)))
    weights = {f"{name}_weight": float(2**number) for number, name in enumerate(PARTS)}
    loss = loss_of(unsure, wanted, **weights)
    expected = sum(weights[f"{name}_weight"] * loss.parts[name].item() for name in PARTS)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.per_sample.mean().item() == pytest.approx(loss.total.item(), rel=1e-6)


def test_what_has_no_target_moves_nothing() -> None:
    wanted = targets()
    wanted["style"][:] = wanted["background"][:] = wanted["colours"][:] = wanted["nouns"][:] = IGNORE
    wanted["judged"][:] = False
    output = CheckerOutput(*(torch.randn_like(part).requires_grad_() for part in perfect(targets())))
    loss = loss_of(output, wanted)
    assert loss.total.item() == 0
    loss.total.backward()
    assert all(part.grad is not None and not part.grad.any() for part in output)


def test_gradients_of_nouns_stay_near_the_centres() -> None:
    wanted = targets(1)
    output = CheckerOutput(*(torch.randn_like(part).requires_grad_() for part in perfect(wanted)))
    loss_of(output, wanted).total.backward()
    cells = assign(wanted["boxes"], GRID)
    for part in (output.nouns, output.boxes):
        assert part.grad is not None
        touched = part.grad.abs().sum(1) > 0
        assert torch.equal(touched, cells.owner >= 0)


def test_every_object_has_one_centre_and_its_cells_weigh_as_much_as_another_s() -> None:
    torch.manual_seed(1)
    low = torch.rand(40, 3, 2) * 60
    boxes = torch.cat([low, low + 26 + torch.rand(40, 3, 2) * 40], dim=2)
    boxes[:20, 2] = 0
    cells = assign(boxes, GRID)
    middles = ((boxes[..., :2] + boxes[..., 2:]) / 16).floor().long()
    for picture in range(40):
        there = {(int(y), int(x)) for x, y in middles[picture, : 2 if picture < 20 else 3]}
        assert {tuple(cell) for cell in cells.centre[picture].nonzero().tolist()} == there
        for number in set(cells.owner[picture].flatten().tolist()) - {-1}:
            assert cells.share[picture][cells.owner[picture] == number].sum().item() == pytest.approx(1)
    assert cells.share[cells.owner < 0].sum() == 0
    assert cells.heat.max() == 1


def test_a_cell_belongs_to_the_nearer_of_two_overlapping_objects() -> None:
    boxes = torch.tensor([[[10.0, 40.0, 70.0, 100.0], [40.0, 40.0, 100.0, 100.0]]])
    owner = assign(boxes, GRID).owner[0, 8]
    assert owner[4] == 0  # x = 36, nearer to 40 than to 70
    assert owner[8] == 1  # x = 68
    assert of_owner(torch.tensor([[7, 9]]), owner[None, None], IGNORE)[0, 0, [0, 4, 8]].tolist() == [IGNORE, 7, 9]


def test_the_focal_loss_by_hand() -> None:
    cells = assign(torch.tensor([[[0.0, 0.0, 32.0, 32.0]]]), 4)
    loss = focal(torch.zeros(1, 4, 4), cells, torch.ones(1))
    hit = 0.25 * math.log(2)
    miss = sum(
        0.25 * math.log(2) * (1 - math.exp(-32 * ((y - 2) ** 2 + (x - 2) ** 2) / 3.2**2)) ** 4
        for y in range(4)
        for x in range(4)
        if (y, x) != (2, 2)
    )
    assert loss.item() == pytest.approx(hit + miss, rel=1e-5)


def test_pictures_count_alike_however_many_objects_they_hold() -> None:
    boxes = torch.zeros(2, 3, 4)
    boxes[:, 0] = torch.tensor([4.0, 4.0, 40.0, 40.0])
    boxes[1, 1] = torch.tensor([60.0, 60.0, 120.0, 120.0])
    cells = assign(boxes, GRID)
    loss = near_cross_entropy(torch.zeros(2, 4, GRID, GRID), (cells.owner >= 0).long(), cells.share)
    assert loss.tolist() == pytest.approx([math.log(4)] * 2, rel=1e-5)


def test_a_small_checker_learns_three_kinds_of_squares() -> None:
    torch.manual_seed(0)
    spec = CheckerSpec(
        nouns=("a", "b", "c"),
        colours=("natural",),
        styles=("x",),
        backgrounds=("y",),
        image_px=64,
        widths=(8, 8, 16, 16, 16),
        neck_width=16,
        whole_width=8,
        groups=4,
    )
    student = nn.ModuleDict({"checker": SceneChecker(spec)})
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    objective = SceneChecking(SceneCheckingSpec())
    generator = torch.Generator().manual_seed(0)

    def batch(count: int) -> Batch:
        pixels, boxes = torch.full((count, 3, 64, 64), -0.5), torch.zeros(count, 2, 4)
        nouns = torch.randint(0, 3, (count, 2), generator=generator)
        for picture in range(count):
            for number in (0, 1):
                side = int(torch.randint(16, 26, (), generator=generator))
                x = int(torch.randint(0, 64 - side, (), generator=generator))
                y = number * 32 + int(torch.randint(0, 32 - side, (), generator=generator))
                pixels[picture, :, y : y + side, x : x + side] = -1
                pixels[picture, nouns[picture, number], y : y + side, x : x + side] = 1
                boxes[picture, number] = torch.tensor([x, y, x + side, y + side])
        zeros = torch.zeros(count, dtype=torch.int64)
        whole = {"style": zeros, "background": zeros, "judged": zeros == 0, "colours": torch.zeros_like(nouns)}
        return Batch([""] * count, {"pixels": pixels, "boxes": boxes, "nouns": nouns, **whole})

    for step in range(90):
        loss = objective(student, batch(16), PositionRng(0, [step] * 16))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    fresh = batch(16).tensors
    checker = student["checker"].eval()
    assert isinstance(checker, SceneChecker)
    right = [
        len(finding.detections) == 2
        and [d.noun for d in sorted(finding.detections, key=lambda d: d.centre[1])] == [spec.nouns[n] for n in nouns]
        for finding, nouns in zip(checker.find(fresh["pixels"]), fresh["nouns"].tolist(), strict=True)
    ]
    assert sum(right) >= 14
