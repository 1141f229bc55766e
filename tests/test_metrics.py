"""Metrics: every adapter against its own library on random weights, wrong pairings, and what is said when one is
missing."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance

from profusion_cli.errors import ConfigError, UnavailableError
from profusion_cli.evaluation import clip, dino, faces
from profusion_cli.evaluation.cells.features import features_of_photos
from profusion_cli.evaluation.metrics import DESCRIPTIONS, METRICS, Judged, Remembered, cosine, make_metrics
from tests.conftest import SHARED

CPU = torch.device("cpu")
TINY_CLIP = {
    "RN50": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "ViT-B-32": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
}
TINY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


JUDGED = [
    Judged(picture(1), picture(11), "a person on a beach"),
    Judged(picture(2), picture(12), "a painting of a person"),
    Judged(picture(3), picture(11), "a person on a beach"),
]
EXCHANGED = [Judged(one.picture, other.photo, other.text) for one, other in pairwise(JUDGED)]


def scores(metric, judged) -> list[float]:
    assert metric.columns == (metric.name,)
    return [score[metric.name] for score in metric.score(judged)]


def likenesses(pictures) -> list[Judged]:
    """Each picture beside a smaller and darker copy of itself, which stands for its subject's photo."""
    copies = [ImageEnhance.Brightness(p).enhance(0.95).resize((p.width * 3 // 4, p.height * 3 // 4)) for p in pictures]
    return [Judged(picture, copy, "") for picture, copy in zip(pictures, copies, strict=True)]


def lost_by_exchange(metric, judged) -> float:
    """How much lower the metric is on average where every picture is judged by the next one's photo and prompt."""
    turned = [Judged(one.picture, other.photo, other.text) for one, other in pairwise([*judged, judged[0]])]
    return float(np.mean(scores(metric, judged)) - np.mean(scores(metric, turned)))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- what they share -------------------------------------------------------------------------------------------


def test_no_adapter_and_no_torch_is_imported_early():
    code = "import sys, profusion_cli.evaluation.metrics as m; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert set(DESCRIPTIONS) == set(METRICS) == {"clip", "faces", "adaface", "dino", "realism", "faceworld"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("clap", {}, "'clip'"),
        ("clip", {"model": ["RN50"]}, "'models'"),
        ("clip", {"models": ["RN5"]}, "'RN50'"),
        ("clip", {"models": "RN50"}, "brackets"),
        ("clip", {"folder": 3}, "quotes"),
        ("dino", {"models": ["DINOv3"]}, "'DINOv2'"),
        ("faces", {"models": ["Facenet51"]}, "'Facenet512'"),
        ("faces", {"detector": "retinaflace"}, "'retinaface'"),
        ("adaface", {"models": []}, "weights"),
        ("realism", {}, "option 'folder'"),
        ("realism", {"folder": "nowhere"}, "option 'folder'"),
        ("realism", {"folder": "tests", "models": ["DINO"]}, "option 'folder'"),
    ],
)
def test_what_is_unknown_is_said_with_the_nearest_name(name, options, said):
    with pytest.raises(ConfigError) as caught:
        make_metrics(name, options, CPU)
    assert said in caught.value.hint


def test_one_metric_for_each_model():
    names = [metric.name for name in ("clip", "faces", "adaface", "dino") for metric in make_metrics(name, {}, CPU)]
    assert len(set(names)) == len(names) == 9 + (1 + 7) + (1 + 1) + 2
    assert [m.name for m in make_metrics("clip", {"models": ["ViT-L-14-336", "RN101"]}, CPU)] == [
        "CLIP ViT-L/14@336px",
        "CLIP RN101",
    ]


def test_nothing_is_computed_twice():
    asked = []

    def compute(items):
        asked.append(list(items))
        return [len(item) for item in items]

    remembered = Remembered(compute, batch_size=2)
    assert remembered(["a", "bb", "a", "ccc"]) == [1, 2, 1, 3]
    assert remembered(["bb", "dddd"]) == [2, 4]
    assert asked == [["a", "bb"], ["ccc"], ["dddd"]]
    sizes = []
    pictures = Remembered(lambda items: [sizes.append(item.size) for item in items])
    pictures([picture(1), picture(1).copy(), picture(1, (40, 50)), picture(2)])
    assert sizes == [(50, 40), (40, 50), (50, 40)]
    pictures([Image.new("RGB", size) for size in ((50, 40), (40, 50))])
    assert sizes[3:] == [(50, 40), (40, 50)], "of the same bytes, and not the same picture"


# --- CLIP ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip_folder(tmp_path, monkeypatch):
    """Models of random weights, laid out as the Hub repositories of OpenAI's; open_clip is told how small they are."""
    import open_clip

    for name, vision in TINY_CLIP.items():
        torch.manual_seed(len(name))
        config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TINY_TEXT}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{name}-quickgelu", config)
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        weights = open_clip.CLIP(**config).state_dict()
        safetensors.torch.save_file(weights, tmp_path / name / "open_clip_model.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", TINY_CLIP)
