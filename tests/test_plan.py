"""From parameter files to runs; and params/small is exactly what is published, and all of it current."""

from pathlib import Path

import pytest
import yaml

from parlib.attack.triggers import TRIGGERS
from parlib.cache import ROOT
from parlib.cli.plan import Planned, choose, plan, with_needs
from parlib.cli.run import main
from parlib.experiments.registry import EXPERIMENTS, check
from parlib.records.status import stale
from parlib.records.store import REFERENCE, read_all
from parlib.report.regimes import GRIDS

FILES = sorted((ROOT / "params").glob("*/*.yaml"))


def _planned(folder: Path, name: str = "file.yaml", **content) -> list[Planned]:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return plan(path)


def _ids(runs: list[Planned]) -> list[str]:
    return [run.id for run in runs]


@pytest.fixture(scope="module")
def small() -> list[Planned]:
    return plan(ROOT / "params" / "small")


def test_blocks_share_defaults_as_far_as_they_know_them(tmp_path):
    blocks = [
        {"notebook": "05_evaluate"},
        {"notebook": "02_clean", "method": "par", "experiment": "side"},
        {"notebook": "01_poison", "trigger": "blended"},
    ]
    runs = _planned(tmp_path, experiment="mine", defaults={"scale": "smoke", "trigger": "sig", "tau": 1.0}, runs=blocks)
    assert _ids(runs) == ["01_poison/blended_s0", "02_clean/par_sig_s0_tau1", "05_evaluate"]  # in the order in which they can be made
    assert [run.params.experiment for run in runs] == ["mine", "side", "mine"]
    assert {run.params.scale for run in runs} == {"smoke"}
    assert runs[1].values == {"scale": "smoke", "trigger": "sig", "tau": 1.0, "method": "par", "experiment": "side"}


def test_lists_are_axes_unless_the_parameter_is_a_list(tmp_path):
    runs = _planned(tmp_path, runs=[{"notebook": "02_clean", "tau": [0.5, 1.0], "seed": [0, 1], "tests": ["blended", "sig"]}])
    assert [(run.params.tau, run.params.seed) for run in runs] == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert {tuple(run.params.tests) for run in runs} == {("blended", "sig")}
    assert len(_planned(tmp_path, runs=[{"notebook": "02_clean", "tests": [["blended"], ["sig"]]}])) == 2
    assert _planned(tmp_path, runs=[{"notebook": "02_clean", "tests": []}])[0].params.tests == []
    options = [{"size": 4}, {"size": 12}]
    runs = _planned(tmp_path, runs=[{"notebook": "01_poison", "trigger_options": options}])
    assert [run.params.trigger_options for run in runs] == options


def test_a_file_takes_the_defaults_of_the_one_that_it_extends(tmp_path):
    (tmp_path / "base.yaml").write_text("experiment: base\ndefaults: {seed: 3, trigger: [sig, blended], tau: 1.0}\n")
    runs = _planned(tmp_path, extends="base.yaml", defaults={"tau": 0.5}, runs=[{"notebook": "02_clean"}])
    assert _ids(runs) == ["02_clean/par_sig_s3_tau0.5", "02_clean/par_blended_s3_tau0.5"]
    assert runs[0].params.experiment == ""  # a name is not passed on
    with pytest.raises(ValueError, match=r"gone\.yaml"):
        _planned(tmp_path, extends="gone.yaml", runs=[])


def test_a_file_s_name_means_nothing(tmp_path):
    content = yaml.safe_load((ROOT / "params" / "small" / "main.yaml").read_text())
    one, other = (_planned(tmp_path, name, **content) for name in ("02_clean_par.yaml", "zebra.yaml"))
    assert one == other


