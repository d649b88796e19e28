"""The index benchmark measures what it says, on a dataset that is written without TensorFlow."""

from spatialvla_ft.bench.index_build import measure_index_build, peak_mebibytes
from spatialvla_ft.bench.small_rlds import write_rlds
from spatialvla_ft.data import build_index


def test_the_figures_fit_together(tmp_path):
    result = measure_index_build(tmp_path, mebibytes=2, shards=2, repeats=1, workers=1)
    assert 1.5 * 2**20 < result["bytes"] < 3 * 2**20
    for name in ("floor_read", "floor_read_crc", "index_1_worker", "index_1_worker_no_crc"):
        entry = result[name]
        assert abs(entry["gib_per_s"] * entry["seconds"] * 2**30 - result["bytes"]) < 1
    assert result["index_bytes"] > 0
    assert list(tmp_path.iterdir()) == []  # it cleans up


def test_the_generated_dataset_is_what_it_says(tmp_path):
    index = build_index(write_rlds(tmp_path, mebibytes=1, shards=2, steps=7, lengths=[2, 3]))
    assert index.num_episodes == 5
    assert index.num_steps == 35
    text = index.column("language_instruction", 4)
    assert text.tolist() == [b"put the green block on the yellow plate"] * 7
    assert index.column("is_first", 0).dtype == bool
    assert index.image_bytes(4, 6, "observation.image_1").startswith(b"\xff\xd8")


def test_peak_memory_is_told():
    assert (peak_mebibytes() or 0) > 10
