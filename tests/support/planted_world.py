"""A planted model of the world: activations of 300 personas whose axis, components, traits and percentiles are known.

At each layer there is an orthonormal basis e0, e1 ... of the activations, and every rollout is a known mean plus noise
of a known size. The mean activation of all personas lies at ``OFFSET`` along e0 and e5. The default Assistant is
``AXIS_LENGTH`` further along e0, so that e0 is the direction of the axis. Roles that are played (score 3) have four
independent scores along four directions, of which the first has cosine ``PC1_COSINE`` with the axis; a rollout scored 2
is half as far from the default, one scored 1 or 0 is the default. A trait shown and its opposite lie on either side of
the mean in the pairs that a judge tells apart, and both at the mean in the others. Each question moves all of its
rollouts along e0.

Axes: P roles, T traits, L layers, D d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

OFFSET = 200.0
AXIS_LENGTH = 20.0
PC1_COSINE = 0.8
SPREADS = np.array([6.0, 4.0, 3.0, 2.0])
"""Standard deviation (n - 1) of the roles' scores along each of the four directions; exact, not drawn."""
NOISE = 0.5
"""Standard deviation of each coordinate of a rollout about its mean."""
TRAIT_LENGTH = 8.0
QUESTION_SPREAD = 1.0


class Address(NamedTuple):
    """Where a rollout belongs."""

    kind: str
    persona: str
    polarity: str
    prompt_index: int
    question_index: int
    sample_index: int


