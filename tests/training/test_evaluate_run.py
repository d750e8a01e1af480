"""A saved run is tested on any folder: on all of its pictures, but never on those that it has learned from."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prograd_fast.clip.tokens import clean_words
from prograd_fast.data import load
from prograd_fast.methods import CoOp, LinearProbe
from prograd_fast.training import evaluate_run, has_learned_from, held_out, load_run, make_plan, save_run, train_method
from tests.conftest import PER_CLASS, SHAPES, draw
from tests.training.support import no_bars

METHODS = {"coop": CoOp(epochs=3), "linear-probe": LinearProbe()}


@pytest.fixture(scope="module")
def runs(clip, shapes, tmp_path_factory) -> dict:
    """What `load_run` gives for a run of each method on all classes of the shapes."""
    found = {}
    for name, method in METHODS.items():
        record, learner = train_method(method, clip, shapes, make_plan(shapes, 3, 0, None), no_bars)
        folder = tmp_path_factory.mktemp(name)
        save_run(folder, record, learner)
        found[name] = load_run(folder)
    return found


def draw_new(root: Path, classes: dict[str, str], per_class: int) -> Path:
    """Pictures that no run has seen; classes by the name of their folder, and the shape that they show."""
    for number, (name, shape) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            draw(shape, 1000 + 50 * number + i).save(root / name / f"new{i}.png")
    return root


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("classes", "per_class"),
    [
        (dict(zip(SHAPES, SHAPES, strict=True)), 5),
        ({"red_circle": "red_circle", "black_dot": "black_dot"}, 3),
        ({"black_dot": "black_dot"}, 4),
        ({"green_bar": "green_bar"}, 1),
        ({"green bar": "green_bar"}, 1),  # the same name, without the underscore
        ({"Green_Bar": "green_bar"}, 2),  # the same to the model
        ({"Green_Bar": "green_bar", "BLACK  DOT": "black_dot"}, 2),
    ],
    ids=["all", "two classes", "one class", "one picture", "readable", "case", "cases"],
)
def test_all_pictures_of_a_new_folder_are_tested_among_the_classes_of_the_run(
    clip, shapes, runs, tmp_path, method, classes, per_class
):
    record, learned = runs[method]
    pictures = load(draw_new(tmp_path / "new", classes, per_class), whole=True)
    assert not has_learned_from(record, pictures)
    found = evaluate_run(record, learned, clip, pictures, no_bars)
    assert found.left_out == 0
    assert found.class_names == shapes.class_names  # one class alone would be recognised always
    for tests in found.tests.values():
        evaluation = tests["all"]
        assert sorted(evaluation.pictures) == sorted(f"{name}/new{i}.png" for name in classes for i in range(per_class))
        labels = [evaluation.class_names[label] for label in evaluation.labels]
        assert labels == [clean_words(picture.split("/")[0]).lower() for picture in evaluation.pictures]
        assert found.new == ()
        assert np.bincount(evaluation.labels).max() == per_class
    few = min(len(classes), 2)
    assert len({found.tests[method]["all"].class_names[label] for label in evaluation.labels}) >= few


def test_new_classes_are_those_to_choose_from(clip, runs, tmp_path):
    pictures = load(draw_new(tmp_path / "new", {"kite": "blue_square", "red_circle": "red_circle"}, 2), whole=True)
    found = evaluate_run(*runs["coop"], clip, pictures, no_bars)
    assert (found.class_names, found.new) == (("kite", "red circle"), ("kite",))


def test_one_new_class_is_tested_beside_those_of_the_run(clip, shapes, runs, tmp_path):
    pictures = load(draw_new(tmp_path / "new", {"kite": "blue_square"}, 2), whole=True)
    found = evaluate_run(*runs["coop"], clip, pictures, no_bars)
    assert found.class_names == (*shapes.class_names, "kite")
    assert found.new == ("kite",)
    assert found.tests["coop"]["all"].labels.tolist() == [len(SHAPES)] * 2


@pytest.mark.parametrize("classes", [["kite"], ["kite", "red_circle"], ["red circles", "black_dot"]])
def test_new_classes_are_refused_by_methods_that_cannot_name_them(clip, runs, tmp_path, classes):
    pictures = load(draw_new(tmp_path / "new", dict.fromkeys(classes, "red_circle"), 2), whole=True)
    named = re.escape(repr(classes[0]))
    with pytest.raises(ValueError, match=rf"new has the class {named}, which linear probe cannot name.*black dot"):
        evaluate_run(*runs["linear-probe"], clip, pictures, no_bars)


# ------------------------------------------------------------------------------------------------------ learned from


def learned_files(record, shapes) -> list[Path]:
    return [Path(shapes.source[i]) for i in range(len(shapes)) if shapes.digest(i)[:32] in record["learned_from"]]


def test_the_accuracy_is_that_of_the_record(clip, shapes, runs):
    for method, (record, learned) in runs.items():
        found = evaluate_run(record, learned, clip, shapes, no_bars)
        assert found.tests[method]["all"].accuracy == record["accuracy"]["all"]
        assert found.tests["zero-shot"]["all"].accuracy == record["zero_shot_accuracy"]["all"]
        assert found.left_out == 0


def rename(file: Path, new: Path) -> None:
    shutil.copy(file, new / file.parent.name / f"renamed {file.name}")


def double(file: Path, new: Path) -> None:
    for i in range(2):
        shutil.copy(file, new / file.parent.name / f"{i}{file.name}")


def nest(file: Path, new: Path) -> None:
    (new / file.parent.name / "inner").mkdir(exist_ok=True)
    shutil.copy(file, new / file.parent.name / "inner" / file.name)


@pytest.mark.parametrize(("put", "times"), [(rename, 1), (double, 2), (nest, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_pictures_that_were_learned_from_are_left_out(clip, shapes, runs, tmp_path, method, put, times):
    record, learned = runs[method]
    new = draw_new(tmp_path / "new", dict(zip(SHAPES, SHAPES, strict=True)), 2)
    for file in learned_files(record, shapes):
        put(file, new)
    pictures = load(new, whole=True)
    assert has_learned_from(record, pictures)
    found = evaluate_run(record, learned, clip, pictures, no_bars)
    assert found.left_out == times * len(record["learned_from"]) == times * 12
    assert all(picture.split("/")[1].startswith("new") for picture in found.tests[method]["all"].pictures)
    assert len(found.tests[method]["all"]) == 2 * len(SHAPES)


def test_a_split_of_the_users_own_is_tested_without_what_was_learned_from(clip, shapes, runs, tmp_path):
    record, learned = runs["coop"]
    draw_new(tmp_path / "own" / "train", dict(zip(SHAPES, SHAPES, strict=True)), 1)
    new = draw_new(tmp_path / "own" / "test", dict(zip(SHAPES, SHAPES, strict=True)), 2)
    for file in learned_files(record, shapes):
        rename(file, new)
    found = evaluate_run(record, learned, clip, load(tmp_path / "own", whole=True), no_bars)
    assert found.left_out == 12
    assert len(found.tests["coop"]["all"]) == 2 * len(SHAPES)


def test_nothing_to_test_on_is_told(clip, shapes, runs, tmp_path):
    record, learned = runs["coop"]
    for file in learned_files(record, shapes):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        rename(file, tmp_path)
    with pytest.raises(ValueError, match="no picture to test on is left: the run has learned from all 12"):
        evaluate_run(record, learned, clip, load(tmp_path, whole=True), no_bars)


@pytest.mark.parametrize("fold", range(5))
def test_a_fold_is_tested_on_its_own_pictures(clip, shapes_dir, fold):
    """Whatever the default split says: of most folds' pictures, its test part was learned from."""
    pictures = load(shapes_dir, fold=(fold, 5))
    record, learner = train_method(CoOp(epochs=1), clip, pictures, make_plan(pictures, 100, 0, None), no_bars)
    chosen = held_out(record, load(shapes_dir, whole=True), partial(load, shapes_dir))
    found = evaluate_run(record, learner.module.state_dict(), clip, chosen, no_bars)
    own = {pictures.digest(i) for i in np.flatnonzero(pictures.split == "test")}
    tested = [str(shapes_dir / name) for name in found.tests["coop"]["all"].pictures]
    digests = {str(file): pictures.digest(i) for i, file in enumerate(pictures.source)}
    assert {digests[file] for file in tested} == own


