"""What the service takes and answers, as ``/openapi.json`` describes it, and results as they are shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query, Response
from pydantic import BaseModel, Field

from slimseek.schema import Array
from slimseek.search import MOST_HITS, Answer, Result, Stats
from slimseek.serving import uploads
from slimseek.serving.work import Role

MOST_TEXTS = 64
LONGEST_TEXT = 10_000
LONGEST_SNIPPET = 600

Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Which = Literal["compressed", "original"]
K = Annotated[int, Query(ge=1, le=MOST_HITS)]
Asks = Annotated[str, Query(max_length=LONGEST_TEXT)]


class EmbedRequest(BaseModel, extra="forbid"):
    """The body of ``POST /embed``."""

    texts: Texts
    model: Which = "compressed"
    role: Role = "query"


class Failure(BaseModel):
    """Why a request has no other answer, in one line."""

    error: str


class Milliseconds(BaseModel):
    """Where the time of an answer went; ``encode`` and ``search`` are those of its whole batch."""

    wait: float
    encode: float
    search: float
    transcribe: float | None = None


class Hit(BaseModel):
    """A document that was found; ``picture`` and ``recording`` are addresses at this service."""

    id: str
    score: float
    rank: int
    text: str
    picture: str | None = None
    recording: str | None = None


class Found(BaseModel):
    """The answer to one query; ``query`` is missing where it was a picture, or a recording that is searched by."""

    query: str | None = None
    model: Which
    milliseconds: Milliseconds
    results: list[Hit]


class Side(BaseModel):
    """One model's half of a comparison."""

    milliseconds: Milliseconds
    results: list[Hit]


class Moved(BaseModel):
    """A document that one of both models ranks elsewhere; a rank is null where it is not among the first ``k``."""

    id: str
    compressed: int | None
    original: int | None


class Compared(BaseModel):
    """Both models side by side; ``overlap`` is the share of the original's first ``k`` that the other finds, too."""

    query: str
    k: int
    overlap: float
    moved: list[Moved]
    compressed: Side
    original: Side


class Vectors(BaseModel):
    """Vectors in the order of the texts."""

    model: Which
    dim: int
    vectors: list[list[float]]


class Health(BaseModel):
    """What is served; ``version`` counts the swaps from 1."""

    status: Literal["ok"]
    version: int
    queries: list[str]
    models: dict[str, Stats]


class Ready(BaseModel):
    """Whether requests are answered at full speed."""

    status: Literal["ready", "warming"]


class Reply(Response):
    """JSON that is known to fit its model, so that it is not checked again for each request."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The content as JSON."""
        return msgspec.json.encode(content)


def shown(answer: Answer, model: Which, version: int, waited: float) -> dict[str, Any]:
    """The answer to one query as a :class:`Side`; times in milliseconds, ``waited`` in seconds."""
    return {
        "milliseconds": {
            "wait": round(1000 * waited, 3),
            "encode": round(answer.encode_milliseconds, 3),
            "search": round(answer.search_milliseconds, 3),
        },
        "results": [_hit(result, model, version) for result in answer.results[0]],
    }


def compared(query: str, k: int, compressed: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """Both sides of a query as :class:`Compared`."""
    ranks = [{hit["id"]: hit["rank"] for hit in side["results"]} for side in (compressed, original)]
    ids = list(dict.fromkeys((*ranks[1], *ranks[0])))
    pairs = [{"id": name, "compressed": ranks[0].get(name), "original": ranks[1].get(name)} for name in ids]
    return {
        "query": query,
        "k": k,
        "overlap": len(ranks[0].keys() & ranks[1].keys()) / max(1, len(ranks[1])),
        "moved": [pair for pair in pairs if pair["compressed"] != pair["original"]],
        "compressed": compressed,
        "original": original,
    }


def vectors(found: Array, model: Which) -> dict[str, Any]:
    """Float32 [n, dim] as :class:`Vectors`."""
    return {"model": model, "dim": found.shape[1], "vectors": found.tolist()}


def _hit(result: Result, model: Which, version: int) -> dict[str, Any]:
    """A result as a :class:`Hit`, with the address of its picture or recording where it has one."""
    hit = {"id": result.id, "score": result.score, "rank": result.rank, "text": snippet(result.text)}
    kind = uploads.content_type(result.file) if result.file else None
    if kind is not None:
        field = "picture" if kind.startswith("image/") else "recording"
        hit[field] = f"item/{result.position}?model={model}&version={version}"
    return hit


def snippet(text: str, longest: int = LONGEST_SNIPPET) -> str:
    """The beginning of a text on one line, cut between words where that is possible."""
    line = " ".join(text[: 4 * longest].split())
    if len(line) <= longest:
        return line
    cut = line[: longest - 1]
    return (cut.rpartition(" ")[0] or cut) + "…"
