"""Guards the kernels on every Triton that users may have: `tools/kernels/triton_matrix.py` compiles them with each."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from tests.paths import REPOSITORY


@pytest.fixture(scope="module")
def matrix():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "tools" / "kernels")
        import triton_matrix

        yield triton_matrix


@pytest.mark.slow  # downloads each release, and compiles every kernel with it
def test_every_release(matrix):
    """From 3.1, the first that is left to users of PyTorch 2.5, to the newest."""
    try:
        releases = matrix.releases()
    except matrix.NoIndexError as error:
        pytest.skip(f"no package index can be reached: {error}")
    assert releases[0].startswith("3.1.")
    results = [matrix.check(release, few=True) for release in releases]
    assert [fault for result in results for fault in result["faults"]] == []
    refused = [result["release"] for result in results if result["missing"]]
    assert [release.rpartition(".")[0] for release in refused] == ["3.1", "3.2", "3.3"]
    assert all(result["kernels"] > 20 for result in results if not result["missing"])


def test_the_last_release_of_each_minor_one(matrix, monkeypatch):
    listed = "triton (3.10.0)\nAvailable versions: 3.10.0, 3.9.1, 3.9.0, 3.1.0, 3.0.0, 2.3.1\n"
    monkeypatch.setattr(matrix.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=listed, stderr=""))
    assert matrix.releases() == ["3.1.0", "3.9.1", "3.10.0"]
    monkeypatch.setattr(matrix.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="", stderr="no route"))
    with pytest.raises(matrix.NoIndexError, match="no route"):
        matrix.releases()


def test_numbers_reach_the_updates_in_float64(matrix):
    """With the installed release: learning rate, betas, eps, decay, lambda, floor and sign of both optimizers."""
    import triton_gate

    numbers = {}

    def found(name, kernel):
        assert matrix.rounded(name, kernel) == []
        numbers[name] = sum(kind == "fp64" for kind in kernel.src.signature.values())

    with triton_gate.compiling(90, found):
        triton_gate.CASES["8192 elements, fp32"].launch()
    assert numbers == {"gram_units": 0, "project_units": 2, "project_chunks": 2, "adamw_units": 10, "sgd_units": 7}


@pytest.mark.parametrize("kind", ["fp32", "i32"])
def test_a_number_that_arrives_rounded_is_a_fault(matrix, kind):
    """As in Triton 3.3, which does not heed the declaration."""
    params = [SimpleNamespace(name="lr", annotation="fp64"), SimpleNamespace(name="n", annotation="")]
    source = SimpleNamespace(fn=SimpleNamespace(params=params), signature={"lr": kind, "n": "i32"})
    assert matrix.rounded("adamw", SimpleNamespace(src=source)) == [f"adamw: lr arrives as {kind}"]