def test_clip_is_open_clips(clip_folder, name):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder / name}")
    model.eval()
    with torch.inference_mode():
        pixels = torch.stack([preprocess(item.picture) for item in JUDGED])
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(open_clip.tokenize([item.text for item in JUDGED]), normalize=True)
    (metric,) = make_metrics("clip", {"models": [name], "folder": str(clip_folder)}, CPU)
    assert scores(metric, JUDGED) == pytest.approx((images * texts).sum(1).tolist(), abs=1e-5)
    wrong = scores(metric, EXCHANGED)
    assert wrong == pytest.approx((images[:2] * texts[1:]).sum(1).tolist(), abs=1e-5)
    assert abs(wrong[0] - scores(metric, JUDGED)[0]) > 1e-3


@pytest.mark.parametrize("name", TINY_CLIP)
def test_clip_finds_prompts_exchanged(clip_folder, name):
    """A model that has learnt a few pictures and their prompts."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder / name}")
    judged = [
        Judged(picture(n), picture(0), text) for n, text in enumerate(("a beach", "a crown", "the snow", "anime"))
    ]
    pixels = torch.stack([preprocess(item.picture) for item in judged])
    tokens = open_clip.tokenize([item.text for item in judged])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
        loss = F.cross_entropy(10 * images @ texts.T, torch.arange(len(judged)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    safetensors.torch.save_file(model.state_dict(), clip_folder / name / "open_clip_model.safetensors")
    (metric,) = make_metrics("clip", {"models": [name], "folder": str(clip_folder)}, CPU)
    assert lost_by_exchange(metric, judged) > 0.3


def test_clip_models_are_those_of_open_clips_tag_openai():
    import open_clip

    for name, (_, repository) in clip.MODELS.items():
        tag = open_clip.get_pretrained_cfg(f"{name}-quickgelu", "openai")
        assert tag["hf_hub"] == repository + "/" and tag["quick_gelu"]
        assert open_clip.get_model_config(f"{name}-quickgelu")["quick_gelu"]
        default = vars(open_clip.transform.PreprocessCfg())  # which a file of weights gets
        assert all(tag[key] == default[key] for key in ("mean", "std", "interpolation", "resize_mode"))


def test_one_missing_clip_model_does_not_stop_the_others(clip_folder, no_network):
    one, other = make_metrics("clip", {"models": ["RN101", "RN50"], "folder": str(clip_folder)}, CPU)
    with pytest.raises(UnavailableError) as caught:
        one.score(JUDGED)
    assert str(clip_folder / "RN101") in caught.value.message and "option 'folder'" in caught.value.hint
    assert len(other.score(JUDGED)) == 3
    (clip_folder / "RN50").rename(clip_folder / "RN101")
    with pytest.raises(UnavailableError, match=r"CLIP RN101 \(.*/RN101\) cannot be loaded: "):
        one.score(JUDGED)
    (clip_folder / "RN101/open_clip_model.safetensors").unlink()
    with pytest.raises(UnavailableError, match=r"CLIP RN101 \(open_clip_model\.safetensors\) is not in the folder"):
        one.score(JUDGED)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("clip", {"models": ["ViT-B-32"]}, "timm/vit_base_patch32_clip_224.openai"),
        ("dino", {"models": ["DINOv2"]}, "facebook/dinov2-base"),
        ("adaface", {}, "opencv/face_detection_yunet"),
    ],
)
def test_offline_no_network_is_asked_for_weights(no_network, monkeypatch, tmp_path, name, options, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        make_metrics(name, options, CPU)[-1].score(JUDGED)
    assert said in caught.value.message and "option 'folder'" in caught.value.hint.replace("detector", "folder")


# --- DINO ------------------------------------------------------------------------------------------------------


def write_dino(folder: Path) -> Path:
    """Tiny models of random weights; the preprocessing is written as in the two Hub repositories."""
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    v2 = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    v2 |= {"image_processor_type": "BitImageProcessor", "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255}
    v1 = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2}
    torch.manual_seed(0)
    mean_std = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
    for name, model, processor in (
        ("dinov2-base", Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)), v2),
        ("dino-vits16", ViTModel(ViTConfig(image_size=32, patch_size=16, **small), add_pooling_layer=False), v1),
    ):
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "token" not in key:  # so that the pictures decide, and not the biases
                torch.nn.init.normal_(parameter, std=0.6)
        model.save_pretrained(folder / name)
        content = {"do_resize": True, **mean_std, **processor}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    return write_dino(tmp_path_factory.mktemp("dino"))


@pytest.mark.parametrize(("name", "repository"), [("DINOv2", "dinov2-base"), ("DINO", "dino-vits16")])
def test_dino_is_transformers(dino_folder, name, repository):
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(dino_folder / repository)
    model = AutoModel.from_pretrained(dino_folder / repository).eval()
    with torch.inference_mode():
        one, other = (
            F.normalize(model(**processor(images=images, return_tensors="pt")).last_hidden_state[:, 0], dim=-1)
            for images in ([item.picture for item in JUDGED], [item.photo for item in JUDGED])
        )
    (metric,) = make_metrics("dino", {"models": [name], "folder": str(dino_folder)}, CPU)
    assert scores(metric, JUDGED) == pytest.approx((one * other).sum(1).tolist(), abs=1e-5)
    wrong = scores(metric, EXCHANGED)
    assert wrong == pytest.approx((one[:2] * other[1:]).sum(1).tolist(), abs=1e-5)
    assert abs(wrong[0] - scores(metric, JUDGED)[0]) > 1e-3
    assert scores(metric, [Judged(picture(1), picture(1), "")]) == pytest.approx([1], abs=1e-6)
    assert lost_by_exchange(metric, likenesses([picture(n) for n in range(4)])) > 0.2


def test_dino_without_all_its_weights_is_refused(dino_folder, tmp_path, no_network):
    assert [Path(place).name for place in dino.MODELS.values()] == ["dinov2-base", "dino-vits16"]
    (tmp_path / "dino-vits16").symlink_to(dino_folder / "dino-vits16")
    one, other = make_metrics("dino", {"folder": str(tmp_path)}, CPU)
    with pytest.raises(UnavailableError, match="dinov2-base"):
        one.score(JUDGED)
    assert len(other.score(JUDGED)) == 3
    part = tmp_path / "dinov2-base"
    part.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (part / name).write_text((dino_folder / "dinov2-base" / name).read_text())
    state = safetensors.torch.load_file(dino_folder / "dinov2-base/model.safetensors")
    state.pop("layernorm.weight")
    safetensors.torch.save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match=r"lacks 1 of its weights, for example layernorm\.weight"):
        one.score(JUDGED)


# --- faces -----------------------------------------------------------------------------------------------------


def find(pictures):
    """A picture of one colour has no face here, and any other is one."""
    arrays = [np.asarray(item) for item in pictures]
    return [None if array.std((0, 1)).max() == 0 else array for array in arrays]


def test_no_face_in_a_picture_is_a_failure():
    """Of those that have one, the mean colour is the embedding."""
    blank = Image.new("RGB", (8, 8), "navy")
    found = Remembered(find)
    judged = [Judged(JUDGED[0].picture, JUDGED[0].photo, ""), Judged(blank, JUDGED[0].photo, "")]
    judged += [Judged(JUDGED[1].picture, JUDGED[1].photo, ""), Judged(JUDGED[0].picture, blank, "")]
    metric = faces.identity("mean", found, lambda crops: [crop.mean((0, 1)) for crop in crops])
    flags = faces.FaceFound(found, "some ").score(judged)
    assert [tuple(flag.values()) for flag in flags] == [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]
    assert set(flags[0]) == {"some face found", "some face found in photo"}
    first, no_face, third, no_face_in_photo = scores(metric, judged)
    assert no_face == 0 and no_face_in_photo is None
    means = [np.asarray(image).mean((0, 1)) for image in (JUDGED[1].picture, JUDGED[1].photo)]
    assert third == pytest.approx(cosine(*means)) and first != third
    assert scores(metric, [judged[1]]) == [0]


def test_likeness_is_the_mean_over_other_photos_that_show_a_face():
    """The tuned photo counts only where there are no others."""
    found = Remembered(find)
    metric = faces.identity("mean", found, lambda crops: [crop.mean((0, 1)) for crop in crops])
    blank, own, photo = Image.new("RGB", (8, 8), "navy"), picture(1), picture(1).copy()
    judged = [Judged(own, photo, "", others=others) for others in ([], [picture(2), blank, picture(3)], [blank])]
    alone, others, none = scores(metric, judged)
    means = [np.asarray(picture(seed)).mean((0, 1)) for seed in (1, 2, 3)]
    assert alone == pytest.approx(1) and none is None
    assert others == pytest.approx((cosine(means[0], means[1]) + cosine(means[0], means[2])) / 2) and others < 0.999
    assert [score["face found in photo"] for score in faces.FaceFound(found).score(judged)] == [1.0, 1.0, 0.0]


# --- realism ---------------------------------------------------------------------------------------------------


def test_realism_compares_features_of_the_two_libraries(clip_folder, dino_folder, tmp_path):
    """And takes pictures in a folder of their own for one person's."""
    import open_clip
    from transformers import AutoImageProcessor, AutoModel

    (clip_folder / "dinov2-base").symlink_to(dino_folder / "dinov2-base")
    photos = tmp_path / "photographs"
    for name in ("ann.png", "bob.jpg", "cy/1.png", "cy/2.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name), (60, 40)).save(photos / name)
    metrics = make_metrics("realism", {"folder": str(photos), "weights": str(clip_folder)}, CPU)
    assert [metric.name for metric in metrics] == ["KID CLIP ViT-B/32", "KID DINOv2"]
    assert all(metric.score(JUDGED) == [{}, {}, {}] and metric.weights[0] == photos for metric in metrics)
    pictures = [item.picture for item in JUDGED]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder / 'ViT-B-32'}")
    processor = AutoImageProcessor.from_pretrained(dino_folder / "dinov2-base")
    dinov2 = AutoModel.from_pretrained(dino_folder / "dinov2-base").eval()
    with torch.inference_mode():
        expected = [
            model.eval().encode_image(torch.stack([preprocess(one) for one in pictures])),
            dinov2(**processor(images=pictures, return_tensors="pt")).last_hidden_state[:, 0],
        ]
    for metric, right in zip(metrics, expected, strict=True):
        (distance,) = metric.distances
        assert {name: len(files) for name, files in distance.photos.items()} == {"ann": 1, "bob": 1, "cy": 2}
        np.testing.assert_allclose(np.stack(distance.features(pictures)), right, atol=1e-5)
        found = features_of_photos(distance, lambda done: None)
        square = Image.open(photos / "cy/2.png").crop((10, 0, 50, 40))
        assert found["cy"].shape == (2, right.shape[1])
        np.testing.assert_allclose(found["cy"][1], distance.features([square])[0], atol=1e-6)
    (photos / "bob.jpg").write_bytes(b"no picture")
    with pytest.raises(UnavailableError, match=r"bob\.jpg"):
        features_of_photos(distance, lambda done: None)
    (photos / "bob.jpg").unlink()
    with pytest.raises(ConfigError, match="of 2 people"):
        make_metrics("realism", {"folder": str(photos)}, CPU)