@dataclass(frozen=True, eq=False)
class World:
    """Personas with known activations.

    Attributes:
        num_roles: P; the personas are these, the traits and the default.
        num_traits: T; the first has no pair that a judge tells apart.
        num_layers: L.
        d_model: D, at least 40.
        num_questions: Questions that every persona is asked, a multiple of 6.
        default_samples: Rollouts of the default for each question.
    """

    num_roles: int = 199
    num_traits: int = 100
    num_layers: int = 2
    d_model: int = 48
    num_questions: int = 12
    default_samples: int = 20
    seed: int = 0

    @cached_property
    def roles(self) -> list[str]:
        return [f"role{number:03d}" for number in range(self.num_roles)]

    @cached_property
    def traits(self) -> list[str]:
        return [f"trait{number:03d}" for number in range(self.num_traits)]

    @cached_property
    def basis(self) -> np.ndarray:
        """Rows e0, e1 ... of each layer, ``(L, D, D)``."""
        rng = np.random.default_rng([self.seed, 1])
        return np.linalg.qr(rng.standard_normal((self.num_layers, self.d_model, self.d_model)))[0]

    @cached_property
    def mean(self) -> np.ndarray:
        return OFFSET * self.basis[:, 0] + 10 * self.basis[:, 5]

    @cached_property
    def axis(self) -> np.ndarray:
        """The axis of fully played roles, ``(L, D)``."""
        return AXIS_LENGTH * self.basis[:, 0]

    @cached_property
    def components(self) -> np.ndarray:
        """The four directions in which roles differ, the first oriented along the axis, ``(L, 4, D)``."""
        e = self.basis
        first_LD = PC1_COSINE * e[:, 0] + math.sqrt(1 - PC1_COSINE**2) * e[:, 1]
        return np.concatenate([first_LD[:, None], e[:, 2:5]], axis=1)

    @cached_property
    def scores(self) -> np.ndarray:
        """Scores of the roles, uncorrelated and of mean zero, ``(P, 4)``."""
        drawn = np.random.default_rng([self.seed, 2]).standard_normal((self.num_roles, 4))
        independent, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
        return independent * math.sqrt(self.num_roles - 1) * SPREADS

    @cached_property
    def trait_axis_cosine(self) -> np.ndarray:
        return np.linspace(-0.9, 0.9, self.num_traits)

    @cached_property
    def trait_vectors(self) -> np.ndarray:
        """Difference between a trait shown and its opposite in a pair that a judge tells apart, ``(T, L, D)``."""
        cosine_T11 = self.trait_axis_cosine[:, None, None]
        other_TLD = self.basis[:, 6 + np.arange(self.num_traits) % 30].transpose(1, 0, 2)
        return TRAIT_LENGTH * (cosine_T11 * self.basis[:, 0] + np.sqrt(1 - cosine_T11**2) * other_TLD)

    @cached_property
    def question_shift(self) -> np.ndarray:
        """How far each question moves its rollouts along e0; mean zero."""
        drawn = np.random.default_rng([self.seed, 3]).standard_normal(self.num_questions)
        return QUESTION_SPREAD * (drawn - drawn.mean()) / drawn.std()

    def addresses(self) -> list[Address]:
        """List every rollout: two of each role and question, one of each trait, polarity and question."""
        questions = range(self.num_questions)
        return [
            *(Address("role", role, "pos", 0, q, s) for role in self.roles for q in questions for s in range(2)),
            *(Address("trait", t, pol, 0, q, 0) for t in self.traits for pol in ("pos", "neg") for q in questions),
            *(Address("default", "default", "pos", 0, q, s) for q in questions for s in range(self.default_samples)),
        ]

    def score(self, address: Address) -> float | None:
        """Score that the judge gives: sample 0 of a role plays it, sample 1 does so half or not at all."""
        if address.kind == "role":
            return 3.0 if address.sample_index == 0 else (2.0, 1.0, 2.0, 0.0, 2.0, 1.0)[address.question_index % 6]
        if address.kind == "trait":
            if self.tells_apart(address):
                return 90.0 if address.polarity == "pos" else 10.0
            if address.question_index % 6 == 0 and address.polarity == "neg":
                return None  # a refusal
            return 85.0 if address.polarity == "pos" else 40.0
        return None

    def tells_apart(self, address: Address) -> bool:
        """Whether the scores of a trait's pair differ by more than 50, in two of three questions."""
        return address.persona != self.traits[0] and address.question_index % 3 > 0

    def mean_of(self, address: Address) -> np.ndarray:
        """Mean of rollouts like this one, ``(L, D)``."""
        shift_LD = self.question_shift[address.question_index] * self.basis[:, 0]
        if address.kind == "default":
            return self.mean + self.axis + shift_LD
        if address.kind == "trait":
            sign = 0.5 if address.polarity == "pos" else -0.5
            vector_LD = self.trait_vectors[self.traits.index(address.persona)]
            return self.mean + shift_LD + (sign * vector_LD if self.tells_apart(address) else 0.0)
        played_LD = np.einsum("k,lkd->ld", self.scores[self.roles.index(address.persona)], self.components)
        share = {3.0: 1.0, 2.0: 0.5}.get(self.score(address) or 0.0, 0.0)
        return self.mean + shift_LD + share * played_LD + (1 - share) * self.axis

    def vector(self, address: Address) -> np.ndarray:
        """Activation of a rollout, float32 ``(L, D)``; the same for the same address."""
        names = (*self.roles, *self.traits, "default")
        numbers = (names.index(address.persona), address.polarity == "neg", *address[3:])
        noise_LD = np.random.default_rng([self.seed, 4, *map(int, numbers)]).standard_normal(
            (self.num_layers, self.d_model)
        )
        return (self.mean_of(address) + NOISE * noise_LD).astype(np.float32)

    @cached_property
    def values(self) -> np.ndarray:
        return np.stack([self.vector(address) for address in self.addresses()])

    @cached_property
    def lines(self) -> pa.Table:
        """Index lines with scores, in the order of ``values``."""
        addresses = self.addresses()
        columns = {name: [getattr(address, name) for address in addresses] for name in Address._fields}
        scores = pa.array([self.score(address) for address in addresses], pa.float32())
        return pa.table(columns).append_column("score", scores)

    def projection_quantile(self, fraction: float, layer: int = 0) -> float:
        """Quantile of the projections of all rollouts on the unit axis: of a known mixture of normal distributions."""
        means_N = np.array([self.mean_of(address)[layer] @ self.basis[layer, 0] for address in self.addresses()])
        # Means that differ by less than a hundredth of the noise are the same.
        means_M, counts_M = np.unique(means_N.round(2), return_counts=True)
        low, high = float(means_N.min()) - 10 * NOISE, float(means_N.max()) + 10 * NOISE
        for _ in range(25):
            middle = (low + high) / 2
            scaled_M = (middle - means_M) / (NOISE * math.sqrt(2))
            below = np.average([0.5 * (1 + math.erf(scaled)) for scaled in scaled_M], weights=counts_M)
            low, high = (middle, high) if below < fraction else (low, middle)
        return (low + high) / 2
