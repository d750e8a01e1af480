"""The sets of the field's benchmark are read in CoOp's folders, with the published splits, labels and names."""

import json
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision import datasets

from prograd_fast.data import BENCHMARKS, load, load_benchmark
from prograd_fast.data.benchmarks import missing_pictures
from prograd_fast.methods.templates import DATASETS
from prograd_fast.terminal import output
from tests.cli.support import fail, run_here
from tests.data import layouts
from tests.data.layouts import IMAGENET, NAMES, SPLITS, VARIANTS

READABLE = {"american_bulldog": "american bulldog", "apple_pie": "apple pie", "baby_back_ribs": "baby back ribs"}
READABLE |= {"Apply_Eye_Makeup": "Apply Eye Makeup"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All sets; tests only read it."""
    return layouts.make_all(tmp_path_factory.mktemp("benchmark"))


def described(pictures) -> list[tuple[str, str, str]]:
    """(file below the root, part, class name) of each picture, sorted."""
    columns = zip(pictures.source, pictures.split, pictures.labels, strict=True)
    return sorted(
        (file.resolve().relative_to(pictures.folder).as_posix(), str(part), pictures.class_names[label])
        for file, part, label in columns
    )


def test_the_table_has_all_sets():
    assert set(BENCHMARKS) == set(NAMES)
    assert {one.coop_name for one in BENCHMARKS.values() if one.name not in VARIANTS} == set(DATASETS)
    assert all(hasattr(datasets, one.torchvision) for one in BENCHMARKS.values() if one.torchvision)


@pytest.mark.parametrize("name", SPLITS)
def test_a_published_split(root, name):
    folder, images, _, classes = SPLITS[name]
    found = load(name, root=root)
    parts = ["pool"] * 3 + ["validation"] + ["test"] * 2
    assert described(found) == sorted(
        ((Path(folder) / images / pattern.format(i)).as_posix(), part, READABLE.get(class_name, class_name))
        for class_name, pattern in classes.items()
        for i, part in enumerate(parts)
    )
    assert found.class_names == tuple(READABLE.get(class_name, class_name) for class_name in classes)
    assert (found.name, found.published) == (name, True)
    assert missing_pictures(found) == []


def test_aircraft_has_its_own_files(root):
    found = load("fgvc_aircraft", root=root)
    assert found.class_names == ("707-320", "Boeing 717")
    parts = ["pool"] * 3 + ["validation"] + ["test"] * 2
    assert described(found) == [
        (f"fgvc_aircraft/images/00{label}{i}.jpg", part, found.class_names[label])
        for label in (0, 1)
        for i, part in enumerate(parts)
    ]


def test_imagenet_is_tested_on_its_validation_pictures(root):
    found = load("imagenet", root=root)
    assert found.class_names == ("tench", "killer whale", "missile", "missile")
    assert described(found) == sorted(
        (f"imagenet/images/{part}/{folder}/{file.format(i)}", where, name)
        for folder, name in IMAGENET.items()
        for part, where, file, n in (
            ("train", "pool", folder + "_{}.JPEG", 3),
            ("val", "test", "ILSVRC2012_val_{}.JPEG", 2),
        )
        for i in range(n)
    )
    labels = {file.parent.name: int(label) for file, label in zip(found.source, found.labels, strict=True)}
    assert labels == {"n01440764": 0, "n02071294": 1, "n03773504": 2, "n04008634": 3}


@pytest.mark.parametrize(
    ("name", "class_names"),
    [
        ("imagenetv2", ("tench", "killer whale", "missile", "missile")),
        ("imagenet_sketch", ("tench", "killer whale", "missile", "missile")),
        ("imagenet_a", ("killer whale", "missile")),
        ("imagenet_r", ("tench", "killer whale")),
    ],
)
def test_a_variant_has_its_own_classes_and_test_pictures_alone(root, name, class_names):
    found = load(name, root=root)
    assert found.class_names == class_names
    assert set(found.split) == {"test"}
    folder, images, classes = VARIANTS[name]
    expected = [(f"{folder}/{images}/{own}/{i}.jpeg", label) for label, own in enumerate(classes) for i in range(2)]
    files = [file.relative_to(root).as_posix() for file in found.source]
    assert sorted(zip(files, found.labels.tolist(), strict=True)) == sorted(expected)


def test_folders_of_v2_are_ordered_as_numbers(tmp_path):
    """10 comes after 9."""
    folder = tmp_path / "imagenetv2"
    for label in range(11):
        layouts.draw(folder / "imagenetv2-matched-frequency-format-val" / str(label) / "a.jpeg", label)
    (folder / "classnames.txt").write_text("".join(f"n{label:08} class {label}\n" for label in range(11)))
    found = load("imagenetv2", root=tmp_path)
    assert found.class_names == tuple(f"class {label}" for label in range(11))
    assert [file.parent.name for file in found.source] == [str(label) for label in found.labels]


@pytest.mark.parametrize(
    ("name", "folder", "there"),
    [
        ("oxford_pets", "oxford_pets", "oxford-iiit-pet"),
        ("oxford_flowers", "oxford_flowers", "flowers-102"),
        ("caltech101", "caltech-101", "caltech101"),
        ("fgvc_aircraft", "fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        ("dtd", "dtd", "dtd/dtd"),
        ("sun397", "sun397", "."),
    ],
)
def test_pictures_are_found_where_torchvision_puts_them(root, tmp_path, name, folder, there):
    """The split stays in CoOp's folder."""
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    for child in (root / folder).iterdir():
        target = tmp_path / (folder if child.name.startswith("split_zhou") else there) / child.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(child, target) if child.is_dir() else shutil.copy(child, target)
    found, known = load(name, root=tmp_path), load(name, root=root)
    assert missing_pictures(found) == []
    assert found.fingerprint() == known.fingerprint()


def test_prepare_downloads_with_torchvision_and_tells_what_is_missing(root, tmp_path, capfd, monkeypatch):
    asked = []

    def pets(where: str, download: bool) -> None:
        asked.append((where, download))
        shutil.copytree(root / "oxford_pets/images", Path(where) / "oxford-iiit-pet/images")

    monkeypatch.setattr(datasets, "OxfordIIITPet", pets)
    data = tmp_path / "new"
    for _ in range(2):  # once is enough
        assert run_here(monkeypatch, "data", "prepare", "oxford_pets", "--root", data) == 3
        assert asked == [(str(data), True)]
        (line,) = capfd.readouterr().out.splitlines()
        assert line.startswith(f"{data / 'oxford_pets/split_zhou_OxfordPets.json'} is missing: get it from https://")


def test_a_failed_download_is_one_line(tmp_path, capfd, monkeypatch):
    def broken(where: str, download: bool) -> None:
        raise RuntimeError("File not found or corrupted.")

    def offline(where: str, download: bool) -> None:
        raise URLError("no network")

    monkeypatch.setattr(datasets, "DTD", broken)
    line = fail(capfd, monkeypatch, "data", "prepare", "dtd", "--root", tmp_path)
    said = (
        "dtd: torchvision cannot download it: {}; try again, or do by hand what `prograd-fast data check dtd --root {}`"
    )
    assert said.format("File not found or corrupted.", tmp_path) in line
    monkeypatch.setattr(datasets, "DTD", offline)
    line = fail(capfd, monkeypatch, "data", "prepare", "dtd", "--root", tmp_path)
    assert said.format("<urlopen error no network>", tmp_path) in line
    line = fail(capfd, monkeypatch, "data", "prepare", "dtd1", "--root", tmp_path)
    assert "no set 'dtd1' of the benchmark: expected one of imagenet, caltech101" in line


@pytest.mark.parametrize("name", NAMES)
def test_check_has_a_line_for_each_file_that_is_missing(root, tmp_path, capfd, monkeypatch, name):
    needed = BENCHMARKS[name].needed
    assert run_here(monkeypatch, "data", "check", name, "--root", tmp_path) == 3
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(" is missing: ")[0] for line in lines] == [
        str(tmp_path / BENCHMARKS[name].folder / file) for file in needed
    ]
    with pytest.raises(ValueError, match=re.escape(f"{name}: {lines[0]}")):
        load_benchmark(name, tmp_path)
    assert run_here(monkeypatch, "data", "check", name, "--root", root) == 3  # a miniature has too few classes
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith(f"{name}: {len(load(name, root=root).class_names)} classes, ")
    assert second == f"Problem: the published set has {BENCHMARKS[name].classes} classes."


