"""The scene-text loss: by hand, blind to padding, and learnable."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.targets import IGNORE, mention_sizes, slot_sizes
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.objectives.build import build_heads
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.objectives.scene_text import SceneHeads, SceneText, before_padding
from vega_diffusion.specs.objective import SceneTextSpec
from vega_diffusion.specs.presets import preset

END = 4095


def student():
    spec = preset("vega-mini")
    assert spec.text_encoder_2 is not None
    torch.manual_seed(0)
    heads = SceneHeads({"noun": 5, "colour": 3}, spec.unet.cross_attention_dim, 128, {"noun": 5, "side": 2})
    encoders = {"text_encoder": build_text_encoder(spec.text_encoder)}
    return nn.ModuleDict(encoders | {"text_encoder_2": build_text_encoder(spec.text_encoder_2), "heads": heads})


def batch(length=16):
    torch.manual_seed(1)
    ids = torch.full((4, length), END)
    ids[:, :6] = torch.randint(0, 4000, (4, 6))
    ids[2:, 6:9] = torch.randint(0, 4000, (2, 3))
    padded = ids.clone()
    padded[before_padding(ids).logical_not()] = 0
    targets = {"target.noun": torch.tensor([0, 1, 2, 3]), "target.colour": torch.tensor([2, IGNORE, 0, IGNORE])}
    targets |= {
        "mention_at": torch.tensor([[2, 5], [3, 0], [1, 7], [4, 0]]),
        "mention.noun": torch.tensor([[0, 4], [1, IGNORE], [2, 0], [3, IGNORE]]),
        "mention.side": torch.tensor([[0, 1], [0, IGNORE], [0, 1], [IGNORE, IGNORE]]),
    }
    return Batch(list("abcd"), targets | {"input_ids": ids, "input_ids_2": padded})


def test_reading_stops_at_the_first_end_token():
    ids = torch.tensor([[4094, 5, END, END, END], [4094, 5, 6, 7, END]])
    assert before_padding(ids).sum(dim=1).tolist() == [3, 5]


def test_loss_by_hand():
    module, data = student(), batch()
    loss = SceneText(SceneTextSpec(pooled_weight=0.25, mention_weight=0.5), {})(module, data, PositionRng(0, range(4)))
    ids = data.tensors["input_ids"]
    tokens, pooled = encode_tokens(module["text_encoder"], module["text_encoder_2"], ids, data.tensors["input_ids_2"])
    heads = module["heads"]
    assert isinstance(heads, SceneHeads)
    from_tokens, from_pooled = heads(tokens, pooled, before_padding(ids))
    for row in range(4):
        parts = []
        for logits in (from_tokens, from_pooled):
            values = []
            for name in ("noun", "colour"):
                target = data.tensors[f"target.{name}"][row]
                known = target != IGNORE
                values.append(functional.cross_entropy(logits[name][row], target) if known else torch.tensor(0.0))
            parts.append(sum(values) / 2)
        at_mentions = heads.read_mentions(tokens, data.tensors["mention_at"])
        values = [
            functional.cross_entropy(at_mentions[name][row, number], target) if target != IGNORE else torch.tensor(0.0)
            for name in ("noun", "side")
            for number, target in enumerate(data.tensors[f"mention.{name}"][row])
        ]
        expected = parts[0] + 0.25 * parts[1] + 0.5 * sum(values) / 4
        torch.testing.assert_close(loss.per_sample[row], expected.detach())
    assert 0 <= loss.parts["accuracy"] <= 1


def test_padding_does_not_matter():
    module = student()
    losses = [SceneText(SceneTextSpec(), {})(module, batch(length), PositionRng(0, range(4))) for length in (16, 77)]
    torch.testing.assert_close(losses[0].per_sample, losses[1].per_sample, rtol=1e-5, atol=1e-5)


def test_a_mention_is_read_from_one_token_alone():
    heads = SceneHeads({}, 6, 4, {"noun": 5})
    tokens = torch.randn(2, 7, 6)
    found = heads.read_mentions(tokens, torch.tensor([[1, 6], [3, 0]]))["noun"]
    assert found.shape == (2, 2, 5)
    for row, number, token in ((0, 0, 1), (0, 1, 6), (1, 0, 3), (1, 1, 0)):
        expected = heads.from_mention["noun"](heads.norm(tokens[row, token]))
        torch.testing.assert_close(found[row, number], expected)


def test_it_can_be_learned():
    module, data = student(), batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    objective, rng = SceneText(SceneTextSpec(), {}), PositionRng(0, range(4))
    for _ in range(12):
        loss = objective(module, data, rng)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert objective(module, data, rng).parts["accuracy"] == 1
    assert loss.parts["pooled_accuracy"] == 1
    assert loss.parts["mention_accuracy"] == 1


def test_heads_fit_the_scenes_and_depend_on_the_seed_alone():
    spec = preset("vega-mini")
    first, again = (build_heads(SceneTextSpec(), spec, 5) for _ in range(2))
    assert isinstance(first, SceneHeads)
    assert isinstance(again, SceneHeads)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert {name: layer.out_features for name, layer in first.from_tokens.items()} == slot_sizes()
    assert {name: layer.out_features for name, layer in first.from_mention.items()} == mention_sizes()
    assert build_heads(SceneTextSpec(), spec, 6) is not None
