"""An auto-encoder of any data, its pictures, and the command that shows the chain of objectives."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gradlogp import InputError, ScoreDensity, oracles
from gradlogp.cli import main
from gradlogp.kernels import Gaussian
from gradlogp.models import DenoisingAutoencoder
from gradlogp.reports import chain_of, draw_filters, learn_autoencoder, load_autoencoder, save_autoencoder

SIGMA = 3.0


@pytest.fixture(scope="module")
def digits():
    return load_digits().images[:600]


@pytest.fixture(scope="module")
def learnt(digits):
    return learn_autoencoder(digits, SIGMA, n_hidden=24, max_seconds=3.0, verbose=False)


def test_it_learns_and_the_chain_is_in_the_datas_unit(learnt, digits):
    """J_DAE by hand, in grey levels: rows through the model's units and back; the loss falls below the mean image's."""
    g = torch.Generator().manual_seed(5)
    x = torch.from_numpy(digits.reshape(len(digits), -1))
    noisy = x + SIGMA * torch.randn(x.shape, generator=g, dtype=torch.float64)
    W, b, c = (p.detach().double() for p in (learnt.model.W, learnt.model.b, learnt.model.c.flatten()))
    offset = torch.from_numpy(digits.mean(0)).flatten()
    z = (noisy - offset) / SIGMA
    back = SIGMA * (torch.sigmoid(z @ W.T + b) @ W + c) + offset
    errors = (back - x).square().sum(1)
    assert abs(errors.mean().item() - learnt.chain.j_dae.value) < 5 * errors.std().item() / len(x) ** 0.5
    assert learnt.chain.factor == pytest.approx(2 * SIGMA**4)
    assert learnt.chain.j_dae.value < 0.6 * (x - offset).square().sum(1).mean().item()
    assert learnt.chain.holds
    assert learnt.history[-1].held_out < 0.8 * learnt.history[0].held_out


def test_codes_and_reconstructions_are_of_the_datas_rows(learnt, digits):
    z = (torch.from_numpy(digits[:4]) - torch.from_numpy(digits.mean(0))).float() / SIGMA
    with torch.no_grad():
        np.testing.assert_allclose(learnt.hidden(digits[:4]), learnt.model.hidden(z), rtol=1e-4, atol=1e-6)
        back = SIGMA * learnt.model.reconstruct(z).numpy() + digits.mean(0)
    np.testing.assert_allclose(learnt.reconstruct(digits[:4]), back, rtol=1e-4, atol=1e-4)


def test_it_is_read_again(learnt, digits, tmp_path):
    save_autoencoder(learnt, tmp_path / "out")
    again = load_autoencoder(tmp_path / "out")
    z = learnt.units.to_model(digits[:4]) / SIGMA
    torch.testing.assert_close(again.score(z), learnt.model.score(z))
    (tmp_path / "out" / "autoencoder.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        load_autoencoder(tmp_path / "out")


def test_its_constant_is_that_of_the_training_rows(learnt):
    assert learnt.chain.constant.value <= 0
    assert learnt.chain.half_fisher == pytest.approx(64 / (2 * SIGMA**2))
    assert learnt.chain.j_esm.value >= 0


def test_as_a_model_of_the_datas_units(learnt, digits):
    z = learnt.units.to_model(digits[:5])
    score = learnt.score_model.score(z, Gaussian(SIGMA))
    want = learnt.model.score(z / SIGMA) / SIGMA
    torch.testing.assert_close(score, want, rtol=1e-4, atol=1e-5)


def test_columns_of_scales_far_apart_are_standardised():
    x = np.random.default_rng(0).normal(size=(80, 2)) * [1.0, 1000.0]
    learnt = learn_autoencoder(x, n_hidden=3, max_seconds=0.3, verbose=False)
    assert learnt.sigma_unit == "in standard deviations of each column"
    assert learnt.sigma == pytest.approx(1, rel=0.2)
    assert learnt.chain.kernel.sigma.item() == learnt.sigma


def test_filters_are_the_rows_of_w_as_images():
    W = torch.zeros(3, 6, dtype=torch.float64)
    W[0, 1], W[1, 5], W[2, 0] = 0.5, -2.0, 1.0
    model = DenoisingAutoencoder(W, torch.zeros(3), torch.zeros(6), 1.0)
    image = draw_filters(model, (2, 3), n=2).axes[0].images[0].get_array()
    shown = np.nan_to_num(np.asarray(image))  # two tiles beside each other, a line of NaN around each
    assert shown.shape == (4, 9)
    np.testing.assert_array_equal(shown[1:3, 1:4], [[0, 0, 0], [0, 0, -1]])
    np.testing.assert_array_equal(shown[1:3, 5:8], [[1, 0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match=r"image_shape: got \(2, 2\) for rows of 6 numbers"):
        draw_filters(model, (2, 2))


def test_pictures_go_into_a_folder_of_their_own(learnt, tmp_path):
    for _ in range(2):
        assert [p.name for p in save_autoencoder(learnt, tmp_path / "out")] == [
            "autoencoder.safetensors",
            "losses.png",
            "filters.png",
        ]
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"holds 'mine\.txt', want a new folder"):
        save_autoencoder(learnt, tmp_path / "out")


def test_the_command_shows_the_chain(tmp_path, capsys):
    np.savetxt(
        tmp_path / "x.csv", np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments=""
    )
    assert main(["chain", str(tmp_path / "x.csv"), "--sigma", "0.7", "--hidden", "4", "--max-seconds", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "auto-encoder of 4 hidden units, σ = 0.7" in out
    assert re.search(r"J_DSM .* J_DAE / 0\.4802", out)
    assert "½I(q) = 3.06122" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sigma", "0"], ["--sigma", "got 0"]),
        (["--hidden", "0"], ["--hidden", "got 0", "want at least 1"]),
        (["--max-seconds", "-1"], ["--max-seconds", "got -1"]),
        (["--model", "m", "--hidden", "3"], ["--model", "want them for an auto-encoder only"]),
        (["--out", "missing/deep"], ["does not exist"]),
    ],
)
def test_mistakes_are_told_in_one_line(options, words, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    assert main(["chain", str(tmp_path / "x.npy"), "--max-seconds", "0.2", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words)


def test_a_saved_model_in_the_place_of_an_auto_encoder(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(200, 2))
    est = ScoreDensity(n_steps=20, width=8, depth=1, random_state=0, verbose=False).fit(x)
    est.save(tmp_path / "m")
    np.save(tmp_path / "x.npy", x)
    assert main(["chain", str(tmp_path / "x.npy"), "--model", str(tmp_path / "m"), "--sigma", "0.5"]) == 0
    assert "holds at Gaussian(sigma=0.5)" in capsys.readouterr().out
    found = chain_of(est, x, 0.5)
    z = est.units_.to_model(x)
    g = torch.Generator().manual_seed(1)
    x_t = Gaussian(0.5).sample(z.repeat(50, 1), generator=g)
    with torch.no_grad():
        errors = 0.5 * (
            est.model_.score(x_t, Gaussian(0.5)) - oracles.Empirical(z).score(x_t, Gaussian(0.5))
        ).square().sum(1)
    assert abs(found.j_esm.value - errors.mean().item()) < 5 * (found.j_esm.stderr + errors.std().item() / 100)
    with pytest.raises(InputError, match="want one of the levels trained"):
        chain_of(est, x, 1e-9)
