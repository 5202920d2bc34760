"""The generator and the training path of the shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import feather_edge

pytestmark = pytest.mark.usefixtures("_scene_vlm_on_path")

ROOT = Path(__file__).parents[3]
SAMPLES = Path(feather_edge.__file__).parent / "assets" / "scenes"


def test_scene_depends_on_split_and_index_only():
    from feather_edge.evaluate.scenes import SPLIT_SEEDS, make_scene, scene_rng

    first, again = (make_scene(scene_rng("test", 3), num_objects=6) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    images = [make_scene(scene_rng(split, 3), num_objects=6).image for split in SPLIT_SEEDS]
    assert len({image.tobytes() for image in images}) == len(SPLIT_SEEDS)


def test_boxes_are_tight_and_inside_the_image():
    from feather_edge.evaluate.scenes import make_scene, scene_rng

    for index in range(20):
        scene = make_scene(scene_rng("development", index), num_objects=3 + index % 6)
        assert len(scene.objects) == 3 + index % 6
        for slot, item in enumerate(scene.objects):
            x0, y0, x1, y1 = item.box
            assert -1 <= x0 < x1 <= 113
            assert -1 <= y0 < y1 <= 113
            rows, columns = np.nonzero(scene.owners == slot)
            assert rows.min() * 8 + 8 > y0
            assert columns.max() * 8 < x1


def test_questions_have_one_answer():
    from feather_edge.evaluate.scenes import COLOURS, SHAPES, ask, make_scene, scene_rng

    for index in range(40):
        rng = scene_rng("development", index)
        objects = make_scene(rng, num_objects=3 + index % 6).objects
        names = [f"{COLOURS[item.colour]} {SHAPES[item.shape]}" for item in objects]
        place = ask(objects, "localisation", rng)
        if place is not None:
            assert sum(name in place.text for name in names) == 1
        presence = ask(objects, "presence", rng)
        assert presence is not None
        assert (presence.answer == "yes") == any(name in presence.text for name in names)


def test_box_text_returns_to_within_half_a_bin():
    from evaluate import LOCATION_READER, SCENE_GEOMETRY

    from feather_edge.evaluate.scenes import BIN_SIZE_PX, box_text

    box = (3.2, 17.9, 40.0, 111.9)
    said = LOCATION_READER.read(box_text(box), SCENE_GEOMETRY)
    assert said is not None
    assert max(abs(a - b) for a, b in zip(box, said, strict=True)) <= BIN_SIZE_PX / 2


def test_packed_questions_are_what_each_question_is_alone():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from batches import IGNORED, question_batch
    from model import ModelShape, build_model
    from objectives import answer_loss, visual_tokens
    from vocabulary import IMAGE, NUM_VISUAL_TOKENS, TOKEN_IDS

    from feather_edge.evaluate.scenes import make_scene, scene_rng

    torch.manual_seed(0)
    model = build_model(ModelShape(vision_layers=1, layers=2)).eval()
    scene = make_scene(scene_rng("development", 0), num_objects=5)
    questions = question_batch([scene.objects], np.random.default_rng(0), num_questions=3)
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None] / 255.0
    packed = []
    model.lm_head.register_forward_hook(lambda *call: packed.append(call[2]))
    with torch.no_grad():
        answer_loss(model, visual_tokens(model, pixels), questions)
        prefix = torch.tensor([1] + [TOKEN_IDS[IMAGE]] * NUM_VISUAL_TOKENS)
        alone = [
            model(input_ids=torch.cat([prefix, ids])[None], pixel_values=pixels).logits[0, 197:][
                targets != IGNORED
            ]
            for ids, targets in zip(questions.token_ids[0], questions.targets[0], strict=True)
        ]
    assert torch.allclose(packed[0], torch.cat(alone), atol=1e-4)


def test_shipped_scenes_are_what_the_tool_writes():
    from samples import describe, sample_scene

    records = json.loads((SAMPLES / "scenes.json").read_text(encoding="utf-8"))
    assert [record["file"] for record in records] == [f"{index:02d}.png" for index in range(20)]
    for index in (0, 19):
        _, questions = sample_scene(index)
        assert records[index]["questions"] == [describe(question) for question in questions]


def test_kept_rows_come_from_the_attention_of_the_layer():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from evaluate import prepare
    from kept_rows import SCORES, depth_scores, kept_tokens, mean_row, object_share

    from feather_edge.evaluate.scenes import make_scene, scene_rng

    folder = Path(feather_edge.__file__).parent / "assets" / "scene_vlm"
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    image = make_scene(scene_rng("development", 1), num_objects=5).image
    inputs = prepare(processor, [(image, "where is the red circle ?")])
    depths = depth_scores(model, inputs)
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    first = inputs["input_ids"][0].tolist().index(model.config.image_token_index)
    wanted = [
        mean_row(kept_tokens(attention[0, :, -1, first : first + 196].mean(0), 0.25))
        for attention in attentions[:-1]
    ]
    found = [mean_row(kept_tokens(scores["rope, full softmax"], 0.25)) for scores in depths]
    assert found == pytest.approx(wanted, abs=0.02)
    assert len(depths) == 7
    assert all(set(scores) == set(SCORES) for scores in depths)
    assert mean_row(kept_tokens(torch.arange(196.0), 0.25)) > 0.85
    # Two patches by two: centres lie at 4, 12, 20 ... pixels.
    box = (4.0, 12.0, 15.0, 27.0)
    assert object_share(torch.tensor([14, 15, 28, 29, 30]), box) == 1.0
    assert object_share(torch.tensor([15, 42]), box) == 0.25
