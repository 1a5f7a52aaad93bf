"""Several codebooks in one quantizer: side by side, one after another, or coarse and fine.

Shapes: N latents of a step, D dimensions, G groups of E = D/G dimensions, C codebooks, T blocks of N/T latents.
Every codebook has every lever of its own; the losses are means over all elements of all codebooks, so that beta means
the same for each structure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune.model import lookup
from vqtune.model.contract import Quantized, Quantizer
from vqtune.model.knobs import Knobs
from vqtune.model.vector import VectorQuantizer


class Compound(Quantizer):
    """What all structures share: their parts, in the order of the columns of `codes_NC`."""

    def __init__(self, books: Sequence[Quantizer]) -> None:
        super().__init__()
        self.books = nn.ModuleList(books)
        self.sizes = tuple(size for book in books for size in book.sizes)
        self.span = max(book.span for book in books)

    @property
    def respawned(self) -> Tensor:
        return torch.stack([part.respawned for part in self._parts()]).sum()

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [p for part in self._parts() for p in part.codebook_parameters()]

    def fresh_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [row for part in self._parts() for row in part.fresh_rows()]

    def _parts(self) -> list[Quantizer]:
        return [part for part in self.books if isinstance(part, Quantizer)]

    def _books(self) -> list[VectorQuantizer]:
        return [book for book in self.books if isinstance(book, VectorQuantizer)]

    def _joined(self, z_q_ND: Tensor, codes_NC: Tensor, parts: Sequence[Quantized]) -> Quantized:
        return Quantized(
            z_q_ND=z_q_ND,
            codes_NC=codes_NC,
            commit=torch.stack([part.commit for part in parts]).mean(),
            codebook=torch.stack([part.codebook for part in parts]).mean(),
            diversity=torch.stack([part.diversity for part in parts]).mean(),
        )


class SideBySide(Compound):
    """Quantizers of any kind, each on an equal slice of the dimensions."""

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        found = [part(z_NE, knobs) for part, z_NE in zip(self.books, self._slices(z_ND), strict=True)]
        z_q_ND = torch.cat([q.z_q_ND for q in found], dim=1)
        return self._joined(z_q_ND, torch.cat([q.codes_NC for q in found], dim=1), found)

    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        codes = torch.split(quantized.codes_NC, [len(part.sizes) for part in self._parts()], dim=1)
        slices = zip(self._slices(z_ND), self._slices(quantized.z_q_ND), strict=True)
        for part, codes_NC, (z_NE, q_NE) in zip(self._parts(), codes, slices, strict=True):
            part.update(z_NE, quantized._replace(z_q_ND=q_NE, codes_NC=codes_NC), knobs, ok, generator)

    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        for part, z_NE in zip(self._parts(), self._slices(z_ND), strict=True):
            part.initialise(z_NE, generator, group_N)

    def _slices(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        return x_ND.chunk(len(self.books), dim=1)


class Grouped(SideBySide):
    """A codebook for each slice of the dimensions (product quantization): G tables of K codes name K^G vectors."""


class Residual(Compound):
    """Each codebook codes what the one before left over (SoundStream, algorithm 1); the code is their sum."""

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        with torch.autocast(z_ND.device.type, enabled=False):
            z = z_ND.float()
            rest_ND, parts = z, []
            for book in self._books():
                parts.append(book.find(rest_ND, knobs))
                rest_ND = rest_ND - parts[-1].z_q_ND.detach()
            q_ND = torch.stack([part.z_q_ND for part in parts]).sum(0)
            z_q_ND = self._books()[0].pass_gradient(z, q_ND).to(z_ND.dtype)
        return self._joined(z_q_ND, torch.cat([part.codes_NC for part in parts], dim=1), parts)

    @torch.no_grad()
    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        # Every input first: a codebook that has moved leaves another rest than the one its successor saw.
        rest_ND, inputs = z_ND.detach().float(), []
        for c, book in enumerate(self._books()):
            inputs.append(rest_ND)
            rest_ND = rest_ND - F.embedding(quantized.codes_NC[:, c], book.codes(knobs))
        for c, (book, input_ND) in enumerate(zip(self._books(), inputs, strict=True)):
            book.update(input_ND, _column(quantized, c), knobs, ok, generator)

    @torch.no_grad()
    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        rest_ND = z_ND.detach().float()
        for book in self._books():
            book.initialise(rest_ND, generator, group_N)
            rest_ND = rest_ND - _first_codes_of(book, rest_ND)


class Hierarchical(Compound):
    """Coarse and fine (VQ-VAE-2's two levels, on one grid of latents): the first codebook codes the mean of each block
    of `span` consecutive latents (the positions of a patch, say), the second what that leaves of each latent.

    The coarse code is repeated for each latent of its block in `codes_NC`; its codebook learns from N / span means.
    Raises ValueError where the number of latents is no multiple of `span`.
    """

    def __init__(self, coarse: VectorQuantizer, fine: VectorQuantizer, span: int) -> None:
        super().__init__([coarse, fine])
        self.span = span

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        coarse, fine = self._books()
        with torch.autocast(z_ND.device.type, enabled=False):
            z = z_ND.float()
            above = coarse.find(self._means(z), knobs)
            coarse_ND = self._repeat(above.z_q_ND)
            below = fine.find(z - coarse_ND.detach(), knobs)
            z_q_ND = coarse.pass_gradient(z, coarse_ND + below.z_q_ND).to(z_ND.dtype)
        codes_NC = torch.cat([self._repeat(above.codes_NC), below.codes_NC], dim=1)
        return self._joined(z_q_ND, codes_NC, [above, below])

    @torch.no_grad()
    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        coarse, fine = self._books()
        z = z_ND.detach().float()
        above = _column(quantized, 0)._replace(codes_NC=quantized.codes_NC[:: self.span, :1])
        rest_ND = z - self._repeat(F.embedding(above.codes_NC[:, 0], coarse.codes(knobs)))
        coarse.update(self._means(z), above, knobs, ok, generator)
        fine.update(rest_ND, _column(quantized, 1), knobs, ok, generator)

    @torch.no_grad()
    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        coarse, fine = self._books()
        z = z_ND.detach().float()[: z_ND.shape[0] // self.span * self.span]
        group_N = None if group_N is None else group_N[: z.shape[0]]
        means_TD = self._means(z)
        coarse.initialise(means_TD, generator, None if group_N is None else group_N[:: self.span])
        fine.initialise(z - self._repeat(_first_codes_of(coarse, means_TD)), generator, group_N)

    def _means(self, z_ND: Tensor) -> Tensor:
        if z_ND.shape[0] % self.span:
            raise ValueError(f"{z_ND.shape[0]} latents are no multiple of quantizer.structure.span={self.span}")
        return z_ND.reshape(-1, self.span, z_ND.shape[1]).mean(1)

    def _repeat(self, x_TD: Tensor) -> Tensor:
        return x_TD.repeat_interleave(self.span, dim=0, output_size=x_TD.shape[0] * self.span)


def _column(quantized: Quantized, c: int) -> Quantized:
    return quantized._replace(codes_NC=quantized.codes_NC[:, c : c + 1])


def _first_codes_of(book: VectorQuantizer, z_ND: Tensor) -> Tensor:
    """The latents' codes in a codebook that was just initialised."""
    codes_N = lookup.nearest(z_ND, book.book_KD, lookup.bias(book.book_KD, book.active))
    return book.book_KD[codes_N]
