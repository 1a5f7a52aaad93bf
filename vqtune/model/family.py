"""What training sees of a model, whatever its family: a batch in, named loss terms, codes and latents out.

Legend: B clips (or rows of a table), P patches of one, M = B*P, L latent vectors of a clip, N = B*L, C codebooks,
I machine IDs, T transforms, D features (or latent dimensions), A categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqtune.config import Config
from vqtune.model import assignment_losses as losses
from vqtune.model import kernels
from vqtune.model.assignment import Assignment
from vqtune.model.assignment import describe as describe_assignment
from vqtune.model.categories import Categories
from vqtune.model.knobs import Knobs, Scalar
from vqtune.model.losses import mean_cross_entropy, mean_square, squared_error, total
from vqtune.model.quantizer import Quantized, Quantizer

_HIDDEN = 128
"""Width of a head."""
_MOST_CLASSES = 128
"""Of a head that kernels train."""


class Forward(NamedTuple):
    """What a training step needs of a family's model."""

    loss: Tensor
    """(), weighted sum of the terms."""
    terms: dict[str, Tensor]
    """Named scalar terms, unweighted."""
    z_ND: Tensor
    quantized: Quantized


class Evaluation(NamedTuple):
    """What a batch says about a model in evaluation mode, per clip."""

    error_B: Tensor
    """Mean squared reconstruction error."""
    commit_B: Tensor
    """Mean squared distance of latents to their codes."""
    z_norm_B: Tensor
    """Mean Euclidean norm of the latents."""
    code_norm_B: Tensor
    """Mean Euclidean norm of the codes they got."""
    machine_logits_BI: Tensor | None
    codes_BLC: Tensor
    """Codes of every latent vector of the clip, per codebook."""


class Head(nn.Module):
    """Linear -> SiLU -> dropout -> Linear on pooled latents."""

    def __init__(self, dim: int, classes: int, hidden: int = _HIDDEN) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, classes)
        self.small = classes <= _MOST_CLASSES

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias

    def forward(
        self, x_BD: Float[Tensor, "B D"], keep_BH: Float[Tensor, "B H"] | None = None
    ) -> Float[Tensor, "B classes"]:
        """Logits; `keep_BH` is what dropout multiplies with."""
        h_BH = nn.functional.silu(self.inner(x_BD))
        logits: Tensor = self.outer(h_BH if keep_BH is None else h_BH * keep_BH)
        return logits


