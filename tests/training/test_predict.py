"""Files are classified among known and new classes, and those that cannot be read do not stop the others."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from prograd_fast.methods import CoOp, LinearProbe
from prograd_fast.training import load_run, make_plan, predict_files, read_class_names, save_run, train_method
from prograd_fast.training import predict as predicting
from tests.training.support import no_bars, probability_matrix

METHODS = {"coop": CoOp(epochs=3), "linear-probe": LinearProbe()}


@pytest.fixture(scope="module")
def runs(clip, shapes, tmp_path_factory) -> dict:
    """Record and learned tensors of a run of each method."""
    found = {}
    for name, method in METHODS.items():
        folder = tmp_path_factory.mktemp(name)
        save_run(folder, *train_method(method, clip, shapes, make_plan(shapes, 2, 0, None), no_bars))
        found[name] = load_run(folder)
    return found


@pytest.fixture
def files(shapes) -> list[Path]:
    return [Path(file) for file in shapes.source[:9]]


def bad_files(folder: Path) -> list[Path]:
    """A file of each kind that cannot be read."""
    (folder / "junk.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    (folder / "folder.png").mkdir()
    names = ("junk.jpg", "empty.png", "cut.png", "pipe.png", "dangling.png", "folder.png", "missing.png")
    return [folder / name for name in names]


@pytest.mark.parametrize("at_once", [1, 3, 256])
@pytest.mark.parametrize("method", METHODS)
def test_bad_files_do_not_stop_the_others(clip, runs, files, tmp_path, monkeypatch, method, at_once):
    monkeypatch.setattr(predicting, "_AT_ONCE", at_once)
    expected = predict_files(*runs[method], clip, files, no_bars)
    bad = bad_files(tmp_path)
    mixed = [file for pair in itertools.zip_longest(bad, files) for file in pair if file is not None]
    found = predict_files(*runs[method], clip, mixed, no_bars)
    assert found.files == tuple(files)
    assert set(found.unreadable) == set(bad)
    assert all(str(file) in reason for file, reason in found.unreadable.items())
    torch.testing.assert_close(probability_matrix(found), probability_matrix(expected))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_bad_files(clip, runs, tmp_path, method):
    found = predict_files(*runs[method], clip, bad_files(tmp_path), no_bars)
    assert found.files == ()
    assert len(found.unreadable) == 7


def test_the_bar_counts_each_file_once(clip, runs, files, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "_AT_ONCE", 4)
    moved, totals = [], []

    def track(label: str, total: int):
        totals.append(total)
        return lambda: moved.append(1)

    predict_files(*runs["coop"], clip, [*bad_files(tmp_path), *files], track)
    assert totals == [len(moved)]


@pytest.mark.parametrize("top", [1, 2, 4, 99])
def test_the_most_probable_classes_are_told(clip, runs, files, top):
    found = predict_files(*runs["coop"], clip, files, no_bars, top=top)
    every = predict_files(*runs["coop"], clip, files, no_bars)
    assert found.top.shape == found.probabilities.shape == (9, min(top, 4))
    assert found.top.tolist() == every.top[:, :top].tolist()
    assert every.probabilities.sum(1) == pytest.approx(1, abs=1e-5)


def test_names_never_trained_on(clip, runs, files):
    names = ("kite", "red circle", "a door")
    found = predict_files(*runs["coop"], clip, files, no_bars, class_names=names)
    assert found.class_names == names
    record, learned = runs["coop"]
    net = METHODS["coop"].restore(clip.model, clip.tokenizer, record["trained_classes"], learned).net
    images = torch.stack([clip.preprocess(predicting.picture_files([file]).open(0)) for file in files])
    torch.testing.assert_close(probability_matrix(found), net.with_classes(names)(images).softmax(1))


def test_methods_that_cannot_name_classes_refuse_them(clip, shapes, runs, files):
    with pytest.raises(ValueError, match="linear probe cannot name classes that it was not trained on"):
        predict_files(*runs["linear-probe"], clip, files, no_bars, class_names=["kite", "door"])
    found = predict_files(*runs["linear-probe"], clip, files, no_bars, class_names=shapes.class_names)
    assert found.class_names == shapes.class_names


@pytest.mark.parametrize("names", [["cat", "dog", "Cat"], ["red  circle", "red circle"], ["a&amp;b", "a&b"]])
def test_names_that_the_model_reads_alike_are_refused(clip, runs, files, names):
    with pytest.raises(ValueError, match="are the same words to the model"):
        predict_files(*runs["coop"], clip, files, no_bars, class_names=names)


def test_files_of_class_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffred circle\r\n\r\n  yellow_star \nB\u00e4r\n".encode())
    assert read_class_names(file) == ("red circle", "yellow star", "B\u00e4r")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 names; expected at least two"),
        (b"cat\n", "1 names; expected at least two"),
        (b"\n \n", "0 names"),
        (b"cat\n_\n", "expected a readable name"),
        (b"n01\tcat\nn02\tdog\n", "has a tab, as in the classes.txt of a folder"),
        (b"caf\xe9\ncat", "codec can't decode"),
        (None, "No such file"),
    ],
)
def test_bad_files_of_class_names(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read class names from .*names.txt: .*{reason}"):
        read_class_names(tmp_path / "names.txt")
    with pytest.raises(ValueError, match="cannot read class names"):
        read_class_names(tmp_path)


def test_the_classes_in_another_order_are_the_same_classes(clip, runs, files):
    record, _ = runs["linear-probe"]
    known = record["trained_classes"]
    expected = predict_files(*runs["linear-probe"], clip, files, no_bars)
    found = predict_files(*runs["linear-probe"], clip, files, no_bars, known[::-1])
    names = [[[one.class_names[i] for i in row] for row in one.top] for one in (expected, found)]
    assert names[0] == names[1]
    assert (found.probabilities == expected.probabilities).all()
    with pytest.raises(ValueError, match=f"expected all {len(known)} classes of this run and no others"):
        predict_files(*runs["linear-probe"], clip, files, no_bars, known[1:])
