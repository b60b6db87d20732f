"""Surveys as a measure: ordinal questionnaires, read at the answer slot, in the form of moral-maps.

A questionnaire is a folder of JSON files, or the name of one of an installed moralmaps. Each file puts the same items in another frame:
`forward`, `inverted` (the legend of the scale is reversed) and `negated` (the statements are). Inverted and negated answers are mirrored
onto the forward scale before the frames are averaged, so that a preference for a number or for agreeing cancels. Per item

    score = sum over k of k * mean over frames of p(k), 1 to M; M + 1 - score where keying.json has -1

MFQ-2's authority should move with the trait, the Big Five should not. There are no items of our own: eval.measures names a source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.cache import Row
from evals.conditions import Condition, Weights
from evals.measures.measure import ByCondition, Columns, Compared, Measure, Scoring
from evals.measures.slot import Slot, finite_or_null
from evals.statistics import estimate, mean, pair, resample
from evals.table import Table, label, ranged
from shared.commands import setting
from shared.console import format_number
from shared.errors import SteerHealError
from shared.records import LogProbability, Mass, Number, Record
from shared.run import Run
from shared.schema import Config

PREFILL = "("
STEMS = {
    "forward": ("forward", "questionnaire"),
    "inverted": ("inverted", "questionnaire_inverted"),
    "negated": ("negated", "questionnaire_negated"),
}
MIRRORED = ("inverted", "negated")
FORM = "a folder with forward.json (and inverted.json, negated.json, keying.json), or mfq2, big5, 16pf, humor_styles of an installed moralmaps; several joined by +"


@dataclass(frozen=True)
class SurveyItem:
    """A statement of a questionnaire, with what is asked in each frame."""

    survey: str
    id: str
    dimension: str
    sign: int
    points: int
    asked: Mapping[str, str]


class SurveyRow(Record):
    """An item under one condition. lp: by frame, log-probabilities of the points 1 to M as they were presented, nats; score 1 to M."""

    known_by = ("name", "survey", "id")
    name: str
    survey: str
    id: str
    dimension: str
    lp: dict[str, list[LogProbability | None]]
    score: Number | None
    mass: Mass | None


class SurveySession(ByCondition):
    def __init__(self, measure: Survey, scoring: Scoring):
        super().__init__(measure, scoring)
        self.items = load_surveys(measure.source)
        if len(points := {item.points for item in self.items}) > 1:
            raise _refused(measure.source, f"scales of {sorted(points)} points", "questionnaires of one scale")
        self.slot = Slot(scoring.chat, PREFILL, [str(k + 1) for k in range(points.pop())])
        self.slot.chat.label_ids(self.slot.labels, PREFILL)  # refused now, and not when the engine runs
        self.questions = [text for item in self.items for text in item.asked.values()]

    def depends(self) -> Mapping[str, Any]:
        items = [[item.survey, item.id, item.dimension, item.sign, [*item.asked]] for item in self.items]
        return {"items": items, "answer": [PREFILL, self.slot.chat.label_ids(self.slot.labels, PREFILL)]}

    def prompts(self, condition: Condition) -> list[list[int]]:
        return [self.slot.prompt(question, condition.system) for question in self.questions]

    def make(self, engine: Any, group: Weights, conditions: Sequence[Condition]) -> dict[str, list[Row]]:
        read = self.slot.read(engine, "survey", group, conditions, self.questions)
        return {name: self._rows(lp) for name, lp in read.items()}

    def _rows(self, lp: np.ndarray) -> list[Row]:
        """Rows from lp [questions, points]."""
        rows, offset = [], 0
        for item in self.items:
            frames = dict(zip(item.asked, lp[offset : offset + len(item.asked)], strict=True))
            offset += len(item.asked)
            fine = all(np.isfinite(values).all() for values in frames.values())
            rows.append(
                {
                    "version": 1,
                    "survey": item.survey,
                    "id": item.id,
                    "dimension": item.dimension,
                    "lp": {frame: finite_or_null(values) for frame, values in frames.items()},
                    "score": expected_point(frames, item.sign) if fine else None,
                    "mass": float(np.mean([np.exp(values).sum() for values in frames.values()])) if fine else None,
                }
            )
        return rows


class Survey(Measure):
    name = "survey"
    takes_source = True
    row = SurveyRow
    columns = ("survey", "survey_mass")

    def check(self) -> None:
        load_surveys(self.source)

    def inputs(self, run: Run, number: int, config: Config) -> Mapping[str, Path]:
        return {f"survey {name}": Path(name) for name in self.source.split("+") if Path(name).is_dir()}

    def revisions(self, config: Config) -> Mapping[str, str]:
        """The digest of an installed questionnaire's text: a version may stand for several."""
        from evals.cache import text_digest

        items = [item for item in load_surveys(self.source) if not Path(item.survey).is_dir()]
        return {"survey": text_digest(repr(items))[:12]} if items else {}

    def begin(self, scoring: Scoring) -> SurveySession:
        return SurveySession(self, scoring)

    def compare(self, base: Sequence[SurveyRow], other: Sequence[SurveyRow], resamples: int, seed: int) -> Compared:
        lines = []
        for survey, dimension in dict.fromkeys((row.survey, row.dimension) for row in other):
            was, now = (
                np.array([_number(r.score) for r in rows if (r.survey, r.dimension) == (survey, dimension)])
                for rows in (base, other)
            )
            keep = np.isfinite(was) & np.isfinite(now)
            weights = resample(np.zeros(int(keep.sum())), resamples, seed)
            shift = estimate(lambda w, x=(now - was)[keep]: mean(w, x), weights)  # type: ignore[misc]
            level = float(now[keep].mean()) if keep.any() else None
            name = Path(survey).name
            lines.append({"survey": name, "dimension": dimension, "score": level, "items": int(keep.sum()), **pair("change", "ci", shift)})  # fmt: skip
        masses = [row.mass for row in other if row.mass is not None]
        return Compared({"survey": lines, "survey_mass": float(np.mean(masses)) if masses else None})

    def tables(self, rows: Sequence[Columns], read: Sequence[tuple[int, Any]]) -> list[Table]:
        names = [f"{line['dimension']}" for line in rows[0]["survey"]]
        return [
            Table(
                "Surveys",
                ["round, stage", *names, "answer mass"],
                [
                    [
                        label(row),
                        *(
                            format_number(line["score"], 2)
                            if row["stage"] == "base"
                            else ranged(line, "change", "ci", 2, signed=True)
                            for line in row["survey"]
                        ),
                        format_number(row["survey_mass"], 3),
                    ]
                    for row in rows
                ],
                "The base's mean score on the scale, and of the others the change from it, item by item, after the frames were brought to one scale; brackets are 95 % "
                "bootstrap intervals over items.",
            )
        ]


