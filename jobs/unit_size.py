"""How much a unit may hold: each of its objects in the store stays under one size, whatever is captured. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .spec import JobSpec

BLOCK_BYTES_LIMIT = 64 * 2**20
"""A unit's rows become one object of the store; its stored size stays under this."""

STORED_BYTES_PER_VALUE = 2
"""What one value takes in the store, for sizing: 2.04 measured at 10 mantissa bits."""

TOKENS_PER_CHUNK = 256
"""Tokens that the ``tokens`` arrays of a store hold in one chunk; part of the layout, so stores depend on it."""


@dataclass(frozen=True, slots=True)
class RowSizes:
    """How the stored objects of a unit grow with its rollouts and tokens, in bytes.

    Attributes:
        rollout_bytes: Stored bytes of one rollout in a pooled array; 0 where nothing is pooled.
        token_bytes: Stored bytes of one content token in a ``tokens`` array; 0 where none is kept.
        num_token_layers: Layers of which every token is kept.
    """

    rollout_bytes: int
    token_bytes: int
    num_token_layers: int

    @classmethod
    def of(cls, spec: JobSpec, d_model: int, num_layers: int, num_token_layers: int) -> RowSizes:
        """Return the sizes of a job.

        Args:
            spec: The job.
            d_model: Width of the residual stream.
            num_layers: Captured layers.
            num_token_layers: Those of which every token is kept.
        """
        value = d_model * STORED_BYTES_PER_VALUE
        return cls(num_layers * value if spec.capture.pooled else 0, num_token_layers * value, num_token_layers)

    @property
    def most_rollouts(self) -> int:
        """Rollouts that an object of pooled vectors holds."""
        return _quotient(self.rollout_bytes)

    @property
    def most_tokens(self) -> int:
        """Tokens that an object of every token holds."""
        return _quotient(self.token_bytes)

    def refuse_tokens(self, tokens: int, what: str, ways: str) -> InputError:
        """Make the error of too many tokens for one object.

        Args:
            tokens: Tokens that would have to share one object.
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
    """Round a number of tokens up to whole chunks."""
    return -(-tokens // TOKENS_PER_CHUNK) * TOKENS_PER_CHUNK


def _quotient(row_bytes: int) -> int:
    return BLOCK_BYTES_LIMIT // row_bytes if row_bytes else 2**63
