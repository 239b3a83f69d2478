"""The loop: steps, schedule, checkpoints, health, logs; through accelerate.

A step depends on (seed, step) and the parameters alone, and a checkpoint holds parameters,
optimiser moments and code usage; so a resumed run gives what an uninterrupted one would have given.
What this module does not know: what a stage learns (see `stages.py`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zcontext.errors import DivergedError, TrainingError
from zcontext.model import ZLanguageModel
from zcontext.training.config import OptimiserConfig, RunConfig
from zcontext.training.objective import StepOutput

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


class Stage(Protocol):
    """What is learned: parameters, batches, a loss, and what happens between steps."""

    module: nn.Module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by name; `codebook/...` has learning rates of its own."""
        ...

    def buffers(self) -> dict[str, Tensor]:
        """State that is not learned by gradient but belongs in a checkpoint."""
        ...

    def batch(self, index: int) -> Any:
        """The micro-batch of an index."""
        ...

    def before_step(self, step: int) -> None:
        """Called before a step's forward passes."""
        ...

    def after_step(self, step: int, output: StepOutput) -> None:
        """Called after the optimiser has stepped."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Health figures on data never trained on."""
        ...

    def finish(self) -> None:
        """Called once, before the bundle is written."""
        ...


def learning_rate_factor(step: int, *, steps: int, config: OptimiserConfig) -> float:
    """Warm-up, plateau, linear decay.

    Args:
        step: From 0.
        steps: Length of the run.
        config: Schedule.

    Returns:
        Factor on the learning rate, in (0, 1].
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    start = steps * (1.0 - config.decay_share)
    if step < start or config.decay_share == 0:
        return warm
    done = (step - start) / max(1.0, steps - start)
    return warm * (1.0 - (1.0 - config.final_share) * min(1.0, done))


def _open_board(folder: Path) -> Any:
    """A tensorboard writer; None without that extra (the JSON lines say the same)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


