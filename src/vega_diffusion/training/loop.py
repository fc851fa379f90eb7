"""The one training loop. It knows no objective, no model, no data set and no file format of a model.

A step: load the samples at the step's positions, add up the gradients of its micro-batches, clip, move the weights,
move the averages; once in a while log, save, and call the sample function. accelerate supplies device, precision and
data parallelism; there is no second path for any of them.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from vega_diffusion.data.batches import Batch, BatchSource
from vega_diffusion.data.order import ShuffledOrder
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.memory import is_out_of_memory
from vega_diffusion.objectives.protocol import Objective
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.attention import attention_kernel
from vega_diffusion.training.compiled import check_compiled
from vega_diffusion.training.ema import Ema
from vega_diffusion.training.guard import FiniteGuard, NotFinite, RunStopped, StopSignals
from vega_diffusion.training.memory import free_memory, peak_gib, smaller_micro_batch
from vega_diffusion.training.metrics import Averages, MetricsLog
from vega_diffusion.training.optimizer import begin_step, build_optimizer, check_optimizer, lr_factor
from vega_diffusion.training.prefetch import Prefetch
from vega_diffusion.training.process_group import keep_group
from vega_diffusion.training.replay import open_replay
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.same_run import check_same_run
from vega_diffusion.training.sharding import check_sharding, shard, split_like, whole, without_reduction
from vega_diffusion.training.state import (
    RunState,
    load_newest_state,
    load_optimizer_tensors,
    optimizer_tensors,
    save_state,
)
from vega_diffusion.training.student import Student
from vega_diffusion.training.trackers import open_tracker

SampleFunction = Callable[[int, Student], dict[str, float]]
"""Called with the step and the student, which holds the averaged weights meanwhile; returns numbers for the log."""

PublishFunction = Callable[[Student, int], None]
"""Called after every saved state with the student, which holds the averaged weights meanwhile, and the step."""


def print_to_stderr(line: str) -> None:
    """Print a line without breaking the progress bar."""
    tqdm.write(line, file=sys.stderr)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: optimizer steps done in all, seconds of this process, the last logged numbers."""

    step: int
    seconds: float
    metrics: dict[str, float]


class LossModule(nn.Module):
    """Student and objective as one module whose forward pass is the loss, so that one wrapper (autocast, DDP) fits."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self._objective = (objective,)  # in a tuple: frozen helpers inside must not become parameters of ours

    def forward(self, batch: Batch, rng: PositionRng) -> dict[str, Tensor]:
        """Return `total`, `per_sample` and the parts by name."""
        loss = self._objective[0](self.student, batch, rng)
        return {"total": loss.total, "per_sample": loss.per_sample} | loss.parts


def make_accelerator(recipe: TrainRecipe, device: str = "auto") -> Accelerator:
    """Return an accelerator for the recipe's precision on `auto`, `cpu` or an accelerator's name.

    Raises:
        InvalidValue: fp16 on a CPU, or a device that this machine does not have.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = device == "cpu" or (device == "auto" and found is None)
    if not cpu and device != "auto" and (found is None or found.type != device):
        here = f"auto, cpu{f' or {found.type}' if found else ''} here"
        raise InvalidValue("--device", device, here, "choose another")
    if cpu and recipe.mixed_precision == "fp16":
        raise InvalidValue("mixed_precision", "fp16", "no or bf16 on a CPU", "use --set mixed_precision=bf16")
    check_optimizer(recipe, torch.device("cpu") if cpu or found is None else found)
    AcceleratorState._reset_state()  # a process may run recipes of different precision one after the other
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=cpu)
    keep_group()
    return accelerator


