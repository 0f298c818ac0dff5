import math

import pandas as pd
import pytest

from newllm.analysis.baselines import choose_baseline
from newllm.analysis.comparable import split_comparable
from newllm.analysis.frame import load_runs
from newllm.analysis.run_groups import groups
from newllm.analysis.settings import identity_of, nodes_of
from tests.support.run_folders import config, folder, table


def grouped(*configurations, seeds=(1, 2, 3), **options):
    return groups(
        table((overrides, seed, {"val/ppl": 100.0}) for overrides in configurations for seed in seeds), **options
    )


def labels(*configurations, **options):
    return {group.label for group in grouped(*configurations, **options)}


def test_runs_equal_up_to_seed_and_what_changes_no_number_are_one_group():
    result = grouped(
        ["pos_encoding=alibi"], ["pos_encoding=alibi", "runtime.threads=1", "logger=tensorboard"], ["theta=1e4"]
    )
    assert [(group.label, len(group.runs)) for group in result] == [("alibi", 6), ("rope", 3)]
    assert result[0].by_seed("val/ppl") == {1: 100.0, 2: 100.0, 3: 100.0}


def test_runs_with_a_first_phase_and_without_are_grouped_by_all_that_they_are(tmp_path):
    """Of what such runs do not share, nodes that some of them lack."""
    whole = ["attention=vdproj", "attention.reconstruction_weight=0"]
    kinds = [
        ["attention=mha"],
        ["attention=vdproj_narrow"],
        ["attention=vdproj"],
        whole,
        [*whole, "phase1=reconstruction"],
    ]
    for kind in kinds:
        for seed in range(1, 6):
            folder(tmp_path, config(*kind, seed=seed), {"val/ppl": 100.0})
    assert [len(group.runs) for group in groups(load_runs(tmp_path))] == [5] * 5


def test_runs_are_distinguished_by_content():
    """Memory of nodes that are gone is used again: what is remembered of a node must not hang on where it lay."""
    configs = [{"model": {"width": n % 7}, **({"phase1": {"steps": n % 5}} if n % 3 else {})} for n in range(300)]
    marks = [identity_of(nodes) for nodes in nodes_of({**config, "eval": {}, "choices": {}} for config in configs)]
    assert len(set(marks)) == len({repr(config) for config in configs})
    assert len({(mark, repr(config)) for mark, config in zip(marks, configs, strict=True)}) == len(set(marks))


def test_10000_and_1e4_are_one_number():
    frame = table([(["theta=1e4"], 1, {}), (["theta=1e4"], 2, {})])
    frame["config"].iloc[1]["pos_encoding"]["theta"] = 10000
    assert len(groups(frame)) == 1


def test_evaluators_make_no_groups_but_their_options_do():
    """Who evaluates some seeds once more still has one group; who asks them in two ways has two."""
    result = grouped(["eval=[loss]"], ["eval=[loss,rank]"])
    assert [(group.label, len(group.runs)) for group in result] == [("rope · mha", 6)]
    weighted = ["eval=[loss]", "eval.loss.weighting=batch_mean"]
    assert labels(["eval=[loss]"], ["eval=[rank,loss]"], weighted) == {"weighting token", "weighting batch_mean"}


def evaluated(seeds=(1, 2, 3)):
    """Rows of runs, and of their evaluations with another theta."""
    frame = table([(["pos_encoding.theta=100"] * later, seed, {}) for seed in seeds for later in (False, True)])
    for row in frame.itertuples():
        if row.config["pos_encoding"]["theta"] == 100:
            row.config["choices"]["evaluated"] = "theta=100"
    return frame


def test_a_run_and_its_evaluations_under_other_settings_are_never_one_group():
    result = groups(evaluated())
    assert [group.label for group in result] == ["as trained", "evaluated theta=100"]
    assert [[*group.runs["seed"]] for group in result] == [[1, 2, 3], [1, 2, 3]]
    result = groups(evaluated(), by=["pos_encoding"])
    assert [group.label for group in result] == ["rope · as trained", "rope · evaluated theta=100"]


