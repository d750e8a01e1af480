"""The plan of `reproduce` has the settings that the papers' authors published, row by row."""

import csv
from random import Random

import pytest

from prograd_fast.data import BENCHMARKS
from prograd_fast.methods import METHODS, TaskRes, method_kind
from prograd_fast.reproduce import DOMAINS, SETS, SHOTS, Reproduction, planned_runs, published_settings, write_plan
from prograd_fast.reproduce.plan import HEADER
from prograd_fast.reproduce.protocol import backbone_of
from prograd_fast.reproduce.published import published_numbers
from prograd_fast.training import TrainOptions
from tests.data import layouts

COOP = {"batch": "32", "learning rate": "0.002", "warm-up": "1 at 1e-05", "momentum": "0.9", "weight decay": "0.0005"}
CROPS = {"seeds": "1, 2, 3", "pictures seen as": "a new random crop and flip in each epoch"}
FEW_SHOT_EPOCHS = {1: "50", 2: "100", 4: "100", 8: "200", 16: "200"}

# BeierZhu/Prompt-align:ProGrad.public/trainers/prograd.py
PROGRAD_WORDS = {
    "imagenet": "a photo of a",
    "caltech101": "a photo of a",
    "oxford_pets": "a type of pet, a photo of a",
    "stanford_cars": "a photo of a",
    "oxford_flowers": "a type of flower, a photo of a",
    "food101": "a type of food, a photo of",
    "fgvc_aircraft": "a type of aircraft, a photo of a",
    "sun397": "a photo of a",
    "dtd": "a texture of",
    "eurosat": "a centered satellite photo of",
    "ucf101": "a photo of a person doing",
}
# KaiyangZhou/CoOp:trainers/zsclip.py; where KgCoOp's and TCP's differ
FIXED = {
    "imagenet": "a photo of a {}.",
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
KGCOOP = FIXED | {"dtd": "a photo of a {}, a type of texture."}
TCP = KGCOOP | {"fgvc_aircraft": "a photo of an aircraft {}.", "food101": "a photo of a {}, a type of food."}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All sets; tests only read it."""
    return layouts.make_all(tmp_path_factory.mktemp("benchmark"))


def plan(root, method, table, backbone, **options) -> dict[tuple[str, int], dict[str, str]]:
    """Set and shots -> the row of the plan."""
    reproduction = Reproduction(method_kind(method), table, root, **options)
    rows = [dict(zip(HEADER, one.cells(reproduction), strict=True)) for one in planned_runs(reproduction, backbone)]
    return {(row["set"], int(row["shots"])): row for row in rows}


def assert_rows(found, expected) -> None:
    """Each row has these cells, and there are no other rows."""
    assert found.keys() == expected.keys()
    for key, cells in expected.items():
        assert {name: found[key][name] for name in cells} == cells, key


def test_prograd_few_shot(root):
    """configs/trainers/ProGrad/rn50*.yaml: 50, 100, 100, 200, 200 epochs; ImageNet always 50."""
    found = plan(root, "prograd", "few-shot", "RN50")
    assert_rows(
        found,
        {
            (name, shots): {
                **COOP,
                **CROPS,
                "epochs": "50" if name == "imagenet" else FEW_SHOT_EPOCHS[shots],
                "words": f"16 tokens, from {words!r}; fixed prompts: {words} {{}}.",
                "learned classes": "4" if name == "imagenet" else "2",
                "published with": "RN50",
            }
            for name, words in PROGRAD_WORDS.items()
            for shots in SHOTS
        },
    )


def test_prograd_has_lambda_0_8_where_the_readme_says(root):
    for name in SETS:
        for shots in SHOTS:
            lower = name in ("oxford_flowers", "dtd", "eurosat") and shots >= 8
            chosen = published_settings(method_kind("prograd"), "few-shot", name, shots, "RN50")
            assert chosen.method.lambda_ == (0.8 if lower else 1.0)
            assert chosen.for_table
    assert published_settings(method_kind("prograd"), "base-to-new", "dtd", 16, "RN50").method.lambda_ == 1.0


def test_prograd_base_to_new(root):
    """scripts/base2new_train_prograd.sh: RN50, 4 shots, 100 epochs, 50 on ImageNet, 16 tokens."""
    assert_rows(
        plan(root, "prograd", "base-to-new", "RN50"),
        {
            (name, 4): {
                **COOP,
                **CROPS,
                "epochs": "50" if name == "imagenet" else "100",
                "words": f"16 tokens, from {words!r}; fixed prompts: {words} {{}}.",
                "learned classes": "2" if name == "imagenet" else "1",
            }
            for name, words in PROGRAD_WORDS.items()
        },
    )


def test_coop(root):
    """Few-shot on RN50: random tokens. Base-to-new, as CoCoOp's authors trained it: ViT-B/16, four tokens, 16 shots."""
    teacher = "fixed prompts: a picture of a {}."  # measures conflicts, and changes nothing
    assert_rows(
        plan(root, "coop", "few-shot", "RN50"),
        {
            (name, shots): {
                **COOP,
                **CROPS,
                "epochs": "50" if name == "imagenet" else FEW_SHOT_EPOCHS[shots],
                "words": f"16 tokens, random; {teacher}",
            }
            for name in SETS
            for shots in SHOTS
        },
    )
    assert_rows(
        plan(root, "coop", "base-to-new", "ViT-B/16"),
        {
            (name, 16): {
                **COOP,
                **CROPS,
                "epochs": "50" if name == "imagenet" else "200",
                "words": "4 tokens, from 'a photo of a'; fixed prompts: a photo of a {}.",
                "published with": "ViT-B/16",
            }
            for name in SETS
        },
    )


@pytest.mark.parametrize(
    ("method", "table", "backbone", "shots", "epochs", "tokens"),
    [
        ("cocoop", "cross-dataset", "ViT-B/16", 16, "10", "4 tokens, from 'a photo of a'"),
        ("coop", "cross-dataset", "ViT-B/16", 16, "50", "4 tokens, from 'a photo of a'"),  # vit_b16_ep50_ctxv1
        ("coop", "domain", "RN50", 16, "50", "16 tokens, random"),  # scripts/coop/eval.sh
        ("prograd", "domain", "RN50", 4, "50", "16 tokens, from 'a photo of a'"),  # scripts/eval.sh
        ("tcp", "cross-dataset", "ViT-B/16", 16, "25", "4 tokens, random"),
        ("promptsrc", "cross-dataset", "ViT-B/16", 16, "20", "4 tokens, from 'a photo of a'"),
        ("promptsrc", "domain", "ViT-B/16", 16, "20", "4 tokens, from 'a photo of a'"),
    ],
)
def test_what_is_learned_on_imagenet_and_tested_elsewhere(root, method, table, backbone, shots, epochs, tokens):
    found = plan(root, method, table, backbone)
    assert list(found) == [("imagenet", shots)]
    row = found["imagenet", shots]
    assert (row["epochs"], row["words"].split("; ")[0], row["learned classes"]) == (epochs, tokens, "4")
    others = Reproduction(method_kind(method), table, root).tested_elsewhere
    assert others == (SETS[1:] if table == "cross-dataset" else DOMAINS)
    assert published_settings(method_kind(method), table, "imagenet", shots, backbone).for_table == (method != "tcp")


def test_cocoop_kgcoop_and_tcp_base_to_new(root):
    """16 shots of ViT-B/16, four tokens: CoCoOp's pictures one by one, KgCoOp's 128 at a time, TCP's 32."""
    common = {key: COOP[key] for key in ("learning rate", "warm-up", "momentum", "weight decay")}
    for method, batch, templates in (
        ("cocoop", "1", dict.fromkeys(SETS, "a photo of a {}.")),
        ("kgcoop", "128", KGCOOP),
        ("tcp", "32", TCP),
    ):
        start = "random" if method == "tcp" else "from 'a photo of a'"
        epochs = {"cocoop": "10", "kgcoop": "100", "tcp": "50"}[method]
        assert_rows(
            plan(root, method, "base-to-new", "ViT-B/16"),
            {
                (name, 16): {
                    **common,
                    **CROPS,
                    "batch": batch,
                    "epochs": "25" if method == "tcp" and name in ("imagenet", "sun397") else epochs,
                    "words": f"4 tokens, {start}; fixed prompts: {templates[name]}",
                }
                for name in SETS
            },
        )


def test_settings_of_each_set():
    """1adrianb/lasp:configs/LASP; VPT.md of saic-fi/Bayesian-Prompt-Learning; docs of zhengli97/ATPrompt."""
    lasp = dict.fromkeys(SETS, (25, 0.032, 5.0)) | {"eurosat": (300, 0.032, 5.0), "food101": (10, 0.002, 5.0)}
    lasp |= dict.fromkeys(("caltech101", "dtd", "ucf101"), (50, 0.032, 10.0))
    samples = [10, 20, 40, 20, 10, 20, 10, 20, 40, 20, 5]
    epochs = [10, 20, 20, 40, 40, 20, 10, 10, 10, 60, 20]
    words = [2, 2, 2, 1, 3, 2, 2, 1, 3, 1, 1]
    for i, name in enumerate(SETS):
        method = published_settings(method_kind("lasp"), "base-to-new", name, 16, "ViT-B/16").method
        assert (method.epochs, method.lr, method.alpha) == lasp[name]
        method = published_settings(method_kind("variational"), "base-to-new", name, 16, "ViT-B/16").method
        assert (method.samples, method.epochs) == (samples[i], epochs[i])
        method = published_settings(method_kind("atprompt"), "base-to-new", name, 16, "ViT-B/16").method
        assert len(method.attributes) == words[i]
        assert method.epochs == (10 if name == "imagenet" else 100)


def test_heads(root):
    """TaskRes: 100 epochs to 4 shots, 200 from 8; a tenth of the rate on ImageNet, a scale of 1 on Flowers at 16."""
    for name in SETS:
        for shots in SHOTS:
            method = published_settings(TaskRes, "few-shot", name, shots, "RN50").method
            assert method.epochs == (100 if shots < 8 else 200)
            assert method.lr == (2e-4 if (name, shots) == ("imagenet", 16) else 2e-3)
            assert method.scale == (1.0 if (name, shots) == ("oxford_flowers", 16) else 0.5)
            assert method.templates == (FIXED[name],)
    alphas = [1.17, 3.0, 1.17, 3.0, 10.0, 1.17, 5.0, 1.17, 2.0, 2.0, 3.0]  # configs/*.yaml of Tip-Adapter
    for name, alpha in zip(SETS, alphas, strict=True):
        assert published_settings(method_kind("tip-adapter"), "few-shot", name, 1, "RN50").method.alpha == alpha
    rows = plan(root, "zero-shot", "few-shot", "RN50")
    assert {name: row["words"] for (name, _), row in rows.items()} == {
        name: f"fixed prompts: {template}" for name, template in FIXED.items()
    }


def test_crops_that_methods_without_steps_take(root):
    """augment_epoch 10 in configs of gaopengcuhk/Tip-Adapter, mrflogs/ICLR24 and omarnust/BReg-Adapter."""
    averaged, rows = "10 random crops and flips, averaged", "10 random crops and flips, each a picture"
    published = {
        "tip-adapter": averaged,
        "tip-adapter-f": f"{averaged}; then a new random crop and flip in each epoch",
        "gda": rows,
        "proker": rows,
        "zero-shot": "they are",
    }
    others = {None: dict.fromkeys(published, "they are"), 3: {"gda": "3 random crops and flips, each a picture"}}
    for views, expected in ({0: published} | others).items():
        options = {"datasets": ["dtd"], "shots": [16], "options": TrainOptions(views=views)}
        for method, seen in expected.items():
            (row,) = plan(root, method, "few-shot", "RN50", **options).values()
            assert row["pictures seen as"] == seen


def test_settings_of_another_table_stand_in_and_are_told():
    chosen = published_settings(method_kind("cocoop"), "few-shot", "dtd", 16, "ViT-B/16")
    assert (chosen.preset, chosen.for_table) == ("vit-b16-base-to-new", False)
    chosen = published_settings(method_kind("xerm"), "few-shot", "imagenet", 16, "RN50")  # its presets are long-tailed
    assert (chosen.preset, chosen.method) == ("", method_kind("xerm")())


def test_every_method_has_a_plan_for_every_table_and_set():
    for kind in METHODS:
        for table in ("few-shot", "base-to-new", "cross-dataset", "domain"):
            for name in SETS:
                assert published_settings(kind, table, name, 16, "RN50").method.name == kind.name


def test_the_pictures_of_the_plan_are_the_drawn_ones(root, tmp_path):
    """Three pictures of a class to learn from, one for validation: `random.sample` of each, in one stream."""
    reproduction = Reproduction(method_kind("coop"), "base-to-new", root, ["oxford_pets"], [1], [1, 2, 3])
    write_plan(reproduction, list(planned_runs(reproduction, "RN50")), tmp_path)
    with (tmp_path / "coop-base-to-new-pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = []
    for seed in ("1", "2", "3"):
        random = Random(int(seed))
        (first,), _ = random.sample(range(3), 1), random.sample(range(3), 1)  # of the base class, and of the new one
        for part, number in (("train", first), ("validation", 3)):
            file = f"oxford_pets/images/Abyssinian_{number}.jpg"
            expected.append(
                {"set": "oxford_pets", "shots": "1", "seed": seed, "part": part, "picture": file, "class": "abyssinian"}
            )
    assert rows == expected
    assert (tmp_path / "coop-base-to-new-plan.csv").read_text().splitlines()[0] == ",".join(HEADER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "zero"}, "no table 'zero'"),
        ({"datasets": ["imagenet_a"]}, "'imagenet_a' is no set of few-shot"),
        ({"datasets": ["dtd", "dtd"]}, "sets: expected one or more, each once"),
        ({"seeds": []}, "seeds: expected one or more"),
        ({"shots": [1, 1]}, "shots: expected one or more, each once"),
    ],
)
def test_what_cannot_be_run(root, options, message):
    with pytest.raises(ValueError, match=message):
        Reproduction(**{"kind": method_kind("coop"), "table": "few-shot", "root": root} | options)