def test_a_run_with_another_test_share_is_tested_on_its_own_pictures(clip, shapes_dir):
    """The default share would test on its validation pictures, which may have chosen the epoch."""
    pictures = load(shapes_dir, test_share=0.2)
    record, _ = train_method(CoOp(epochs=1), clip, pictures, make_plan(pictures, 100, 0, None), no_bars)
    chosen = held_out(record, load(shapes_dir, whole=True), partial(load, shapes_dir))
    own = {str(pictures.source[i]) for i in np.flatnonzero(pictures.split == "test")}
    assert {str(chosen.source[i]) for i in np.flatnonzero(chosen.split == "test")} == own


@pytest.mark.parametrize("split_by", [{"fold": "0"}, {"fold": [0, 1]}, {"test_share": 7.0}, {"whole": True}, 3])
def test_a_record_with_an_odd_split_leaves_out_what_was_learned(clip, shapes_dir, runs, split_by):
    record, _ = runs["coop"]
    record = {**record, "data": {**record["data"], "split_by": split_by}}
    whole = load(shapes_dir, whole=True)
    assert held_out(record, whole, partial(load, shapes_dir)) is whole


def test_a_whole_folder_is_all_test(shapes_dir):
    pictures = load(shapes_dir, whole=True)
    assert pictures.split.tolist() == ["test"] * PER_CLASS * len(SHAPES)
    embedded, same = load("clipart"), load("clipart", whole=True)
    assert embedded.split.tolist() == same.split.tolist()


