"""LoRAs with random numbers for any model: what the tests of files, algebra, engine and commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from vega_diffusion.models.lora_file import Adapter
from vega_diffusion.models.lora_layouts import ADAPTABLE, MapTree

Pick = Callable[[str], bool]


def adapter(
    shape: tuple[int, ...],
    rank: int = 2,
    alpha: float | None = None,
    seed: int = 0,
    dora: bool = False,
    size: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """A random adapter of a weight's shape whose change is about `size` times a fresh weight."""
    rng = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=rng) * down_size(shape)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=rng) * size * 0.3
    magnitude = torch.rand(shape[0], generator=rng) + 0.5 if dora else None
    return Adapter(down.to(dtype), up.to(dtype), float(rank if alpha is None else alpha), magnitude)


def down_size(shape: tuple[int, ...]) -> float:
    """One over the square root of the inputs of a map."""
    return torch.Size(shape[1:]).numel() ** -0.5


def attention(path: str) -> bool:
    """Whether a map is one that training adapts unless told otherwise."""
    return path.endswith(("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"))


def random_lora(
    tree: MapTree,
    components: Collection[str] = ADAPTABLE,
    pick: Pick = attention,
    seed: int = 0,
    **settings: object,
) -> dict[str, dict[str, Adapter]]:
    """Random adapters for the maps of a model that `pick` takes; further arguments as for `adapter`."""
    found: dict[str, dict[str, Adapter]] = {}
    for component in components:
        for number, (path, shape) in enumerate(sorted(tree.shapes[component].items())):
            if pick(path):
                one = adapter(shape, seed=1000 * seed + number, **settings)  # type: ignore[arg-type]
                found.setdefault(component, {})[path] = one
    return found
