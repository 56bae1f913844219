"""The documents of an index as they are shown: lines of JSON on disk, and the pictures and recordings they name."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np

from slimseek import choose, data, reading
from slimseek.collection import Collection
from slimseek.errors import ArtifactError, UsageError
from slimseek.schema import Array, ModelSpec
from slimseek.value import Value

FILE = "documents.jsonl"
OFFSETS = "offsets.npy"


class Document(Value, frozen=True):
    """A line of ``documents.jsonl``; lines stand in the order of the index.

    Attributes:
        id: the document's.
        text: its own; of a picture or a recording what is said of it, often empty.
        file: of a picture, recording or array: its path in the folder that the index names; unset for a text.
    """

    id: str
    text: str
    file: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, kw_only=True, eq=False)
class Media:
    """The files that documents are, or belong to.

    Attributes:
        folder: where all of them lie.
        files: document id to path.
        said: document id to what is said of the file.
    """

    folder: Path
    files: Mapping[str, str]
    said: Mapping[str, str]


def searched(collection: Collection, spec: ModelSpec) -> tuple[dict[str, str], Media | None]:
    """What an index holds of a collection: document id to what the model reads, and the files that are shown.

    All pictures of a labelled collection are documents, whatever their split: only evaluation sets some apart. A model
    that reads texts is given captions and transcripts; beside a file without one stands its label.

    Args:
        collection: as it was read.
        spec: of the model that makes the index.

    Raises:
        UsageError: labelled texts, or files of which nothing is said for a model that reads texts.
    """
    reads, said = spec.modality == "text", collection.said
    items = collection.queries if collection.labelled else collection.corpus
    files = {name: item for name, item in items.items() if not reads or item in said}
    if reads and (files or collection.labelled):
        items = {name: said.get(item, item) for name, item in items.items() if said.get(item, not collection.labelled)}
        if not items:
            raise UsageError(f"{collection.name} holds labelled items without captions, and nothing to search by texts")
    if not files:
        return items, None
    label = collection.label if collection.labelled else {}
    told = {name: said.get(item) or label.get(name, "") for name, item in files.items()}
    return items, Media(folder=Path(collection.path).resolve(), files=files, said=told)


def searched_by(source: str | Path, collection: str, spec: ModelSpec) -> tuple[dict[str, str], Media | None]:
    """What is searched in the collection, or in the one that ``source`` was judged by; UsageError without either.

    Returns:
        Document id to what a model of that spec reads, and the files that are shown; see :func:`searched`.
    """
    known = collection or choose.collection_of(source)
    if not known:
        raise UsageError(f"{source} does not say which collection it was judged by; add --data")
    return searched(data.load(known), spec)


def write(folder: Path, corpus: Mapping[str, str], media: Media | None) -> None:
    """The documents as JSON lines, and where each begins, so that one can be read without the others."""
    offsets = [0]
    with (folder / FILE).open("wb") as file:
        for document in _documents(corpus, media):
            line = msgspec.json.encode(document) + b"\n"
            file.write(line)
            offsets.append(offsets[-1] + len(line))
    np.save(folder / OFFSETS, np.array(offsets, np.int64), allow_pickle=False)


def read(folder: Path, count: int, media: str) -> Documents:
    """Open what :func:`write` wrote; lines stay on disk until they are asked for.

    Raises:
        ArtifactError: it cannot be read, or does not hold so many documents.
    """
    try:
        offsets = reading.array(folder / OFFSETS, mapped=True)
        lines = np.memmap(folder / FILE, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: the documents cannot be read: {error}") from error
    fits = offsets.shape == (count + 1,) and offsets.dtype == np.int64
    if not fits or offsets[0] or offsets[-1] != len(lines) or (offsets[1:] < offsets[:-1]).any():
        raise ArtifactError(f"{folder}: {OFFSETS} does not fit {FILE} and the manifest; index again")
    return Documents(lines=lines, offsets=offsets, media=Path(media) if media else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """Documents by their position in the index.

    Attributes:
        lines: uint8 [bytes], the lines of ``documents.jsonl``, mapped from disk.
        offsets: int64 [count + 1], where each line begins.
        media: the folder of the files that they name; ``None`` for texts.
    """

    lines: Array
    offsets: Array
    media: Path | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, position: int) -> Document:
        if not 0 <= position < len(self):
            raise ArtifactError(f"the index names document {position}, and {FILE} holds {len(self)}; index again")
        line = self.lines[self.offsets[position] : self.offsets[position + 1]]
        try:
            found: Document = reading.decoded(line.tobytes(), Document)
        except msgspec.DecodeError as error:
            raise ArtifactError(f"{FILE}: the document at position {position} is not valid: {error}") from error
        return found

    def path(self, position: int) -> Path | None:
        """Where the picture or recording at that position lies; ``None`` where there is no such document or file, or it
        has left its folder, by a link or by a path that climbs out.
        """
        if self.media is None or not 0 <= position < len(self):
            return None
        document = self[position]
        if not document.file:
            return None
        path = self.media / document.file
        return Path(os.path.realpath(path)) if reading.is_inside(path, self.media) and reading.is_file(path) else None


class Joined:
    """The documents of several indexes, by their position over all of them."""

    def __init__(self, parts: Sequence[Documents | Joined]) -> None:
        self._parts = tuple(parts)
        self._starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> Document:
        if not 0 <= position < len(self):
            raise ArtifactError(f"the index names document {position}, and there are {len(self)}; index again")
        part, place = self._place(position)
        return part[place]

    def path(self, position: int) -> Path | None:
        """Where the picture or recording at that position lies; see :meth:`Documents.path`."""
        if not 0 <= position < len(self):
            return None
        part, place = self._place(position)
        return part.path(place)

    def _place(self, position: int) -> tuple[Documents | Joined, int]:
        number = bisect_right(self._starts, position) - 1
        return self._parts[number], position - self._starts[number]


def _documents(corpus: Mapping[str, str], media: Media | None) -> Iterator[Document]:
    for name, text in corpus.items():
        if media is None or name not in media.files:
            yield Document(id=name, text=text)
        else:
            yield Document(
                id=name, text=media.said.get(name, ""), file=_relative(Path(media.files[name]), media.folder)
            )


def _relative(path: Path, folder: Path) -> str:
    """The path within the folder with forward slashes; as it is where it lies elsewhere, which is never served."""
    whole = path.absolute()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(path)
