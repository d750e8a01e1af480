"""Guards what the sources of the Triton kernels keep to, and that a schedule compiles nothing anew.

The interpreter and a GPU disagree, without a word, on bfloat16 values that are not cast where they are loaded; so that
is checked in the source.
"""

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

from prograd_fast.backends import triton_kernels  # noqa: E402
from prograd_fast.backends.triton_kernels.launch import (  # noqa: E402
    TRITON_DTYPES,
    product_operand,
    product_precision,
)
from tests.ops.calls import CALLS  # noqa: E402

ops = SimpleNamespace(**triton_kernels.operators())
FILES = sorted(Path(triton_kernels.__file__).parent.glob("*.py"))
HYPERPARAMETERS = {
    *("lr", "beta1", "beta2", "log2_beta1", "log2_beta2", "eps", "weight_decay", "lambda_", "noise_floor"),
    *("tiny", "sign"),
    *("omega1", "omega2", "epsilon", "shift", "factor"),
    *("alpha", "gamma", "most", "eps"),
    *("momentum", "dampening", "nesterov", "first_step", "temperature", "scale", "soft_ce", "row_factor"),
}


def faults(source):
    """The faults of a source, as (line, fault)."""
    tree = ast.parse(source)
    cast = {
        node.func.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load" and node not in cast:
            yield node.lineno, "a load that is not cast in the same expression"
        if isinstance(node, ast.Attribute) and (
            node.attr in ("extra", "libdevice") or node.attr.startswith(("inline_asm", "atomic"))
        ):
            yield node.lineno, f"tl.{node.attr}"
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            for argument in node.args.args:
                annotation = argument.annotation and ast.unparse(argument.annotation)
                if argument.arg in HYPERPARAMETERS and annotation == "tl.constexpr":
                    yield node.lineno, f"{argument.arg} is a constant of {node.name}"


def test_every_operator_that_writes_has_a_kernel():
    """But the losses of features, which are products of the library around the dual loss."""
    products = {"linear_dual_loss_out", "linear_cross_entropy_out", "head_dual_loss_out"}
    written = {name for name in CALLS if name.endswith(("_out", "_"))}
    assert vars(ops).keys() | products == written


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_source(file):
    assert list(faults(file.read_text())) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("x = tl.load(p) + 1", "not cast"),
        ("x = tl.sum(tl.load(p)).to(tl.float32)", "not cast"),
        ("x = tl.extra.cuda.libdevice.tanh(y)", "tl.extra"),
        ("tl.atomic_add(p, y)", "tl.atomic_add"),
        ("tl.inline_asm_elementwise('')", "tl.inline_asm"),
        ("@triton.jit\ndef kernel(lr: tl.constexpr): pass", "lr is a constant"),
    ],
)
def test_the_check_sees_faults(line, what):
    found = list(faults(line))
    assert found
    assert any(what in fault for _, fault in found)


def test_float32_is_tf32_only_where_pytorch_may_use_it():
    before = torch.get_float32_matmul_precision()
    try:
        for precision, products in (("highest", "tf32x3"), ("high", "tf32")):
            torch.set_float32_matmul_precision(precision)
            assert product_precision(torch.float32) == products
    finally:
        torch.set_float32_matmul_precision(before)
    assert [product_precision(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)] == ["ieee"] * 3


def test_operands_of_16_bits_stay_so():
    assert [product_operand(dtype) for dtype in TRITON_DTYPES] == list(TRITON_DTYPES.values())


@pytest.fixture
def compiled(monkeypatch):
    """Collect the kernels that Triton would compile: names with the types and constants that are compiled in."""
    seen = set()
    backend = make_backend(GPUTarget("cuda", 90, 32))

    def run(self, *args, grid, warmup, **kwargs):
        bind = create_function_from_signature(self.signature, self.params, backend)
        _, specialization, options = bind(*args, **kwargs)
        seen.add((self.__name__, str(specialization), str(options)))

    monkeypatch.setattr(JITFunction, "run", run)
    return seen


@pytest.mark.parametrize("size", [8192, 1 << 17])  # one launch, and two
def test_a_schedule_compiles_nothing_anew(compiled, size):
    """All that changes from step to step: rates, betas, decay, lambda, floor, first; sizes, and how many tensors."""
    n_kernels = []
    for step in range(6):
        n, shape = 1 + step, size + 8 * 16 * step
        make = lambda n=n, shape=shape: [torch.zeros(shape) for _ in range(n)]  # noqa: E731
        lr, part = 0.1 / (step + 1), step / 6
        entries = torch.zeros(n, 3)
        ops.project_adamw_(
            make(), make(), make(), make(), make(), [], [torch.zeros(()) for _ in range(n)], entries, None, None,
            lr, part, part, lr, part, part, part, 0, False, step == 3, None,
        )  # fmt: skip
        ops.project_out(make(), make(), None, part, part, 0, entries=entries, projected=make())
        ops.project_sgd_(
            make(), make(), make(), make(), entries, None, None,
            lr, part, part, part, part, part, 0, step == 2, step == 3, step == 0, None,
        )  # fmt: skip
        n_kernels.append(len(compiled))
    assert n_kernels[0] > 0
    assert n_kernels == n_kernels[:1] * len(n_kernels)