@pytest.mark.parametrize("command", [["list"], ["check", "dtd"]])
def test_a_root_that_is_not_there_is_named(tmp_path, capfd, monkeypatch, command):
    line = fail(capfd, monkeypatch, "data", *command, "--root", tmp_path / "nowhere")
    assert f"--root: {tmp_path / 'nowhere'} is no folder" in line


def test_check_names_what_a_split_lacks(tmp_path, capfd, monkeypatch):
    layouts.make_split(tmp_path, "dtd")
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    split = json.loads(file.read_text())
    for changes, problem in (
        ({"test": []}, "it has no pictures for the test"),
        ({"train": []}, "it has no pictures to learn from"),
        ({"train": [row for row in split["train"] if row[1] == 0]}, "class 'blotchy' has no picture to learn from"),
    ):
        file.write_text(json.dumps(split | changes))
        assert run_here(monkeypatch, "data", "check", "dtd", "--root", tmp_path) == 3
        assert f"Problem: {problem}." in capfd.readouterr().out


def test_check_names_missing_pictures(tmp_path, capfd, monkeypatch):
    layouts.make_split(tmp_path, "eurosat")
    gone = tmp_path / "eurosat/2750/Forest/Forest_2.jpg"
    gone.unlink()
    assert run_here(monkeypatch, "data", "check", "eurosat", "--root", tmp_path) == 3
    assert capfd.readouterr().out == f"{gone} is missing: the split names it\n"
    for file in (tmp_path / "eurosat/2750").rglob("*.jpg"):
        file.unlink()
    assert run_here(monkeypatch, "data", "check", "eurosat", "--root", tmp_path) == 3
    lines = capfd.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (11, "2 more pictures are missing")