def test_labels_are_the_choices_that_differ():
    assert labels(["pos_encoding=rope"], ["pos_encoding=alibi"], ["pos_encoding=nope"]) == {"rope", "alibi", "nope"}
    assert labels(["attention=mha"], ["pos_encoding=alibi", "attention=mla"]) == {"rope · mha", "alibi · mla"}
    assert labels(["facts=none"], ["facts=reversal"]) == {"facts none", "facts reversal"}
    assert labels(["pos_encoding=alibi"]) == {"alibi · mha"}  # nothing differs


def test_labels_name_an_axis_only_where_it_has_several_values():
    result = labels(
        ["pos_encoding=rope", "theta=1e4"], ["pos_encoding=rope", "theta=5e5"], ["pos_encoding=alibi", "slope=0.125"]
    )
    assert result == {"rope · theta 10000", "rope · theta 500000", "alibi"}
    result = labels(["attention=mha"], ["attention=mla", "kv_dim=64"], ["attention=mla", "kv_dim=128"])
    assert result == {"mha", "mla · kv_dim 64", "mla · kv_dim 128"}


def test_labels_name_options_where_nothing_else_tells_groups_apart():
    result = labels(["optim.clip=0.5"], ["optim.clip=1.0"], ["pos_encoding=nope", "optim.clip=1.0"])
    assert result == {"rope · clip 0.5", "rope · clip 1", "nope"}
    result = labels(["pos_encoding.layers=[0,2]"], ["pos_encoding.layers=all"])
    assert result == {"layers [0,2]", "layers all"}


def test_settings_of_a_group_are_those_that_differ():
    result = grouped(["theta=1e4"], ["theta=5e5"], ["pos_encoding=alibi", "optim.clip=0.5"])
    assert [group.settings for group in result] == [
        {"pos_encoding": "alibi", "theta": None, "optim.clip": 0.5},
        {"pos_encoding": "rope", "theta": 1e4, "optim.clip": 1.0},
        {"pos_encoding": "rope", "theta": 5e5, "optim.clip": 1.0},
    ]


def test_grouping_by_chosen_keys():
    runs = [["attention=mha"], ["attention=mla", "kv_dim=64"], ["pos_encoding=alibi", "attention=mla", "kv_dim=128"]]
    assert labels(*runs, by=["attention"]) == {"mha", "mla"}
    assert labels(*runs, by=["attention", "kv_dim"]) == {"mha · no kv_dim", "mla · kv_dim 64", "mla · kv_dim 128"}
    assert labels(*runs, by=["optim.clip"]) == {"clip 1"}
    assert labels(*runs, by=["seed"]) == {"seed 1", "seed 2", "seed 3"}


def test_a_seed_that_ran_twice_counts_once():
    frame = table([([], 1, {"val/ppl": 100.0, "val/loss": 1.0}), ([], 1, {"val/ppl": 121.0, "val/loss": 2.0}),
                   ([], 2, {"val/ppl": 50.0, "val/loss": float("nan")})])  # fmt: skip
    (group,) = groups(frame)
    assert group.by_seed("val/ppl") == {1: pytest.approx(110.0), 2: 50.0}  # geometric
    assert group.by_seed("val/loss") == {1: 1.5}
    assert group.by_seed("no/such") == {}


def test_runs_that_are_not_over_are_in_no_group():
    frame = table([([], seed, {"val/ppl": 100.0}) for seed in (1, 2, 3)])
    frame.loc[0, "state"] = "running"
    (group,) = groups(frame)
    assert group.by_seed("val/ppl") == {2: 100.0, 3: 100.0}
    assert group.missing("val/ppl") == {}
    frame["state"] = "queued"
    assert groups(frame) == []


def lost(overrides, *seeds, state="failed", error="CUDA out of memory", **more):
    frame = table([(overrides, seed, {}) for seed in seeds])
    return frame.assign(state=state, error=error, **more)


