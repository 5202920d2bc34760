from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_processors import PROCESSORS, raw_config
from support.images import ODD_PICTURES, noise
from transformers.image_utils import load_image as reference_load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from feather_edge.checkpoint.preprocessing import preprocess_config
from feather_edge.errors import RequestError
from feather_edge.images import pixels as module
from feather_edge.images.pixels import load_image, model_view, preprocess


@pytest.mark.parametrize("processor", PROCESSORS)
def test_pixels_are_those_of_transformers(processor):
    reference = PROCESSORS[processor]
    config = preprocess_config(raw_config(reference))
    for kind, image in ODD_PICTURES.items():
        expected = reference(image, return_tensors="np")["pixel_values"]
        actual = preprocess([image], config)
        assert actual.dtype == np.float32
        assert actual.shape == (1, 3, *config.output_size)
        np.testing.assert_array_equal(actual, expected, err_msg=kind)


def test_several_images():
    config = preprocess_config(raw_config(PROCESSORS["clip-small"]))
    images = [ODD_PICTURES["odd"], ODD_PICTURES["panorama"]]
    pixels = preprocess(images, config)
    assert pixels.shape == (2, 3, 28, 28)
    np.testing.assert_array_equal(pixels[1:], preprocess(images[1:], config))


def test_an_elongated_image_is_refused_before_it_fills_the_memory():
    config = preprocess_config(raw_config(PROCESSORS["clip"]))
    with pytest.raises(RequestError) as error:
        preprocess([Image.new("L", (3000, 1))], config)
    assert str(error.value) == (
        "image of 3000 x 1 pixels, resized for the model, has 672000 x 224 pixels; at most "
        "67108864 are allowed: scale it down or crop it"
    )
    config = preprocess_config(raw_config(PROCESSORS["llava-pad"]))
    with pytest.raises(RequestError, match="image padded to a square has 9000 x 9000 pixels"):
        preprocess([Image.new("L", (9000, 1))], config)