class Trainer:
    """Runs a recipe from where its run directory stands to its last step.

    Args:
        recipe: The run.
        student: What learns.
        objective: The loss.
        source: The samples.
        directory: Where states and metrics go; must exist.
        accelerator: From `make_accelerator`.
        publish: Writes the averaged weights where others can read them; None does not.
        on_sample: Makes samples; None does not.
        inputs: Names and hashes of what else decides the run (frozen weights); a resumed run must have the same.
        init_from: Where the first weights came from; a resumed run must not name another place.
        notes: Optimizer step -> what to say, and to log, when it begins.
        order: Position of the run -> sample, where the run goes through a fixed number of them; None takes each once.
        sample_every: Steps between two calls of `on_sample`; the recipe's unless given.
        warn: Called with one line for what the user should know.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        student: Student,
        objective: Objective,
        source: BatchSource,
        directory: RunDirectory,
        accelerator: Accelerator,
        publish: PublishFunction | None = None,
        on_sample: SampleFunction | None = None,
        inputs: dict[str, str] | None = None,
        init_from: str | None = None,
        notes: Mapping[int, str] | None = None,
        order: ShuffledOrder | None = None,
        sample_every: int | None = None,
        warn: Callable[[str], None] = print_to_stderr,
    ) -> None:
        self.notes = dict(notes or {})
        self.sample_every = sample_every or recipe.sample_every
        self._micro_size = recipe.micro_batch_size  # smaller once memory has run out
        self._order = order
        self.recipe, self.source, self.directory, self.accelerator = recipe, source, directory, accelerator
        check_sharding(recipe, accelerator.num_processes)
        sharded = recipe.sharding == "full"
        # What is published from split weights: a whole student beside them, in the main process alone.
        self._mirror = copy.deepcopy(student) if sharded and accelerator.is_main_process else None
        self.student = student.to(accelerator.device)
        self.objective = objective
        objective.to(accelerator.device)
        self._ahead = Prefetch(source, accelerator.device)
        self.publish, self.on_sample, self.warn = publish, on_sample, warn
        self._replay = open_replay(recipe, accelerator, objective, student, warn)
        self.inputs, self.init_from = inputs or {}, init_from
        self.step, self.seconds_before = 0, 0.0
        student.set_trainable(0)
        self._module: nn.Module = LossModule(student, objective)
        if sharded:
            shard(self._module, accelerator.device, accelerator.num_processes)
        self.optimizer: Any = accelerator.prepare_optimizer(build_optimizer(recipe.optimizer, student, recipe.seed))
        self.ema = Ema(recipe.ema, student) if recipe.ema else None
        for name in recipe.compile:
            student.module_named(name, "compile").compile()
        self._guard, self._averages, self._stop = FiniteGuard(), Averages(), StopSignals()
        # On a CPU looking at a number costs nothing, so bad samples are found before they touch the weights.
        self._check_every = 1 if accelerator.device.type == "cpu" else recipe.log_every
        self._module = self._wrapped()
        if accelerator.num_processes > 1 and accelerator.is_main_process:
            warn(f"{accelerator.num_processes} processes: {type(self._module).__name__}")
        self._phase = student.phase(0)
        ranks = accelerator.num_processes
        if recipe.batch_size % (recipe.micro_batch_size * ranks):
            raise InvalidValue(
                "batch_size", recipe.batch_size, f"a multiple of micro_batch_size times {ranks} processes", "change it"
            )

    def resume(self) -> bool:
        """Go to where the run's newest good state stands; False where there is none.

        Raises:
            VegaError: The state belongs to another recipe, other data or other frozen weights.
        """
        state = load_newest_state(self.directory.states, self.warn)
        if state is None:
            return False
        check_same_run(state, self.recipe, self.source.fingerprint(), self.inputs, self.init_from)
        own = self.student.own_state()
        if own.keys() != state.student.keys():
            raise ValueError("the saved weights belong to other parameters")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(split_like(tensor, state.student[name]))
        if self.ema is not None:
            self.ema.load_state_dict(state.ema)
        load_optimizer_tensors(self._torch_optimizer, dict(self.student.named_parameters()), state.optimizer)
        if self.accelerator.scaler is not None and state.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(state.extra["scaler"])
        self.step, self.seconds_before = state.step, state.extra["seconds"]
        self.init_from = state.extra["init_from"]
        planned, schedule = state.extra.get("steps", self.recipe.steps), self.recipe.lr_schedule
        if planned != self.recipe.steps and schedule.kind != "constant" and schedule.decay_steps is None:
            self.warn(f"steps: {planned} became {self.recipe.steps}, the learning rate changes course from here")
        return True

    def train(self) -> TrainResult:
        """Train to the recipe's last step.

        Raises:
            NotFinite: A loss or gradient is not finite.
            RunStopped: SIGTERM or SIGINT came; the state is saved.
        """
        main, recipe = self.accelerator.is_main_process, self.recipe
        if recipe.compile:
            check_compiled(recipe.compile, dict(self.student.named_parameters()), self._backward_once)
        started, logged_at, logged_step = time.monotonic(), time.monotonic(), self.step
        log = self._open_log() if main else None
        bar = tqdm(total=recipe.steps, initial=self.step, disable=not main, unit="step", dynamic_ncols=True)
        last: dict[str, float] = {}
        saved_step = self.step
        try:
            with self._stop.watched():
                self._make_up()
                while self.step < recipe.steps:
                    if main and self.step in self.notes:
                        self.warn(f"step {self.step}: {self.notes[self.step]}")
                    lr = self._one_step()
                    bar.update()
                    if self._due(recipe.log_every) or self.step == recipe.steps:
                        now = time.monotonic()
                        rate = (self.step - logged_step) * recipe.batch_size / (now - logged_at)
                        last = self._averages.take(self._over_ranks) | {"lr": lr, "samples_per_s": rate}
                        last["peak_gib"] = peak_gib(self.accelerator.device)
                        logged_at, logged_step = now, self.step
                        if log is not None:
                            log.write(self.step, last)
                        bar.set_postfix({"loss": f"{last['loss']:.4f}", "samples/s": f"{rate:.1f}"})
                    stopped = self._stopped()
                    if stopped or self._due(recipe.save_every):
                        self._save(self.seconds_before + time.monotonic() - started)
                        saved_step = self.step
                    if stopped:
                        raise RunStopped(stopped, self.step, str(self.directory.states))
                    if self.sample_every and self._due(self.sample_every):
                        self._sample(log)
                        logged_at = time.monotonic()
                        logged_step = self.step
                if saved_step != self.step:
                    self._save(self.seconds_before + time.monotonic() - started)
                if stopped := self._stopped():
                    raise RunStopped(stopped, self.step, str(self.directory.states))
        finally:
            bar.close()
            self._ahead.close()
            if log is not None:
                log.close()
        return TrainResult(self.step, time.monotonic() - started, last)

    def positions(self, step: int) -> range:
        """Return the global sample positions that this process takes at a step."""
        per_rank = self.recipe.batch_size // self.accelerator.num_processes
        start = step * self.recipe.batch_size + self.accelerator.process_index * per_rank
        return range(start, start + per_rank)

    def _one_step(self) -> float:
        """Do one optimizer step and return its learning rate."""
        recipe, step = self.recipe, self.step
        self._enter_phase(step)
        # Objectives draw from PositionRng; a stray draw of a library must not make a resumed run differ either.
        torch.manual_seed(derive_seed(recipe.seed, "step", step, self.accelerator.process_index))
        lr = recipe.optimizer.lr * lr_factor(recipe.lr_schedule, step, recipe.steps)
        begin_step(self._torch_optimizer, step, lr)
        while not self._gradients(step):
            self.optimizer.zero_grad()
            free_memory()  # not before: the error holds the step's tensors
        norm = self._clip()
        self._averages.add({"grad_norm": norm})
        if self.accelerator.scaler is None:
            self._guard.observe_norm(step, norm)
        if (step + 1) % self._check_every == 0 or self._due(recipe.save_every, step + 1):
            self._check_finite()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.student, step)
        self.step = step + 1
        return lr

    def _gradients(self, step: int) -> bool:
        """Add up a step's gradients; False where memory ran out, and less is to be taken at once."""
        positions, size = self.positions(step), self._micro_size
        parts = [positions[start : start + size] for start in range(0, len(positions), size)]
        found: list[tuple[dict[str, Tensor], float]] = []
        try:
            for part, then in zip(parts, [*parts[1:], None], strict=True):
                share = len(part) / len(positions)
                with self._no_sync() if then else nullcontext():
                    values = self._micro_step(step, part, share, then or self.positions(step + 1)[:size])
                found.append((values, share))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._micro_size = smaller_micro_batch(self.recipe, size, self.accelerator.num_processes, error)
            self.warn(
                f"step {step}: out of memory with {size} samples at once; going on with {self._micro_size} at once, "
                f"still {self.recipe.batch_size} a step"
            )
            return False
        for values, share in found:
            self._averages.add(values, weight=share)
        return True

    def _micro_step(self, step: int, positions: range, share: float, then: range) -> dict[str, Tensor]:
        """Add the gradient of some samples, a share of the step's; return their losses. `then` comes next."""
        batch, rng = self._drawn(positions, then)

        def differentiated(batch: Batch, rng: PositionRng) -> dict[str, Tensor]:
            values = self._losses(batch, rng)
            self._backward(values["total"] * share)
            return {name: value.detach() for name, value in values.items()}

        replay = self._replay if share == 1 else None  # parts of a step, once memory has run out, add to gradients
        values = replay(differentiated, batch, rng, self._phase) if replay else differentiated(batch, rng)
        total, per_sample = values.pop("total"), values.pop("per_sample")
        self._guard.observe(step, rng.positions, per_sample, values)
        return {"loss": total} | values

    def _backward_once(self) -> None:
        """Leave the gradients of this process's first micro-batch, without a trace in logs or weights."""
        positions = self.positions(self.step)[: self._micro_size]
        self._backward(self._losses(*self._drawn(positions))["total"])

    def _drawn(self, positions: range, then: range = range(0)) -> tuple[Batch, PositionRng]:
        """Return the samples at these positions of the run, and the randomness that goes with them."""
        device, drawn = self.accelerator.device, self._ordered(positions)
        seed = derive_seed(self.recipe.seed, "objective")
        return self._ahead.load(drawn, self._ordered(then)), PositionRng(seed, drawn, device, positions.start)

    def _ordered(self, positions: range) -> Sequence[int]:
        return positions if self._order is None else [self._order.index(position) for position in positions]

    def _losses(self, batch: Batch, rng: PositionRng) -> dict[str, Tensor]:
        with self._kernel(), self.accelerator.autocast():
            return self._module(batch, rng)

    def _backward(self, loss: Tensor) -> None:
        # Blocks that compute their forward pass again need the same kernels for it.
        with self._kernel():
            self.accelerator.backward(loss)

    def _kernel(self) -> AbstractContextManager[object]:
        return attention_kernel(self.accelerator.device, self.recipe.mixed_precision)

    def _clip(self) -> Tensor:
        limit = self.recipe.max_grad_norm
        # Not from the student: to walk its tree of modules takes longer than the norm of a mini U-Net's adapters.
        parameters = [p for group in self._torch_optimizer.param_groups for p in group["params"] if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        assert norm is not None
        return whole({"norm": norm})["norm"]

    def _check_finite(self) -> None:
        found = self._guard.bad()
        if self.accelerator.num_processes > 1:  # all ranks end together, and each can name the samples
            anywhere = torch.tensor([int(found is not None)], device=self.accelerator.device)
            everywhere: Any = self.accelerator.gather(anywhere)
            if int(everywhere.max()):
                found = next(one for one in gather_object([found]) if one is not None)
        if found is None:
            return
        step, positions, parts = found
        names = ", ".join(self.source.load(positions).sample_ids)
        what = f"loss ({', '.join(parts)})" if parts else "gradient"
        raise NotFinite(
            f"step {step}: {what} is not finite for samples {names}; "
            f"lower optimizer.lr or look at these samples, then run again: saved states are kept"
        )

    def _over_ranks(self, values: Tensor) -> Tensor:
        reduced = self.accelerator.reduce(values, "mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def _enter_phase(self, step: int) -> None:
        """Where a component has just been frozen, drop it from the gradients (and from DDP's bookkeeping)."""
        phase = self.student.phase(step)
        if phase != self._phase:
            self.student.set_trainable(step)
            self._module, self._phase = self._wrapped(), phase

    def _wrapped(self) -> nn.Module:
        if isinstance(self._module, FSDPModule):
            return self._module
        return self.accelerator.prepare_model(LossModule(self.student, self.objective))

    def _no_sync(self) -> AbstractContextManager[None]:
        if isinstance(self._module, FSDPModule):
            return without_reduction(self._module)
        return self.accelerator.no_sync(self._module)

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def _due(self, every: int, step: int | None = None) -> bool:
        return (self.step if step is None else step) % every == 0

    def _stopped(self) -> int:
        """Return the signal that any process received, 0 for none; processes agree on the step they stop at."""
        received = self._stop.received or 0
        if self.accelerator.num_processes == 1 or self.step % self._check_every:
            return received if self.accelerator.num_processes == 1 else 0
        numbers: Any = self.accelerator.gather(torch.tensor([received], device=self.accelerator.device))
        return int(numbers.max())

    def _save(self, seconds: float) -> None:
        accelerator = self.accelerator
        self._check_finite()  # where a step is not looked at at once, a state must not outrun the guard
        accelerator.wait_for_everyone()
        main = accelerator.is_main_process
        names = {id(parameter): name for name, parameter in self.student.named_parameters()}
        weights, averages = self._whole_weights()
        moments = whole(optimizer_tensors(self._torch_optimizer, names), main)
        if main:
            extra = {
                "identity": self.recipe.identity(),
                "source": self.source.fingerprint(),
                "inputs": self.inputs,
                "init_from": self.init_from,
                "steps": self.recipe.steps,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "seconds": seconds,
            }
            state = RunState(self.step, weights, averages, moments, extra)
            save_state(self.directory.states, state, self.recipe.keep)
        self._publish(weights, averages)

    def _whole_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return weights and averages, put together in the main process where processes hold parts of them."""
        main = self.accelerator.is_main_process
        averages = self.ema.state_dict() if self.ema is not None else {}
        return whole(self.student.own_state(), main), whole(averages, main)

    def _publish(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        if self.publish is not None and self.accelerator.is_main_process:
            with self._averaged({**weights, **averages}) as student:
                self.publish(student, self.step)
        self.accelerator.wait_for_everyone()

    def _make_up(self) -> None:
        """Publish the weights of the state that the run stands at, where it ended before that or they may be older."""
        missing = self.publish is not None and self.step > 0 and self.directory.published_step() != self.step
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if missing:
            self._publish(*self._whole_weights())

    def _sample(self, log: MetricsLog | None) -> None:
        if self.on_sample is None:
            return
        wanted = self.student.own_state() | (self.ema.state_dict() if self.ema is not None else {})
        weights = whole(wanted, log is not None) if self.recipe.sharding == "full" else {}
        if log is None:
            return
        # Weights in fp32 draw as `vega generate` does; others need autocast, as in training.
        precision = nullcontext() if self.recipe.model.dtype == "fp32" else self.accelerator.autocast()
        with self._averaged(weights) as student, torch.no_grad(), precision:
            student.to(self.accelerator.device).eval()
            numbers = self.on_sample(self.step, student)
        self.student.train()
        if self._mirror is not None:
            self._mirror.to("cpu")
        if numbers:
            log.write(self.step, numbers)
        for path in sorted(self.directory.samples.glob(f"step-{self.step:08d}*.png")):
            log.picture(self.step, path)

    def _open_log(self) -> MetricsLog:
        recipe = self.recipe
        tracker = open_tracker(recipe.tracker, self.directory, self.step, recipe.identity(), self.warn)
        return MetricsLog(self.directory.metrics, tracker, self.step)

    @contextmanager
    def _averaged(self, weights: Mapping[str, Tensor]) -> Iterator[Student]:
        """Give the student with averaged weights for a while: itself, or where it is split its mirror with these."""
        if self._mirror is not None:
            self._mirror.load_state_dict(dict(weights), strict=not self._mirror.by_adapters)
            yield self._mirror
        else:
            with self.ema.applied(self.student) if self.ema is not None else nullcontext():
                yield self.student