def test_a_run_that_is_asked_for_in_two_ways_is_refused(tmp_path):
    block = "{notebook: 02_clean, lr: 0.1}"
    (tmp_path / "a.yaml").write_text(f"experiment: one\nruns: [{block}]\n")
    (tmp_path / "b.yaml").write_text(f"experiment: one\nruns: [{block}, {block}]\n")
    assert len(plan(tmp_path)) == 1
    (tmp_path / "b.yaml").write_text(f"experiment: two\nruns: [{block}]\n")
    with pytest.raises(ValueError, match=r"b\.yaml.*02_clean/par_badnet_stripes_s0_lr0\.1"):
        plan(tmp_path)
    sweeps = [{"notebook": "03_tau_sweep", "name": "map", "space": [{"tau": [tau]}]} for tau in (0.5, 1.0)]  # a name stands for a space
    with pytest.raises(ValueError, match="03_tau_sweep/map_badnet_stripes_s0"):
        _planned(tmp_path, runs=sweeps)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("experimnt: x\nruns: []\n", r"bad\.yaml.*'experimnt'.*'experiment'"),
        ("- tau\n", r"bad\.yaml.*list"),
        ("runs: [tau\n", r"bad\.yaml.*YAML.*line 2"),  # what is left open is noticed at the end
        ("experiment: x\nruns:\n\t- {notebook: 02_clean}\n", r"bad\.yaml.*line 3.*'- {notebook: 02_clean}'"),
        ("experiment: 'x\n", r"bad\.yaml.*YAML.*quotes"),
        ("experiment: \0\n", r"bad\.yaml.*YAML.*character"),
        ("runs: [{tau: 1.0}]\n", r"bad\.yaml.*notebook.*02_clean"),
        ("runs: [tau]\n", r"bad\.yaml.*notebook.*02_clean"),
        ("runs: {notebook: 02_clean}\n", r"bad\.yaml.*runs"),
        ("defaults: [tau]\nruns: [{notebook: 02_clean}]\n", r"bad\.yaml.*defaults"),
        ("runs: [{notebook: 02_claen}]\n", "'02_claen'.*'02_clean'"),
        ("runs: [{notebook: 02_clean, tua: 1.0}]\n", "'tua'.*'tau'"),
        ("defaults: {tua: 1.0}\nruns: [{notebook: 02_clean}]\n", r"bad\.yaml.*'tua'.*'tau'"),
        ("extends: bad.yaml\nruns: [{notebook: 02_clean}]\n", r"bad\.yaml"),
        ("runs: [{notebook: 02_clean, tau: high}]\n", "02_clean.*tau = 'high'"),
        ("runs: [{notebook: 02_clean, seed: []}]\n", "seed"),
        ("experiment: x\n", r"bad\.yaml"),
    ],
)
def test_a_file_that_does_not_fit_ends_in_one_line_that_names_it(tmp_path, capsys, text, named):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        plan(path)
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"experiment: \xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.yaml.*UTF-8"):
        plan(tmp_path / "bad.yaml")


