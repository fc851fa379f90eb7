"""The picture of a proposal: what the scores foretold against what training recovered, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vega_diffusion.errors import Unavailable
from vega_diffusion.training.propose import Candidate, Proposal, loss_of

_TOGETHER = 0.03
"""Share of an axis within which two labels would cover each other."""

_INK, _SCORES, _RULES, _TEACHER = "#1d2330", "#2f6fdb", "#d1603d", "#6a7383"


def draw_proposal(proposal: Proposal, path: Path) -> None:
    """Write the figure.

    Args:
        proposal: The result.
        path: A PNG, SVG or PDF file.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable(
            "figure: matplotlib is not installed; install the extra: pip install 'vega-diffusion[plots]'"
        ) from error
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    after = "after the trial" if proposal.trial_steps else "before training"
    for axes, label in ((left, "summed removal errors (the prior)"), (right, "U-Net parameters, millions")):
        axes.set_xlabel(label)
        axes.set_ylabel(f"held-out denoising loss, {after}")
        axes.axhline(proposal.teacher_loss, color=_TEACHER, linestyle=":", linewidth=1)
        axes.annotate(
            "teacher", (0.99, proposal.teacher_loss), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
        axes.spines[["top", "right"]].set_visible(False)
    for candidate in proposal.candidates:
        place = (candidate.unet_parameters / 1e6, loss_of(candidate))
        left.plot(candidate.prior, loss_of(candidate), "o", color=_colour(candidate))
        right.plot(*place, "o", color=_colour(candidate))
    for (prior, loss), names in labels(proposal.candidates).items():
        left.annotate(", ".join(names), (prior, loss), xytext=(5, 6), textcoords="offset points")
    front = [one for one in proposal.candidates if one.name in proposal.pareto]
    front.sort(key=lambda one: one.unet_parameters)
    right.plot([one.unet_parameters / 1e6 for one in front], [loss_of(one) for one in front], color=_INK, linewidth=1)
    right.set_title(f"Pareto front: {', '.join(one.name for one in front)}", loc="left", fontsize=10)
    left.set_title(f"{len(proposal.candidates)} maps, budget {proposal.budget}", loc="left", fontsize=10)
    left.plot([], [], "o", color=_SCORES, label="by scores")
    left.plot([], [], "o", color=_RULES, label="by rule")
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def labels(candidates: Sequence[Candidate]) -> dict[tuple[float, float], list[str]]:
    """Return what to write beside the points (prior, loss): those that lie as good as upon each other share a label."""
    points = {one.name: (one.prior, loss_of(one)) for one in candidates}
    spans = [max(values) - min(values) for values in zip(*points.values(), strict=True)]
    found: dict[tuple[float, float], list[str]] = {}
    for name, point in points.items():
        near = (
            place
            for place in found
            if all(abs(a - b) <= _TOGETHER * span for a, b, span in zip(place, point, spans, strict=True))
        )
        found.setdefault(next(near, point), []).append(name)
    return found


def _colour(candidate: Candidate) -> str:
    return _SCORES if candidate.chosen_by == "scores" else _RULES