class Trainer:
    """Runs a stage from wherever it stands to its end.

    Args:
        model: The model that learns.
        stage: What it learns.
        run: The run.
        optimiser: AdamW and its schedule.
        on_log: Called with every line of figures (console output is the caller's).

    Raises:
        TrainingError: The stage has no parameters.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        stage: Stage,
        *,
        run: RunConfig,
        optimiser: OptimiserConfig,
        on_log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.model, self.stage, self.run_config, self.config = model, stage, run, optimiser
        self.out = Path(run.out)
        self._on_log = on_log
        self.parameters = stage.parameters()
        if not self.parameters:
            raise TrainingError(f"the stage {run.stage!r} has nothing to learn")
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.accelerator = Accelerator(
            mixed_precision=optimiser.mixed_precision,
            cpu=model.device.type == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        groups = [
            {"params": params, "scale": scale, "weight_decay": decay}
            for params, scale, decay in self._parameter_groups()
        ]
        adam = torch.optim.AdamW(groups, lr=optimiser.learning_rate, betas=(0.9, 0.98))
        self.module, self.optimiser = self.accelerator.prepare(stage.module, adam)
        self.step = 0
        self._board: Any = None
        self._wants_board = True

    def _parameter_groups(self) -> list[tuple[list[nn.Parameter], float, float]]:
        """Parameters, factor on the learning rate and weight decay of each non-empty group."""
        config = self.config
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            if not name.startswith(("codebook/", "focus_head/")):
                key = (1.0, config.weight_decay)
            else:
                rows = name in ("codebook/rows", "codebook/offset")
                writes = name.startswith("codebook/to_latent")
                scale = config.latent_scale if writes else config.codebook_scale
                key = (config.rows_scale if rows else scale, 0.0)
            groups.setdefault(key, []).append(parameter)
        return [(params, *key) for key, params in groups.items()]

    # -- the loop ---------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Run to the last step, or until the minutes are over.

        Returns:
            The last health figures.

        Raises:
            DivergedError: A loss was not finite.
            TrainingError: The checkpoint found does not belong to this run.
        """
        self.resume()
        started, health = time.monotonic(), {}
        config = self.run_config
        while self.step < config.steps:
            seconds = time.monotonic()
            output = self._one_step()
            self.step += 1
            last = self.step == config.steps
            overtime = self._is_over(started)
            if self.step % config.log_every == 0 or last:
                self._log(output, seconds=time.monotonic() - seconds)
            if self.step % config.evaluate_every == 0 or last or overtime:
                health = self.evaluate()
            if self.step % config.checkpoint_every == 0 or last or overtime:
                self.save_checkpoint()
            if overtime:
                break
        if self._board is not None:
            self._board.close()
            self._board = None
        return health

    def _is_over(self, started: float) -> bool:
        """Whether the minutes are over, by the clock of the first process."""
        minutes = self.run_config.minutes
        if minutes <= 0:
            return False
        over = torch.tensor([time.monotonic() - started > 60 * minutes], dtype=torch.float32)
        over = broadcast(over.to(self.accelerator.device))
        return bool(over.item())

    def _one_step(self) -> StepOutput:
        step, config = self.step, self.config
        self.stage.before_step(step)
        factor = learning_rate_factor(step, steps=self.run_config.steps, config=config)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * group["scale"] * factor
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        output: StepOutput | None = None
        for micro in range(config.accumulate):
            index = (step * config.accumulate + micro) * world + rank
            generator = torch.Generator().manual_seed(self.run_config.seed * 1_000_003 + index)
            output = self.module(self.stage.batch(index), step, generator)
            loss = float(output.loss.detach())
            if not math.isfinite(loss):
                raise self._diverged(loss)
            self.accelerator.backward(output.loss / config.accumulate)
        assert output is not None
        self.accelerator.clip_grad_norm_(list(self.parameters.values()), config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.stage.after_step(step, output)
        return output

    def _diverged(self, loss: float) -> DivergedError:
        kept = self.out / CHECKPOINT
        found = kept.is_file()
        again = "it resumes from the last checkpoint" if found else "it starts over"
        return DivergedError(
            f"the loss is {loss:g} at step {self.step}; lower the learning rate or raise "
            f"warmup_steps, and run again: {again}",
            step=self.step,
            last_checkpoint=str(kept) if found else None,
        )

    def evaluate(self) -> dict[str, float]:
        """Health figures, logged.

        Returns:
            Name to number.
        """
        figures = self.stage.evaluate() if self.accelerator.is_main_process else {}
        self.accelerator.wait_for_everyone()
        if figures:
            self._write({"step": self.step, **{f"dev/{n}": v for n, v in figures.items()}})
        return figures

    # -- logs -------------------------------------------------------------------------------------

    def _log(self, output: StepOutput, *, seconds: float) -> None:
        figures = {n: float(v) for n, v in output.metrics.items()}
        self._write(
            {
                "step": self.step,
                "loss": float(output.loss.detach()),
                "seconds": seconds,
                "learning_rate": self.optimiser.param_groups[0]["lr"],
                **figures,
            }
        )

    def _write(self, line: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({n: round(v, 6) for n, v in line.items()}) + "\n")
        if self._board is None and self._wants_board:
            self._board = _open_board(self.out / "tensorboard")
            self._wants_board = self._board is not None
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, int(line["step"]))
            self._board.flush()
        if self._on_log is not None:
            self._on_log(line)

    # -- checkpoints ------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        return json.dumps([self.run_config.stage, self.run_config.seed, self.model.base.sha256])

    def save_checkpoint(self) -> None:
        """Write parameters, moments and usage under a temporary name, then rename."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"parameter/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"buffer/{n}": b.detach() for n, b in self.stage.buffers().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value.detach()
        self.out.mkdir(parents=True, exist_ok=True)
        scratch = self.out / f".{CHECKPOINT}.tmp"
        tensors = {n: t.cpu().contiguous().clone() for n, t in tensors.items()}
        save_file(tensors, scratch, {"step": str(self.step), "run": self._fingerprint()})
        os.replace(scratch, self.out / CHECKPOINT)

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, if there is one.

        Raises:
            TrainingError: It belongs to another run, or cannot be read.
        """
        path = self.out / CHECKPOINT
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                if facts.get("run") != self._fingerprint():
                    raise TrainingError(
                        f"{path} belongs to another run ({facts.get('run')}); give this one "
                        "another `out` folder, or delete it"
                    )
                with torch.no_grad():
                    for name, parameter in self.parameters.items():
                        parameter.copy_(file.get_tensor(f"parameter/{name}"))
                    for name, buffer in self.stage.buffers().items():
                        buffer.copy_(file.get_tensor(f"buffer/{name}"))
                self._restore_moments(file)
                self.step = int(facts["step"])
        except (SafetensorError, RuntimeError) as error:  # other names, or other shapes
            raise TrainingError(
                f"{path} does not fit this run: {error}; run with the settings it was made with, "
                "or delete it to start over"
            ) from error
        logger.info("resumed at step %d from %s", self.step, path)

    def _restore_moments(self, file: Any) -> None:
        names = set(file.keys())
        for name, parameter in self.parameters.items():
            state = {
                key: file.get_tensor(f"adam/{key}/{name}")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam/{key}/{name}" in names
            }
            if state:
                moved = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
                self.optimiser.state[parameter] = moved
