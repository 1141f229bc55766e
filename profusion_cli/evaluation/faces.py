"""Identity similarity: cosine of face embeddings of a picture and of the photo (Table 2 of the paper).

Seven models through deepface (https://github.com/serengil/deepface), with its own detection and alignment and on its
PyTorch backend; and AdaFace, IR-101 (https://arxiv.org/abs/2204.00964, https://github.com/mk-minchul/AdaFace).
Where there are other photos of the subject, the mean over them counts in place of the photo. Of several faces in a
picture the largest counts. A picture in which no face is found is a failure: its similarity is 0, and a column says how
many there are. Where no photo has a face, there is nothing to compare with.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.metrics import (
    FOUND,
    FOUND_IN_PHOTO,
    Judged,
    Metric,
    Remembered,
    Similarity,
    chosen_models,
    compared_with,
    loading,
    text_option,
    unknown,
)
from profusion_cli.presets import local_path
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Source

MODELS = {
    "VGG-Face": "vgg_face_weights.pth",
    "Facenet": "facenet_weights.pth",
    "Facenet512": "facenet512_weights.pth",
    "OpenFace": "openface_weights.pth",
    "DeepFace": "VGGFace2_DeepFace_weights_val-0.9034.pth",
    "ArcFace": "arcface_weights.pth",
    "SFace": "face_recognition_sface_2021dec.onnx",
}
"""deepface's name of each model, and the file of its weights."""
WEIGHTS = Path(".deepface", "weights")
"""Where these are in deepface's home."""
DETECTORS = {"opencv": "", "retinaface": "retinaface.pth", "yunet": "face_detection_yunet_2023mar.onnx"}
"""Its detectors likewise; `opencv` comes with OpenCV."""


