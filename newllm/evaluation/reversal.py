"""The Reversal Curse: does a model that has read "A is B" know that B is A? (Berglund et al. 2023, arXiv 2309.12288)"""

import math
from typing import Literal

import numpy as np

from newllm.data.facts import Question, ReversalFacts
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.scoring import score
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table

_PUBLISHED_TOKENS = 63  # longest sentence under scoring=sentence


class Reversal(Evaluator):
    """Perplexity of the facts in the trained direction (F) and in the other (B): ratio F / B and gap B - F.

    scoring "answer": exp of the mean nats of all answer tokens, with the prompt as context, after an end-of-text token
    if the tokenizer has one, as between packed facts. "sentence", as published: per sentence the mean nats of tokens 2
    to n (at most 63, without a token before them), then the mean over sentences, then exp. The two sets of sentences
    are not equally hard, so also `margin` (under both scorings, answer tokens only): mean over facts and over the names
    that other facts of the same relation have in that place of [log p(right name) - log p(wrong name)], each per token;
    and `accuracy`, the share of those pairs in which the right name is more likely. Chance is 0.5, also for a model
    that has learnt all names but not which belong together: if it prefers one name of a pair whatever the question, it
    is right in one of the two. The five synthetic facts, each of a relation of its own, have no wrong names and only
    count in the perplexities. The curse is a margin forward and none backward. Errors are over facts.

    backward: "well_formed" or "literal" (as published: 30 of the 33 malformed, "Paris is the capital of The capital of
    France"); "facts" takes the form of the facts group, or well_formed without one. Without trained facts the same
    numbers are the untrained control.
    """

    def __init__(
        self,
        scoring: Literal["answer", "sentence"] = "answer",
        backward: Literal["facts", "well_formed", "literal"] = "facts",
    ):
        self.scoring = scoring
        self.backward = backward

    def __call__(self, subject: Subject) -> Findings:
        trained = subject.data.facts
        form = self.backward
        if form == "facts":
            form = trained.backward_form if trained is not None else "well_formed"
        facts = ReversalFacts(backward=form)
        eot = subject.data.tokenizer.eot_id
        start = [eot] if self.scoring == "answer" and eot is not None else []
        metrics: dict[str, float] = {}
        table: Table = [{"kind": fact.kind, "forward": fact.sentence} for fact in facts.forward]
        for direction, questions in (("forward", facts.forward), ("backward", facts.backward)):
            metrics[f"reversal/{direction}_ppl"] = self._perplexity(subject, questions, start)
            rows = compare(subject, questions, start)
            for what in ("margin", "accuracy"):
                metrics[f"reversal/{direction}_{what}"] = float(np.nanmean([row[what] for row in rows]))
            for line, question, row in zip(table, questions, rows, strict=True):
                line[direction] = question.sentence
                line.update({f"{direction}_{name}": value for name, value in row.items()})
        scored = self._scored(subject, facts, start)
        ahead, back = metrics["reversal/forward_ppl"], metrics["reversal/backward_ppl"]
        metrics["reversal/ratio"] = ahead / back
        metrics["reversal/gap"] = back - ahead

        summary = [
            {"direction": name, "ppl": metrics[f"reversal/{name}_ppl"]}
            | {what: f"{metrics[f'reversal/{name}_{what}']:.3f} ± {_error(table, name, what):.3f}"
               for what in ("margin", "accuracy")}
            for name in ("forward", "backward")
        ]  # fmt: skip
        pairs = sum(bool(question.wrong) for question in facts.forward)
        repeats = trained.repeats if trained is not None else 0
        how = "answer tokens" if self.scoring == "answer" else "mean of sentence means, as published"
        sentences = "well-formed" if form == "well_formed" else "literal (malformed, as published)"
        body: list = [
            f"Forward sentences trained {repeats} times" if repeats else "Untrained control: no fact was in training",
            summary,
            f"Ratio F/B {ahead / back:.4f}, gap B-F {back - ahead:+.1f}; {how}, {sentences} backward sentences",
            "margin: log p(right name) - log p(wrong name) per answer token, wrong names from the same relation; "
            f"accuracy 0.5 is chance; ± standard error over {pairs} facts",
            "No verdict on these perplexities: they are of 33 sentences, and the forward ones may be learnt by heart",
        ]
        return Findings("Reversal Curse", metrics, {"reversal": table}, body, scored)

    def _scored(self, subject: Subject, facts: ReversalFacts, start: list[int]) -> dict[str, str]:
        """Fingerprints of the tokens of each direction's sentences and wrong names; ratio and gap score both."""
        encode, prints = subject.data.tokenizer.encode, {}
        for direction, questions in (("forward", facts.forward), ("backward", facts.backward)):
            texts = [f"{q.prompt} {name}" for q in questions for name in (q.answer, *q.wrong)]
            prints[direction] = fingerprint(self.scoring, start, [encode(text) for text in texts])
        both = fingerprint(*prints.values())
        names = [f"{direction}_{what}" for direction in prints for what in ("ppl", "margin", "accuracy")]
        return {f"reversal/{name}": prints[name.partition("_")[0]] for name in names} | {
            "reversal/ratio": both,
            "reversal/gap": both,
        }

    def _perplexity(self, subject: Subject, questions: list[Question], start: list[int]) -> float:
        longest = subject.model.seq_len + 1
        if self.scoring == "answer":
            answers = [answer(subject, question.prompt, question.answer, start) for question in questions]
            return float(np.exp(np.concatenate(score(subject, answers, longest)).mean()))
        encode = subject.data.tokenizer.encode
        sentences = [encode(question.sentence)[:_PUBLISHED_TOKENS] for question in questions]
        nats = score(subject, [(ids[:1], ids[1:]) for ids in sentences], longest)
        return float(np.exp(np.mean([sentence.mean() for sentence in nats])))


def _error(table: Table, direction: str, what: str) -> float:
    """Standard error over the facts that have wrong names."""
    values = np.array([row[f"{direction}_{what}"] for row in table])
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1) / len(values) ** 0.5)


def answer(subject: Subject, prompt: str, name: str, start: list[int]) -> tuple[list[int], list[int]]:
    """Token ids of `start` and the prompt, and of the name: from the first id that differs from the prompt's own.

    That is the name's first token if no token spans the space before it, as in every byte-level BPE.
    """
    encode = subject.data.tokenizer.encode
    ids, shared = encode(f"{prompt} {name}"), 0
    for id_, prompt_id in zip(ids[:-1], encode(prompt), strict=False):
        if id_ != prompt_id:
            break
        shared += 1
    ids, end = start + ids, max(1, len(start) + shared)
    return ids[:end], ids[end:]


def compare(subject: Subject, questions: list[Question], start: list[int]) -> Table:
    """Per question: perplexity of the answer, its margin over the wrong names, and the share of them that it beats."""
    answers = [answer(subject, q.prompt, name, start) for q in questions for name in (q.answer, *q.wrong)]
    log_p = iter([-nats.mean() for nats in score(subject, answers, subject.model.seq_len + 1)])
    rows: Table = []
    for question in questions:
        right, wrong = next(log_p), [next(log_p) for _ in question.wrong]
        rows.append(
            {
                "ppl": float(np.exp(-right)),
                "margin": float(right - np.mean(wrong)) if wrong else math.nan,
                "accuracy": float(np.mean([right > other for other in wrong])) if wrong else math.nan,
            }
        )
    return rows