def test_without_deepface_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepface", None)
    for metric in make_metrics("faces", {}, CPU):
        with pytest.raises(UnavailableError) as caught:
            metric.score(JUDGED)
        assert "pip install 'profusion[evaluation]'" in caught.value.hint


@pytest.mark.skipif(not (SHARED / "faces").is_dir(), reason="the photos are not here")
def test_faces_are_deepfaces(monkeypatch, tmp_path, no_network, capfd):
    """OpenFace, the smallest, of random weights; deepface's own verification is what it is compared to."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "pytorch")
    deepface = pytest.importorskip("deepface.DeepFace")
    capfd.readouterr()
    photos = [Image.open(SHARED / "faces" / f"{n}.jpg").convert("RGB") for n in ("00041", "bengio", "danielwu")]
    blank = Image.new("RGB", (300, 300), "navy")
    judged = [Judged(photos[0], photos[1], ""), Judged(photos[2], photos[1], ""), Judged(blank, photos[1], "")]
    found, arcface, metric = make_metrics("faces", {"models": ["ArcFace", "OpenFace"], "folder": str(tmp_path)}, CPU)
    assert [tuple(score.values()) for score in found.score(judged)] == [(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    with pytest.raises(UnavailableError) as caught:
        arcface.score(judged)
    assert str(tmp_path / ".deepface/weights/arcface_weights.pth") in caught.value.message

    module = importlib.import_module("deepface.models.facial_recognition.pytorch.OpenFace")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(module.weight_utils, "download_weights_if_necessary", lambda **_: "")
        patch.setattr(module, "load_model_weights", lambda model, weight_file: model)
        model = module.load_model()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.01, 0.1)
    (tmp_path / ".deepface/weights").mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), tmp_path / ".deepface/weights" / faces.MODELS["OpenFace"])

    arrays = [np.ascontiguousarray(np.asarray(photo)[..., ::-1]) for photo in photos]
    expected = [deepface.verify(arrays[i], arrays[1], model_name="OpenFace", silent=True)["distance"] for i in (0, 2)]
    own = deepface.represent(arrays[0], model_name="OpenFace")[0]["embedding"]
    capfd.readouterr()
    right = scores(metric, judged)
    assert right == [pytest.approx(1 - expected[0], abs=2e-6), pytest.approx(1 - expected[1], abs=2e-6), 0]
    np.testing.assert_allclose(metric.features([photos[0]])[0], own, rtol=1e-4, atol=1e-6)
    assert lost_by_exchange(metric, likenesses(photos)) > 0.005  # weights of random value find all faces alike
    assert capfd.readouterr().out == ""


# --- AdaFace ---------------------------------------------------------------------------------------------------


def test_alignment_moves_landmarks_to_the_template():
    turn, shift = np.array([[2.4, -1.3], [1.3, 2.4]]), np.array([210.0, 60.0])
    landmarks = faces.TEMPLATE @ turn.T + shift
    photo = Image.new("RGB", (640, 640))
    draw = ImageDraw.Draw(photo)
    for number, (x, y) in enumerate(landmarks):
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(50 * (number + 1), 0, 255))
    aligned = faces.align(np.asarray(photo), landmarks)
    assert aligned.shape == (112, 112, 3)
    for number, (x, y) in enumerate(faces.TEMPLATE):
        red, _, blue = aligned[round(y), round(x)]
        assert abs(int(red) - 50 * (number + 1)) <= 2 and blue >= 250
    off = faces.align(np.asarray(photo), landmarks[[1, 0, 2, 4, 3]])  # as if mirrored
    assert np.abs(off.astype(int) - aligned).max() > 100


class Detector:
    """Stands for YuNet: finds a small face in the corner and a large one, in pictures that are not of one colour."""

    large = np.array([[100, 110], [170, 100], [140, 150], [115, 190], [175, 180]], np.float32)

    def setInputSize(self, size):
        self.size = size

    def detect(self, image):
        assert image.shape[1::-1] == self.size and max(self.size) <= 320
        if image.std() == 0:
            return 1, None
        rows = [[0, 0, w, w, *marks.ravel(), 0.95] for w, marks in ((20, self.large / 9), (150, self.large))]
        return 1, np.array(rows, np.float32)


def test_ir101_has_the_published_shape():
    with torch.device("meta"):
        network = faces.IR101()
        assert network.eval()(torch.zeros(2, 3, 112, 112)).shape == (2, 512)
    assert sum(value.numel() for value in network.parameters()) == 65_150_912
    strides = [block.res_layer[4].stride[0] for block in network.body]
    assert len(strides) == 49 and [i for i, stride in enumerate(strides) if stride == 2] == [0, 3, 16, 46]


def test_adaface_reads_both_published_layouts(monkeypatch, tmp_path):
    monkeypatch.setattr(faces.AdaFace, "_yunet", Detector())
    monkeypatch.setattr(faces, "BLOCKS", (1, 1, 1, 1))
    torch.manual_seed(0)
    network = faces.IR101().eval()
    for name, value in network.named_buffers():
        if value.is_floating_point():
            value.uniform_(0.3, 1) if name.endswith("var") else value.normal_(0, 0.1)
    named = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**named, "head.kernel": torch.zeros(2)}, "epoch": 25}, tmp_path / "adaface.ckpt")
    named = {f"model.net.{name}": value for name, value in network.state_dict().items()}
    safetensors.torch.save_file(named, tmp_path / "model.safetensors")

    blank, photos = Image.new("RGB", (640, 640)), [picture(seed, (640, 640)) for seed in (1, 2)]
    crops = [faces.align(np.asarray(photo), Detector.large * 2) for photo in photos]  # of 640 pixels, seen as 320
    pixels = (torch.tensor(np.stack(crops)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        rgb, bgr = network(pixels).numpy(), network(pixels.flip(1)).numpy()
    assert np.abs(rgb - bgr).max() > 0.1
    judged = [Judged(photos[0], photos[1], ""), Judged(blank, photos[1], ""), Judged(photos[1], photos[1], "")]
    for weights, right in ((tmp_path / "adaface.ckpt", bgr), (tmp_path, rgb)):
        found, metric = make_metrics("adaface", {"weights": str(weights)}, CPU)
        assert [tuple(score.values()) for score in found.score(judged)] == [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
        assert scores(metric, judged) == [pytest.approx(cosine(*right), abs=1e-5), 0, pytest.approx(1)]
        np.testing.assert_allclose(np.stack(metric.features(photos)), right, rtol=1e-3, atol=1e-4)
        assert lost_by_exchange(metric, likenesses(photos)) > 0.1


def test_what_is_no_adaface_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(faces.AdaFace, "_yunet", Detector())
    for content in (b"nonsense", None):
        path = tmp_path / "adaface.pt"
        torch.save({"a": torch.zeros(2)}, path) if content is None else path.write_bytes(content)
        found, metric = make_metrics("adaface", {"weights": str(path)}, CPU)
        assert len(found.score(JUDGED)) == 3
        with pytest.raises(UnavailableError, match=r"adaface\.pt"):
            metric.score(JUDGED)
    monkeypatch.undo()
    found, _ = make_metrics("adaface", {"detector": str(path)}, CPU)
    with pytest.raises(UnavailableError, match="YuNet"):
        found.score(JUDGED)