def dropped(
    shape: tuple[int, ...], share: Scalar, device: torch.device, generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """0 with probability `share`, else 1 / (1 - share). Draws from `generator`, so that a trial's numbers do not depend
    on what else runs in its process."""
    return (torch.rand(shape, device=device, generator=generator) >= share) / (1 - share)


class Coded(NamedTuple):
    """A batch as codes."""

    z_ND: Tensor
    quantized: Quantized
    q_MLD: Tensor
    """Codes of each patch (or row), for the heads, which read their means."""
    share_DA: Tensor | None


class Family(nn.Module):
    """Encoder, quantizer, decoder and heads: what all families have in common. Parts that one lacks are None.

    The heads read quantized latents: what a user of the tokens gets. With one machine there is no machine-ID head.
    """

    quantizer: Quantizer
    assignment: Assignment | None
    machine_head: Head | None
    transform_head: Head | None

    def code(self, batch: Any, knobs: Knobs, generator: torch.Generator | None) -> Coded:
        """Encoder and look-up."""
        raise NotImplementedError

    def decode(self, coded: Coded, batch: Any) -> Float[Tensor, "B P *size"]:
        """The reconstruction of a coded batch, in the shape of `target`."""
        raise NotImplementedError

    def informativeness(self, coded: Coded, batch: Any) -> Tensor | None:
        """(): what each category's codes alone tell of the batch; None without partial decoders."""
        raise NotImplementedError

    def target(self, batch: Any) -> Float[Tensor, "B P *size"]:
        """What the decoder should give back."""
        raise NotImplementedError

    def latents(self, batch: Any, knobs: Knobs) -> Float[Tensor, "N D"]:
        """Latent vectors of a batch, for the codebook's initialisation."""
        raise NotImplementedError

    def assignable(self, batch: Any) -> Float[Tensor, "samples D"]:
        """Samples of the features that an assignment puts into categories, for a start from their correlations."""
        raise NotImplementedError

    def add_heads(self, config: Config, *, n_ids: int, n_transforms: int) -> None:
        """To be called when all other parts are there."""
        dim = config.quantizer.dim
        self.per_patch = config.model.transform_head == "per_patch"
        self.machine_head = Head(dim, n_ids) if n_ids > 1 else None
        self.transform_head = Head(dim, n_transforms) if n_transforms > 1 else None

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters with the heads' own learning rate and weight decay."""
        return [p for head in (self.transform_head, self.machine_head) if head is not None for p in head.parameters()]

    def assignment_parameters(self) -> list[nn.Parameter]:
        """Parameters with the assignment's own learning rate and clip, and without weight decay."""
        return [] if self.assignment is None else list(self.assignment.parameters())

    def forward(self, batch: Any, knobs: Knobs, generator: torch.Generator) -> Forward:
        """Loss terms of one training batch; no host synchronisation."""
        coded = self.code(batch, knobs, generator)
        quantized = coded.quantized
        terms = {
            "recon": mean_square(self.decode(coded, batch), self.target(batch)),
            "commit": quantized.commit,
            "codebook": quantized.codebook,
            "diversity": quantized.diversity,
        } | self._head_terms(batch, coded.q_MLD, knobs, generator)
        weights: dict[str, Scalar] = {
            "recon": knobs.recon,
            "commit": knobs.vq,
            "codebook": knobs.vq,
            "diversity": knobs.entropy_weight,
            "transform": knobs.transform,
            "machine_id": knobs.machine_id,
        }
        if self.assignment is not None:
            self._add_assignment_terms(self.assignment, coded, batch, knobs, terms, weights)
        loss, terms = total(terms, weights, {"commit": knobs.beta})
        return Forward(loss, terms, coded.z_ND, quantized)

    def reconstruct(self, batch: Any, knobs: Knobs) -> Float[Tensor, "B P *size"]:
        """The batch as the decoder gives it back."""
        return self.decode(self.code(batch, knobs, None), batch)

    def evaluate(self, batch: Any, knobs: Knobs) -> Evaluation:
        """Per-clip measurements; the model must be in evaluation mode."""
        coded = self.code(batch, knobs, None)
        machine_BI, _ = self._heads(batch, coded.q_MLD, knobs, None)
        B, (z_ND, quantized) = len(batch.keep_B), (coded.z_ND, coded.quantized)
        z_BLD = z_ND.view(B, -1, z_ND.shape[1])
        q_BLD = quantized.z_q_ND.view(B, -1, z_ND.shape[1])
        return Evaluation(
            error_B=squared_error(self.decode(coded, batch), self.target(batch)),
            commit_B=(z_BLD - q_BLD).square().flatten(1).mean(dim=1),
            z_norm_B=z_BLD.norm(dim=2).mean(dim=1),
            code_norm_B=q_BLD.norm(dim=2).mean(dim=1),
            machine_logits_BI=machine_BI,
            codes_BLC=quantized.codes_NC.view(B, -1, quantized.codes_NC.shape[1]),
        )

    def transform_logits(self, batch: Any, knobs: Knobs) -> Float[Tensor, "B T"]:
        """Of each clip, in evaluation mode; only for models with a transform head."""
        _, logits_RT = self._heads(batch, self.code(batch, knobs, None).q_MLD, knobs, None)
        assert logits_RT is not None
        return logits_RT.view(len(batch.keep_B), -1, logits_RT.shape[1]).mean(dim=1)

    @torch.no_grad()
    def start(self, config: Config, batches: Iterator[Any]) -> None:
        """Before the first step: what data decides about the assignment. Takes up to 16 batches, or none."""
        if self.assignment is not None and config.assignment.init == "clusters":
            x_ND = torch.cat([self.assignable(batch) for batch, _ in zip(batches, range(16), strict=False)])
            self.assignment.start_from(x_ND, config.assignment.logit_scale)

    def end_of_epoch(self, config: Config, temperature: float) -> dict[str, float]:
        """Further numbers for the log; categories may be pruned. Reads from the device."""
        if self.assignment is None:
            return {}
        return self.assignment.end_of_epoch(temperature, config.assignment.prune_epochs)

    def describe(self, config: Config) -> list[str]:
        """Lines for the log: which parts this trial trains with."""
        if self.assignment is None:
            return []
        return describe_assignment(config.assignment, self.assignment.logits_DC.shape[0])

    def live_books(self) -> list[int]:
        """Codebooks that count: all but those of pruned categories."""
        if self.assignment is None or not isinstance(self.quantizer, Categories):
            return list(range(len(self.quantizer.sizes)))
        alive = self.assignment.live()
        return [book for book, c in enumerate(self.quantizer.category_of_book()) if alive[c]]

    def _head_terms(self, batch: Any, q_MLD: Tensor, knobs: Knobs, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean cross-entropy of each head that there is; on a GPU parts of it, for `losses.total` to add up."""
        clips, smoothing = len(batch.keep_B), knobs.label_smoothing
        asked = [
            ("machine_id", self.machine_head, batch.machine_id_B, clips),
            ("transform", self.transform_head, batch.transform_B, len(q_MLD) if self.per_patch else clips),
        ]
        given = [(name, head, label_B, rows) for name, head, label_B, rows in asked if head is not None]
        if given and self.training and kernels.usable(q_MLD) and all(head.small for _, head, _, _ in given):
            from vqtune.model.kernels import heads

            tasks = [heads.Task(head.weights(), label_B, rows) for _, head, label_B, rows in given]
            drawn_RH = torch.rand((sum(task.rows for task in tasks), _HIDDEN), device=q_MLD.device, generator=generator)
            numbers = (kernels.on_device(value, q_MLD) for value in (knobs.head_dropout, smoothing))
            return dict(zip((name for name, *_ in given), heads.losses(q_MLD, tasks, drawn_RH, *numbers), strict=True))
        terms: dict[str, Tensor] = {}
        logits = reversed(self._heads(batch, q_MLD, knobs, generator))
        for (name, _, label_B, rows), logits_RC in zip(reversed(asked), logits, strict=True):
            if logits_RC is not None:
                label_R = label_B.repeat_interleave(rows // clips) if rows > clips else label_B
                terms[name] = mean_cross_entropy(logits_RC, label_R, smoothing)
        return terms

    def _heads(
        self, batch: Any, q_MLD: Tensor, knobs: Knobs, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Machine-ID logits of clips; transform logits of clips, or of patches."""
        clips, heads = len(batch.keep_B), (self.machine_head, self.transform_head)
        inputs = [q_MLD.reshape(clips, -1, q_MLD.shape[2]).mean(dim=1)] * 2
        if self.per_patch:
            inputs[1] = q_MLD.mean(dim=1)
        used = [n for n, head in enumerate(heads) if head is not None]
        keep: list[Tensor | None] = [None, None]
        if self.training and used:
            rows = [len(inputs[n]) for n in used]
            mask_BH = dropped((sum(rows), _HIDDEN), knobs.head_dropout, q_MLD.device, generator)
            for n, part_BH in zip(used, torch.split(mask_BH, rows), strict=True):
                keep[n] = part_BH
        # In float32: to cast weights and gradients costs a GPU more than the few products do.
        with torch.autocast(q_MLD.device.type, enabled=False):
            machine_BI, transform_BT = (
                None if head is None else head(x_BD.float(), keep_BH)
                for head, x_BD, keep_BH in zip(heads, inputs, keep, strict=True)
            )
        return machine_BI, transform_BT

    def _add_assignment_terms(
        self,
        assignment: Assignment,
        coded: Coded,
        batch: Any,
        knobs: Knobs,
        terms: dict[str, Tensor],
        weights: dict[str, Scalar],
    ) -> None:
        """Terms of assignment and categories; what has no weight is not computed."""
        cfg, share_DA = assignment.cfg, coded.share_DA
        if assignment.learned and share_DA is not None:
            terms["assign_orthogonality"] = losses.orthogonality(share_DA)
            terms["assign_balance"] = losses.balance(share_DA)
            terms["assign_entropy"] = -knobs.temperature * losses.entropy(share_DA)
            weights["assign_orthogonality"] = knobs.assign_orthogonality
            weights["assign_balance"] = knobs.assign_balance
            weights["assign_entropy"] = knobs.assign_entropy
        informativeness = self.informativeness(coded, batch)
        if informativeness is not None:
            terms["informativeness"], weights["informativeness"] = informativeness, knobs.informativeness
        if cfg.code_orthogonality_weight > 0:
            terms["code_orthogonality"] = losses.code_orthogonality(coded.z_ND, cfg.categories)
            weights["code_orthogonality"] = knobs.code_orthogonality
        if cfg.topology_weight > 0:
            terms["topology"] = losses.topology(coded.z_ND, coded.quantized.z_q_ND)
            weights["topology"] = knobs.topology
