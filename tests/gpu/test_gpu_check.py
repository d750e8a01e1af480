"""The script for the day that a GPU is at hand, on a CPU: what it writes, how it goes on, what it says of failures."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import prograd_fast as pf
from prograd_fast import backends
from tests.ops.calls import CALLS, Sizes
from tools import gpu_calls, gpu_check, gpu_parts, gpu_speed
from tools.gpu_check import FAKE
from tools.gpu_work import NOT_DONE, MissingError, Work, read, write


def run(out: Path, function: Callable[[Work], None], seconds: float = 60) -> dict[str, Any]:
    """What is in the file after a part was run in this process."""
    gpu_check.run_part(out, "part", function, seconds, fake=True)
    return json.loads(out.read_text())["parts"]["part"]


def test_all_parts_take_twelve_minutes_and_none_takes_eight() -> None:
    seconds = [part.seconds for part in gpu_parts.PARTS.values()]
    assert max(seconds) <= 480
    assert sum(seconds) <= 720


def test_the_script_runs_a_part_and_skips_it_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found" / "gpu.json"
    options = ["--out", str(out), "--fake", "--part", "sanitizer"]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *options])
    assert gpu_check.main() == 0
    report = json.loads(out.read_text())
    assert report["device"] == FAKE
    assert {"driver", "torch", "triton"} <= report.keys()
    assert report["parts"]["sanitizer"]["status"] == "skipped"
    assert "compute-sanitizer" in report["parts"]["sanitizer"]["reason"]
    assert "skipped" in capsys.readouterr().out
    assert gpu_check.main() == 0
    assert capsys.readouterr().out == ""
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(("options", "says"), [([], "--out: expected a file"), (["--out", "x"], "no GPU here")])
def test_the_script_says_what_is_missing(
    options: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *options])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert says in capsys.readouterr().err


def test_the_script_lists_its_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--list"])
    assert gpu_check.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(gpu_parts.PARTS)


def test_every_operator_of_the_registry_is_run() -> None:
    # of `dual_loss_out` and of `gelu_out`, which are run
    composed = {"head_dual_loss_out", "linear_gelu_out", "linear_gelu_backward_out"}
    assert gpu_calls.with_kernels("cpu") | composed == {name for name in CALLS if name.endswith(("_out", "_"))}


@pytest.mark.parametrize("name", sorted(gpu_calls.with_kernels("cpu")))
def test_an_operator_is_compared_with_the_reference(name: str) -> None:
    before = backends.active()["cpu"]
    try:
        for dtype in (torch.float32, torch.bfloat16):
            assert gpu_parts.error_of(name, Sizes(dtype=dtype), "cpu", before) < 1e-2
    finally:
        backends.use(before)


def test_a_wrong_result_is_reported_with_its_case_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error_of = gpu_parts.error_of

    def planted(name: str, *args: Any) -> float:
        if name == "gelu_out":
            raise AssertionError("out, (3, 6) torch.float32: relative error 1.00e+00, allowed 1e-05")
        return error_of(name, *args)

    monkeypatch.setattr(gpu_parts, "error_of", planted)
    monkeypatch.setattr(gpu_parts, "with_kernels", lambda device: {"gelu_backward_", "gelu_out", "gram_out", "unknown"})
    found = run(tmp_path / "gpu.json", partial(gpu_parts.correct, backend="cuda"))
    assert found["status"] == "failed"
    failed = [failure["case"] for failure in found["failures"]]
    assert failed[0] == "every operator has a call"
    assert "unknown" in found["failures"][0]["what"]
    assert failed[1] == "gelu_out, float32, small"
    assert "relative error" in found["failures"][1]["what"]
    assert {"gelu_backward_, float32, small", "gram_out, float64, odd"} <= found["figures"].keys()


def test_time_is_up_and_a_later_call_goes_on(tmp_path: Path) -> None:
    ran: list[int] = []

    def part(work: Work) -> None:
        for i in range(4):
            work.case(f"case {i}", lambda i=i: (ran.append(i), time.sleep(0.2))[1])

    first = run(tmp_path / "gpu.json", part, seconds=0.3)
    assert (first["status"], first["done"]) == ("out of time", ["case 0", "case 1"])
    second = run(tmp_path / "gpu.json", part, seconds=60)
    assert (second["status"], ran) == ("passed", [0, 1, 2, 3])
    assert second["seconds"] > first["seconds"]


def test_a_part_that_cannot_run_says_why(tmp_path: Path) -> None:
    def part(work: Work) -> None:
        raise MissingError("no such tool")

    assert run(tmp_path / "gpu.json", part)["reason"] == "no such tool"


def test_a_dead_context_ends_the_process_and_its_case_alone(tmp_path: Path) -> None:
    def part(work: Work) -> None:
        work.case("bad", lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: an illegal memory access")))
        work.case("good", lambda: 1)

    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as ended:
        run(out, part)
    assert ended.value.code == NOT_DONE
    found = run(out, part)
    assert (found["status"], found["done"], found["figures"]) == ("failed", ["bad", "good"], {"good": 1})
    assert "illegal memory access" in found["failures"][0]["what"]


def test_a_crash_takes_down_its_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, codes = tmp_path / "gpu.json", iter([-11, 0])

    def process(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        code = next(codes)
        work = Work(out, "part", 60, fake=True)
        if code:
            work.record["running"] = "crashes"
            work.save()
        else:
            work.case("crashes", lambda: 1)
            work.case("works", lambda: 1)
            work.end()
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", process)
    gpu_check.run_in_process(out, "part", 60, fake=True)
    found = json.loads(out.read_text())["parts"]["part"]
    assert found["failures"] == [{"case": "crashes", "what": "the process ended with status -11"}]
    assert (found["status"], found["figures"]) == ("failed", {"works": 1})


def test_the_file_is_whole_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    write(out, {"parts": {"a": 1}})

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(out, {"parts": {"a": 2}})
    assert read(out) == {"parts": {"a": 1}}


def test_another_machine_needs_another_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    write(out, {"device": "NVIDIA H100", "parts": {}})
    with pytest.raises(SystemExit, match="written on NVIDIA H100"):
        gpu_check.run_all(out, {}, 60, fake=True, again=False)


def test_steps_in_a_graph_that_differ_are_found() -> None:
    made = iter([0.0, 1.0])

    def step() -> gpu_calls.Stepping:
        state, by = torch.zeros(2), next(made)
        return lambda: state.add_(by), [state]

    with pytest.raises(AssertionError, match="1 of 1 tensors differ"):
        gpu_parts.same_in_a_graph(step, fake=True)
    gpu_parts.same_in_a_graph(partial(gpu_parts.optimizer_step, pf.ProGradAdamW, [(3, 4), ()], "cpu"), True)


def test_a_timed_call_has_its_figures() -> None:
    name = "dual_loss_out, 32x1000, float32"
    timed = gpu_speed.timings("cpu", small=True)[name]
    assert timed.bytes >= 16 * 32 * 1000  # two matrices of logits, two of cotangents
    figures = gpu_speed._timed(timed, fake=True, bandwidth=100.0)
    assert figures["us"] > 0
    assert {"GB/s", "of bandwidth"} <= figures.keys()
