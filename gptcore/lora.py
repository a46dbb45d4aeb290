"""Low-rank adapters: a large model learns by a few numbers beside its weights, which stay as they are.

Training keeps a gradient and two averages for each number that learns: three times the model's own memory. LoRA
(arXiv 2106.09685) puts a narrow detour beside each matrix W of the layers, y = W x + scale B A x, and only A and B learn.
After a stage they are folded into the weights, W + scale B A: what is saved is an ordinary model, and nothing else needs
to know of adapters. No chapter builds it; an exercise of notebooks/08_fine_tuning.ipynb folds one in.
"""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.decoder import Decoder
from gptcore.reward import RewardModel
from gptcore.tokenizer import ASSISTANT, END, USER, Tokenizer
from gptcore.training import generator_for

Model = TypeVar("Model", bound=Decoder | RewardModel)

ALPHA = 32
"""The detour is multiplied by ALPHA / rank: one learning rate then suits every rank (Schulman et al. 2025,
thinkingmachines.ai/blog/lora)."""


class LowRank(nn.Linear):
    """A linear layer and its detour: `(..., m)` to `(..., n)`. Weight `(n, m)` and bias are the layer's own, not copies.

    Args:
        linear: the layer.
        rank: width of the detour.
        generator: draws A; B is 0, so that at the start the layer does what it did.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = ALPHA / rank
        drawn = torch.rand(rank, self.in_features, generator=generator, dtype=torch.float32, device="cpu")
        # Between -1 and 1, divided by sqrt(m), as in the authors' code.
        self.down = nn.Parameter(((2 * drawn - 1) / math.sqrt(self.in_features)).to(self.weight))  # A (rank, m)
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))  # B (n, rank)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """An ordinary layer that does the same, with a weight of its own."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.weight + self.scale * self.up @ self.down), self.bias
        return linear


def with_adapters(model: Model, rank: int, seed: int = 0) -> Model:
    """A model that learns by adapters on all linear layers of its decoder's layers; of a reward model the head learns, too.

    Args:
        model: whose weights it shares; no step changes them.
        rank: of the adapters.
        seed: of their start.

    Raises:
        ValueError: as `check_rank`.
    """
    check_rank(model, rank)
    adapted, generator = _in_the_same_memory(model).requires_grad_(False), generator_for(seed)
    for part, name, linear in _linear_layers(adapted):
        setattr(part, name, LowRank(linear, rank, generator))
    if isinstance(adapted, RewardModel):
        adapted.head = copy.deepcopy(adapted.head).requires_grad_(True)
    return adapted


@torch.no_grad()
def merged(model: Model) -> Model:
    """The model with its adapters folded into new weights, the others in the same memory; itself, if it has none."""
    if rank_of(model) is None:
        return model
    folded = _in_the_same_memory(model)
    for part, name, linear in _linear_layers(folded):
        assert isinstance(linear, LowRank)
        setattr(part, name, linear.merged())
    return folded


@torch.no_grad()
def tell_chat_tokens_apart(model: Decoder, tokenizer: Tokenizer, seed: int = 0) -> None:
    """Move the chat template's tokens away from each other, about as far as any two tokens are.

    They start alike (`introduce_chat_tokens`), and the embeddings do not learn: left so, the model could not tell who
    speaks, nor prefer the end of an answer to that of a text.
    """
    generator = generator_for(seed)
    for weight in dict.fromkeys((model.embedding.weight, model.head.weight)):  # one, if they are tied
        spread = weight.std(dim=0)  # (C,)
        for token in (USER, ASSISTANT, END):
            drawn = torch.randn(len(spread), generator=generator, dtype=torch.float32, device="cpu")
            weight[tokenizer.special[token]] += spread * drawn.to(weight)


def rank_of(model: Decoder | RewardModel) -> int | None:
    """Rank of a model's adapters; None if it has none."""
    linear = _linear_layers(model)[0][2]
    return len(linear.down) if isinstance(linear, LowRank) else None


def check_rank(model: Decoder | RewardModel, rank: int) -> None:
    """Refuse a rank that no matrix has.

    Raises:
        ValueError: if it is below 1, or above the features of the narrowest layer.
    """
    narrowest = min(min(linear.weight.shape) for _, _, linear in _linear_layers(model))
    if not 1 <= rank <= narrowest:
        raise ValueError(f"the rank of LoRA must be from 1 to {narrowest}, the model's narrowest layer, got {rank}")


def _linear_layers(model: Decoder | RewardModel) -> list[tuple[nn.Module, str, nn.Linear]]:
    """All inside the decoder's layers: the part of the model that holds it, its name there, and the layer."""
    layers = (model.trunk if isinstance(model, RewardModel) else model).layers
    held = [(part, name, child) for part in layers.modules() for name, child in part.named_children()]
    return [(part, name, child) for part, name, child in held if isinstance(child, nn.Linear)]


def _in_the_same_memory(model: Model) -> Model:
    """A copy whose parameters are others in the same memory: what learns in one need not learn in the other."""
    shared = {id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()}
    return copy.deepcopy(model, shared)
