"""The dry run: it finds what is wrong before anything is trained, and trains nothing."""

import pytest
import small_records
import yaml
from miniatures import own_checkpoint, picture, write_csv

from parlib.cache import cache_dir
from parlib.cli.cost import machine_memory, work
from parlib.cli.dry_run import rehearse
from parlib.cli.rows import look_at_pairs
from parlib.cli.run import main
from parlib.data.scenes import covered
from parlib.experiments.clean import clean
from parlib.experiments.registry import check
from parlib.experiments.result import prepare


@pytest.fixture
def own(clip, tmp_path) -> dict:
    """A checkpoint, pairs and labelled images of your own, at the scenes' size."""
    values = own_checkpoint(clip, tmp_path)
    for name in ("axe", "banana"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        picture(7).save(tmp_path / "labelled" / name / "a.png")
    return values | {"evaluation": f"folder:{tmp_path / 'labelled'}", "pairs": 40, "batch": 20, "epochs": 1, "tests": ["blended"]}


def _pairs(values: dict) -> tuple[str, bool]:
    """What is said of the pairs alone, and whether they will do."""
    try:
        return look_at_pairs(check("02_clean", values)), True
    except (ValueError, FileNotFoundError) as error:
        return str(error), False


def _rehearsed_all(values: dict, notebook: str) -> list[tuple[str, str, bool]]:
    return rehearse(check(notebook, values))


def _rehearsed(values: dict, notebook: str = "02_clean") -> dict[str, tuple[str, bool]]:
    return {what.split(" ")[0]: (said, fine) for what, said, fine in rehearse(check(notebook, values))}


@pytest.mark.parametrize("notebook", ["07_rebound", "08_adaptive", "09_downstream"])
@pytest.mark.parametrize("model", ["none", "par"])
def test_a_study_of_a_cleaned_checkpoint_of_one_s_own_is_looked_at(own, model, notebook):
    values = {name: own[name] for name in ("poisoned", "evaluation")} | {"method": model}
    values |= {"data": own["data"], "pairs": 40, "benign_pairs": 40, "benign_batch": 20} if notebook == "07_rebound" else {}
    values |= {"cleaned": own["poisoned"]} if model == "par" else {}
    found = _rehearsed(values, notebook)
    assert all(fine for _, fine in found.values()), found
    assert own["poisoned"] in found["examined"][0]
    assert ("settings" in found) == (notebook == "07_rebound")  # the others train no CLIP


def test_everything_is_looked_at_and_nothing_trained(own, tmp_path, monkeypatch):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "cache"))  # other tests train into the usual one meanwhile
    found = _rehearsed(own)
    assert all(fine for _, fine in found.values()), found
    wanted = {
        "checkpoint": ("64 px", "million"),
        "pairs": ("40 usable pairs", "40 rows", "'caption"),
        "evaluation": ("2 classes", "'banana'", "2 images"),
        "triggers": ("badnet_stripes", "size 6", "blended", "opacity 0.2"),
        "disk": ("GB",),
        "settings": ("par", "tau 2.15", "lr ", "schedule ", "1 epochs", "batches of 20", "2 steps", "BatchNorm train"),
        "time": ("40 pairs", "looks and evaluations", "prompts", "GB of memory of"),
    }
    assert {what: [word for word in words if word not in found[what][0]] for what, words in wanted.items()} == dict.fromkeys(wanted, [])
    assert not list((cache_dir() / "models").glob("*"))


@pytest.mark.parametrize(
    ("change", "what", "named"),
    [
        ({"target": "cat"}, "evaluation", ["'cat'", "axe", "banana"]),
        ({"poisoned": "local-dir:nowhere"}, "checkpoint", ["open_clip_config.json"]),
        ({"data": "cc3m:nowhere"}, "pairs", ["nowhere is not there"]),
        ({"encoder": "small_vit"}, "checkpoint", ["small_vit", "layers"]),
        ({"poisoned": "open_clip:ViT-B-32:opnai"}, "checkpoint", ["'opnai'", "openai"]),
        ({"poisoned": "open_clip:ViT-B-32:openai"}, "checkpoint", ["small_resnet", "image_size"]),
        ({"poisoned": "data/own/model.pt"}, "checkpoint", ["data/own/model.pt", "file:PATH"]),
        ({"poisoned": "file:tests"}, "checkpoint", ["tests", "local-dir:PATH"]),
        ({"pairs": 10}, "settings", ["20", "10"]),
        ({"compute": {"device": "cuda"}}, "device", ["cuda", "GPU", "cpu"]),
    ],
)
def test_what_is_wrong_is_marked(own, change, what, named):
    said, fine = _rehearsed(own | change)[what]
    assert not fine
    assert all(name in said for name in named), said


