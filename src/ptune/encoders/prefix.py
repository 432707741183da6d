"""P-tuning v2 and Cartridges: the trainable table is the keys and values of every layer.

Liu et al. 2022, "P-Tuning v2"; PEFT's counterpart is `PrefixEncoder` without projection. Eyuboglu et al. 2025,
"Cartridges", keep the first virtual tokens as they are (`num_frozen_tokens`): many models look at the first position
from everywhere, and training goes astray when it changes. PEFT's counterpart is `CartridgeEncoder`.

Shapes: `P` virtual tokens, `F` of them frozen, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

import torch

from ptune.encoders.deep import DeepEncoder
from ptune.errors import ConfigError


class PrefixEncoder(DeepEncoder):
    """`(P - F) × 2 L H E` trainable numbers, behind `F` rows that do not train.

    Args:
        num_virtual_tokens: `P`.
        token_dim: `H E`.
        layers: `L`.
        heads: `H`.
        num_frozen_tokens: `F`.

    Raises:
        ConfigError: No virtual token is left to train.
    """

    frozen: torch.Tensor | None
    """`(F, 2 L H E)`, a buffer: it is saved, and no optimizer sees it."""

    def __init__(
        self, *, num_virtual_tokens: int, token_dim: int, layers: int, heads: int, num_frozen_tokens: int = 0
    ) -> None:
        if num_frozen_tokens >= num_virtual_tokens:
            raise ConfigError(
                f"num_frozen_tokens={num_frozen_tokens} leaves none of the {num_virtual_tokens} virtual tokens to "
                "train.",
                hint="Freeze fewer; 1 is usual.",
            )
        width = 2 * layers * token_dim
        super().__init__(
            num_virtual_tokens=num_virtual_tokens,
            token_dim=token_dim,
            layers=layers,
            heads=heads,
            table=(num_virtual_tokens - num_frozen_tokens, width),
        )
        self.register_buffer("frozen", torch.zeros(num_frozen_tokens, width) if num_frozen_tokens else None)

    def forward(self) -> torch.Tensor:
        """The table, the frozen rows before it: `(P, 2 L H E)`."""
        table = self.embedding.weight
        return table if self.frozen is None else torch.cat([self.frozen, table])

    @torch.no_grad()
    def start_at(self, rows: torch.Tensor) -> None:
        """Put the rows into the table; see `DeepEncoder`."""
        count = self.num_virtual_tokens - len(self.embedding.weight)
        self.embedding.weight.copy_(rows[count:])
        if self.frozen is not None:
            self.frozen.copy_(rows[:count])

    @torch.no_grad()
    def start_at_random(self, deviations: torch.Tensor) -> None:
        """Draw the table; see `DeepEncoder`."""
        rows = torch.randn(self.num_virtual_tokens, len(deviations), self.token_dim)
        self.start_at((rows * deviations[:, None]).flatten(1))

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Zeros, frozen rows too."""
        self.start_at(self.embedding.weight.new_zeros(1, 1).expand(self.num_virtual_tokens, self._width))

    @property
    def _width(self) -> int:
        return int(self.embedding.weight.shape[1])
