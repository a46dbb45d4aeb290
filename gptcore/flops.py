"""Operations: how much a decoder computes to read a text. Counted by hand in notebooks/03_decoder.ipynb."""

from gptcore.decoder import DecoderConfig


def forward_flops(config: DecoderConfig, time: int) -> dict[str, int]:
    """Floating-point operations of reading one sequence, by part; a training step takes three times as many.

    Counted are the matrix products, two operations for each multiply-add (norms and the like are
    negligible); the backward pass has two products for each of the forward pass. Attention counts
    whole `T x T` matrices, as in arXiv 2204.02311, appendix B, although the future is masked.

    Args:
        config: shape of the decoder.
        time: length `T` of the sequence.

    Returns:
        operations of `projections` (queries, keys, values, output), `attention` (scores and mixing),
        `feed_forward` and `head`.
    """
    shared = (config.key_value_heads or config.heads) / config.heads  # of the queries' width, for keys and for values
    width = config.heads * config.features_of_a_head  # of the queries
    matrices = 3 if config.preset == "llama" else 2
    return {
        "projections": round(config.layers * time * 2 * config.width * width * (2 + 2 * shared)),
        "attention": config.layers * 2 * 2 * time**2 * width,
        "feed_forward": config.layers * time * 2 * matrices * config.width * config.feed_forward_width,
        "head": time * 2 * config.width * config.vocabulary_size,
    }
