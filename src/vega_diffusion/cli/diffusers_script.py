"""The command lines of diffusers' three training scripts for SDXL, run on this project's one training loop.

What lives here: reading the flags, calling, printing. What a flag means is `training/diffusers_job.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vega_diffusion.cli.arguments import BadArguments
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.diffusers_flags import Flag, Script, ScriptFlags, flags_of

if TYPE_CHECKING:
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.diffusers_job import Job
    from vega_diffusion.training.diffusers_machine import Machine
    from vega_diffusion.training.run_directory import RunDirectory

# Where a recipe's field is a flag here; the last part of a field's name decides.
FLAG_OF_FIELD = {
    "model.lora.rank": "--rank",
    "model.lora.dropout": "--lora_dropout",
    "model.lora.dora": "--use_dora",
    "model.train": "--train_text_encoder",
    "model.base": "--pretrained_model_name_or_path",
    "model": "--pretrained_model_name_or_path",
    "model.dtype": "--mixed_precision",
    "model.weights.vae": "--pretrained_vae_model_name_or_path",
    "data.caption_column": "--caption_column",
    "data.image_column": "--image_column",
    "data.dataset": "--dataset_name",
    "data.caption": "--instance_prompt",
    "data.folder": "the folder of pictures",
    "data.resolution_px": "--resolution",
    "data.crop": "--center_crop",
    "data.flip_rate": "--random_flip",
    "data.interpolation": "--image_interpolation_mode",
    "data.max_pictures": "--max_train_samples",
    "data.empty_caption_rate": "--proportion_empty_prompts",
    "data.prior.weight": "--prior_loss_weight",
    "data.prior.0.weight": "--prior_loss_weight",
    "data.prior.num_pictures": "--num_class_images",
    "data.prior.0.num_pictures": "--num_class_images",
    "data.prior.caption": "--class_prompt",
    "data.prior.0.caption": "--class_prompt",
    "data.prior.folder": "--class_data_dir",
    "data.prior.0.folder": "--class_data_dir",
    "objective.min_snr_gamma": "--snr_gamma",
    "objective.noise_offset": "--noise_offset",
    "objective.prediction_type": "--prediction_type",
    "optimizer.kind": "--optimizer",
    "optimizer.lr": "--learning_rate",
    "optimizer.betas.0": "--adam_beta1",
    "optimizer.betas.1": "--adam_beta2",
    "optimizer.beta3": "--prodigy_beta3",
    "optimizer.decouple": "--prodigy_decouple",
    "optimizer.eps": "--adam_epsilon",
    "optimizer.weight_decay": "--adam_weight_decay",
    "lr_schedule.kind": "--lr_scheduler",
    "lr_schedule.warmup_steps": "--lr_warmup_steps",
    "lr_schedule.num_cycles": "--lr_num_cycles",
    "lr_schedule.power": "--lr_power",
    "ema.decay": "--use_ema",
    "steps": "--max_train_steps",
    "batch_size": "--train_batch_size",
    "micro_batch_size": "--train_batch_size",
    "seed": "--seed",
    "max_grad_norm": "--max_grad_norm",
    "mixed_precision": "--mixed_precision",
    "save_every": "--checkpointing_steps",
    "keep": "--checkpoints_total_limit",
    "samples.num_images": "--num_validation_images",
    "activation_checkpointing": "--gradient_checkpointing",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong."""
        raise BadArguments(f"arguments: {message}; see {self.prog} --help")


def parse(script: Script, argv: Sequence[str]) -> ScriptFlags:
    """Return a command line's values.

    Raises:
        BadArguments: A flag is unknown, lacks its value or is missing.
        SystemExit: Help was asked for and printed.
    """
    parser = _Parser(prog=f"{script}.py", description="Flags of diffusers' script of that name (docs/adapting.md).")
    for flag in flags_of(script):
        if flag.kind == "switch":
            parser.add_argument(f"--{flag.name}", action="store_true", help=flag.help)
        else:
            shown = flag.help.replace("%", "%%") + ("" if flag.required else " (default: %(default)s)")
            parser.add_argument(
                f"--{flag.name}",
                type=_TYPES[flag.kind],
                default=flag.default_in(script),
                choices=flag.choices or None,
                required=flag.required,
                help=shown,
                metavar=None if flag.choices else _metavar(flag),
            )
    return ScriptFlags(script, vars(parser.parse_args(list(argv))))


