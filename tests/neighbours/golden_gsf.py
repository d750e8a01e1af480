"""GSF against its authors' module, on whatever kernels are in use; the tests of every backend call it."""

from prograd_fast.neighbours.gsf import GSF
from tests.neighbours.by_name import Golden


def compare_with_the_authors(golden: Golden) -> None:
    for case in golden.recipe["cases"]:
        prefix = case["prefix"]
        for mode in ("eval", "train"):
            module = golden.load(GSF(case["planes"], case["num_segments"], case["gsf_ch_ratio"]), prefix)
            assert module.used == case["used_planes"]
            module.train(mode == "train")
            x = golden.leaf(f"{prefix}input")
            out = module(x)
            golden.close(out, f"{prefix}{mode}_output")
            (out * golden[f"{prefix}cotangent"]).sum().backward()
            golden.close(x.grad, f"{prefix}{mode}_grad_input")
            golden.gradients(module, f"{prefix}{mode}_grad_")
        for name in ("running_mean", "running_var"):
            golden.close(getattr(module.bn, name), f"{prefix}after_bn.{name}")
    golden.all_compared()