class FaceFound:
    """Whether a detector found a face in the picture, and in a photo that it is compared with: 1.0 or 0.0.

    Args:
        faces: of pictures; None where there is none.
        prefix: of the names of the columns.
        weights: of the detector, where the options name files.
    """

    def __init__(
        self, faces: Remembered[Image.Image, np.ndarray | None], prefix: str = "", weights: Sequence[Path] = ()
    ) -> None:
        self.faces, self.name, self.distances, self.weights = faces, prefix + FOUND, (), weights
        self.columns = (prefix + FOUND, prefix + FOUND_IN_PHOTO)

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Of each picture.

        Raises:
            UnavailableError: the detector or its library cannot be had.
        """
        scores: list[dict[str, float | None]] = []
        for face, item in zip(self.faces([item.picture for item in pictures]), pictures, strict=True):
            found = face is not None, any(other is not None for other in self.faces(compared_with(item)))
            scores.append(dict(zip(self.columns, map(float, found), strict=True)))
        return scores


def identity(
    name: str,
    faces: Remembered[Image.Image, np.ndarray | None],
    embed: Callable[[list[np.ndarray]], Iterable[np.ndarray]],
    weights: Sequence[Path] = (),
) -> Similarity:
    """The metric that compares the embeddings, shape (width,), of the faces in picture and photos."""

    def features(pictures: list[Image.Image]) -> list[np.ndarray | None]:
        found = faces(pictures)
        crops = [face for face in found if face is not None]
        embeddings = iter(embed(crops) if crops else ())
        return [None if face is None else next(embeddings) for face in found]

    remembered = Remembered(features)
    return Similarity(name, remembered, remembered, "photo", failure=0.0, weights=weights)


def face_metrics(options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """A metric that tells where a face was found, and one for each model of deepface.

    Args:
        options: `models`, names of `MODELS`; `detector`, one of `DETECTORS` (`opencv` by default, as in deepface);
            `folder`, deepface's home, with weights in `folder/.deepface/weights` (by default `DEEPFACE_HOME`, or the
            user's home).
        device: that models run on; SFace runs where onnxruntime puts it.

    Raises:
        ConfigError: an unknown model or detector.
    """
    detector = text_option(options, "detector") or "opencv"
    if detector not in DETECTORS:
        raise unknown("detector", detector, DETECTORS)
    folder = text_option(options, "folder")
    library = DeepFace(detector, folder, device)
    faces = Remembered(library.find)

    def weights(*files: str) -> list[Path]:
        return [] if folder is None else [Path(local_path(folder), WEIGHTS, file) for file in files if file]

    detecting = weights(DETECTORS[detector])
    metrics: list[Metric] = [FaceFound(faces, weights=detecting)]
    for model in chosen_models(options, MODELS):
        own = [*detecting, *weights(MODELS[model])]
        metrics.append(identity(model, faces, partial(library.embed, model), own))
    return metrics


class DeepFace:
    """The library, imported on first use; args as of `face_metrics`."""

    def __init__(self, detector: str, folder: str | None, device: torch.device) -> None:
        self.detector, self.folder, self.device = detector, folder, device

    @cached_property
    def _api(self) -> Any:
        os.environ["DEEPFACE_BACKEND_ENGINE"] = "pytorch"
        if self.folder is not None:
            os.environ["DEEPFACE_HOME"] = local_path(self.folder)
        try:
            with warnings.catch_warnings():  # deepface switches all warnings off
                from deepface import DeepFace
                from deepface.commons import backend_utils  # noqa: F401 - without it there is no PyTorch backend
        except ImportError as error:
            raise UnavailableError(
                f"deepface, 0.0.102 or newer, cannot be imported: {error}.",
                "Install it: pip install 'profusion[evaluation]'",
            ) from error
        return DeepFace

    def _build(self, task: str, name: str, file: str) -> Any:
        """A model, whose file is downloaded where it is not there; deepface keeps what it has built."""
        api = self._api
        from deepface.commons import folder_utils

        path = Path(folder_utils.get_deepface_home(), WEIGHTS, file)
        hint = f"Put '{path.name}' in '{path.parent}', or set the metric's option 'folder' to deepface's home."
        if file and constants.HF_HUB_OFFLINE and not path.exists():
            raise UnavailableError(f"{name} needs '{path}', and offline mode is on (HF_HUB_OFFLINE).", hint)
        with loading(f"{name} ({path})", hint), redirect_stdout(sys.stderr):  # deepface reports to standard output
            return api.build_model(name, task=task)

    def find(self, pictures: list[Image.Image]) -> list[np.ndarray | None]:
        """The largest face of each picture, aligned, BGR of shape (height, width, 3) in 0..255; None without one."""
        self._build("face_detector", self.detector, DETECTORS[self.detector])
        from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

        faces: list[np.ndarray | None] = []
        for picture in pictures:
            try:
                with redirect_stdout(sys.stderr):
                    found = self._api.extract_faces(
                        _bgr(picture), detector_backend=self.detector, color_face="bgr", normalize_face=False
                    )
            except (FaceNotDetected, ImgNotFound):  # the other where a face has no pixels
                faces.append(None)
            else:
                largest = max(found, key=lambda face: face["facial_area"]["w"] * face["facial_area"]["h"])
                faces.append(np.ascontiguousarray(largest["face"]))
        return faces

    def embed(self, model: str, faces: list[np.ndarray]) -> list[np.ndarray]:
        """Embeddings of faces from `find`, each of shape (width,)."""
        built = self._build("facial_recognition", model, MODELS[model])
        if isinstance(built.model, nn.Module):
            built.device = self.device
            built.model.to(self.device)
        with redirect_stdout(sys.stderr):
            found = self._api.represent([face / 255 for face in faces], model_name=model, detector_backend="skip")
        # of a list of one, deepface returns the one
        return [np.array(face["embedding"]) for (face,) in (found if len(faces) > 1 else [found])]


def adaface_metrics(options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """A metric that tells where YuNet found a face, and AdaFace.

    Args:
        options: `weights`, a file of IR-101 as its authors publish it, or a folder or Hub id that holds
            `model.safetensors`; `detector`, the file `face_detection_yunet_2023mar.onnx`, or a folder or Hub id that
            holds it. By default both come from the Hub.
        device: that AdaFace runs on, in float32.
    """
    weights = text_option(options, "weights") or "minchul/cvlface_adaface_ir101_webface4m"
    detector = text_option(options, "detector") or "opencv/face_detection_yunet"
    model = AdaFace(weights, detector, device)
    faces = Remembered(model.find)
    detecting, own = ([path] if path.exists() else [] for path in map(Path, map(local_path, (detector, weights))))
    return [FaceFound(faces, "AdaFace ", detecting), identity("AdaFace", faces, model.embed, [*detecting, *own])]


class AdaFace:
    """AdaFace and YuNet, loaded on first use; args as the options of `adaface_metrics`."""

    def __init__(self, weights: str, detector: str, device: torch.device) -> None:
        self.weights, self.detector, self.device = weights, detector, device

    @cached_property
    def _yunet(self) -> Any:
        path = _file(self.detector, DETECTORS["yunet"], "YuNet", "detector")
        with loading(f"YuNet ({path})", "Fetch the file again."):
            return cv2.FaceDetectorYN.create(str(path), "", (0, 0))

    @cached_property
    def _network(self) -> tuple[nn.Module, bool]:
        network, wants_rgb = load_ir101(_file(self.weights, "model.safetensors", "AdaFace", "weights"))
        return network.to(self.device), wants_rgb

    def find(self, pictures: list[Image.Image]) -> list[np.ndarray | None]:
        """The largest face of each picture, aligned, BGR of shape (112, 112, 3) in 0..255; None without one."""
        arrays = [_bgr(picture) for picture in pictures]
        found = [self._landmarks(array) for array in arrays]
        return [None if p is None else align(array, p) for array, p in zip(arrays, found, strict=True)]

    def _landmarks(self, picture: np.ndarray) -> np.ndarray | None:
        """x, y of eyes, nose and corners of the mouth, those left in the picture first, shape (5, 2)."""
        height, width = picture.shape[:2]
        shrink = min(1, 320 / max(height, width))  # YuNet finds faces of up to 300 pixels
        small = cv2.resize(picture, (round(width * shrink), round(height * shrink)), interpolation=cv2.INTER_AREA)
        self._yunet.setInputSize(small.shape[1::-1])
        _, rows = self._yunet.detect(small)
        if rows is None:
            return None
        largest = max(rows, key=lambda row: row[2] * row[3])  # x, y, width, height, landmarks, score
        return largest[4:14].reshape(5, 2) * (width / small.shape[1], height / small.shape[0])

    @torch.inference_mode()
    def embed(self, faces: list[np.ndarray]) -> np.ndarray:
        """Embeddings of faces from `find`, shape (faces, 512)."""
        network, wants_rgb = self._network
        pixels = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1
        return network(pixels.flip(1) if wants_rgb else pixels).cpu().numpy()


TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where eyes, nose and corners of the mouth lie in the 112x112 pixels of ArcFace's alignment, which AdaFace shares
(https://github.com/deepinsight/insightface)."""


