"""Prediction on the static cache against the library's own layers, token by token."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_world import row_of, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft.depth import zoe
from spatialvla_ft.heads import chunk_decoder, cuda_graphs, decoding
from spatialvla_ft.heads.gemma_layers import Masks, TextLayers, why_not_direct
from spatialvla_ft.models.lora import attach_lora

ROUNDING = 2e-4
"""Of hidden states, normalised, up to 4 in size, in float32. Two ways to the same ones differ by
1.1e-5 with the kernels of some processors, and by 1.7e-5 where every product is a rounding of all
its terms off. A token too many or too few in sight moves them by 0.09 and more."""

TWO_ARMS = [40, 26, 2, 38, 26, 2]  # of the tiny grid's 134 tokens
TEXTS = {
    "plain": {},
    "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "hard caps": {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5},
    "window": {"sliding_window": 7, "num_hidden_layers": 3},
    "no groups": {"num_key_value_heads": 4},
    "one group": {"num_key_value_heads": 1, "attention_bias": True},
}
MODELS = {
    "no spatial table": {"use_spatial_token": False},
    "two arms": {"action_token_counts": TWO_ARMS},
    "gripper first": {"action_token_counts": [2, 72, 60]},
    "grippers only": {"action_token_counts": [2, 130, 2]},
    "one action": {"action_chunk_size": 1},
    "four actions": {"action_chunk_size": 4},
}


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


def build(tiny, text=None, later=None, **config):
    model = tiny_model(tiny, text={"initializer_range": 0.5, **(text or {})}, **config)
    for name, value in (later or {}).items():
        setattr(model.config, name, value)
    with torch.no_grad():  # rows all alike in size would let a norm's weight go unnoticed
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture
def record(monkeypatch):
    """Hidden states at which tokens were chosen, in the order of the slots."""
    seen = []
    choose = decoding.best_of_slot

    def watch(tokens, hidden, rows):
        seen.append(hidden)
        return choose(tokens, hidden, rows)

    for module in (decoding, chunk_decoder):
        monkeypatch.setattr(module, "best_of_slot", watch)
    return seen


def agree(model, batch, record):
    """Both ways choose the same tokens from the same hidden states."""
    record.clear()
    ids = model.predict_action(batch)
    ours = torch.stack(record)
    record.clear()
    with torch.no_grad():
        prompt = decoding.checked_prompt(batch, model.config.action_token_begin_idx)
        wanted = decoding.library_greedy(model.token_writer, prompt, model.hidden_states)
    assert torch.equal(ids, wanted)
    torch.testing.assert_close(ours, torch.stack(record), rtol=0, atol=ROUNDING)
    return ids


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_token_equals_the_librarys(tiny, record, text, rows):
    agree(build(tiny, text), tiny_inputs(tiny, rows), record)


@pytest.mark.parametrize("prefix_mask", ["bidirectional", "causal"])
@pytest.mark.parametrize("tied", [False, True])
def test_prefixes_and_heads(tiny, record, tied, prefix_mask):
    model = build(tiny, tie_action_head=tied, prefix_mask=prefix_mask)
    agree(model, tiny_inputs(tiny, 3), record)


@pytest.mark.parametrize("later", MODELS.values(), ids=MODELS)
def test_slots_and_chunks_of_any_kind(tiny, record, later):
    model = build(tiny, later=later)
    ids = agree(model, tiny_inputs(tiny, 3), record)
    counts = model.config.action_token_counts
    assert ids.shape == (3, len(counts) * model.config.action_chunk_size)


@pytest.mark.parametrize("window", [24, 27, 28, 29, 30, 31, 32, 33, 35])
def test_a_window_that_ends_within_the_chunk(tiny, record, window):
    """Around the length at which branches would see tokens that the window hides."""
    model = build(tiny, {"sliding_window": window}, prefix_mask="causal")
    agree(model, row_of(tiny_inputs(tiny, 2), 1), record)


def test_both_branches_of_the_gripper_are_taken(tiny, record):
    """Else the tests above would hold for a decoder that always keeps the first."""
    last = build(tiny).config.action_slots[-1].start + tiny.action_tokenizer.begin_id
    taken = set()
    for seed in range(4):
        model = build(tiny, seed=seed)
        taken |= set((agree(model, tiny_inputs(tiny, 3), record)[:, 2] - last).tolist())
    assert taken == {0, 1}


def test_an_adapter_that_is_not_merged_acts(tiny, record):
    model = build(tiny)
    batch = tiny_inputs(tiny, 2)
    before = model.predict_action(batch)
    adapted = attach_lora(model, rank=4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.equal(agree(adapted.get_base_model(), batch, record), before)


@pytest.mark.parametrize("text", [{}, {"sliding_window": 7}], ids=["plain", "window"])
@torch.no_grad()
def test_hidden_states_of_a_prompt_and_of_single_tokens(tiny, text):
    """Against one pass of the library over prompt and tokens together."""
    model = build(tiny, text, prefix_mask="causal")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((2, 14, 32), generator=generator)
    wanted = model.language_model.model(inputs_embeds=x).last_hidden_state
    layers = TextLayers(model.language_model.model)
    cache = layers.empty_cache(2, 20, x)
    rotation = layers.rotation(torch.arange(14)[None], x)
    distance = torch.arange(11)[:, None] - torch.arange(11)
    full = torch.zeros(11, 11).masked_fill(distance < 0, -1e30)
    sliding = full.masked_fill(distance >= layers.window, -1e30)
    masks = Masks(full[None, None, None], sliding[None, None, None])
    for last in (1, None):
        got = layers(x[:, :11], rotation.at(slice(0, 11)), cache, 0, masks, last=last)
        at_once = wanted[:, 10:11] if last else wanted[:, :11]
        torch.testing.assert_close(got, at_once, rtol=0, atol=ROUNDING)
    for t in range(11, 14):
        step = Masks(first=max(0, t + 1 - layers.window))
        got = layers(x[:, t : t + 1], rotation.at(slice(t, t + 1)), cache, t, step)
        torch.testing.assert_close(got[:, 0], wanted[:, t], rtol=0, atol=ROUNDING)


# -------------------------------------------------------------------- the cache


def test_the_cache_is_used_again_and_holds_nothing_over(tiny):
    model = build(tiny)
    batch = tiny_inputs(tiny, 2)
    one, two = row_of(batch, 0), row_of(batch, 1)
    wanted = [model.predict_action(inputs) for inputs in (one, two)]
    place = model._last_cache.data_ptr()
    with torch.inference_mode():
        model._last_cache.fill_(torch.nan)
    assert [model.predict_action(inputs).tolist() for inputs in (one, two)] == [
        ids.tolist() for ids in wanted
    ]
    assert model._last_cache.data_ptr() == place
    assert torch.equal(model.predict_action(batch), torch.cat(wanted))
    assert model._last_cache.shape[2] == 2
    assert "_last_cache" not in model.state_dict()


def test_threads_do_not_share_a_cache(tiny):
    model = build(tiny)
    batch = tiny_inputs(tiny, 2)
    inputs = [row_of(batch, i) for i in range(2)]
    wanted = [model.predict_action(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: model.predict_action(inputs[i % 2]), range(40)))
    assert all(torch.equal(ids, wanted[i % 2]) for i, ids in enumerate(got))


def test_predictions_within_and_outside_inference_mode(tiny):
    model = build(tiny)
    batch = tiny_inputs(tiny, 1)
    with torch.inference_mode():
        within = model.predict_action(batch)
    outside = model.predict_action(batch)
    assert torch.equal(within, outside)
    assert not outside.is_inference()
    assert torch.equal(copy.deepcopy(model).predict_action(batch), outside)


# -------------------------------------------------------------------- models it must not touch


def test_a_hooked_model_runs_the_librarys_forward_and_says_so(tiny, caplog):
    model = build(tiny)
    batch = tiny_inputs(tiny, 2)
    wanted = model.predict_action(batch)
    assert caplog.text == ""
    calls = []
    layer = model.language_model.model.layers[1]
    handle = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(model.predict_action(batch), wanted)
    assert len(calls) == wanted.shape[1]
    assert "slower forward, since a hook hangs on layer 1" in caplog.text
    with pytest.raises(ValueError, match="a hook hangs on layer 1"):
        TextLayers(model.language_model.model)
    handle.remove()
    layer.self_attn._hf_hook = None  # as accelerate leaves it when it offloads weights
    assert "layer 1" in why_not_direct(model.language_model.model)


def test_the_librarys_own_recording_hooks_do_not_slow_prediction(tiny):
    model = build(tiny)
    with torch.no_grad():
        model(**tiny_inputs(tiny, 1), output_hidden_states=True, output_attentions=True)
    assert why_not_direct(model.language_model.model) is None


def test_foreign_layers_are_refused(tiny):
    model = build(tiny)
    text = model.language_model.model
    text.layers[0] = torch.nn.Sequential(text.layers[0])
    with pytest.raises(ValueError, match="layer 0 of the language model is a Sequential"):
        TextLayers(text)


def test_a_prompt_with_suffix_tokens_is_refused(tiny):
    inputs = tiny_inputs(tiny, 1)
    inputs["token_type_ids"][:, -1] = 1
    with pytest.raises(ValueError, match="already holds actions"):
        build(tiny).predict_action(inputs)


# -------------------------------------------------------------------- on a GPU


def test_the_padding_of_a_graph_changes_no_token(tiny):
    model = build(tiny)
    batch = tiny_inputs(tiny, 3)
    mask = batch["attention_mask"]
    with torch.no_grad():
        seen = {name: batch[name] for name in ("pixel_values", "intrinsics", "depth")}
        embeds, _ = model.embed_inputs(batch["input_ids"], **seen)
    padded, padded_mask = cuda_graphs.pad_left(embeds, mask)
    assert padded.shape[1] == padded_mask.shape[1] == 32
    ids = decoding.text_greedy(model.token_writer, padded, padded_mask)
    assert torch.equal(ids, model.predict_action(batch))


def test_no_graph_without_a_gpu_and_none_for_an_adapter(tiny):
    embeds = torch.zeros(1, 4, 32)
    assert not cuda_graphs.can_capture(build(tiny).token_writer, embeds)
    assert zoe.mark(embeds) is None
    assert torch.equal(zoe.beside(None, lambda: embeds + 1), embeds + 1)
    store = cuda_graphs.GraphStore()
    store.graphs["key"] = None
    assert not copy.deepcopy(store).graphs
    assert not pickle.loads(pickle.dumps(store)).graphs


@pytest.mark.gpu
def test_graphs_choose_the_same_tokens(tiny, caplog):
    model = build(tiny).cuda()
    batch = {name: tensor.cuda() for name, tensor in tiny_inputs(tiny, 3).items()}
    prompt = decoding.checked_prompt(batch, model.config.action_token_begin_idx)
    with torch.no_grad():
        wanted = decoding.library_greedy(model.token_writer, prompt, model.hidden_states)
    for _ in range(3):
        assert torch.equal(model.predict_action(batch), wanted)
    assert caplog.text == ""
    assert len(model._graphs.graphs) == 1