def test_classes_of_one_name_stay_two(clip, shapes, runs):
    """As in ImageNet, whose list has two "missile"."""
    record, learned = runs["coop"]
    names = ("black dot", *shapes.class_names[1:3], "black dot")
    found = evaluate_run(
        {**record, "data": {**record["data"], "class_names": list(names)}},
        learned,
        clip,
        replace(shapes, class_names=names),
        no_bars,
    )
    evaluation = found.tests["coop"]["all"]
    assert set(evaluation.labels.tolist()) == {0, 1, 2, 3}
    assert 3 not in evaluation.predicted  # the first of equals wins


def test_the_weights_must_be_those_of_the_run(clip, shapes, runs):
    record, learned = runs["coop"]
    other = {**record, "model": {**record["model"], "digest": "0" * 64}}
    with pytest.raises(ValueError, match="trained on other weights"):
        evaluate_run(other, learned, clip, shapes, no_bars)


def test_json_holds_it(clip, shapes, runs):
    from prograd_fast.report import evaluation_record

    found = evaluate_run(*runs["coop"], clip, shapes, no_bars)
    record = json.loads(json.dumps(evaluation_record(found), allow_nan=False))
    own = record["tests"]["coop"]["all"]
    assert own["accuracy"] == found.tests["coop"]["all"].accuracy
    assert np.trace(own["confusion"]) == found.tests["coop"]["all"].right.sum()
    assert len(own["wrong"]) == (~found.tests["coop"]["all"].right).sum()
    without = replace(shapes, split=np.where(shapes.labels == 0, "pool", shapes.split))  # a class without pictures
    found = evaluate_run(*runs["coop"], clip, without, no_bars)
    json.dumps(evaluation_record(found), allow_nan=False)
