"""What all views share: messages from the browser, errors in words, static pictures, readable tokens.

A view is an anywidget: Python holds `data`, which a small script of `static/` draws. What the reader
does comes back as a message that names one of the view's `do_...` methods. A view computes nothing
itself: its data come from functions that stand before it in its module and call the core.

Scripts and styles of ours are sent with the view. Where it cannot run (a notebook only looked at: not yet
trusted, opened again without its kernel, exported) a static picture is shown, which is an output of its
own beside the view's; the running view hides it, and it hides what remains of a view that does not run.
"""

import base64
import html
import io
import math
import textwrap
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from IPython.display import DisplayHandle, display
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from torch import Tensor

from gptcore.checkpoint import STAGES, load_stage
from gptcore.decoder import Decoder
from gptcore.tokenizer import Tokenizer

STATIC = Path(__file__).parent / "static"


def script(name: str) -> str:
    """The script of a view: what all of them share, then its own."""
    return "\n".join((STATIC / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name))


# --- Tokens as people read them ------------------------------------------------------------------

_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def readable(piece: bytes) -> str:
    """A token's bytes for people: spaces become visible, and what is no character is written in hexadecimal.

    No sign of the result controls how others are shown, as one that turns the direction of writing would.
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return f"‹{piece.hex(' ').upper()}›"
    signs = [_SIGNS.get(sign, sign if sign.isprintable() else f"‹{ord(sign):X}›") for sign in text]
    if signs and unicodedata.category(text[0]).startswith("M"):
        signs.insert(0, "◌")  # an accent needs something to stand on
    return "".join(signs)


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """One token as people read it; a special token by its name.

    Raises:
        ValueError: if the id is not in the vocabulary.
    """
    if token >= len(tokenizer.token_bytes):
        return tokenizer.token_text(token)
    return readable(tokenizer.decode_bytes([token]))


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Several tokens as people read them."""
    return [token_label(tokenizer, token) for token in ids]


# --- Models --------------------------------------------------------------------------------------


