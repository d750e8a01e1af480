"""Several processes train one run: the numbers are those of a single process on the whole batch."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from prograd_fast.cli.ranks import _other_folders
from prograd_fast.training import load_run, tune
from tests.methods.support import make_task
from tests.methods.test_every_method import small
from tests.paths import REPOSITORY
from tests.slow import slow_but_for
from tests.tolerances import assert_close
from tests.training.on_ranks import CASES, SHARED, trained


def torchrun(processes, *arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command += ["--max-restarts", restarts, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(part) for part in (*command, *arguments)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module", params=slow_but_for([2], [2, 4]))
def found(request, tmp_path_factory):
    """What each rank found."""
    file = tmp_path_factory.mktemp("ranks") / "found"
    done = torchrun(request.param, "tests.training.on_ranks", "every", file)
    assert done.returncode == 0, done.stderr
    return torch.load(file, weights_only=True)


def check_all_found(found, expected):
    """Each rank found what a single process does, and all of them the same bits."""
    for numbers in found:
        assert numbers.keys() == expected.keys()
        for name, values in expected.items():
            actual, wanted = (torch.tensor(x).nan_to_num(-1.0) for x in (numbers[name], values))
            assert_close(actual, wanted, "trajectory on ranks", torch.float32)
            if name in ("task", "general"):  # one update between them, and the KL is still a difference of its terms
                scale = torch.tensor(expected["task"][:2])
                assert_close(actual[:2], wanted[:2], "ranks", torch.float32, scale)
        assert str(numbers) == str(found[0])


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_one_process(found, case):
    check_all_found([apart[case] for apart, *_ in found], trained(case))


@pytest.mark.parametrize("case", SHARED)
def test_the_numbers_are_the_same_where_ranks_share_the_classes(found, case):
    check_all_found([shared[case] for _, shared, *_ in found], trained(case))


def test_every_rank_is_told_what_they_do_not_agree_on(found):
    for _, _, told, _ in found:
        assert told.startswith(
            "the processes of this run do not agree: class_names is ['cat'] in process 0 and ['cat', 'dog'] in process "
        )


def test_no_rank_goes_on_from_where_the_others_are_not(found):
    for *_, told in found:
        assert told.startswith(
            "the processes of this run do not agree: the number of steps that were taken before is 2 in process 0 and "
            "0 in process 1"
        )


@pytest.mark.slow
def test_a_rank_that_dies(tmp_path):
    """The others end with an error, the checkpoint is whole, and all go on from it when torchrun begins them again."""
    done = torchrun(2, "tests.training.on_ranks", "dying", tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "ConnectionError: another process of this run has ended, or did not answer for 10 minutes" in done.stderr
    first, losses, state = torch.load(tmp_path / "found", weights_only=True)
    assert not first
    learner = small("prograd", epochs=10, n_ctx=6).start(make_task(dtype=torch.float32))
    history = tune(learner)
    assert_close(torch.tensor(losses), torch.tensor(history.task_loss), "trajectory on ranks", torch.float32)
    for name, value in learner.module.state_dict().items():
        assert_close(state[name], value, "trajectory on ranks", torch.float32)


def test_the_command_trains_on_two_ranks(tmp_path, shapes_dir):
    """One run is written and told of, with the numbers of a single process."""
    arguments = ("prograd_fast", "train", "--data", shapes_dir, "--method", "prograd", "--epochs", 5, "--n-ctx", 6)
    one = subprocess.run(
        [sys.executable, "-m", *map(str, arguments), "--out", str(tmp_path / "one")], capture_output=True, text=True
    )
    two = torchrun(2, *arguments, "--out", tmp_path / "two")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert two.stdout == one.stdout.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert two.stderr.count("training prograd") == one.stderr.count("training prograd")
    records = [load_run(tmp_path / name)[0] for name in ("one", "two")]
    for name in ("task_loss", "general_loss", "accuracy"):
        steps = [torch.tensor(record["steps"][name]) for record in records]
        assert_close(steps[1], steps[0], "trajectory on ranks", torch.float32)
    assert records[0]["accuracy"] == records[1]["accuracy"]


def test_all_ranks_begin_with_the_finished_folds(tmp_path):
    """And with nothing else from the folder of the run."""
    (tmp_path / "run" / "fold0").mkdir(parents=True)
    (tmp_path / "run" / "fold0" / "run.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "run" / "pictures").mkdir()
    shutil.copytree(tmp_path / "run", tmp_path / "copy", ignore=_other_folders)
    found = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*"))
    assert found == ["fold0", "fold0/run.json", "summary.json"]


@pytest.mark.slow
def test_folds_go_on_on_two_ranks(tmp_path, shapes_dir):
    arguments = ("prograd_fast", "train", "--data", shapes_dir, "--epochs", 2, "--folds", 2, "--out", tmp_path / "run")
    first = torchrun(2, *arguments)
    assert first.returncode == 0, first.stderr
    shutil.rmtree(tmp_path / "run" / "fold1")
    second = torchrun(2, *arguments, "--resume")
    assert second.returncode == 0, second.stderr
    assert "fold0 is finished" in second.stdout
    assert second.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]


def test_other_commands_run_in_one_process(tmp_path):
    done = torchrun(2, "prograd_fast", "compare", "--data", "clipart", "--out", tmp_path)
    assert done.returncode != 0
    assert "compare runs in one process, and torchrun started 2. Only train shares its work" in done.stderr
