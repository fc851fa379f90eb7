"""Leaving behind what the next command needs to draw without torch: a bundle, and a sampler's table (`lean/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.store import Store
from vega_diffusion.inference.components import Components, choose_device
from vega_diffusion.inference.lean.bundle import (
    BUNDLE,
    TABLE,
    Bundle,
    bundle_identity,
    table_identity,
    tokenizer_file,
)
from vega_diffusion.inference.lean.text import TokenizerSpec
from vega_diffusion.inference.sampler_tables import make_table
from vega_diffusion.models.tiny_folder import tiny_home
from vega_diffusion.specs.profile import Decoder
from vega_diffusion.specs.request import GenerateRequest


def keep_for_next_time(components: Components, request: GenerateRequest, default_threads: int) -> str | None:
    """Store a model's bundle and the table of a request's sampler, where they are not there yet.

    A machine with an accelerator keeps none: commands that name no device draw on that.

    Args:
        components: The model.
        request: Resolved.
        default_threads: How many threads torch takes here when nobody says.

    Returns:
        Why it could not be, which costs nothing but the next command's time; or None.
    """
    assert request.sampler and request.num_steps, "a resolved request"
    if {components.device.type, choose_device("auto").type} != {"cpu"}:
        return None
    store, folder = Store(lambda line: None), components.folder
    try:
        identity = bundle_identity(folder)
        if store.find(identity) is None:
            store.make(identity, lambda home: _write_bundle(components, default_threads, home))
        identity = table_identity(folder, request.sampler, request.num_steps)
        if store.find(identity) is None:
            table = make_table(request.sampler, components.scheduler_config, request.num_steps)
            store.make(identity, lambda home: table.save(home / TABLE))
    except VegaError as error:
        return str(error)
    return None


def _write_bundle(components: Components, default_threads: int, home: Path) -> None:
    """Write a bundle into a folder."""
    tokenizers: list[Any] = components.tokenizers()
    for index, tokenizer in enumerate(tokenizers):
        (home / tokenizer_file(index)).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    spec, tiny = components.spec, tiny_home(components.folder)
    factors: dict[Decoder, float] = {"full": spec.autoencoder.scaling_factor}
    if tiny is not None:
        factors["tiny"] = components.tiny_spec(tiny).scaling_factor
    encoders = [spec.text_encoder, spec.text_encoder_2]
    first, second = (
        TokenizerSpec(
            limit=min(tokenizer.model_max_length, encoder.max_position_embeddings),
            pad_id=tokenizer.pad_token_id,
            end_id=tokenizer.eos_token_id,
        )
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True)
        if encoder is not None
    )
    dtype: Any = str(components.dtype).removeprefix("torch.")
    bundle = Bundle(
        spec=spec,
        model_digest=components.digest,
        tiny_digest=components.tiny_digest(),
        text_digest=components.text_digest,
        dtype=dtype,
        scaling_factors=factors,
        tokenizers=(first, second),
        unet_parameters=components.unet_parameters,
        default_threads=default_threads,
    )
    (home / BUNDLE).write_text(bundle.to_json(indent=1), encoding="utf-8")
