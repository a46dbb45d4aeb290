"""bertviz's head view and model view of our own models, without a network.

bertviz (Jesse Vig, arXiv 1906.05714) loads its libraries from the network when it is shown. Here they
stand in the page: `static/vendor` holds jQuery and the parts of D3 that it uses, with their licences.
"""

import json
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from gptcore.decoder import Decoder
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import STATIC, drawable, picture, token_labels, with_picture
from gptcore.widgets.attention import attention_maps, read_as

MOST_TOKENS = 32
"""The page holds every weight as text: 64 tokens would make it four times as large."""

_D3 = ("selection", "collection", "array", "color", "interpolate", "scale", "scale-chromatic")

# The libraries fill objects of their own and leave the page's names alone; `requirejs` is what bertviz calls.
_SCRIPT = """
(function () {
  const d3 = {};
  (function (exports, module, require) {
%(d3)s
  }).call({}, d3, {}, () => d3);
  const box = { exports: {} };
  (function (module, exports) {
%(jquery)s
  }).call(window, box, box.exports);
  const require = { config() {} };
  const requirejs = (names, start) => start(box.exports, d3);
%(bertviz)s
})();
"""


def offline(html: str) -> str:
    """bertviz's page with its libraries in it, and nothing in it that could end the script.

    Args:
        html: what bertviz returns: a tag that loads require.js, a frame, a script.

    Raises:
        ValueError: if it looks different, as of another version of bertviz.
    """
    try:
        _, frame = html.split("</script>", 1)  # the first tag loads from the network
        frame, body = frame.split('<script type="text/javascript">', 1)
        body, rest = body.rsplit("</script>", 1)
    except ValueError as error:
        raise ValueError("bertviz returned a page of an unknown form: install bertviz 1.4") from error
    if rest.strip() or "requirejs(" not in body or "require.config(" not in body:
        raise ValueError("bertviz returned a page of an unknown form: install bertviz 1.4")
    # A token may say </script>: inside a string "<\/" means the same and ends nothing.
    for opening in ("</", "<!--", "<script"):
        body = body.replace(opening, f"<\\{opening[1:]}")
    # The addresses from which the libraries would be loaded; nothing asks for them any more.
    start, end = body.index("require.config("), body.index("requirejs(")
    vendor = STATIC / "vendor"
    parts = {
        "d3": "\n".join((vendor / f"d3-{name}.min.js").read_text(encoding="utf-8") for name in _D3),
        "jquery": (vendor / "jquery.slim.min.js").read_text(encoding="utf-8"),
        "bertviz": body[:start] + body[end:],
    }
    # bertviz writes dark on light, whatever the page's theme is.
    frame = f'<div style="background: white; color: black; padding: 8px; overflow: auto">{frame}</div>'
    return f"{frame}<script>{_SCRIPT % parts}</script>"


class Page:
    """HTML for the notebook, with a static picture for where no script may run."""

    def __init__(self, html: str, png: bytes, words: str) -> None:
        self.html, self.png, self.words = html, png, words

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return with_picture({"text/html": self.html}, self.png, self.words)


def _page(
    view: Callable[..., Any], title: str, model: Decoder, tokenizer: Tokenizer, text: str, form: str, **settings: Any
) -> Page:
    ids = read_as(tokenizer, text, form)[: min(MOST_TOKENS, model.config.context_length)]
    weights = attention_maps(model, ids).masked  # (L, H, T, T)
    labels = token_labels(tokenizer, ids)
    # Four digits suffice, and make the page three times smaller.
    # What is no number, of a model that has diverged, is drawn as no line.
    rounded = [layer[None].double().nan_to_num(0.0).round(decimals=4) for layer in weights]
    html = view(attention=rounded, tokens=labels, prettify_tokens=False, html_action="return", **settings).data
    words = f"{title} of {json.dumps(text[:80], ensure_ascii=False)} (interactive where scripts may run)"
    return Page(offline(html), _picture(weights, labels, ids), words)


def _picture(weights: Tensor, labels: list[str], ids: list[int]) -> bytes:
    """All heads of the last layer as lines between the tokens."""

    def draw(figure: Figure) -> None:
        names = [drawable(label, token) for label, token in zip(labels, ids, strict=True)]
        panels = figure.subplots(1, weights.shape[1], squeeze=False)[0]
        for head, axes in enumerate(panels):
            for row in range(len(ids)):
                for column in range(row + 1):
                    alpha = float(weights[-1, head, row, column])
                    if alpha > 0.05:
                        axes.plot([0, 1], [row, column], color=f"C{head}", alpha=alpha, lw=2)
            axes.set(xticks=[], ylim=(len(ids), -1), xlim=(0, 1))
            axes.set_yticks(range(len(ids)) if head == 0 else [], names if head == 0 else [], fontsize=6)
            axes.set_title(f"last layer, head {head}", fontsize=7)

    return picture(draw, 9, 0.6 + 0.2 * len(ids))


def head_view(
    model: Decoder, tokenizer: Tokenizer, text: str, form: str = "text", layer: int = 0, heads: list[int] | None = None
) -> Page:
    """bertviz's head view: lines from each token to those that it looks at; click on colours to choose heads.

    Args:
        model: any decoder.
        tokenizer: its tokenizer.
        text: what is read; at most 32 tokens are shown.
        form: "text" or "question" in the chat template.
        layer: which layer comes first.
        heads: which heads are shown first; None for all.

    Raises:
        ImportError: if bertviz is not installed.
    """
    import bertviz

    return _page(bertviz.head_view, "bertviz head view", model, tokenizer, text, form, layer=layer, heads=heads)


def model_view(model: Decoder, tokenizer: Tokenizer, text: str, form: str = "text") -> Page:
    """bertviz's model view: every head of every layer as a thumbnail; click one to see it large.

    Arguments and errors as in `head_view`.
    """
    import bertviz

    return _page(bertviz.model_view, "bertviz model view", model, tokenizer, text, form, display_mode="light")
