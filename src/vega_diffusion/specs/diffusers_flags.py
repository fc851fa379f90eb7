"""The flags of diffusers' three training scripts for SDXL as data: names, types, defaults and what each is for.

What lives here: the table, and a command line's values by name. What does not: what a flag means for a recipe
(`training/diffusers_job.py`). Names, types, defaults and choices are those of the scripts as of August 2026; the
committed copy that a test compares with is `tests/golden/card-flags.tsv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Script = Literal["train_text_to_image_lora_sdxl", "train_text_to_image_sdxl", "train_dreambooth_lora_sdxl"]
LORA: Script = "train_text_to_image_lora_sdxl"
FULL: Script = "train_text_to_image_sdxl"
DREAMBOOTH: Script = "train_dreambooth_lora_sdxl"
SCRIPTS: tuple[Script, ...] = (LORA, FULL, DREAMBOOTH)

Kind = Literal["text", "int", "float", "bool", "switch"]

INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest_exact")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class Flag:
    """One flag.

    Args:
        name: Without the two dashes.
        kind: What its value is; a `switch` has none and is off unless given.
        default: Its value where it is not given.
        help: What it is for.
        scripts: Which scripts have it: letters of L(ora), F(ull) and D(reambooth).
        choices: The values allowed, where they are few.
        required: It must be given.
        differs: Script's letter -> default there, where it is another.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    scripts: str = "LFD"
    choices: tuple[str, ...] = ()
    required: bool = False
    differs: Mapping[str, Any] = field(default_factory=dict)

    def default_in(self, script: Script) -> Any:
        """Return the default of one script."""
        return self.differs.get(_LETTERS[script], self.default)


_LETTERS: dict[Script, str] = {LORA: "L", FULL: "F", DREAMBOOTH: "D"}

