"""The frozen, typed config of one training run and of the search around it. No torch.

Every leaf is reachable by a dotted key (`quantizer.respawn.tau`), in files, in `search:` and in `--set`.
`vqtune.space_file` reads these from YAML and words the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of the config; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    family: Literal["machine_sound"] = "machine_sound"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Multiplies every channel count but the latent's."""
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    transform_head: Literal["pooled", "per_patch"] = "pooled"
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1


class Respawn(Section):
    source: Literal["none", "batch", "buffer"] = "batch"
    """Where new codes come from: the step's latents, or those of the last `every` steps; none = never respawn."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A code is dead below this fraction of uniform use N/K in a window of `every` steps."""
    count: NonNegative | None = None
    """A code is dead below this many uses in the window; none = tau decides."""
    every: Count = 20
    """Steps between two respawn events."""
    min_age: Annotated[int, Field(ge=0)] = 20
    """Steps for which a fresh code cannot be respawned again."""
    max_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Largest share of the codebook respawned in one event."""
    place: Literal["random", "distance", "split"] = "random"
    """On latents at random, on latents far from their codes, or next to the most used codes."""
    noise: NonNegative = 0.5
    """Of a split code, in units of the quantization error (root mean square)."""
    buffer_size: Count = 4096
    """Latents kept for source = buffer."""


class Entropy(Section):
    weight: NonNegative = 0.0
    """Weight of the term, in nats; 0 = not computed at all."""
    kind: Literal["deficit", "kl"] = "deficit"
    """ln K - H(use), which is KL(use || uniform); or KL(uniform || use), which grows without end for an unused code."""
    temperature: Positive = 1.0
    """Of the soft assignment, in units of the mean squared distance."""


class Growth(Section):
    start_codes: Annotated[int, Field(ge=2)] | None = None
    """Codes in use before the table grows to quantizer.codes; none = all from the start."""
    epoch: NonNegative = 5
    """Epochs after which it grows."""
    jitter: NonNegative = 0.1
    """Noise of the copied codes, in units of the quantization error (root mean square)."""


class Width(Section):
    start_dim: Count | None = None
    """Latent dimensions in use before all quantizer.dim are; none = all from the start."""
    epoch: NonNegative = 5
    """Epochs after which all are used."""


class Structure(Section):
    kind: Literal["single", "grouped", "residual", "hierarchical", "fsq"] = "single"
    """One codebook; a codebook for each slice of the dimensions; each for what the one before left over; one for the
    mean of a block of latents and one for the rest; or finite scalar quantization, which has no codebook."""
    books: Annotated[int, Field(ge=1, le=32)] = 4
    """Codebooks of `grouped` and `residual`; quantizer.codes is the size of each."""
    span: Count = 64
    """Latents in a block of `hierarchical`: 64 is a patch of 64 mels x 64 frames."""
    levels: tuple[Annotated[int, Field(ge=3, le=64)], ...] = (8, 5, 4)
    """Values per dimension of `fsq`; their product is its number of codes, quantizer.codes is not used."""


class Quantizer(Section):
    codes: Annotated[int, Field(ge=2)] = 128
    dim: Count = 64
    beta: NonNegative = 0.25
    """Commitment cost: pulls the encoder towards its codes."""
    update: Literal["ema", "gradient", "simvq"] = "ema"
    """Moving averages; the optimiser; or SimVQ: a frozen table times a linear map that the optimiser learns."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    accumulate: Count = 1
    """Steps whose statistics make one EMA update."""
    lookup: Literal["euclidean", "cosine"] = "euclidean"
    """cosine puts latents and codes on a sphere, at a root mean square of 1."""
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    """How the decoder's gradient passes to the encoder."""
    anchors: Literal["none", "random", "closest"] = "none"
    """CVQ-VAE: pulls little used codes towards latents in every step."""
    init: Literal["normal", "uniform", "sample", "kmeans"] = "kmeans"
    init_scale: Positive = 1.0
    """Multiplies the first codebook: 1 unless a mismatch is planted on purpose."""
    stratify: bool = False
    """sample and kmeans draw evenly from the machine IDs."""
    bound: NonNegative = 5.0
    """Encoder outputs are bound * tanh(.), codes are clamped to it; 0 = unbounded."""
    respawn: Respawn = Respawn()
    entropy: Entropy = Entropy()
    growth: Growth = Growth()
    width: Width = Width()
    structure: Structure = Structure()

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind, books = self.structure.kind, self.structure.books
        if kind == "grouped" and self.dim % books:
            raise ValueError(f"quantizer.structure.books={books} must divide quantizer.dim={self.dim}")
        if self.lookup == "cosine" and kind in ("residual", "hierarchical"):
            raise ValueError(f"quantizer.lookup=cosine has no length left for quantizer.structure.kind={kind}")
        for key, part, whole in (
            ("growth.start_codes", self.growth.start_codes, self.codes),
            ("width.start_dim", self.width.start_dim, self.dim),
        ):
            if part is not None and part > whole:
                raise ValueError(f"quantizer.{key}={part} is more than the {whole} it grows to")
        if self.width.start_dim is not None and kind != "single":
            raise ValueError(f"quantizer.width.start_dim needs quantizer.structure.kind=single, not {kind}")
        return self


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
    """... after this many epochs; none = when both warm-ups are over, and one epoch for batch norm to settle."""
    commit_spike: Annotated[float, Field(gt=1)] = 5.0
    """Commitment over its running median that, with falling code use, means a collapse is under way."""
    ce_explosion: Annotated[float, Field(gt=1)] = 3.0
    """Validation cross-entropy over its best that, above ln(n_ids), ends the trial."""
    plateau: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better score that end a trial; 0 = never."""


class Objective(Section):
    recon: NonNegative = 1.0
    machine_id: NonNegative = 1.0
    perplexity: NonNegative = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recon + self.machine_id + self.perplexity == 0:
            raise ValueError("objective: recon, machine_id and perplexity are all 0; give one of them a weight")
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


class Resources(Section):
    cpus_per_trial: Positive = 1.0
    gpus_per_trial: NonNegative | None = None
    """none = 1 where the machine has a GPU, else 0."""
    engine: Literal["auto", "shared", "process"] = "auto"


class Config(Section):
    """All of it. `Config.from_flat` builds one from dotted keys, `flat()` goes back."""

    data: Data = Data()
    model: Model = Model()
    quantizer: Quantizer = Quantizer()
    loss: Loss = Loss()
    train: Train = Train()
    schedule: Schedule = Schedule()
    health: Health = Health()
    objective: Objective = Objective()
    tune: Tune = Tune()
    resources: Resources = Resources()

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