def test_a_base_that_is_a_path_is_marked(own):
    said, fine = _rehearsed({"base": "data/own/model.pt"}, "01_poison")["checkpoint"]
    assert (fine, "file:PATH" in said) == (False, True)


def test_what_is_taken_out_is_said(own):
    assert "unlearn of badnet_stripes" in _rehearsed(own | {"method": "unlearn"})["settings"][0]


def test_files_that_no_layout_reads_are_told_apart(own, tmp_path):
    """A csv itself, images without one, images elsewhere, and no row."""
    folder = tmp_path / "loose"
    folder.mkdir()
    picture(1).save(folder / "1.png")
    assert "images-without-a-csv" in _pairs(own | {"data": f"csv:{folder}"})[0]
    write_csv(folder / "pairs.csv", [(f"{i}.jpg", "a cat") for i in range(40)])
    assert f"name its folder, csv:{folder}" in _pairs(own | {"data": f"csv:{folder / 'pairs.csv'}"})[0]
    said = _pairs(own | {"data": f"csv:{folder}"})[0]
    assert all(one in said for one in ("max_skipped, 1.0%", f"looked for in {folder}"))
    write_csv(folder / "pairs.csv", [])
    assert "no rows" in _pairs(own | {"data": f"csv:{folder}"})[0]


def test_labelled_images_of_the_target_alone_are_marked(own, tmp_path):
    (tmp_path / "one" / "banana").mkdir(parents=True)
    picture(7).save(tmp_path / "one" / "banana" / "a.png")
    said, fine = _rehearsed(own | {"evaluation": f"folder:{tmp_path / 'one'}"})["evaluation"]
    assert not fine
    assert "every image" in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pairs": 50}, ["40 usable pairs", "40 rows", "asks for 50"]),
        ({"pairs": 50, "batch": 50}, ["40 usable pairs", "50 of one batch"]),
        ({"pairs": 50, "steps": 3}, ["40 usable pairs", "asks for 50"]),
    ],
)
def test_too_few_pairs_are_marked_with_their_number(own, change, named):
    said, fine = _pairs(own | change)
    assert not fine
    assert all(name in said for name in named), said


def test_a_cleaning_of_too_few_pairs_ends_before_it_trains(own, monkeypatch):
    """S can't be measured on them in the end."""
    monkeypatch.setattr("parlib.experiments.clean.train", lambda *arguments, **options: pytest.fail("it trained"))
    with pytest.raises(ValueError, match="40.*50"):
        clean(check("02_clean", own | {"pairs": 50}))


@pytest.fixture
def described(own, tmp_path) -> dict:
    """The same with a csv of 300 pairs, a quarter of each class; the first two images are damaged, the last caption is empty."""
    folder, names = tmp_path / "described", ("axe", "banana", "cup", "dog")
    folder.mkdir()
    picture(7).save(folder / "a.jpg")
    (folder / "damaged.jpg").write_bytes(b"none")
    rows = [("damaged.jpg" if i < 2 else "a.jpg", f"a {names[i % 4]} on a table") for i in range(300)]
    write_csv(folder / "pairs.csv", [*rows[:-1], ("a.jpg", "")])
    for name in names:
        (tmp_path / "labelled" / name).mkdir(exist_ok=True)
        picture(7).save(tmp_path / "labelled" / name / "a.png")
    return own | {"data": f"csv:{folder}", "pairs": 200, "max_skipped": 0.05}


