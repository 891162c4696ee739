"""Flips, confusion, calibration, recipe differences and cost: against hand counts, closed forms and other libraries."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import yaml
from report.conftest import COUNTS, scores_of
from scipy import stats

from flattail import runs
from flattail.report import build, flips, summary
from flattail.report.answered import answered
from flattail.report.calibration import calibration, calibration_error
from flattail.report.classes import classes
from flattail.report.confusion import confusions
from flattail.report.cost import cost, passes
from flattail.report.differences import changes
from flattail.report.facts import shared
from flattail.report.flips import _interval, paired
from flattail.report.gained import verdict
from flattail.report.notes import notes
from flattail.report.swaps import swaps
from flattail.scores import evaluate


def rewrite(path, logits, y):
    runs.write_logits(path, np.asarray(logits, dtype=np.float32), np.asarray(y))
    return runs.read(path)


def test_flips_are_those_of_a_count_by_hand(make):
    a, b = runs.read(make("ce", 0)), runs.read(make("sam", 0, tail=2.4, terms=["flat"]))
    (za, y), (zb, _) = a.logits(), b.logits()
    found = flips(a, b)
    assert [f.name for f in found] == [str(c) for c in range(10)]
    for c, f in enumerate(found):
        ra, rb = (z.argmax(1)[y == c] == c for z in (za, zb))
        assert (f.n, f.a, f.b) == (len(ra), ra.sum(), rb.sum())
        assert (f.only_a, f.only_b) == ((ra & ~rb).sum(), (rb & ~ra).sum())
        assert f.p == pytest.approx(stats.binomtest(int(f.only_b), max(int(f.only_a + f.only_b), 1)).pvalue) or not (
            f.only_a + f.only_b
        )
        assert f.low <= f.points * f.n / (f.n + 2) <= f.high and f.count == (130, 96, 71, 52, 38, 28, 21, 15, 11, 8)[c]
    back = flips(b, a)
    assert [(f.low, f.high, f.p) for f in back] == [(pytest.approx(-f.high), pytest.approx(-f.low), f.p) for f in found]


def test_groups_are_the_sums_of_their_classes_and_all_of_everything(make):
    a, b = runs.read(make("ce", 0)), runs.read(make("sam", 0, tail=2.4, terms=["flat"]))
    of_class, of_group = paired([(a, b)])
    assert [f.name for f in of_group] == ["many", "medium", "few", "all"]
    for f, members in zip(of_group, ([0], range(1, 7), range(7, 10), range(10)), strict=True):
        for field in ("count", "n", "a", "b", "only_a", "only_b"):
            assert getattr(f, field) == sum(getattr(of_class[c], field) for c in members)


def test_the_interval_is_agresti_and_mins():
    change = np.array([1] * 12 + [-1] * 3 + [0] * 85)
    d, n = 9 / 102, 102
    half = stats.norm.ppf(0.975) * math.sqrt((15 + 1) - 9**2 / n) / n
    assert _interval(change) == pytest.approx((100 * (d - half), 100 * (d + half)))


@pytest.mark.parametrize(("won", "lost"), [(0.05, 0.05), (0.2, 0.05), (0.4, 0.1), (0.02, 0.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(won, lost):
    n, covered = 30, 0.0
    for up, down in itertools.product(range(n + 1), repeat=2):
        if up + down <= n:
            p = stats.multinomial.pmf([up, down, n - up - down], n, [won, lost, 1 - won - lost])
            if p > 1e-9:
                low, high = _interval(np.array([1] * up + [-1] * down + [0] * (n - up - down)))
                covered += p * (low <= 100 * (won - lost) <= high)
    assert 0.93 <= covered <= 1


def test_over_seeds_an_image_counts_by_its_mean_change(make):
    pairs = [(runs.read(make("ce", s)), runs.read(make("sam", s, tail=2.4, terms=["flat"]))) for s in range(3)]
    _, groups = paired(pairs)
    change = np.mean([(answered(b).right.astype(int) - answered(a).right) for a, b in pairs], axis=0)
    everybody = groups[-1]
    assert everybody.points == pytest.approx(100 * change.mean())
    assert (everybody.low, everybody.high) == pytest.approx(_interval(change))
    rows = summary([run for pair in pairs for run in pair])
    assert (everybody.seeds.low, everybody.seeds.high) == pytest.approx(
        (rows[1].differences["all"].low, rows[1].differences["all"].high)
    )


def test_what_cannot_be_paired_is_refused_with_the_remedy(make, tmp_path):
    a, b = make("ce", 0), make("sam", 0, tail=2.4, terms=["flat"])
    logits, y = runs.read(b).logits()
    other = rewrite(b, logits[::-1], y[::-1])
    with pytest.raises(ValueError, match="other test images"):
        flips(runs.read(a), other)
    assert not swaps(summary([runs.read(a), other]))
    (b / runs.LOGITS).unlink()
    with pytest.raises(ValueError, match=r"kept no logits.*flattail evaluate"):
        flips(runs.read(a), runs.read(b))


def test_a_class_without_a_difference_and_one_without_images():
    assert _interval(np.zeros(50))[0] < 0 < _interval(np.zeros(50))[1]
    assert all(math.isnan(end) for end in _interval(np.zeros(0)))


def test_flips_stand_only_beside_rows_of_one_protocol(make):
    every = [runs.read(make("ce", 0)), runs.read(make("sam", 0, terms=["flat"])), runs.read(make("long", 0, epochs=40))]
    assert [swap.row.name for swap in swaps(summary(every))] == ["sam"]


def test_of_too_many_classes_those_that_moved_most_and_the_rarest_are_shown(make, monkeypatch):
    counts = tuple(range(400, 300, -1))
    every = [
        runs.read(make("ce", 0, counts=counts)),
        runs.read(make("sam", 0, counts=counts, tail=2.4, terms=["flat"])),
    ]
    (swap,) = swaps(summary(every))
    assert len(swap.lines) == 100 and swap.left == 0
    monkeypatch.setattr("flattail.report.swaps.LINES", 50)
    (swap,) = swaps(summary(every))
    of_class, _ = paired([tuple(every)])
    points, shown = sorted(f.points for f in of_class), {f.name for f in swap.lines}
    assert len(swap.lines) + swap.left == 100 and 20 <= len(shown) <= 30
    assert {str(i) for i in range(90, 100)} <= shown, "the rarest"
    assert sorted(f.points for f in swap.lines)[:10] == points[:10]
    assert sorted(f.points for f in swap.lines)[-10:] == points[-10:]
    assert [f.count for f in swap.lines] == sorted((f.count for f in swap.lines), reverse=True)


def test_the_page_says_which_classes_gained_and_the_headline_what_one_seed_can_tell(make, tmp_path):
    counts = tuple(range(400, 340, -1))  # more classes than the terminal's table has
    masks = {g: [(g == "few") == (i >= 40) for i in range(60)] for g in ("many", "few")}
    pairs = [runs.read(make(n, 0, counts=counts, tail=t)) for n, t in (("ce", 0.8), ("sam", 3.2))]
    for run in pairs:
        document = json.loads((run.path / runs.SCORES).read_text())
        runs.write_json(run.path / runs.SCORES, document | {"groups": masks})
    page = build([runs.read(run.path) for run in pairs], tmp_path / "report.html").read_text(encoding="utf-8")
    of_class, of_group = paired([tuple(runs.read(run.path) for run in pairs)])
    sentences = verdict(of_class, masks["few"])
    assert sentences[0].startswith("of the 20 rare classes, gained: 5") and all(
        f"<li>{s}</li>" in page for s in sentences
    )
    few = next(flip for flip in of_group if flip.name == "few")
    assert (
        f"Of these very models, over test images: sam (few +{few.points:.1f} [+{few.low:.1f}, +{few.high:.1f}]" in page
    )
    table = page.split("against ce, by class", 1)[1].split("</table>", 1)[0]
    assert all(f'<th scope="row">{i}</th>' in table for i in range(60))


def test_calibration_is_that_of_the_scores_in_every_group(make):
    (row,) = summary([runs.read(make("ce", s)) for s in range(2)])
    for run in row.runs:
        said, known = answered(run), classes(run)
        logits, y = map(torch.from_numpy, run.logits())
        for mask in known.groups.values():
            kept = torch.from_numpy(mask)[y]
            expected = evaluate(logits[kept], y[kept]).ece
            assert calibration_error(said, kept.numpy()) == pytest.approx(expected, abs=1e-12)
        assert math.isnan(calibration_error(said, np.zeros(360, bool)))
    figures, (table,) = calibration([row])
    ((_, cells),) = table.lines
    assert [cell.text for cell in cells][3] == str(row.columns["ece"]) and len(figures[0].panels) == 2


def test_groups_of_classes_come_from_the_scores_or_their_sizes(make):
    run = runs.read(make("ce", 0))
    assert [mask.sum() for mask in classes(run).groups.values()] == [1, 6, 3, 10]
    masks = {"many": [False] * 9 + [True], "medium": [True] * 9 + [False], "few": [False] * 10}
    said = runs.Run(**{**vars(run), "scores": {**run.scores, "groups": masks}})
    assert classes(said).groups["many"].tolist() == masks["many"] and "few" not in classes(said).groups


def test_a_confusion_matrix_by_class_and_by_group(make):
    run = runs.read(make("ce", 0))
    (matrix,) = confusions(summary([run]))
    counted = np.array(run.scores["scores"]["confusion"])
    shares = np.array([[cell.share for cell in line] for line in matrix.lines])
    assert shares == pytest.approx(counted / counted.sum(1, keepdims=True))
    assert matrix.lines[9][0].said == f"9 called 0: {counted[9, 0]} of {counted[9].sum()}"

    counts = tuple(range(130, 90, -1))
    run = runs.read(make("many", 0, counts=counts))
    (matrix,) = confusions(summary([run]))
    counted = np.array(run.scores["scores"]["confusion"])
    assert matrix.heads == ("many", "medium") and matrix.names == ("right", "wrong, many", "wrong, medium")
    head = np.array(counts) > 100
    right = counted.diagonal()[head].sum() / counted[head].sum()
    wrong = [counted[head][:, where].sum() for where in (head, ~head)]
    assert matrix.lines[0][0].share == pytest.approx(right)
    assert matrix.lines[0][1].share == pytest.approx((wrong[0] - counted.diagonal()[head].sum()) / counted[head].sum())
    assert sum(cell.share for cell in matrix.lines[1]) == pytest.approx(1)
    off = counted - np.diag(counted.diagonal())
    worst = (off / counted.sum(1, keepdims=True)).max()
    assert matrix.mistakes[0][1].startswith(f"{100 * worst:.0f} % of ")


def test_recipes_differ_where_their_settings_do(make):
    base = runs.read(make("ce", 0))
    stage = base.recipe["stages"][0]
    longer = [{**stage, "epochs": 15}, {**stage, "epochs": 5, "loss": {"name": "ce", "weights": "effective"}}]
    other = {"stages": longer, "notes": ["nothing"], "model": {"name": "resnet20", "head": "cosine"}}
    rows = summary([base, runs.read(make("drw", 0, recipe=other))], baseline="ce")
    found = {c.place: (c.theirs, c.ours) for c in changes(rows[1], rows[0])}
    assert found == {
        "model.head": ("–", "cosine"),
        "stages.0.epochs": ("20", "15"),
        "stages.1": ("–", "as stages.0, but epochs 5, loss.weights effective"),
    }
    assert not changes(rows[0], rows[0])


def test_cost_stands_beside_accuracy(make):
    slow = make("sam", 0, terms=["flat"])
    lines = (slow / runs.LOG).read_text().splitlines()
    (slow / runs.LOG).unlink()
    for line in lines:
        runs.append_row(slow, yaml.safe_load(line) | {"forwards": 2.0, "backwards": 2.5})
    env = yaml.safe_load((slow / runs.ENV).read_text())
    runs.write_json(slow / runs.ENV, env | {"seconds": 37.0})
    rows = summary([runs.read(make("ce", 0)), runs.read(slow)])
    assert [passes(row) for row in rows] == ["–", "2F + 2.5B"]
    cells = [[cell.text for cell in line] for _, line in cost(rows).lines]
    assert cells[0][:3] == ["–", "18 s", "1 ×"] and cells[1][:3] == ["2F + 2.5B", "37 s", "2 ×"]
    assert cells[1][3] == str(rows[1].columns["all"]) and cells[1][5] == str(rows[1].differences["all"])


def test_the_last_epoch_stands_beside_the_best_on_test(make):
    path = make("ce", 0)
    lines = (path / runs.LOG).read_text().splitlines()
    (path / runs.LOG).unlink()
    for i, line in enumerate(lines):
        runs.append_row(path, yaml.safe_load(line) | {"score": 0.5 + 0.02 * (i if i < 15 else 25 - i)})
    document = yaml.safe_load((path / runs.SCORES).read_text())
    runs.write_json(path / runs.SCORES, document | {"selection": "best-on-test"})
    (row,) = summary([runs.read(path)])
    assert row.columns["best on test"].mean == row.columns["all"].mean, "of the epoch that was chosen"
    assert row.columns["last epoch"].mean == pytest.approx(62.0)
    runs.write_json(path / runs.SCORES, document | {"selection": "best-on-test", "best_on_test": {"all": 0.9}})
    (row,) = summary([runs.read(path)])
    assert str(row.columns["best on test"]) == "90.0", "a run counts once"
    document["scores"]["balanced"] = 0.1  # a test set that is no level one: its score is no accuracy over images
    runs.write_json(path / runs.SCORES, document | {"selection": "best-on-test"})
    assert "last epoch" not in summary([runs.read(path)])[0].columns


def test_seeds_on_different_images_are_neither_paired_nor_averaged_in_silence(make):
    make_ce = [make("ce", s, fingerprint=f) for s, f in enumerate("ab")]
    make_sam = [make("sam", s, fingerprint=f, tail=2.4, terms=["flat"]) for s, f in enumerate("cb")]
    rows = summary([runs.read(path) for path in [*make_ce, *make_sam]])
    assert rows[1].differences["all"].n == 1, "seed 0 was trained on other images"
    said = notes(rows)
    assert "ce averages runs that differ in data fingerprint: a, b." in said
    other = make("sam", 2, counts=(130, 96, 71, 52, 38, 28, 21, 15, 11, 8), fingerprint="b")
    logits, y = runs.read(other).logits()
    fewer = scores_of(logits[:-5], y[:-5], COUNTS)
    document = json.loads((other / runs.SCORES).read_text())
    runs.write_json(other / runs.SCORES, document | {"scores": fewer})
    assert not shared([runs.read(other)], [runs.read(make("ce", 2, fingerprint="b"))]), "another test set"
