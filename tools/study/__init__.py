"""All methods on both embedded sets, with ProGrad's projection and without, at settings chosen with one budget.

`python -m tools.study` works in build/study/, then writes docs/study/. Each step is a module of its own:

    entries     what is compared: methods, each with λ and without, and the settings that each may choose from
    work        runs in several processes, each kept when it is done: a study that was stopped goes on where it was
    selection   the settings that validation pictures choose, and the page of all that were tried
    results     the runs as a table of numbers, written and read
    tables      the tables of the page
    pictures    base against new classes, with an arrow from each method to the same with projection
    page        all that is written of the runs
"""
