"""Detectors of transformers as the judges of the suite ``coco``, and the command as a whole."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from coco_sets import SIDE, change, write_set
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
)

from benchmarks.bench import command as bench_command
from benchmarks.bench import running
from benchmarks.bench.coco import CocoCases, choose
from benchmarks.bench.coco_judging import CocoExaminer
from benchmarks.bench.detecting import Detections, load_detector
from benchmarks.bench.judging import Clip
from benchmarks.bench.report import Summary
from benchmarks.bench.running import run_suite
from benchmarks.bench.scenes import layout_cases
from benchmarks.bench.suite import CocoSettings, Settings, read_suite
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_diffusers.models.loading import STORYBOOK

CASES = layout_cases(3)
NAMES = sorted({f"{t.colour} {t.kind}" for c in CASES for t in c.things})


def tiny_rt_detr(folder, names):
    """Save a small RT-DETR with random weights that knows ``names``."""
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], feat_strides=[8, 16, 32],
        encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16, num_queries=20, decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16, decoder_attention_heads=2, decoder_layers=1, num_denoising=0, hidden_expansion=1.0,
        id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
    )  # fmt: skip
    RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def tiny_owlv2(folder):
    """Save a small OWLv2 with random weights."""
    torch.manual_seed(0)
    shutil.copytree(STORYBOOK / "tokenizer", folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16,
                     "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def tiny_clip(folder):
    """Save a small CLIP with random weights."""
    torch.manual_seed(0)
    shutil.copytree(STORYBOOK / "tokenizer", folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(tokenizer)},
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    small = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=small, crop_size=small)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_rt_detr(folder / "rt_detr", [*NAMES, "sofa"])
    tiny_owlv2(folder / "owlv2")
    tiny_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("coco"), CASES)


@pytest.fixture(scope="module")
def pictures():
    return torch.stack([c.picture for c in CASES])


# --- detectors


def test_rt_detr_finds_what_transformers_finds_as_shares_of_the_picture(models, pictures):
    found = load_detector(models / "rt_detr", "cpu").find(pictures, [*NAMES, "couch"])
    model = RTDetrForObjectDetection.from_pretrained(models / "rt_detr").eval()
    processor = RTDetrImageProcessor.from_pretrained(models / "rt_detr")
    images = list((pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        out = model(**processor(images=images, return_tensors="pt"))
    wanted = processor.post_process_object_detection(out, 0.05, [(SIDE, SIDE)] * len(pictures))
    assert sum(len(x.labels) for x in found) > 10
    for mine, theirs in zip(found, wanted, strict=True):
        names = [model.config.id2label[i] for i in theirs["labels"].tolist()]
        assert mine.labels == ["couch" if name == "sofa" else name for name in names]
        torch.testing.assert_close(mine.scores, theirs["scores"])
        torch.testing.assert_close(mine.boxes, (theirs["boxes"] / SIDE).clamp(0, 1), atol=1e-5, rtol=0)


def test_rt_detr_gives_only_the_names_that_are_looked_for(models, pictures):
    for found in load_detector(models / "rt_detr", "cpu").find(pictures, ["couch", "zebra"]):
        assert set(found.labels) <= {"couch"}


def test_owlv2_is_asked_for_each_category_in_words(models, pictures):
    detector = load_detector(models / "owlv2", "cpu")
    asked = []
    detector.model.register_forward_pre_hook(
        lambda module, args, inputs: asked.append(inputs["input_ids"]), with_kwargs=True
    )
    detector.check(["anything at all"])
    found = detector.find(pictures, ["red ball", "blue star"])
    words = detector.processor.tokenizer.batch_decode(asked[0], skip_special_tokens=True)
    assert [w.strip() for w in words] == ["a photo of a red ball", "a photo of a blue star"] * len(pictures)
    for sight in found:
        assert set(sight.labels) <= {"red ball", "blue star"}
        assert sight.boxes.shape == (len(sight.labels), 4)
        assert bool(((sight.boxes >= 0) & (sight.boxes <= 1)).all())


@pytest.mark.parametrize("name", ["rt_detr", "owlv2"])
def test_a_detector_that_knows_nothing_gives_figures_in_their_ranges_or_none(models, folder, pictures, name):
    examiner = CocoExaminer(load_detector(models / name, "cpu"), NAMES, models / "clip")
    cases = CocoCases(CocoSettings(folder), 3, SIDE)
    for record in examiner.examine(cases, pictures):
        figures = record["figures"]
        assert set(figures) == {"box_iou", "t2i_sim_labels", "clip_score", "t2i_sim_clip"}
        assert 0 <= figures["box_iou"] < 0.5
        assert 0 <= figures["t2i_sim_labels"] <= 100
        assert figures["clip_score"] == pytest.approx(max(100 * figures["t2i_sim_clip"], 0), abs=1e-3)
        assert record["matches"] is None


class Exact:
    """Finds what was asked for, each with the same score."""

    name, least_score = "exact", 0.5

    def __init__(self, cases, score):
        self.cases, self.score = cases, score

    def find(self, pictures, labels):
        found = []
        for case in self.cases:
            scores = torch.full((len(case.things),), self.score)
            found.append(Detections([t.category for t in case.things], scores, case.wanted(SIDE, SIDE)[1]))
        return found


def test_iou_counts_what_the_detector_is_sure_of_and_average_precision_all(folder, pictures):
    cases = CocoCases(CocoSettings(folder), 3, SIDE)
    for score, iou in ((0.6, 1), (0.4, 0)):
        for record in CocoExaminer(Exact(cases, score), NAMES).examine(cases, pictures):
            assert record["figures"]["box_iou"] == pytest.approx(iou)
            assert record["figures"]["t2i_sim_labels"] == pytest.approx(100 * iou, abs=1e-3)
            assert all(all(hits) for hits in record["box_matches"][2])


def test_clip_score_and_t2i_sim_are_the_cosine_of_clips_vectors(models, pictures):
    clip = Clip(models / "clip")
    model, processor = (
        CLIPModel.from_pretrained(models / "clip"),
        CLIPProcessor.from_pretrained(models / "clip"),
    )
    image = (pictures[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with torch.no_grad():
        out = model(**processor(text=["a red ball"], images=[image], return_tensors="pt", padding=True))
    cosine = float(torch.cosine_similarity(out.image_embeds, out.text_embeds))
    figures = clip.figures(pictures[0], "a red ball")
    assert figures["t2i_sim_clip"] == pytest.approx(cosine, abs=1e-6)
    assert figures["clip_score"] == pytest.approx(max(100 * cosine, 0), abs=1e-4)


def test_layout_suites_show_clips_figures_when_there_is_a_clip(models, tmp_path, pictures):
    suite = replace(read_suite("layout").only(["plain prompt"]), show=("iou", "t2i_sim"))
    settings = Settings(3, STORYBOOK, tmp_path, steps=1, device="cpu", processes=1, clip=models / "clip")
    head = Summary(suite, settings, run_suite(suite, settings)).table().splitlines()[0]
    assert head == "| | iou ↑ | t2i_sim ↑ | clip_score ↑ | t2i_sim_clip ↑ |"


# --- the command


def identity_seed(folder):
    """Return a seed that takes the captions in the order of their photographs."""
    for seed in range(1000):
        if [c.number for c in choose(CocoSettings(folder, seed=seed), 3)] == [0, 1, 2]:
            return seed
    raise AssertionError


def command(folder, out, *more):
    return main(
        ["bench", "coco", "--annotations", str(folder), "--out", str(out), "-n", "3", "--steps", "2",
         "--device", "cpu", *more]
    )  # fmt: skip


def test_the_plain_prompt_has_the_figures_of_the_suite_layout(folder, tmp_path, capsys):
    seed = identity_seed(folder)
    assert command(folder, tmp_path, "--seed", str(seed), "--methods", "plain prompt", "--json") == 0
    ours = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["plain prompt"]
    suite = replace(
        read_suite("layout").only(["plain prompt"]), sampler=None, show=("iou", "ap", "box_iou", "box_ap")
    )
    settings = Settings(3, STORYBOOK, tmp_path / "layout", steps=2, device="cpu", processes=1)
    theirs = Summary(suite, settings, run_suite(suite, settings)).as_json()["plain prompt"]
    for name in ("iou", "ap50", "ap", "box_iou", "box_ap50", "box_ap"):
        assert ours[name] == pytest.approx(theirs[name], abs=2e-5), name


@pytest.mark.parametrize("places", ["--masks", "--boxes"])
def test_every_method_makes_its_pictures_by_mask_and_by_box(folder, tmp_path, capsys, places):
    assert command(folder, tmp_path, places, "--json", "-n", "1") == 0
    out = capsys.readouterr().out.strip().splitlines()
    figures = json.loads(out[-1])
    assert list(figures) == [row.name for row in read_suite("coco").rows]
    for name, of_row in figures.items():
        assert ("iou" in of_row) == (places == "--masks"), name
        assert 0 <= of_row["box_iou"]["mean"] <= 1, name
    assert len({json.dumps(x["seconds"]) for x in figures.values()}) > 1
    assert (tmp_path / "coco_grid.jpg").is_file()
    assert f"--annotations {folder} {places} --seed 0" in (tmp_path / "coco.md").read_text()


def test_a_run_with_rt_detr_goes_on_where_it_was_and_refuses_other_settings(
    models, folder, tmp_path, monkeypatch, capsys
):
    options = ("--detector", str(models / "rt_detr"), "--methods", "plain prompt", "regions", "--json")
    assert command(folder, tmp_path, *options, "-n", "2") == 0
    first = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for of_row in first.values():
        assert {"iou", "ap", "ap50"}.isdisjoint(of_row)
        for name in ("box_iou", "box_ap", "box_ap50"):
            assert 0 <= of_row[name]["low"] <= of_row[name]["mean"] <= of_row[name]["high"] <= 1
    with monkeypatch.context() as patch:
        patch.setattr(running, "Worker", None)
        assert command(folder, tmp_path, *options, "-n", "2") == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == first
    assert command(folder, tmp_path, *options, "--seed", "5") == 2
    assert "was made with seed 0 (now 5)" in capsys.readouterr().err
    assert command(folder, tmp_path, *options, "--boxes") == 2
    assert "was made with places 'masks' (now 'boxes')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-n", "4"], "3 captions fit, and -n is 4"),
        (["-n", "0"], "n is 0; allowed: a whole number 1..100000"),
        (["--detector", "nowhere"], "--detector is 'nowhere'; allowed: the folder of a model of AutoModel"),
        (
            ["--methods", "plain prompt", "collage"],
            "suite coco: method is 'collage'; allowed: plain prompt, MultiD",
        ),
        (["--model", "nowhere"], "model is 'nowhere'; allowed: a folder"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(folder, tmp_path, capsys, options, says):
    assert command(folder, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_annotations_and_the_suite_need_each_other(folder, tmp_path, capsys):
    assert main(["bench", "coco", "--out", str(tmp_path / "out")]) == 2
    assert "Give their folder with --annotations DIR" in capsys.readouterr().err
    assert main(["bench", "layout", "--annotations", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "--annotations is for the suite coco" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_suites_without_annotations_are_all_but_coco(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_command, "suite_names", lambda: ["coco"])
    assert main(["bench", "all", "--out", str(tmp_path / "out")]) == 0
    assert "no --annotations were given. The suite coco is left out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_annotations_are_named(tmp_path, capsys):
    assert command(tmp_path / "none", tmp_path / "out") == 2
    assert "none' is no folder. Give the folder 'annotations' of COCO" in capsys.readouterr().err
    write_set(tmp_path, CASES)
    change(
        tmp_path / "captions_val2017.json", lambda t: [x.update(caption="a view") for x in t["annotations"]]
    )
    assert command(tmp_path, tmp_path / "out") == 2
    assert "no caption fits, and -n is 3" in capsys.readouterr().err
    (tmp_path / "captions_val2017.json").write_text("{")
    assert command(tmp_path, tmp_path / "out") == 2
    assert "captions_val2017.json' is no JSON" in capsys.readouterr().err
    (tmp_path / "instances_val2017.json").unlink()
    assert command(tmp_path, tmp_path / "out") == 2
    assert "lacks 'instances_*.json'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_detector_without_the_categories_or_without_all_weights_is_refused(folder, tmp_path, capsys):
    tiny_rt_detr(tmp_path / "other", ["dog", "cat"])
    assert command(folder, tmp_path / "out", "--detector", str(tmp_path / "other")) == 2
    error = capsys.readouterr().err
    assert "knows no 'blue" in error
    assert "one that finds words, such as OWLv2" in error
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_detector(STORYBOOK / "tokenizer")
    weights = tmp_path / "other" / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "class_embed" not in k}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(
        LayeredError, match="lacks weights, e.g. .*class_embed.*: it is not the whole detector"
    ):
        load_detector(tmp_path / "other")


def test_the_judge_knows_no_photographs(folder, tmp_path, capsys):
    write_set(tmp_path, CASES)
    change(
        tmp_path / "instances_val2017.json",
        lambda t: t["categories"][0].update(name="zebra") or t["categories"][1].update(name="dog"),
    )
    captions = [f"a zebra and a dog and {c.words}" for c in CASES]
    change(
        tmp_path / "captions_val2017.json",
        lambda t: [x.update(caption=w) for x, w in zip(t["annotations"], captions)],
    )
    assert command(tmp_path, tmp_path / "out") == 2
    assert "the storybook's judge knows no 'dog', 'zebra'" in capsys.readouterr().err
