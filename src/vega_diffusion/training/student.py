"""`Student`: the components that one run trains, and which of their parameters learn at a given step.

What does not live here: how components are built or loaded (components.py) and what they are trained for (objectives/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.lora import is_adapter
from vega_diffusion.models.words import learns_words


class Student(nn.Module):
    """A bundle of named components, such as `unet` and `text_encoder`; each is a child module.

    Of a component with a table of words (`models/words.py`) these alone learn.

    Args:
        components: Name -> module that learns and is published.
        heads: Modules that learn with them and are thrown away after the run (objective-specific), or None.
        freeze: Dotted names of modules that never learn.
        freeze_after: Component -> optimizer step from which on it does not learn.
        by_adapters: The components have low-rank adapters, which alone learn (`models/lora.py`).

    Raises:
        InvalidValue: A name in `freeze` is not a module of the components.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        heads: nn.Module | None = None,
        freeze: Sequence[str] = (),
        freeze_after: Mapping[Any, int] | None = None,
        by_adapters: bool = False,
    ) -> None:
        super().__init__()
        self.component_names = tuple(components)
        for name, module in components.items():
            self.add_module(name, module)
        if heads is not None:
            self.add_module("heads", heads)
        self.freeze = tuple(freeze)
        self.freeze_after = dict(freeze_after or {})
        self.by_adapters = by_adapters
        self._by_words = frozenset(name for name, module in components.items() if learns_words(module))
        for name in self.freeze:
            self.module_named(name, "model.freeze")
        self.set_trainable(0)

    def module_named(self, name: str, field: str) -> nn.Module:
        """Return the module with this dotted name; `field` is the recipe's key that names it.

        Raises:
            InvalidValue: There is no such module.
        """
        try:
            return self.get_submodule(name)
        except AttributeError:
            head, _, _ = name.rpartition(".")
            raise InvalidValue(field, name, "a module of the trained components", f"look below {head!r}") from None

    def set_trainable(self, step: int) -> None:
        """Let exactly those parameters learn that learn at this optimizer step; others keep no gradient."""
        for name, parameter in self.named_parameters():
            learns = self._learns(name, step)
            parameter.requires_grad_(learns)
            if not learns:
                parameter.grad = None

    def own_state(self) -> dict[str, Tensor]:
        """Return what a saved state must hold: all weights, or with adapters what is not a component's frozen base."""
        state = self.state_dict()
        if not self.by_adapters:
            return state
        return {
            name: value
            for name, value in state.items()
            if is_adapter(name) or name.split(".")[0] not in self.component_names
        }

    def phase(self, step: int) -> int:
        """Return how many of the `freeze_after` boundaries lie at or before this step."""
        return sum(step >= boundary for boundary in self.freeze_after.values())

    def _learns(self, name: str, step: int) -> bool:
        if any(name.startswith(frozen + ".") or name == frozen for frozen in self.freeze):
            return False
        component = name.split(".")[0]
        if self.by_adapters and component in self.component_names and not is_adapter(name):
            return False
        if component in self._by_words and not name.endswith(".words"):
            return False
        return step < self.freeze_after.get(component, step + 1)