class Models:
    """The decoders that a view lets the reader choose from; those of the chain are loaded when first needed.

    Args:
        model: a decoder of the reader's own, several by name, or None for the stages of the chain.
        tokenizer: of the reader's own decoders.

    Raises:
        ValueError: if a decoder comes without its tokenizer.
    """

    def __init__(
        self,
        model: Decoder | dict[str, Decoder] | None,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._loaded: dict[str, tuple[Decoder, Tokenizer]] = {}
        if model is not None:
            if tokenizer is None:
                raise ValueError("a model of your own needs its tokenizer, too: pass both")
            own = {"yours": model} if isinstance(model, Decoder) else model
            self._loaded = {name: (decoder, tokenizer) for name, decoder in own.items()}
        self.names = list(self._loaded or (stage for stage in STAGES if stage != "reward"))

    def __getitem__(self, name: str) -> tuple[Decoder, Tokenizer]:
        if name not in self.names:
            raise ValueError(f"there is no model {name!r}: choose one of {', '.join(self.names)}")
        if name not in self._loaded:
            self._loaded[name] = load_stage(name)
        return self._loaded[name]


# --- Static pictures -----------------------------------------------------------------------------


@cache
def _drawn_by_default() -> frozenset[int]:
    font = FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    return frozenset(font.get_charmap())


def drawable(label: str, number: int | None = None) -> str:
    """A label that matplotlib's own font has; for any other text its number, or how long it is.

    A dollar sign would begin a formula.
    """
    if all(ord(sign) in _drawn_by_default() for sign in label):
        return label.replace("$", r"\$")
    return f"[{len(label)} characters]" if number is None else f"#{number}"


def picture(draw: Callable[[Figure], None], width: float = 8.0, height: float = 3.6) -> bytes:
    """A PNG of what `draw` puts on a figure, on an opaque white ground; inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90, metadata={"Software": None})
    return file.getvalue()


def picture_of_lines(title: str, lines: Sequence[str]) -> bytes:
    """A PNG of some texts below each other; what matplotlib's font cannot draw is left out and said."""
    rows = [row for line in lines for row in textwrap.wrap(drawable(line), 96) or [""]]

    def draw(figure: Figure) -> None:
        for number, row in enumerate([title, *rows]):
            y = 1 - (number + 0.7) / (len(rows) + 1.6)
            figure.text(0.02, y, row, fontsize=9, va="center", weight="bold" if number == 0 else "normal")

    return picture(draw, 8, 0.24 * (len(rows) + 1.6))


def with_picture(bundle: dict[str, Any], png: bytes, words: str) -> dict[str, Any]:
    """An output in several forms, the picture and words among them for where the first cannot be shown."""
    return bundle | {"image/png": base64.b64encode(png).decode(), "text/plain": words}


def in_its_place(key: str, png: bytes | None, words: str) -> dict[str, Any]:
    """An output that stands beside a view's and is seen where the view does not run.

    JupyterLab would say "model not found" about a view whose kernel is gone, though the same output held a picture.
    So the picture is an output before it, and its style hides the next one until a view is drawn there. The view's
    script in its turn hides whatever bears its key.

    Args:
        key: of the view.
        png: the picture; None if there is none yet.
        words: what to say below it.
    """
    bundle = {} if png is None else with_picture({}, png, words)
    image = (
        "" if png is None else f'<img style="max-width: 100%" alt="" src="data:image/png;base64,{bundle["image/png"]}">'
    )
    place = f'.jp-OutputArea-child:has([data-gptcore="{key}"])'
    style = f"<style>{place} + .jp-OutputArea-child:not(:has(.gptcore)) {{ display: none; }}</style>"
    page = f'<div data-gptcore="{key}">{image}<p>{html.escape(words)}</p></div>{style}'
    return bundle | {"text/html": page, "text/plain": words}


# --- The view ------------------------------------------------------------------------------------


class View(anywidget.AnyWidget):
    """A view in the browser: it draws `data`, and asks for `do_...` methods by message."""

    _css = (STATIC / "views.css").read_text(encoding="utf-8")
    title = "view"
    """The view's name in words and pictures; its script says the same to screen readers."""
    data = traitlets.Dict().tag(sync=True)
    """What is drawn."""
    error = traitlets.Unicode().tag(sync=True)
    """What went wrong, in words; the view shows it."""
    key = traitlets.Unicode().tag(sync=True)
    """By which the view's script finds the picture that stands in its place, see `in_its_place`."""

    def __init__(self, **values: Any) -> None:
        super().__init__(key=uuid.uuid4().hex, **values)
        self.on_msg(lambda _, content, __: self.receive(content))

    @traitlets.validate("data")
    def _only_what_json_can_say(self, proposal: dict[str, Any]) -> dict[str, Any]:
        return sendable(proposal["value"])

    def receive(self, content: dict[str, Any]) -> None:
        """Do what a message asks for, `{"do": name, "with": arguments}`, and confirm it.

        What the reader did wrong (a `ValueError` of the core says what) is shown. So is any other
        exception, which is also raised: it is a mistake of ours.
        """
        try:
            self.error = ""
            getattr(self, f"do_{content['do']}")(**content.get("with", {}))
        except ValueError as error:
            self.error = str(error)
        except Exception as error:
            self.show_mistake(error)
            raise
        finally:
            self.send({"done": content.get("number")})

    def show_mistake(self, error: BaseException) -> None:
        """Say that something failed that should not."""
        self.error = f"This view has failed: {type(error).__name__}: {error}. Run its cell again to start anew."

    def static_picture(self) -> bytes:
        """PNG of the view as it is now, for where it cannot run."""
        raise NotImplementedError

    def words(self) -> str:
        """The view in one line."""
        return f"{self.title} (interactive: run this cell in JupyterLab, Notebook 7, Colab or VS Code)"

    def _ipython_display_(self) -> None:
        self._show_beside(self.static_picture())

    def _show_beside(self, png: bytes | None) -> DisplayHandle | None:
        """Show the picture that stands in the view's place, then the view; a handle of the picture if IPython runs."""
        handle = display(in_its_place(self.key, png, self.words()), raw=True, display_id=True)
        bundle, metadata = self._without_picture()
        display(bundle | {"text/plain": ""}, metadata=metadata, raw=True)  # the picture's output has the words
        return handle

    def _without_picture(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**settings)
        assert bundle is not None  # anywidget has none only where there is no view
        return bundle

    def _repr_mimebundle_(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """View and picture in one output, for whoever asks for that and not for a display."""
        bundle, metadata = self._without_picture(**settings)
        return with_picture(bundle, self.static_picture(), self.words()), metadata


def rounded(values: Tensor | Sequence[float], digits: int = 5) -> list[float | None]:
    """Numbers short enough to be sent; None for those that are not finite."""
    return sendable([round(value, digits) for value in torch.as_tensor(values).float().flatten().tolist()])


def sendable(value: Any) -> Any:
    """A value as JSON can say it: None stands for each number that is not finite, and the views leave a gap there.

    JSON has no infinity and no NaN; browsers refuse the message, or get the word "inf" where they expect a number.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: sendable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(sendable, value))
    return value