def main(script: Script, argv: Sequence[str] | None = None) -> int:
    """Run a script.

    Returns:
        0 done, 2 something the user can mend, 130 or 143 after a signal (the state is saved).
    """
    try:
        return run(parse(script, sys.argv[1:] if argv is None else argv))
    except VegaError as error:
        print(f"error: {in_flags(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(flags: ScriptFlags, machine: Machine | None = None) -> int:
    """Do what a command line says: check, train, write the result, upload it.

    Raises:
        VegaError: A flag cannot be honoured, or a run ended early (its state is saved).
    """
    if flags["cache_dir"]:
        os.environ["HF_DATASETS_CACHE"] = flags["cache_dir"]
    from vega_diffusion.training.diffusers_job import translate
    from vega_diffusion.training.diffusers_machine import Machine
    from vega_diffusion.training.diffusers_result import continued
    from vega_diffusion.training.run_directory import RunDirectory

    speaks = os.environ.get("RANK", "0") == "0"
    job = translate(flags, machine or Machine.here(flags))
    directory = RunDirectory.at(job.output_dir, job.logging_dir)
    if not speaks:
        return _train(job, continued(job, directory), directory, False)
    for note in job.notes:
        _say(note)
    return _lead(job, directory)


def in_flags(message: str) -> str:
    """Return a recipe's message in the words of the command line: flags for fields, an output folder for a run."""
    field, colon, rest = message.partition(": ")
    if colon and field in FLAG_OF_FIELD:
        message = f"{FLAG_OF_FIELD[field]}: {rest}"
    return message.replace("start another run with --run-name", "choose another --output_dir").replace(
        "use --run-name", "choose another --output_dir"
    )


def _lead(job: Job, directory: RunDirectory) -> int:
    """Do what one process does for all: folder, repository, result, upload."""
    from vega_diffusion.training import diffusers_result as result
    from vega_diffusion.training.hub import open_repository, upload
    from vega_diffusion.training.output_folder import check_free, claim

    check_free(directory, job.resume, result.result_names(job))
    recipe = result.continued(job, directory)
    repository = open_repository(job.hub_model_id, job.hub_token) if job.hub_model_id is not None else None
    claim(directory, job.resume, _say)
    if job.resume is None:
        result.write_recipe(job, recipe, directory)
    print(f"{job.summary()}; folder: {directory.path}")
    code = _train(job, recipe, directory, True)
    if code:
        return code
    result.write_recipe(job, recipe, directory)
    result.finish(job, recipe, directory, "auto", _say)
    print(f"result in {directory.path}: {', '.join(sorted(path.name for path in _tops(job, directory)))}")
    if repository is not None:
        address = upload(repository, result.result_files(job, directory), job.hub_token, f"Result of {job.script}.py")
        print(f"uploaded to {address}")
    return 0


def _train(job: Job, recipe: TrainRecipe, directory: RunDirectory, speaks: bool) -> int:
    import torch

    from vega_diffusion.training.guard import RunStopped
    from vega_diffusion.training.launch import end_with_launcher
    from vega_diffusion.training.run import run_recipe
    from vega_diffusion.training.samples import sample_maker

    end_with_launcher()
    torch.backends.cuda.matmul.allow_tf32 = job.tf32
    try:
        run_recipe(recipe, directory, warn=_say if speaks else _keep_quiet, sample_maker=sample_maker(recipe))
    except RunStopped as stopped:
        if speaks:
            print(f"{stopped}; go on with --resume_from_checkpoint latest", file=sys.stderr)
        return stopped.exit_code
    return 0


def _tops(job: Job, directory: RunDirectory) -> list[Any]:
    from vega_diffusion.training.diffusers_result import result_names

    return [path for name in result_names(job) if (path := directory.path / name).exists()]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _keep_quiet(line: str) -> None:
    """Say nothing: one process speaks for all."""


def _truth(text: str) -> bool:
    """Read a truth value; argparse's own `bool` would take "False" for true."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def _metavar(flag: Flag) -> str:
    return {"text": "TEXT", "int": "N", "float": "X", "bool": "true|false"}[flag.kind]


_TYPES: dict[str, Any] = {"text": str, "int": int, "float": float, "bool": _truth}
