"""Which groups are compared with which.

A baseline that one group fits is compared with all others. A baseline that several groups fit is a value of a factor,
as pos_encoding=rope in a sweep over attentions: each group is compared with its counterpart, the group that has this
value and is equal to it in everything else. Evaluations under other settings are compared with the runs that they
evaluate.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from newllm.analysis.labels import SEPARATOR, value_text
from newllm.analysis.run_groups import Group, is_typed, value_of
from newllm.analysis.settings import axes_of, canonical, choices_of, differing
from newllm.config.catalog import REFERENCE, Catalog, load, shipped
from newllm.config.identity import value_at
from newllm.errors import ConfigError
from newllm.suggest import listed, nearest

Pairs = Mapping[Group, Group]


@dataclass(frozen=True)
class Baseline:
    """words: what groups are compared with, to stand after "compared with".

    pairs: group -> its baseline, of runs as trained (and of evaluations, where the baseline is one). evaluations: of
    evaluations under other settings; corrected separately, since they are of the same trained runs. notes: sentences
    on what was chosen and on groups that have no baseline.
    """

    words: str = ""
    pairs: Pairs = field(default_factory=dict)
    evaluations: Pairs = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def labels(self) -> set[str]:
        """Those of the groups that others are compared with."""
        return {group.label for group in (*self.pairs.values(), *self.evaluations.values())}


def choose_baseline(groups: Sequence[Group], wanted: str | None) -> Baseline:
    """The comparisons of these groups. wanted: a label, a part of a label, or settings as in ``pos_encoding=rope`` or
    ``[pos_encoding=rope,attention=mha]``; null: the group nearest to the shipped defaults.

    It means groups as trained if any of those fits, else evaluations.

    Raises ConfigError, with the labels of the groups, if no group fits, and with the key to add if a group has several
    counterparts.
    """
    trained = [group for group in groups if not _evaluated(group)]
    pool = trained or groups
    if wanted is not None and not _fitting(trained, wanted):
        pool = groups
    if not pool:
        return Baseline()
    found = _pair_with(pool, wanted) if wanted is not None else _pair_with_one(pool, nearest_to_defaults(pool))
    evaluations: dict[Group, Group] = {}
    if pool is trained:
        evaluations = _evaluations(trained, [group for group in groups if _evaluated(group)], wanted)
    words = found.words or ("the same runs as trained" if evaluations else "")
    return Baseline(words, found.pairs, evaluations, found.notes)


def _evaluated(group: Group) -> str | None:
    return group.config["choices"].get("evaluated")


def nearest_to_defaults(groups: Sequence[Group]) -> Group:
    """The group with the most shipped defaults; of several, the one with the most runs."""
    usual, catalog, read = _usual(), Catalog((shipped(),)), cache(load)

    def is_usual(group: Group, key: str) -> bool:
        value, (name, _, option) = value_of(group.config, key), key.partition(".")
        if value is None or key in usual:
            return value in (usual.get(key), None)
        choice = str(group.config["choices"].get(name))
        node = read(shipped() / name / f"{choice}.yaml") if choice in catalog.groups.get(name, ()) else {}
        default = value_at(node, option)
        axis = REFERENCE.fullmatch(str(default))
        return canonical(usual.get(axis[1]) if axis else default) == canonical(value)

    def likeness(group: Group) -> tuple[bool, int, int]:
        equal = sum(is_usual(group, key) for key in group.settings)
        return len(group.positions) > 0, equal, len(group.positions)

    return max(groups, key=likeness)


def _pair_with_one(groups: Sequence[Group], baseline: Group) -> Baseline:
    pairs = {group: baseline for group in groups if group is not baseline}
    return Baseline(baseline.label if pairs else "", pairs)


def _pair_with(groups: Sequence[Group], wanted: str) -> Baseline:
    fitting = _fitting(groups, wanted)
    if not fitting:
        shown = [group.label for group in groups]
        close = nearest(_bare(wanted), shown)
        hint = f"did you mean {close}? (there are: {listed(shown)})" if close else f"expected one of: {listed(shown)}"
        raise ConfigError(f"baseline={wanted} is not a group; {hint}.")
    if len(fitting) == 1:
        return _pair_with_one(groups, fitting[0])
    conditions = _conditions(fitting, wanted)
    labels = listed([group.label for group in fitting])
    if conditions is None:
        raise ConfigError(f"baseline={wanted} fits {len(fitting)} groups ({labels}); type more of one label.")
    pairs: dict[Group, Group] = {}
    alone: list[str] = []
    for group in groups:
        if group in fitting:
            continue
        equal = counterparts(group, fitting, [key for key, _ in conditions])
        if len(equal) > 1:
            return _with_one_more_key(groups, group, equal, conditions)
        if equal:
            pairs[group] = equal[0]
        else:
            alone.append(group.label)
    if not pairs:
        raise ConfigError(
            f"baseline={wanted} fits {len(fitting)} groups ({labels}), and no other group is equal to one of them in "
            "everything else; type more of one label."
        )
    words = ", ".join(f"{key}={value}" for key, value in conditions)
    notes = (
        [f"Not compared, since no group with {words} is equal in everything else: {listed(alone)}."] if alone else []
    )
    return Baseline(f"the group with {words} that is equal in everything else", pairs, {}, notes)


def _with_one_more_key(
    groups: Sequence[Group], group: Group, counterparts: Sequence[Group], conditions: Sequence[tuple[str, str]]
) -> Baseline:
    """The pairs with the default of a setting in which the counterparts of `group` differ as one more condition."""
    typed = ",".join(f"{key}={value}" for key, value in conditions)
    key = next(key for key in group.settings if len({canonical(one.settings.get(key)) for one in counterparts}) > 1)
    values = [value_text(one.settings.get(key)) for one in counterparts]
    usual = next((value for value in values if is_typed(_usual().get(key), value)), None)
    labels = listed([one.label for one in counterparts])
    if usual is None:
        raise ConfigError(
            f"baseline={typed} fits {len(counterparts)} groups for {group.label} ({labels}); add {key}, as in "
            f"'baseline=[{typed},{key}={values[0]}]'."
        )
    other = next(value for value in values if value != usual)
    note = (
        f"The baseline has {key}={usual}, the default, since {typed} alone fits {len(counterparts)} groups for "
        f"{group.label} ({labels}); 'baseline=[{typed},{key}={other}]' takes another."
    )
    found = _pair_with(groups, f"[{typed},{key}={usual}]")
    return Baseline(found.words, found.pairs, {}, [note, *found.notes])


def counterparts(group: Group, fitting: Sequence[Group], keys: Sequence[str]) -> list[Group]:
    """The groups of `fitting` that are equal to `group` in all settings but `keys`.

    If there is none, settings that only one of the two has do not count, since they follow from another one (kv_dim
    from attention=mla); if there still is none, neither do the options of the choices in `keys` (pos_encoding.layers).
    """
    options = tuple(f"{key}." for key in keys)

    def differ(other: Group) -> list[str]:
        pairs = {key: (value, other.settings.get(key)) for key, value in group.settings.items() if key not in keys}
        return [key for key, (ours, theirs) in pairs.items() if canonical(ours) != canonical(theirs)]

    different = {other: differ(other) for other in fitting}
    in_both = {
        other: [key for key in some if None not in (group.settings[key], other.settings.get(key))]
        for other, some in different.items()
    }
    outside = {other: [key for key in some if not key.startswith(options)] for other, some in in_both.items()}
    for relevant in (different, in_both, outside):
        if equal := [other for other, some in relevant.items() if not some]:
            return equal
    return []


def _evaluations(trained: Sequence[Group], evaluated: Sequence[Group], wanted: str | None) -> dict[Group, Group]:
    """Each evaluation with the runs that it is of; those on another text, where these are not, with a baseline among
    the evaluations under the same settings."""
    home = {path: group for group in trained for path in group.runs["path"]}
    pairs: dict[Group, Group] = {}
    others: dict[Any, list[Group]] = {}
    for group in evaluated:
        run = home.get(str(Path(group.path).parent.parent))
        if run is not None:
            pairs[group] = _evaluated_by(group, run)
        else:
            others.setdefault(_evaluated(group), []).append(group)
    for same in others.values():
        with suppress(ConfigError):  # not every set of evaluations has the baseline
            pairs |= choose_baseline(same, wanted).pairs
    return pairs


def _evaluated_by(evaluation: Group, trained: Group) -> Group:
    """The trained group without those runs of an evaluated seed that were not evaluated: repeats, and with ``by=…``
    runs with other settings."""
    origins = [str(Path(path).parent.parent) for path in evaluation.runs["path"]]
    evaluated, seeds = trained.runs["path"].isin(origins), trained.runs["seed"]
    kept = evaluated | ~seeds.isin(seeds[evaluated])
    return trained if kept.all() else replace(trained, positions=trained.positions[kept.to_numpy()])


def unequal_groups(pairs: Pairs, by: Sequence[str]) -> list[str]:
    """A sentence if groups by the keys `by` differ from their baselines in the combinations of other settings too, over
    the seeds that both have."""
    unequal: dict[str, list[str]] = {}
    for group, baseline in pairs.items():
        seeds = {*group.runs["seed"]} & {*baseline.runs["seed"]}
        runs = [one.runs[one.runs["seed"].isin(seeds)] for one in (group, baseline)]
        settings = [[_choices_and_settings(config) for config in some["config"]] for some in runs]
        every = [one for side in settings for one in side]
        keys = [
            key
            for key in differing(every)
            if all(key in one for one in every) and not any(f"{key}.".startswith(f"{name}.") for name in by)
        ]
        combinations = [
            {(seed, canonical([one[key] for key in keys])) for seed, one in zip(some["seed"], side, strict=True)}
            for some, side in zip(runs, settings, strict=True)
        ]
        if combinations[0] != combinations[1]:
            unequal[group.label] = [*dict.fromkeys([*unequal.get(group.label, []), *keys])]
    if not unequal:
        return []
    keys = [*dict.fromkeys(key for some in unequal.values() for key in some)]
    return [
        f"{listed([*unequal])}: the combinations of {', '.join(keys)} are not those of the baseline, so the "
        f"difference is not that of {', '.join(by)} alone."
    ]


def _choices_and_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**choices_of(config), **axes_of(config)}


def _fitting(groups: Sequence[Group], wanted: str) -> list[Group]:
    """The groups with this label, with these words in their label, or with these settings."""
    text = _bare(wanted)
    exact = [group for group in groups if group.label.lower() == text.lower()]
    if exact:
        return exact
    if "=" in text:
        return [
            group for group in groups if all(is_typed(value_of(group.config, key), v) for key, v in _typed_pairs(text))
        ]
    words = {part.strip().lower() for part in text.split(SEPARATOR.strip())}
    return [group for group in groups if words <= set(group.label.lower().split(SEPARATOR))]


def _conditions(fitting: Sequence[Group], wanted: str) -> list[tuple[str, str]] | None:
    """What was typed as settings and values. Of a part of a label: the settings that its words stand for, None if they
    stand for none."""
    text = _bare(wanted)
    if "=" in text:
        return _typed_pairs(text)
    conditions = []
    for word in (part.strip().lower() for part in text.split(SEPARATOR.strip())):
        shown = {key: value_text(value) for key, value in fitting[0].settings.items()}
        names = [
            key for key, value in shown.items() if word in (value.lower(), f"{key.rpartition('.')[2]} {value}".lower())
        ]
        if not names:
            return None
        conditions.append((names[0], shown[names[0]]))
    return conditions


def _typed_pairs(text: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]
    return [(key.strip(), value.strip()) for key, _, value in parts]


def _bare(wanted: str) -> str:
    text = wanted.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text


def _usual() -> dict[str, Any]:
    """The shipped defaults of axes and choices."""
    catalog = Catalog((shipped(),))
    return {**catalog.axes, **catalog.defaults}