def align(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A face turned, scaled and moved so that its landmarks lie on `TEMPLATE` as nearly as can be (least squares).

    Args:
        picture: shape (height, width, 3), uint8.
        landmarks: in the order of `TEMPLATE`, shape (5, 2).

    Returns:
        Shape (112, 112, 3), black beyond the picture.
    """
    (x, y), one, zero = landmarks.T, np.ones(5), np.zeros(5)
    equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, right, down = np.linalg.lstsq(equations, TEMPLATE.T.ravel(), rcond=None)[0]
    return cv2.warpAffine(picture, np.array([[a, -b, right], [b, a, down]]), (112, 112))


BLOCKS = (3, 13, 30, 3)
"""Residual blocks of IR-101, by width; the first of a width halves height and width."""


class Residual(nn.Module):
    """A block of ArcFace's improved residual network (https://arxiv.org/abs/1801.07698), by its published names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv, norm = partial(nn.Conv2d, bias=False), nn.BatchNorm2d
        widen = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inputs == outputs else widen
        enter, leave = conv(inputs, outputs, 3, 1, 1), conv(outputs, outputs, 3, stride, 1)
        self.res_layer = nn.Sequential(norm(inputs), enter, norm(outputs), nn.PReLU(outputs), leave, norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IR101(nn.Module):
    """Aligned faces of shape (B, 3, 112, 112) in [-1, 1] to embeddings of shape (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        blocks, inputs = [], 64
        for blocks_of_width, width in zip(BLOCKS, (64, 128, 256, 512), strict=True):
            for number in range(blocks_of_width):
                blocks.append(Residual(inputs, width, 1 if number else 2))
                inputs = width
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.body = nn.Sequential(*blocks)
        head = nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512, affine=False)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), *head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


def load_ir101(path: Path) -> tuple[IR101, bool]:
    """IR-101 in float32 from a published file, and whether it wants RGB.

    The checkpoints of https://github.com/mk-minchul/AdaFace want BGR; those of CVLface on the Hub
    (https://github.com/mk-minchul/CVLface), whose names have `net.` before them, want RGB.

    Raises:
        UnavailableError: damaged, of another network, or holding more than tensors.
    """
    hint = "Fetch it again; save a checkpoint that holds more than tensors again as its 'state_dict' alone."
    with loading(f"AdaFace's IR-101 ({path})", hint):
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        prefix = next((name for name in state if "input_layer." in name), "").partition("input_layer.")[0]
        with torch.device("meta"):
            network = IR101()
        names = (name for name in network.state_dict() if prefix + name in state)
        network.load_state_dict({name: state[prefix + name] for name in names}, assign=True)
        return network.float().eval().requires_grad_(False), prefix.endswith("net.")


def _file(place: str, name: str, what: str, option: str) -> Path:
    """A file: `place` itself, or the one of this name in the folder or Hub repository `place`."""
    path = Path(local_path(place))
    if path.is_file():
        return path
    return find_files(Source(place, None, "", f"the metric's option '{option}'"), what, (name,)).folder / name


def _bgr(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])