def test_seeds_that_failed_or_diverged_are_missing_in_their_group():
    """So the group has no mean, but for what is the same for all seeds that are left."""
    values = {1: 90.0, 2: 91.0, 3: 92.0, 4: 93.0}
    parts = [table([(["pos_encoding=alibi"], seed, {"val/ppl": ppl}) for seed, ppl in values.items()])]
    parts += [table([([], 1, {"val/ppl": 100.0}), ([], 2, {"val/ppl": 101.0})])]
    parts += [lost(["pos_encoding=alibi"], 5, 6, error="Training diverged at step 3"), lost(["pos_encoding=alibi"], 7)]
    parts += [lost(["pos_encoding=nope"], 1, 2), lost([], 1, 2, state="queued")]
    alibi, nope, rope = groups(pd.concat(parts, ignore_index=True))
    assert (alibi.label, nope.label, rope.label) == ("alibi", "nope", "rope")
    assert alibi.missing_words("val/ppl") == "3 of 7 seeds missing: 2 diverged, 1 failed"
    assert alibi.by_seed("val/ppl") == values
    assert math.isnan(alibi.mean("val/ppl"))
    assert alibi.mean("data/val_tokens") == 7680
    assert alibi.by_seeds(["val/ppl"])["val/ppl"].isna().all()
    assert nope.missing_words("val/ppl") == "2 of 2 seeds failed"
    assert (rope.missing_words("val/ppl"), rope.mean("val/ppl")) == ("", 100.5)


def test_a_failed_run_may_be_repeated_but_a_diverged_one_stays():
    done = table([([], seed, {"val/ppl": 100.0 + seed}) for seed in (1, 2, 3)])
    (group,) = groups(pd.concat([done, lost([], 1, path="elsewhere")], ignore_index=True))
    assert group.missing("val/ppl") == {}
    (group,) = groups(pd.concat([done, lost([], 1, error="Training diverged")], ignore_index=True))
    assert group.missing("val/ppl") == {1: "diverged"}
    assert group.by_seed("val/ppl") == {2: 102.0, 3: 103.0}
    (group,) = groups(pd.concat([done, lost([], 4, state="unreadable")], ignore_index=True))
    assert group.missing_words("val/ppl") == "1 of 4 seeds unreadable"


def test_a_metric_counts_as_missing_only_where_its_evaluator_was_asked():
    asked, not_asked = ["eval=[loss,rank]"], ["eval=[loss]"]
    rows = [(asked, 1, {"rank/share": 0.5}), (asked, 2, {"rank/share": 0.6}), (not_asked, 3, {})]
    assert groups(table(rows))[0].missing("rank/share") == {}
    assert groups(table([*rows, (asked, 4, {})]))[0].missing("rank/share") == {4: "not measured"}
    frame = table((*row, {**found, "val/ppl": math.nan}) for *row, found in rows).assign(
        not_finite=[("val/ppl",), (), ()]
    )
    frame.loc[1:, "val/ppl"] = 100.0
    assert groups(frame)[0].missing("val/ppl") == {1: "not finite"}


def test_evaluations_lack_the_seeds_that_failed_in_training(tmp_path):
    for seed in (1, 2, 3):
        run = folder(tmp_path, config(seed=seed), {"val/ppl": 100.0 + seed})
        later = config("pos_encoding.theta=100", seed=seed)
        later["choices"]["evaluated"] = "theta=100"
        folder(run / "evaluations", later, {"val/ppl": 120.0})
    run = folder(tmp_path, config(seed=4), None, state="failed")
    (run / "status.json").write_text('{"state": "failed", "error": "Training diverged at step 7"}')
    trained, evaluated = groups(load_runs(tmp_path, evaluations=True))
    assert trained.missing("val/ppl") == evaluated.missing("val/ppl") == {4: "diverged"}


def test_models_that_are_evaluated_alike_stay_apart(tmp_path):
    """Even where the changed setting was the only one that told them apart."""
    for theta, ppl in ((1000, 100.0), (2000, 200.0)):
        for seed in (1, 2, 3):
            run = folder(tmp_path, config(f"pos_encoding.theta={theta}", seed=seed), {"val/ppl": ppl + seed})
            later = config("pos_encoding.theta=100", seed=seed)
            later["choices"]["evaluated"] = "theta=100"
            folder(run / "evaluations", later, {"val/ppl": ppl + seed * 1.1})
    found = groups(load_runs(tmp_path, evaluations=True))
    assert [round(group.mean("val/ppl")) for group in found] == [102, 202, 102, 202]
    assert [group.label.rpartition(" · ")[2] for group in found[2:]] == [
        "theta in training 1000",
        "theta in training 2000",
    ]
    pairs = choose_baseline(found, None).evaluations
    assert [(found.index(one), found.index(other)) for one, other in pairs.items()] == [(2, 0), (3, 1)]