def test_check_of_a_whole_set_ends_well(tmp_path, capfd, monkeypatch):
    layouts.make_split(tmp_path, "eurosat")
    file = tmp_path / "eurosat/split_zhou_EuroSAT.json"
    split = json.loads(file.read_text())
    forest = split["train"][-1][0]
    split["train"] += [[forest, label, f"class {label}"] for label in range(2, 10)]
    file.write_text(json.dumps(split))
    assert run_here(monkeypatch, "data", "check", "eurosat", "--root", tmp_path) == 0
    assert capfd.readouterr().out.splitlines() == [
        "eurosat: 10 classes, 14 pictures to learn from, 2 for validation, 4 for the test.",
        "Nothing is missing.",
    ]


def test_list_shows_every_set_and_what_is_there(root, tmp_path, capfd, monkeypatch):
    layouts.make_split(tmp_path, "dtd")
    monkeypatch.setattr(output.console, "_width", None)  # COLUMNS of when it was made, which pytest-xdist sets
    monkeypatch.setenv("COLUMNS", "200")
    assert run_here(monkeypatch, "data", "list", "--root", tmp_path) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == list(BENCHMARKS)
    assert [row.split()[1] for row in rows if " complete " in row] == ["dtd"]
    assert all("a texture of {}." in row for row in rows if " dtd " in row)


