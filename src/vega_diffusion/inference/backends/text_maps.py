"""Keys and values of the text, computed once a run: a prompt stays the same while a picture is drawn.

Every text attention multiplies the same prompt by the same two matrices at every step. Within `text_maps_kept` each of
them answers a tensor that it has just answered with what it said then: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

# Of this thread's run: map -> what it was asked last, and its answer.
_kept: ContextVar[dict[nn.Module, tuple[Tensor, Tensor]] | None] = ContextVar("text_maps", default=None)
_lock = Lock()


@dataclass
class _User:
    """A map that answers from what is kept: its own forward where it had one, and how many runs are under way."""

    own_forward: Callable[..., Tensor] | None
    count: int = 0


_users: WeakKeyDictionary[nn.Module, _User] = WeakKeyDictionary()


@contextmanager
def text_maps_kept(unet: nn.Module) -> Iterator[None]:
    """Keep keys and values of text attention from one evaluation to the next, while they are of the same tensor.

    The U-Net's weights, adapters included, must not change within. Several threads may draw with one U-Net, each in a
    run of its own; once none does, the U-Net is as it was.
    """
    attentions = [module for path, module in unet.named_modules() if path.endswith("attn2")]
    maps = [getattr(attention, name) for attention in attentions for name in ("to_k", "to_v")]
    _enter(maps)
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)
        _leave(maps)


def _enter(maps: list[Any]) -> None:
    with _lock:
        for module in maps:
            if module not in _users:
                own = module.__dict__.get("forward")  # of a hook of accelerate's, say
                _users[module] = _User(own)
                module.forward = partial(_answer, module, module.forward)
            _users[module].count += 1


def _leave(maps: list[Any]) -> None:
    with _lock:
        for module in maps:
            user = _users[module]
            user.count -= 1
            if not user.count:
                del _users[module], module.forward
                if user.own_forward is not None:
                    module.forward = user.own_forward


def _answer(module: nn.Module, compute: Callable[..., Tensor], asked: Tensor, *more: Any) -> Tensor:
    kept = _kept.get()
    if kept is None or more:
        return compute(asked, *more)
    last = kept.get(module)
    if last is None or last[0] is not asked:
        last = kept[module] = (asked, compute(asked))
    return last[1]
