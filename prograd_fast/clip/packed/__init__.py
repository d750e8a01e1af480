"""A causal text tower over packed prompts: every distinct row once, and one backward for several cotangents.

Rows are (G, P + T, d): G groups hold the same prompts with other contexts; the P rows of the prefix stand before the T
rows of the suffixes. In each block the prefix attends to itself, a suffix to the prefix and to itself. Of the last
block only keys and values are needed of all rows; the rest is done for the ends of text alone.

The backward is written out, since the weights are frozen: it needs no more than the residual stream before each norm,
queries, keys, values and what goes into the GELU, 9·d numbers for each row and block; and it takes K cotangents at
once, whose matrix products are then one product. Where even 9·d numbers are too many, the suffixes are computed in
chunks of classes, and once more for the backward. The prefix's keys and values are kept, so that chunks change nothing
but the order of sums.

Everything is computed in the tower's dtype, or in autocast's; norms, GELU, scores, softmax and all sums in float32
(float64 in float64). On the 12 blocks of CLIP's tower with random weights, 20 ImageNet classes, features and gradients
differ from float64, over their largest magnitude, by 2e-6 in float32, 2e-2 in bfloat16 and under bfloat16 autocast, and
2e-3 in float16; `tests/clip/test_packed.py` holds a smaller tower to the bounds of `tests/tolerances.py`.

`packing` finds the distinct rows, `compatibility` tells which towers this is right for, `weights` reads their weights,
`chunks` cuts the classes to fit into memory, `forward` and `backward` are the arithmetic, `encode` is the autograd.
"""