def test_the_models_view_is_the_picture_before_it_is_normalised():
    config = preprocess_config(raw_config(PROCESSORS["clip-crop-larger"]))
    raw = CLIPImageProcessorPil(
        size={"shortest_edge": 31},
        crop_size={"height": 57, "width": 30},
        do_rescale=False,
        do_normalize=False,
    )
    for image in ODD_PICTURES.values():
        view = model_view(image, config)
        assert (view.mode, view.size) == ("RGB", (30, 57))
        expected = raw(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(np.asarray(view).transpose(2, 0, 1), expected)


class TestLoadImage:
    @pytest.mark.parametrize("kind", [k for k in ODD_PICTURES if k != "transparent-palette"])
    def test_every_source_gives_what_transformers_loads(self, kind, tmp_path):
        image = ODD_PICTURES[kind]
        file = tmp_path / ("image.tiff" if image.mode == "CMYK" else "image.png")
        image.save(file)
        expected = np.asarray(reference_load_image(str(file)))
        for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), image):
            loaded = load_image(source)
            assert loaded.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(loaded), expected)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / "turned.png"
        noise(30, 20).save(file, exif=exif)
        loaded = load_image(file)
        assert loaded.size == ((20, 30) if orientation > 4 else (30, 20))
        np.testing.assert_array_equal(
            np.asarray(loaded), np.asarray(reference_load_image(str(file)))
        )

    def test_array(self):
        pixels = np.asarray(noise(5, 7))
        np.testing.assert_array_equal(np.asarray(load_image(pixels)), pixels)
        np.testing.assert_array_equal(np.asarray(load_image(pixels[:, ::-1])), pixels[:, ::-1])

    def test_an_image_of_the_callers_stays_open(self, tmp_path):
        noise(5, 7).save(tmp_path / "image.png")
        with Image.open(tmp_path / "image.png") as image:
            load_image(image)
            assert image.copy().size == (5, 7)

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [((4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), "u1")],
    )
    def test_array_of_another_form(self, shape, dtype):
        with pytest.raises(RequestError) as error:
            load_image(np.zeros(shape, dtype))
        assert str(error.value) == (
            f"image array has shape {list(shape)} and dtype {np.dtype(dtype)}; it must be "
            "[height, width, 3] of uint8, in RGB order"
        )

    def test_missing_file(self, tmp_path):
        with pytest.raises(RequestError) as error:
            load_image(tmp_path / "absent.png")
        assert str(error.value) == (
            f"image {tmp_path / 'absent.png'} does not exist; give a PNG, JPEG or WebP file"
        )

    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
    def test_no_image(self, content, tmp_path):
        file = tmp_path / "image.png"
        file.write_bytes(content)
        for source in (file, content):
            with pytest.raises(
                RequestError, match=r"^image.* cannot be read as an image \(Uniden"
            ):
                load_image(source)

    def test_truncated_image(self):
        buffer = io.BytesIO()
        noise(100, 100).save(buffer, "PNG")
        with pytest.raises(RequestError, match=r"cannot be read as an image .*allowed are the fo"):
            load_image(buffer.getvalue()[:2000])

    def test_folder(self, tmp_path):
        with pytest.raises(RequestError, match=r"cannot be read as an image \(IsADirectoryError"):
            load_image(tmp_path)

    @pytest.mark.parametrize("source", [None, 3, ["a.png"]])
    def test_another_type(self, source):
        with pytest.raises(RequestError) as error:
            load_image(source)
        assert str(error.value) == (
            f"image is a {type(source).__name__}; allowed are a path, the bytes of an image file, "
            "a binary file object, a PIL image, or a numpy array [height, width, 3] of uint8"
        )

    def test_more_pixels_than_allowed(self, monkeypatch, tmp_path):
        noise(30, 20).save(tmp_path / "image.png")
        monkeypatch.setattr(module, "MAX_PIXELS", 599)
        expected = "has 30 x 20 pixels; at most 599 are allowed: scale it down or crop it"
        for source in (tmp_path / "image.png", noise(30, 20), np.asarray(noise(30, 20))):
            with pytest.raises(RequestError, match=expected):
                load_image(source)

    @pytest.mark.parametrize("limit", [500, 200])
    def test_decompression_bomb(self, limit, monkeypatch, tmp_path):
        """Above its limit Pillow warns, above twice its limit it raises; neither gets out."""
        noise(30, 20).save(tmp_path / "image.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
        seen = "hundreds of megapixels" if limit == 200 else "30 x 20 pixels"
        with pytest.raises(RequestError, match=f"image.png has {seen}; at most 100 are allowed"):
            load_image(tmp_path / "image.png")

    @pytest.mark.parametrize("side", [8193, 30_000, 200_000])
    def test_a_real_bomb_is_never_decoded(self, side, monkeypatch, tmp_path):
        """Some kilobytes that would be megapixels: the header is enough to refuse them."""
        file = tmp_path / "bomb.png"
        file.write_bytes(bomb(side))
        assert file.stat().st_size < 2**20

        def decode(*_):
            raise AssertionError("decoded")

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
        for source in (file, file.read_bytes()):
            with pytest.raises(
                RequestError, match=r"has .*at most 67108864 are allowed: scale it"
            ):
                load_image(source)

    def test_a_bomb_in_a_pngs_text(self):
        text = zlib.compress(b"\0" * 2**26)
        data = bomb(4, chunk(b"zTXt", b"note\0\0" + text))
        with pytest.raises(RequestError, match=r"cannot be read as an image \(ValueError: Decomp"):
            load_image(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def bomb(side: int, extra: bytes = b"") -> bytes:
    """Return a PNG of ``side`` x ``side`` black pixels, or its first rows if it is large."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" * (1 + (side + 7) // 8)) * min(side, 2000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )  # fmt: skip