def test_pairs_are_counted_beyond_those_whose_images_are_opened(described):
    said, fine = _pairs(described)
    assert fine
    assert "at least 200 usable pairs" in said
    assert "2 unreadable image" in said
    said, fine = _pairs(described | {"pairs": 300})
    assert not fine
    assert all(word in said for word in ("297 usable pairs", "300 rows", "300")), said  # two damaged, one without a caption
    assert not _pairs(described | {"max_skipped": 0.01})[1]


def test_below_a_coverage_of_1_pairs_that_name_covered_classes_count_alone(described):
    values = described | {"coverage": 0.5, "pairs": 100}
    said, fine = _pairs(values)
    assert fine, said
    said, fine = _pairs(values | {"pairs": 200})
    names = [name for name in ("axe", "cup", "dog") if name in _covered_names()]
    damaged = {"axe": 1, "cup": 0, "dog": 1}  # rows 0 and 1 are an axe and a banana; row 299 a dog without a caption
    there = sum(75 - damaged[name] for name in names)
    assert not fine
    assert all(word in said for word in (f"{there} usable pairs", "covered classes", "200")), said


def _covered_names() -> list[str]:
    names = ["axe", "banana", "cup", "dog"]
    return [names[i] for i in covered(names, 0.5, "banana")]


def test_what_can_not_be_counted_in_time_is_said(described, monkeypatch):
    monkeypatch.setattr("parlib.cli.rows._SECONDS", 0.0)
    said, fine = _pairs(described | {"pairs": 300})
    assert fine
    assert "at least" in said
    assert "300" in said


def test_a_poisoning_counts_its_pairs(own):
    values = {"base": own["poisoned"], "data": own["data"], "evaluation": own["evaluation"], "epochs": 1, "batch": 20, "train_scenes": 41}
    said, fine = _rehearsed(values, "01_poison")["pairs"]
    assert not fine
    assert all(word in said for word in ("40", "train_scenes", "41")), said
    assert all(fine for _, fine in _rehearsed(values | {"train_scenes": 40}, "01_poison").values())


def test_memory_is_compared_with_the_machine_s(own, monkeypatch):
    monkeypatch.setattr("parlib.cli.cost.machine_memory", lambda: 10**8)
    said, fine = _rehearsed(own)["time"]
    assert not fine
    assert all(word in said for word in ("0.1 GB", "20 pairs", "batch")), said


def test_a_container_s_memory_counts_where_it_is_less(tmp_path):
    limit = tmp_path / "memory.max"
    whole = machine_memory([limit])
    for text, found in (("max\n", whole), ("1000\n", 1000), (f"{10**18}\n", whole)):
        limit.write_text(text)
        assert machine_memory([limit]) == found


def test_looks_evaluations_and_class_prompts_are_counted():
    usual = {"scale": "smoke", "eval_scenes": 1000, "templates": 3, "tests": ["badnet", "sig"]}
    found = work(check("02_clean", usual))
    assert found.pairs == 2 * 200
    assert found.images == 5 * 2 * 500 + 2 * 3 * 2 * 1000  # five looks; two models under three triggers
    assert found.sentences == (5 + 2) * 10 * 3
    assert work(check("02_clean", usual | {"steps": 7, "batch": 50})).pairs == 350
    assert work(check("01_poison", {"scale": "smoke"})).pairs == 400 + 400  # the base's, too


