"""Two arms, joints, and an arm that cannot turn, from processor to robot actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_world import NAME, TEXTS, actions, depth_map, picture, row_of, tiny_model, tiny_processor
from transformers import AutoTokenizer

from spatialvla_ft import SpatialVLAConfig, SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.actions import ActionGrid, adapt_embeddings
from spatialvla_ft.actions.spaces import joint_space, translation_delta, two_arms_delta
from spatialvla_ft.actions.tokenizer import with_action_tokens
from spatialvla_ft.models.checkpoint_files import fill_from_processor_config
from spatialvla_ft.models.lora import (
    adapt_to_grid,
    attach_lora,
    fingerprint,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.models.small import ordered_table, small_processor

CHUNK = 2
ROBOTS = {
    "two arms": (two_arms_delta(), (4, 5, 3, 3, 4, 2, 2, 3, 6, 2, 4, 2, 3, 2), 6),
    "joints": (joint_space(7), (9, 8, 7, 6, 5, 4, 3, 2), 8),
    "no rotation": (translation_delta(), (5, 6, 4, 2), 2),
}


@pytest.fixture(params=ROBOTS, scope="module")
def robot(request):
    space, bins, tokens = ROBOTS[request.param]
    return ActionGrid.uniform(space=space, bins=bins), tokens


def known(grid):
    """Statistics whose range differs in every dimension; the grippers are not normalised."""
    dim = grid.dim
    low = -np.arange(1.0, dim + 1) / 10
    high = np.arange(2.0, dim + 2) / 5
    moves = [group.role != "gripper" for group in grid.action_space.groups for _ in group.names]
    fields = {name: low.tolist() for name in ("mean", "std", "min", "q01")}
    return {"action": {**fields, "max": high.tolist(), "q99": high.tolist(), "mask": moves}}


def processor_of(grid):
    return small_processor(
        TEXTS,
        grid,
        image_size=32,
        patch_size=8,
        action_chunk_size=CHUNK,
        statistics={NAME: known(grid)},
        intrinsic_config={NAME: {"intrinsic": np.eye(3).tolist(), "height": 40, "width": 64}},
    )


def inputs_of(processor, suffix=None, rows=2):
    return dict(
        processor(
            images=[picture(i) for i in range(rows)],
            text=[TEXTS[i % 2] for i in range(rows)],
            unnorm_key=NAME,
            depth=[depth_map(i) for i in range(rows)],
            suffix_actions=suffix,
        )
    )


def types_right(ids, grid, begin):
    relative = ids.reshape(len(ids), -1, grid.tokens).numpy() - begin
    return ((relative >= grid.offsets) & (relative < np.add(grid.offsets, grid.counts))).all()


def test_from_picture_to_robot(robot):
    grid, tokens = robot
    processor = processor_of(grid)
    model = tiny_model(processor)
    wanted = np.random.default_rng(0).uniform(-1, 1, (2, CHUNK, grid.dim)).astype(np.float32)
    batch = inputs_of(processor, wanted)
    assert ((batch["labels"] != -100).sum(-1) == tokens * CHUNK + 1).all()
    assert batch.pop("actions").shape == (2, CHUNK, grid.dim)
    model(**batch).loss.backward()
    rows = model.spatial_embed_tokens.weight.grad.abs().sum(-1) > 0
    seen = torch.unique(batch["labels"][batch["labels"] >= model.config.action_token_begin_idx])
    assert rows.sum() > len(seen) / 2  # the last token of a chunk is predicted, not read

    prompts = inputs_of(processor)
    ids = model.predict_action(prompts)
    assert ids.shape == (2, tokens * CHUNK)
    assert types_right(ids, grid, model.config.action_token_begin_idx)
    alone = torch.cat([model.predict_action(row_of(prompts, i)) for i in range(2)])
    assert torch.equal(ids, alone)

    decoded = processor.decode_actions(ids)
    assert decoded["actions"].shape == (2, CHUNK, grid.dim)
    for d in range(grid.dim):
        low, high = -(d + 1) / 10, (d + 2) / 5
        column = decoded["normalised"][..., d]
        if "gripper" in grid.action_space.names[d]:
            assert set(column.ravel()) <= {0.0, 1.0}
            raw = column
        else:
            raw = low + (column + 1) * (high - low) / 2
        np.testing.assert_allclose(decoded["actions"][..., d], raw, atol=1e-6)


def test_what_was_taught_is_decoded(robot):
    grid, _ = robot
    processor = processor_of(grid)
    taught = np.random.default_rng(1).uniform(-1, 1, (2, CHUNK, grid.dim)).astype(np.float32)
    labels = inputs_of(processor, taught)["labels"]
    ids = torch.stack([row[row != -100][:-1] for row in labels])
    decoded = processor.decode_actions(ids)["normalised"]
    flat = grid.decode(grid.encode(taught.reshape(-1, grid.dim)))
    np.testing.assert_array_equal(decoded, flat.reshape(decoded.shape))


def test_wrong_shapes_name_the_right_one(robot):
    grid, tokens = robot
    processor = processor_of(grid)
    with pytest.raises(ValueError, match=rf"\(T, {grid.dim}\)"):
        inputs_of(processor, np.zeros((2, CHUNK, grid.dim + 1)))
    with pytest.raises(ValueError, match=rf"\(B, {tokens} \* chunk\), {tokens} tokens"):
        processor.decode_actions(np.zeros((1, tokens + 1), int))


def test_a_checkpoint_comes_back(robot, tmp_path):
    grid, _ = robot
    processor = processor_of(grid)
    model = tiny_model(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = SpatialVLAProcessor.from_pretrained(tmp_path)
    assert loaded.grid == grid
    assert again.config.action_token_counts == list(grid.counts)
    prompts = inputs_of(processor)
    assert torch.equal(again.eval().predict_action(prompts), model.predict_action(prompts))
    config = SpatialVLAConfig.from_pretrained(tmp_path, action_token_counts=None)
    fill_from_processor_config(config, tmp_path)
    assert config.action_token_counts == list(grid.counts)


@pytest.mark.parametrize("tied", [False, True])
def test_from_one_arm_to_another_robot_and_back_from_disk(robot, tied, tmp_path):
    grid, tokens = robot
    processor = tiny_processor()
    model = tiny_model(processor, tie_action_head=tied)
    old, begin = processor.grid, model.config.action_token_begin_idx
    table = model.spatial_embed_tokens.weight.detach().clone()
    head = model.grid_tokens.rows(slice(0, old.total)).detach().clone()
    text = model.language_model.lm_head.weight[:begin].detach().clone()
    adapt_to_grid(model, old, grid)
    processor.set_grid(grid)
    processor.statistics[NAME] = known(grid)

    assert model.config.text_config.vocab_size == begin + grid.total
    assert model.language_model.lm_head.weight.shape[0] == begin + grid.total
    assert model.get_input_embeddings().weight.shape[0] == begin + grid.total
    assert torch.equal(model.language_model.lm_head.weight[:begin], text)
    fresh = torch.zeros(grid.total, table.shape[1])
    learnt = [slot.role != "joint" for slot in grid.slots]
    for rows, before in ((model.spatial_embed_tokens.weight, table),) + (
        () if tied else ((model.grid_tokens.rows(slice(0, grid.total)), head),)
    ):
        wanted = adapt_embeddings(before, old, grid, fresh=fresh)
        for ok, first, count in zip(learnt, grid.offsets, grid.counts, strict=True):
            if ok:
                assert torch.equal(rows[first : first + count], wanted[first : first + count])
    assert processor.action_tokenizer.begin_id == begin
    assert len(processor.tokenizer) == begin + grid.total

    prompts = inputs_of(processor)
    ids = model.predict_action(prompts)
    assert ids.shape == (2, tokens * CHUNK)
    assert types_right(ids, grid, begin)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = SpatialVLAProcessor.from_pretrained(tmp_path)
    assert torch.equal(again.eval().predict_action(inputs_of(loaded)), ids)
    with torch.no_grad():
        assert torch.equal(again(**prompts).logits, model(**prompts).logits)
    decoded = [p.decode_actions(ids)["actions"] for p in (processor, loaded)]
    np.testing.assert_array_equal(*decoded)
    suffix = np.zeros((2, CHUNK, grid.dim))
    loss = model(**{k: v for k, v in inputs_of(processor, suffix).items() if k != "actions"}).loss
    loss.backward()
    assert float(model.spatial_embed_tokens.weight.grad.abs().sum()) > 0


def test_new_joints_start_ordered_with_the_old_spread():
    grid = ActionGrid.uniform(space=joint_space(7), bins=(40,) * 7 + (2,))
    processor = tiny_processor()
    model = tiny_model(processor)
    with torch.no_grad():
        table = model.spatial_embed_tokens.weight
        table.mul_(torch.linspace(0.1, 3, table.shape[1])).add_(
            torch.linspace(-1, 1, len(table[0]))
        )
        before = table.clone()
    adapt_to_grid(model, processor.grid, grid)
    rows = model.spatial_embed_tokens.weight.detach()[:-2]
    np.testing.assert_allclose(rows.mean(0), before.mean(0), atol=0.2 * float(before.std(0).max()))
    ratio = rows.std(0) / before.std(0)
    assert float(ratio.min()) > 0.5
    assert float(ratio.max()) < 1.6
    near = (rows[1:40] - rows[:39]).norm(dim=-1).mean()
    far = (rows[20:40] - rows[:20]).norm(dim=-1).mean()
    assert near < 0.4 * far


def test_ordered_rows_follow_the_joint():
    grid = ActionGrid.uniform(space=joint_space(2), bins=(30, 30, 2))
    table = ordered_table(grid, 48)
    assert (table[1:30] - table[:29]).norm(dim=-1).max() < (table[0] - table[15]).norm()


def test_an_adapter_of_another_robot_finds_its_base(robot, tmp_path):
    grid, _ = robot
    processor = tiny_processor()
    base = tiny_model(processor)
    base.save_pretrained(tmp_path / "base")
    model = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path / "base")
    mark = fingerprint(model)
    adapt_to_grid(model, processor.grid, grid)
    processor.set_grid(grid)
    rows = spatial_rows(model)
    peft = attach_lora(model, rank=2).eval()
    prompts = inputs_of(processor)
    wanted = peft.get_base_model().predict_action(prompts)
    save_adapter(peft, processor, rows, tmp_path / "a", base=str(tmp_path / "base"),
                 base_fingerprint=mark)  # fmt: skip
    again = load_with_adapter(tmp_path / "a").eval()
    assert torch.equal(again.get_base_model().predict_action(prompts), wanted)


@pytest.mark.parametrize("count", [3, 5000, 9000])
def test_the_released_tokenizer_gets_fewer_and_more(golden_checkpoint, tmp_path, count):
    tokenizer = AutoTokenizer.from_pretrained(golden_checkpoint)
    other = with_action_tokens(tokenizer, count)
    other.save_pretrained(tmp_path)
    for one in (other, AutoTokenizer.from_pretrained(tmp_path)):
        vocabulary = one.get_vocab()
        assert [vocabulary[f"<ACTION{i:05d}>"] for i in (0, count - 1)] == [1736, 1735 + count]
        assert sum(token.startswith("<ACTION") for token in vocabulary) == count
        text = "pick up the <loc0001> block\n<image>"
        assert one(text).input_ids == tokenizer(text).input_ids
        assert one.decode([1736 + count - 1]) == f"<ACTION{count - 1:05d}>"
        assert one.padding_side == tokenizer.padding_side
    assert with_action_tokens(tokenizer, 8194) is tokenizer


def test_tokens_behind_the_actions_are_not_moved(golden_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(golden_checkpoint)
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match="<extra>"):
        with_action_tokens(tokenizer, 12)


def test_counts_must_add_up():
    for wrong in ([], [8194, 0], [4096, 4096, 3]):
        with pytest.raises(ValueError, match="must be positive numbers"):
            SpatialVLAConfig(action_token_counts=wrong)
    assert len(SpatialVLAConfig(action_token_counts=[8192, 2]).action_token_counts) == 2


def test_one_arm_stays_as_it_was():
    processor = tiny_processor()
    wanted = np.stack([actions(i) for i in range(2)])
    labels = inputs_of(processor, wanted)["labels"]
    assert ((labels != -100).sum(-1) == 3 * CHUNK + 1).all()
