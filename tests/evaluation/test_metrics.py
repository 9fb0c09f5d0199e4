import itertools

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from threadpoolctl import threadpool_limits
from torchmetrics.image.fid import FrechetInceptionDistance

from evaluation import classifier_scores, diversity, intervals, metrics, novelty
from evaluation.diversity import compare_diversity, estimate_near
from evaluation.kernels import polynomial_kernel
from evaluation.neighbourhoods import half_samples
from evaluation.novelty import compare_novelty
from evaluation.quality import LEAST, compare_cmmd, compare_frechet, compare_kid, compare_prdc, mmd_errors
from utils.cli import UserError


@pytest.fixture(autouse=True)
def one_thread():
    """For matrices as small as here a second thread costs more than it saves."""
    with threadpool_limits(1):
        yield


def normal(*shape: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# Fréchet distance


def with_moments(mean, variances, n=50) -> np.ndarray:
    """Features with exactly this mean and these variances, uncorrelated."""
    features = normal(n, len(mean))
    columns, _ = np.linalg.qr(features - features.mean(0))
    return mean + columns * np.sqrt((n - 1) * variances)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4, 0.25, 0]), np.array([9.0, 1, 0.25, 2])
    shift = np.array([1.0, 0, -2, 0.5])
    expected = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = metrics.frechet_distance(with_moments(shift, a), with_moments(np.zeros(4), b, n=70))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n, m, d", [(300, 250, 40), (30, 25, 40), (2, 3, 8)], ids=["n above d", "n below d", "tiny"])
def test_frechet_agrees_with_the_formula_from_a_matrix_root(n, m, d):
    real, generated = normal(n, d) @ normal(d, d, seed=1), normal(m, d, seed=2) * 1.5 + 0.3
    a, b = np.cov(real.T), np.cov(generated.T)
    shift = real.mean(0) - generated.mean(0)
    half = linalg.sqrtm(a + 1e-12 * np.eye(d)).real  # singular where n is below d
    root = linalg.sqrtm(half @ b @ half + 1e-12 * np.eye(d)).real
    expected = shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(root)
    assert metrics.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-5)


class Given(torch.nn.Module):
    """An encoder whose images are features already."""

    num_features = 40

    def forward(self, features):
        return features


def test_frechet_agrees_with_torchmetrics_on_the_same_features():
    real, generated = normal(300, 40) @ normal(40, 40, seed=1), normal(250, 40, seed=2) * 1.5 + 0.3
    other = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    for features, is_real in ((real, True), (generated, False)):
        other.update(torch.from_numpy(features), real=is_real)
    assert metrics.frechet_distance(real, generated) == pytest.approx(float(other.compute()), rel=1e-6)


@pytest.mark.parametrize(
    "d, n, expected",
    [
        *((384, n, value) for n, value in ((500, 148), (1000, 74), (3000, 24.8), (5000, 15.0), (10000, 7.5))),
        *((1024, n, value) for n, value in ((500, 899), (1000, 528), (3000, 175))),
        pytest.param(1024, 10000, 53, marks=pytest.mark.slow),
    ],
)
def test_frechet_where_there_is_no_difference_is_what_n_and_d_make_it(d, n, expected):
    # The figures are known to three digits, and one draw is off by its own error.
    assert metrics.frechet_distance(normal(n, d), normal(n, d, seed=1)) == pytest.approx(expected, rel=0.02)


def test_frechet_of_a_set_with_itself_and_of_a_constant_set():
    real = normal(50, 8)
    assert metrics.frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    constant = np.full((60, 8), 0.1)
    expected = ((real.mean(0) - 0.1) ** 2).sum() + real.var(0, ddof=1).sum()
    assert metrics.frechet_distance(real, constant) == pytest.approx(expected)
    assert metrics.frechet_distance(constant, constant) == 0


# Kernel distances


def kid(real: np.ndarray, generated: np.ndarray) -> float:
    """By its definition (Bińkowski et al. 2018)."""

    def mean(a, b, same):
        kernel = (a @ b.T / a.shape[1] + 1) ** 3
        return kernel[~np.eye(len(a), dtype=bool)].mean() if same else kernel.mean()

    return mean(real, real, True) + mean(generated, generated, True) - 2 * mean(real, generated, False)


