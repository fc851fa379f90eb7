"""LoRA by the flags of diffusers' script of that name, on this project's own loop (docs/adapting.md)."""

from __future__ import annotations

import sys

from vega_diffusion.cli.diffusers_script import main

if __name__ == "__main__":
    sys.exit(main("train_text_to_image_lora_sdxl"))