def expected_point(frames: Mapping[str, np.ndarray], sign: int) -> float:
    """The expected point of an item, 1 to M: lp by frame [M] to shares of the M points, mirrored where the frame asks the opposite, averaged.

    sign: -1 for an item that counts against its dimension.
    """
    shares = []
    for frame, lp in frames.items():
        share = np.exp(lp - lp.max())
        share = share / share.sum()
        shares.append(share[::-1] if frame in MIRRORED else share)
    points = len(shares[0])
    expected = float(np.mean(shares, axis=0) @ np.arange(1, points + 1))
    return points + 1 - expected if sign < 0 else expected


def load_surveys(source: str) -> list[SurveyItem]:
    """The items of one or several questionnaires. Raises SteerHealError for one that cannot be had or has another form."""
    if source == "embedded":
        raise _refused("survey without a source", "no questionnaire", FORM)
    return [
        item for name in source.split("+") for item in (_of_folder(name) if Path(name).is_dir() else _installed(name))
    ]


def _of_folder(name: str) -> list[SurveyItem]:
    try:
        documents = {}
        for frame, stems in STEMS.items():
            path = next((path for stem in stems if (path := Path(name, f"{stem}.json")).is_file()), None)
            if path is not None:
                read = json.loads(path.read_text(encoding="utf-8"))
                documents[frame] = read[0] if isinstance(read, list) else read
        keying = Path(name, "keying.json")
        signs = json.loads(keying.read_text(encoding="utf-8")) if keying.is_file() else {}
        by_frame = {
            frame: {
                str(question["id"]): f"{document['task']}\n\nStatement: {question['content']}"
                for question in document["questions"]
            }
            for frame, document in documents.items()
        }
        if any(set(texts) != set(by_frame["forward"]) for texts in by_frame.values()):
            raise ValueError("the frames have different items")
        return [
            SurveyItem(
                name,
                identifier := str(question["id"]),
                str(question["dimension"]),
                int(signs.get(identifier, 1)),
                int(documents["forward"].get("points", 5)),
                {frame: texts[identifier] for frame, texts in by_frame.items()},
            )
            for question in documents["forward"]["questions"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _refused(name, repr(error), FORM) from None


def _installed(name: str) -> list[SurveyItem]:
    try:
        from moralmaps.instruments import get
    except ImportError:
        raise _refused(name, "no such folder, and no package moralmaps", FORM) from None
    try:
        survey = get(name)
        documents: dict[str, dict[str, str]] = {}
        first: dict[str, Any] = {}
        for item in survey.items:
            first.setdefault(item.id, item)
            documents.setdefault(item.id, {})[item.frame] = f"{item.meta['task']}\n\nStatement: {item.prompt}"
        return [
            SurveyItem(name, key, str(item.dimension), int(item.sign), int(survey.scale_max), documents[key])
            for key, item in first.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused(name, repr(error), FORM) from None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _refused(name: str, problem: str, expected: str) -> SteerHealError:
    return SteerHealError("a questionnaire could not be used", given=f"{name}: {problem}", expected=expected, next=setting("eval.measures=[survey=FOLDER]"))  # fmt: skip
