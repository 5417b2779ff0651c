"""How close generated sentences are to those people wrote: ROUGE-L, CIDEr, METEOR, SPICE and BERTScore, times 100.

The numbers are pycocoevalcap's (extra "describe"), which is what papers on captions report; BERTScore is
`evaluation.bertscore`. What a metric needs and does not find is said, never downloaded here: Java for METEOR, SPICE and
the Penn Treebank tokenization, Stanford CoreNLP's files for SPICE, a BERT-like model for BERTScore.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from everyframe.evaluation.bertscore import load_bert
from everyframe.extras import require

METRICS = ("ROUGE-L", "CIDEr", "METEOR", "SPICE", "BERTScore")
Tokenization = Literal["ptb", "plain"]
_EXTRA = "describe"
_CORENLP = "stanford-corenlp-3.6.0"
_PUNCTUATION = re.compile(r"(?!(?<=\d)[.,](?=\d))[^\w\s'’-]|_")
_CLITIC = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))$")
Texts = dict[str, list[str]]


class _ProgramError(ValueError):
    """A program that a metric needs did not do its work."""


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """scores: by metric, times 100. missing: why a metric could not be had. tokenization: "ptb" is that of published
    numbers (Stanford's, by Java), "plain" our own stand-in. clips: how many texts were compared.
    """

    scores: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    tokenization: Tokenization
    clips: int


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] | None = None,
    bert: str | None = None,
) -> CaptionScores:
    """Compare one predicted text per key with the one or more reference texts of the same key.

    metrics: of `METRICS`; None takes all that can be had and says in `missing` why the others cannot. bert: hub id or
    folder of BERTScore's model; by default roberta-large, if it lies in the hub's cache.
    CIDEr weighs n-grams by how rare they are among the references of all keys: it is a number of the whole set, 0 for a
    single key, and up to 1000 in this scale. METEOR too is computed from sums over the set; the others are means.
    Raises ValueError for other keys, no keys, an empty reference, unknown metrics, and for a metric asked for by name
    that cannot be had or whose program fails; ImportError without pycocoevalcap.
    """
    wanted, missing = available(metrics, bert)
    if not references or set(predictions) != set(references):
        raise ValueError(
            f"predictions and references must be of the same clips, got {len(predictions)} and {len(references)} with "
            f"{len(set(predictions) & set(references))} in common"
        )
    if empty := [key for key, texts in references.items() if not texts or not all(text.strip() for text in texts)]:
        raise ValueError(f"{empty[0]} has an empty reference")
    wrote = {key: [_line(text) for text in references[key]] for key in sorted(references)}
    said = {key: [_line(predictions[key])] for key in wrote}
    java = _has_java()
    wrote_tokens, said_tokens = tokenize([wrote, said], "ptb" if java else "plain")
    scores: dict[str, float] = {}
    for name in wanted:
        if name == "BERTScore":  # reads sentences as they are written, with its own tokens
            scores[name] = 100 * load_bert(bert).score(said, wrote)
            continue
        try:
            scores[name] = 100 * _SCORERS[name](wrote_tokens, said_tokens)
        except _ProgramError as error:  # the other metrics are not lost for it
            if metrics is not None:
                raise
            missing[name] = str(error)
    return CaptionScores(scores=scores, missing=missing, tokenization="ptb" if java else "plain", clips=len(references))


def available(metrics: Sequence[str] | None = None, bert: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Which of the metrics can be had, and why the others cannot; arguments and errors are those of `score_captions`.

    To be asked before an hour of work, not after it.
    """
    wanted = METRICS if metrics is None else metrics
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {', '.join(unknown)}")
    require("pycocoevalcap", extra=_EXTRA)
    java = _has_java()
    missing = {name: why for name in wanted if (why := _why_not(name, java, bert)) is not None}
    if metrics is not None and missing:
        raise ValueError("; ".join(missing.values()))
    return [name for name in wanted if name not in missing], missing


def tokenize(groups: Sequence[Texts], how: Tokenization) -> list[Texts]:
    """Lower-cased tokens without punctuation, joined by spaces, of every text."""
    texts = list(dict.fromkeys(text for group in groups for values in group.values() for text in values))
    tokens = dict(zip(texts, _ptb(texts) if how == "ptb" else map(plain_tokens, texts), strict=True))
    return [{key: [tokens[text] for text in values] for key, values in group.items()} for group in groups]


def plain_tokens(text: str) -> str:
    """What stands in for the Penn Treebank tokenization where there is no Java.

    Words are lower-cased, parted from punctuation, which goes, and from n't, 's, 're and the like, which stay. That
    tokenization knows more: abbreviations with points, brackets, signs of money, words such as cannot.
    """
    words: list[str] = []
    for word in _PUNCTUATION.sub(" ", text.lower().replace("’", "'")).split():
        word = word.strip("-")
        clitic = _CLITIC.search(word)
        pieces = [word] if clitic is None else [word[: clitic.start()], clitic.group()]
        words += [piece if piece in pieces[1:] else piece.strip("'") for piece in pieces]
    return " ".join(word for word in words if word)


def _line(text: str) -> str:
    """One line without what METEOR takes for the end of a text."""
    return " ".join(text.replace("|||", " ").split())


def _ptb(texts: Sequence[str]) -> list[str]:
    """What pycocoevalcap's PTBTokenizer gives, with its program and its list of punctuation, but through pipes: it
    would write into its own folder and speak to the terminal.
    """
    package = require("pycocoevalcap.tokenizer.ptbtokenizer", extra=_EXTRA)
    jar = Path(str(package.__file__)).parent / package.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    full = [text for text in texts if text]  # it leaves out empty lines at the end
    done = subprocess.run(command, input="\n".join(full), capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(full):
        said = (done.stderr.strip().splitlines() or [f"{len(lines)} lines for {len(full)}"])[-1]
        raise _ProgramError(f"Java's tokenizer failed ({said}); try java -version")
    found = iter(lines)
    return [
        " ".join(word for word in next(found).split(" ") if word not in package.PUNCTUATIONS) if text else ""
        for text in texts
    ]


# --- what each metric needs ------------------------------------------------------------------------------


def _has_java() -> bool:
    java = shutil.which("java")
    return java is not None and _runs(java)


@lru_cache(maxsize=1)
def _runs(java: str) -> bool:
    """Some systems have a java that only says where to get one."""
    return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0


def _why_not(name: str, java: bool, bert: str | None) -> str | None:
    """Why a metric cannot be had, in one sentence; None if it can."""
    if name in ("METEOR", "SPICE") and not java:
        return f"{name} needs Java, which was not found: install a Java runtime and have java on the PATH"
    if name == "SPICE":
        folder = Path(str(require("pycocoevalcap.spice", extra=_EXTRA).__file__)).parent / "lib"
        lacking = [file for file in (f"{_CORENLP}.jar", f"{_CORENLP}-models.jar") if not (folder / file).is_file()]
        if lacking:
            return (
                f"SPICE needs Stanford CoreNLP, {' and '.join(lacking)} in {folder}, which pycocoevalcap downloads: "
                "python -m pycocoevalcap.spice.get_stanford_models"
            )
    if name == "BERTScore":
        try:
            load_bert(bert)
        except ValueError as error:
            return str(error)
    return None


def _rouge(wrote: Texts, said: Texts) -> float:
    return float(require("pycocoevalcap.rouge.rouge", extra=_EXTRA).Rouge().compute_score(wrote, said)[0])


def _cider(wrote: Texts, said: Texts) -> float:
    return float(require("pycocoevalcap.cider.cider", extra=_EXTRA).Cider().compute_score(wrote, said)[0])


def _meteor(wrote: Texts, said: Texts) -> float:
    scorer = require("pycocoevalcap.meteor.meteor", extra=_EXTRA).Meteor()
    try:
        return float(scorer.compute_score(wrote, said)[0])
    except (ValueError, OSError) as error:  # the program ended, so that there was no number to read
        raise _ProgramError(f"METEOR's program failed ({error}); is Java sound? try java -version") from error


def _spice(wrote: Texts, said: Texts) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            found: Any = require("pycocoevalcap.spice.spice", extra=_EXTRA).Spice().compute_score(wrote, said)
        except (OSError, subprocess.SubprocessError) as error:
            raise _ProgramError(f"SPICE's program failed: {error}; it needs Java 8 and 8 GB of memory") from error
    return float(found[0])


_SCORERS: dict[str, Callable[[Texts, Texts], float]] = {
    "ROUGE-L": _rouge,
    "CIDEr": _cider,
    "METEOR": _meteor,
    "SPICE": _spice,
}
