"""The frozen, typed config of one training run and of the search around it. No torch.

Every leaf is reachable by a dotted key (`quantizer.respawn.tau`), in files, in `search:` and in `--set`.
`vqtune.space_file` reads these from YAML and words the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from vqtune.constraints import parse_constraint
from vqtune.sections import Assignment, Count, NonNegative, Positive, Quantizer, Section, Share

__all__ = ["Assignment", "Config", "Quantizer", "known_keys"]


class Data(Section):
    root: Path | None = None
    """Folder with audio, or a CSV manifest; none = the embedded synthetic machines."""
    layout: Literal["auto", "dcase2020", "dcase2022", "mimii", "csv"] = "auto"
    machine_type: str | None = None
    """One machine type of the tree; none = all types, each (type, id) a class of its own."""
    sample_rate: Annotated[int, Field(ge=1000)] = 16000
    """Hz; other rates are resampled."""
    n_mels: Annotated[int, Field(ge=8)] = 64
    n_fft: Annotated[int, Field(ge=64)] = 1024
    hop_length: Count = 512
    patch_frames: Annotated[int, Field(ge=8)] = 64
    patch_stride: Count = 16
    patches: Count = 16
    """Patches of one clip in one sample."""
    pyramid: tuple[Annotated[int, Field(ge=1, le=64)], ...] = (1, 2, 4)
    """model.family=features: parts into which each level of a sequence's temporal pyramid cuts it."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    subset_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training clips that is used at all, stratified by machine ID."""
    seed: int = 0
    """Decides validation split and subset; apart from train.seed, so that re-seeded runs stay comparable."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("n_mels", "patch_frames"):
            if getattr(self, key) % 8:
                raise ValueError(
                    f"data.{key}={getattr(self, key)} must be a multiple of 8 (the encoder halves it three times)"
                )
        return self


class Model(Section):
    family: Literal["machine_sound", "features"] = "machine_sound"
    """Log-mel patches; or named families of features, from a table or computed from the sounds."""
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Multiplies every channel count but the latent's."""
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    transform_head: Literal["pooled", "per_patch"] = "pooled"
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    sequences: Literal["pyramid", "conv", "hybrid"] = "pyramid"
    """features: a sequence enters as its temporal pyramid, as learned features, or as both."""
    sequence_features: Count = 8
    """features: learned features of each family of sequences."""


class Loss(Section):
    recon: NonNegative = 1.0
    vq: NonNegative = 1.0
    machine_id: NonNegative = 0.5
    transform: NonNegative = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Train(Section):
    epochs: Count = 50
    batch_size: Count = 32
    """Clips a step."""
    balanced: bool = False
    """Draw machine IDs evenly instead of as they come."""
    lr: Positive = 1e-3
    codebook_lr_scale: Positive = 1.0
    head_lr_scale: Positive = 1.0
    weight_decay: NonNegative = 0.01
    head_weight_decay: NonNegative = 0.01
    grad_clip: Positive = 1.0
    lr_warmup_epochs: NonNegative = 3
    vq_warmup_epochs: NonNegative = 5
    phases: tuple[Share, Share, Share] = (0.2, 0.6, 0.2)
    """Shares of the epochs: VQ only, everything, codebook frozen."""
    beta_start: NonNegative | None = None
    """Commitment cost of the first step, moving linearly to quantizer.beta; none = constant."""
    beta_epochs: NonNegative | None = None
    """Epochs that it takes for that; none = the VQ-only phase."""
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = bfloat16 on a GPU that has it, float32 elsewhere."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.phases) - 1) > 1e-6:
            raise ValueError(f"train.phases={list(self.phases)} must add up to 1")
        return self


class Window(Section):
    """The epochs in which a lever acts."""

    start: Annotated[int, Field(ge=0)] = 0
    """First epoch, counted from 0."""
    end: Count | None = None
    """Epoch in which it acts no more; none = to the end."""


class Schedule(Section):
    """When single levers act, on top of phases and warm-ups."""

    entropy: Window = Window()
    respawn: Window = Window()
    machine_id: Window = Window()
    transform: Window = Window()


