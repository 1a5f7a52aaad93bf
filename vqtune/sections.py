"""The sections of a config that describe a model's codes: quantizer and assignment, and what all sections share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

MAX_LOGIT_GAP = 12.0
"""Largest first difference of two logits over the temperature: exp(-12) of a gradient is still above Adam's epsilon."""


class Section(BaseModel):
    """A frozen part of the config; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class Temperature(Section):
    """Of the assignment's softmax: from `start` in the first step to `end` in the last before it is frozen."""

    start: Positive = 1.0
    end: Positive = 0.1
    schedule: Literal["linear", "exponential", "cosine", "adaptive"] = "exponential"
    """adaptive is exponential until no feature has changed its category for `settle` epochs, then stays."""
    settle: Count = 3


class Assignment(Section):
    """Categories of input features (mel bins, columns), each with an encoder and a codebook of its own."""

    mode: Literal["none", "static", "learnable"] = "none"
    """No categories; fixed ones; or shares that are learned with the rest."""
    categories: Annotated[int, Field(ge=2, le=64)] = 4
    """quantizer.dim is divided among them."""
    init: Literal["clusters", "random", "bands"] = "clusters"
    """Ward clusters of 1 - |correlation|; chance; or neighbours together."""
    temperature: Temperature = Temperature()
    logit_scale: Positive = 0.5
    """First logits lie within +- this; with clusters and bands they are at its ends."""
    sample: Literal["soft", "hard"] = "soft"
    """hard = one category a feature in the forward pass, the soft share's gradient."""
    gumbel: NonNegative = 0.0
    """Scale of Gumbel noise on the logits, in training only."""
    orthogonality_weight: NonNegative = 0.1
    balance_weight: NonNegative = 0.05
    entropy_weight: NonNegative = 0.3
    """Rewards soft shares by weight * temperature * entropy: annealing, rather than chance, decides what hardens."""
    informativeness_weight: NonNegative = 1.0
    """Of partial decoders, which give a category's features back from its code alone; 0 = there are none."""
    code_orthogonality_weight: NonNegative = 0.0
    topology_weight: NonNegative = 0.0
    lr: Positive = 1e-2
    grad_clip: Positive = 1.0
    """Of the assignment's own gradient norm."""
    freeze_epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch from which the assignment stays as it is; none = when the codebook is frozen."""
    prune_epochs: Count | None = None
    """Epochs without a feature after which a category is pruned; none = never."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        coldest = min(self.temperature.start, self.temperature.end)
        gap = 2 * self.logit_scale / coldest
        if self.mode == "learnable" and gap > MAX_LOGIT_GAP:
            raise ValueError(
                f"assignment.logit_scale={self.logit_scale:g} at assignment.temperature {coldest:g} is one-hot from "
                f"the start, and no gradient reaches the logits; keep 2 * logit_scale / temperature within "
                f"{MAX_LOGIT_GAP:g}"
            )
        return self
