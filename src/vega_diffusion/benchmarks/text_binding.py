"""Case `text-binding`: does the state of a noun's own token tell that noun's colour, or the other noun's?

Cross-attention looks a noun up by its token and can use only what a linear map reads there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from torch import Tensor

# No recipe draws its scenes from this seed.
SEED = 900_004
BATCH = 100
LEARNT_SHARE = 0.8
RIDGE = 1e-4


def measure(model: str = "vega-mini", num_captions: int = 3000) -> Measurement:
    """Read colours and nouns by logistic regression from the last token of each name in captions of two things.

    Args:
        model: A name or a folder of the mini family.
        num_captions: Captions of two things in colours of their own; most teach the regression, a fifth judge it.
    """
    states, targets, first_named = read_captions(model, num_captions)
    rows = range(len(states))
    later = (~first_named).long().argmax(dim=1)  # which of a caption's two things is named second
    found: dict[str, float] = {}
    for name, at, of in (("first", 1 - later, 1 - later), ("second", later, later), ("other", later, 1 - later)):
        for slot in ("noun", "colour"):
            found[f"{name}_{slot}"] = probe(states[rows, at], targets[slot][rows, of])
    return Measurement(
        samples={name: [round(share, 4)] for name, share in found.items()},
        summary={f"{name}_accuracy": round(share, 4) for name, share in found.items()}
        | {"model": model, "num_captions": len(states)},
        bars=(
            Bar(
                what="text encoders: colour of the thing named second, read from its own token",
                measured=round(found["second_colour"], 4),
                unit="right",
                limit=0.95,
                better="higher",
            ),
        ),
        seeds=(SEED,),
        protocol="multinomial logistic regression on the penultimate states of both encoders at a name's last token, "
        "standardised; four fifths of the captions teach, the rest judge; `other` is what the second name's token "
        "tells of the thing named first",
    )


def read_captions(model: str, num_captions: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return states `[N, 2, D]` at both names, targets `[N, 2]` by slot, and which is named first, bool `[N, 2]`.

    Captions in which the place of a name is open are left out, so N is a little less than asked for.
    """
    import torch

    from vega_diffusion.data.scene_captions import SceneCaptions
    from vega_diffusion.data.scene_stream import scene_stream
    from vega_diffusion.data.scenes.targets import IGNORE, mention_classes
    from vega_diffusion.data.tokens import TokenizerPair
    from vega_diffusion.inference.components import Components
    from vega_diffusion.objectives.conditioning import encode_tokens
    from vega_diffusion.specs.data import SceneMixSpec

    stack = Components.open(model, "cpu", "float32", None).text_stack()
    first, second = stack.encoders
    tokenizers = TokenizerPair(stack.tokenizers[0], stack.tokenizers[1], stack.max_length(0))
    source = SceneCaptions(scene_stream(SceneMixSpec(kinds={"binding": 1.0})), tokenizers, SEED, "benchmark")
    parts: dict[str, list[Tensor]] = {"states": [], "noun": [], "colour": [], "side": []}
    for start in range(0, num_captions, BATCH):
        tensors = source.load(range(start, min(start + BATCH, num_captions))).tensors
        with torch.inference_mode():
            tokens, _ = encode_tokens(first, second, tensors["input_ids"], tensors["input_ids_2"])
        known = (tensors["mention.side"] != IGNORE).all(dim=1)
        at = tensors["mention_at"]
        parts["states"].append(tokens[torch.arange(len(at))[:, None], at][known])
        for slot in ("noun", "colour", "side"):
            parts[slot].append(tensors[f"mention.{slot}"][known])
    joined = {name: torch.cat(found).clone() for name, found in parts.items()}
    first_named = joined["side"] == mention_classes()["side"].index("named first")
    return joined["states"], {slot: joined[slot] for slot in ("noun", "colour")}, first_named


def probe(states: Tensor, classes: Tensor) -> float:
    """Return the share of held-back rows whose class a linear map reads rightly.

    Args:
        states: `[N, D]`.
        classes: Int64 `[N]`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    taught = int(LEARNT_SHARE * len(states))
    x = (states - states[:taught].mean(dim=0)) / (states[:taught].std(dim=0) + 1e-6)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    weights = torch.zeros(x.shape[1], int(classes.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x[:taught] @ weights, classes[:taught]) + RIDGE * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        right = (x[taught:] @ weights).argmax(dim=1) == classes[taught:]
    return float(right.float().mean())
