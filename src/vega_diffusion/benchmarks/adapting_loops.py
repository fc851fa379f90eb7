"""The naive side of `adapting-speed`: three plain loops of diffusers' own components, and the program that runs one.

Each does in a step what diffusers' script of that job does in it (`examples/`, read in August 2026), and nothing that
those do not: pictures are decoded, encoded by the autoencoder and, for LoRA, captions read by both text encoders at
every step; DreamBooth reads its two prompts once; the full fine-tune encodes everything once and collates Python lists.
What the scripts do beside that, and a loop can do without, is left out: datasets and Arrow, accelerate, log lines, and
that the full one decodes its pictures again at every step. Only the setting comes from `adapting_speed`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from vega_diffusion.benchmarks.adapting_speed import BEGUN, Setting

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
Loss = Callable[[Any], Tensor]


class Components:
    """A model folder's parts as diffusers and transformers load them, in fp32; the U-Net alone may learn."""

    def __init__(self, folder: str) -> None:
        given: dict[str, Any] = {"variant": "fp16"} if list(Path(folder, "unet").glob("*.fp16.*")) else {}
        fp32: dict[str, Any] = {"torch_dtype": torch.float32, **given}
        self.unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **fp32)
        self.vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", **fp32)
        texts: dict[str, Any] = {"dtype": torch.float32, **given}
        first: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **texts)
        second: Any = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2", **texts)
        self.encoders: tuple[Any, Any] = (first, second)
        self.tokenizers: Any = [
            CLIPTokenizer.from_pretrained(folder, subfolder=name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.noising: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        for module in (self.unet, self.vae, first, second):
            module.requires_grad_(False)

    def tokens(self, captions: Sequence[str]) -> list[Tensor]:
        """Return both tokenizers' ids `[B, 77]`."""
        told: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [one(list(captions), max_length=one.model_max_length, **told).input_ids for one in self.tokenizers]

    def texts(self, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the prompt's states `[B, 77, D]` and its pooled embedding `[B, P]`."""
        states, pooled = [], None
        for encoder, ids in zip(self.encoders, tokens, strict=True):
            found = encoder(ids, output_hidden_states=True)
            pooled = found[0]
            states.append(found.hidden_states[-2])
        assert pooled is not None
        return torch.cat(states, dim=-1), pooled

    def latents(self, pixels: Tensor) -> Tensor:
        """Return a draw of the autoencoder's posterior, scaled."""
        return self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor

    def errors(self, latents: Tensor, prompt: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """Return the squared errors of the U-Net's answer to fresh noise, `[B, C, H, W]`."""
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.noising.config.num_train_timesteps, (len(latents),))
        noisy = self.noising.add_noise(latents, noise, timesteps)
        added = {"time_ids": time_ids, "text_embeds": pooled}
        predicted = self.unet(noisy, timesteps, prompt, added_cond_kwargs=added).sample
        return torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="none")

    def adapted(self, rank: int) -> list[Tensor]:
        """Put adapters into the U-Net's attention and return what learns."""
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
        self.unet.add_adapter(config)
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def save_adapters(self, folder: str) -> None:
        """Write the adapters as diffusers' scripts do."""
        layers: Any = get_peft_model_state_dict(self.unet)
        StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers)


class Pictures(Dataset):
    """Pictures decoded whenever they are asked for, with their captions, sizes and cuts."""

    def __init__(self, paths: Sequence[Path], captions: Sequence[str], resolution: int) -> None:
        self.paths, self.captions, self.resolution = paths, captions, resolution

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with Image.open(self.paths[number]) as file:
            picture = file.convert("RGB")
        pixels, top_left = _square(picture, self.resolution)
        ids = [picture.height, picture.width, *top_left, self.resolution, self.resolution]
        return {"pixels": pixels, "caption": self.captions[number], "time_ids": torch.tensor(ids).float()}


def _square(picture: Image.Image, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Return a picture scaled and cut from its middle, `[3, H, W]` in [-1, 1], and the cut's top and left."""
    scale = side / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    cut = np.asarray(picture.crop((left, top, left + side, top + side)))
    return torch.from_numpy(cut.copy()).permute(2, 0, 1).float().div_(255).sub_(0.5).div_(0.5), (top, left)


def lora(setting: Setting, parts: Components) -> tuple[list[Tensor], Dataset, Callable[[list[Any]], Any], Loss]:
    """LoRA: pictures and captions are encoded at every step."""
    pictures = Pictures(*_listed(setting.pictures), setting.resolution_px)

    def collate(samples: list[Any]) -> dict[str, Any]:
        return _stacked(samples) | {"tokens": parts.tokens([one["caption"] for one in samples])}

    def loss(batch: dict[str, Any]) -> Tensor:
        latents = parts.latents(batch["pixels"])
        return parts.errors(latents, *parts.texts(batch["tokens"]), batch["time_ids"]).mean()

    return parts.adapted(setting.rank), pictures, collate, loss


def full(setting: Setting, parts: Components) -> tuple[list[Tensor], Dataset, Callable[[list[Any]], Any], Loss]:
    """Full fine-tune: latents and captions are encoded once and kept as lists of numbers."""
    pictures = Pictures(*_listed(setting.pictures), setting.resolution_px)
    rows: Any = []
    with torch.no_grad():
        for start in range(0, len(pictures), setting.batch):
            samples = [pictures[number] for number in range(start, min(start + setting.batch, len(pictures)))]
            prompt, pooled = parts.texts(parts.tokens([one["caption"] for one in samples]))
            latents = parts.latents(_stacked(samples)["pixels"])
            for one, *values in zip(samples, latents, prompt, pooled, strict=True):
                names = ("latents", "prompt", "pooled")
                kept = {name: value.tolist() for name, value in zip(names, values, strict=True)}
                rows.append(kept | {"time_ids": one["time_ids"].tolist()})
    del parts.vae, parts.encoders

    def collate(samples: list[Any]) -> dict[str, Tensor]:
        return {name: torch.stack([torch.tensor(one[name]) for one in samples]) for name in samples[0]}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return parts.errors(batch["latents"], batch["prompt"], batch["pooled"], batch["time_ids"]).mean()

    return list(parts.unet.requires_grad_(True).parameters()), rows, collate, loss


def dreambooth(setting: Setting, parts: Components) -> tuple[list[Tensor], Dataset, Callable[[list[Any]], Any], Loss]:
    """DreamBooth LoRA: pictures are read once and encoded at every step, the two prompts once."""
    side = setting.resolution_px
    kept = []
    for folder in (setting.pictures, setting.class_pictures):
        paths, _ = _listed(folder)
        kept.append([Pictures(paths, [""] * len(paths), side)[number]["pixels"] for number in range(len(paths))])
    pairs: Any = list(zip(*kept, strict=True))
    prompt, pooled = parts.texts(parts.tokens([setting.caption, setting.class_caption]))
    time_ids = torch.tensor([[side, side, 0, 0, side, side]]).float()

    def collate(samples: list[Any]) -> Tensor:
        return torch.stack([one for one, _ in samples] + [other for _, other in samples])

    def loss(pixels: Tensor) -> Tensor:
        half = len(pixels) // 2
        states, summed = prompt.repeat_interleave(half, 0), pooled.repeat_interleave(half, 0)
        errors = parts.errors(parts.latents(pixels), states, summed, time_ids.repeat(2 * half, 1))
        own, of_class = errors.chunk(2)
        return own.mean() + setting.prior_weight * of_class.mean()

    return parts.adapted(setting.rank), pairs, collate, loss


JOBS = {"lora": lora, "full": full, "dreambooth": dreambooth}


def run(job: str, setting: Setting) -> list[float]:
    """Train a job and return the loss of every step."""
    random.seed(setting.seed)
    torch.manual_seed(setting.seed)
    parts = Components(setting.model)
    parameters, samples, collate, loss_of = JOBS[job](setting, parts)
    parts.unet.train()
    optimizer = torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=setting.weight_decay)
    rate = get_scheduler("constant", optimizer)
    loader = DataLoader(samples, batch_size=setting.batch, shuffle=True, collate_fn=collate)
    losses: list[float] = []
    bar = tqdm(total=setting.steps, desc="Steps", unit="step")
    for batch in _forever(loader, setting.steps):
        loss = loss_of(batch)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        bar.update(1)
        bar.set_postfix(loss=losses[-1], lr=rate.get_last_lr()[0])
    bar.close()
    if job == "full":
        parts.unet.save_pretrained(Path(setting.output) / "unet")
    else:
        parts.save_adapters(setting.output)
    return losses


def _forever(loader: DataLoader, steps: int) -> Iterator[Any]:
    """Yield as many batches as there are steps, in epochs of their own order."""
    for epoch in range(math.ceil(steps / len(loader))):
        for number, batch in enumerate(loader):
            if epoch * len(loader) + number == steps:
                return
            yield batch


def _stacked(samples: Sequence[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in samples]) for name in ("pixels", "time_ids")}


def _listed(folder: str) -> tuple[list[Path], list[str]]:
    """Return a folder's pictures and their captions, empty where it has none."""
    table = Path(folder) / "metadata.jsonl"
    if not table.exists():
        paths = sorted(Path(folder).glob("*.png"))
        return paths, [""] * len(paths)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return [Path(folder) / row["file_name"] for row in rows], [row["text"] for row in rows]


if __name__ == "__main__":
    print(BEGUN, file=sys.stderr, flush=True)
    run(sys.argv[1], Setting.from_json(Path(sys.argv[2]).read_text()))
