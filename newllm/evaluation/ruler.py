"""Small tasks over long rows, answered by likelihood among candidates."""

import numpy as np

from newllm.data import Dataset, Tokenizer
from newllm.data.passkey import ask
from newllm.errors import ConfigError, RunError
from newllm.evaluation import lengths as given
from newllm.evaluation.bounds import require
from newllm.evaluation.needles import Trial, check_counts, generator, judge_at, stretch, too_short
from newllm.evaluation.passkey import trained
from newllm.evaluation.puzzles import MOST_KEYS, TASKS
from newllm.evaluation.subject import Findings, Subject, Table
from newllm.model import LanguageModel
from newllm.suggest import did_you_mean


class Ruler:
    """Five tasks after RULER (Hsieh et al. 2024, arXiv 2404.06654), in texts that a small model may cope with.

    A row is filler with statements at random places, a query, and an answer; the texts are in
    `newllm.evaluation.puzzles`. needle and multi_key_needle find a key's digit, one_hop and two_hops follow names to a
    digit, frequent_word counts. Needles have keys, so a query has one answer.

    The model chooses among candidates: the one with the least mean nats per token, from its first token on. A
    candidate is a digit or letter, in a byte-level BPE a single token, so that this is its log-probability. But for
    needle, where all ten digits are, candidates are what the text names, and copying any of them is at chance.
    ``ruler/<task>@N``: share of trials in which the right candidate wins; the model reads N tokens.
    tables/ruler.csv adds chance (1 / candidates), margin (mean nats per token of the wrong candidates − of the right
    one) and Wilson's 95 % interval of the share.

    Filler is validation text from another place in each trial. lengths: tokens, or multiples of the training length.
    keys: needles or chains beside one another, words to count. seed: of the trials, which are the same for all runs
    on one text and tokenizer, whatever the seed of the run.
    """

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x"],  # noqa: B006 (only read)
        tasks: list[str] = ["needle", "multi_key_needle", "one_hop", "two_hops", "frequent_word"],  # noqa: B006
        trials: int = 50,
        keys: int = 4,
        seed: int = 0,
    ):
        given.check(lengths, "eval.ruler.lengths")
        if not lengths or not tasks:
            raise ConfigError("eval.ruler needs a length and a task, as in lengths=[1x,2x] and tasks=[needle].")
        for task in tasks:
            if task not in TASKS:
                raise ConfigError(f"eval.ruler.tasks: there is no {task}; {did_you_mean(task, list(TASKS))}.")
        if not 2 <= keys <= MOST_KEYS:
            raise ConfigError(f"eval.ruler.keys must be from 2 to {MOST_KEYS}, as in eval.ruler.keys=4; got {keys}.")
        check_counts("eval.ruler", trials=trials)
        self.lengths, self.tasks, self.trials, self.keys, self.seed = lengths, tasks, trials, keys, seed

    def check(self, data: Dataset, model: LanguageModel, memory: bool = True) -> None:
        """ConfigError for lengths that this text, encoding or memory cannot give, or that a task does not fit into."""
        lengths = self._lengths(model)
        require("eval.ruler.lengths", lengths, model, len(data.val_tokens), memory)
        for task in self.tasks:
            self._trial(task, data.tokenizer, data.val_tokens, lengths[0], 0)

    def __call__(self, subject: Subject) -> Findings:
        self.check(subject.data, subject.model, memory=False)
        tokenizer, text = subject.data.tokenizer, subject.data.val_tokens
        metrics: dict[str, float] = {}
        table: Table = []
        screen: dict[str, dict[str, float | str]] = {}
        failures: list[str] = []
        for task in self.tasks:
            for length in self._lengths(subject.model):
                trials = [self._trial(task, tokenizer, text, length, number) for number in range(self.trials)]
                outcomes, failed = judge_at(subject, length, trials)
                if outcomes is None:
                    failures.append(f"FAILED: {task} of {length:,} tokens: {failed}")
                    continue
                found = outcomes.of(slice(None))
                chance = 1 / len(trials[0].candidates)
                metrics[f"ruler/{task}@{length}"] = float(found["accuracy"])
                kept = {name: found[name] for name in ("trials", "margin", "low", "high")}
                table.append({"task": task, "length": length, "accuracy": found["accuracy"], "chance": chance, **kept})
                line = screen.setdefault(task, {"task": task, "chance": chance})
                line[f"{length:,} tokens"] = f"{found['accuracy']:.2f}{' *' if found['low'] > chance else ''}"
        if not table:
            raise RunError(f"eval.ruler has measured nothing; {failures[0]}.")
        body: list = [
            list(screen.values()),
            f"Accuracy of {self.trials} trials: the right candidate is the likeliest; chance is 1 / candidates; * its "
            "95 % interval is above chance",
            trained(subject),
            *failures,
        ]
        return Findings("Small RULER tasks", metrics, {"ruler": table}, body)

    def _lengths(self, model: LanguageModel) -> list[int]:
        return given.parse(self.lengths, model.seq_len, "eval.ruler.lengths")

    def _trial(self, task: str, tokenizer: Tokenizer, text: np.ndarray, length: int, number: int) -> Trial:
        """Prompt and longest candidate have length + 1 tokens, of which a model reads `length`."""
        random = generator(self.seed, "ruler", task, length, number)
        puzzle = TASKS[task](random, self.keys, length)
        answers = ask(tokenizer, puzzle.query, *puzzle.answers)
        query = answers[0].query
        statements = [tokenizer.encode(statement) for statement in puzzle.statements]
        room = length + 1 - max(len(one.answer) for one in answers) - len(query) - sum(map(len, statements))
        if room < 1:
            raise too_short("eval.ruler.lengths", length, length + 1 - room, task)
        filler = stretch(text, room, random)
        places = np.sort(random.integers(1, room + 1, size=len(statements)))  # a token of filler comes first
        prompt = filler[: places[0]]
        for statement, start, end in zip(statements, places, [*places[1:], room], strict=True):
            prompt += [*statement, *filler[start:end]]
        return Trial(prompt + query, [one.answer for one in answers])
