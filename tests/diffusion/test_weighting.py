"""Min-SNR weights in closed form, also where the signal is gone."""

from __future__ import annotations

import torch

from vega_diffusion.diffusion.schedule import scaled_linear
from vega_diffusion.diffusion.weighting import min_snr_weight

SNR = torch.tensor([0.0, 0.5, 5.0, 50.0])


def test_epsilon():
    torch.testing.assert_close(min_snr_weight(SNR, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 1.0, 0.1]))


def test_velocity():
    expected = torch.tensor([0.0, 0.5 / 1.5, 5.0 / 6.0, 5.0 / 51.0])
    torch.testing.assert_close(min_snr_weight(SNR, 5.0, "v_prediction"), expected)


def test_x0():
    torch.testing.assert_close(min_snr_weight(SNR, 5.0, "sample"), torch.tensor([0.0, 0.5, 5.0, 5.0]))


def test_all_three_weigh_the_x0_error_alike():
    snr = scaled_linear().snr(torch.arange(1000)).double()
    on_x0 = min_snr_weight(snr, 5.0, "sample")
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon") * snr, on_x0)
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "v_prediction") * (snr + 1), on_x0)


def test_finite_at_zero_terminal_snr():
    snr = scaled_linear(zero_terminal_snr=True).snr(torch.arange(1000))
    for kind in ("epsilon", "v_prediction", "sample"):
        assert min_snr_weight(snr, 5.0, kind).isfinite().all()