def test_a_path_that_does_not_exist_names_the_folders(capsys):
    assert main(["params/large"]) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ("params/large", "params/paper", "params/small", "params/smoke"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_opens_with_its_question_and_is_planned(path):
    text = path.read_text()
    assert text.startswith("# ")
    runs = plan(path)
    assert all(run.params.experiment for run in runs)
    assert {run.params.scale for run in runs} == {"paper" if path.parent.name == "examples" else path.parent.name}


def test_the_example_of_your_own_resolves():
    (own,) = plan(ROOT / "params" / "examples" / "own.yaml")
    assert own.params.poisoned.startswith("file:")
    assert own.params.tests
    assert own.params.needs() == []  # nothing of ours


def test_smoke_runs_every_notebook_and_method():
    runs = plan(ROOT / "params" / "smoke")
    assert {run.params.notebook for run in runs} == set(EXPERIMENTS)
    methods = {run.params.method for run in runs if run.params.notebook == "02_clean"}
    assert methods == {"finetune", "cleanclip", "roclip", "par", "tbar"}


def test_small_is_fourteen_questions_and_plans_the_published_runs(small):
    assert len(list((ROOT / "params" / "small").glob("*.yaml"))) == 14
    planned = {run.id: run.params.experiment for run in small if not run.view}
    published = {record["run"]: record["experiment"] for record in read_all(REFERENCE)}
    assert len(published) >= 261
    assert published.items() <= planned.items()
    assert {planned[run] for run in planned.keys() - published.keys()} <= set(GRIDS)  # made in several sittings


def test_every_published_record_is_current_and_of_the_parameters_that_are_planned(small, own_outputs):
    (own_outputs / "outputs").mkdir()
    (own_outputs / "outputs" / "small").symlink_to(REFERENCE)
    planned = {run.id: run.params for run in small}
    for record in read_all(REFERENCE):
        asked = check(record["notebook"], record["params"])
        assert (record["run"], stale(record, asked)) == (asked.id, "")
        assert asked.model_dump(exclude={"experiment"}) == planned[record["run"]].model_dump(exclude={"experiment"})


def test_only_takes_what_a_planned_run_builds_on():
    """Such runs are in the list, too."""
    planned, needed = plan(ROOT / "params" / "small" / "triggers.yaml"), "01_poison/sig_s0_base_epochs15"
    assert needed not in _ids(planned)
    assert _ids(choose(planned, [needed])) == [needed]


def test_only_adds_what_a_run_builds_on(small):
    wanted = choose(small, ["02_clean/par_badnet_stripes_s1"])
    assert _ids(with_needs(wanted, small)) == ["01_poison/badnet_stripes_s1", "02_clean/par_badnet_stripes_s1"]


def test_a_run_that_no_file_plans_is_made_by_its_id(small):
    for trigger in TRIGGERS:  # some begin with another's name
        run = f"02_clean/par_{trigger}_s7"
        assert _ids(with_needs(choose(small, [run]), small)) == [f"01_poison/{trigger}_s7", run]
    (label,) = choose(small, ["02_clean/roclip_badnet_label_consistent_small_vit_s7"])
    assert (label.params.attack, label.params.encoder) == ("label_consistent", "small_vit")
    for run in ("02_clean/part_badnet_stripes_s1", "02_clean/par_badnet_stripes_s7_tau1", "01_poison/par_badnet_stripes_s1"):
        with pytest.raises(ValueError, match=f"'{run}'.*badnet"):
            choose(small, [run])


def test_a_look_at_a_cleaning_builds_on_the_one_that_it_names():
    assert "02_clean/mine" in Planned({}, check("07_rebound", {"cleaned": "02_clean/mine"})).builds_on


def test_two_runs_that_build_on_each_other_are_named(tmp_path):
    blocks = [
        {"notebook": "02_clean", "method": "unlearn", "label": "mine", "inverted": "10_inspect/mine"},
        {"notebook": "10_inspect", "method": "unlearn", "label": "mine", "cleaned": "02_clean/mine"},
    ]
    with pytest.raises(ValueError, match="10_inspect/mine|02_clean/mine"):
        _planned(tmp_path, runs=blocks)


def test_a_sweep_builds_on_the_poisoned_models_of_its_trials():
    params = check("03_tau_sweep", {"space": [{"trigger": ["badnet_stripes", "blended_text"]}, {"seed": [1]}]})
    runs = with_needs([Planned({}, params)], [])
    assert _ids(runs)[:-1] == [f"01_poison/{name}" for name in ("badnet_stripes_s0", "blended_text_s0", "badnet_stripes_s1")]


def test_a_cleaning_of_a_run_that_it_names_is_planned_after_it(tmp_path):
    poisoned = {"notebook": "01_poison", "rate": 0.05}
    runs = _planned(tmp_path, runs=[{"notebook": "02_clean", "poisoned": "01_poison/badnet_stripes_s0_rate0.05"}, poisoned])
    assert _ids(with_needs(runs[1:], runs)) == _ids(runs)