def test_batches_and_temperatures_compile_nothing_anew(compiled):
    """A last batch of one row, weights of a loss, both kinds of general loss."""
    n_kernels = []
    for n_rows in (32, 7, 1, 16):
        ops.dual_loss_out(
            *torch.zeros(2, n_rows, 1000), torch.zeros(n_rows, dtype=torch.int64), None, None, None,
            1.0 + n_rows, n_rows == 7, 1, losses=torch.zeros(2), cotangents=torch.zeros(2, n_rows, 1000),
            correct=torch.zeros((), dtype=torch.int64),
        )  # fmt: skip
        n_kernels.append(len(compiled))
    assert n_kernels == [2, 2, 2, 2]


def test_other_texts_compile_nothing_anew(compiled):
    """Other class names, prefixes, groups and numbers of losses; one segment, and no prefix."""
    d, n_kernels = 128, []
    weight = torch.ones(d)
    for n_segments, length, n_prefix, n_groups, n_cotangents in ((9, 5, 17, 1, 2), (1, 1, 0, 8, 1), (20, 3, 1, 2, 3)):
        n_rows = n_prefix + n_segments * length
        rows, gradients = (n_groups, n_rows), (n_cotangents, n_groups, n_rows)
        inputs = (
            torch.zeros(*rows, d), torch.zeros(*rows, 2 * d), None, n_prefix,
            torch.arange(0, n_rows - n_prefix + 1, length), 4, 1 / (1 + n_rows), False,
        )  # fmt: skip
        ops.shared_prefix_attention_out(*inputs, out=torch.zeros(*rows, d))
        ops.shared_prefix_attention_backward_out(
            torch.zeros(*gradients, d), *inputs, d_query=torch.zeros(*gradients, d),
            d_key_value=torch.zeros(*gradients, 2 * d), d_prefix=None,
        )  # fmt: skip
        x, statistics = torch.zeros(n_rows, d), torch.zeros(n_rows, 2)
        ops.add_layer_norm_out(x, x, weight, weight, 1 / n_rows, total=x, normed=x, statistics=statistics)
        ops.layer_norm_backward_(*torch.zeros(2, n_cotangents, n_rows, d), x, statistics, weight)
        n_kernels.append(len(compiled))
    assert n_kernels == [5, 5, 5]


@pytest.fixture
def launched(monkeypatch):
    """Collect what Triton would launch: names and numbers of programs."""
    launches = []
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, grid, **kwargs: launches.append((self.__name__, math.prod(grid)))
    )
    return launches


@pytest.mark.parametrize(
    ("shapes", "programs"),
    [
        ([(4096,)], 4),  # rows of one number: 1024 fit a tile
        ([(4096, 16)], 64),
        ([(16, 512)], 8),  # a context
        ([(4, 4000)], 4),  # rows beyond a tile have a program each
        ([(100, 16), (3, 512)], 50 + 2),  # tiles as wide as the longest row
    ],
)
def test_rows_are_shared_out(launched, shapes, programs):
    """One launch each, two of AdamW: no program goes through the rows of a tensor one after another."""
    make = lambda n: [[torch.zeros(shape) for shape in shapes] for _ in range(n)]  # noqa: E731
    entries = torch.zeros(sum(shape[0] for shape in shapes), 3)
    ops.gram_out(*make(2), 1, entries=entries)
    task, general, projected = make(3)
    ops.project_out(task, general, None, 1.0, 0.0, 1, entries=entries, projected=projected)
    ops.project_sgd_(*make(4), entries, None, None, 0.1, 0.9, 0.0, 0.0, 1.0, 0.0, 1, False, False, True, None)
    steps = [torch.zeros(()) for _ in shapes]
    ops.project_adamw_(
        *make(5), [], steps, entries, None, None, 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0, 0.0, 1, False, False, None
    )
    assert launched == [
        ("gram_units", programs), ("project_units", programs), ("sgd_units", programs),
        ("count_steps", len(shapes)), ("adamw_units", programs),
    ]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_attention_with_leading_rows_takes_no_launch_more(launched, last):
    """One forward, two backward; the leading rows' own queries have one program more for each head."""
    offsets, leading, d = torch.arange(0, 141, 14), 17, 64
    n_rows = leading + 140
    query, key_value = torch.zeros(1, 10 if last else n_rows, d), torch.zeros(1, n_rows, 2 * d)
    inputs = query, key_value, None, leading, offsets, 2, 0.2, last
    ops.shared_prefix_attention_out(*inputs, out=query)
    results = {"d_query": torch.zeros(2, *query.shape), "d_key_value": torch.zeros(2, *key_value.shape)}
    ops.shared_prefix_attention_backward_out(results["d_query"].clone(), *inputs, **results, d_prefix=None)
    programs = 2 * (3 + (not last))  # two heads; of four segments with 56 rows each
    assert launched == [("attention", programs), ("attention_backward", programs), ("add_partials", 2 * 17)]
