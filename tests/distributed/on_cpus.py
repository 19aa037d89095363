"""Accelerate's FSDP2 plugin on CPUs: it shards where it sees several GPUs, and is told here that there are some."""

from collections.abc import Callable

from accelerate.state import PartialState
from accelerate.utils import DistributedType


def with_gpus() -> Callable[..., None]:
    """`PartialState.__init__` of processes that train on CPUs, over gloo, as if each had a GPU."""
    start = PartialState.__init__

    def initialised(self, cpu=False, **kwargs):
        first = not self._shared_state
        start(self, cpu=True, **kwargs)
        if first:
            self.distributed_type = DistributedType.MULTI_GPU

    return initialised