def parts(*runs):
    frame = table((overrides, 1, results) for overrides, results in runs)
    return split_comparable(frame)


def test_one_validation_set_is_one_table():
    (part,) = parts(([], {}), (["pos_encoding=alibi", "samples=9000", "model.hidden_size=128"], {}), (["lr=0.1"], {}))
    assert (part.title, part.reason, len(part.runs)) == ("", "", 3)


def test_passkeys_in_training_leave_the_validation_set_as_it_is():
    assert len(parts(([], {}), (["data.passkey=0.1"], {}))) == 1
    assert len(grouped([], ["data.passkey=0.1"])) == 2


@pytest.mark.parametrize(
    ("overrides", "results", "what", "title"),
    [
        (["data.vocab_size=4096"], {"data/bytes_per_token": 3.4}, "tokenizer", "vocab_size 4096"),
        (["data.tokenizer=some/folder/here"], {}, "tokenizer", "tokenizer some/folder/here"),
        (["data.val_fraction=0.2"], {"data/val_tokens": 15360}, "validation set", "val_fraction 0.2"),
        (["data.split=contiguous"], {}, "validation set", "split contiguous"),
        (["samples=9000"], {"data/val_tokens": 115200}, "validation set", "115,200 validation tokens"),
        ([], {"data/bytes_per_token": 3.17}, "validation set", "3.1700 bytes per validation token"),
        (["eval.loss.weighting=batch_mean"], {}, "weighting", "weighting batch_mean"),
    ],
)
def test_runs_that_do_not_compare_are_split_with_the_reason(overrides, results, what, title):
    result = parts(([], {}), ([], {}), (overrides, results))
    assert [len(part.runs) for part in result] == [2, 1]
    assert all(what in part.reason for part in result)
    assert title in result[1].title
    assert result[0].title != result[1].title


def test_the_training_budget_splits_runs_only_where_it_moves_the_validation_text():
    assert len(parts((["samples=6000"], {}), (["samples=7000"], {}))) == 1
    contiguous = ["data.split=contiguous"]
    assert len(parts(([*contiguous, "samples=6000"], {}), ([*contiguous, "samples=7000"], {}))) == 2
    named = ["data=ultrachat", "data.val_documents=[1000,1019]"]
    assert len(parts(([*named, "data.documents=50"], {}), ([*named, "data.documents=500"], {}))) == 1
    assert len(parts((named, {}), (["data=ultrachat", "data.val_documents=[2000,2019]"], {}))) == 2


def test_text_and_tokenizer_count_by_their_content(tmp_path):
    """Copies are one text, wherever they lie; texts of one name and size are two, named by what tells them apart."""
    for place, content in (("here", "some text"), ("there", "some text"), ("other", "SOME TEXT")):
        folder = tmp_path / place / "books"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(content)
        (folder / "tokenizer.json").write_text(content)
    copies = [[f"data.path={tmp_path / place}/books"] for place in ("here", "there")]
    other = [f"data.path={tmp_path}/other/books"]
    runs = [["data=text", *path] for path in (*copies, other)]
    assert len(parts(*((overrides, {}) for overrides in runs[:2]))) == 1
    assert len(grouped(*runs[:2])) == 1
    assert [part.title for part in parts(*((overrides, {}) for overrides in runs))] == [
        "path here/books", "path other/books"
    ]  # fmt: skip
    assert [group.label for group in grouped(*runs)] == ["path here/books", "path other/books"]
    assert [group.label for group in grouped(*runs, by=["data.path"])] == ["path here/books", "path other/books"]
    spellings = [f"{tmp_path}/here/books", f"{tmp_path}/here/../here/books/", f"{tmp_path}/other/books"]
    tokenizers = [["data=text", *copies[0], f"data.tokenizer={spelling}"] for spelling in spellings]
    assert [len(group.runs) for group in grouped(*tokenizers, seeds=(1,))] == [2, 1]
    frame = table([(runs[0], 1, {}), (runs[0], 2, {})])
    frame["config"].iloc[1]["content"] = {"data.path": "f" * 32}  # edited in between
    assert {group.label for group in groups(frame)} == {
        f"path books ({frame['config'].iloc[0]['content']['data.path'][:8]})", "path books (ffffffff)"
    }  # fmt: skip