def cmmd(real: np.ndarray, generated: np.ndarray) -> float:
    """By its definition (Jayasumana et al. 2024)."""
    sets = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (real, generated)]

    def mean(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(2) / (2 * 10**2)).mean()

    return 1000 * (mean(sets[0], sets[0]) + mean(sets[1], sets[1]) - 2 * mean(*sets))


def test_kid_and_cmmd_are_those_of_their_definitions():
    real, generated = normal(80, 12), normal(80, 12, seed=1) + 0.3
    assert compare_kid(real, generated, 100).value == pytest.approx(kid(real, generated))
    assert compare_cmmd(real, generated, 100).value == pytest.approx(cmmd(real, generated))
    more = normal(60, 12, seed=2)
    assert compare_kid(real, more, 100).value == pytest.approx(kid(real, more))


def test_kid_is_the_mean_over_all_pairs_and_has_no_bias():
    real, generated = normal(60, 6), normal(50, 6, seed=1)

    def k(x, y):
        return (x @ y / 6 + 1) ** 3

    expected = np.mean([k(x, y) for x, y in itertools.permutations(real, 2)])
    expected += np.mean([k(x, y) for x, y in itertools.permutations(generated, 2)])
    expected -= 2 * np.mean([k(x, y) for x in real for y in generated])
    assert compare_kid(real, generated, 10).value == pytest.approx(expected)
    values = []
    for s in range(400):
        pair = normal(40, 6, seed=2 * s), normal(30, 6, seed=2 * s + 1)
        values.append(mmd_errors(*pair, polynomial_kernel, 1, np.random.default_rng(0)).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / 20 and min(values) < 0


def test_cmmd_has_its_known_values():
    """Of two points at right angles and opposite to each other, whatever their lengths."""
    x = np.array([[3.0, 0], [0, 2]])
    for real, generated, expected in ((x[:1], x[:1], 0), (x[:1], x[1:], 19.900), (x[:1], -x[:1], 39.603)):
        assert cmmd(real, generated) == pytest.approx(expected, abs=5e-4)
        sets = (np.repeat(one, 50, axis=0) for one in (real, generated))
        assert compare_cmmd(*sets, 10).value == pytest.approx(expected, abs=5e-4)


# Neighbours


def brute_prdc(real, generated, k):
    def radii(x):
        return np.sort(np.linalg.norm(x[:, None] - x, axis=2), 1)[:, k]

    cross = np.linalg.norm(real[:, None] - generated, axis=2)
    inside = cross < radii(real)[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (cross < radii(generated)).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


def test_prdc_agrees_with_its_definition_in_blocks_of_any_size(monkeypatch):
    real, generated = normal(60, 4), normal(50, 4, seed=1) * 1.3
    expected = brute_prdc(real, generated, 3)
    assert metrics.prdc(real, generated, 3)._asdict() == pytest.approx(expected)
    monkeypatch.setattr("evaluation.kernels.BLOCK", 130)  # as a large set would be cut
    assert metrics.prdc(real, generated, 3)._asdict() == pytest.approx(expected)
    assert compare_kid(real, generated, 10).value == pytest.approx(kid(real, generated))


def test_half_samples_have_the_scores_that_the_subsets_would_have():
    real, generated = normal(80, 3), normal(80, 3, seed=1) * 1.2
    whole, samples, floor = half_samples(real, generated, 3, 5, 5, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    assert whole == pytest.approx(list(brute_prdc(real, generated, 3).values()))
    for sample in samples:
        one, other = rng.permutation(80)[:40], rng.permutation(80)[:40]
        assert list(sample) == pytest.approx(list(brute_prdc(real[one], generated[other], 3).values()))
    for split in floor:
        order = rng.permutation(80)
        assert list(split) == pytest.approx(list(brute_prdc(real[order[:40]], real[order[40:]], 3).values()))


def expected_coverage(n: int, k: int = 5) -> float:
    """Of two sets of n from one distribution (Naeem et al. 2020)."""
    i = np.arange(1, k + 1)
    return float(1 - np.prod((n - i) / (2 * n - i)))


def test_density_is_1_and_coverage_as_expected_where_there_is_no_difference():
    assert expected_coverage(1000) == pytest.approx(0.969, abs=5e-4)
    for n, k in ((120, 5), (60, 3)):
        values = [metrics.prdc(normal(n, 8, seed=2 * s), normal(n, 8, seed=2 * s + 1), k) for s in range(150)]
        for name, expected in (("density", 1), ("coverage", expected_coverage(n, k))):
            found = np.array([getattr(value, name) for value in values])
            assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(150)), (name, n, k)


@pytest.mark.very_slow
def test_prdc_of_the_published_example():
    # One draw against another. Density varies by 0.13 from draw to draw at any N: in 1000 dimensions, a set whose
    # items happen to lie a little further in than the other's is inside most of its balls.
    found = metrics.prdc(normal(10000, 1000), normal(10000, 1000, seed=1))
    assert found.precision == pytest.approx(0.4772, abs=0.03)
    assert found.recall == pytest.approx(0.4705, abs=0.03)
    assert found.density == pytest.approx(1.0555, abs=0.3)
    assert found.coverage == pytest.approx(0.9735, abs=0.02)


def test_nearest_is_sorted_exact_and_leaves_an_item_itself_out():
    base, queries = normal(70, 5) + 1e3, normal(20, 5, seed=1) + 1e3
    distances, which = metrics.nearest(queries, base, k=4)
    all_of_them = np.linalg.norm(queries[:, None] - base, axis=2)
    np.testing.assert_array_equal(which, all_of_them.argsort(1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(all_of_them, 1)[:, :4])
    assert (metrics.nearest(base)[1][:, 0] != np.arange(70)).all()
    assert (metrics.nearest(base[3:9], base)[0] == 0).all()


def test_auth_pct_is_0_for_copies_100_for_far_and_80_for_new_draws():
    def auth_pct(train, generated):
        return 100 * metrics.authentic(train, generated).mean()

    train = normal(500, 64)
    assert auth_pct(train, train[:200]) == 0
    assert auth_pct(train, train[:200] + 100) == 100
    # In 64 dimensions; with fewer it is less: 68 at 16.
    draws = [auth_pct(normal(500, 64, seed=s), normal(500, 64, seed=99 + s)) for s in range(4)]
    assert np.mean(draws) == pytest.approx(80, abs=4)


# Diversity


def test_vendi_counts_what_is_different():
    assert metrics.vendi_score(np.ones((7, 5))) == pytest.approx(1)
    assert metrics.vendi_score(3 * np.eye(6)) == pytest.approx(6)
    assert metrics.vendi_of_kernel([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]) == pytest.approx(2.1573, abs=5e-5)
    features = metrics.normalise(normal(40, 12))
    assert metrics.vendi_score(features) == pytest.approx(metrics.vendi_of_kernel(features @ features.T))


def test_near_pairs_are_found_and_the_interval_holds_the_share():
    features = 10 * normal(100, 6)
    features[1], features[2], features[7] = features[0], features[0] + 1e-3, features[50]
    assert metrics.near_pairs(features, 0.01) == [(0, 1), (0, 2), (1, 2), (7, 50)]
    share, low, high = estimate_near(features, 0.01)
    assert share == 0.05 and 0 <= low < 0.02 and 0.08 < high < 0.2


# Refusals


def test_a_feature_that_is_not_a_number_is_refused_by_name():
    features = normal(4, 3)
    features[2, 1] = np.nan
    with pytest.raises(UserError, match=r"generated: not a number in those of c\.png; leave it out"):
        metrics.as_features(features, ["a.png", "b.png", "c.png", "d.png"], "generated")
    with pytest.raises(UserError, match="real features: not a number in those of item 2"):
        metrics.frechet_distance(features, features)
    features[2, 1] = np.inf
    with pytest.raises(UserError, match="item 2"):
        metrics.prdc(normal(9, 3), features)


@pytest.mark.parametrize(
    "compare, least",
    [
        (compare_frechet, LEAST["frechet"]),
        (compare_kid, LEAST["kid"]),
        (compare_cmmd, LEAST["cmmd"]),
        (compare_prdc, LEAST["precision"]),
        (compare_diversity, diversity.LEAST),
        (lambda a, b: compare_novelty(normal(50, 4, seed=5), a, b), novelty.LEAST),
    ],
    ids=["frechet", "kid", "cmmd", "prdc", "diversity", "novelty"],
)
def test_fewer_images_than_a_metric_bears_are_refused_and_enough_are_not(compare, least):
    with pytest.raises(UserError, match=f"needs at least {least} generated images, found {least - 1}"):
        compare(normal(least, 4), normal(least - 1, 4, seed=1))
    assert compare(normal(least, 4), normal(least, 4, seed=1))


def test_other_dimensions_and_directions_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="real features have 4 dimensions, generated 5"):
        compare_kid(normal(9, 4), normal(9, 5))
    with pytest.raises(UserError, match="generated features: item 1 is all zeros"):
        compare_cmmd(normal(50, 2), np.concatenate([[[1.0, 0], [0, 0]], normal(48, 2)]))


# One set against another


def every_figure(real, generated, resamples=100, seed=0, half_samples=100) -> dict:
    found = {"kid": compare_kid, "cmmd": compare_cmmd, "frechet": compare_frechet}
    found = {name: compare(real, generated, resamples, seed) for name, compare in found.items()}
    found |= compare_prdc(real, generated, resamples=half_samples, seed=seed)
    return found | compare_diversity(real, generated, resamples, seed)


def test_intervals_hold_the_truth_95_times_in_100():
    """Of 100 pairs of sets; the share of so many hits of 0.95 has a deviation of 0.02, 3 of them reach to 0.89."""
    scale, cover, values = np.arange(1, 11) ** -0.5, {}, {}
    for trial in range(100):
        rng = np.random.default_rng([7, trial])
        real, generated = rng.normal(size=(100, 10)) * scale, rng.normal(size=(100, 10)) * scale * 1.3 + 0.3
        for name, one in every_figure(real, generated, seed=trial, half_samples=40).items():
            values.setdefault(name, []).append((one.value, one.low, one.high))
    del values["near_duplicates"]  # there are none but by chance
    for name, found in values.items():
        value, low, high = np.array(found).T
        cover[name] = ((low <= value.mean()) & (value.mean() <= high)).mean()
    assert all(share >= 0.89 for share in cover.values()), cover
    assert np.mean(list(cover.values())) == pytest.approx(0.95, abs=0.02), cover


def test_intervals_where_there_is_no_difference_are_not_too_narrow():
    for name, compare in (("frechet", compare_frechet), ("kid", compare_kid)):
        found = []
        for trial in range(100):
            one = compare(normal(100, 16, seed=trial), normal(100, 16, seed=1000 + trial), 100, trial)
            found.append((one.value, one.low, one.high))
        value, low, high = np.array(found).T
        assert ((low <= value.mean()) & (value.mean() <= high)).mean() >= 0.93, name
        assert np.mean(high - low) / 3.92 < 1.4 * value.std(), name


def test_a_new_real_set_falls_within_the_floor_and_another_outside():
    real, same, other = normal(400, 16), normal(400, 16, seed=1), normal(400, 16, seed=2) * 0.7 + 0.4
    for name, found in every_figure(real, same).items():
        if found.at_floor_n is not None:
            floor, slack = found.floor, (found.floor.high - found.floor.low) / 2
            assert floor.n == 200 and floor.low - slack <= found.at_floor_n <= floor.high + slack, name
    worse = {"frechet": 1, "kid": 1, "cmmd": 1, "recall": -1}
    found = every_figure(real, other)
    for name, sign in worse.items():
        edge = found[name].floor.high if sign > 0 else found[name].floor.low
        assert sign * (found[name].at_floor_n - edge) > 0, name
    assert found["mean_distance"].high < found["mean_distance"].floor.low


@pytest.mark.parametrize("sizes", [(300, 200), (200, 300)], ids=["fewer generated", "fewer real"])
def test_sets_of_unequal_size_are_compared_at_the_smaller_and_it_is_said(sizes):
    real, generated = normal(sizes[0], 16), normal(sizes[1], 16, seed=1)
    draws = [metrics.frechet_distance(normal(200, 16, seed=s), normal(200, 16, seed=s + 9)) for s in range(9)]
    found = every_figure(real, generated)
    for one in found.values():
        assert one.n == 200 and (one.n_real, one.n_generated) == sizes
        assert one.low <= one.value <= one.high
    assert found["frechet"].value == pytest.approx(np.mean(draws), rel=0.15)
    assert found["coverage"].value == pytest.approx(expected_coverage(200), abs=0.04)


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_intervals():
    real, generated = normal(120, 6), normal(110, 6, seed=1)
    assert every_figure(real, generated) == every_figure(real, generated)
    assert every_figure(real, generated)["kid"].low != every_figure(real, generated, seed=1)["kid"].low


@pytest.mark.parametrize("d", [6, 200], ids=["n above d", "n below d"])
def test_a_constant_set_has_figures_and_not_one_is_nan(d):
    found = every_figure(normal(120, d), np.full((120, d), 0.3))
    assert all(np.isfinite([one.value, one.low, one.high]).all() for one in found.values())
    assert found["vendi"].value == pytest.approx(1) and found["vendi"].high < found["vendi"].floor.low
    assert found["recall"].value == 0 and found["near_duplicates"].value == 1
    assert found["mean_distance"].value == 0


def test_copies_are_suspected_nearest_first_and_new_ones_are_not():
    train, test, new = normal(300, 16), normal(100, 16, seed=1), normal(150, 16, seed=2)
    generated = np.concatenate([new, train[[5, 9]] + 0.01 * normal(2, 16), train[[7]]])
    found = compare_novelty(train, test, generated)
    nearest = found.nearest
    assert len(nearest) == 153 and nearest[0][:2] == (152, 7)
    assert {pair[:2] for pair in nearest[1:3]} == {(150, 5), (151, 9)}
    assert found.copies.value < 0.05 and found.authentic.value > 0.4
    copied = compare_novelty(train, test, train[:60])
    assert copied.authentic.value == 0 and copied.copies.low > copied.copies.floor.high


# Intervals and tests


def test_wilson_holds_the_share_as_often_as_is_known_of_it():
    share, low, high = intervals.wilson(81, 263)
    assert (low, share, high) == pytest.approx((0.2553, 0.3080, 0.3662), abs=5e-5)
    assert (low, high) == pytest.approx(tuple(stats.binomtest(81, 263).proportion_ci(method="wilson")))
    assert intervals.wilson(0, 20)[1] == 0 and intervals.wilson(0, 20)[2] > 0.1 and intervals.wilson(20, 20)[2] == 1
    bounds = np.array([intervals.wilson(hits, 100)[1:] for hits in range(101)])
    shares = np.linspace(0.05, 0.95, 181)
    inside = (bounds[:, :1] <= shares) & (shares <= bounds[:, 1:])
    cover = (stats.binom.pmf(np.arange(101)[:, None], 100, shares) * inside).sum(0)
    assert cover.mean() == pytest.approx(0.95, abs=0.005) and cover.min() > 0.92


def test_mean_and_bootstrap_intervals():
    values = [0.71, 0.74, 0.69, 0.73, 0.72]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert intervals.mean_interval(values)[1:] == pytest.approx(expected)
    rows = np.random.default_rng(0).exponential(size=(400, 100))
    cover = [low <= 1 <= high for _, low, high in (intervals.bootstrap(row, np.mean, 300) for row in rows[:200])]
    assert np.mean(cover) == pytest.approx(0.94, abs=0.035)
    with pytest.raises(UserError, match="needs at least 2 values, found 1"):
        intervals.mean_interval([1.0])


def test_paired_test_is_the_t_test_and_gives_no_p_for_constant_differences():
    first, second = normal(12), normal(12, seed=1) * 0.4 + normal(12) + 0.5
    found = classifier_scores.paired_p(first, second)
    assert found == pytest.approx(stats.ttest_1samp(second - first, 0).pvalue)
    _, low, high = intervals.mean_interval(second - first)
    assert (found < 0.05) == (not low <= 0 <= high)
    same = np.array([0.5, 0.6, 0.7])
    assert classifier_scores.paired_p(same, same) is None is classifier_scores.paired_p(same, same + 0.25)


def test_paired_test_is_wrong_5_times_in_100_where_there_is_no_difference():
    rows = normal(2, 1000, 5)
    shown = [classifier_scores.paired_p(a, b) < 0.05 for a, b in zip(*rows)]
    assert np.mean(shown) == pytest.approx(0.05, abs=0.02)


def test_krippendorff_of_the_published_example_and_at_the_ends():
    nan = np.nan
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    alpha, low, high = intervals.agreement(ratings)
    assert alpha == pytest.approx(0.849, abs=5e-4) and low < alpha < high <= 1
    assert intervals.krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    chance = np.random.default_rng(0).integers(1, 6, (3, 2000))
    assert intervals.krippendorff_alpha(chance) == pytest.approx(0, abs=0.05)
    assert np.isnan(intervals.krippendorff_alpha([[2, 2], [2, 2]]))
    with pytest.raises(UserError, match="no item was rated by two"):
        intervals.krippendorff_alpha([[1, nan], [nan, 2]])
