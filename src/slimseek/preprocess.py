"""How what is searched becomes what a network takes, and its scores what a reader sees: kept with the model, so that
training and serving do the same.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from slimseek.errors import UsageError
from slimseek.value import Value


class TextPreprocess(Value, frozen=True):
    """How a text becomes token ids: kept with the model, so that training and serving do the same.

    Attributes:
        max_length: longest sequence in tokens, special tokens included; longer texts are cut.
        pad_id: id that fills a row up to the batch's length.
        query_prefix: text put before every query (``"query: "`` for E5), often empty.
        document_prefix: text put before every document, often empty.
        token_table: name of the tensor that holds one row a token; ``None`` when it is not known.
    """

    max_length: int
    pad_id: int = 0
    query_prefix: str = ""
    document_prefix: str = ""
    token_table: str | None = None


class FeaturePreprocess(Value, frozen=True, omit_defaults=True):
    """How a row of features becomes the narrower one that the network takes: some columns, or a projection.

    Attributes:
        width: of the items as they are stored.
        columns: those that are kept, ascending; empty for a projection z = (x - mean) P.
        mean: float32 [width], little-endian bytes.
        components: P, float32 [width, components], little-endian bytes.
    """

    width: int
    columns: tuple[int, ...] = ()
    mean: bytes = b""
    components: bytes = b""


class PicturePreprocess(Value, frozen=True, omit_defaults=True):
    """How a picture becomes pixels: kept with the model, so that training and serving do the same.

    value = (pixel * rescale - mean) / std, pixels from 0 to 255 in RGB.

    Attributes:
        height: of what the network takes, in pixels; ``width`` likewise.
        fit: ``squash`` resizes both sides to it; ``crop`` resizes the picture so that the middle ``crop_share`` of its
            shorter side fills it, and cuts the rest off.
        resample: the filter of the resizing.
        rescale: factor of the pixels.
        mean: of each channel, after the factor.
        std: of each channel, after the factor.
        channels_last: whether the network takes [n, height, width, 3] instead of [n, 3, height, width].
        bgr: whether blue stands first.
    """

    height: int
    width: int
    fit: Literal["squash", "crop"] = "squash"
    crop_share: float = 1.0
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels_last: bool = False
    bgr: bool = False


class SoundPreprocess(Value, frozen=True, omit_defaults=True):
    """How a recording becomes what the network takes: kept with the model, so that training and serving do the same.

    Attributes:
        rate: samples a second that the network was trained on; other recordings are resampled.
        features: ``whisper`` (log-mel spectrum of windows of ``seconds``, as its authors define it), ``log_mel``,
            ``mfcc``, or the ``waveform`` itself.
        seconds: length that a recording is filled up or cut to; 0 for its own.
        short: length that one which fits is filled up to instead, of ``whisper``; 0 for none.
        window: samples of a frame, and ``hop`` from one to the next.
        hop: see ``window``.
        mels: bands of the mel scale.
        low: lowest frequency of the bands in Hz, and ``high`` the highest; 0 for half of the rate.
        high: see ``low``.
        coefficients: of the cepstrum that are kept, where the features are ``mfcc``.
        channels_last: whether the network takes [n, frames, bands] (and [..., 1] where its input has four axes)
            instead of [n, bands, frames].
    """

    rate: int
    features: Literal["whisper", "log_mel", "mfcc", "waveform"]
    seconds: float = 0.0
    short: float = 0.0
    window: int = 400
    hop: int = 160
    mels: int = 80
    low: float = 0.0
    high: float = 0.0
    coefficients: int = 0
    channels_last: bool = False


class Decoding(Value, frozen=True, omit_defaults=True):
    """How the scores of a recogniser become text, the likeliest token each time.

    Attributes:
        kind: ``autoregressive`` (a decoder that reads what it has said) or ``ctc`` (a token for each frame; repeated
            ones are one, and blanks are left out).
        end: id of the token that ends a transcript; of ``ctc`` the blank.
        prompt: ids that every transcript begins with; the language's token stands after the first where there are
            ``languages``.
        languages: token of each language that can be asked for; empty for a model of one language.
        language: whose token is used; ``""`` for the likeliest one in each recording.
        suppressed: ids that are never said.
        suppressed_first: ids that are not said first.
        most: tokens of a window at most.
        end_above: probability, 0 to 1, above which the end's token ends a transcript; below it the likeliest other
            token is said.
    """

    kind: Literal["autoregressive", "ctc"]
    end: int
    prompt: tuple[int, ...] = ()
    languages: dict[str, int] = msgspec.field(default_factory=dict)
    language: str = ""
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    most: int = 224
    end_above: float = 0.0

    def prompt_in(self, language: str) -> list[int]:
        """What a transcript in this language begins with.

        Raises:
            UsageError: the model has several, and this is none of them.
        """
        if not self.languages:
            return list(self.prompt)
        if language not in self.languages:
            raise UsageError(f"the model has no language {language!r}; it has {', '.join(self.languages)}")
        return [*self.prompt[:1], self.languages[language], *self.prompt[1:]]
