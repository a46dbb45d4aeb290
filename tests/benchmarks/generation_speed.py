"""Generation: tokens a second with a key-value cache, ours against transformers' generate.

    python tests/benchmarks/generation_speed.py [--repeats 5]

Both have the weights of the shipped base model, continue the same prompts of the atlas and write 64
new tokens for each. First it is made sure that, decoding greedily in float32, both write the same
tokens. Then each draws at temperature 1: `transformers` in float32 and with all weights in bfloat16,
ours as the course uses it.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
import transformers
from common import Measurement, alternate, arguments, report

from gptcore import generation
from gptcore.atlas import LANGUAGES
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.corpus import encode_document
from gptcore.generation import GREEDY, SamplingConfig, generate
from gptcore.interchange import as_transformers
from gptcore.machine import autocast, choose_device
from gptcore.questions import fact_prompts
from gptcore.tokenizer import END
from gptcore.training import generator_for

NEW_TOKENS = 64
BATCHES = (1, 64)


def prompts_of_atlas(tokenizer, count: int) -> list[list[int]]:
    """Beginnings of texts, of different lengths."""
    prompts = [prompt for language in LANGUAGES for prompt in fact_prompts("validation", language, "train")]
    texts = [prompts[i * 997 % len(prompts)].question for i in range(count)]
    return [encode_document(tokenizer, text) for text in texts]


def theirs(model: transformers.PreTrainedModel, prompts: list[list[int]], **settings) -> list[list[int]]:
    """Continue prompts with `transformers`, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    answers = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0, **settings
    )
    return answers[:, width:].tolist()


def timed(write: Callable[[], list[list[int]]]) -> Measurement:
    """Tokens a second, after a first call that is not counted."""
    write()
    start = time.perf_counter()
    written = sum(map(len, write()))
    return {"tokens a second": written / (time.perf_counter() - start)}


def main() -> None:
    """Check that both write the same, then compare the speeds."""
    options = arguments(__doc__, repeats=5).parse_args()
    model, tokenizer = load_stage("base", SHIPPED)
    never = tokenizer.special[END]  # the base model has not learned to say it
    config, tensors = as_transformers(model)
    full = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    full.load_state_dict(tensors)
    full = full.to(choose_device())
    half = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    half.load_state_dict(tensors)
    half = half.to(choose_device(), torch.bfloat16)
    drawn = SamplingConfig(max_new_tokens=NEW_TOKENS)

    sides = {}
    for batch in BATCHES:
        prompts = prompts_of_atlas(tokenizer, batch)
        with mock.patch.object(generation, "autocast", partial(autocast, "fp32")):
            if generate(model, prompts, GREEDY, never) != theirs(full, prompts, do_sample=False):
                sys.exit(f"batch {batch}: greedy decoding in float32 gives other tokens than transformers")
        print(f"batch {batch}: greedy decoding in float32 gives the same {batch * NEW_TOKENS} tokens", flush=True)

        def sampled(other, prompts):
            return timed(lambda: theirs(other, prompts, do_sample=True, temperature=1.0, top_k=0, top_p=1.0))

        sides[f"transformers, float32, batch {batch}"] = lambda _, p=prompts: sampled(full, p)
        sides[f"transformers, bfloat16, batch {batch}"] = lambda _, p=prompts: sampled(half, p)
        sides[f"ours, batch {batch}"] = lambda repeat, p=prompts: timed(
            lambda: generate(model, p, drawn, never, generator_for(repeat))
        )
    report("generation_speed", alternate(sides, options.repeats), options.out)


if __name__ == "__main__":
    main()
