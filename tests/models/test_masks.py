"""Who sees whom: pads nobody, the future nobody, the prefix everybody (or causally)."""

from __future__ import annotations

import pytest
import torch
from tiny_world import row_of, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft.models.attention import attention_masks, suffix_from_ids

PREFIXES = pytest.mark.parametrize("prefix", ["bidirectional", "causal"])


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


@pytest.fixture(scope="module")
def models(tiny):
    """One model per prefix mask, with the same weights; its sliding window is never reached."""
    return {p: tiny_model(tiny, prefix_mask=p) for p in ("bidirectional", "causal")}


def logits_of(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "actions"}, **kwargs).logits


@PREFIXES
@pytest.mark.parametrize("with_actions", [True, False])
def test_a_padded_batch_equals_its_samples(tiny, models, prefix, with_actions):
    batch = tiny_inputs(tiny, 2, with_actions=with_actions)
    mask = batch["attention_mask"]
    assert not bool(mask.all())
    assert bool(mask[:, 0 if with_actions else -1].all())
    together = logits_of(models[prefix], batch)
    for i in range(2):
        alone = logits_of(models[prefix], row_of(batch, i))[0]
        torch.testing.assert_close(together[i][mask[i].bool()], alone, rtol=0, atol=1e-4)


def test_loss_of_a_padded_batch_is_the_mean_over_its_labels(tiny, models):
    batch = tiny_inputs(tiny, 2, with_actions=True)
    model = models["bidirectional"]
    with torch.no_grad():
        alone = [float(model(**row_of(batch, i)).loss) for i in range(2)]
        batch.pop("actions")
        together = float(model(**batch).loss)
    assert together == pytest.approx(sum(alone) / 2, abs=1e-5)


def test_the_released_mask_shows_pads(tiny):
    """Only there: this is what `compatibility` restores."""
    released = tiny_model(tiny, compatibility="released")
    batch = tiny_inputs(tiny, 2, with_actions=True)
    shorter = int(batch["attention_mask"].sum(1).argmin())
    real = batch["attention_mask"][shorter].bool()
    together = logits_of(released, batch)[shorter][real]
    alone = logits_of(released, row_of(batch, shorter))[0]
    assert (together - alone).abs().max() > 1e-3


@PREFIXES
@pytest.mark.parametrize("given", [True, False])
def test_later_actions_do_not_leak(tiny, models, prefix, given):
    batch = tiny_inputs(tiny, 1, with_actions=True)
    if not given:
        batch.pop("token_type_ids")
    first = int((batch["labels"][0] != -100).nonzero()[0])
    for position in (first, first + 2, first + 5):
        other = {name: tensor.clone() for name, tensor in batch.items()}
        step = -1 if position == first + 2 else 1  # gripper tokens are the last ones there are
        other["input_ids"][0, position] += step
        before, after = (logits_of(models[prefix], one)[0] for one in (batch, other))
        torch.testing.assert_close(before[:position], after[:position], rtol=0, atol=0)
        assert (before[position] - after[position]).abs().max() > 1e-3


@pytest.mark.parametrize(("prefix", "sees"), [("bidirectional", True), ("causal", False)])
def test_whether_a_picture_sees_the_words(tiny, models, prefix, sees):
    batch = tiny_inputs(tiny, 1)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][0, -2] += 1
    before, after = (logits_of(models[prefix], one)[0, 0] for one in (batch, other))
    assert bool((before - after).abs().max() > 1e-4) == sees


@PREFIXES
@pytest.mark.parametrize("with_actions", [True, False])
def test_token_types_are_read_off_the_ids_when_not_given(tiny, models, prefix, with_actions):
    batch = tiny_inputs(tiny, 2, with_actions=with_actions)
    without = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
    real = batch["attention_mask"].bool()
    one, other = (logits_of(models[prefix], inputs)[real] for inputs in (batch, without))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_labels_do_not_change_the_mask(tiny, models):
    batch = tiny_inputs(tiny, 1, with_actions=True)
    without = {name: tensor for name, tensor in batch.items() if name != "labels"}
    one, other = (logits_of(models["bidirectional"], inputs) for inputs in (batch, without))
    assert torch.equal(one, other)


def test_suffix_from_ids_counts_everything_after_the_first_action():
    ids = torch.tensor([[0, 7, 3, 10, 12, 1, 0], [5, 3, 3, 3, 3, 3, 13]])
    wanted = [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]
    assert suffix_from_ids(ids, begin=10, count=3).tolist() == wanted


@PREFIXES
def test_the_mask_itself_against_a_loop(tiny, models, prefix):
    """Rows of two samples of unequal length, left- and right-padded."""
    model = models[prefix]
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]])
    embeds = torch.zeros(2, 7, 32)
    mask = attention_masks(model.config, embeds, real, types, None)["full_attention"]
    for b in range(2):
        for q in range(7):
            if not real[b, q]:
                continue
            for k in range(7):
                both_prefix = types[b, q] == 0 and types[b, k] == 0 and prefix == "bidirectional"
                allowed = bool(real[b, k]) and (k <= q or bool(both_prefix))
                assert (float(mask[b, 0, q, k]) == 0.0) == allowed, (b, q, k)