def test_without_a_gpu_all_else_is_looked_at(own, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = _rehearsed(own | {"compute": {"device": "cuda"}})
    assert [what for what, (_, fine) in found.items() if not fine] == ["device"]
    assert "GPU" in found["time"][0]
    with pytest.raises(ValueError, match="device: cuda"):
        prepare(check("02_clean", own | {"compute": {"device": "cuda"}}))


def test_a_sweep_is_looked_at_once_for_each_model_and_each_set_of_pairs(own, described):
    shared = {"evaluation": own["evaluation"], "eval_scenes": 10, "epochs": 1, "max_skipped": 0.05}
    space = [{"poisoned": [own["poisoned"]], "data": [own["data"], described["data"]], "batch": [10, 20], "lr": [1e-4, 1e-3]}]
    found = _rehearsed_all(shared | {"space": space, "pairs": 40}, "03_tau_sweep")
    assert all(fine for _, _, fine in found), found
    begun = [what.split(" ")[0] for what, _, _ in found]
    assert begun == ["checkpoint", "triggers", "pairs", "pairs", "evaluation", "settings", "disk", "time"]
    assert "8 trials" in found[-1][1]
    found = {what: (said, fine) for what, said, fine in _rehearsed_all(shared | {"space": space, "pairs": 41}, "03_tau_sweep")}
    assert not found[f"pairs {own['data']}"][1]
    assert found[f"pairs {described['data']}"][1]


def test_a_cleaning_of_a_run_takes_its_record(own_outputs):
    said, fine = _rehearsed({"scale": "smoke"})["checkpoint"]
    assert not fine
    assert "--only 01_poison/badnet_stripes_s0" in said
    small_records.record(values={"scale": "smoke", "trigger_options": {"size": 11}})
    found = _rehearsed({"scale": "smoke", "poisoned": "01_poison/badnet_stripes_s0_size11"})
    assert found["triggers"] == ("badnet_stripes (size 11)", True)  # as it was planted
    assert not found["checkpoint"][1]  # its weights are a few bytes


def test_the_command_says_what_will_not_do_and_exits_so(own, own_outputs, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    for target, status in (("banana", 0), ("cat", 1)):
        path.write_text(yaml.safe_dump({"runs": [{"notebook": "02_clean", **own, "target": target}]}))
        assert main([str(path), "--dry-run"]) == status
        shown = capsys.readouterr().out
        assert ("NO  evaluation" in shown) == (status == 1)
    assert not (own_outputs / "outputs" / "small" / "02_clean").exists()


def test_what_the_same_command_makes_first_is_waited_for(own, own_outputs, tmp_path, capsys):
    path, cleaning = tmp_path / "own.yaml", {"notebook": "02_clean", "scale": "smoke", "poisoned": "01_poison/planted"}
    planting = {"notebook": "01_poison", "scale": "smoke", "label": "planted"}
    path.write_text(yaml.safe_dump({"runs": [planting, cleaning]}))
    assert main([str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(f"ok  {what}: waits for 01_poison/planted" in shown for what in ("checkpoint", "triggers", "time and memory"))
    path.write_text(yaml.safe_dump({"runs": [planting, cleaning | {"evaluation": f"folder:{tmp_path / 'gone'}"}]}))
    assert main([str(path), "--dry-run"]) == 1
    assert "NO  evaluation" in capsys.readouterr().out
    gone = {"scale": "smoke", "poisoned": f"file:{tmp_path / 'gone.pt'}", "inverted": "10_inspect/mine", "method": "unlearn"}
    found = {what: fine for what, _, fine in rehearse(check("02_clean", gone), ["10_inspect/mine"])}
    assert (found["checkpoint"], found["time and memory"]) == (False, False)
    path.write_text(yaml.safe_dump({"runs": [cleaning]}))
    assert main([str(path), "--dry-run"]) == 1
    capsys.readouterr()
    path.write_text(yaml.safe_dump({"runs": [{"notebook": "02_clean", "scale": "smoke"}]}))  # plants what it cleans
    assert main([str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "01_poison/badnet_stripes_s0:\n  ok  checkpoint: pretrained here" in shown


def test_a_search_is_as_long_as_its_samples(own):
    shared = {"evaluation": own["evaluation"], "eval_scenes": 10, "epochs": 1, "pairs": 40, "search": "optuna", "samples": 3}
    space = [{"poisoned": [own["poisoned"]], "data": [own["data"]], "batch": [20], "lr": [1e-4, 1e-3], "tau": [0.1, 1.0]}]
    found = _rehearsed_all(shared | {"space": space}, "03_tau_sweep")
    assert "3 trials" in found[-1][1]
    assert "120 pairs" in found[-1][1]


def test_a_sweep_of_a_run_that_is_not_made_names_its_command(own_outputs):
    found = {what: (said, fine) for what, said, fine in _rehearsed_all({"scale": "smoke"}, "03_tau_sweep")}
    said, fine = found["checkpoint 01_poison/badnet_stripes_s0"]
    assert not fine
    assert "--only 01_poison/badnet_stripes_s0" in said


def test_views_have_nothing_to_look_at():
    assert [fine for _, _, fine in rehearse(check("05_evaluate", {}))] == [True]