@pytest.mark.parametrize(
    ("model", "backbone"),
    [("RN50", "RN50"), ("RN50-quickgelu", "RN50"), ("ViT-B-16", "ViT-B/16"), ("ViT-B-32-quickgelu", "ViT-B/32")],
)
def test_names_of_models(model, backbone):
    assert backbone_of(model) == backbone


def test_published_numbers_have_sources_and_name_their_conflicts():
    rows = published_numbers()
    known = {*SETS, *DOMAINS, "average of 11", "average of 10 targets", "average of 4 targets"}
    assert all(row.source and row.dataset in known and 0 < row.value < 100 for row in rows)
    assert {row.table for row in rows} <= {"few-shot", "base-to-new", "cross-dataset", "domain"}
    by_key: dict[tuple, list] = {}
    for row in rows:
        by_key.setdefault((row.method, row.table, row.dataset, row.shots, row.backbone, row.metric), []).append(row)
    for several in by_key.values():
        if len(several) > 1:
            assert all("conflicts" in row.note or "template" in row.note for row in several), several
    names = {method.name for method in METHODS}
    assert {"prograd", "coop", "cocoop", "kgcoop", "tcp", "gda", "lp++"} <= names & {row.method for row in rows}
    # a name that is nearly a method's would never be found beside ours
    near = {row.method for row in rows} - names
    assert not {name.replace("-", "").replace("_", "").lower() for name in near} & {
        name.replace("-", "").replace("+", "") for name in names
    }


def test_all_sets_of_the_benchmark_are_in_a_table():
    assert {*SETS, *DOMAINS} == set(BENCHMARKS)
    assert len(SETS) == 11
