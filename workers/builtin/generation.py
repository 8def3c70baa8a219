"""Generate with a batch that is never waited for: rollouts leave it when they end, and others take their places.

Every pass carries one token of each running rollout and the prompts of those that join, packed into one line, so a
joining rollout costs its tokens and no pass of its own. A system prompt that several rollouts begin with is read by the
first of them; the others start from a copy of its keys and values, one pass later. The last content token is fed back
too, so that the mean over a response is over all of its content tokens, as in one forward pass over the finished
conversation.
Axes: L captured layers, K those of which every token is kept, R places in the batch, A running rollouts, E tokens of a
pass that are looked at, T content tokens of a response, D d_model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...jobs.errors import UnitError
from ...jobs.messages import ChatMessage
from ...jobs.rollouts import ArrayName, Rollout
from ...jobs.spec import TOKENS, HookPoint
from ...jobs.units import RolloutRequest
from ..chat.renderer import ChatRenderer
from ..engine import CapturedRollout, EngineSettings
from .capture import Capture, Seen, require_finite
from .kv_cache import KVCache, Prefix
from .packed import PackedPass, Segment
from .sampling import sample, uniforms

_LEAST_SHARED = 8
"""Tokens that a shared beginning must have to be worth keeping."""

_KEPT_BEGINNINGS = 8
"""Shared beginnings kept for rollouts to come; those in use are kept besides."""

_JOINING_TOKENS = 4096
"""Prompt tokens after which no more rollouts join in one pass: bounds the memory that a pass takes."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and what goes with it.

    Attributes:
        model: A causal language model with packed attention.
        tokenizer: Its tokenizer.
        renderer: Its chat template.
        capture: Its hook points.
        stop_ids: Ids that end a response.
        num_layers: Its blocks.
        max_context: Longest conversation, in tokens.
        d_model: Width of the residual stream.
    """

    model: Any
    tokenizer: Any
    renderer: ChatRenderer
    capture: Capture
    stop_ids: frozenset[int]
    num_layers: int
    max_context: int
    d_model: int


@dataclass(eq=False)
class _Shared:
    """A beginning that several rollouts have: filled in when the first of them has read it."""

    length: int
    kept: Prefix | None = None
    sums_LD: dict[HookPoint, torch.Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class _Row:
    """A rollout on its way.

    Attributes:
        leads: Whether it reads the shared beginning for the others.
        prompt: Its prompt poolings, ``(L, D)`` each.
        content: Of each content token ``(K, D)``, in the machine's memory, where every token is kept.
    """

    request: RolloutRequest
    prompt_ids: list[int]
    random: list[float]
    shared: _Shared | None = None
    leads: bool = False
    token_ids: list[int] = field(default_factory=list)
    num_content: int = 0
    prompt: dict[ArrayName, torch.Tensor] = field(default_factory=dict)
    content: dict[HookPoint, list[npt.NDArray[np.float32]]] = field(default_factory=dict)

    @property
    def begins_at(self) -> int:
        """The first position that it computes itself."""
        return self.shared.length if self.shared and not self.leads else 0


class Generation:
    """One stream of rollouts through a model.

    Args:
        loaded: The model.
        settings: What is asked of it.
    """

    def __init__(self, loaded: LoadedModel, settings: EngineSettings) -> None:
        self._loaded = loaded
        self._settings = settings
        self._max_new = settings.sampling.max_new_tokens
        self._token_positions = settings.token_positions
        self._cache = KVCache(loaded.num_layers, settings.batch_tokens)
        self._rows: list[_Row] = []
        self._waiting: list[_Row] = []
        self._held: _Row | None = None
        self._refused: UnitError | None = None
        self._beginnings: OrderedDict[tuple[int, ...], _Shared] = OrderedDict()
        self._prefix_ids: OrderedDict[tuple[ChatMessage, ...], list[int]] = OrderedDict()
        self._pooled_LRD: dict[ArrayName, torch.Tensor] = {}

    def run(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Responder.generate``."""
        while True:
            # Not around the yield: what is done with a rollout is no business of this mode.
            with torch.inference_mode():
                joining = self._joining(next_request)
                finished = self._pass(joining) if self._rows or joining else None
            if finished is None:
                if self._refused is not None:
                    raise self._refused
                return
            yield from finished

    def _joining(self, next_request: Callable[[], RolloutRequest | None]) -> list[_Row]:
        """Take in what there is room for; the rows that start in the next pass."""
        joining, self._waiting = self._waiting, []
        num_tokens = sum(len(row.prompt_ids) - row.begins_at for row in joining)
        while self._refused is None and num_tokens < _JOINING_TOKENS:
            row = self._held or self._next(next_request)
            if row is None:
                break
            everyone = [*self._rows, *joining, *self._waiting, row]
            positions = max(len(other.prompt_ids) for other in everyone) + self._max_new
            if not self._cache.fits(len(everyone), positions):
                self._held = row
                break
            self._held = None
            self._share(row)
            if row.shared is not None and not row.leads and row.shared.kept is None:
                self._waiting.append(row)
                continue
            joining.append(row)
            num_tokens += len(row.prompt_ids) - row.begins_at
        return joining

    def _next(self, next_request: Callable[[], RolloutRequest | None]) -> _Row | None:
        request = next_request()
        if request is None:
            return None
        prompt_ids = self._loaded.renderer.render(request.messages)
        if len(prompt_ids) + self._max_new > self._loaded.max_context:
            # Raised when the rollouts that are under way have ended: they are not at fault.
            self._refused = UnitError(
                f"{request.address}: {len(prompt_ids)} prompt tokens and {self._max_new} new ones exceed "
                f"the model's context of {self._loaded.max_context}.",
                code="too_long",
            )
            return None
        return _Row(request, prompt_ids, uniforms([request.seed], self._max_new)[0].tolist())

    def _share(self, row: _Row) -> None:
        """Find the beginning that a row has in common with others; the first to have it reads it for all."""
        # Later turns hold replies that no other conversation has: what many have in common is how they open.
        opening = row.request.opening
        if opening not in self._prefix_ids:
            self._prefix_ids[opening] = self._loaded.renderer.shared_prefix(opening)
            _forget_oldest(self._prefix_ids)
        ids = self._prefix_ids[opening]
        if not _LEAST_SHARED <= len(ids) < len(row.prompt_ids) or row.prompt_ids[: len(ids)] != ids:
            return
        known = self._beginnings.get(tuple(ids))
        if known is None:
            row.leads = True
            known = self._beginnings[tuple(ids)] = _Shared(len(ids))
            _forget_oldest(self._beginnings)
        self._beginnings.move_to_end(tuple(ids))
        row.shared = known

    def _pass(self, joining: Sequence[_Row]) -> list[CapturedRollout]:
        """Run one forward pass and do what follows from it; the rollouts that ended."""
        running = len(self._rows)
        self._make_room(joining)
        decoded = [len(row.prompt_ids) + len(row.token_ids) - 1 for row in self._rows]
        segments: list[Segment] = []
        token_ids = [row.token_ids[-1] for row in self._rows]
        ends = list(range(running))
        spans: list[tuple[int, int]] = []
        for place, row in enumerate(joining, start=running):
            begin = len(token_ids)
            segments.append(Segment(row.begins_at, len(row.prompt_ids) - row.begins_at, place))
            token_ids += row.prompt_ids[row.begins_at :]
            ends.append(len(token_ids) - 1)
            if self._wants("prompt_mean"):
                middle = begin + row.shared.length if row.shared and row.leads else begin
                spans += [(begin, middle), (middle, len(token_ids))]
        rows = [*self._rows, *joining]
        # A response cut at its length is done when its last token has been seen.
        going_on = [place for place, row in enumerate(rows) if len(row.token_ids) < self._max_new]
        layout = PackedPass(self._settings.device, segments, decoded, self._cache)
        logits_BV, seen = self._loaded.capture.watch(
            lambda: layout.run(self._loaded.model, token_ids, [ends[place] for place in going_on]),
            tokens=ends,
            spans=spans,
            num_tokens=len(token_ids),
            device=self._settings.device,
            stop_at_top=not going_on,
        )
        self._pool(running, joining, seen)
        self._rows = rows
        next_ids = self._sample(logits_BV, [rows[place] for place in going_on], seen) if going_on else []
        return self._end(going_on, next_ids)

    def _wants(self, pooling: str) -> bool:
        return pooling in self._settings.capture.poolings

    def _make_room(self, joining: Sequence[_Row]) -> None:
        running = len(self._rows)
        rows = [*self._rows, *joining]
        self._cache.reserve(running, len(rows), max(len(row.prompt_ids) for row in rows) + self._max_new)
        followers: dict[int, tuple[Prefix, list[int]]] = {}
        for place, row in enumerate(joining, start=running):
            if row.shared is not None and row.shared.kept is not None and not row.leads:
                followers.setdefault(id(row.shared), (row.shared.kept, []))[1].append(place)
        for beginning, places in followers.values():
            self._cache.put_beginning(places, beginning)

    def _pool(self, running: int, joining: Sequence[_Row], seen: dict[HookPoint, Seen]) -> None:
        """Add what a pass showed to the rows' poolings."""
        for point, shown in seen.items():
            for name in ("response_mean", "response_last"):
                if self._wants(name):
                    pooled_LRD = self._places((point, name), running + len(joining), shown.tokens_LED)
                    pooled_LRD[:, running : running + len(joining)] = 0
                    if name == "response_mean":
                        pooled_LRD[:, :running] += shown.tokens_LED[:, :running]
                    else:
                        pooled_LRD[:, :running] = shown.tokens_LED[:, :running]
            if self._token_positions and running:
                self._keep_tokens(point, shown.tokens_LED[self._token_positions, :running])
            for index, row in enumerate(joining):
                if self._wants("prompt_last"):
                    row.prompt[point, "prompt_last"] = shown.tokens_LED[:, running + index].clone()
                if self._wants("prompt_mean"):
                    before_LD, after_LD = shown.sums_LPD[:, 2 * index], shown.sums_LPD[:, 2 * index + 1]
                    if row.shared is not None and row.leads:
                        row.shared.sums_LD[point] = before_LD.clone()
                    elif row.shared is not None:
                        before_LD = row.shared.sums_LD[point]
                    row.prompt[point, "prompt_mean"] = (before_LD + after_LD) / len(row.prompt_ids)
        for place, row in enumerate(joining, start=running):
            if row.shared is not None and row.leads:
                row.shared.kept = self._cache.beginning(place, row.shared.length)

    def _keep_tokens(self, point: HookPoint, tokens_KAD: torch.Tensor) -> None:
        """Keep what each running row's last token showed; a copy each, so that none outlives its rollout."""
        for row, token_KD in zip(self._rows, tokens_KAD.transpose(0, 1).cpu().numpy(), strict=True):
            row.content.setdefault(point, []).append(token_KD.copy())

    def _places(self, array: ArrayName, rows: int, like_LED: torch.Tensor) -> torch.Tensor:
        """Give an array's sums, with room for at least so many rows."""
        old = self._pooled_LRD.get(array)
        if old is None or old.shape[1] < rows:
            new = like_LED.new_zeros(like_LED.shape[0], rows + rows // 2, like_LED.shape[2])
            if old is not None:
                new[:, : old.shape[1]] = old
            self._pooled_LRD[array] = new
        return self._pooled_LRD[array]

    def _sample(self, logits_BV: torch.Tensor | None, rows: Sequence[_Row], seen: dict[HookPoint, Seen]) -> list[int]:
        assert logits_BV is not None
        sampling = self._settings.sampling
        uniform_B = torch.tensor([row.random[len(row.token_ids)] for row in rows], device=logits_BV.device)
        try:
            return sample(logits_BV, uniform_B, sampling.temperature, sampling.top_p).tolist()
        except UnitError:
            # Logits that are not finite: the layer where it began says more, if a captured one shows it.
            for point, shown in seen.items():
                require_finite(shown.tokens_LED, self._settings.layers, f"{point} of a token")
            raise

    def _end(self, going_on: Sequence[int], next_ids: Sequence[int]) -> list[CapturedRollout]:
        """Give each row its next token; take those out that have ended."""
        ended = set(range(len(self._rows))) - set(going_on)
        for place, token in zip(going_on, next_ids, strict=True):
            row = self._rows[place]
            row.token_ids.append(token)
            if token in self._loaded.stop_ids:
                ended.add(place)
            else:
                row.num_content += 1
        finished: list[CapturedRollout] = []
        # From the highest down, so that the last row, which takes the place of one that leaves, is one that stays.
        for place in sorted(ended, reverse=True):
            finished.append(self._finish(place))
            last = len(self._rows) - 1
            if place != last:
                moved = self._rows[place] = self._rows[last]
                self._cache.move(last, place, len(moved.prompt_ids) + len(moved.token_ids))
                for pooled_LRD in self._pooled_LRD.values():
                    pooled_LRD[:, place] = pooled_LRD[:, last]
            self._rows.pop()
        return finished

    def _finish(self, place: int) -> CapturedRollout:
        row = self._rows[place]
        content = row.token_ids[: row.num_content]
        rollout = Rollout(
            address=row.request.address,
            system_prompt=row.request.system_prompt,
            question=row.request.question,
            response=self._loaded.tokenizer.decode(content, skip_special_tokens=False),
            prompt_token_ids=tuple(row.prompt_ids),
            response_token_ids=tuple(row.token_ids),
            num_content_tokens=row.num_content,
            finish_reason="stop" if len(row.token_ids) > row.num_content else "length",
            seed=row.request.seed,
        )
        vectors, tokens = {}, {}
        for point in self._settings.capture.hook_points:
            for name in self._settings.capture.pooled:
                vector_LD = self._vector(place, point, name)
                if rollout.has_vector or not name.startswith("response_"):
                    require_finite(vector_LD, self._settings.layers, f"{point}/{name} of {rollout.address}")
                vectors[point, name] = vector_LD.cpu().numpy()
            if self._token_positions:
                tokens[point, TOKENS] = self._tokens(row, point)
        return CapturedRollout(rollout, vectors, tokens)

    def _tokens(self, row: _Row, point: HookPoint) -> npt.NDArray[np.float32]:
        """Put together what was kept of a row: ``(K, T, D)``."""
        content = row.content.pop(point, [])
        if not content:
            return np.empty((len(self._token_positions), 0, self._loaded.d_model), dtype=np.float32)
        tokens_KTD = np.stack(content, axis=1)
        what = f"{point} of a token of {row.request.address}"
        require_finite(torch.from_numpy(tokens_KTD), self._settings.token_layers, what)
        return tokens_KTD

    def _vector(self, place: int, point: HookPoint, name: str) -> torch.Tensor:
        row = self._rows[place]
        if not name.startswith("response_"):
            return row.prompt[point, name]
        pooled_LD = self._pooled_LRD[point, name][:, place]
        if row.num_content == 0:
            return torch.full_like(pooled_LD, torch.nan)
        return pooled_LD / row.num_content if name == "response_mean" else pooled_LD.clone()


def _forget_oldest(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > _KEPT_BEGINNINGS:
        kept.popitem(last=False)
