"""The head's action rows, trained apart from the head: same numbers, same files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.models.action_tables import (
    join_action_head,
    separate_action_head,
    set_action_rows,
)
from spatialvla_ft.models.lora import (
    attach_lora,
    fingerprint,
    load_with_adapter,
    merge_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.policy.load import load_policy_model

HEAD = "language_model.lm_head.weight"


@pytest.fixture
def tiny():
    return tiny_processor()


def stored(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def labelled(processor):
    batch = tiny_inputs(processor, with_actions=True)
    batch.pop("actions")
    return batch


@pytest.mark.parametrize("logits_to_keep", [0, "labels"])
def test_separated_rows_learn_what_the_whole_head_would(tiny, logits_to_keep):
    """Autograd through the undivided head is the oracle, for loss, logits and gradient."""
    batch = labelled(tiny)
    whole, apart = tiny_model(tiny), tiny_model(tiny)
    separate_action_head(apart)
    apart.language_model.lm_head.requires_grad_(False)
    one, other = (m(**batch, logits_to_keep=logits_to_keep) for m in (whole, apart))
    # A product of another width may be summed otherwise: by 1e-6 and 2.5e-6 of logits up to 7.
    torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=3e-5)
    one.loss.backward()
    other.loss.backward()
    begin = whole.config.action_token_begin_idx
    wanted = whole.language_model.lm_head.weight.grad[begin:]
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(apart.action_head_rows.weight.grad, wanted, rtol=1e-4, atol=3e-6)
    for name, parameter in whole.named_parameters():
        if name != HEAD and parameter.grad is not None:
            same = apart.get_parameter(name).grad
            torch.testing.assert_close(same, parameter.grad, rtol=1e-3, atol=1e-5)


def test_what_is_saved_has_the_released_layout(tiny, tmp_path):
    before = stored(tiny_model(tiny), tmp_path / "before")
    model = tiny_model(tiny)
    separate_action_head(model)
    with torch.no_grad():
        model.action_head_rows.weight.add_(0.3)
    after = stored(model, tmp_path / "after")
    assert set(after) == set(before)
    begin = model.config.action_token_begin_idx
    assert torch.equal(after[HEAD][:begin], before[HEAD][:begin])
    assert torch.equal(after[HEAD][begin:], before[HEAD][begin:] + 0.3)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {HEAD}
    inputs = tiny_inputs(tiny)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path / "after").eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(again.predict_action(inputs), model.predict_action(inputs))
    join_action_head(model)
    join_action_head(model)  # nothing is left to join
    assert torch.equal(model.language_model.lm_head.weight, after[HEAD])


def test_a_state_dict_from_outside_is_joined_too(tiny, tmp_path):
    model = tiny_model(tiny)
    separate_action_head(model)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights)
    saved = load_file(tmp_path / "model.safetensors")
    begin = model.config.action_token_begin_idx
    assert "action_head_rows.weight" not in saved
    assert torch.equal(saved[HEAD][begin:], weights["action_head_rows.weight"])


def test_an_adapter_with_head_rows_comes_back_exactly(tiny, tmp_path):
    folder = tmp_path / "base"
    tiny_model(tiny).save_pretrained(folder)
    model = SpatialVLAForConditionalGeneration.from_pretrained(folder).eval()
    before, rows = fingerprint(model), spatial_rows(model)
    text_head = model.language_model.lm_head.weight.detach().clone()
    adapted = attach_lora(model, rank=2, train_whole=("spatial_embed_tokens", "action_head_rows"))
    trained = {
        n.split("base_model.model.")[1] for n, p in adapted.named_parameters() if p.requires_grad
    }
    whole = {name for name in trained if "lora_" not in name}
    assert whole == {
        "spatial_embed_tokens.modules_to_save.default.weight",
        "action_head_rows.modules_to_save.default.weight",
    }
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.eval()
    inputs = tiny_inputs(tiny)
    with torch.no_grad():
        logits = adapted(**inputs).logits
    save_adapter(adapted, tiny, rows, tmp_path / "a", base=str(folder), base_fingerprint=before)
    again, _ = load_policy_model(tmp_path / "a", canary=False)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, logits)
    ids = again.predict_action(inputs)

    merged = merge_adapter(load_with_adapter(tmp_path / "a"))
    assert merged.action_head_rows is None
    saved = stored(merged, tmp_path / "merged")
    assert set(saved) == set(load_file(folder / "model.safetensors"))
    begin = merged.config.action_token_begin_idx
    assert torch.equal(saved[HEAD][:begin], text_head[:begin])
    assert not torch.isclose(saved[HEAD][begin:], text_head[begin:]).all(dim=1).any()
    last, _ = SpatialVLAForConditionalGeneration.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    with torch.no_grad():
        difference = (last.eval()(**inputs).logits - logits).abs().max()
    assert 0 < difference < 1e-3
    assert torch.equal(last.predict_action(inputs), ids)

    content = json.loads((tmp_path / "a" / "base.json").read_text())
    (tmp_path / "a" / "base.json").write_text(json.dumps({**content, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="it is another"):
        load_with_adapter(tmp_path / "a")


def test_a_tied_head_has_no_rows_to_separate(tiny):
    model = tiny_model(tiny, tie_action_head=True)
    with pytest.raises(ValueError, match=r"spatial table itself \(tie_action_head\); leave"):
        separate_action_head(model)


def test_a_grid_is_set_before_rows_are_separated(tiny):
    model = tiny_model(tiny)
    separate_action_head(model)
    rows = model.spatial_embed_tokens.weight.data
    with pytest.raises(AssertionError, match="after they are set"):
        set_action_rows(model, model.config.action_token_counts, rows, rows)
