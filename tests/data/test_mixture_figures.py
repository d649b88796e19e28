"""The published mixtures against their figures, written down one by one."""

import numpy as np
import pytest
import yaml

from spatialvla_ft.data.mixtures import MIXTURES, load_mixtures, mixture_weights
from spatialvla_ft.shipped import shipped

PLUS = {
    "fractal20220817_data/0.1.0": 0.54087122203,
    "kuka/0.1.0": 0.4,
    "bridge_orig/1.0.0": 1,
    "taco_play/0.1.0": 2,
    "jaco_play/0.1.0": 1,
    "berkeley_cable_routing/0.1.0": 1,
    "roboturk/0.1.0": 2,
    "viola/0.1.0": 2,
    "berkeley_autolab_ur5/0.1.0": 2,
    "toto/0.1.0": 0.5,
    "language_table/0.1.0": 0.1,
    "stanford_hydra_dataset_converted_externally_to_rlds/0.1.0": 2,
    "austin_buds_dataset_converted_externally_to_rlds/0.1.0": 1,
    "nyu_franka_play_dataset_converted_externally_to_rlds/0.1.0": 3,
    "furniture_bench_dataset_converted_externally_to_rlds/0.1.0": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds/0.1.0": 2,
    "austin_sailor_dataset_converted_externally_to_rlds/0.1.0": 1,
    "austin_sirius_dataset_converted_externally_to_rlds/0.1.0": 1,
    "dlr_edan_shared_control_converted_externally_to_rlds/0.1.0": 1,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds/0.1.0": 1,
    "utaustin_mutex/0.1.0": 1,
    "berkeley_fanuc_manipulation/0.1.0": 0.5,
    "cmu_stretch/0.1.0": 1,
    "bc_z/0.1.0": 0.2,
    "fmb_dataset/1.0.0": 0.2,
    "dobbe/0.0.1": 0.2,
    "droid/1.0.0": 0.06,
    "rh20t_rlds/1.0.0": 0.015,
}
OLDER = {
    "kuka/0.1.0": 0.8341046294,
    "toto/0.1.0": 1,
    "berkeley_fanuc_manipulation/0.1.0": 2,
    "fmb_dataset/1.0.0": 1,
}
"""Weights in OpenVLA's mixture where they are others; it lacks RH20T."""

TOTALS = {
    "rtx": (10, 14.374976),
    "rtx_franka": (24, 36.574976),
    "oxe_magic_soup_plus": (27, 31.034976),
    "oxe_spatial_vla_plus": (28, 27.815871),
    "oxe_spatial_vla_plus_stage2": (27, 27.755871),
    "openvla/oxe_magic_soup": (23, 29.574976),
    "openvla/oxe_magic_soup_plus_minus": (25, 31.334105),
    "octo/rtx": (11, 19.374976),
    "octo/rtx_franka": (25, 41.574976),
    "octo/oxe_magic_soup": (25, 30.774976),
    "octo/oxe_flex_act_soup": (32, 39.774976),
    "octo/oxe_full": (50, 50),
    "bridge_rt_1": (2, 2),
}
"""Number of datasets and sum of weights; all other mixtures are one dataset of weight 1."""

TWICE = {
    "taco_play/0.1.0": (2, 1),
    "berkeley_cable_routing/0.1.0": (3, 1),
    "viola/0.1.0": (2, 1),
    "toto/0.1.0": (1, 1),
}
"""Datasets that the published rtx_franka lists twice: first weight, second weight."""


def weights(name):
    return {dataset: part.weight for dataset, part in load_mixtures()[name].items()}


def test_weights_of_pre_training():
    assert weights("oxe_spatial_vla_plus") == PLUS
    second = {name: weight for name, weight in PLUS.items() if name != "droid/1.0.0"}
    assert weights("oxe_spatial_vla_plus_stage2") == second
    older = {name: weight for name, weight in PLUS.items() if name != "rh20t_rlds/1.0.0"}
    assert weights("oxe_magic_soup_plus") == {**older, **OLDER}


def test_totals():
    known = load_mixtures()
    assert len(known) == 30
    for name, mixture in known.items():
        count, total = TOTALS.get(name, (1, 1))
        assert len(mixture) == count, name
        assert sum(part.weight for part in mixture.values()) == pytest.approx(total, abs=1e-6), name


@pytest.mark.parametrize("name", ["rtx_franka", "openvla:rtx_franka", "octo:rtx_franka"])
def test_the_first_weight_of_a_dataset_that_is_listed_twice_counts(name):
    noted = yaml.safe_load(shipped(MIXTURES).read_text())["notes"]["duplicate_first_kept"]
    assert set(noted) == {"rtx_franka", "openvla:rtx_franka", "octo:rtx_franka"}
    second = [(dataset, again) for entry in noted[name] for dataset, again in entry.items()]
    assert second == [(dataset, again) for dataset, (_, again) in TWICE.items()]
    full = name.replace(":", "/") if name.startswith("octo") else "rtx_franka"
    found = weights(full)
    assert {dataset: found[dataset] for dataset in TWICE} == {
        dataset: first for dataset, (first, _) in TWICE.items()
    }


def test_shares_of_stage_two_where_all_datasets_are_as_long():
    found = weights("oxe_spatial_vla_plus_stage2")
    shares = dict(
        zip(found, mixture_weights(list(found.values()), [7] * 27, balance=True), strict=True)
    )
    assert shares["nyu_franka_play_dataset_converted_externally_to_rlds/0.1.0"] == pytest.approx(
        0.1080852, abs=1e-7
    )
    assert shares["rh20t_rlds/1.0.0"] == pytest.approx(0.000540426, abs=1e-9)
    np.testing.assert_allclose(sum(shares.values()), 1)


def test_datasets_that_the_published_grid_was_not_fitted_on():
    lists = yaml.safe_load(shipped(MIXTURES).read_text())["exclude_lists"]
    assert lists == {
        "tokenizer_gaussian": [
            "language_table/0.1.0",
            "berkeley_fanuc_manipulation/0.1.0",
            "cmu_stretch/0.1.0",
            "jaco_play/0.1.0",
        ],
        "no_exclude": [],
    }
