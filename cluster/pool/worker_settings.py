"""The settings of a worker. Plain values, which are sent to the worker's process when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...jobs.engines import Engine
from ...jobs.interventions import Intervention
from ...jobs.specs.spec_parts import CanarySpec, GenerationSpec, ModelSpec
from ...jobs.specs.store_spec import S3Access
from ...workers.engine import EngineSettings
from ...workers.models.limits import usable_cores
from ...workers.vllm.over_nodes.node_group import NodePlace
from .dialogues import DialogueSettings
from .placement import Placement


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything that a worker needs to start; units come with assignments.

    Attributes:
        engine: The model and how to run it.
        needed_bytes: Bytes of memory that one replica needs on a node; a worker with less free memory refuses to load
            the model.
        store_url: Directory or URL of the run's store.
        endpoint_url: URL of an S3-compatible server; None for AWS and for directories.
        rows_per_block: Rows per row block of the pooled arrays.
        mantissa_bits: Mantissa bits kept of each stored value.
        model: Source of the model, for machines where its directory does not exist; None: all machines have it.
        reads_given: Whether the texts are given, and captured without generating.
        reads_stored: Whether these are responses of another run by their token ids.
        generation: The server that generates; None if the workers generate or the texts are given.
        served_model: Name of the model on that server; empty without a server.
        sentinel: Path of an object in the store that the driver has written. A worker that cannot find it is connected
            to another store and refuses to start. Empty: not checked.
        placement: Resources of a worker of which its node decides something: its threads, or how many replicas share
            its memory; None: nothing.
        tokens_per_block: Rows per row block of the ``tokens`` arrays; 0 in a run without them.
        canary: Which rollouts are compared with a plain forward pass.
        access: How requests to the store's bucket are made.
        engine_name: The engine that runs the model.
        intervention: Edits under which every rollout is made; sent once, and not with every request. None for none.
        num_nodes: Nodes of each replica; more than one takes vLLM.
        dialogues: What dialogues need; None where every rollout is a single response, or the texts are given.
        weights: Whether a replica of the built-in engine holds all its weights, streams them, or decides by the memory
            of its machine.
        copies: Replicas that may share the memory of its node: where ``weights`` is ``auto``, they are held only if
            there is room for all of them.
        streamed_bytes: Bytes of memory that one replica needs that streams its weights.
        walk_tokens: Tokens that such a replica reads each time its weights are; None: it measures how many it needs.
        place: The place of this process in its replica; None until the nodes of the replica are known, and on one node.
    """

    engine: EngineSettings
    needed_bytes: int
    store_url: str
    endpoint_url: str | None
    rows_per_block: int
    mantissa_bits: int
    model: ModelSpec | None = None
    reads_given: bool = False
    reads_stored: bool = False
    generation: GenerationSpec | None = None
    served_model: str = ""
    sentinel: str = ""
    tokens_per_block: int = 0
    access: S3Access = field(default_factory=S3Access)
    canary: CanarySpec = field(default_factory=CanarySpec)
    placement: Placement | None = None
    engine_name: Engine = "builtin"
    intervention: Intervention | None = None
    num_nodes: int = 1
    place: NodePlace | None = None
    dialogues: DialogueSettings | None = None
    weights: Literal["auto", "resident", "streamed"] = "resident"
    streamed_bytes: int = 0
    copies: int = 1
    walk_tokens: int | None = None

    def on_node(self, num_cpus: float, num_gpus: float) -> WorkerSettings:
        """Return the settings of a worker that was placed on a node.

        Args:
            num_cpus: All CPUs of the node, as its cluster counts them.
            num_gpus: All GPUs of the node.
        """
        if self.placement is None:
            return self
        # Replicas with GPUs share none. On a CPU none of them can tell which of the others have taken their memory yet.
        places = 1 if self.placement.num_gpus else self.placement.places_on(num_cpus, num_gpus)
        placed = replace(self, copies=max(1, min(self.placement.replicas, places)))
        if not self.placement.node_decides:
            return placed
        # The cluster may count cores that the worker's container must not use.
        threads = min(self.placement.threads_on(num_cpus, num_gpus), usable_cores())
        return replace(placed, engine=replace(self.engine, threads=threads))
