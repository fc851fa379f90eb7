"""`python -m vega_diffusion.benchmarks CASE [options]`: runs one case, writes its result file, prints it as JSON.

What lives here: the table of cases and the one road from a case to its file. What does not: any case.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

from vega_diffusion.errors import VegaError

# case -> module with `measure(**options) -> Measurement`; its parameters are the command's options
CASES: dict[str, str] = {
    "cli-help": "vega_diffusion.benchmarks.cli_help",
    "package": "vega_diffusion.benchmarks.package",
    "parameters": "vega_diffusion.benchmarks.parameters",
    "packing": "vega_diffusion.benchmarks.packing",
    "speed": "vega_diffusion.benchmarks.speed",
    "certify": "vega_diffusion.benchmarks.certify",
    "generate": "vega_diffusion.benchmarks.generate",
    "autoencoder": "vega_diffusion.benchmarks.autoencoder",
    "full-shape": "vega_diffusion.benchmarks.full_shape",
    "blind-naming": "vega_diffusion.benchmarks.blind_naming",
    "blind-judging": "vega_diffusion.benchmarks.blind_judging",
    "checker": "vega_diffusion.benchmarks.checker",
    "reconstructions": "vega_diffusion.benchmarks.reconstructions",
    "prompt-following": "vega_diffusion.benchmarks.prompt_following",
    "comparison": "vega_diffusion.benchmarks.comparison",
    "text-binding": "vega_diffusion.benchmarks.text_binding",
    "distillation-matrix": "vega_diffusion.benchmarks.distillation_matrix",
    "distillation-seeds": "vega_diffusion.benchmarks.distillation_seeds",
    "distillation-step": "vega_diffusion.benchmarks.distillation_step",
    "full-size-step": "vega_diffusion.benchmarks.full_size_step",
    "adaptation": "vega_diffusion.benchmarks.adaptation",
    "training-step": "vega_diffusion.benchmarks.training_step",
    "training": "vega_diffusion.benchmarks.training_step",  # the short name, beside `speed` and `parameters`
    "adapting-speed": "vega_diffusion.benchmarks.adapting_speed",
    "full-size-adapting": "vega_diffusion.benchmarks.full_size_adapting",
    "vae": "vega_diffusion.benchmarks.vae",
}


def main(argv: list[str] | None = None, called: str = "python -m vega_diffusion.benchmarks") -> int:
    """Run one case.

    Options of every case: `--output FOLDER` (default `benchmarks/results`).

    Returns:
        0 measured (whether or not the goals are met), 2 something the user can mend.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {called} CASE [options]\n\ncases: " + ", ".join(CASES))
        return 0 if arguments else 2
    case, rest = arguments[0], arguments[1:]
    if case not in CASES:
        print(f"error: case: {case!r} is not allowed; allowed: {', '.join(CASES)}", file=sys.stderr)
        return 2
    try:
        return run_case(case, rest)
    except VegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run_case(case: str, arguments: list[str]) -> int:
    """Parse a case's options, measure, write the file, print where it is (stderr) and what it holds (stdout)."""
    import torch
    import tyro

    from vega_diffusion.benchmarks.report import RESULTS, Code, make_result, write_result

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=RESULTS)
    own, arguments = parser.parse_known_args(arguments)
    measure = import_module(CASES[case]).measure
    load, code = os.getloadavg()[0], Code.here()
    measurement = tyro.cli(measure, args=arguments, prog=f"vega_diffusion.benchmarks {case}")
    command = shlex.join(["python", "-m", "vega_diffusion.benchmarks", case, *arguments])
    result = make_result(case, command, measurement, threads=torch.get_num_threads(), load_before=load, code=code)
    path = write_result(result, own.output)
    for bar in measurement.bars:
        print(
            f"{bar.what}: {bar.measured:g} {bar.unit}, goal {bar.limit:g}: {'met' if bar.met else 'missed'}",
            file=sys.stderr,
        )
    print(f"written: {path}", file=sys.stderr)
    print(json.dumps(result.model_dump()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
