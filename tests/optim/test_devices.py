"""Guards steps over several devices, on fake GPUs: every operator gets what is on its own device, or on the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import prograd_fast as pf


class _Calls(TorchDispatchMode):
    """The devices of the tensors of each update operator: of its lists, and of its single tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[set[str], set[str]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if str(function) in ("prograd_fast.project_adamw_.default", "prograd_fast.project_sgd_.default"):
            lists = {str(x.device) for tensors in args if isinstance(tensors, list) for x in tensors}
            self.calls.append((lists, {str(x.device) for x in args if isinstance(x, Tensor)}))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("rate", [None, "cpu", "cuda:0", "cuda:1"])
@pytest.mark.parametrize(
    "kind", [lambda p: pf.ProGradAdamW(p, amsgrad=True), lambda p: pf.ProGradSGD(p, lr=0.1, momentum=0.5)]
)
def test_parameters_on_two_devices(kind: Any, rate: str | None, compiling: bool, monkeypatch: Any) -> None:
    """The learning rate goes to the device of the parameters; one on the CPU stays, where the launchers read it."""
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.empty(16, 512, device=f"cuda:{i}")) for i in range(2)]
        opt = kind(params)
        (group,) = opt.param_groups
        if rate is not None:
            group["lr"] = torch.empty((), device=rate)
        members = [(p, group, torch.empty_like(p), torch.empty_like(p)) for p in params]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
        with torch.no_grad(), _Calls() as seen:
            opt._update_by_both(members, None)
    assert [lists for lists, _ in seen.calls] == [{"cuda:0"}, {"cuda:1"}]
    for lists, single in seen.calls:
        assert single <= lists | {"cpu"}
    if rate is not None and rate != "cpu":
        assert all("cpu" not in single for _, single in seen.calls)


def test_one_scaler_over_two_devices() -> None:
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.empty(16, 512, device=f"cuda:{i}")) for i in range(2)]
        opt = pf.ProGradAdamW(params)
        (group,) = opt.param_groups
        members = [(p, group, torch.empty_like(p), torch.empty_like(p)) for p in params]

        class Scaler:
            def scale(self, one: Tensor) -> Tensor:
                return one * torch.full((), 2.0, device=one.device)

            def is_enabled(self) -> bool:
                return True

            def unscale_(self, opt: Any) -> None: ...

        with torch.no_grad(), _Calls() as seen:
            opt._update_by_both(members, Scaler())  # type: ignore[arg-type]
    assert seen.calls == [({"cuda:0"}, {"cuda:0"}), ({"cuda:1"}, {"cuda:1"})]