SPLIT = {"train": [["a.jpg", 0, "a"]], "val": [["b.jpg", 1, "b"]], "test": [["c.jpg", 0, "a"]]}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("[1, 2", r"split_zhou_DescribableTextures\.json cannot be used: "),
        ([], "expected an object with train, val and test"),
        ({"train": [], "val": []}, "expected an object with train, val and test"),
        (
            {**SPLIT, "val": [["b.jpg", "1", "b"]]},
            r"expected \[picture, label, class name\], got \['b.jpg', '1', 'b'\]",
        ),
        ({**SPLIT, "val": [["b.jpg", -1, "b"]]}, "expected .picture, label, class name"),
        ({**SPLIT, "val": [["b.jpg", True, "b"]]}, "expected .picture, label, class name"),
        ({**SPLIT, "val": 3}, "expected .picture, label, class name., got 3"),
        ({**SPLIT, "val": [["../b.jpg", 1, "b"]]}, r"below the folder of pictures, got '\.\./b\.jpg'"),
        ({**SPLIT, "val": [["/b.jpg", 1, "b"]]}, "below the folder of pictures"),
        ({**SPLIT, "val": [["b.jpg", 0, "b"]]}, "label 0 is called 'a' and 'b'"),
        ({**SPLIT, "val": [["b.jpg", 2, "b"]]}, r"expected labels 0, 1, \.\.\. of two classes or more, got \[0, 2\]"),
        ({**SPLIT, "val": []}, r"of two classes or more, got \[0\]"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path, split, message):
    (tmp_path / "dtd/images").mkdir(parents=True)
    text = split if isinstance(split, str) else json.dumps(split)
    (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load("dtd", root=tmp_path)


def flat(root: Path) -> None:
    """The validation pictures as the archive has them."""
    for folder in list((root / "imagenet/images/val").iterdir()):
        for file in folder.iterdir():
            file.rename(folder.parent / f"{folder.name}_{file.name}")
        folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flat, r"val: found 0 folders; expected the 4 class folders of .*train\. Pictures that lie in val/ itself"),
        (lambda root: (root / "imagenet/classnames.txt").write_text("n01440764 tench\n"), "no line for n02071294"),
        (lambda root: (root / "imagenet/classnames.txt").write_text("n01440764\n"), "got the line 'n01440764'"),
        (lambda root: (root / "imagenet/classnames.txt").write_text("n1 a\nn1 b\n"), "got the line 'n1 b'"),
        (lambda root: (root / "imagenet/classnames.txt").write_bytes(b"n1 \xff"), "classnames.txt cannot be used"),
        (lambda root: (root / "imagenet/images/train/n9").mkdir(), "val: found 4 folders; expected the 5"),
    ],
)
def test_a_damaged_imagenet_is_refused(tmp_path, spoil, message):
    layouts.make_imagenet(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load("imagenet", root=tmp_path)


def test_a_variant_of_v2_and_aircraft_that_do_not_match_their_lists(tmp_path):
    layouts.make_variant(tmp_path, "imagenetv2")
    shutil.rmtree(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val/3")
    with pytest.raises(ValueError, match=r"found 3 folders; expected 0 to 3, one for each line of classnames\.txt"):
        load("imagenetv2", root=tmp_path)
    layouts.make_aircraft(tmp_path)
    (tmp_path / "fgvc_aircraft/images_variant_val.txt").write_text("0001 Concorde\n")
    with pytest.raises(ValueError, match=r"images_variant_val\.txt: .* got the line '0001 Concorde'"):
        load("fgvc_aircraft", root=tmp_path)


def test_names_need_a_root_and_a_folder_of_that_name_does_not(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the set 'dtd' needs a root, the folder that holds dtd/ \(--root\)"):
        load("dtd")
    with pytest.raises(ValueError, match="the set 'dtd' has its own split"):
        load("dtd", root=root, test_share=0.2)
    with pytest.raises(ValueError, match="no such folder; expected the root of the benchmark, with dtd/ in it"):
        load("dtd", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no set 'emoji' of the benchmark"):
        load_benchmark("emoji", root)
    for name in ("a", "b"):
        for i in range(2):
            layouts.draw(tmp_path / "dtd" / name / f"{i}.png", name, i)
    monkeypatch.chdir(tmp_path)
    assert not load("dtd").published
    assert load("dtd", root=root).published


def test_coop_s_folder_comes_before_torchvision_s(root, tmp_path):
    shutil.copytree(root / "oxford_pets", tmp_path / "oxford_pets")
    (tmp_path / "oxford-iiit-pet/images").mkdir(parents=True)
    assert missing_pictures(load("oxford_pets", root=tmp_path)) == []
