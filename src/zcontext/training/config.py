"""What a training run is told: one frozen tree of settings, read from TOML.

What it does not know: how any of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from zcontext.config import CodecConfig, check, from_table, read_toml
from zcontext.errors import ConfigError
from zcontext.training.autoregress import AutoregressConfig
from zcontext.training.focusing import FocusConfig
from zcontext.training.listening import ChannelConfig
from zcontext.training.objective import AutoencodeConfig
from zcontext.training.reading import ReadConfig
from zcontext.training.restoring import RestoreConfig

StageName = Literal["autoencode", "restore", "channel", "read", "autoregress", "focus"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The run itself.

    Attributes:
        stage: "autoencode", "restore", "channel", "read", "autoregress" or "focus".
        out: Folder of checkpoints and logs.
        bundle: Folder the trained bundle is written to.
        start: Bundle to start from; None starts from a fresh codec.
        steps: Optimiser steps.
        seed: Of everything drawn.
        log_every: Steps between log lines.
        evaluate_every: Steps between health evaluations.
        checkpoint_every: Steps between checkpoints.
        minutes: Stop (with a checkpoint) after so many minutes; 0 means never.

    Raises:
        ConfigError: A value is out of its range.
    """

    stage: StageName = "autoencode"
    out: str = "runs/autoencode"
    bundle: str = "bundles/trained"
    start: str | None = None
    steps: int = 2000
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    minutes: float = 0.0

    def __post_init__(self) -> None:
        names = get_args(StageName)
        check(self, "stage", self.stage in names, f"one of {', '.join(names)}")
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
            check(self, name, getattr(self, name) >= 1, "at least 1")


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """The base model that is trained on.

    Attributes:
        name: Hub id, folder or GGUF file; None means the default base.
        quantization: "nf4-dequantised" trains on the numbers of the 4-bit model that ships.
        dtype: "auto", "bf16" or "fp32".
        device: "auto" or a torch device.
    """

    name: str | None = None
    quantization: str = "nf4-dequantised"
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Windows drawn for the stages that learn from texts.

    Attributes:
        shards: Shard files or folders, as `zcontext prepare` writes them.
        dev: Text file for the health figures (JSON lines or text), never trained on.
        batch_tokens: Source tokens per micro-batch, about.
        min_window: Shortest window.
        max_window: Longest window.
        min_ratio: Lowest ratio drawn.
        max_ratio: Highest ratio drawn.
        full_depth_share: Share of batches at full depth; the rest draw a depth.
        depth_shares: Share of batches of each depth from 1 on, in place of `full_depth_share`.
        min_tokens_per_code: Lowest ratio over depth that is drawn, as far as `max_ratio` allows: a
            codec of names says all of a text below 1.2 or so, and nothing is left to be learned.
        memory_share: Share of batches with Z memory.
        max_prior: Windows that the memory is of, at most.
        ratio_ramp: Micro-batches over which the highest ratio rises from 4 to `max_ratio`.
        dev_windows: Windows of the health figures.
        dev_window: Their length in tokens.

    Raises:
        ConfigError: A value is out of its range.
    """

    shards: tuple[str, ...] = ()
    dev: str | None = None
    batch_tokens: int = 512
    min_window: int = 32
    max_window: int = 256
    min_ratio: float = 2.0
    max_ratio: float = 18.0
    full_depth_share: float = 0.5
    depth_shares: tuple[float, ...] = ()
    min_tokens_per_code: float = 0.0
    memory_share: float = 0.0
    max_prior: int = 1
    ratio_ramp: int = 0
    dev_windows: int = 16
    dev_window: int = 96

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "min_window", "dev_windows", "dev_window"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        fits = self.max_window >= self.min_window
        check(self, "max_window", fits, f"min_window={self.min_window} or more")
        check(self, "min_ratio", self.min_ratio >= 1, "at least 1 token per symbol")
        fits = self.max_ratio >= self.min_ratio
        check(self, "max_ratio", fits, f"min_ratio={self.min_ratio:g} or more")
        for name in ("full_depth_share", "memory_share"):
            check(self, name, 0 <= getattr(self, name) <= 1, "a share in 0 to 1")
        shares = self.depth_shares
        fits = not shares or (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6)
        check(self, "depth_shares", fits, "shares that add up to 1, one for each depth from 1 on")
        check(self, "min_tokens_per_code", self.min_tokens_per_code >= 0, "0 or more")
        check(self, "max_prior", self.max_prior >= 1, "at least 1 window")
        check(self, "ratio_ramp", self.ratio_ramp >= 0, "0 or more micro-batches")


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: Of the adapters.
        codebook_scale: Learning rate of projections, slot and the head of FOCUS over that of the
            adapters.
        latent_scale: Learning rate of the projection onto latents over that of the adapters. It is
            scaled down in the forward pass; at 2 the writer's share of a latent's variance was 1 %
            after 700 steps.
        rows_scale: Learning rate of the codes' rows over that of the adapters. A row is chosen in
            one step of ten and Adam moves it in all, so it needs a small one.
        warmup_steps: Linear warm-up.
        decay_share: Share of the run, at its end, over which the rate falls linearly.
        final_share: Rate at the end over the peak.
        accumulate: Micro-batches per step.
        clip: Largest gradient norm.
        weight_decay: Of the adapters.
        mixed_precision: "no" or "bf16" (autocast).

    Raises:
        ConfigError: A value is out of its range.
    """

    learning_rate: float = 1e-3
    codebook_scale: float = 2.0
    latent_scale: float = 6.0
    rows_scale: float = 0.3
    warmup_steps: int = 50
    decay_share: float = 0.4
    final_share: float = 0.02
    accumulate: int = 1
    clip: float = 1.0
    weight_decay: float = 0.0
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip"):
            check(self, name, getattr(self, name) > 0, "above 0")
        for name in ("codebook_scale", "latent_scale", "rows_scale", "weight_decay"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more steps")
        for name in ("decay_share", "final_share"):
            check(self, name, 0 <= getattr(self, name) <= 1, "a share in 0 to 1")
        check(self, "accumulate", self.accumulate >= 1, "at least 1")
        check(self, "mixed_precision", self.mixed_precision in ("no", "bf16"), "'no' or 'bf16'")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything a run is told.

    Attributes:
        run: The run.
        base: The base model.
        codec: Shape of the codec (ignored when the run starts from a bundle).
        data: Windows.
        optimiser: AdamW.
        autoencode: Objective of the autoencode stage.
        restore: Objective of the restore stage.
        channel: Objective of the channel stage.
        read: Objective of the read stage.
        autoregress: Objective of the autoregress stage.
        focus: Objective of the focus stage.
    """

    run: RunConfig = field(default_factory=RunConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    autoencode: AutoencodeConfig = field(default_factory=AutoencodeConfig)
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    autoregress: AutoregressConfig = field(default_factory=AutoregressConfig)
    focus: FocusConfig = field(default_factory=FocusConfig)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """Read a TOML file with one table per attribute.

        Args:
            path: The file.
            **overrides: `table__name=value` pairs that win over the file.

        Returns:
            The checked settings.

        Raises:
            ConfigError: A table or a setting is unknown or out of range.
        """
        tables = read_toml(path)
        for name, value in overrides.items():
            table, _, key = name.partition("__")
            tables.setdefault(table, {})[key] = value
        kinds = {f.name: f.default_factory for f in fields(cls)}
        for name in tables:
            if name not in kinds:
                raise ConfigError(
                    f"{path} has an unknown table [{name}]; known: {', '.join(kinds)}",
                    field=name,
                    value=tables[name],
                )
        return cls(**{n: from_table(kinds[n], t) for n, t in tables.items()})  # type: ignore[arg-type]
