"""The test pictures of one part of a run, one by one: classes, mistakes, calibration, wrong pictures."""

from collections.abc import Callable

from prograd_fast.report.html import Html, Number, folded, join, percent, scrolling, table, tag
from prograd_fast.report.page_charts import confusion_image, interval_chart, reliability_chart
from prograd_fast.training.evaluation import Evaluation

MOST_CELLS = 24  # classes up to which every cell of the confusion matrix is a number; more are drawn
MOST_PAIRS = 50  # of confused classes
MOST_WRONG = 24  # pictures

Thumbnail = Callable[[str], Html | None]


def details_section(evaluation: Evaluation, thumbnail: Thumbnail) -> Html:
    """All that is known of the test pictures of a part."""
    return join(
        _measures(evaluation),
        tag("h4", "Classes"),
        _classes(evaluation),
        tag("h4", "Confusion"),
        _confusion(evaluation),
        tag("h4", "Calibration"),
        _calibration(evaluation),
        tag("h4", "Wrong pictures"),
        _wrong(evaluation, thumbnail),
    )


def _measures(evaluation: Evaluation) -> Html:
    low, high = evaluation.interval
    measures = {
        "accuracy": f"{100 * evaluation.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        "balanced accuracy": f"{100 * evaluation.balanced_accuracy:.1f} %",
        "macro F1": f"{100 * evaluation.macro_f1:.1f} %",
        "calibration error": f"{100 * evaluation.ece():.1f} %",
        "pictures": str(len(evaluation)),
    }
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in measures.items()))


def _classes(evaluation: Evaluation) -> Html:
    rows = []
    for one in evaluation.per_class():
        interval = f"{100 * one.low:.0f} to {100 * one.high:.0f}" if one.n else "–"
        drawn = interval_chart([(one.accuracy, one.low, one.high)], f"interval {interval} %") if one.n else Html()
        rows.append(
            [one.name, percent(one.accuracy), Number(interval, one.low), _count(one.right), _count(one.n), drawn]
        )
    headers = ["class", "accuracy %", "95 % interval", "right", "pictures", ""]
    return table(headers, rows, f"Accuracy of each of {len(rows)} classes")


def _confusion(evaluation: Evaluation) -> Html:
    matrix, names = evaluation.confusion(), evaluation.class_names
    if len(names) <= MOST_CELLS:
        head = [tag("th", tag("span", name), scope="col", class_="tall") for name in names]
        body = []
        for i, counts in enumerate(matrix.tolist()):
            cells = [_matrix_cell(n, sum(counts), i == j) for j, n in enumerate(counts)]
            body.append(tag("tr", tag("th", names[i], scope="row"), *cells))
        whole = tag("table", tag("thead", tag("tr", tag("td"), *head)), tag("tbody", *body), class_="matrix")
        drawn = scrolling(whole, "Rows: the true class. Columns: the prediction. Numbers are pictures.")
    else:
        caption = "Rows: the true class, in the order of the class list. Columns: the prediction. Blue: right."
        drawn = tag("figure", tag("figcaption", caption), confusion_image(matrix))
    pairs, n = evaluation.confused(), matrix.sum(axis=1)
    rows = [[names[p.label], names[p.predicted], _count(p.n), percent(p.n / n[p.label])] for p in pairs[:MOST_PAIRS]]
    if not rows:
        return join(drawn, tag("p", "No picture was taken for another class."))
    shown = "" if len(pairs) <= MOST_PAIRS else f", the {MOST_PAIRS} most frequent of {len(pairs)} pairs"
    headers = ["class", "taken for", "pictures", "% of the class"]
    return join(drawn, table(headers, rows, f"Classes that were taken for others{shown}"))


def _matrix_cell(n: int, of: int, right: bool) -> Html:
    """A cell as dark as its share of the row; never so dark that its number cannot be read."""
    share = round(60 * n / of) if of else 0
    return tag("td", n or "", class_="right" if right else "wrong", style=f"--share:{share}%")


def _calibration(evaluation: Evaluation) -> Html:
    mean = float(evaluation.confidences.mean())
    towards = "surer than it is right" if mean > evaluation.accuracy else "right more often than it is sure"
    about = (
        f"The mean confidence is {100 * mean:.1f} %, the accuracy {100 * evaluation.accuracy:.1f} %: the model is "
        f"{towards}. The expected calibration error of 15 bins is {100 * evaluation.ece():.1f} %."
    )
    return join(tag("p", about), tag("div", reliability_chart(evaluation.calibration()), class_="charts"))


def _wrong(evaluation: Evaluation, thumbnail: Thumbnail) -> Html:
    wrong, names = evaluation.wrong(), evaluation.class_names
    if not len(wrong):
        return tag("p", "None: every picture was recognised.")
    figures, missing = [], 0
    for i in wrong[:MOST_WRONG].tolist():
        image = thumbnail(evaluation.pictures[i])
        missing += image is None
        said = f"{names[evaluation.predicted[i]]} {100 * evaluation.confidences[i]:.0f} %"
        caption = tag("figcaption", tag("b", names[evaluation.labels[i]]), " taken for ", tag("b", said))
        name = tag("small", evaluation.pictures[i])
        figures.append(tag("figure", image or tag("span", "no picture", class_="gone"), caption, name))
    about = f"{len(wrong)} of {len(evaluation)} pictures; the surest mistakes come first."
    if len(wrong) > MOST_WRONG:
        about += f" The first {MOST_WRONG} are shown."
    if missing:
        about += f" {missing} of them are no longer where they were, cannot be read, or are too many for one page."
    return join(tag("p", about), tag("div", *figures, class_="thumbnails"))


def _count(n: int) -> Number:
    return Number(str(n), n)


def part_section(name: str, evaluation: Evaluation, thumbnail: Thumbnail, first: bool) -> Html:
    """The same, folded under its name."""
    pictures, classes = len(evaluation), len(evaluation.class_names)
    title = f"{name}: {100 * evaluation.accuracy:.1f} % of {pictures} pictures, {classes} classes"
    return folded(title, details_section(evaluation, thumbnail), open_=first)
