"""Engines: how several processes take one step, and who of them keeps the weights.

With torch's `DistributedDataParallel` each has the whole model, and the gradients are averaged while the backward pass
still goes on, so that all models stay equal. Where a model does not fit, torch's `fully_shard` (arXiv 2304.11277) leaves
each process a share of its weights, gradients and optimizer states; a layer is gathered when it is read. (In half precision autograd
keeps the rounded copy of what was gathered until the backward pass.) Answers are drawn token by token, which would
gather every layer for every token: for that, and where a model is asked or graded, it is whole for a while (`whole`).
What this saves are gradients and averages: a model is whole, too, before and after its stage.
No chapter builds it; notebooks/12_beyond.ipynb averages gradients by hand.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptcore.decoder import DecoderLayer
from gptcore.machine import choose_device
from gptcore.parallel import as_share, divided, for_the_file, gathered, processes

# --- Shares --------------------------------------------------------------------------------------


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(choose_device().type, (processes(),))


class HasParameters(Protocol):
    """A module, or what stands for one (`reward.Grader`)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, in an order that stays."""
        ...


_shares: WeakKeyDictionary[HasParameters, list[Tensor]] = WeakKeyDictionary()
"""Of each model that is divided the shares of its parameters, in their order; the model itself is empty, unless `whole`."""


def share(*models: HasParameters) -> None:
    """Keep of models that do not learn this process's share only, if models are divided.

    Raises:
        ValueError: if two of them have parameters in common, or one of them is divided already.
    """
    if not divided():
        return
    parameters = [parameter for model in models for parameter in model.parameters()]
    if len(set(parameters)) < len(parameters) or not all(parameter.numel() for parameter in parameters):
        raise ValueError("models that have parameters in common cannot be divided: leave --shard out")
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = _mesh()
    for model in models:
        copies = [DTensor.from_local(p.detach(), mesh, [Replicate()], run_check=False) for p in model.parameters()]
        _shares[model] = [each.redistribute(placements=[Shard(0)]) for each in copies]
        _empty(model)


def _empty(model: HasParameters) -> None:
    for parameter in model.parameters() if model in _shares else ():
        parameter.data = parameter.data.new_empty(0)


def _fill(model: HasParameters) -> None:
    if model in _shares:
        for parameter, its_share in zip(model.parameters(), _shares[model], strict=True):
            parameter.data = gathered(its_share.detach())


@contextmanager
def whole(model: HasParameters) -> Iterator[None]:
    """Context in which a model that is divided has all its weights, to be read only. Each process must come here."""
    _fill(model)
    try:
        yield
    finally:
        _empty(model)


def restore(*models: HasParameters) -> None:
    """Let models be whole again for good, with what they have learned. Each process must come here."""
    for model in models:
        _fill(model)
        _shares.pop(model, None)


# --- Gradients -----------------------------------------------------------------------------------


class _Objective(nn.Module):
    """What is computed with a model, as a module of its own: torch's engines watch what goes through `forward`."""

    def __init__(self, model: nn.Module, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Any) -> Tensor:
        return self.compute(self.model, *inputs)


class Engine:
    """A model and what is computed with it, such that a backward pass averages the gradients over all processes.

    Args:
        model: all of whose trained parameters the last part of each batch depends on. It learns in place; where models
            are divided it is empty until `restore` is called, unless `whole`.
        compute: takes the model first; computes a loss, or a vector of a loss and figures that are only looked at.
    """

    def __init__(self, model: nn.Module, compute: Callable[..., Tensor]) -> None:
        self.learner = model
        """Has the parameters that learn, by their names: the model, or where models are divided its shares."""
        if divided():
            # Another module in the same memory, since `fully_shard` changes what it is given.
            same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
            self.learner = copy.deepcopy(model, same)
        self._objective: nn.Module = _Objective(self.learner, compute)
        if divided():
            from torch.distributed.fsdp import fully_shard

            mesh = _mesh()
            for layer in [part for part in self.learner.modules() if isinstance(part, DecoderLayer)]:
                fully_shard(layer, mesh=mesh)
            fully_shard(self._objective, mesh=mesh)  # embedding, last norm and head
            _shares[model] = list(self.learner.parameters())
            _empty(model)
        elif processes() > 1:
            self._objective = DistributedDataParallel(self._objective)

    def backward_but_last(
        self, parts: Sequence[tuple[tuple[Any, ...], float]], scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """Read the parts of a batch in turn, and go backwards from each but the last; their gradients add up.

        Args:
            parts: what is given to `compute`, and a weight.
            scaler: multiplies the losses before they are gone backwards from.

        Returns:
            the last part's loss, to go backwards from, after which all gradients are averaged; and of the whole batch
            what is computed, detached.
        """
        *earlier, (last, its_weight) = parts
        sums = torch.zeros((), dtype=torch.float32, device="cpu")
        # The last backward pass averages the gradients of all parts. Shares are averaged at each: whole gradients,
        # kept until then, would be what does not fit.
        objective = self._objective
        for part, weight in earlier:
            with objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext():
                found = objective(*part) * weight
                scaler.scale(found.reshape(-1)[0]).backward()
            sums = found.detach() + sums
        found = objective(*last) * its_weight
        return found.reshape(-1)[0], found.detach() + sums

    def weights(self) -> dict[str, Tensor]:
        """The learner's state, `for_the_file`."""
        return for_the_file(self.learner.state_dict())

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave.

        Raises:
            RuntimeError: if it belongs to another model.
        """
        own = self.learner.state_dict()
        self.learner.load_state_dict({name: as_share(tensor, own.get(name)) for name, tensor in tensors.items()})