class Health(Section):
    collapse_floor: Share = 0.05
    """A trial has collapsed when perplexity stays below this share of the way from 1 to K ..."""
    patience: Count = 2
    """... for this many evaluations in a row ..."""
    grace: Annotated[int, Field(ge=0)] | None = None
    """... after this many epochs; none = when both warm-ups are over and batch norm has settled."""
    commit_spike: Annotated[float, Field(gt=1)] = 5.0
    """Commitment over its running median that, with falling code use, means a collapse is under way."""
    ce_explosion: Annotated[float, Field(gt=1)] = 3.0
    """Validation cross-entropy over its best that, above ln(n_ids), ends the trial."""
    category_floor: Annotated[float, Field(ge=1)] = 1.5
    """An assignment has collapsed when features are spread over fewer categories (effective number) for `patience`."""
    plateau: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better score that end a trial; 0 = never."""


def _as_tuple(value: Any) -> Any:
    """One value may stand for a list of one."""
    return (value,) if isinstance(value, str) else value


class Objective(Section):
    mode: Literal["score", "pareto"] = "score"
    """Search for the lowest score, or for all of recon, perplexity and machine-ID cross-entropy at once."""
    constraints: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Such as "perplexity >= 0.5*K", at a trial's best epoch: those that meet all of them rank before the others."""
    recon: NonNegative = 1.0
    machine_id: NonNegative = 1.0
    perplexity: NonNegative = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recon + self.machine_id + self.perplexity == 0:
            raise ValueError("objective: recon, machine_id and perplexity are all 0; give one of them a weight")
        for text in self.constraints:
            try:
                parse_constraint(text)
            except ValueError as error:
                raise ValueError(f"objective.constraints: {text!r} {error}") from None
        return self


class Tune(Section):
    trials: Count = 16
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    grace: Count | None = None
    """Epochs before ASHA may stop a trial; none = LR warm-up, VQ warm-up and the VQ-only phase, and one more."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    max_concurrent: Count | None = None
    """Trials at once; none = what the machine holds."""
    tracking: Annotated[tuple[Literal["mlflow", "tensorboard", "wandb"], ...], BeforeValidator(_as_tuple)] = ()
    """Other tools that are told of every epoch, each an extra of the same name; `tracking: mlflow` for short."""


class Resources(Section):
    cpus_per_trial: Positive = 1.0
    gpus_per_trial: NonNegative | None = None
    """none = 1 where the machine has a GPU, else 0."""
    engine: Literal["auto", "shared", "process"] = "auto"
    """A process for each trial, or (shared) many trials of a GPU in a few. auto = shared where there is a GPU, unless
    gpus_per_trial is set."""
    epoch_minutes: Positive | None = None
    """An epoch that takes longer hangs: its process is ended and the trial goes on, the third time it is given up.
    none = 20 times the longest epoch of the study so far, but at least 10 minutes."""


class Config(Section):
    """All of it. `Config.from_flat` builds one from dotted keys, `flat()` goes back."""

    data: Data = Data()
    model: Model = Model()
    quantizer: Quantizer = Quantizer()
    assignment: Assignment = Assignment()
    loss: Loss = Loss()
    train: Train = Train()
    schedule: Schedule = Schedule()
    health: Health = Health()
    objective: Objective = Objective()
    tune: Tune = Tune()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check(self) -> Self:
        a, q = self.assignment, self.quantizer
        if a.mode == "none":
            return self
        own = q.dim // a.categories
        if q.dim % a.categories:
            raise ValueError(f"assignment.categories={a.categories} must divide quantizer.dim={q.dim}")
        if q.structure.kind == "grouped" and own % q.structure.books:
            raise ValueError(
                f"quantizer.structure.books={q.structure.books} must divide the {own} dimensions of a category"
            )
        if q.width.start_dim is not None and q.width.start_dim > own:
            raise ValueError(f"quantizer.width.start_dim={q.width.start_dim} is more than the {own} of a category")
        return self

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Self:
        """A config from dotted keys; raises pydantic's ValidationError."""
        nested: dict[str, Any] = {}
        for key, value in values.items():
            *parents, leaf = key.split(".")
            node = nested
            for name in parents:
                node = node.setdefault(name, {})
            node[leaf] = value
        return cls.model_validate(nested)

    def flat(self) -> dict[str, Any]:
        """Every leaf by its dotted key, as plain JSON/YAML values."""
        return dict(_leaves(self.model_dump(mode="json")))

    def replace(self, values: dict[str, Any]) -> Self:
        """A validated copy with some dotted keys changed."""
        return self.from_flat(self.flat() | values)


def _leaves(node: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            out += _leaves(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out


def known_keys() -> frozenset[str]:
    """Every dotted key that a space may set or search."""
    return frozenset(Config().flat())
