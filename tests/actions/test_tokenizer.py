import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GemmaTokenizer, PreTrainedTokenizerFast

from spatialvla_ft.actions import ActionGrid, SpatialActionTokenizer

BINS = (3, 4, 2, 2, 3, 2, 2)  # 24 translations, 12 rotations, 2 grippers
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7))


def small(*extra):
    """A tokenizer of three words and what is given."""
    vocab = {"<unk>": 0, "move": 1, "up": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")), unk_token="<unk>"
    )
    tokenizer.add_tokens(list(extra), special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def released(golden_checkpoint):
    return GemmaTokenizer.from_pretrained(golden_checkpoint)


def test_released_tokenizer(released):
    size = len(released)
    tokenizer = SpatialActionTokenizer(released, ActionGrid.uniform())
    assert (tokenizer.begin_id, tokenizer.end_id) == (1736, 1736 + 8194)
    assert tokenizer.num_added == 0
    assert len(released) == size
    ids = tokenizer.encode(ACTIONS)
    np.testing.assert_array_equal(ids, tokenizer.grid.encode(ACTIONS) + 1736)
    text = tokenizer.text(ACTIONS)
    np.testing.assert_array_equal(released(text, add_special_tokens=False).input_ids, ids.ravel())


def test_golden_labels(released, golden_dir):
    """The ids of the released grid are those of the golden training sequence."""
    from safetensors.numpy import load_file

    from spatialvla_ft.actions.grid_io import load_grid

    forward = load_file(golden_dir / "forward.safetensors")
    labels = forward["s0.labels"].ravel()
    ids = labels[labels >= 1736].reshape(-1, 3)
    assert len(ids) == 4
    tokenizer = SpatialActionTokenizer(released, load_grid(golden_dir / "checkpoint"))
    np.testing.assert_allclose(
        tokenizer.decode(ids), forward["s0.label_decoded_actions"].reshape(4, 7), atol=1e-6
    )


def test_adds_the_tokens():
    base = small()
    tokenizer = SpatialActionTokenizer(base, ActionGrid.uniform(bins=BINS))
    assert (tokenizer.begin_id, tokenizer.num_added, len(base)) == (3, 38, 41)
    assert base.convert_ids_to_tokens([3, 40]) == ["<ACTION00000>", "<ACTION00037>"]
    again = SpatialActionTokenizer(base, tokenizer.grid)
    assert (again.begin_id, again.num_added) == (3, 0)


def test_tokens_need_not_be_last():
    """Newer transformers may append <mask> after the action tokens."""
    names = [f"<ACTION{i:05d}>" for i in range(38)]
    tokenizer = SpatialActionTokenizer(
        small("<image>", *names, "<mask>"), ActionGrid.uniform(bins=BINS)
    )
    assert (tokenizer.begin_id, tokenizer.end_id) == (4, 42)


def test_round_trip_and_torch():
    tokenizer = SpatialActionTokenizer(small(), ActionGrid.uniform(bins=BINS))
    ids = tokenizer.encode(torch.from_numpy(ACTIONS))
    assert isinstance(ids, torch.Tensor)
    decoded = tokenizer.decode(ids)
    assert isinstance(decoded, torch.Tensor)
    assert decoded.shape == (6, 7)
    np.testing.assert_array_equal(
        decoded.numpy(), tokenizer.grid.decode(tokenizer.grid.encode(ACTIONS))
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 27, 2]], r"ids\[0, 2\] is 2, no gripper id; those are 39..40"),
        ([[27, 27, 39]], r"ids\[0, 0\] is 27, no translation id; those are 3..26"),
        ([[3, 27, 41]], r"ids\[0, 2\] is 41"),
        ([[3, 27]], "shape"),
    ],
)
def test_decode_refuses(ids, message):
    tokenizer = SpatialActionTokenizer(small(), ActionGrid.uniform(bins=BINS))
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(np.array(ids))


def test_wrong_number_of_tokens(released):
    with pytest.raises(ValueError, match=r"8194 action tokens .* needs 38; .*grids fit --bins"):
        SpatialActionTokenizer(released, ActionGrid.uniform(bins=BINS))
    short = small(*[f"<ACTION{i:05d}>" for i in range(30)])
    with pytest.raises(ValueError, match="first one missing is <ACTION00030>"):
        SpatialActionTokenizer(short, ActionGrid.uniform(bins=BINS))


def test_tokens_out_of_order():
    names = [f"<ACTION{i:05d}>" for i in range(38)]
    with pytest.raises(ValueError, match=r"<ACTION00020> has id 24, not 23"):
        SpatialActionTokenizer(
            small(*names[:20], "<loc>", *names[20:]), ActionGrid.uniform(bins=BINS)
        )
