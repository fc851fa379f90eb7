"""Scene text: the text encoders learn what captions say by predicting the scene, before any picture is drawn.

The heads that predict are thrown away after the run; what stays is encoders whose states hold nouns, colours, counts
and relations in a form that a linear layer, and therefore cross-attention, can read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.specs.objective import SceneTextSpec

TARGET = "target."
"""Prefix of the batch's target tensors: int64 `[B]`, a class number, or `IGNORE` where the caption leaves it open."""
MENTION = "mention."
"""Prefix of what is said of each named object: int64 `[B, M]`, likewise; `mention_at` tells the token to read."""


class SceneHeads(nn.Module):
    """Predicts every target from the token states (one learned query a target) and from the pooled embedding.

    Args:
        targets: Target name -> number of classes.
        token_size: Width of the joined token states.
        pooled_size: Width of the pooled embedding.
        mentions: Slot of one named object -> number of classes. Without these heads a noun's own state need not tell
            the noun's colour, and a U-Net that looks up the noun paints it in the other one's (`docs/log.md`).
    """

    def __init__(
        self, targets: Mapping[str, int], token_size: int, pooled_size: int, mentions: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.names = tuple(targets)
        self.queries = nn.Parameter(torch.randn(len(targets), token_size) * token_size**-0.5)
        self.norm = nn.LayerNorm(token_size)
        self.keys = nn.Linear(token_size, token_size)
        self.pooled_norm = nn.LayerNorm(pooled_size)
        self.from_tokens = nn.ModuleDict({name: nn.Linear(token_size, size) for name, size in targets.items()})
        self.from_pooled = nn.ModuleDict({name: nn.Linear(pooled_size, size) for name, size in targets.items()})
        self.from_mention = nn.ModuleDict({name: nn.Linear(token_size, size) for name, size in mentions.items()})

    def read_mentions(self, tokens: Tensor, at: Tensor) -> dict[str, Tensor]:
        """Return class logits `[B, M, C]` by slot, each read from one token's state.

        Args:
            tokens: `[B, L, D]`.
            at: Int64 `[B, M]`, which tokens.
        """
        states = self.norm(tokens[torch.arange(len(tokens), device=tokens.device)[:, None], at])
        return {name: layer(states) for name, layer in self.from_mention.items()}

    def forward(self, tokens: Tensor, pooled: Tensor, readable: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return class logits from tokens and from the pooled embedding, by target name.

        Args:
            tokens: `[B, L, D]`.
            pooled: `[B, P]`.
            readable: Bool `[B, L]`, False at padding.
        """
        normed = self.norm(tokens)
        scores = torch.einsum("td,bld->btl", self.queries, self.keys(normed)) * tokens.shape[-1] ** -0.5
        shares = scores.masked_fill(~readable[:, None, :], float("-inf")).softmax(dim=-1)
        gathered = shares @ normed
        pooled = self.pooled_norm(pooled)
        token_logits = {name: self.from_tokens[name](gathered[:, row]) for row, name in enumerate(self.names)}
        return token_logits, {name: self.from_pooled[name](pooled) for name in self.names}


class SceneText:
    """Cross-entropy of a student with `text_encoder`, `text_encoder_2` and `heads` (`SceneHeads`).

    Batches hold `input_ids` and `input_ids_2`, int64 `[B, 77]`, and the targets, each under `target.NAME`.

    Args:
        spec: Weights.
        frozen: `text_encoder` or `text_encoder_2` where the student does not train it.
    """

    def __init__(self, spec: SceneTextSpec, frozen: dict[str, nn.Module]) -> None:
        self.spec, self.frozen = spec, frozen

    def to(self, device: torch.device) -> None:
        """Move the frozen encoders."""
        for module in self.frozen.values():
            module.to(device)

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the loss; parts are the share of right answers, from tokens and from the pooled embedding."""
        ids, ids_2 = batch.tensors["input_ids"], batch.tensors["input_ids_2"]
        names = ("text_encoder", "text_encoder_2")
        first, second = (getattr(student, name, None) or self.frozen[name] for name in names)
        tokens, pooled = encode_tokens(first, second, ids, ids_2)
        heads = student.get_submodule("heads")
        assert isinstance(heads, SceneHeads)
        token_logits, pooled_logits = heads(tokens, pooled, before_padding(ids))
        targets = {name: batch.tensors[TARGET + name] for name in token_logits}
        token_loss, accuracy = _score(token_logits, targets)
        pooled_loss, pooled_accuracy = _score(pooled_logits, targets)
        mention_logits = heads.read_mentions(tokens, batch.tensors["mention_at"])
        mentions = {name: batch.tensors[MENTION + name] for name in mention_logits}
        mention_loss, mention_accuracy = _score(mention_logits, mentions)
        parts = {
            "tokens": token_loss,
            "pooled": pooled_loss,
            "mentions": mention_loss,
            "accuracy": accuracy,
            "pooled_accuracy": pooled_accuracy,
            "mention_accuracy": mention_accuracy,
        }
        weighted = self.spec.pooled_weight * pooled_loss + self.spec.mention_weight * mention_loss
        return Loss.from_samples(token_loss + weighted, parts)


def before_padding(input_ids: Tensor) -> Tensor:
    """Return bool `[B, L]`: True up to and including the first end token (the highest id of every CLIP vocabulary)."""
    last = input_ids.argmax(dim=1, keepdim=True)
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None] <= last


def _score(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean cross-entropy over the targets, `[B]`, and the share of right answers among the known ones.

    Logits are `[B, C]` for targets `[B]`, or `[B, M, C]` for targets `[B, M]`.
    """
    losses, right, known = [], [], []
    for name, values in logits.items():
        target = targets[name]
        classes = values.float().movedim(-1, 1)
        found = functional.cross_entropy(classes, target, ignore_index=IGNORE, reduction="none")
        losses.append(found.flatten(1).mean(dim=1) if found.ndim > 1 else found)
        known.append(target != IGNORE)
        right.append((values.argmax(dim=-1) == target) & known[-1])
    share = torch.stack(right).sum() / torch.stack(known).sum().clamp(min=1)
    return torch.stack(losses).mean(dim=0), share
