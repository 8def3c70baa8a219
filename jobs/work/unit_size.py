"""Limits on the size of a unit: each of its objects in the store stays below one size, whatever is captured. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..specs.spec import JobSpec

BLOCK_BYTES_LIMIT = 64 * 2**20
"""Limit on the stored size of a shard, which holds all rows of a unit."""

_SIZED_BITS = 10
"""Mantissa bits from which on a unit's size depends on them. Units of fewer bits are as large as those of this many."""

TOKENS_PER_CHUNK = 256
"""Rows of an inner chunk of ``tokens`` arrays. Part of the store's layout, so it must not change."""


def stored_bytes_per_value(mantissa_bits: int) -> float:
    """Estimate the stored bytes of a value; measured are 2.08 at 10 mantissa bits, and 3.70 at 23.

    Example:
        >>> stored_bytes_per_value(10), stored_bytes_per_value(23)
        (2.0, 3.625)
    """
    return (mantissa_bits + 6) / 8


@dataclass(frozen=True, slots=True)
class RowSizes:
    """Stored bytes of one row in the arrays of a job.

    Attributes:
        rollout_bytes: Stored bytes of one rollout in a pooled array; 0 if nothing is pooled.
        token_bytes: Stored bytes of one content token in a ``tokens`` array; 0 if none is kept.
        num_token_layers: Number of layers at which every token is kept.
    """

    rollout_bytes: int
    token_bytes: int
    num_token_layers: int

    @classmethod
    def of(
        cls, spec: JobSpec, d_model: int, num_layers: int, num_token_layers: int, *, sizes_bits: bool = True
    ) -> RowSizes:
        """Compute the sizes of a job.

        Args:
            spec: The job.
            d_model: Width of the residual stream.
            num_layers: Number of captured layers.
            num_token_layers: Number of layers at which every token is kept.
            sizes_bits: Whether more than 10 mantissa bits count; False for runs from before they did.
        """
        bits = max(spec.store.mantissa_bits, _SIZED_BITS) if sizes_bits else _SIZED_BITS
        value = int(d_model * stored_bytes_per_value(bits))
        return cls(num_layers * value if spec.capture.pooled else 0, num_token_layers * value, num_token_layers)

    @property
    def most_rollouts(self) -> int:
        """Most rollouts that a shard of a pooled array holds."""
        return _quotient(self.rollout_bytes)

    @property
    def most_tokens(self) -> int:
        """Most tokens that a shard of a ``tokens`` array holds."""
        return _quotient(self.token_bytes)

    def refuse_tokens(self, tokens: int, what: str, ways: str) -> InputError:
        """Make the error for more tokens than a shard holds.

        Args:
            tokens: Number of tokens that would have to be in one shard.
            what: The responses that they belong to, for the message.
            ways: What the user can change instead of keeping fewer layers, for the hint.
        """
        of_one_layer = self.token_bytes // self.num_token_layers
        layers = BLOCK_BYTES_LIMIT // (tokens * of_one_layer)
        fewer = f"Keep the tokens of at most {layers} layers, or " if layers else ""
        return InputError(
            f"every token of {what} at {self.num_token_layers} layers comes to "
            f"{tokens * self.token_bytes / 2**20:,.0f} MiB ({tokens:,} tokens); a unit holds "
            f"{BLOCK_BYTES_LIMIT // 2**20}.",
            code="too_many_tokens",
            field="capture.token_layers",
            hint=f"{fewer}{ways if fewer else ways[:1].upper() + ways[1:]}.",
        )


def whole_chunks(tokens: int) -> int:
    """Round a number of tokens up to a multiple of ``TOKENS_PER_CHUNK``."""
    return -(-tokens // TOKENS_PER_CHUNK) * TOKENS_PER_CHUNK


def _quotient(row_bytes: int) -> int:
    return BLOCK_BYTES_LIMIT // row_bytes if row_bytes else 2**63