FLAGS: tuple[Flag, ...] = (
    Flag(
        "pretrained_model_name_or_path",
        "text",
        None,
        "the model to start from: a folder, a Hub id, vega-mini",
        required=True,
    ),
    Flag("pretrained_vae_model_name_or_path", "text", None, "another autoencoder: a folder or a Hub id"),
    Flag("revision", "text", None, "branch, tag or commit of a model on the Hub"),
    Flag("variant", "text", None, "which weight files of the model: fp16"),
    Flag("dataset_name", "text", None, "a data set: a folder or a Hub id"),
    Flag("dataset_config_name", "text", None, "configuration of the data set"),
    Flag("train_data_dir", "text", None, "folder of pictures with captions in metadata.jsonl", "LF"),
    Flag("instance_data_dir", "text", None, "folder of the subject's pictures", "D"),
    Flag("image_column", "text", "image", "column that holds the pictures"),
    Flag("caption_column", "text", "text", "column that holds the captions", differs={"D": None}),
    Flag("repeats", "int", 1, "times that every picture counts in an epoch", "D"),
    Flag("class_data_dir", "text", None, "folder of pictures of the class; filled up where it lacks some", "D"),
    Flag("instance_prompt", "text", None, "caption of the subject's pictures", "D", required=True),
    Flag("class_prompt", "text", None, "caption of the class's pictures", "D"),
    Flag("validation_prompt", "text", None, "what previews show"),
    Flag("num_validation_images", "int", 4, "pictures of a preview"),
    Flag("validation_epochs", "int", 1, "a preview every so many epochs", differs={"D": 50}),
    Flag("do_edm_style_training", "switch", False, "not available", "D"),
    Flag("with_prior_preservation", "switch", False, "keep the class what it was, by pictures of it", "D"),
    Flag("prior_loss_weight", "float", 1.0, "weight of the class's loss", "D"),
    Flag("num_class_images", "int", 100, "pictures of the class", "D"),
    Flag("max_train_samples", "int", None, "train on so many pictures, chosen by the seed", "LF"),
    Flag("proportion_empty_prompts", "float", 0, "share of captions left out, drawn anew each time", "F"),
    Flag(
        "output_dir",
        "text",
        "sd-model-finetuned-lora",
        "folder of the run and of its result",
        differs={"F": "sdxl-model-finetuned", "D": "lora-dreambooth-model"},
    ),
    Flag("output_kohya_format", "switch", False, "write the adapters in kohya's layout as well", "D"),
    Flag("cache_dir", "text", None, "where models and data sets of the Hub are kept"),
    Flag("seed", "int", None, "of every random draw"),
    Flag("resolution", "int", 1024, "side of the square that pictures are cut to, in px"),
    Flag("center_crop", "switch", False, "cut out the middle instead of anywhere"),
    Flag("random_flip", "switch", False, "mirror half of the pictures"),
    Flag("train_text_encoder", "switch", False, "adapters in both text encoders as well", "LD"),
    Flag("train_batch_size", "int", 16, "samples that a process takes at once", differs={"D": 4}),
    Flag("sample_batch_size", "int", 4, "pictures of the class drawn at once", "D"),
    Flag("num_train_epochs", "int", 100, "epochs, unless --max_train_steps says otherwise", differs={"D": 1}),
    Flag("max_train_steps", "int", None, "optimizer steps"),
    Flag("checkpointing_steps", "int", 500, "save a state every so many steps"),
    Flag("checkpoints_total_limit", "int", None, "states that are kept"),
    Flag("resume_from_checkpoint", "text", None, "latest, or the folder of a saved state"),
    Flag("gradient_accumulation_steps", "int", 1, "batches that make one optimizer step"),
    Flag("gradient_checkpointing", "switch", False, "less memory, more work"),
    Flag("learning_rate", "float", 1e-4, "peak learning rate"),
    Flag("text_encoder_lr", "float", 5e-6, "learning rate of the text encoders", "D"),
    Flag("scale_lr", "switch", False, "multiply the learning rate by the samples of a step"),
    Flag("lr_scheduler", "text", "constant", "course of the learning rate"),
    Flag("lr_warmup_steps", "int", 500, "steps of warm-up"),
    Flag("lr_num_cycles", "int", 1, "cycles of cosine_with_restarts", "D"),
    Flag("lr_power", "float", 1.0, "exponent of polynomial", "D"),
    Flag(
        "timestep_bias_strategy",
        "text",
        "none",
        "which timesteps are drawn more often",
        "F",
        ("earlier", "later", "range", "none"),
    ),
    Flag("timestep_bias_multiplier", "float", 1.0, "how much more often", "F"),
    Flag("timestep_bias_begin", "int", 0, "first timestep of the range", "F"),
    Flag("timestep_bias_end", "int", 1000, "timestep after the range", "F"),
    Flag("timestep_bias_portion", "float", 0.25, "share of timesteps that is earlier or later", "F"),
    Flag("snr_gamma", "float", None, "gamma of min-SNR weighting"),
    Flag("use_ema", "switch", False, "publish a running average of the weights", "F"),
    Flag("allow_tf32", "switch", False, "faster products on NVIDIA GPUs"),
    Flag("dataloader_num_workers", "int", 0, "not needed: latents come from memory"),
    Flag("optimizer", "text", "AdamW", "AdamW or prodigy", "D"),
    Flag("use_8bit_adam", "switch", False, "AdamW with moments of 8 bits"),
    Flag("adam_beta1", "float", 0.9, "decay of the first moment"),
    Flag("adam_beta2", "float", 0.999, "decay of the second moment"),
    Flag("prodigy_beta3", "float", None, "decay of prodigy's own estimate", "D"),
    Flag("prodigy_decouple", "bool", True, "decoupled weight decay in prodigy", "D"),
    Flag("adam_weight_decay", "float", 1e-2, "weight decay", differs={"D": 1e-4}),
    Flag("adam_weight_decay_text_encoder", "float", 1e-3, "weight decay of the text encoders", "D"),
    Flag("adam_epsilon", "float", 1e-8, "epsilon of the optimizer"),
    Flag("prodigy_use_bias_correction", "bool", True, "bias correction in prodigy", "D"),
    Flag("prodigy_safeguard_warmup", "bool", True, "prodigy ignores the warm-up in its estimate", "D"),
    Flag("max_grad_norm", "float", 1.0, "longest gradient"),
    Flag("push_to_hub", "switch", False, "upload the result"),
    Flag("hub_token", "text", None, "token for the upload; hf auth login keeps one"),
    Flag("prediction_type", "text", None, "epsilon or v_prediction instead of the model's own", "LF"),
    Flag("hub_model_id", "text", None, "repository of the upload; the output folder's name unless given"),
    Flag("logging_dir", "text", "logs", "folder of TensorBoard's files in the output folder"),
    Flag("report_to", "text", "tensorboard", "tensorboard, wandb, all or none"),
    Flag("mixed_precision", "text", None, "precision of the work", choices=PRECISIONS),
    Flag(
        "prior_generation_precision",
        "text",
        None,
        "precision in which the class is drawn",
        "D",
        ("no", "fp32", "fp16", "bf16"),
    ),
    Flag("local_rank", "int", -1, "set by launchers"),
    Flag("enable_xformers_memory_efficient_attention", "switch", False, "not needed: torch's attention is fused"),
    Flag("enable_npu_flash_attention", "switch", False, "not available", "LF"),
    Flag("noise_offset", "float", 0, "scale of the noise offset", "LF"),
    Flag("rank", "int", 4, "rank of the adapters", "LD"),
    Flag("lora_dropout", "float", 0.0, "share of an adapter's inputs that is dropped", "D"),
    Flag("use_dora", "switch", False, "learn the weights' lengths apart (DoRA)", "D"),
    Flag("debug_loss", "switch", False, "log the loss of every step", "L"),
    Flag("image_interpolation_mode", "text", "lanczos", "how pictures are scaled", choices=INTERPOLATIONS),
)


def flags_of(script: Script) -> tuple[Flag, ...]:
    """Return the flags of one script."""
    return tuple(flag for flag in FLAGS if _LETTERS[script] in flag.scripts)


@dataclass(frozen=True)
class ScriptFlags:
    """A command line's values.

    Args:
        script: Whose flags they are.
        values: Name -> value, of every flag that the script has.
    """

    script: Script
    values: Mapping[str, Any] = field(repr=False)  # one of them is a secret

    def __getitem__(self, name: str) -> Any:
        """Return a flag's value; what the script does not have stands as in the others."""
        if name in self.values:
            return self.values[name]
        return next(flag.default for flag in FLAGS if flag.name == name)

    def changed(self, name: str) -> bool:
        """Whether the script has a flag of that name and its value is not the default."""
        flag = next(flag for flag in FLAGS if flag.name == name)
        return name in self.values and self.values[name] != flag.default_in(self.script)


def with_defaults(script: Script, **changes: Any) -> ScriptFlags:
    """Return a script's flags at their defaults, but for these."""
    values = {flag.name: flag.default_in(script) for flag in flags_of(script)}
    unknown = changes.keys() - values.keys()
    if unknown:
        raise KeyError(f"{script} has no {', '.join(sorted(unknown))}")
    return ScriptFlags(script, values | changes)
